"""Row blocks through encoder threads to their places in the output files, with bounded memory.

A block is a whole number of rows of one tensor. At most two blocks a thread exist at any moment, whatever the size of
the model, so the memory is that of the blocks and nothing else. Where several files are made at once, a block is read
and widened once, and encoded once for each type that it gets.
"""

from __future__ import annotations

import math
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zephyr_local.errors import CheckpointError
from zephyr_local.quantize.kernels import ggml
from zephyr_local.quantize.mapped_file import HASH_AHEAD, wait
from zephyr_local.quantize.source import Block, SourceTensor
from zephyr_local.quantize.types import TensorType

_F16_MAX = 65504.0
_INTERPRETER_BYTES = 80 << 20
_RANGE_BYTES = 320  # a WrittenRange with its numbers


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


def written_range(tensor: str, file: int, offset: int, encoded: NDArray[np.uint8]) -> WrittenRange:
    """What to compare later with these bytes at this place."""
    return WrittenRange(tensor, file, offset, encoded.nbytes, zlib.crc32(encoded.data))


Write = Callable[[int, int, memoryview], None]
"""Writes bytes into an output file: its number, the place, the bytes. Several threads call it at once."""


def block_weights(threads: int) -> int:
    """The most weights in a block: about a million, fewer where many threads would together hold too much."""
    return max(1 << 16, min(1 << 20, (24 << 20) // threads))


def peak_memory_bytes(threads: int, largest_block: int, tensors: Sequence[SourceTensor], n_outputs: int) -> int:
    """What a conversion holds at most apart from mapped pages, reckoned generously.

    Blocks in flight, of `largest_block` weights at most, hold their source bytes; each thread besides holds a block as
    float32, once more where its rows are permuted, and encoded, and the allocator keeps some of what was freed.
    """
    sizes = [math.prod(tensor.shape) for tensor in tensors]
    stored = max(
        math.ceil(min(largest_block, size) / tensor.stored.block_weights) * tensor.stored.block_bytes
        for tensor, size in zip(tensors, sizes, strict=True)
    )
    waiting = (2 * threads + HASH_AHEAD + 1) * stored
    working = threads * largest_block * (4 + 4 + 4 + 2)
    ranges = n_outputs * sum(math.ceil(size / largest_block) for size in sizes) * _RANGE_BYTES
    return _INTERPRETER_BYTES + waiting + working + ranges


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
    tensor: str, kind: TensorType, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """Encodes finite rows of the tensor of that name; raises CheckpointError where the type cannot hold them."""
    if kind is TensorType.F16:
        largest = max(float(rows.max()), -float(rows.min()))
        if largest > _F16_MAX:
            raise CheckpointError(
                f"{tensor} holds a value of magnitude {largest:.6g}, above F16's largest, {_F16_MAX:g}",
                "Use --bf16, which holds it",
            )
    encoded = ggml.encode(kind, rows, importance)
    if not ggml.is_valid(kind, encoded):
        raise CheckpointError(
            f"{tensor} holds values too large for {kind.name}",
            f"Use {'--f32' if kind is TensorType.BF16 else '--bf16'}, which holds them",
        )
    return encoded


def _encode(block: Block, destinations: Sequence[Destination]) -> Iterator[tuple[Destination, NDArray[np.uint8]]]:
    """The block's bytes for each destination; those of one type are encoded once, and one type after the other."""
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
            encoded = encode_rows(block.tensor.source_name, kind, rows, group[0].importance)
        for destination in group:
            yield destination, encoded
        del encoded  # before the next type's bytes are made


def _checked_copy(block: Block, encoded: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if not ggml.is_valid(block.tensor.stored, encoded):
        raise CheckpointError(
            f"{block.tensor.source_name} holds blocks whose scale is NaN or infinite",
            "The file is damaged: copy or download it again",
        )
    return encoded


def encode_blocks(
    blocks: Iterable[Block],
    destinations: Mapping[str, Sequence[Destination]],
    write: Write,
    threads: int,
    on_block: Callable[[Block], None] | None = None,
) -> list[WrittenRange]:
    """Encodes every block for all destinations of its tensor (by its name in the GGUF) and writes it.

    `blocks` is drawn from, and `on_block` called in the same order, on the calling thread; the first error in that
    order is raised, after the threads have come to rest.
    """
    stopped = threading.Event()

    def work(block: Block) -> list[WrittenRange]:
        tensor = block.tensor
        ranges = []
        for place, encoded in _encode(block, destinations[tensor.name]):
            offset = place.offset + place.kind.size_bytes(block.first_row * tensor.n_columns)
            if not stopped.is_set():
                write(place.file, offset, encoded.data)
            ranges.append(written_range(tensor.source_name, place.file, offset, encoded))
            del encoded
        return ranges

    written: list[WrittenRange] = []
    waiting: deque[tuple[Block, Future[list[WrittenRange]]]] = deque()

    def finish_oldest() -> None:
        block, future = waiting.popleft()
        ranges: list[WrittenRange] = wait(future)
        written.extend(ranges)
        if on_block is not None:
            on_block(block)

    pool = ThreadPoolExecutor(threads, thread_name_prefix="encode")
    try:
        for block in blocks:
            waiting.append((block, pool.submit(work, block)))
            del block  # or the last block would keep its bytes while the next one is read
            if len(waiting) >= 2 * threads:
                finish_oldest()
        while waiting:
            finish_oldest()
    finally:
        stopped.set()
        pool.shutdown(wait=True, cancel_futures=True)
    return written
