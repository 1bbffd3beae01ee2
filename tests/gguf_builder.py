"""Builds GGUF files byte by byte: a valid tiny llama model with random weights, and any damage that a test wants."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zephyr_local.gguf_file import TENSOR_TYPES, read_gguf

CODES = {"u8": (0, "B"), "i8": (1, "b"), "u16": (2, "H"), "i16": (3, "h"), "u32": (4, "I"), "i32": (5, "i")}
CODES |= {"f32": (6, "f"), "bool": (7, "B"), "u64": (10, "Q"), "i64": (11, "q"), "f64": (12, "d")}
F32, F16 = 0, 1

Typed = tuple[str, Any]  # ("u32", 5), ("str", "x"), ("array[f32]", [...])


def pack_string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def pack_value(type_name: str, value: Any) -> bytes:
    if type_name == "str":
        return struct.pack("<I", 8) + pack_string(value)
    if type_name == "array[str]":
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(pack_string, value))
    if type_name.startswith("array["):
        code, letter = CODES[type_name[6:-1]]
        return struct.pack(f"<IIQ{len(value)}{letter}", 9, code, len(value), *value)
    code, letter = CODES[type_name]
    return struct.pack("<I" + letter, code, value)


@dataclass
class Tensor:
    name: str
    shape: tuple[int, ...]  # as stored: row length first
    data: bytes
    type_id: int = F32
    offset: int | None = None  # None: right behind the tensor before


@dataclass
class TinyModel:
    """The parts of a GGUF; change any of them, then ``build``."""

    metadata: dict[str, Typed] = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)
    version: int = 3
    alignment: int = 32
    magic: bytes = b"GGUF"
    n_tensors: int | None = None
    n_pairs: int | None = None
    extra_pairs: bytes = b""
    n_extra_pairs: int = 0
    tail: bytes = b""

    def tensor(self, name: str) -> Tensor:
        return next(t for t in self.tensors if t.name == name)

    def build(self) -> bytes:
        out = bytearray(self.magic)
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_pairs = len(self.metadata) + self.n_extra_pairs if self.n_pairs is None else self.n_pairs
        out += struct.pack("<IQQ", self.version, n_tensors, n_pairs)
        for key, (type_name, value) in self.metadata.items():
            out += pack_string(key) + pack_value(type_name, value)
        out += self.extra_pairs
        offset, blob = 0, bytearray()
        for tensor in self.tensors:
            at = offset if tensor.offset is None else tensor.offset
            out += pack_string(tensor.name) + struct.pack("<I", len(tensor.shape))
            out += struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape) + struct.pack("<IQ", tensor.type_id, at)
            padded = tensor.data + b"\0" * (-len(tensor.data) % self.alignment)
            blob += padded
            offset += len(padded)
        out += b"\0" * (-len(out) % self.alignment)
        return bytes(out + blob) + self.tail

    def write(self, path: Path) -> Path:
        path.write_bytes(self.build())
        return path


def model_of_file(path: Path) -> TinyModel:
    """What a GGUF file holds, to be changed and built anew."""
    read, data = read_gguf(path), path.read_bytes()
    type_ids = {name: type_id for type_id, (name, _, _) in TENSOR_TYPES.items()}
    model = TinyModel({key: (read.value_types[key], value) for key, value in read.metadata.items()})
    for tensor in read.tensors:
        start = read.data_offset + tensor.offset
        stored = data[start : start + tensor.size_bytes]
        model.tensors.append(Tensor(tensor.name, tensor.shape, stored, type_ids[tensor.type_name]))
    return model


def split_model(model: TinyModel, *cuts: int) -> list[TinyModel]:
    """The parts of a model as llama-gguf-split makes them; ``cuts`` are the tensors that begin the later parts."""
    bounds = [0, *cuts, len(model.tensors)]
    parts = []
    for no, (begin, end) in enumerate(itertools.pairwise(bounds)):
        metadata = dict(model.metadata) if no == 0 else {}
        metadata["split.no"] = ("u16", no)
        metadata["split.count"] = ("u16", len(cuts) + 1)
        metadata["split.tensors.count"] = ("i32", len(model.tensors))
        parts.append(TinyModel(metadata, model.tensors[begin:end]))
    return parts


def write_parts(parts: Sequence[TinyModel], folder: Path, stem: str = "zephyr") -> list[Path]:
    """Write the parts under the names that llama.cpp looks for; the first path stands for the model."""
    return [part.write(folder / f"{stem}-{no:05d}-of-{len(parts):05d}.gguf") for no, part in enumerate(parts, start=1)]


def vocabulary(extra: Iterable[str] = ()) -> tuple[list[str], list[float], list[int]]:
    """Tokens, scores and types: <unk> <s> </s>, the 256 bytes, then ``extra``, letters and a few words."""
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    types = [2, 3, 3] + [6] * 256
    scores = [0.0] * len(tokens)
    pieces = list(extra)
    pieces += ["▁", *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJ.,!?<>|/é日"]
    pieces += ["▁t", "▁a", "he", "▁the", "in", "er", "an"]
    for rank, piece in enumerate(dict.fromkeys(pieces)):
        tokens.append(piece)
        types.append(1)
        scores.append(-float(rank) if len(piece) > 1 else -1000.0 - rank)
    return tokens, scores, types


def tiny_model(
    *,
    seed: int = 0,
    n_embd: int = 32,
    n_head: int = 4,
    n_head_kv: int = 2,
    n_block: int = 2,
    n_ff: int = 64,
    n_ctx_train: int = 512,
    name: str = "zephyr test",
    template: str | None = None,
    extra_tokens: Sequence[str] = (),
    vocab: tuple[list[str], list[float], list[int]] | None = None,
    weights: Mapping[str, np.ndarray] | None = None,
) -> TinyModel:
    """A valid llama-architecture model with random F32 weights; ``weights`` replaces some, as (n_out, n_in)."""
    tokens, scores, types = vocab or vocabulary(extra_tokens)
    model = TinyModel()
    model.metadata = {
        "general.architecture": ("str", "llama"),
        "general.name": ("str", name),
        "llama.context_length": ("u32", n_ctx_train),
        "llama.embedding_length": ("u32", n_embd),
        "llama.block_count": ("u32", n_block),
        "llama.feed_forward_length": ("u32", n_ff),
        "llama.attention.head_count": ("u32", n_head),
        "llama.attention.head_count_kv": ("u32", n_head_kv),
        "llama.attention.layer_norm_rms_epsilon": ("f32", 1e-5),
        "llama.rope.dimension_count": ("u32", n_embd // n_head),
        "llama.rope.freq_base": ("f32", 10000.0),
        "llama.vocab_size": ("u32", len(tokens)),
        "tokenizer.ggml.model": ("str", "llama"),
        "tokenizer.ggml.tokens": ("array[str]", tokens),
        "tokenizer.ggml.scores": ("array[f32]", scores),
        "tokenizer.ggml.token_type": ("array[i32]", types),
        "tokenizer.ggml.bos_token_id": ("u32", 1),
        "tokenizer.ggml.eos_token_id": ("u32", 2),
        "tokenizer.ggml.unknown_token_id": ("u32", 0),
        "tokenizer.ggml.add_bos_token": ("bool", True),
    }
    if template is not None:
        model.metadata["tokenizer.chat_template"] = ("str", template)
    random = np.random.default_rng(seed)
    n_kv = n_embd // n_head * n_head_kv

    def add(tensor_name: str, *shape: int) -> None:
        if weights is not None and tensor_name in weights:
            data = np.asarray(weights[tensor_name], "<f4")
        elif len(shape) == 1:
            data = np.ones(shape, "<f4")
        else:
            data = (random.standard_normal(shape[::-1]) * 2 / np.sqrt(shape[0])).astype("<f4")
        model.tensors.append(Tensor(tensor_name, shape, data.tobytes()))

    add("token_embd.weight", n_embd, len(tokens))
    for block in range(n_block):
        b = f"blk.{block}."
        add(b + "attn_norm.weight", n_embd)
        add(b + "attn_q.weight", n_embd, n_embd)
        add(b + "attn_k.weight", n_embd, n_kv)
        add(b + "attn_v.weight", n_embd, n_kv)
        add(b + "attn_output.weight", n_embd, n_embd)
        add(b + "ffn_norm.weight", n_embd)
        add(b + "ffn_gate.weight", n_embd, n_ff)
        add(b + "ffn_up.weight", n_embd, n_ff)
        add(b + "ffn_down.weight", n_ff, n_embd)
    add("output_norm.weight", n_embd)
    add("output.weight", n_embd, len(tokens))
    return model


def vocab_only_model(vocab: tuple[list[str], list[float], list[int]]) -> TinyModel:
    """A GGUF with a vocabulary and no tensors, which llama.cpp loads with ``vocab_only``."""
    model = tiny_model(vocab=vocab, n_block=1)
    model.tensors = []
    return model


def write_endless_model(folder: Path) -> Path:
    """A model whose likeliest answer fills its 65,536 tokens of context, which takes a minute unless it is stopped."""
    return tiny_model(n_ctx_train=65_536).write(folder / "endless-zephyr.gguf")


def write_counting_model(folder: Path, *, name: str = "counting") -> Path:
    """A model that answers everything with `w00 w01 … w99 w00 …` until its 4,096 tokens of context are full.

    Its 64 layers compute and change nothing, some hundred tokens a second; the output tells the next word by the last.
    """
    words = [f"▁w{number:02}" for number in range(100)]
    begun = ["▁w", *(f"▁w{digit}" for digit in range(10))]  # so that what was written is read as the same tokens
    vocab = vocabulary([*"0123456789", *begun, *words])
    places = [vocab[0].index(word) for word in words]
    return _chain(vocab, [*places, places[0]], n_block=64, name=name).write(folder / f"{name}-zephyr.gguf")


def write_reciting_model(folder: Path, text: str, *, name: str = "reciting", n_block: int = 8) -> Path:
    """A model that answers everything with ``text``, a few characters a token."""
    pieces: list[str] = []
    rest = text.replace(" ", "▁")
    while rest:
        length = 3
        while rest[:length] in pieces and length < len(rest):  # a token has one successor
            length += 1
        pieces.append(rest[:length])
        rest = rest[length:]
    assert len(set(pieces)) == len(pieces), "the end of the text occurs before; add to it"
    vocab = vocabulary(pieces)
    places = [vocab[0].index(piece) for piece in pieces]
    return _chain(vocab, [*places, 2], n_block=n_block, name=name).write(folder / f"{name}-zephyr.gguf")


def _chain(
    vocab: tuple[list[str], list[float], list[int]], places: Sequence[int], *, n_block: int, name: str
) -> TinyModel:
    """A model whose answers are the tokens ``places``, one after the other, and on from where the last one stands."""
    n_embd, n_vocab = 128, len(vocab[0])
    embeddings = np.random.default_rng(1).standard_normal((n_vocab, n_embd)).astype("<f4")
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    output = np.zeros((n_vocab, n_embd), "<f4")
    for before, after in zip([vocab[0].index("<0x0A>"), *places[:-1]], places, strict=True):
        output[after] += embeddings[before]
    silent = {
        f"blk.{block}.{tensor}.weight": np.zeros(shape, "<f4")
        for block in range(n_block)
        for tensor, shape in (("attn_output", (n_embd, n_embd)), ("ffn_down", (n_embd, 64)))
    }
    return tiny_model(
        n_embd=n_embd,
        n_block=n_block,
        n_ctx_train=4096,
        name=f"zephyr {name}",
        vocab=vocab,
        weights={"token_embd.weight": embeddings, "output.weight": output, **silent},
    )
