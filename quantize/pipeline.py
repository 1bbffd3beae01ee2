"""Row blocks through encoder threads to their places in the output files, with bounded memory.

Three things go on at once: the calling thread reads ahead, the encoder threads widen and encode, one thread writes. Two
bounded queues stand between them, so a disk that is slow for a moment stops nobody, and a slow one stops the others
when its queue is full, whatever the size of the model. A block is a whole number of rows of one tensor. Where several
files are made at once, it is read and widened once, and encoded once for each type that it gets.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zephyr_local.quantize.encode import Destination, WrittenRange, encode_block, written_ranges
from zephyr_local.quantize.encoders import Encode
from zephyr_local.quantize.mapped_file import HASH_AHEAD, wait
from zephyr_local.quantize.source import Block, SourceTensor
from zephyr_local.quantize.timings import Clock
from zephyr_local.quantize.types import TensorType

_INTERPRETER_BYTES = 80 << 20
_RANGE_BYTES = 224  # a WrittenRange with its numbers: 170, and what the allocator keeps

Write = Callable[[int, int, memoryview], None]
"""Writes bytes into an output file: its number, the place, the bytes. Always called by the same thread."""
OnBlock = Callable[[str, int], None]
"""Told of each block when it is written: its tensor's name in the source, its bytes there."""


@dataclass(frozen=True, slots=True)
class Streamed:
    """What passed through the pipeline."""

    ranges: list[WrittenRange]
    read_bytes: int
    read_s: float
    """Waiting for the source's next block, on the calling thread."""
    encode_s: float
    """Of all encoder threads together, without what they waited."""
    write_s: float


@dataclass(frozen=True, slots=True)
class PipelineSize:
    """How many threads encode, and how much at a time."""

    threads: int
    block_weights: int
    """The most weights in a block, unless a row, or the rows of a head, have more."""


def pipeline_size(threads: int, *, on_device: bool = False) -> PipelineSize:
    """What suits so many encoder threads, or a device that they hand their blocks to."""
    return PipelineSize(threads, _device_block_weights(threads) if on_device else block_weights(threads))


def block_weights(threads: int) -> int:
    """The most weights in a block that a core encodes.

    Few, so that a block stays in the core's cache (faster by a tenth at 2^18 than at 2^20), but more with more threads:
    a block holds the interpreter's lock, which they share, for some 0.2 ms. Very many would hold too much together.
    """
    return max(1 << 16, min(max(1 << 19, threads << 16), 1 << 20, (24 << 20) // threads))


def _device_block_weights(threads: int) -> int:
    """Many, because a device takes as long for a few weights as for a million."""
    return max(1 << 18, min(1 << 22, (48 << 20) // threads))


def to_encode(threads: int) -> int:
    """How many blocks at most are read and not yet encoded, those at work among them."""
    return 2 * threads


def to_write(threads: int) -> int:
    """How many encoded arrays wait at most, the one that is being written among them."""
    return 2 * threads


def peak_memory_bytes(
    threads: int, largest_block: int, tensors: Sequence[SourceTensor], kinds: Sequence[Collection[TensorType]]
) -> int:
    """What a conversion holds at most apart from mapped pages and encoders, reckoned generously.

    `kinds` has the types of each output. Blocks of at most `largest_block` weights that wait for an encoder hold their
    source bytes, those that wait to be written their encoded bytes; each thread besides holds a block as float32, once
    more where its rows are permuted, and encoded, and the allocator keeps some of what was freed.
    """
    sizes = [math.prod(tensor.shape) for tensor in tensors]
    stored = max(
        math.ceil(min(largest_block, size) / tensor.stored.block_weights) * tensor.stored.block_bytes
        for tensor, size in zip(tensors, sizes, strict=True)
    )
    widest = max(math.ceil(largest_block / kind.block_weights) * kind.block_bytes for some in kinds for kind in some)
    waiting = (to_encode(threads) + HASH_AHEAD + 1) * stored + to_write(threads) * widest
    working = threads * largest_block * (4 + 4 + 4 + 2)
    usual_block = min(largest_block, block_weights(threads))
    ranges = len(kinds) * sum(math.ceil(size / usual_block) for size in sizes) * _RANGE_BYTES
    return _INTERPRETER_BYTES + waiting + working + ranges


def encode_blocks(
    blocks: Iterable[Block],
    destinations: Mapping[str, Sequence[Destination]],
    encode: Encode,
    write: Write,
    threads: int,
    on_block: OnBlock | None = None,
) -> Streamed:
    """Encodes every block for all destinations of its tensor (by its name in the GGUF) and writes it.

    `blocks` is drawn from, and `on_block` called in the same order, on the calling thread. The error of the first block
    that has one is raised, that of `blocks` itself after those of all blocks before it; then all threads are at rest.
    """
    stopped = threading.Event()
    in_order = _InOrder(on_block)
    reading = Clock()
    remaining = iter(blocks)
    read_bytes = 0
    failed: Exception | None = None
    with ExitStack() as stack:  # ends all three even where Ctrl+C comes again meanwhile
        writer = _Writer(write, to_write(threads), stopped)
        stack.callback(writer.close)  # last: encoders may be waiting for a place in its queue
        encoders = _Encoders(destinations, encode, writer, stopped, threads)
        stack.callback(encoders.close)
        stack.callback(stopped.set)
        while True:
            try:
                with reading.running():
                    block = next(remaining, None)
            except Exception as error:  # what was read before it may fail, too, and comes first
                failed = error
                break
            if block is None:
                break
            read_bytes += block.source_bytes
            in_order.begin(block, encoders.submit(block))
            del block  # or the last block would keep its bytes while the next one is read
            in_order.wait_until_encoded(at_most=to_encode(threads) - 1)
        in_order.wait_until_encoded(at_most=0)
        in_order.wait_until_written()
        if failed is not None:
            raise failed
    return Streamed(in_order.ranges, read_bytes, reading.seconds, encoders.working.seconds, writer.writing.seconds)


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A block that was encoded: what is to be read back, and its writes, perhaps still to be done."""

    ranges: list[WrittenRange]
    writes: list[Future[None]]


class _InOrder:
    """Blocks in the order in which they were read, first on their way to the encoders, then to the disk."""

    def __init__(self, on_block: OnBlock | None) -> None:
        self.ranges: list[WrittenRange] = []
        self._on_block = on_block
        self._encoding: deque[tuple[str, int, Future[_Encoded]]] = deque()  # the block's tensor and source bytes
        self._writing: deque[tuple[str, int, _Encoded]] = deque()

    def begin(self, block: Block, future: Future[_Encoded]) -> None:
        """A block was handed to the encoders; it is not kept itself."""
        self._encoding.append((block.tensor.source_name, block.source_bytes, future))

    def wait_until_encoded(self, *, at_most: int) -> None:
        """Waits until so many blocks at most are not encoded, and takes note of what is written meanwhile."""
        while len(self._encoding) > at_most:
            name, source_bytes, future = self._encoding.popleft()
            failed: Exception | None = None
            try:
                self._writing.append((name, source_bytes, wait(future)))
            except Exception as error:
                failed = error
            if failed is not None:
                self.wait_until_written()  # of the blocks before it
                raise failed
        while self._writing and all(write.done() for write in self._writing[0][-1].writes):
            self._finish_oldest()

    def wait_until_written(self) -> None:
        """Waits until all that is encoded is written."""
        while self._writing:
            self._finish_oldest()

    def _finish_oldest(self) -> None:
        name, source_bytes, encoded = self._writing.popleft()
        for write in encoded.writes:
            wait(write)
        self.ranges.extend(encoded.ranges)
        if self._on_block is not None:
            self._on_block(name, source_bytes)


class _Encoders:
    """Threads that encode, each a block at a time."""

    def __init__(
        self,
        destinations: Mapping[str, Sequence[Destination]],
        encode: Encode,
        writer: _Writer,
        stopped: threading.Event,
        threads: int,
    ) -> None:
        self.working = Clock()
        self._destinations, self._encode, self._writer, self._stopped = destinations, encode, writer, stopped
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="encode")

    def submit(self, block: Block) -> Future[_Encoded]:
        return self._pool.submit(self._work, block)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _work(self, block: Block) -> _Encoded:
        began = time.perf_counter()
        waited_s = 0.0
        ranges: list[WrittenRange] = []
        writes: list[Future[None]] = []
        try:
            for places, encoded in encode_block(block, self._destinations[block.tensor.name], self._encode):
                if self._stopped.is_set():
                    break
                first = places[0].kind.size_bytes(block.first_row * block.tensor.n_columns)
                at = [(place.file, place.offset + first) for place in places]
                alike = written_ranges(block.tensor.source_name, at, encoded)
                waited_s += self._writer.wait_for_place()
                writes.append(self._writer.submit(alike, encoded))
                ranges += alike
                del encoded  # before the next type's bytes are made
        finally:
            self.working.add(time.perf_counter() - began - waited_s)
        return _Encoded(ranges, writes)


class _Writer:
    """One thread that writes arrays in the order of their arrival, a bounded number of which wait."""

    def __init__(self, write: Write, places: int, stopped: threading.Event) -> None:
        self.writing = Clock()
        self._write, self._stopped = write, stopped
        self._places = threading.Semaphore(places)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write")

    def wait_for_place(self) -> float:
        """Takes a place in the queue; returns the seconds that this took."""
        if self._places.acquire(blocking=False):
            return 0.0
        began = time.perf_counter()
        self._places.acquire()
        return time.perf_counter() - began

    def submit(self, ranges: Sequence[WrittenRange], encoded: NDArray[np.uint8]) -> Future[None]:
        """Writes the array to each of the ranges, on a place that was taken before."""
        return self._pool.submit(self._work, ranges, encoded)

    def close(self) -> None:
        self._pool.shutdown(wait=True)

    def _work(self, ranges: Sequence[WrittenRange], encoded: NDArray[np.uint8]) -> None:
        try:
            if self._stopped.is_set():
                return
            with self.writing.running():
                for written in ranges:
                    self._write(written.file, written.offset, encoded.data)
        finally:
            self._places.release()
