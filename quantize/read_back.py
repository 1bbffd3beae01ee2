"""What was written is read back and compared, on several threads."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile

from zephyr_local.quantize.encode import WrittenRange
from zephyr_local.quantize.gguf_output import OutputFile

_MOST_THREADS = 8  # a checksum passes 2 GB/s on one core, and each thread holds a piece of 4 MiB
_WORTH_BYTES = 64 << 20  # of a file, for one thread more: each costs an fsync, though nothing is left to be synced


def verify_all(
    outputs: Sequence[OutputFile],
    ranges: Sequence[WrittenRange],
    threads: int,
    on_range: Callable[[WrittenRange], None],
) -> None:
    """Compares every range with what the files give; raises OutputError where they differ.

    `on_range` is called on the calling thread, for a file after the other, in the order of the ranges.
    """
    of_file: list[list[WrittenRange]] = [[] for _ in outputs]
    for written in ranges:
        of_file[written.file].append(written)
    stopped = threading.Event()
    passed: queue.SimpleQueue[WrittenRange | None] = queue.SimpleQueue()  # None: a thread is through with its work

    def verify(output: OutputFile, remaining: Iterator[WrittenRange]) -> None:
        try:
            output.verify(takewhile(lambda _: not stopped.is_set(), remaining), passed.put)
        except BaseException:
            stopped.set()
            raise
        finally:
            passed.put(None)

    threads = min(threads, _MOST_THREADS)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="verify")
    try:
        futures = []
        for output, its_ranges in zip(outputs, of_file, strict=True):
            remaining = iter(its_ranges)  # of a list: each thread that asks gets the next one
            worth = sum(written.size_bytes for written in its_ranges) // _WORTH_BYTES
            futures += [pool.submit(verify, output, remaining) for _ in range(max(1, min(threads, worth)))]
        _report_in_order(passed, len(futures), deque(written for some in of_file for written in some), on_range)
        for future in futures:
            future.result()
    finally:
        stopped.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _report_in_order(
    passed: queue.SimpleQueue[WrittenRange | None],
    n_working: int,
    ranges: deque[WrittenRange],
    on_range: Callable[[WrittenRange], None],
) -> None:
    early: set[WrittenRange] = set()
    while n_working:
        try:
            written = passed.get(timeout=0.5)  # without a limit Ctrl+C would not be seen on Windows
        except queue.Empty:
            continue
        if written is None:
            n_working -= 1
            continue
        early.add(written)
        while ranges and ranges[0] in early:
            early.remove(ranges[0])
            on_range(ranges.popleft())
