"""A block's rows become the bytes of its types, checked on both sides."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zephyr_local.errors import CheckpointError
from zephyr_local.quantize.encoders import Encode
from zephyr_local.quantize.kernels import ggml
from zephyr_local.quantize.source import Block
from zephyr_local.quantize.types import TensorType

_F16_MAX = 65504.0


@dataclass(frozen=True, slots=True)
class Destination:
    """One of the places that a tensor goes to."""

    file: int  # which output file, for the ranges that are read back
    kind: TensorType
    offset: int  # of the tensor's first byte in that file
    importance: NDArray[np.float32] | None = None  # a weight for each column, (n_in,)


@dataclass(frozen=True, slots=True)
class WrittenRange:
    """Bytes that were handed to a file, to be compared with what can be read from it."""

    tensor: str
    file: int
    offset: int
    size_bytes: int
    crc32: int


def written_ranges(tensor: str, places: Sequence[tuple[int, int]], encoded: NDArray[np.uint8]) -> list[WrittenRange]:
    """What to compare later with these bytes at places, each a file and an offset."""
    crc32 = zlib.crc32(encoded.data)
    return [WrittenRange(tensor, file, offset, encoded.nbytes, crc32) for file, offset in places]


def require_finite(tensor: str, rows: NDArray[np.float32], first_row: int) -> None:
    """Refuses NaN and infinity, with the place of the first one; `first_row` is the block's first row in the tensor."""
    # Both propagate NaN, need no temporary array, and together see either infinity.
    if np.isfinite(rows.max()) and np.isfinite(rows.min()):
        return
    row, column = np.argwhere(~np.isfinite(rows))[0]
    raise CheckpointError(
        f"{tensor} holds {rows[row, column]} at row {first_row + row}, column {column}",
        "The file is damaged, or the training diverged: copy it again, or take weights of an earlier step",
    )


def encode_rows(
    tensor: str,
    kind: TensorType,
    rows: NDArray[np.float32],
    importance: NDArray[np.float32] | None = None,
    encode: Encode = ggml.encode,
) -> NDArray[np.uint8]:
    """Encodes finite rows of the tensor of that name; raises CheckpointError where the type cannot hold them."""
    if kind is TensorType.F16:
        largest = max(float(rows.max()), -float(rows.min()))
        if largest > _F16_MAX:
            raise CheckpointError(
                f"{tensor} holds a value of magnitude {largest:.6g}, above F16's largest, {_F16_MAX:g}",
                "Use --bf16, which holds it",
            )
    encoded = encode(kind, rows, importance)
    if not ggml.is_valid(kind, encoded):
        raise CheckpointError(
            f"{tensor} holds values too large for {kind.name}",
            f"Use {'--f32' if kind is TensorType.BF16 else '--bf16'}, which holds them",
        )
    return encoded


def is_copied(stored: TensorType, kind: TensorType) -> bool:
    """Whether a tensor stored so is not encoded for that type; floats are, which finds NaN and gives the same bytes."""
    return stored.is_quantized and kind is stored


def encode_block(
    block: Block, destinations: Sequence[Destination], encode: Encode
) -> Iterator[tuple[list[Destination], NDArray[np.uint8]]]:
    """The block's bytes and all places that get them; encoded once for each type, one type after the other."""
    rows: NDArray[np.float32] | None = None
    alike: dict[tuple[TensorType, int], list[Destination]] = {}
    for destination in destinations:
        alike.setdefault((destination.kind, id(destination.importance)), []).append(destination)
    for group in alike.values():
        kind = group[0].kind
        if block.encoded is not None and kind is block.tensor.stored:
            encoded = _checked_copy(block, block.encoded)
        else:
            if rows is None:
                rows = block.load()
            encoded = encode_rows(block.tensor.source_name, kind, rows, group[0].importance, encode)
        yield group, encoded
        del encoded  # before the next type's bytes are made


def _checked_copy(block: Block, encoded: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if not ggml.is_valid(block.tensor.stored, encoded):
        raise CheckpointError(
            f"{block.tensor.source_name} holds blocks whose scale is NaN or infinite",
            "The file is damaged: copy or download it again",
        )
    return encoded
