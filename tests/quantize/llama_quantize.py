"""llama.cpp's own quantizer, called as its command line calls it, and what its files hold."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from numpy.typing import NDArray

from zephyr_local.quantize.mixes import MIX_ALONE, MixOptions, ModelFacts, TensorShape, choose_mix
from zephyr_local.quantize.types import FileType, TensorType


def llama_quantize(
    source: Path,
    target: Path,
    file_type: FileType,
    options: MixOptions = MIX_ALONE,
    *,
    importance: Mapping[str, NDArray[np.float32]] | None = None,
    allow_requantize: bool = False,
) -> None:
    """Runs llama_model_quantize; `importance` has one weight a column, by GGUF name."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = file_type.ftype
    params.nthread = 2
    params.allow_requantize = allow_requantize
    params.pure = options.pure
    params.quantize_output_tensor = not options.leave_output_tensor
    if options.output_tensor_type is not None:
        params.output_tensor_type = options.output_tensor_type.ggml_id
    if options.token_embedding_type is not None:
        params.token_embedding_type = options.token_embedding_type.ggml_id
    # llama.cpp stops at the entry without a name; ctypes makes the array's last one so
    overrides = (llama_cpp.llama_model_tensor_override * (len(options.tensor_types) + 1))()
    for entry, (pattern, kind) in zip(overrides, options.tensor_types, strict=False):
        entry.pattern, entry.type = pattern.lower().encode(), kind.ggml_id  # lower as on its command line
    if options.tensor_types:
        params.tt_overrides = overrides
    weights = (llama_cpp.llama_model_imatrix_data * (len(importance or {}) + 1))()
    if importance is not None:
        for entry, (name, values) in zip(weights, importance.items(), strict=False):
            entry.name, entry.size = name.encode(), values.size
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = weights
    assert llama_cpp.llama_model_quantize(bytes(source), bytes(target), ctypes.byref(params)) == 0


def tensors(path: Path) -> list[tuple[str, str, list[int], bytes]]:
    """Name, type, shape and bytes of every tensor, in the file's order."""
    return [(t.name, t.tensor_type.name, list(t.shape), t.data.tobytes()) for t in gguf.GGUFReader(path).tensors]


def tensor_types(path: Path) -> dict[str, TensorType]:
    """Every tensor's type, in the file's order."""
    return {t.name: TensorType[t.tensor_type.name] for t in gguf.GGUFReader(path).tensors}


def tensor_shapes(path: Path) -> list[TensorShape]:
    """What the rules need to know of every tensor of a GGUF; gguf-py gives shapes from the columns on."""
    return [
        TensorShape(t.name, tuple(int(n) for n in reversed(t.shape)), TensorType[t.tensor_type.name])
        for t in gguf.GGUFReader(path).tensors
    ]


def require_equal(ours: Path, theirs: Path) -> None:
    """Asserts that two files hold the same tensors in the same order, to the byte."""
    found, expected = tensors(ours), tensors(theirs)
    assert [(t[0], t[1], t[2]) for t in found] == [(t[0], t[1], t[2]) for t in expected]
    assert [t[0] for t, other in zip(found, expected, strict=True) if t[3] != other[3]] == []


def choose_types(
    shapes: Iterable[TensorShape],
    file_type: FileType,
    facts: ModelFacts,
    options: MixOptions = MIX_ALONE,
    *,
    has_importance: bool = False,
) -> dict[str, TensorType]:
    """Our choice by name, in the order of the file."""
    chosen = choose_mix(shapes, file_type, facts, options, has_importance=has_importance)
    return {tensor.name: tensor.kind for tensor in chosen}
