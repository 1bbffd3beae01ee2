"""An adapter that is merged as it streams gives the very file that merging with PEFT first gives."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from tests import adapter_builder as adapters
from tests.checkpoint_builder import (
    Dtype,
    ModelShape,
    build_checkpoint,
    change_json,
    read_tensors,
    rewrite_tensors,
    with_changes,
    write_json,
)
from tests.hf_tokenizer import hf_tokenizer
from zephyr_local.convert.hf_to_gguf import (
    ConvertOptions,
    OutputRequest,
    Progress,
    convert_checkpoint,
    convert_model,
    dry_run,
)
from zephyr_local.errors import CheckpointError, InvalidInputError, OutputError, ZephyrError
from zephyr_local.quantize.mixes import MixOptions
from zephyr_local.quantize.types import FileType

# head_dim stands in config.json because transformers 5 adds it when it saves, and a key of the GGUF follows from that
SHAPE = ModelShape(64, 160, 2, 4, 2, head_dim=16, vocab_size=300)
TIED = with_changes(SHAPE, tied=True)
WITH_BLOCKS = ModelShape(256, 512, 2, 8, 2, head_dim=32, vocab_size=300)  # rows of whole k-quant blocks
EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
Q0 = "model.layers.0.self_attn.q_proj"
DTYPES: tuple[Dtype, ...] = ("F32", "F16", "BF16")
TOKENIZER = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
COMMIT = "0123456789abcdef" * 2 + "01234567"
BF16 = FileType.BF16


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Checkpoints by type and shape, each built once."""
    folder = tmp_path_factory.mktemp("bases")
    built = iter(range(100))

    @functools.cache
    def build(dtype: Dtype = "BF16", shape: ModelShape = SHAPE, n_shards: int = 1) -> Path:
        return build_checkpoint(folder / str(next(built)) / "base", shape, dtype=dtype, n_shards=n_shards)

    return build


def merged_with_peft(base: Path, adapter: Path, vocab_size: int | None = None) -> Path:
    """The folder that PEFT merges, of the adapter's name; with it come the tokenizer and the model card.

    Name and card are what the GGUF's `general.*` keys follow from. With them alike, no key differs but our own, which
    name the files that were read.
    """
    folder = adapters.merge_with_peft(base, adapter, adapter.parent / "by PEFT" / adapter.name, vocab_size)
    brings_tokenizer = any((adapter / name).is_file() for name in ("tokenizer.model", "tokenizer.json"))
    for name in TOKENIZER:
        if (path := (adapter if brings_tokenizer else base) / name).is_file():
            shutil.copy(path, folder / name)
    shutil.copy(adapter / "README.md", folder / "README.md")
    return folder


def contents(path: Path) -> tuple[dict[str, tuple[Any, ...]], dict[str, tuple[Any, ...]]]:
    """Every key but ours with types and bytes, and every tensor with type, shape and bytes; in the file's order."""
    reader = gguf.GGUFReader(path)
    keys = {
        name: (tuple(field.types), b"".join(np.asarray(part).tobytes() for part in field.parts))
        for name, field in reader.fields.items()
        if not name.startswith(("GGUF.", "zephyr_local."))
    }
    tensors = {t.name: (t.tensor_type.name, tuple(int(n) for n in t.shape), t.data.tobytes()) for t in reader.tensors}
    return keys, tensors


def require_equal(ours: Path, theirs: Path) -> None:
    for mine, other in zip(contents(ours), contents(theirs), strict=True):
        assert list(mine) == list(other)
        assert [name for name in mine if mine[name] != other[name]] == []


def value(path: Path, key: str) -> Any:
    return gguf.GGUFReader(path).fields[key].contents()


# --- equality with merging first

CONFIGS = adapters.CONFIGS | {
    "whole modules": {"r": 8, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    "norms": {"r": 2, "target_modules": ["k_proj"], "modules_to_save": ["norm"]},
}
GROWN = {
    "more tokens, saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    "more tokens, adapted": {"target_modules": ["embed_tokens", "lm_head"]},
    "more tokens, resized alone": {"target_modules": ["q_proj"]},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_the_file_is_that_of_the_model_merged_with_peft(bases, tmp_path, config, dtype):
    adapter = adapters.train_adapter(bases(dtype), tmp_path / "some-adapter-v2", **config)
    convert_checkpoint(adapter, tmp_path / "ours.gguf", BF16)
    convert_checkpoint(merged_with_peft(bases(dtype), adapter), tmp_path / "theirs.gguf", BF16)
    require_equal(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")


def add_tokenizer(base: Path, adapter: Path, n_tokens: int) -> None:
    """A tokenizer with more tokens than the base has, as transformers saves it beside an adapter; the last ends turns.

    transformers 5 writes no tokenizer.model any more.
    """
    tokenizer = hf_tokenizer(str(base / "tokenizer.model"), "{{ messages }} of the adapter")
    tokenizer.add_tokens([f"new {i}" for i in range(n_tokens - 1)])
    tokenizer.add_tokens(["<|end|>"], special_tokens=True)
    tokenizer.eos_token = "<|end|>"
    tokenizer.save_pretrained(adapter)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("config", GROWN.values(), ids=GROWN.keys())
def test_added_tokens(bases, tmp_path, config, dtype):
    adapter = adapters.train_adapter(bases(dtype), tmp_path / "adapter", vocab_size=310, **config)
    add_tokenizer(bases(dtype), adapter, 10)
    shutil.copy(bases(dtype) / "tokenizer.model", adapter)
    convert_checkpoint(adapter, tmp_path / "ours.gguf", BF16)
    convert_checkpoint(merged_with_peft(bases(dtype), adapter, 310), tmp_path / "theirs.gguf", BF16)
    require_equal(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")
    assert value(tmp_path / "ours.gguf", "llama.vocab_size") == 310
    added = value(tmp_path / "ours.gguf", "tokenizer.ggml.tokens")[300:]
    assert added == [*(f"new {i}" for i in range(9)), "<|end|>"]
    assert value(tmp_path / "ours.gguf", "tokenizer.ggml.eos_token_id") == 309


def test_several_types_in_one_pass_from_a_base_of_several_files(bases, tmp_path):
    base = bases("BF16", WITH_BLOCKS, 3)
    config = {"r": 8, "target_modules": [*adapters.ALL_LINEAR, "embed_tokens"], "modules_to_save": ["lm_head"]}
    adapter = adapters.train_adapter(base, tmp_path / "adapter", **config)
    merged = merged_with_peft(base, adapter)
    types = (FileType.Q4_K_M, FileType.Q8_0)
    results = {
        name: convert_model(source, [OutputRequest(tmp_path / f"{name}-{t.name}.gguf", t) for t in types])
        for name, source in (("ours", adapter), ("theirs", merged))
    }
    for ours, theirs in zip(results["ours"], results["theirs"], strict=True):
        require_equal(ours.path, theirs.path)
    shards = [base / f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in (*shards, adapter / "adapter_model.safetensors")
    ]
    manifest = value(results["ours"][0].path, "zephyr_local.source.manifest")
    assert manifest == "".join(lines)
    assert results["ours"][0].source_sha256 == hashlib.sha256(manifest.encode()).hexdigest()


def test_left_output_keeps_the_type_of_the_base(bases, tmp_path):
    """The adapter has its own lm_head in float32; the model that PEFT merges has it in the base's type."""
    config = {"r": 8, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    adapter = adapters.train_adapter(bases("F32"), tmp_path / "adapter", **config)
    assert read_tensors(adapter / "adapter_model.safetensors")["base_model.model.lm_head.weight"][0] == "F32"
    base, mix = bases("BF16"), MixOptions(leave_output_tensor=True)
    for name, source, options in (
        ("ours", adapter, ConvertOptions(base=base)),
        ("theirs", merged_with_peft(base, adapter), ConvertOptions()),
    ):
        convert_model(source, [OutputRequest(tmp_path / f"{name}.gguf", FileType.Q8_0, mix)], options)
    require_equal(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")
    assert contents(tmp_path / "ours.gguf")[1]["output.weight"][0] == "BF16"


def test_the_bytes_do_not_depend_on_threads(bases, tmp_path):
    adapter = adapters.build_adapter(tmp_path / "adapter", WITH_BLOCKS, targets=[*adapters.ALL_LINEAR, "embed_tokens"])
    written = set()
    for threads in (1, 2, 7):
        options = ConvertOptions(base=bases("BF16", WITH_BLOCKS), threads=threads, overwrite=True)
        written.add(convert_checkpoint(adapter, tmp_path / "a.gguf", FileType.Q4_K_M, options).path.read_bytes())
    assert len(written) == 1


def test_a_dry_run_foresees_the_file(bases, tmp_path):
    adapter = adapters.build_adapter(tmp_path / "adapter", SHAPE)
    options = ConvertOptions(base=bases())
    (plan,) = dry_run(adapter, [OutputRequest(tmp_path / "a.gguf", BF16)], options).plans
    assert list(tmp_path.iterdir()) == [adapter]
    assert convert_checkpoint(adapter, tmp_path / "a.gguf", BF16, options).size_bytes == plan.size_bytes


# --- where the base and the tokenizer come from


@pytest.fixture
def adapter(tmp_path):
    """One whose configuration names no base."""
    return adapters.build_adapter(tmp_path / "adapter", SHAPE)


@pytest.fixture
def expected(adapter, bases, tmp_path):
    """The file that its base is to give."""
    options = ConvertOptions(base=bases())
    return convert_checkpoint(adapter, tmp_path / "expected.gguf", BF16, options).path.read_bytes()


def test_a_base_named_as_a_path(adapter, expected, bases, tmp_path, monkeypatch):
    for name, working in ((str(bases()), tmp_path), ("base", bases().parent), ("./../base", bases())):
        monkeypatch.chdir(working)
        change_json(adapter / "adapter_config.json", base_model_name_or_path=name)
        options = ConvertOptions(overwrite=True)
        assert convert_checkpoint(adapter, tmp_path / "a.gguf", BF16, options).path.read_bytes() == expected


def test_a_base_in_the_cache(adapter, expected, bases, tmp_path, monkeypatch):
    """Laid out as huggingface_hub does: a snapshot's files are links to blobs."""
    repository = tmp_path / "hub" / "models--org--base"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    shutil.copytree(bases(), repository / "blobs")
    for path in (repository / "blobs").iterdir():
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    for revision in (None, "main", COMMIT):
        change_json(adapter / "adapter_config.json", base_model_name_or_path="org/base", revision=revision)
        options = ConvertOptions(overwrite=True)
        assert convert_checkpoint(adapter, tmp_path / "a.gguf", BF16, options).path.read_bytes() == expected
    blob = repository / "blobs" / "model.safetensors"
    with pytest.raises(OutputError, match="is the input"):
        convert_checkpoint(adapter, blob, BF16, ConvertOptions(overwrite=True))


def test_a_given_base_comes_first(adapter, expected, bases, tmp_path):
    """Before one that is there, too: the other base has other weights."""
    other = build_checkpoint(tmp_path / "other", SHAPE, seed=7)
    for named in (str(other), "org/not there"):
        change_json(adapter / "adapter_config.json", base_model_name_or_path=named)
        options = ConvertOptions(base=bases(), overwrite=True)
        assert convert_checkpoint(adapter, tmp_path / "a.gguf", BF16, options).path.read_bytes() == expected
    change_json(adapter / "adapter_config.json", base_model_name_or_path=str(other))
    convert_checkpoint(adapter, tmp_path / "b.gguf", BF16)
    assert (tmp_path / "b.gguf").read_bytes() != expected


def test_the_model_is_named_after_the_adapter(bases, tmp_path):
    folder = adapters.build_adapter(tmp_path / "my-chat-adapter-v3", SHAPE)
    target = convert_checkpoint(folder, tmp_path / "a.gguf", BF16, ConvertOptions(base=bases())).path
    assert value(target, "general.name") == "My Chat Adapter v3"


def test_the_adapters_own_tokenizer_comes_first(adapter, bases, tmp_path):
    options = ConvertOptions(base=bases(), overwrite=True)
    (adapter / "chat_template.jinja").write_text("of an adapter without a tokenizer", encoding="utf-8")
    target = convert_checkpoint(adapter, tmp_path / "a.gguf", BF16, options).path
    assert value(target, "tokenizer.chat_template") == (bases() / "chat_template.jinja").read_text()
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(bases() / name, adapter)
    decoder = {"299": {"content": "<|mine|>", "special": True}}
    change_json(adapter / "tokenizer_config.json", added_tokens_decoder=decoder, eos_token="<|mine|>")
    convert_checkpoint(adapter, target, BF16, options)
    assert value(target, "tokenizer.ggml.tokens")[299] == "<|mine|>"
    assert value(target, "tokenizer.ggml.eos_token_id") == 299  # though config.json, which is the base's, says 2
    assert value(target, "tokenizer.chat_template") == "of an adapter without a tokenizer"


def test_a_tokenizer_json_alone(bases, tmp_path):
    config = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}
    adapter = adapters.train_adapter(bases(), tmp_path / "adapter", vocab_size=301, **config)
    add_tokenizer(bases(), adapter, 1)
    assert not (adapter / "tokenizer.model").exists()
    convert_checkpoint(adapter, tmp_path / "ours.gguf", BF16)
    convert_checkpoint(merged_with_peft(bases(), adapter, 301), tmp_path / "theirs.gguf", BF16)
    require_equal(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")
    convert_checkpoint(bases(), tmp_path / "base.gguf", BF16)
    tokens = value(tmp_path / "base.gguf", "tokenizer.ggml.tokens")
    assert value(tmp_path / "ours.gguf", "tokenizer.ggml.tokens") == [*tokens, "<|end|>"]
    assert value(tmp_path / "ours.gguf", "tokenizer.chat_template") == "{{ messages }} of the adapter"


# --- refusals


def spoiled(adapter: Path, name: str, bad: float) -> Path:
    def spoil(tensors: dict[str, Any]) -> None:
        tensors[f"base_model.model.{name}"][1][3, 5] = bad

    adapters.change_tensors(adapter, spoil)
    return adapter


def truncated(adapter: Path, size: int) -> Path:
    os.truncate(adapter / "adapter_model.safetensors", size)
    return adapter


def without_output(base: Path, tmp_path: Path) -> Path:
    """A damaged base: its config.json promises an lm_head, which only the adapter has."""
    folder = shutil.copytree(base, tmp_path / "damaged")
    tensors = read_tensors(folder / "model.safetensors")
    del tensors[OUTPUT]
    rewrite_tensors(folder / "model.safetensors", tensors)
    return folder


def with_shard_of_the_adapters_name(base: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(base, tmp_path / "renamed")
    names = read_tensors(folder / "model.safetensors").keys()
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    index = {"weight_map": dict.fromkeys(names, "adapter_model.safetensors")}
    write_json(folder / "model.safetensors.index.json", index)
    return folder


SAVED_OUTPUT = {"saved": {OUTPUT: (300, 64)}, "modules_to_save": ["lm_head"]}
Parts = tuple[Path, Path | None]  # adapter, or another source, and the given base
Build = Callable[[Callable[..., Path], Callable[..., Path], Path], Parts]
REFUSALS: dict[str, tuple[Build, type[ZephyrError], str]] = {
    "output of a tied base": (
        lambda a, b, _: (a(targets=["lm_head"]), b("BF16", TIED)), CheckpointError, "one matrix for its embedding"
    ),
    "embedding of a tied base": (
        lambda a, b, _: (a(targets=["embed_tokens"]), b("BF16", TIED)), CheckpointError, "one matrix for its embedding"
    ),
    "another base": (
        lambda a, b, _: (a(), b("BF16", WITH_BLOCKS)), CheckpointError, "[64, 64], and the base's has [256, 256]"
    ),
    "no base named": (lambda a, b, _: (a(), None), InvalidInputError, "does not name its base"),
    "a base that is not there": (
        lambda a, b, _: (a(base_model_name_or_path="org/none"), None), CheckpointError, "'org/none' of the adapter"
    ),
    "a given base that is not there": (lambda a, b, tmp: (a(), tmp / "none"), CheckpointError, "does not exist"),
    "a file as base": (lambda a, b, _: (a(), b() / "config.json"), CheckpointError, "a checkpoint is a folder"),
    "the adapter as its base": (lambda a, b, _: (a(), a()), CheckpointError, "has no config.json"),
    "a base for a checkpoint": (lambda a, b, _: (b(), b()), InvalidInputError, "is no adapter, so it has no base"),
    "a base for a GGUF": (
        lambda a, b, tmp: (convert_checkpoint(b(), tmp / "m.gguf", BF16).path, b()), InvalidInputError, "is no adapter"
    ),
    "a base without what the adapter replaces": (
        lambda a, b, tmp: (a(**SAVED_OUTPUT), without_output(b(), tmp)), CheckpointError, "lacks lm_head.weight"
    ),
    "a base with a file of the adapter's name": (
        lambda a, b, tmp: (a(), with_shard_of_the_adapters_name(b(), tmp)), CheckpointError, "of the base is called"
    ),
    "NaN in A": (
        lambda a, b, _: (spoiled(a(), f"{Q0}.lora_A.weight", np.nan), b()),
        CheckpointError,
        f"{Q0}.weight with the adapter holds nan at row 0, column 5",
    ),
    "infinity in B": (
        lambda a, b, _: (spoiled(a(), f"{Q0}.lora_B.weight", np.inf), b()),
        CheckpointError,
        f"{Q0}.weight with the adapter holds",
    ),
    "NaN in a whole module": (
        lambda a, b, _: (spoiled(a(**SAVED_OUTPUT), OUTPUT, np.nan), b()),
        CheckpointError,
        "lm_head.weight holds nan at row 3, column 5",
    ),
    "a whole module beyond the base's type": (
        lambda a, b, _: (spoiled(a(**SAVED_OUTPUT), OUTPUT, 1e5), b("F16")),
        CheckpointError,
        "lm_head.weight of the adapter, as the base's F16, holds inf at row 3, column 5",
    ),
    "a sum beyond the base's type": (
        lambda a, b, _: (a(lora_alpha=1e9), b("F16")), CheckpointError, f"{Q0}.weight with the adapter holds"
    ),
    "a truncated adapter": (
        lambda a, b, _: (truncated(a(), 5000), b()), CheckpointError, "adapter_model.safetensors is truncated"
    ),
    "an empty adapter": (lambda a, b, _: (truncated(a(), 0), b()), CheckpointError, "too short for a safetensors file"),
    "a rank of another configuration": (lambda a, b, _: (a(r=4), b()), CheckpointError, "has rank 8"),
}  # fmt: skip


@pytest.mark.parametrize(("build", "kind", "words"), REFUSALS.values(), ids=REFUSALS.keys())
def test_refusals_leave_nothing_behind(bases, tmp_path, monkeypatch, build, kind, words):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no cache"))
    source, base = build(functools.partial(adapters.build_adapter, tmp_path / "adapter", SHAPE), bases, tmp_path)
    target = tmp_path / "out" / "model.gguf"
    target.parent.mkdir()
    requests = [OutputRequest(target, BF16), OutputRequest(target.with_name("b.gguf"), FileType.Q8_0)]
    with pytest.raises(kind) as refused:
        convert_model(source, requests, ConvertOptions(base=base))
    assert words in refused.value.problem
    assert refused.value.remedy
    assert list(target.parent.iterdir()) == []
    target.write_text("what stood here before")
    with pytest.raises(kind):
        convert_checkpoint(source, target, BF16, ConvertOptions(base=base, overwrite=True))
    assert target.read_text() == "what stood here before"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
@pytest.mark.parametrize("of_base", [False, True])
def test_no_input_is_written_over(adapter, bases, tmp_path, name, of_base):
    base = shutil.copytree(bases(), tmp_path / "base")
    target = base / name.replace("adapter_", "").replace("model_", "") if of_base else adapter / name
    before = target.read_bytes()
    with pytest.raises(OutputError, match="is the input"):
        convert_checkpoint(adapter, target, BF16, ConvertOptions(base=base, overwrite=True))
    assert target.read_bytes() == before


def test_an_adapter_that_shrinks_after_the_check(adapter, bases, tmp_path):
    def shrink(progress: Progress) -> None:
        if progress.stage == "convert" and progress.done_bytes == 0:
            truncated(adapter, 1000)

    with pytest.raises(CheckpointError, match="changed while it was being converted"):
        convert_checkpoint(adapter, tmp_path / "out.gguf", BF16, ConvertOptions(base=bases()), shrink)
    assert not list(tmp_path.glob("out.gguf*"))
