"""Row blocks through encoder threads to their places in the output file, with bounded memory.

A block is a whole number of rows of one tensor. At most two blocks a thread exist at any moment, whatever the size of
the model, so the memory is that of the blocks and nothing else.
"""

from __future__ import annotations

import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from zephyr_local.errors import CheckpointError
from zephyr_local.quantize.kernels import ggml
from zephyr_local.quantize.types import TensorType

_T = TypeVar("_T")
_F16_MAX = 65504.0


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows of a tensor, waiting to be encoded."""

    tensor: str  # as the source calls it: this is the name in errors
    kind: TensorType
    offset: int  # of the first encoded byte in the output file
    source_bytes: int
    load: Callable[[], NDArray[np.float32]]  # (n_rows, n_columns), checked by require_finite; runs on an encoder thread


@dataclass(frozen=True, slots=True)
class WrittenRange:
    """Bytes that were handed to the file, to be compared with what can be read from it."""

    tensor: str
    offset: int
    size_bytes: int
    crc32: int


def block_weights(threads: int) -> int:
    """The most weights in a block: about a million, fewer where many threads would together hold too much."""
    return max(1 << 16, min(1 << 20, (24 << 20) // threads))


def require_finite(tensor: str, rows: NDArray[np.float32], first_row: int) -> None:
    """Refuses NaN and infinity, with the place of the first one; `first_row` is the block's first row in the tensor."""
    # Both propagate NaN, need no temporary array, and together see either infinity.
    if np.isfinite(rows.max()) and np.isfinite(rows.min()):
        return
    row, column = np.argwhere(~np.isfinite(rows))[0]
    raise CheckpointError(
        f"{tensor} holds {rows[row, column]} at row {first_row + row}, column {column}",
        "The checkpoint is damaged or its training diverged: take an earlier one, or copy it again",
    )


def _encode(block: Block) -> NDArray[np.uint8]:
    rows = block.load()
    if block.kind is TensorType.F16:
        largest = max(float(rows.max()), -float(rows.min()))
        if largest > _F16_MAX:
            raise CheckpointError(
                f"{block.tensor} holds a value of magnitude {largest:.6g}, above F16's largest, {_F16_MAX:g}",
                "Use --bf16, which holds it",
            )
    encoded = ggml.encode(block.kind, rows)
    if not ggml.is_valid(block.kind, encoded):
        raise CheckpointError(
            f"{block.tensor} holds values too large for {block.kind.name}",
            f"Use {'--f32' if block.kind is TensorType.BF16 else '--bf16'}, which holds them",
        )
    return encoded


def encode_blocks(
    blocks: Iterable[Block],
    write: Callable[[int, memoryview], None],
    threads: int,
    on_block: Callable[[Block], None] | None = None,
) -> list[WrittenRange]:
    """Encodes every block and writes it with `write(offset, bytes)`, which several threads call at once.

    `blocks` is drawn from, and `on_block` called in the same order, on the calling thread; the first error in that
    order is raised, after the threads have come to rest.
    """
    stopped = threading.Event()

    def work(block: Block) -> WrittenRange:
        encoded = _encode(block)
        if not stopped.is_set():
            write(block.offset, encoded.data)
        return WrittenRange(block.tensor, block.offset, encoded.nbytes, zlib.crc32(encoded.data))

    written: list[WrittenRange] = []
    waiting: deque[tuple[Block, Future[WrittenRange]]] = deque()

    def finish_oldest() -> None:
        block, future = waiting.popleft()
        written.append(wait(future))
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


def wait(future: Future[_T]) -> _T:
    """The future's result; unlike its own method this can be interrupted by Ctrl+C on Windows too."""
    while True:
        try:
            return future.result(timeout=0.5)
        except FutureTimeoutError:
            if future.done():  # the work itself raised a TimeoutError
                raise
