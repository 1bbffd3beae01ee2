"""Source files, read forwards through a mapping, each byte hashed as it passes.

A block's bytes are copied out of the mapping once; the hash and the encoder both see that copy, so what is hashed is
what is converted.
"""

from __future__ import annotations

import hashlib
import mmap
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for_futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from zephyr_local.errors import CheckpointError

Bytes = NDArray[np.uint8]
_T = TypeVar("_T")

HASH_AHEAD = 4
"""Pieces that wait for the hash at most; each is a block's bytes at most."""
_PIECE_BYTES = 1 << 20


def wait(future: Future[_T]) -> _T:
    """The future's result; unlike its own method this can be interrupted by Ctrl+C on Windows too."""
    while not future.done():
        wait_for_futures([future], timeout=0.5)
    return future.result()


@dataclass(slots=True)
class FileHashes:
    """SHA-256 of the source's files, computed on a thread of its own in step with the reading."""

    digests: dict[str, str] = field(default_factory=dict)  # by file name, when a file is through
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="sha256"))
    _waiting: deque[Future[None]] = field(default_factory=deque)

    def feed(self, update: Callable[[memoryview], None], piece: Bytes) -> None:
        """Hands a piece on; waits where the hash has fallen behind."""
        self._waiting.append(self._pool.submit(update, piece.data))
        while len(self._waiting) > HASH_AHEAD:
            wait(self._waiting.popleft())

    def settle(self) -> None:
        """Waits until all pieces are hashed."""
        while self._waiting:
            wait(self._waiting.popleft())

    def close(self) -> None:
        """Stops the thread; pieces that still wait are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)


class MappedFile:
    """A file that is read from its first byte to its last, hashed on the way."""

    def __init__(self, path: Path, size_bytes: int, hashes: FileHashes) -> None:
        """Maps the file, which must still have the size that its header was checked against."""
        self._path, self._hashes = path, hashes
        self._digest = hashlib.sha256()
        self._data = map_file(path, size_bytes)

    def skip(self, begin: int, end: int) -> None:
        """Bytes that are not converted."""
        for position in range(begin, end, _PIECE_BYTES):
            self._hashes.feed(self._digest.update, self._data[position : min(position + _PIECE_BYTES, end)].copy())

    def take(self, begin: int, size: int) -> Bytes:
        """A copy of bytes that are converted."""
        piece = self._data[begin : begin + size].copy()
        self._hashes.feed(self._digest.update, piece)
        return piece

    def finish(self) -> None:
        """Settles the digest, when the whole file has been skipped or taken."""
        self._hashes.settle()
        self._hashes.digests[self._path.name] = self._digest.hexdigest()


def map_file(path: Path, size_bytes: int) -> Bytes:
    """The file's bytes, mapped for reading forwards."""
    try:
        mapped = np.memmap(path, dtype=np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be mapped: {error}", "Check that it may be read") from error
    if mapped.size != size_bytes:
        raise CheckpointError(
            f"{path.name} changed while it was being converted", "Wait until nothing writes to the model"
        )
    raw = getattr(mapped, "_mmap", None)
    if isinstance(raw, mmap.mmap) and hasattr(mmap, "MADV_SEQUENTIAL"):
        raw.madvise(mmap.MADV_SEQUENTIAL)
    return mapped.view(np.ndarray)


def row_ranges(n_rows: int, n_columns: int, unit: int, max_weights: int) -> Iterator[range]:
    """Ranges of whole rows, in whole units (heads), of at most `max_weights` where a unit is not already more."""
    step = max(1, max_weights // (n_columns * unit)) * unit
    for first in range(0, n_rows, step):
        yield range(first, min(first + step, n_rows))
