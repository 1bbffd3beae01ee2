"""What a model is to fit, from what the system and llama.cpp say."""

from __future__ import annotations

import pytest

from zephyr_local.engine import machine
from zephyr_local.engine.machine import machine_of, probed_machine, this_machine
from zephyr_local.hardware import Device, Memory
from zephyr_local.memory.estimate import Gpu

GIB = 1 << 30
CPU = Device("CPU", "a CPU", "cpu", 16 * GIB, 16 * GIB, "CPU")
CUDA = Device("CUDA0", "NVIDIA", "gpu", 24 * GIB, 23 * GIB, "CUDA")
METAL = Device("MTL0", "Apple M3", "gpu", 12 * GIB, 12 * GIB, "MTL")
INSIDE = Device("Vulkan0", "an integrated GPU", "integrated-gpu", 8 * GIB, 8 * GIB, "Vulkan")
FEATURES = frozenset({"avx2"})


def test_a_gpu_counts_where_llama_cpp_can_use_it() -> None:
    assert machine_of([CPU, CUDA], FEATURES, offloads=True).gpus == (Gpu("CUDA0", 23 * GIB),)
    assert machine_of([CPU, CUDA], FEATURES, offloads=False).gpus == ()
    assert machine_of([CPU], FEATURES, offloads=True).gpus == ()


def test_gpus_inside_a_processor_count_where_there_are_no_others() -> None:
    assert machine_of([CPU, CUDA, INSIDE], FEATURES, offloads=True).gpus == (Gpu("CUDA0", 23 * GIB),)
    assert machine_of([CPU, INSIDE], FEATURES, offloads=True).gpus == (Gpu("Vulkan0", 8 * GIB, is_unified=True),)


def test_metal_has_the_hosts_memory() -> None:
    (gpu,) = machine_of([METAL], FEATURES, offloads=True).gpus
    assert gpu.is_unified
    assert not gpu.has_host_buffers


def test_a_limit_has_a_name_and_unknown_memory_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "read_memory", lambda: Memory(4 * GIB, 3 * GIB, 16 * GIB, "cgroup"))
    limited = machine_of([], FEATURES, offloads=False)
    assert (limited.available_bytes, limited.limited_by) == (3 * GIB, "the cgroup's memory")
    monkeypatch.setattr(machine, "read_memory", lambda: Memory(0, 0, 0))
    assert machine_of([], FEATURES, offloads=False).available_bytes > 1 << 60


def test_this_process_and_a_child_see_the_same_machine() -> None:
    here, there = this_machine(), probed_machine()
    assert here.features == there.features
    assert [gpu.name for gpu in here.gpus] == [gpu.name for gpu in there.gpus]
    assert here.available_bytes == pytest.approx(there.available_bytes, rel=0.2)
