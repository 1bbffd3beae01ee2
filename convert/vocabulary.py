"""The tokens of a checkpoint: `tokenizer.model` or `tokenizer.json`, tokens added later, special ids, chat template.

What each file contributes follows conversion/base.py of llama.cpp 0c1e57098 (`_create_vocab_sentencepiece`,
`does_token_look_special`) and gguf-py's `SpecialVocab`. Where that converter would go on with a warning and a wrong
vocabulary, this one stops.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

from zephyr_local.convert.model_config import ModelConfig, read_json, require_readable, shown
from zephyr_local.convert.tokenizer_json import read_tokenizer_json
from zephyr_local.errors import CheckpointError

MAX_PADDING_TOKENS = 512
"""Embeddings are padded to a multiple of 8 to 512; more rows without a token mean the wrong tokenizer."""

_ADDED_SCORE = -1000.0
_PADDING_SCORE = -10000.0
_SPM_SPACE = "\u2581"
_UNIGRAM, _BPE = 1, 2
_ALGORITHMS = {_UNIGRAM: "unigram", 3: "word", 4: "character"}
_MAX_ID = (1 << 32) - 1
_COPY_AGAIN = "Copy or download the file again"
_FROM_BASE = "Copy tokenizer.model from the base model's folder into this one"


class TokenKind(IntEnum):
    """llama.cpp's `llama_token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(slots=True)
class Vocabulary:
    """The tokens by id, and what tokenizer_config.json says besides."""

    tokens: list[str]
    scores: list[float]
    kinds: list[TokenKind]
    n_pieces: int
    bos_id: int | None = None  # of the pieces
    eos_id: int | None = None
    unk_id: int | None = None
    add_space_prefix: bool | None = None
    special_texts: dict[str, str] = field(default_factory=dict)  # "bos" → "<s>", from tokenizer_config.json
    notices: list[str] = field(default_factory=list)  # what was left out, for the user

    def make_control(self, token_id: int) -> None:
        """Let a token that begins or ends turns be a control token, where its file called it an ordinary added one."""
        if self.kinds[token_id] is TokenKind.USER_DEFINED:
            self.kinds[token_id] = TokenKind.CONTROL


@dataclass(frozen=True, slots=True)
class _AddedToken:
    id: int
    text: str
    special: bool
    source: str


def read_vocabulary(folder: Path, config: ModelConfig) -> Vocabulary:
    """Reads and checks the vocabulary; there will be exactly `config.vocab_size` tokens."""
    vocabulary = read_pieces(folder, config.vocab_size)
    tokenizer_config = _optional_json(folder / "tokenizer_config.json")
    _add_tokens(vocabulary, folder, tokenizer_config)
    _require_match(vocabulary, config.vocab_size)
    prefix = tokenizer_config.get("add_prefix_space")
    if vocabulary.add_space_prefix is None and isinstance(prefix, bool):
        vocabulary.add_space_prefix = prefix
    for name in ("bos", "eos", "unk", "pad"):
        entry = tokenizer_config.get(f"{name}_token")
        content = entry.get("content") if isinstance(entry, dict) else entry
        if isinstance(content, str):
            vocabulary.special_texts[name] = content
    return vocabulary


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def read_pieces(folder: Path, n_tokens: int) -> Vocabulary:
    """The pieces of tokenizer.model, or of tokenizer.json, padded to `n_tokens`; no token that was added later."""
    if (path := folder / "tokenizer.model").is_file():
        return _read_sentencepiece(path, n_tokens)
    if (path := folder / "tokenizer.json").is_file():
        return _read_json_pieces(path, n_tokens)
    raise CheckpointError(
        f"{folder} has no tokenizer.model, the SentencePiece vocabulary, and no tokenizer.json either",
        "Copy it from the base model's folder: tokenizer.model, or tokenizer.json where there is none",
    )


def _read_json_pieces(path: Path, n_tokens: int) -> Vocabulary:
    """The same as from tokenizer.model, without which save_pretrained leaves a fine-tune."""
    pieces = read_tokenizer_json(path, n_tokens)
    kinds = [TokenKind.NORMAL] * len(pieces.texts)
    for ids, kind in ((pieces.control_ids, TokenKind.CONTROL), (pieces.byte_ids, TokenKind.BYTE)):
        for i in ids:
            kinds[i] = kind
    if pieces.unknown_id is not None:
        kinds[pieces.unknown_id] = TokenKind.UNKNOWN
    vocabulary = _padded(pieces.texts, pieces.scores, kinds, n_tokens)
    special = {pieces.texts[i]: i for i in pieces.control_ids}
    vocabulary.bos_id, vocabulary.eos_id = special.get("<s>"), special.get("</s>")  # SentencePiece's names for them
    vocabulary.unk_id = pieces.unknown_id
    if pieces.adds_no_space:
        vocabulary.add_space_prefix = False
    return vocabulary


def _padded(texts: list[str], scores: list[float], kinds: list[TokenKind], n_tokens: int) -> Vocabulary:
    """The pieces, and a placeholder for each further row of the embedding."""
    count = len(texts)
    return Vocabulary(
        texts + [f"[PAD{i}]" for i in range(count, n_tokens)],
        scores + [_PADDING_SCORE] * (n_tokens - count),
        kinds + [TokenKind.UNUSED] * (n_tokens - count),
        n_pieces=count,
    )


def _read_sentencepiece(path: Path, n_tokens: int) -> Vocabulary:
    from sentencepiece import SentencePieceProcessor

    require_readable(path)
    pieces = SentencePieceProcessor()
    try:
        serialized = path.read_bytes()
        pieces.LoadFromSerializedProto(serialized)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"tokenizer.model cannot be read: {error}", _FROM_BASE) from error
    if (algorithm := _algorithm(serialized)) != _BPE:
        raise CheckpointError(
            f"tokenizer.model is a {_ALGORITHMS.get(algorithm, 'strange')} model, and llama.cpp splits text by BPE",
            "Convert a model whose SentencePiece vocabulary is BPE, as Mistral's and Llama's are",
        )
    count = pieces.vocab_size()
    if count > n_tokens:
        raise CheckpointError(
            f"tokenizer.model has {count} tokens and the embedding {n_tokens} rows (vocab_size)",
            "Use the tokenizer.model that this checkpoint was trained with",
        )
    tokens = [pieces.IdToPiece(i) for i in range(count)]
    scores = [pieces.GetScore(i) for i in range(count)]
    kinds = [_kind(pieces, i) for i in range(count)]
    normal = {score for score, kind in zip(scores, kinds, strict=True) if kind is TokenKind.NORMAL}
    if len(normal) < 2:
        raise CheckpointError("all tokens of tokenizer.model have the same score, so none would be merged", _FROM_BASE)
    n_bytes = kinds.count(TokenKind.BYTE)
    if n_bytes != 256:
        raise CheckpointError(f"tokenizer.model has {n_bytes} byte tokens of the 256 that llama.cpp needs", _FROM_BASE)
    vocabulary = _padded(tokens, scores, kinds, n_tokens)
    ids = (i if i >= 0 else None for i in (pieces.bos_id(), pieces.eos_id(), pieces.unk_id()))
    vocabulary.bos_id, vocabulary.eos_id, vocabulary.unk_id = ids
    return vocabulary


def _algorithm(model: bytes) -> int:
    """trainer_spec.model_type (fields 2 and 3 of sentencepiece_model.proto), which its Python API does not tell."""
    specs = [value for field, value in _protobuf_fields(model) if field == 2 and isinstance(value, bytes)]
    found = [value for spec in specs for field, value in _protobuf_fields(spec) if field == 3]
    return found[-1] if found and isinstance(found[-1], int) else _UNIGRAM


def _protobuf_fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of a message that its library has parsed before, so it is well-formed."""
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(message):
        key = varint()
        size = {0: 0, 1: 8, 5: 4}.get(key & 7)
        if size == 0:
            yield key >> 3, varint()
            continue
        if size is None:
            size = varint()
        yield key >> 3, message[position : position + size]
        position += size


def _kind(pieces: Any, i: int) -> TokenKind:  # noqa: ANN401  (sentencepiece has no types)
    if pieces.IsUnknown(i):
        return TokenKind.UNKNOWN
    if pieces.IsControl(i):
        return TokenKind.CONTROL
    if pieces.IsUnused(i):
        return TokenKind.UNUSED
    if pieces.IsByte(i):
        return TokenKind.BYTE
    return TokenKind.NORMAL


def _add_tokens(vocabulary: Vocabulary, folder: Path, tokenizer_config: dict[str, Any]) -> None:
    for name, token_id in _optional_json(folder / "added_tokens.json").items():
        _add(vocabulary, _AddedToken(_id(token_id, "added_tokens.json"), name, False, "added_tokens.json"), plain=True)
    decoder = tokenizer_config.get("added_tokens_decoder") or {}
    for token in _decoder_tokens(decoder):
        _add(vocabulary, token, plain=False)
    # transformers 5 lists added tokens in tokenizer.json alone. llama.cpp's converter would leave them [PAD…].
    for token in _tokenizer_json_tokens(folder):
        if token.id >= vocabulary.n_pieces and (
            token.id >= len(vocabulary.tokens) or vocabulary.kinds[token.id] is TokenKind.UNUSED
        ):
            _add(vocabulary, token, plain=False)


def _decoder_tokens(decoder: object) -> Iterator[_AddedToken]:
    source = "added_tokens_decoder in tokenizer_config.json"
    if not isinstance(decoder, dict):
        raise CheckpointError(f"{source} is no object", _COPY_AGAIN)
    for key, entry in decoder.items():
        is_id = key.isdecimal() and len(key) <= len(str(_MAX_ID))  # int() refuses some thousands of digits
        if not is_id or not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise CheckpointError(f"{source} has the entry {shown(key)}: {shown(entry)}", _COPY_AGAIN)
        yield _AddedToken(_id(int(key), source), entry["content"], bool(entry.get("special")), source)


def _tokenizer_json_tokens(folder: Path) -> Iterator[_AddedToken]:
    entries = _optional_json(folder / "tokenizer.json").get("added_tokens")
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and type(entry.get("id")) is int and isinstance(entry.get("content"), str):
            token_id = _id(entry["id"], "tokenizer.json")
            yield _AddedToken(token_id, entry["content"], bool(entry.get("special")), "tokenizer.json")


def _id(value: object, source: str) -> int:
    if type(value) is not int or not 0 <= value <= _MAX_ID:
        raise CheckpointError(f"{source} has the token id {shown(value)}", _COPY_AGAIN)
    return value


def _add(vocabulary: Vocabulary, token: _AddedToken, *, plain: bool) -> None:
    if token.id >= len(vocabulary.tokens):
        # Llama-2's first repositories, and many models merged since, list a <pad> that has no row in the embedding.
        vocabulary.notices.append(
            f"{token.source} has the token {shown(token.text)} with id {token.id}, past the "
            f"{len(vocabulary.tokens)} rows of the embedding; it is left out"
        )
        return
    text, kind = token.text, TokenKind.USER_DEFINED
    before = vocabulary.kinds[token.id]
    if plain:
        # added_tokens.json may list <s> and </s> again: that makes ordinary text of neither.
        if text == vocabulary.tokens[token.id] and before in (TokenKind.CONTROL, TokenKind.UNKNOWN, TokenKind.BYTE):
            kind = before
    elif token.special or _looks_special(text):
        kind = TokenKind.CONTROL
    else:
        text = text.replace(_SPM_SPACE, " ")
    vocabulary.tokens[token.id] = text
    vocabulary.scores[token.id] = _ADDED_SCORE
    vocabulary.kinds[token.id] = kind


def _looks_special(text: str) -> bool:
    """Tokens that are control tokens by their look, whatever their flag says."""
    return (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith(("<|", "<｜")) and text.endswith(("|>", "｜>")) and text[1] == text[-2])
        or (text.startswith("<unused") and text.endswith(">"))
    )


def _require_match(vocabulary: Vocabulary, n_tokens: int) -> None:
    missing = sum(
        kind is TokenKind.UNUSED and text == f"[PAD{i}]"
        for i, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
    )
    if missing > MAX_PADDING_TOKENS:
        raise CheckpointError(
            f"the embedding has {n_tokens} rows (vocab_size) and the tokenizer {n_tokens - missing} tokens: "
            f"{missing} rows without one, where {MAX_PADDING_TOKENS} may be padding",
            "Use the tokenizer.model and added_tokens.json that this checkpoint was trained with",
        )
    seen: dict[str, int] = {}
    for i, text in enumerate(vocabulary.tokens):
        if not text:
            raise CheckpointError(f"token {i} is empty", _FROM_BASE)
        if text in seen:
            raise CheckpointError(
                f"the tokens {seen[text]} and {i} are both {shown(text)}, which llama.cpp cannot load",
                "Remove the added token that repeats another",
            )
        seen[text] = i
