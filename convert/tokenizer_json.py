"""The SentencePiece vocabulary in a `tokenizer.json`, for a checkpoint that was saved without its `tokenizer.model`.

transformers turns SentencePiece BPE into merges: for each piece every split into two known pieces, pieces in the order
of their scores (`generate_merges` of transformers 4.31 to 5.23). llama.cpp's `llama` tokenizer merges the neighbours
whose text is the piece of the highest score, whatever the split, so the order of the pieces is all that it needs, and
that order can be read back. Where a file has another rule for merging, or another way of cutting text up, no scores
would give its tokens, and it is refused.

Scores. SentencePiece numbers pieces in the order in which it learnt them, and scores them 0, -1, -2 ... by that number.
Llama and Mistral then set the pieces of nothing but spaces to -1e9, so that they come last and all tie. Where the order
of the merges is that of the ids, these are the scores of `tokenizer.model` to the bit: for all pieces, or for all but
runs of spaces that come last. Elsewhere scores are the ranks, so that the tokens are those of tokenizer.json; pieces
that tied in the model file cannot be told from pieces that did not. That is so of a file that transformers 5 made from
tokenizer.model alone: it orders by id, and merges runs of spaces first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Set
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from zephyr_local.convert.model_config import Json, read_json
from zephyr_local.errors import CheckpointError

_MAX_PIECE = 256  # characters; SentencePiece stops at 16 unless it is told otherwise
_SPACE = "\u2581"
_RUN_SCORE = -1e9
_UNKNOWN = "<unk>"
_DAMAGED = "Copy tokenizer.model from the base model's folder into this one, or copy or download tokenizer.json again"
_FOREIGN = (
    "Copy tokenizer.model from the base model's folder into this one; a base model that has none "
    "(as Llama 3 and Mistral Nemo) cannot be converted"
)
_PREPEND = {"type": "Prepend", "prepend": _SPACE}
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}


@dataclass(frozen=True, slots=True)
class JsonPieces:
    """The pieces by id as tokenizer.model would tell them; tokens added on top of them are not among them."""

    texts: list[str]
    scores: list[float]
    unknown_id: int | None
    byte_ids: frozenset[int]
    control_ids: frozenset[int]
    adds_no_space: bool  # text is tokenised without a space before it


@dataclass(frozen=True, slots=True)
class _Merge:
    left: int
    right: int
    result: int


def read_tokenizer_json(path: Path, n_rows: int) -> JsonPieces:
    """The pieces of a tokenizer.json that is SentencePiece BPE, at most `n_rows`; CheckpointError for any other.

    `adds_no_space` is true only where the file says so plainly: Metaspace with the scheme "never", or a lone Replace.
    The schemes "first" and "always" and Prepend differ after special tokens and before a space of the text's own;
    tokenizer.model tells nothing of that, so both ways of reading a vocabulary give llama.cpp's default.
    """
    document = read_json(path)
    model = document.get("model")
    if not isinstance(model, dict):
        raise _refusal("has no model", _DAMAGED)
    adds_no_space = _require_sentencepiece_rules(document, model)
    texts = _texts(model.get("vocab"))
    ids = {text: i for i, text in enumerate(texts)}
    byte_ids = _byte_ids(ids)
    unknown_id = _unknown_id(model, ids)
    merges = _merges(model.get("merges"), ids)
    added = _added_tokens(document, texts)
    # Those that stand in the vocabulary without being made by merges. A piece may be listed too, to be split off first.
    made = {merge.result for merge in merges}
    reserved = byte_ids | ({unknown_id} if unknown_id is not None else set())
    unmade = {i for i in added if i not in made and len(texts[i]) > 1} - reserved
    control_ids = {i for i, special in added.items() if special} - reserved
    if ordinary := [text for text in ("<s>", "</s>") if ids.get(text) not in {None} | control_ids | reserved]:
        raise _refusal(f"does not list its token {ordinary[0]!r} as special", _DAMAGED)
    outside = reserved | control_ids | unmade
    _require_every_split(texts, ids, merges, outside)
    scores = _scores(texts, [m for m in merges if outside.isdisjoint((m.left, m.right, m.result))], outside)
    n_pieces = len(texts)
    while n_pieces - 1 in unmade:  # added on top, though written into the vocabulary
        n_pieces -= 1
    if n_pieces > n_rows:
        raise CheckpointError(
            f"tokenizer.json has {n_pieces} tokens and the embedding {n_rows} rows (vocab_size)",
            "Use the tokenizer that this checkpoint was trained with",
        )
    controls = frozenset(i for i in control_ids if i < n_pieces)
    return JsonPieces(texts[:n_pieces], scores[:n_pieces], unknown_id, byte_ids, controls, adds_no_space)


def _refusal(what: str, remedy: str) -> CheckpointError:
    return CheckpointError(
        f"there is no tokenizer.model, and tokenizer.json cannot take its place: the file {what}", remedy
    )


def _require_sentencepiece_rules(document: Json, model: Json) -> bool:
    """Whether text is tokenised as it is, without a space before it."""
    if (kind := model.get("type", "BPE")) != "BPE":
        raise _refusal(f"holds a {_shown(kind)} model, no SentencePiece BPE", _FOREIGN)
    adds_no_space = _adds_no_space(document.get("normalizer"), document.get("pre_tokenizer"))
    if model.get("byte_fallback") is not True:
        raise _refusal("splits unknown characters into no bytes (byte_fallback is not set)", _FOREIGN)
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
        if model.get(name):
            raise _refusal(f"sets {name} to {_shown(model[name])}, which SentencePiece has not", _FOREIGN)
    return adds_no_space


def _adds_no_space(normalizer: object, pre_tokenizer: object) -> bool:
    if isinstance(normalizer, dict) and normalizer.get("type") == "Sequence":
        steps = normalizer.get("normalizers")
    else:
        steps = [] if normalizer is None else [normalizer]
    if steps in ([_PREPEND, _REPLACE], [_REPLACE]) and pre_tokenizer is None:
        return bool(steps == [_REPLACE])
    if normalizer is None and isinstance(pre_tokenizer, dict):
        entries = (pre_tokenizer.get("type"), pre_tokenizer.get("replacement"), pre_tokenizer.get("split"))
        scheme = pre_tokenizer.get("prepend_scheme")
        if entries == ("Metaspace", _SPACE, False) and scheme in ("always", "first", "never"):
            return bool(scheme == "never")
    raise _refusal(
        f"cuts text up in another way than SentencePiece (normalizer {_component(normalizer)}, "
        f"pre_tokenizer {_component(pre_tokenizer)})",
        _FOREIGN,
    )


def _component(value: object) -> str:
    """A normalizer or pre-tokenizer by name, with what matters of its settings."""
    if not isinstance(value, dict):
        return "none" if value is None else _shown(value)
    steps = value.get("normalizers") or value.get("pretokenizers")
    if isinstance(steps, list):
        names = [_shown(step.get("type")) if isinstance(step, dict) else _shown(step) for step in steps[:6]]
        return f"{_shown(value.get('type'))} of {', '.join(names)}"
    settings = {key: entry for key, entry in value.items() if key != "type"}
    return f"{_shown(value.get('type'))} {_shown(settings)}" if settings else _shown(value.get("type"))


def _shown(value: object) -> str:
    text = value if isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _texts(vocab: object) -> list[str]:
    if not isinstance(vocab, dict) or not vocab:
        raise _refusal("has no vocabulary of texts and ids", _DAMAGED)
    texts: list[str | None] = [None] * len(vocab)
    for text, i in vocab.items():
        if type(i) is not int or not 0 <= i < len(texts) or texts[i] is not None:
            raise _refusal(
                f"gives {_shown(repr(text))} the id {_shown(i)}; its {len(texts)} tokens must have the ids from 0 to "
                f"{len(texts) - 1}, each once",
                _DAMAGED,
            )
        texts[i] = text
    found = [text for text in texts if text is not None]
    try:
        "".join(found).encode()
    except UnicodeEncodeError as error:
        raise _refusal(f"has a token that is no valid Unicode ({error.reason})", _DAMAGED) from error
    return found


def _byte_ids(ids: dict[str, int]) -> frozenset[int]:
    found = [ids.get(f"<0x{byte:02X}>") for byte in range(256)]
    if missing := found.count(None):
        raise _refusal(f"has {len(ids)} tokens and lacks {missing} of the 256 byte tokens <0x00> to <0xFF>", _FOREIGN)
    return frozenset(i for i in found if i is not None)


def _unknown_id(model: Json, ids: dict[str, int]) -> int | None:
    """transformers 5's LlamaTokenizer names no unk_token: with byte fallback it is never needed."""
    name = model.get("unk_token")
    if name is None:
        return ids.get(_UNKNOWN)
    if not isinstance(name, str) or name not in ids:
        raise _refusal(f"names the unknown token {_shown(name)}, which its vocabulary lacks", _DAMAGED)
    return ids[name]


def _merges(entries: object, ids: dict[str, int]) -> list[_Merge]:
    if not isinstance(entries, list) or not entries:
        raise _refusal("has no merges", _DAMAGED)
    merges: list[_Merge] = []
    seen: set[tuple[int, int]] = set()
    for entry in entries:
        halves: Any = entry.split(" ") if isinstance(entry, str) else entry  # one string until transformers 4.45
        if not isinstance(halves, list) or len(halves) != 2 or not all(isinstance(half, str) for half in halves):
            raise _refusal(f"has the merge {_shown(entry)}, which is no pair of texts", _DAMAGED)
        left, right = halves
        found = [ids.get(text) for text in (left, right, left + right)]
        known = [i for i in found if i is not None]
        if len(known) < 3:
            raise _refusal(f"merges {_shown(entry)}, of which its vocabulary lacks a half or the result", _DAMAGED)
        merge = _Merge(*known)
        if (merge.left, merge.right) in seen:
            raise _refusal(f"has the merge {_shown(entry)} twice", _DAMAGED)
        seen.add((merge.left, merge.right))
        merges.append(merge)
    return merges


def _added_tokens(document: Json, texts: list[str]) -> dict[int, bool]:
    """Ids of the vocabulary that are listed as added tokens, and whether each is special."""
    entries = document.get("added_tokens")
    if entries is None:
        return {}
    if not isinstance(entries, list):
        raise _refusal("has added_tokens that are no list", _DAMAGED)
    added: dict[int, bool] = {}
    for entry in entries:
        i = entry.get("id") if isinstance(entry, dict) else None
        if type(i) is not int or i < 0 or not isinstance(entry.get("content"), str):
            raise _refusal(f"has the added token {_shown(entry)}", _DAMAGED)
        if i >= len(texts):
            continue
        if entry["content"] != texts[i]:
            raise _refusal(
                f"calls token {i} {_shown(repr(texts[i]))} in its vocabulary and {_shown(repr(entry['content']))} "
                "among the added tokens",
                _DAMAGED,
            )
        added[i] = bool(entry.get("special"))
    return added


def _require_every_split(texts: list[str], ids: dict[str, int], merges: list[_Merge], outside: Set[int]) -> None:
    """Each piece is merged from any two pieces that make it, as SentencePiece does, whatever they are.

    Splits that involve a byte, control or unknown token may be there or not: transformers before 5 wrote them, and in
    text they never come up.
    """
    found = Counter(m.result for m in merges if outside.isdisjoint((m.left, m.right, m.result)))
    for i, text in enumerate(texts):
        if i in outside:
            continue
        if len(text) > _MAX_PIECE:
            raise _refusal(f"has a piece of {len(text)} characters, more than the {_MAX_PIECE} allowed", _DAMAGED)
        splits = 0
        for cut in range(1, len(text)):
            left, right = ids.get(text[:cut]), ids.get(text[cut:])
            splits += left is not None and right is not None and outside.isdisjoint((left, right))
        # all merges differ, and each is a split: equal numbers are equal sets
        if found[i] != splits:
            raise _refusal(
                f"merges {_shown(repr(text))} in {found[i]} of the {splits} ways that SentencePiece would, as a "
                "tokenizer trained with the tokenizers library does",
                _FOREIGN,
            )


def _scores(texts: list[str], merges: list[_Merge], outside: Set[int]) -> list[float]:
    """A score for each token, 0 for those that are no pieces; see this file's docstring."""
    results = [merge.result for merge in merges]
    n_words = len(results)
    while n_words and _is_run(texts[results[n_words - 1]]):
        n_words -= 1
    if not n_words:
        raise _refusal("has no merges of pieces", _DAMAGED)
    if any(_is_run(texts[i]) for i in results[:n_words]):
        n_words = len(results)  # runs of spaces that do not all come last have ranks as other pieces have
    words = _by_rank(results[:n_words], texts)
    if not _is_by_length(merges[n_words:], texts):
        _by_rank(results[n_words:], texts)
    runs_tie = n_words < len(results) and not _ascends([i for i, _ in groupby(results)])
    pieces = [i for i in range(len(texts)) if i not in outside]
    if _ascends(words):
        places = {i: i - pieces[0] for i in pieces}
    else:
        ranked = set(words)
        places = {i: place for place, i in enumerate(words + [i for i in pieces if i not in ranked])}
    scores = [0.0] * len(texts)
    for i, place in places.items():
        scores[i] = _RUN_SCORE if runs_tie and _is_run(texts[i]) else -float(place)
    return scores


def _is_run(text: str) -> bool:
    return not text.strip(_SPACE)


def _by_rank(results: list[int], texts: list[str]) -> list[int]:
    """The pieces in the order of their merges, which must stand together."""
    order = [i for i, _ in groupby(results)]
    if len(set(order)) < len(order):
        torn = next(i for i, count in Counter(order).items() if count > 1)
        raise _refusal(
            f"ranks the merges of {_shown(repr(texts[torn]))} before and after those of other pieces, so no score "
            "could stand for them",
            _FOREIGN,
        )
    return order


def _is_by_length(merges: list[_Merge], texts: list[str]) -> bool:
    """The order of pieces that tie: transformers sorts them by the lengths of their halves (4.49; 4.41 by id)."""
    lengths = [(len(texts[m.left]), len(texts[m.right])) for m in merges]
    return all(before >= after for before, after in pairwise(lengths))


def _ascends(ids: list[int]) -> bool:
    return all(before < after for before, after in pairwise(ids))
