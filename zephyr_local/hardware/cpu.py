"""The cores that this process may use, and what they can do."""

from __future__ import annotations

import math
import os
import platform
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from zephyr_local.hardware import features
from zephyr_local.hardware.cgroups import cpu_quota
from zephyr_local.hardware.tree import ROOT, cpu_list, number_in, text_of

_ARCHITECTURES: Final = {"x86_64": "x86-64", "amd64": "x86-64", "aarch64": "arm64", "i686": "x86", "i386": "x86"}
_LITTLE: Final = 2 / 3  # of the largest core's capacity: a middle core has more, a little one has half or less


@dataclass(frozen=True, slots=True)
class CPU:
    """The CPU, as far as this process may use it: by its affinity and its group's quota, rounded up."""

    name: str
    """Empty where the system does not tell."""
    architecture: str
    """``x86-64``, ``arm64``, or the system's own word in small letters."""
    features: frozenset[str]
    """llama.cpp's words: ``avx2``, ``avx512f``, ``dotprod``. On Windows some cannot be known."""
    logical_cores: int
    physical_cores: int
    """Those that share a core counted once; as ``logical_cores`` where the topology is not known."""
    performance_cores: int
    """The physical cores without the efficient ones, of a CPU that has both."""
    machine_cores: int
    """The logical cores of the machine that are on."""
    quota_cores: float | None = None
    """The cores' worth of time that a cgroup allows."""
    limited_by: Literal["", "affinity", "cgroup"] = ""
    """What keeps this process from the rest of the machine's cores."""
    knows_topology: bool = True
    is_translated: bool = False
    """An Apple CPU runs this Python as x86-64, by Rosetta."""

    @property
    def recommended_threads(self) -> int:
        """One for each performance core; where the topology is not known, one for each core."""
        return max(1, self.performance_cores)


def usable_cores() -> int:
    """The cores that this process may run on, where the system tells; else all of the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def recommended_threads(root: Path = ROOT) -> int:
    """The threads that llama.cpp should have: decoding waits for memory, and a core's second thread adds nothing."""
    return read_cpu(root).recommended_threads


def read_cpu(root: Path = ROOT, machine: str | None = None) -> CPU:
    """The CPU; ``machine`` is what ``platform.machine()`` says, where it is not this one's."""
    architecture = (machine or platform.machine()).lower()
    architecture = _ARCHITECTURES.get(architecture, architecture)
    if root == ROOT and sys.platform == "darwin":
        from zephyr_local.hardware.macos import ask_sysctl

        return cpu_of_macos(ask_sysctl(), architecture)
    if root == ROOT and sys.platform == "win32":
        return _cpu_of_windows(architecture)
    return _cpu_of_linux(root, architecture)


def _restricted(cpu: CPU, quota: float | None) -> CPU:
    most = cpu.logical_cores if quota is None else max(1, math.ceil(quota))
    limited_by: Literal["", "affinity", "cgroup"] = "affinity" if cpu.logical_cores < cpu.machine_cores else ""
    return replace(
        cpu,
        logical_cores=min(most, cpu.logical_cores),
        physical_cores=min(most, cpu.physical_cores),
        performance_cores=min(most, cpu.performance_cores),
        quota_cores=quota,
        limited_by="cgroup" if most < cpu.logical_cores else limited_by,
    )


# --- Linux ---


def _cpu_of_linux(root: Path, architecture: str) -> CPU:
    first, n_listed = _cpuinfo(root)
    cpus = root / "sys/devices/system/cpu"
    online = cpu_list(text_of(cpus / "online"))
    allowed = cpu_list(_line_of(text_of(root / "proc/self/status"), "Cpus_allowed_list"))
    # A container may show its own numbers of cores beside the machine's: then the affinity alone is right.
    usable = allowed & online or allowed or online
    n_online = len(online) or n_listed
    if not usable:
        usable = frozenset(range(n_listed or usable_cores()))
    cores = {number: _siblings(cpus / f"cpu{number}") for number in usable}
    known = all(cores.values())
    fast = _fast(root, usable)
    n_physical = len(set(cores.values())) if known else len(usable)
    n_fast = len({cores[number] for number in fast}) if known else len(usable)
    found = CPU(
        name=first.get("model name") or first.get("Model") or text_of(root / "proc/device-tree/model"),
        architecture=architecture,
        features=features.of_linux(first.get("flags") or first.get("Features") or ""),
        logical_cores=len(usable),
        physical_cores=n_physical,
        performance_cores=n_fast,
        machine_cores=max(n_online, len(usable)),
        knows_topology=known,
    )
    return _restricted(found, cpu_quota(root))


def _cpuinfo(root: Path) -> tuple[dict[str, str], int]:
    """The first value of each name in /proc/cpuinfo, and how many processors it lists."""
    first: dict[str, str] = {}
    n_listed = 0
    for line in text_of(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        n_listed += name.strip() == "processor"
        first.setdefault(name.strip(), value.strip())
    return first, n_listed


def _line_of(text: str, name: str) -> str:
    for line in text.splitlines():
        before, _, value = line.partition(":")
        if before == name:
            return value.strip()
    return ""


def _siblings(folder: Path) -> frozenset[int] | tuple[int, int] | None:
    """What the threads of one core have in common; None where it is not told."""
    topology = folder / "topology"
    # The list rather than the ids: on some ARM boards each cluster numbers its cores from 0, in one package.
    if siblings := cpu_list(text_of(topology / "thread_siblings_list")):
        return siblings
    package, core = number_in(topology / "physical_package_id"), number_in(topology / "core_id")
    return None if package is None or core is None else (package, core)


def _fast(root: Path, usable: frozenset[int]) -> frozenset[int]:
    """The usable cores that are no efficient ones; all, where only efficient ones may be used or none is known."""
    if intel := usable & cpu_list(text_of(root / "sys/devices/cpu_core/cpus")):
        return intel
    capacity = {number: number_in(root / f"sys/devices/system/cpu/cpu{number}/cpu_capacity") or 0 for number in usable}
    least = _LITTLE * max(capacity.values(), default=0)
    return frozenset(number for number in usable if capacity[number] >= least)


# --- macOS ---


def cpu_of_macos(sysctl: dict[str, str], architecture: str) -> CPU:
    """The CPU, from what sysctl says of ``hw``, ``machdep.cpu`` and ``sysctl.proc_translated``."""

    def count(*names: str) -> int:
        return next((int(sysctl[name]) for name in names if sysctl.get(name, "").isdecimal()), 0)

    logical = count("hw.logicalcpu", "hw.ncpu") or usable_cores()
    physical = count("hw.physicalcpu")
    return CPU(
        name=sysctl.get("machdep.cpu.brand_string", ""),
        architecture=architecture,
        features=features.of_macos(sysctl),
        logical_cores=logical,
        physical_cores=physical or logical,
        performance_cores=count("hw.perflevel0.physicalcpu") or physical or logical,
        machine_cores=logical,
        knows_topology=physical > 0,
        is_translated=sysctl.get("sysctl.proc_translated") == "1",
    )


# --- Windows ---


def _cpu_of_windows(architecture: str) -> CPU:
    from zephyr_local.hardware import windows

    cores = windows.usable_cores_of(windows.processor_information(), windows.process_affinity())
    n_logical = sum(core.n_threads for core in cores) or usable_cores()
    best = max((core.efficiency for core in cores), default=0)
    return CPU(
        name=windows.cpu_name(),
        architecture=architecture,
        features=windows.cpu_features(architecture),
        logical_cores=n_logical,
        physical_cores=len(cores) or n_logical,
        performance_cores=sum(core.efficiency == best for core in cores) or n_logical,
        machine_cores=max(os.cpu_count() or 1, n_logical),
        limited_by="affinity" if n_logical < (os.cpu_count() or 1) else "",
        knows_topology=bool(cores),
    )
