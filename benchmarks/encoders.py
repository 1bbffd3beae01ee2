"""Our encoders beside ggml's own on one core: rates, and what the thorough search saves of the error.

    python benchmarks/encoders.py                       # rates of every type, with and without importance
    python benchmarks/encoders.py --thorough            # the thorough search: rates and errors
    python benchmarks/encoders.py Q4_K --runs 15
    python benchmarks/encoders.py --device cuda         # a GPU, by torch, beside one core

Both encode the same rows, by turns, in one process on one core (Linux: bound to it), after a warm-up that compiles ours
and compares the bytes. Weights are normal with a standard deviation of 0.02, as most matrices of a language model; the
importance is log-normal. The rate is the median over the runs, the ratio the median of the ratios of neighbours.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from numpy.typing import NDArray

from tests.quantize.hard_weights import heavy_tailed, normal, real
from zephyr_local.quantize.encoders import KERNEL_KINDS, EncoderOptions, Search, open_encoder
from zephyr_local.quantize.kernels import ggml
from zephyr_local.quantize.types import TensorType

N_ROWS, N_COLUMNS = 512, 4096
WEIGHTS = {"normal": normal, "heavy-tailed": heavy_tailed, "zephyr-tiny": real}
Importance = NDArray[np.float32] | None


def bind_to_one_core() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def rates(ours: Callable[[], object], theirs: Callable[[], object], n_weights: int, runs: int) -> str:
    """Medians in million weights a second, and the ratio; the two run by turns."""
    times = [(seconds(ours), seconds(theirs)) for _ in range(runs)]
    our_rate, their_rate = (n_weights / statistics.median(side) / 1e6 for side in zip(*times, strict=True))
    ratio = statistics.median(their_time / our_time for our_time, their_time in times)
    return f"{our_rate:8.1f} {their_rate:8.1f} {ratio:7.2f}"


def squared_error(
    kind: TensorType, encoded: NDArray[np.uint8], rows: NDArray[np.float32], weights: Importance
) -> float:
    errors = (ggml.decode(kind, encoded, rows.shape[1]).astype(np.float64) - rows) ** 2
    return float((errors if weights is None else errors * weights).sum())


def compare_rates(kinds: Sequence[TensorType], runs: int, device: str) -> None:
    rng = np.random.default_rng(0)
    rows, importance = normal(rng, N_ROWS, N_COLUMNS), rng.lognormal(size=N_COLUMNS).astype(np.float32)
    encoder = open_encoder(EncoderOptions(device=device), kinds, lambda: print("compiling"))
    print(f"{encoder.name} beside ggml, M weights/s on one core, median of {runs}")
    print(f"{'type':6}{'importance':>12}{'ours':>9}{'ggml':>9}{'ratio':>8}  bytes")
    for kind in kinds:
        for weights in (None, importance):
            if weights is not None and kind is TensorType.Q8_0:
                continue  # it has no use for them
            same = np.array_equal(encoder.encode(kind, rows, weights), ggml.encode(kind, rows, weights))
            found = rates(
                lambda kind=kind, weights=weights: encoder.encode(kind, rows, weights),
                lambda kind=kind, weights=weights: ggml.encode(kind, rows, weights),
                rows.size,
                runs,
            )
            print(f"{kind.name:6}{'no' if weights is None else 'yes':>12} {found}  {'same' if same else 'DIFFER'}")


def compare_thorough(kinds: Sequence[TensorType], runs: int) -> None:
    kinds = [kind for kind in kinds if kind in (TensorType.Q4_K, TensorType.Q5_K, TensorType.Q6_K)]
    encoder = open_encoder(EncoderOptions(search=Search.THOROUGH), kinds, lambda: print("compiling"))
    print(
        f"--search thorough beside ggml's search, M weights/s on one core, median of {runs}; errors of ours over ggml's"
    )
    print(f"{'type':6}{'weights':>14}{'importance':>12}{'ours':>9}{'ggml':>9}{'ratio':>8}{'error':>9}")
    for kind in kinds:
        for name, make in WEIGHTS.items():
            rng = np.random.default_rng(0)
            rows = make(rng, N_ROWS, N_COLUMNS)
            for weights in (None, rng.lognormal(size=N_COLUMNS).astype(np.float32)):
                ours, theirs = (
                    squared_error(kind, encode(kind, rows, weights), rows, weights)
                    for encode in (encoder.encode, ggml.encode)
                )
                found = rates(
                    lambda kind=kind, rows=rows, weights=weights: encoder.encode(kind, rows, weights),
                    lambda kind=kind, rows=rows: ggml.encode(kind, rows),  # its plain rate, also beside importance
                    rows.size,
                    runs,
                )
                print(f"{kind.name:6}{name:>14}{'no' if weights is None else 'yes':>12} {found}{ours / theirs:9.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", metavar="TYPE", help="such as Q4_K; else all that we encode ourselves")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--thorough", action="store_true", help="the thorough search instead of the default")
    parser.add_argument("--device", default="cpu", help="cpu (default), or a torch device such as cuda")
    given = parser.parse_args()
    names = given.types or ["Q4_K", "Q5_K", "Q6_K", "Q3_K", "Q2_K", "Q8_0"]
    kinds = [TensorType.parse(name) for name in names]
    if not set(kinds) <= KERNEL_KINDS:
        parser.error(f"ours are {', '.join(sorted(kind.name for kind in KERNEL_KINDS))}")
    if given.thorough and given.device != "cpu":
        parser.error("the thorough search runs on the CPU")
    bind_to_one_core()
    if given.thorough:
        compare_thorough(kinds, given.runs)
    else:
        compare_rates(kinds, given.runs, given.device)


if __name__ == "__main__":
    main()
