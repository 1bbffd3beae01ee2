"""A checkpoint without tokenizer.model: tokenizer.json gives the same vocabulary, or is refused by name."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from tests.checkpoint_builder import (
    ModelShape,
    build_checkpoint,
    change_json,
    mistral_sentencepiece_model,
    sentencepiece_model,
    write_json,
)
from tests.gguf_builder import vocab_only_model
from tests.hf_tokenizer import hf_tokenizer
from tests.texts import honest_texts
from zephyr_local.convert import tokenizer_json
from zephyr_local.convert.hf_to_gguf import ConvertOptions, convert_checkpoint
from zephyr_local.convert.model_config import read_config
from zephyr_local.convert.vocabulary import TokenKind, Vocabulary, read_vocabulary
from zephyr_local.engine.llama import LlamaModel
from zephyr_local.errors import CheckpointError
from zephyr_local.gguf_file import read_gguf
from zephyr_local.quantize.types import FileType
from zephyr_local.settings import EngineSettings

TEMPLATE = "{{ messages[0].content }}"
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
OLD_METASPACE = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="session", params=["trained", "mistral"])
def model_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "mistral":
        return mistral_sentencepiece_model()
    path = tmp_path_factory.mktemp("sentencepiece") / "tokenizer.model"
    path.write_bytes(sentencepiece_model(512))
    return path


@pytest.fixture(scope="session")
def trained_document(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tokenizer.json of the small vocabulary."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(512))
    save_with_prefix(folder / "tokenizer.model", folder)
    return (folder / "tokenizer.json").read_text(encoding="utf-8")


def pieces_of(model_file: Path) -> tuple[dict[str, int], dict[str, float]]:
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    ids = {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}
    return ids, {text: pieces.get_score(i) for text, i in ids.items()}


# --- the ways in which tokenizer.json comes to be


def save_with_prefix(model_file: Path, folder: Path) -> None:
    """As PreTrainedTokenizerFast saves a legacy Llama tokenizer, pieces that tie in the order of their ids."""
    hf_tokenizer(str(model_file), TEMPLATE).save_pretrained(folder)


def save_with_metaspace(model_file: Path, folder: Path) -> None:
    save_with_prefix(model_file, folder)
    change_json(folder / "tokenizer.json", normalizer=None, pre_tokenizer=METASPACE)


def save_with_joined_merges(model_file: Path, folder: Path) -> None:
    """As transformers wrote them before 4.45."""
    save_with_prefix(model_file, folder)
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    document["model"]["merges"] = [" ".join(pair) for pair in document["model"]["merges"]]
    del document["model"]["type"], document["model"]["ignore_merges"]
    write_json(folder / "tokenizer.json", document)


def save_llama_tokenizer(model_file: Path, folder: Path) -> None:
    """As transformers 5 saves its LlamaTokenizer, with the order that transformers' conversion gives since 4.49."""
    from transformers import LlamaTokenizer
    from transformers.tokenization_utils_base import generate_merges

    ids, scores = pieces_of(model_file)
    LlamaTokenizer(vocab=ids, merges=generate_merges(ids, scores)).save_pretrained(folder)


WAYS = [save_with_prefix, save_with_metaspace, save_with_joined_merges, save_llama_tokenizer]


def vocabulary_in(folder: Path, rows: int) -> Vocabulary:
    write_json(folder / "config.json", ModelShape(vocab_size=rows).config())
    return read_vocabulary(folder, read_config(folder))


def both_vocabularies(model_file: Path, folder: Path, rows: int) -> tuple[Vocabulary, Vocabulary]:
    """With the model file, and without."""
    shutil.copyfile(model_file, folder / "tokenizer.model")
    with_model = vocabulary_in(folder, rows)
    (folder / "tokenizer.model").unlink()
    return with_model, vocabulary_in(folder, rows)


def assert_equal(found: Vocabulary, expected: Vocabulary) -> None:
    assert list(map(str, found.scores)) == list(map(str, expected.scores))  # -0.0 is another byte than 0.0
    assert found == expected


@pytest.mark.parametrize("save", WAYS)
def test_the_vocabulary_is_that_of_the_model_file(
    save: Callable[[Path, Path], None], model_file: Path, tmp_path: Path
) -> None:
    save(model_file, tmp_path)
    expected, found = both_vocabularies(model_file, tmp_path, len(pieces_of(model_file)[0]))
    assert_equal(found, expected)
    assert (found.bos_id, found.eos_id, found.unk_id, found.add_space_prefix) == (1, 2, 0, None)


def test_added_tokens_padding_and_a_piece_that_is_listed_too(model_file: Path, tmp_path: Path) -> None:
    from transformers import LlamaTokenizer

    save_llama_tokenizer(model_file, tmp_path)
    tokenizer = LlamaTokenizer.from_pretrained(tmp_path)
    ids, _ = pieces_of(model_file)
    piece = next(text for text, i in ids.items() if i > 300 and len(text) == 2)
    tokenizer.add_special_tokens({"pad_token": "<pad>", "additional_special_tokens": ["<|im_end|>"]})
    tokenizer.add_tokens([piece, "two words"])
    tokenizer.save_pretrained(tmp_path)
    expected, found = both_vocabularies(model_file, tmp_path, len(ids) + 8)
    assert_equal(found, expected)
    assert found.n_pieces == len(ids)
    assert found.tokens[len(ids) :] == [
        "<pad>",
        "<|im_end|>",
        "two words",
        *(f"[PAD{len(ids) + i}]" for i in range(3, 8)),
    ]
    kinds = [TokenKind.CONTROL, TokenKind.CONTROL, TokenKind.USER_DEFINED, TokenKind.UNUSED]
    assert found.kinds[len(ids) :][:4] == kinds
    assert found.special_texts["pad"] == "<pad>"


def test_added_tokens_written_into_the_vocabulary_are_no_pieces(tmp_path: Path, trained_document: str) -> None:
    document = json.loads(trained_document)
    document["model"]["vocab"] |= {"<|im_end|>": 512, "plain": 513}
    document["added_tokens"] += [
        {"id": 512, "content": "<|im_end|>", "special": True},
        {"id": 513, "content": "plain", "special": False},
    ]
    write_json(tmp_path / "tokenizer.json", document)
    (tmp_path / "with").mkdir()
    (tmp_path / "with" / "tokenizer.model").write_bytes(sentencepiece_model(512))
    write_json(tmp_path / "with" / "tokenizer.json", document)
    assert_equal(vocabulary_in(tmp_path, 520), vocabulary_in(tmp_path / "with", 520))


def test_merges_of_special_tokens_do_no_harm(tmp_path: Path, trained_document: str) -> None:
    """As transformers 4 writes them, by the score of their result: that of a control token is 0, so it comes first."""
    document = json.loads(trained_document)
    document["model"]["vocab"] |= {"</": 512, "s>": 513, "<s>b": 514}
    write_json(tmp_path / "tokenizer.json", document)
    expected = vocabulary_in(tmp_path, 515)
    document["model"]["merges"] = [["</", "s>"], *document["model"]["merges"], ["<s>", "b"]]
    write_json(tmp_path / "tokenizer.json", document)
    assert_equal(vocabulary_in(tmp_path, 515), expected)
    assert expected.kinds[:3] == [TokenKind.UNKNOWN, TokenKind.CONTROL, TokenKind.CONTROL]


@pytest.mark.parametrize(
    ("changes", "in_config", "expected"),
    [
        ({}, ..., None),
        ({}, None, None),
        ({}, True, True),
        ({}, False, False),
        ({"normalizer": None, "pre_tokenizer": METASPACE | {"prepend_scheme": "always"}}, ..., None),
        ({"normalizer": None, "pre_tokenizer": METASPACE | {"prepend_scheme": "always"}}, False, False),
        ({"normalizer": None, "pre_tokenizer": METASPACE | {"prepend_scheme": "never"}}, ..., False),
        ({"normalizer": None, "pre_tokenizer": METASPACE | {"prepend_scheme": "never"}}, True, False),
        ({"normalizer": {"type": "Sequence", "normalizers": [REPLACE]}}, ..., False),
        ({"normalizer": REPLACE}, ..., False),
    ],
)
def test_the_space_before_the_text(
    changes: dict[str, object], in_config: object, expected: bool | None, tmp_path: Path, trained_document: str
) -> None:
    (tmp_path / "tokenizer.json").write_text(trained_document, encoding="utf-8")
    change_json(tmp_path / "tokenizer.json", **changes)
    write_json(tmp_path / "tokenizer_config.json", {})
    change_json(tmp_path / "tokenizer_config.json", add_prefix_space=in_config)
    assert vocabulary_in(tmp_path, 512).add_space_prefix is expected


# --- tokens and whole files


def test_tokens_are_those_of_sentencepiece(tmp_path: Path) -> None:
    """Five thousand texts, after transformers has saved, loaded and saved the tokenizer again, as a fine-tune does."""
    from transformers import AutoTokenizer

    base = tmp_path / "base"
    save_llama_tokenizer(mistral_sentencepiece_model(), base)
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path)
    assert not list(tmp_path.rglob("tokenizer.model"))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(mistral_sentencepiece_model()))
    model = in_llama_cpp(vocabulary_in(tmp_path, 32000), tmp_path)
    texts = [text for text in with_runs_of_spaces(5001) if text]
    assert len(texts) == 5000
    assert [text for text in texts if model.tokenize(text) != pieces.encode(text)] == []
    model.close()


def test_an_order_by_id_is_followed_as_it_stands(tmp_path: Path) -> None:
    """What transformers 5 makes of tokenizer.model alone merges runs of spaces first; the fine-tune learnt that."""
    from tokenizers import Tokenizer
    from transformers.tokenization_utils_base import generate_merges

    save_with_prefix(mistral_sentencepiece_model(), tmp_path)
    document = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    document["model"]["merges"] = generate_merges(document["model"]["vocab"])
    write_json(tmp_path / "tokenizer.json", document)
    reference = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    model = in_llama_cpp(vocabulary_in(tmp_path, 32000), tmp_path)
    texts = [text for text in honest_texts(1000, seed=8) if text]
    assert [t for t in texts if model.tokenize(t) != reference.encode(t, add_special_tokens=False).ids] == []
    model.close()


def test_another_order_than_the_ids_gives_ranks(tmp_path: Path, trained_document: str) -> None:
    """The same pieces under other ids are merged alike."""
    document = json.loads(trained_document)
    vocab: dict[str, int] = document["model"]["vocab"]
    movable = [text for text, i in vocab.items() if i >= 259]
    shuffled = random.Random(3).sample(movable, len(movable))
    document["model"]["vocab"] = vocab | {text: 259 + i for i, text in enumerate(shuffled)}
    write_json(tmp_path / "tokenizer.json", document)
    found = vocabulary_in(tmp_path, 512)
    by_score = sorted(range(259, 512), key=lambda i: -found.scores[i])
    results = list(dict.fromkeys("".join(pair) for pair in document["model"]["merges"]))
    assert [found.tokens[i] for i in by_score][: len(results)] == results
    assert sorted(found.scores[259:]) == [float(-i) for i in reversed(range(512 - 259))]


def in_llama_cpp(vocabulary: Vocabulary, folder: Path) -> LlamaModel:
    kinds = [int(kind) for kind in vocabulary.kinds]
    path = vocab_only_model((vocabulary.tokens, vocabulary.scores, kinds)).write(folder / "vocabulary.gguf")
    return LlamaModel.load(path, EngineSettings(), vocab_only=True)


def with_runs_of_spaces(count: int) -> list[str]:
    dice = random.Random(21)
    texts = honest_texts(count, seed=20)
    return [text if i % 4 else text.replace(" ", " " * dice.randrange(1, 40)) for i, text in enumerate(texts)]


def test_a_whole_conversion_is_the_same_with_and_without_the_model_file(tmp_path: Path) -> None:
    shape = ModelShape(hidden_size=64, ffn_size=64, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=32000)
    checkpoint = build_checkpoint(tmp_path / "checkpoint", shape, tokenizer=mistral_sentencepiece_model())
    bare = gguf_of(checkpoint)
    save_llama_tokenizer(checkpoint / "tokenizer.model", checkpoint)
    with_model = gguf_of(checkpoint)
    (checkpoint / "tokenizer.model").unlink()
    without = gguf_of(checkpoint)
    assert without == with_model
    # Not of the vocabulary: gguf-py takes the first from the added tokens of tokenizer.json, and the others from
    # tokenizer_config.json, where LlamaTokenizer leaves its defaults out. They are llama.cpp's defaults too.
    values, values_of_bare = (metadata(tmp_path, data) for data in (without, bare))
    different = {key for key in values.keys() | values_of_bare.keys() if values.get(key) != values_of_bare.get(key)}
    assert different == {f"tokenizer.ggml.{key}" for key in ("unknown_token_id", "add_bos_token", "add_eos_token")}
    assert values["tokenizer.ggml.unknown_token_id"] == 0
    assert values_of_bare["tokenizer.ggml.add_bos_token"] is True
    assert values_of_bare["tokenizer.ggml.add_eos_token"] is False


def gguf_of(checkpoint: Path) -> bytes:
    target = checkpoint.parent / "model.gguf"
    convert_checkpoint(checkpoint, target, FileType.F16, ConvertOptions(overwrite=True))
    return target.read_bytes()


def metadata(folder: Path, data: bytes) -> dict[str, Any]:
    path = folder / "copy.gguf"
    path.write_bytes(data)
    return dict(read_gguf(path).metadata)


# --- refusals


def set_model(**changes: object) -> Edit:
    return lambda document: document["model"].update(changes)


def set_document(**changes: object) -> Edit:
    return lambda document: document.update(changes)


def one_merge_a_piece(document: dict[str, Any]) -> None:
    merges = {"".join(pair): pair for pair in document["model"]["merges"]}
    document["model"]["merges"] = list(merges.values())


def tear_merges(document: dict[str, Any]) -> None:
    """The first piece that has two merges gets one of them at the end."""
    merges = document["model"]["merges"]
    place = next(i for i in range(1, len(merges)) if "".join(merges[i]) == "".join(merges[i - 1]))
    merges.append(merges.pop(place))


def rename_token(old: str, new: str) -> Edit:
    def edit(document: dict[str, Any]) -> None:
        vocab = document["model"]["vocab"]
        document["model"]["vocab"] = {(new if text == old else text): i for text, i in vocab.items()}

    return edit


def set_id(text: str, i: object) -> Edit:
    return lambda document: document["model"]["vocab"].update({text: i})


def add_merge(entry: object) -> Edit:
    return lambda document: document["model"]["merges"].append(entry)


def repeat_merge(document: dict[str, Any]) -> None:
    document["model"]["merges"].append(document["model"]["merges"][0])


def byte_level(document: dict[str, Any]) -> None:
    split = {"type": "Split", "pattern": {"Regex": "\\p{L}+"}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    document |= {"normalizer": None, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]}}
    document["model"]["byte_fallback"] = False


def sequence(*steps: dict[str, object]) -> dict[str, object]:
    return {"type": "Sequence", "normalizers": list(steps)}


PREPEND: dict[str, object] = {"type": "Prepend", "prepend": "▁"}

FOREIGN: dict[str, tuple[Edit, str]] = {
    "unigram": (set_model(type="Unigram", vocab=[["<unk>", 0.0]]), "holds a Unigram model"),
    "wordpiece": (set_model(type="WordPiece"), "holds a WordPiece model"),
    "byte level": (byte_level, "another way than SentencePiece .*pre_tokenizer Sequence of Split, ByteLevel"),
    "lower case": (
        set_document(normalizer=sequence({"type": "Lowercase"}, PREPEND, REPLACE)),
        "normalizer Sequence of Lowercase, Prepend, Replace",
    ),
    "nfkc": (set_document(normalizer={"type": "NFKC"}), "normalizer NFKC, pre_tokenizer none"),
    "no normalizer": (set_document(normalizer=None), "normalizer none, pre_tokenizer none"),
    "other prefix": (set_document(normalizer=sequence({**PREPEND, "prepend": "_"}, REPLACE)), "another way"),
    "regex": (set_document(normalizer={**REPLACE, "pattern": {"Regex": " +"}}), "normalizer Replace .*Regex"),
    "both": (set_document(pre_tokenizer=METASPACE), "another way"),
    "words": (set_document(normalizer=None, pre_tokenizer=METASPACE | {"split": True}), "Metaspace .*'split': True"),
    "old metaspace": (
        set_document(
            normalizer=None, pre_tokenizer={"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}
        ),
        "pre_tokenizer Metaspace",
    ),
    "no byte fallback": (set_model(byte_fallback=False), "byte_fallback is not set"),
    "dropout": (set_model(dropout=0.1), "sets dropout to 0.1"),
    "subword prefix": (set_model(continuing_subword_prefix="##"), "sets continuing_subword_prefix to ##"),
    "word suffix": (set_model(end_of_word_suffix="</w>"), "sets end_of_word_suffix to </w>"),
    "ignored merges": (set_model(ignore_merges=True), "sets ignore_merges to True"),
    "a byte is missing": (rename_token("<0x0A>", "<0x0a>"), "512 tokens and lacks 1 of the 256 byte tokens"),
    "three tokens": (set_model(vocab={"<unk>": 0, "<s>": 1, "</s>": 2}), "has 3 tokens and lacks 256"),
    "one merge a piece": (one_merge_a_piece, "merges '.*' in 1 of the . ways that SentencePiece would"),
    "torn merges": (tear_merges, "ranks the merges of '.*' before and after those of other pieces"),
}
DAMAGED: dict[str, tuple[Edit, str]] = {
    "no model": (set_document(model=None), "has no model"),
    "no vocabulary": (set_model(vocab=None), "no vocabulary"),
    "vocabulary a list": (set_model(vocab=["<unk>"]), "no vocabulary"),
    "an id twice": (set_id("<s>", 2), "gives '</s>' the id 2"),
    "an id too high": (set_id("<s>", 512), "gives '<s>' the id 512; its 512 tokens must have the ids from 0 to 511"),
    "an id below zero": (set_id("<s>", -1), "the id -1"),
    "an id that is true": (set_id("<s>", True), "the id True"),
    "an id that is a text": (set_id("<s>", "1"), "gives '<s>' the id 1"),
    "half a character": (rename_token("<s>", "\ud800"), "no valid Unicode"),
    "an unknown unknown": (set_model(unk_token="<other>"), "unknown token <other>, which its vocabulary lacks"),
    "the unknown a list": (set_model(unk_token=[1]), r"unknown token \[1\]"),
    "no merges": (set_model(merges=[]), "has no merges"),
    "merges an object": (set_model(merges={"a": "b"}), "has no merges"),
    "a merge of one": (add_merge("ab"), "the merge ab, which is no pair"),
    "a merge of three": (add_merge("a b c"), "no pair"),
    "a merge of numbers": (add_merge([1, 2]), "no pair"),
    "a merge twice": (repeat_merge, "twice"),
    "a merge to nothing known": (add_merge(["<s>", "<s>"]), "lacks a half or the result"),
    "added tokens an object": (set_document(added_tokens={}), "added_tokens that are no list"),
    "no added tokens": (set_document(added_tokens=None), "does not list its token '<s>' as special"),
    "an added token without a text": (set_document(added_tokens=[{"id": 1}]), "has the added token"),
    "an added token without an id": (set_document(added_tokens=[{"content": "<s>"}]), "has the added token"),
    "an added token of another text": (
        set_document(added_tokens=[{"id": 1, "content": "<x>", "special": True}]),
        "calls token 1 '<s>' in its vocabulary and '<x>' among the added tokens",
    ),
}


@pytest.mark.parametrize(("edit", "match"), (FOREIGN | DAMAGED).values(), ids=(FOREIGN | DAMAGED).keys())
def test_refusals(edit: Edit, match: str, tmp_path: Path, trained_document: str) -> None:
    document = json.loads(trained_document)
    edit(document)
    write_json(tmp_path / "tokenizer.json", document)
    with pytest.raises(CheckpointError, match=match) as caught:
        vocabulary_in(tmp_path, 512)
    assert "there is no tokenizer.model, and tokenizer.json cannot take its place" in caught.value.problem
    assert caught.value.remedy.startswith("Copy tokenizer.model from the base model's folder into this one")
    assert not caught.value.problem.endswith(".")
    assert len(str(caught.value)) < 600


def test_a_tokenizer_that_the_tokenizers_library_trained(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, normalizers, trainers
    from tokenizers.models import BPE

    tokenizer = Tokenizer(BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    texts = ["the hen in a den then went to the tenth tent"] * 9
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=300, special_tokens=special))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="as a tokenizer trained with the tokenizers library does"):
        vocabulary_in(tmp_path, 300)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "tokenizer.json is not valid JSON"),
        (b"[" * 100_000, "tokenizer.json is not valid JSON"),
        (b"[]", "tokenizer.json holds no JSON object"),
        (b"\xff{}", "tokenizer.json is not valid JSON"),
        (b'{"model": {"vocab": ' + b"9" * 5000 + b"}}", "tokenizer.json is not valid JSON"),
    ],
)
def test_files_that_are_no_json_object(content: bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=match):
        vocabulary_in(tmp_path, 512)


def test_a_file_too_large_to_read(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(CheckpointError, match="has 67108865 bytes, more than"):
        vocabulary_in(tmp_path, 512)


def test_a_piece_too_long_to_split(tmp_path: Path, trained_document: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_json, "_MAX_PIECE", 1)
    (tmp_path / "tokenizer.json").write_text(trained_document, encoding="utf-8")
    with pytest.raises(CheckpointError, match="a piece of 2 characters, more than the 1 allowed"):
        vocabulary_in(tmp_path, 512)


def test_more_pieces_than_rows(tmp_path: Path, trained_document: str) -> None:
    (tmp_path / "tokenizer.json").write_text(trained_document, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json has 512 tokens and the embedding 480 rows"):
        vocabulary_in(tmp_path, 480)
