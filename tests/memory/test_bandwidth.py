"""The rate that follows from how fast memory is read."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.cli.command import ROOT
from tests.shaped_model import MISTRAL_7B, SMALL, write_shaped_model
from zephyr_local.gguf_split import read_model
from zephyr_local.memory.bandwidth import decode_bytes, expected_tokens_s, read_bandwidth_bytes_s
from zephyr_local.memory.estimate import Gpu, estimate_memory
from zephyr_local.memory.shape import ModelShape, shape_of
from zephyr_local.quantize.types import FileType
from zephyr_local.settings import EngineSettings


def shape(folder: Path, *, tied: bool = False, file_type: FileType = FileType.Q4_K_M) -> ModelShape:
    return shape_of(read_model(write_shaped_model(folder / "shaped.gguf", SMALL, file_type, tied=tied)))


def test_memory_is_read_as_fast_as_numpy_reads_it() -> None:
    measured = read_bandwidth_bytes_s(1)
    assert measured is not None
    array = np.ones(8 << 20, np.int64)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        array.max()
        times.append(time.perf_counter() - began)
    assert array.nbytes / min(times) / 6 < measured < array.nbytes / min(times) * 6  # other work goes on beside it


def test_more_threads_than_cores_take_no_more_memory_and_stay_for_no_one() -> None:
    before = threading.active_count()
    began = time.perf_counter()
    measured = read_bandwidth_bytes_s(512)
    assert measured is not None
    assert measured > 10**8
    assert time.perf_counter() - began < 10
    assert threading.active_count() == before


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of this kind")
def test_without_memory_for_it_no_rate_is_told() -> None:
    code = (
        "import resource\n"
        "from zephyr_local.memory.bandwidth import read_bandwidth_bytes_s\n"
        "used = next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmData')) * 1024\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (used + (8 << 20),) * 2)\n"
        "print(read_bandwidth_bytes_s(2))\n"
    )
    if not Path("/proc/self/status").exists():
        pytest.skip("reads /proc, which is Linux's")
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert (ran.stdout, ran.stderr) == ("None\n", "")


def test_a_token_reads_every_weight_but_the_embeddings(tmp_path: Path) -> None:
    model = shape(tmp_path)
    embeddings = next(tensor.size_bytes for tensor in model.tensors if tensor.name == "token_embd.weight")
    assert decode_bytes(model) == model.size_bytes - embeddings
    tied = shape(tmp_path, tied=True)
    assert decode_bytes(tied) == tied.size_bytes


def test_the_rate_is_a_share_of_the_bandwidth_over_what_is_read(tmp_path: Path) -> None:
    model = shape(tmp_path, file_type=FileType.Q8_0)
    host = estimate_memory(model, EngineSettings(), frozenset())
    assert expected_tokens_s(model, host, decode_bytes(model) * 7) == pytest.approx(7 * 0.8)
    path = write_shaped_model(tmp_path / "seven.gguf", replace(MISTRAL_7B, n_layer=4), FileType.Q4_K_M)
    larger = shape_of(read_model(path))
    slower = expected_tokens_s(larger, estimate_memory(larger, EngineSettings(), frozenset()), 1e10)
    faster = expected_tokens_s(model, host, 1e10)
    assert slower is not None
    assert faster is not None
    assert slower < faster


def test_what_a_gpu_computes_was_not_probed(tmp_path: Path) -> None:
    model = shape(tmp_path)
    gpus = [Gpu("CUDA0", 8 << 30)]
    some = estimate_memory(model, EngineSettings(n_gpu_layers=3), frozenset(), gpus)
    assert expected_tokens_s(model, some, 1e10) is None
    none = estimate_memory(model, EngineSettings(n_gpu_layers=0), frozenset(), gpus)
    assert expected_tokens_s(model, none, 1e10) is not None
