"""The front of a GGUF file: keys and values, and where each tensor will stand.

Format: docs/gguf.md of ggml (version 3), little-endian. Nothing is written here;
:mod:`zephyr_local.quantize.gguf_output` does that.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from zephyr_local.quantize.types import TensorType

ALIGNMENT = 32  # GGUF_DEFAULT_ALIGNMENT: what holds where general.alignment is not written
_VERSION = 3

Scalar = int | float | bool | str | bytes


class ValueType(IntEnum):
    """GGUF's numbers for the types of metadata values."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


_STRUCT_CODES = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "?",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}


@dataclass(frozen=True, slots=True)
class MetadataValue:
    """One value: its type, and for an array the type of its elements."""

    kind: ValueType
    value: Scalar | Sequence[Scalar]
    element_kind: ValueType | None = None

    def pack(self) -> bytes:
        """The value as it stands in the file, after its key; struct.error or TypeError where it does not fit."""
        if self.kind is not ValueType.ARRAY:
            assert not isinstance(self.value, list | tuple)
            return struct.pack("<I", self.kind) + _pack_scalars(self.kind, [self.value])  # type: ignore[list-item]
        assert self.element_kind is not None
        assert isinstance(self.value, list | tuple)
        head = struct.pack("<IIQ", self.kind, self.element_kind, len(self.value))
        return head + _pack_scalars(self.element_kind, self.value)


def text(value: str) -> MetadataValue:
    """A string value."""
    return MetadataValue(ValueType.STRING, value)


def _pack_string(value: str | bytes) -> bytes:
    raw = value.encode("utf-8") if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def _pack_scalars(kind: ValueType, values: Sequence[Scalar]) -> bytes:
    if kind is ValueType.STRING:
        for value in values:
            if not isinstance(value, str | bytes):
                raise TypeError(f"{value!r} is not text")
        return b"".join(_pack_string(value) for value in values if isinstance(value, str | bytes))
    return struct.pack(f"<{len(values)}{_STRUCT_CODES[kind]}", *values)


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """A tensor of the output file: what it is and where its bytes begin, counted from the start of the tensor data."""

    name: str
    shape: tuple[int, ...]  # (n_out, n_in); GGUF stores it the other way round
    kind: TensorType
    offset: int

    @property
    def size_bytes(self) -> int:
        """Bytes without the padding after them."""
        return self.kind.size_bytes(math.prod(self.shape))


def padded(size: int) -> int:
    """`size` rounded up to the file's alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def place_tensors(tensors: Iterable[tuple[str, tuple[int, ...], TensorType]]) -> list[TensorPlace]:
    """Lays tensors out one behind the other, in the order given."""
    places: list[TensorPlace] = []
    offset = 0
    for name, shape, kind in tensors:
        place = TensorPlace(name, shape, kind, offset)
        places.append(place)
        offset += padded(place.size_bytes)
    return places


def pack_header(metadata: Mapping[str, MetadataValue], tensors: Sequence[TensorPlace]) -> bytes:
    """Everything before the tensor data, padded to the alignment."""
    parts = [b"GGUF", struct.pack("<IQQ", _VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_pack_string(key), value.pack()]
    for tensor in tensors:
        parts.append(_pack_string(tensor.name))
        parts.append(struct.pack("<I", len(tensor.shape)))
        parts.append(struct.pack(f"<{len(tensor.shape)}Q", *reversed(tensor.shape)))
        parts.append(struct.pack("<IQ", tensor.kind.ggml_id, tensor.offset))
    header = b"".join(parts)
    return header.ljust(padded(len(header)), b"\0")
