"""How long each part of a conversion worked, and which of them the others waited for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal

from zephyr_local.quantize.mapped_file import Bytes, FileHashes

Part = Literal["read", "hash", "encode", "write"]
BOUND_SHARE: Final = 0.8
"""The share of the time from which on a part counts as what bounded the conversion."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of a conversion went; one for all files of a run, which share the work.

    Reading, hashing, encoding and writing go on at the same time, so that their seconds add up to more than the whole.
    All are seconds of the clock: on a machine that is busy with something else, a part also counts while it waits for
    a core.
    """

    encoder: str
    """Which code encoded: `numba`, `ggml` or `torch on cuda:0`."""
    threads: int
    """Encoder threads."""
    prepare_s: float
    """Importing what the encoder needs, compiling it, comparing it with ggml's, before all that follows."""
    elapsed_s: float
    """From the first byte read until the last one was on the disk, without the read-back."""
    read_bytes: int
    """Of tensors, as the source stores them."""
    read_s: float
    """Copying out of the mapped files, the disk's time included."""
    hash_s: float
    """SHA-256 of the source's files, on one thread."""
    encode_s: float
    """Widening, checking and encoding: the sum over the encoder threads."""
    written_bytes: int
    """Of tensors in all outputs."""
    write_s: float
    """Handing bytes to the system, on one thread."""
    sync_s: float
    """Waiting until the disk had them (fsync), on a thread beside that one and at the end."""
    verify_s: float
    """Reading back, after all that."""
    cpu_s: float
    """Of all cores together within `elapsed_s`: where no part was busy throughout, they may have had too few cores."""

    @property
    def shares(self) -> dict[Part, float]:
        """For each part the share of `elapsed_s` that it was at work, of encoder threads their mean; from 0 to 1."""
        if self.elapsed_s <= 0:
            return {"read": 0.0, "hash": 0.0, "encode": 0.0, "write": 0.0}
        busy: dict[Part, float] = {
            "read": self.read_s,
            "hash": self.hash_s,
            "encode": self.encode_s / self.threads,
            "write": max(self.write_s, self.sync_s),
        }
        return {part: min(1.0, seconds / self.elapsed_s) for part, seconds in busy.items()}

    @property
    def bound_by(self) -> Part | None:
        """The part that was busiest, if it was at work nearly all the time: a faster one would have saved time."""
        shares = self.shares
        busiest = max(shares, key=lambda part: shares[part])
        return busiest if shares[busiest] >= BOUND_SHARE else None


class Clock:
    """Adds up the seconds that threads spend in something."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._lock = threading.Lock()

    def add(self, seconds: float) -> None:
        """So many seconds more; threads may call it at once."""
        with self._lock:
            self.seconds += seconds

    @contextmanager
    def running(self) -> Iterator[None]:
        """Counts the time in the block, also where it ends with an error."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(time.perf_counter() - began)


class TimedHashes(FileHashes):
    """The source's hashes, with the time that they took, and that the reader waited for them."""

    def __init__(self) -> None:
        super().__init__()
        self.hashing, self.waited = Clock(), Clock()

    def feed(self, update: Callable[[memoryview], None], piece: Bytes) -> None:
        """Hands a piece on; waits where the hash has fallen behind."""

        def timed(data: memoryview) -> None:
            with self.hashing.running():
                update(data)

        with self.waited.running():
            super().feed(timed, piece)

    def settle(self) -> None:
        """Waits until all pieces are hashed."""
        with self.waited.running():
            super().settle()
