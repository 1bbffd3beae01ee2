"""The header of a safetensors file, checked before anything in it is believed.

Format: https://github.com/huggingface/safetensors#format: eight bytes with the header's length, the header as JSON,
then the tensors' bytes without gaps. The limit on the header's length is that of the reference implementation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from zephyr_local.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000
_COPY_AGAIN = "The file is incomplete or damaged: copy or download it again"


class SourceType(Enum):
    """The number types that a checkpoint's weights may have, with their bytes."""

    F32 = 4
    F16 = 3
    BF16 = 2

    @property
    def size_bytes(self) -> int:
        """Bytes of one weight."""
        return 4 if self is SourceType.F32 else 2


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as its header describes it."""

    name: str
    dtype: str  # safetensors' word; only those of SourceType can be converted
    shape: tuple[int, ...]
    begin: int  # in the file, not in its data part
    end: int


@dataclass(frozen=True, slots=True)
class Shard:
    """A safetensors file whose header holds true: its tensors fill it, in the order of their offsets."""

    path: Path
    size_bytes: int
    data_begin: int
    tensors: tuple[StoredTensor, ...]


_DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip


def read_shard(path: Path) -> Shard:
    """Reads and checks the header of one file."""
    try:
        with path.open("rb") as file:

            def begin(n_bytes: int) -> bytes:
                file.seek(0)
                return file.read(n_bytes)

            return parse_shard(path, path.stat().st_size, begin)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror or error}", "Check that the file is there and may be read"
        ) from error


def parse_shard(path: Path, size: int, begin: Callable[[int], bytes]) -> Shard:
    """Checks the header of a file of so many bytes, whose first ones `begin` gives; it need not be there itself."""
    length_field = begin(8)
    if len(length_field) < 8:
        raise CheckpointError(f"{path.name} is {size} bytes long, too short for a safetensors file", _COPY_AGAIN)
    length = int.from_bytes(length_field, "little")
    if length_field.startswith(b"version "):
        raise CheckpointError(
            f"{path.name} is a Git LFS pointer, not the weights", "Fetch the weights themselves: git lfs pull"
        )
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path.name} claims a header of {length} bytes, above the limit of {MAX_HEADER_BYTES}",
            "It is no safetensors file, or damaged: copy or download it again",
        )
    if 8 + length > size:
        raise CheckpointError(f"{path.name} ends inside its header: {size} bytes of at least {8 + length}", _COPY_AGAIN)
    entries = _parse(path, begin(8 + length)[8:])
    tensors = sorted(
        (_tensor(path, name, entry, 8 + length) for name, entry in entries.items()), key=lambda t: (t.begin, t.end)
    )
    _require_no_gaps(path, tensors, 8 + length, size)
    return Shard(path, size, 8 + length, tuple(tensors))


def _parse(path: Path, header: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name stands in it twice")
        return found

    try:
        entries = json.loads(header.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise CheckpointError(f"the header of {path.name} is not valid JSON ({error})", _COPY_AGAIN) from error
    if not isinstance(entries, dict):
        raise CheckpointError(f"the header of {path.name} is not a JSON object", _COPY_AGAIN)
    entries.pop("__metadata__", None)
    return entries


def _whole_numbers(value: object) -> tuple[int, ...] | None:
    if not isinstance(value, list) or not all(type(n) is int and n >= 0 for n in value):
        return None
    return tuple(value)


def _tensor(path: Path, name: str, entry: object, data_begin: int) -> StoredTensor:
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), _whole_numbers(fields.get("shape")), fields.get("data_offsets")
    ends = _whole_numbers(offsets)
    if not isinstance(dtype, str) or shape is None or ends is None or len(ends) != 2 or ends[0] > ends[1]:
        raise CheckpointError(f"{path.name} describes the tensor {name!r} wrongly: {str(entry)[:200]}", _COPY_AGAIN)
    if dtype in _DTYPE_BYTES and math.prod(shape) * _DTYPE_BYTES[dtype] != ends[1] - ends[0]:
        raise CheckpointError(
            f"{path.name} gives {name!r} {ends[1] - ends[0]} bytes, but {dtype} of shape {list(shape)} takes "
            f"{math.prod(shape) * _DTYPE_BYTES[dtype]}",
            _COPY_AGAIN,
        )
    return StoredTensor(name, dtype, shape, data_begin + ends[0], data_begin + ends[1])


def _require_no_gaps(path: Path, tensors: list[StoredTensor], data_begin: int, size: int) -> None:
    position = data_begin
    for tensor in tensors:
        if tensor.end > size:
            raise CheckpointError(
                f"{path.name} is truncated: {tensor.name} ends at byte {tensor.end} and the file at {size}", _COPY_AGAIN
            )
        if tensor.begin != position:
            what = "overlaps the tensor before it" if tensor.begin < position else "leaves a gap before it"
            raise CheckpointError(f"{path.name}: {tensor.name} {what} at byte {tensor.begin}", _COPY_AGAIN)
        position = tensor.end
    if position != size:
        raise CheckpointError(f"{path.name} has {size - position} bytes after its last tensor", _COPY_AGAIN)
