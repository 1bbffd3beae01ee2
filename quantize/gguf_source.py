"""A GGUF as the source of a conversion: its keys are kept, its tensors are read in the order of its bytes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zephyr_local.errors import ModelFileError
from zephyr_local.gguf_check import check_runnable
from zephyr_local.gguf_file import GGUFFile, TensorInfo
from zephyr_local.gguf_split import SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS_COUNT, read_model
from zephyr_local.quantize.encode import require_finite
from zephyr_local.quantize.gguf_header import MetadataValue, ValueType
from zephyr_local.quantize.kernels import ggml
from zephyr_local.quantize.mapped_file import Bytes, FileHashes, MappedFile, row_ranges
from zephyr_local.quantize.mixes import ModelFacts
from zephyr_local.quantize.source import Block, SourceTensor
from zephyr_local.quantize.types import FileType, TensorType

_LEFT_OUT = ("general.alignment", SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS_COUNT)
"""What describes the old file and not the model: the new one has the default alignment and its own parts."""

_PART = re.compile(r"-\d{5}-of-\d{5}\Z")
_NAME_AND_TYPE = re.compile(rf"(.+)[-.]({'|'.join(FileType.__members__)})", re.IGNORECASE | re.DOTALL)

_VALUE_TYPES = {
    "u8": ValueType.UINT8,
    "i8": ValueType.INT8,
    "u16": ValueType.UINT16,
    "i16": ValueType.INT16,
    "u32": ValueType.UINT32,
    "i32": ValueType.INT32,
    "f32": ValueType.FLOAT32,
    "bool": ValueType.BOOL,
    "str": ValueType.STRING,
    "u64": ValueType.UINT64,
    "i64": ValueType.INT64,
    "f64": ValueType.FLOAT64,
}


@dataclass(frozen=True, slots=True)
class GGUFSource:
    """A model in one GGUF or in several parts, checked as the runtime checks what it loads."""

    model: GGUFFile
    tensors: tuple[SourceTensor, ...]
    facts: ModelFacts
    metadata: Mapping[str, MetadataValue]
    notices: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The file's name without its ending and, if there, without its type (``model-BF16.gguf`` → ``model``)."""
        return model_name(self.model.path)

    @property
    def files(self) -> tuple[Path, ...]:
        """The file, or its parts."""
        return tuple(part.path for part in self.model.files)

    @property
    def hashed(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(part.path.name for part in self.model.files)

    def merge_bytes(self, block_weights: int) -> int:
        """Nothing is merged."""
        return 0

    def read_blocks(self, max_weights: int, hashes: FileHashes) -> Iterator[Block]:
        """Every block of every tensor, part by part, in the order of its bytes."""
        tensors = {tensor.name: tensor for tensor in self.tensors}
        for part in self.model.files:
            data = MappedFile(part.path, part.size_bytes, hashes)
            position = 0
            for info in sorted(part.tensors, key=lambda info: info.offset):
                begin = part.data_offset + info.offset
                data.skip(position, begin)
                yield from _blocks(data, tensors[info.name], begin, max_weights)
                position = begin + info.size_bytes
            data.skip(position, part.size_bytes)
            data.finish()


def open_gguf(path: Path) -> GGUFSource:
    """Opens and checks a GGUF; raises ModelNotFoundError or ModelFileError where it is not one that runs here."""
    model = read_model(path)
    check_runnable(_with_default_alignment(model))
    # The architecture first: our keys come behind it, and must stand in the first bytes of a file of ours.
    keys = dict.fromkeys(["general.architecture", *model.metadata])
    metadata = {key: _metadata_value(model, key) for key in keys if key not in _LEFT_OUT}
    n_heads = _number(model, "llama.attention.head_count")
    facts = ModelFacts(
        n_layers=_number(model, "llama.block_count"),
        n_heads=n_heads,
        n_kv_heads=_number(model, "llama.attention.head_count_kv", n_heads),
    )
    return GGUFSource(model, tuple(_tensor(model, info) for info in model.tensors), facts, metadata)


def model_name(path: Path) -> str:
    """A GGUF's name for other files of the same model: without its part, its type and its ending."""
    stem = _PART.sub("", path.name.removesuffix(".gguf"))
    named = _NAME_AND_TYPE.fullmatch(stem)
    return named[1] if named else stem


def _with_default_alignment(model: GGUFFile) -> GGUFFile:
    """The model for the runtime's check, which wants the alignment that the new file will have."""
    parts = tuple(_with_default_alignment(part) for part in model.parts)
    metadata = {key: value for key, value in model.metadata.items() if key != "general.alignment"}
    return replace(model, metadata=metadata, parts=parts)


def _number(model: GGUFFile, key: str, default: int = 0) -> int:
    value = model.metadata.get(key, default)
    assert isinstance(value, int)  # check_runnable saw to it
    return value


def _metadata_value(model: GGUFFile, key: str) -> MetadataValue:
    value, type_name = model.metadata[key], model.value_types[key]
    if not type_name.startswith("array["):
        assert not isinstance(value, list)
        return MetadataValue(_VALUE_TYPES[type_name], value)
    assert isinstance(value, list)
    return MetadataValue(ValueType.ARRAY, value, _VALUE_TYPES[type_name[len("array[") : -1]])


def _tensor(model: GGUFFile, info: TensorInfo) -> SourceTensor:
    if info.type_name not in TensorType.__members__:
        raise ModelFileError(
            f"{model.path.name}: the tensor {info.name} has the type {info.type_name}, which is not read",
            f"Take the model in one of {', '.join(TensorType.__members__)}",
        )
    shape = list(reversed(info.shape))
    while len(shape) > 1 and shape[0] == 1:  # ggml counts no dimension of 1 at the end, and the mixes go by the count
        shape.pop(0)
    stored = TensorType[info.type_name]
    return SourceTensor(info.name, tuple(shape), stored, stored, info.name)


def _blocks(data: MappedFile, tensor: SourceTensor, begin: int, max_weights: int) -> Iterator[Block]:
    row_bytes = tensor.stored.size_bytes(tensor.n_columns)
    for rows in row_ranges(tensor.n_rows, tensor.n_columns, 1, max_weights):
        stored = data.take(begin + rows.start * row_bytes, len(rows) * row_bytes)
        yield Block(
            tensor=tensor,
            first_row=rows.start,
            source_bytes=stored.nbytes,
            load=partial(_load, stored, tensor, rows.start),
            # Floats go through the encoder, which finds NaN; it gives back the same bytes.
            encoded=stored if tensor.stored.is_quantized else None,
        )
        del stored


def _load(stored: Bytes, tensor: SourceTensor, first_row: int) -> NDArray[np.float32]:
    rows = ggml.decode(tensor.stored, stored, tensor.n_columns)
    require_finite(tensor.name, rows, first_row)
    return rows
