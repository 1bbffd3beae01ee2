"""What a model in this process is to fit: the host's memory, and the GPUs that llama.cpp has."""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Final

from zephyr_local.errors import EngineError
from zephyr_local.hardware import Device, read_cpu, read_memory
from zephyr_local.memory.estimate import Gpu
from zephyr_local.memory.plan import Machine

_UNKNOWN: Final = 1 << 62
_LIMITS: Final = {"": "", "cgroup": "the cgroup's memory", "RLIMIT_AS": "ulimit -v", "RLIMIT_DATA": "ulimit -d"}


def machine_of(devices: Iterable[Device], features: Set[str], *, offloads: bool) -> Machine:
    """The machine with what llama.cpp says of itself; ``offloads``: whether it was built for GPUs.

    As llama.cpp does, GPUs inside a processor count where there are no others.
    """
    memory = read_memory()
    found = list(devices) if offloads else []
    gpus = [device for device in found if device.kind == "gpu"]
    gpus = gpus or [device for device in found if device.kind == "integrated-gpu"][:1]
    return Machine(
        memory.available_bytes or _UNKNOWN,
        features,
        tuple(
            Gpu(gpu.name, gpu.free_bytes, is_unified=_is_unified(gpu), has_host_buffers=not _is_metal(gpu))
            for gpu in gpus
        ),
        _LIMITS[memory.limited_by],
    )


def this_machine() -> Machine:
    """The machine as llama.cpp in this process sees it."""
    from zephyr_local.engine.llama import device_facts, kernel_features, offloads_to_gpus

    return machine_of(device_facts(), kernel_features(), offloads=offloads_to_gpus())


def probed_machine() -> Machine:
    """The same without loading llama.cpp into this process; raises EngineError as ``probe`` does."""
    from zephyr_local.engine.probe import probe

    found = probe()
    return machine_of(found.devices, found.cpu_features, offloads=found.supports_gpu_offload)


def machine_known() -> Machine:
    """The same; without GPUs where llama.cpp does not say what it has."""
    try:
        return probed_machine()
    except EngineError:  # which a load will tell
        return machine_of((), read_cpu().features, offloads=False)


def _is_unified(gpu: Device) -> bool:
    return gpu.kind == "integrated-gpu" or _is_metal(gpu)


def _is_metal(gpu: Device) -> bool:
    return gpu.backend.lower() in ("metal", "mtl")
