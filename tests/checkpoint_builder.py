"""Small random checkpoints as transformers saves them, in a fraction of a second and without torch.

    checkpoint = build_checkpoint(folder, ModelShape(n_layers=2), dtype="BF16", n_shards=2)

The safetensors files are packed by hand, so that tests can pack them wrongly too (:func:`write_safetensors`).
"""

from __future__ import annotations

import functools
import io
import json
import random
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Dtype = Literal["BF16", "F16", "F32"]
ZEPHYR_TEMPLATE = "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] }}{% endfor %}"


@dataclass(frozen=True)
class ModelShape:
    """The shape of a Mistral-like model; the defaults have grouped heads and rows of 256."""

    hidden_size: int = 256
    ffn_size: int = 512
    n_layers: int = 2
    n_heads: int = 8
    n_kv_heads: int = 2
    head_dim: int | None = None
    vocab_size: int = 512
    tied: bool = False
    rope_theta: float = 10000.0
    context_length: int = 512
    rms_norm_eps: float = 1e-5
    architecture: str = "MistralForCausalLM"

    @property
    def real_head_dim(self) -> int:
        return self.head_dim or self.hidden_size // self.n_heads

    def config(self) -> dict[str, Any]:
        """config.json as transformers 4 writes it; tests change what they need."""
        config: dict[str, Any] = {
            "architectures": [self.architecture],
            "model_type": self.architecture.removesuffix("ForCausalLM").lower(),
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.ffn_size,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "max_position_embeddings": self.context_length,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "hidden_act": "silu",
            "tie_word_embeddings": self.tied,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "sliding_window": None,
        }
        if self.head_dim is not None:
            config["head_dim"] = self.head_dim
        return config

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes in the order in which transformers stores them."""
        wide, queries = self.hidden_size, self.n_heads * self.real_head_dim
        values = self.n_kv_heads * self.real_head_dim
        shapes: dict[str, tuple[int, ...]] = {}
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocab_size, wide)
        shapes["model.embed_tokens.weight"] = (self.vocab_size, wide)
        for layer in range(self.n_layers):
            prefix = f"model.layers.{layer}."
            shapes |= {
                f"{prefix}input_layernorm.weight": (wide,),
                f"{prefix}mlp.down_proj.weight": (wide, self.ffn_size),
                f"{prefix}mlp.gate_proj.weight": (self.ffn_size, wide),
                f"{prefix}mlp.up_proj.weight": (self.ffn_size, wide),
                f"{prefix}post_attention_layernorm.weight": (wide,),
                f"{prefix}self_attn.k_proj.weight": (values, wide),
                f"{prefix}self_attn.o_proj.weight": (wide, queries),
                f"{prefix}self_attn.q_proj.weight": (queries, wide),
                f"{prefix}self_attn.v_proj.weight": (values, wide),
            }
        return shapes | {"model.norm.weight": (wide,)}


TINYLLAMA_1B = ModelShape(2048, 5632, 22, 32, 4, None, 32000, context_length=2048, architecture="LlamaForCausalLM")
MISTRAL_7B = ModelShape(4096, 14336, 32, 32, 8, None, 32000, context_length=32768)


@functools.cache
def sentencepiece_model(vocab_size: int = 512, model_type: str = "bpe") -> bytes:
    """A byte-fallback model trained on made-up text; trained once a process for each size."""
    import sentencepiece

    chooser = random.Random(0)
    syllables = [c + v for c in "bcdfghjklmnpqrstvwxyz" for v in "aeiou"]
    words = ["".join(chooser.choices(syllables, k=chooser.randint(1, 4))) for _ in range(1500)]
    lines = [" ".join(chooser.choices(words, k=12)) for _ in range(400)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type=model_type,
        vocab_size=vocab_size,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def mistral_sentencepiece_model() -> Path:
    """The real vocabulary of Mistral-7B-v0.1, from mistral-common's package data."""
    import importlib.util

    spec = importlib.util.find_spec("mistral_common")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "data" / "tokenizer.model.v1"


def random_weights(shape: tuple[int, ...], dtype: Dtype, generator: np.random.Generator) -> NDArray[Any]:
    """Normal weights around 0, or around 1 for a norm, already in their stored type (BF16 as uint16)."""
    values = generator.standard_normal(shape, dtype=np.float32) * np.float32(0.05)
    if len(shape) == 1:
        values += np.float32(1)
    return as_stored(values, dtype)


def as_stored(values: NDArray[np.float32], dtype: Dtype) -> NDArray[Any]:
    """float32 values in a stored type; BF16 by cutting, as uint16."""
    if dtype == "F32":
        return values.astype("<f4")
    if dtype == "F16":
        return values.astype("<f2")
    return (np.ascontiguousarray(values, dtype="<f4").view("<u4") >> 16).astype("<u2")


def pack_safetensors(header: Mapping[str, Any], data: bytes) -> bytes:
    """A safetensors file of exactly this header and data, right or wrong."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def write_safetensors(path: Path, tensors: Iterable[tuple[str, Dtype, tuple[int, ...]]], seed: int) -> None:
    """Writes random tensors one at a time, so that a big checkpoint needs no memory."""
    tensors = list(tensors)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, dtype, shape in tensors:
        size = int(np.prod(shape)) * (4 if dtype == "F32" else 2)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    generator = np.random.default_rng(seed)
    with path.open("wb") as file:
        file.write(pack_safetensors(header, b""))
        for _, dtype, shape in tensors:
            rows = max(1, (1 << 22) // shape[-1]) if len(shape) == 2 else 1
            for first in range(0, shape[0] if len(shape) == 2 else 1, rows):
                part = (min(rows, shape[0] - first), shape[1]) if len(shape) == 2 else shape
                file.write(random_weights(part, dtype, generator).tobytes())


def _shards(names: Sequence[str], n_shards: int) -> Iterator[list[str]]:
    size = -(-len(names) // n_shards)
    for first in range(0, len(names), size):
        yield list(names[first : first + size])


def build_checkpoint(
    folder: Path,
    shape: ModelShape | None = None,
    *,
    dtype: Dtype | Mapping[str, Dtype] = "BF16",
    n_shards: int = 1,
    tokenizer: Path | None = None,
    seed: int = 0,
) -> Path:
    """Writes a whole checkpoint into `folder` and returns it; `dtype` may differ by tensor name (others BF16)."""
    shape = shape or ModelShape()
    folder.mkdir(parents=True, exist_ok=True)
    shapes = shape.tensor_shapes()
    types: dict[str, Dtype] = {n: dtype if isinstance(dtype, str) else dtype.get(n, "BF16") for n in shapes}
    groups = list(_shards(list(shapes), n_shards))
    weight_map: dict[str, str] = {}
    for i, names in enumerate(groups, 1):
        file = "model.safetensors" if n_shards == 1 else f"model-{i:05d}-of-{len(groups):05d}.safetensors"
        write_safetensors(folder / file, ((name, types[name], shapes[name]) for name in names), seed + i)
        weight_map |= dict.fromkeys(names, file)
    if n_shards > 1:
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        write_json(folder / "model.safetensors.index.json", index)
    write_json(folder / "config.json", shape.config())
    write_json(
        folder / "tokenizer_config.json",
        {"add_bos_token": True, "add_eos_token": False, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    )
    (folder / "chat_template.jinja").write_text(ZEPHYR_TEMPLATE, encoding="utf-8")
    if tokenizer is None:
        (folder / "tokenizer.model").write_bytes(sentencepiece_model(min(shape.vocab_size, 512)))
    else:
        shutil.copyfile(tokenizer, folder / "tokenizer.model")
    return folder


def write_json(path: Path, value: object) -> None:
    """Writes JSON as transformers does."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def change_json(path: Path, **changes: object) -> None:
    """Sets entries of a JSON object; None of type `...` removes one."""
    value = json.loads(path.read_text(encoding="utf-8"))
    for key, entry in changes.items():
        if entry is ...:
            value.pop(key, None)
        else:
            value[key] = entry
    write_json(path, value)


def read_tensors(path: Path) -> dict[str, tuple[str, NDArray[Any]]]:
    """Names → (dtype, array) of a safetensors file; BF16 as uint16."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = (8 + length + n for n in entry["data_offsets"])
            code = {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}[entry["dtype"]]
            found[name] = (entry["dtype"], np.frombuffer(raw[begin:end], dtype=code).reshape(entry["shape"]).copy())
    return found


def rewrite_tensors(path: Path, tensors: Mapping[str, tuple[str, NDArray[Any]]]) -> None:
    """Writes arrays that :func:`read_tensors` gave, changed, under the same name."""
    header: dict[str, Any] = {}
    data = b""
    for name, (dtype, values) in tensors.items():
        raw = values.tobytes()
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    path.write_bytes(pack_safetensors(header, data))


def with_changes(shape: ModelShape, **changes: Any) -> ModelShape:
    """A shape like another."""
    return replace(shape, **changes)
