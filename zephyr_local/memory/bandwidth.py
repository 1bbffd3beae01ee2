"""How fast this machine reads memory, and the tokens a second that follow from it.

To decode a token every weight is read once, so on a CPU the rate is the bandwidth over the bytes of the weights, as
long as the cores keep up with it.
"""

from __future__ import annotations

import statistics
import threading
import time
from typing import Final

import numpy as np

from zephyr_local.memory.estimate import MemoryEstimate
from zephyr_local.memory.shape import ModelShape

_BYTES_EACH: Final = 64 << 20
"""Of each thread: more than the caches hold."""
_RUNS: Final = 5


def read_bandwidth_bytes_s(threads: int) -> float:
    """Bytes a second that ``threads`` threads read together; takes a tenth of a second or so.

    The median of a few runs, over memory that was written before. Other work on the machine makes it less.
    """
    arrays = [np.ones(_BYTES_EACH // 8, np.int64) for _ in range(threads)]
    rates = []
    for _ in range(_RUNS):
        start = threading.Barrier(threads + 1)
        workers = [threading.Thread(target=_read, args=(array, start)) for array in arrays]
        for worker in workers:
            worker.start()
        start.wait()
        began = time.perf_counter()
        for worker in workers:
            worker.join()
        rates.append(threads * _BYTES_EACH / (time.perf_counter() - began))
    return statistics.median(rates)


def decode_bytes(model: ModelShape) -> int:
    """Bytes of the weights that one token is computed with: all but the embeddings, unless those are the output too."""
    is_tied = all(tensor.name != "output.weight" for tensor in model.tensors)
    return sum(t.size_bytes for t in model.tensors if is_tied or t.name != "token_embd.weight")


def expected_tokens_s(model: ModelShape, estimate: MemoryEstimate, bandwidth_bytes_s: float) -> float | None:
    """Tokens a second of one answer, its context nearly empty; None where a GPU computes, which was not probed."""
    if estimate.n_gpu_layers:
        return None
    return bandwidth_bytes_s / decode_bytes(model)


def _read(array: np.ndarray, start: threading.Barrier) -> None:
    start.wait()
    array.max()  # which reads all, and computes next to nothing
