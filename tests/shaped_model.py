"""GGUFs of any shape and type whose weights are zeros that take no disk: for what depends on sizes alone."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.gguf_builder import Tensor, TinyModel, tiny_model, vocabulary
from zephyr_local.gguf_file import TENSOR_TYPES
from zephyr_local.quantize.mixes import ModelFacts, TensorShape, choose_mix
from zephyr_local.quantize.types import FileType, TensorType

_TYPE_IDS = {name: type_id for type_id, (name, _, _) in TENSOR_TYPES.items()}


@dataclass(frozen=True)
class Shape:
    """A llama model's numbers, by llama.cpp's names."""

    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    n_ff: int
    n_vocab: int = 32000
    n_ctx_train: int = 32768


MISTRAL_7B = Shape(32, 4096, 32, 8, 14336)
TINYLLAMA_1B = Shape(22, 2048, 32, 4, 5632, n_ctx_train=2048)
SMALL = Shape(8, 1024, 16, 4, 2816, n_vocab=8000)


def shaped_model(shape: Shape, file_type: FileType, *, tied: bool = False) -> TinyModel:
    """The header's parts, with tensors of llama-quantize's types for ``file_type``, and no data."""
    n_known = len(vocabulary()[0])
    vocab = vocabulary([f"▁w{n}" for n in range(shape.n_vocab - n_known)])
    model = tiny_model(
        vocab=vocab,
        n_embd=shape.n_embd,
        n_head=shape.n_head,
        n_head_kv=shape.n_head_kv,
        n_block=0,
        n_ff=shape.n_ff,
        n_ctx_train=shape.n_ctx_train,
        name="zephyr shaped",
        weights={name: np.zeros(0) for name in ("token_embd.weight", "output.weight")},
    )
    model.metadata["llama.block_count"] = ("u32", shape.n_layer)
    n_kv = shape.n_embd // shape.n_head * shape.n_head_kv
    blocks = {
        "attn_norm": (shape.n_embd,),
        "attn_q": (shape.n_embd, shape.n_embd),
        "attn_k": (n_kv, shape.n_embd),
        "attn_v": (n_kv, shape.n_embd),
        "attn_output": (shape.n_embd, shape.n_embd),
        "ffn_norm": (shape.n_embd,),
        "ffn_gate": (shape.n_ff, shape.n_embd),
        "ffn_up": (shape.n_ff, shape.n_embd),
        "ffn_down": (shape.n_embd, shape.n_ff),
    }
    shapes = {"token_embd.weight": (shape.n_vocab, shape.n_embd), "output_norm.weight": (shape.n_embd,)}
    if not tied:
        shapes["output.weight"] = (shape.n_vocab, shape.n_embd)
    shapes |= {f"blk.{i}.{name}.weight": rows for i in range(shape.n_layer) for name, rows in blocks.items()}
    tensors = [TensorShape.of_checkpoint(name, rows, TensorType.F16) for name, rows in shapes.items()]
    facts = ModelFacts(shape.n_layer, shape.n_head, shape.n_head_kv)
    model.tensors = [
        Tensor(chosen.name, shapes[chosen.name][::-1], b"", _TYPE_IDS[chosen.kind.name])
        for chosen in choose_mix(tensors, file_type, facts)
    ]
    return model


def write_shaped_model(path: Path, shape: Shape, file_type: FileType, *, tied: bool = False) -> Path:
    """Write it as a sparse file, which takes a megabyte or so of disk whatever its size."""
    model = shaped_model(shape, file_type, tied=tied)
    end = 0
    for tensor in model.tensors:
        _, block, block_bytes = TENSOR_TYPES[tensor.type_id]
        n_elements = int(np.prod(tensor.shape))
        tensor.offset = end
        end += -(-(n_elements // block * block_bytes) // model.alignment) * model.alignment
    header = model.build()
    path.write_bytes(header)
    os.truncate(path, len(header) + end)
    return path
