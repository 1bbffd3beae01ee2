"""How fast this machine reads memory, and the tokens a second that follow from it.

To decode a token every weight is read once, so on a CPU the rate is about the bandwidth over the bytes of the weights,
as long as the cores keep up with it.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Sequence
from typing import Final

import numpy as np

from zephyr_local.memory.estimate import MemoryEstimate
from zephyr_local.memory.shape import ModelShape

_BYTES_EACH: Final = 64 << 20
"""Of each thread: more than the caches hold."""
_MOST_BYTES: Final = 1 << 30
"""Of all threads together."""
_RUNS: Final = 9
_DECODED_SHARE: Final = 0.8
"""Of what numpy reads, what decoding read: the median over nine types of a 1.1B model, from 0.54 to 1.14, on two cores
with AVX-512 (benchmarks/fit.py). Types whose kernels compute more, such as Q2_K and Q5_0, are slower on few cores."""


def read_bandwidth_bytes_s(threads: int) -> float | None:
    """Bytes a second that ``threads`` threads read together; takes a tenth of a second or so.

    The median of a few runs, over memory that was written before. Other work on the machine makes it less. None where
    there is no memory for it, or the threads cannot be started.
    """
    n_threads = max(1, min(threads, os.cpu_count() or 1))  # more read no faster
    n_bytes = min(_BYTES_EACH, _MOST_BYTES // n_threads)
    try:
        arrays = [np.ones(n_bytes // 8) for _ in range(n_threads)]
        return statistics.median(n_threads * n_bytes / _seconds_to_read(arrays) for _ in range(_RUNS))
    except (MemoryError, RuntimeError):  # RuntimeError: of a thread
        return None


def decode_bytes(model: ModelShape) -> int:
    """Bytes of the weights that one token is computed with: all but the embeddings, unless those are the output too."""
    is_tied = all(tensor.name != "output.weight" for tensor in model.tensors)
    return sum(t.size_bytes for t in model.tensors if is_tied or t.name != "token_embd.weight")


def expected_tokens_s(model: ModelShape, estimate: MemoryEstimate, bandwidth_bytes_s: float) -> float | None:
    """Tokens a second of one answer, its context nearly empty; None where a GPU computes, which was not probed."""
    if estimate.n_gpu_layers:
        return None
    return _DECODED_SHARE * bandwidth_bytes_s / decode_bytes(model)


def _seconds_to_read(arrays: Sequence[np.ndarray]) -> float:
    """From when the first thread begins until the last one ends, as they tell themselves: waking up takes its time."""
    start = threading.Barrier(len(arrays))
    spans: list[tuple[float, float]] = []

    def read(array: np.ndarray) -> None:
        try:
            start.wait()
        except threading.BrokenBarrierError:  # not all of them could be started
            return
        began = time.perf_counter()
        array.sum()  # of what numpy does, the fastest to read all
        spans.append((began, time.perf_counter()))

    workers: list[threading.Thread] = []
    try:
        for array in arrays:
            worker = threading.Thread(target=read, args=(array,))
            worker.start()
            workers.append(worker)
    except BaseException:
        start.abort()
        raise
    finally:
        for worker in workers:
            worker.join()
    return max(end for _, end in spans) - min(began for began, _ in spans)
