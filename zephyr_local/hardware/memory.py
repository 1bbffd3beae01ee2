"""How much memory this process and its children can have, and what limits it."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from zephyr_local.hardware.cgroups import group_memory
from zephyr_local.hardware.tree import ROOT, numbers_by_key, text_of

MemoryLimit = Literal["", "cgroup", "RLIMIT_AS", "RLIMIT_DATA"]

_LIMITS: Final[dict[str, tuple[MemoryLimit, str]]] = {
    "Max address space": ("RLIMIT_AS", "VmSize"),
    "Max data size": ("RLIMIT_DATA", "VmData"),
}
"""A name in /proc/self/limits → the limit, and what of a process counts for it in /proc/self/status."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory, as far as this process may use it; 0: not known."""

    total_bytes: int
    """The lowest of the machine's memory and the limits."""
    available_bytes: int
    """What can be had without swapping, 1 at least; file cache that the system would give back is available."""
    machine_bytes: int
    limited_by: MemoryLimit = ""
    """What makes ``total_bytes`` less than the machine's. ``RLIMIT_AS`` also counts weights that are only mapped."""
    swap_bytes: int = 0
    """Swap that there is, free or not, as far as the cgroup may use it."""


def read_memory(root: Path = ROOT) -> Memory:
    """The memory that there is now."""
    if root == ROOT and sys.platform == "darwin":
        from zephyr_local.hardware import macos

        sysctl = macos.ask_sysctl()
        size = sysctl.get("hw.memsize", "")
        total = int(size) if size.isdecimal() else 0
        return Memory(total, macos.ask_vm_stat() or total, total, swap_bytes=macos.swap_bytes(sysctl))
    if root == ROOT and sys.platform == "win32":
        from zephyr_local.hardware import windows

        total, available, swap = windows.memory_status()
        return Memory(total, available, total, swap_bytes=swap)
    return _memory_of_linux(root)


def _memory_of_linux(root: Path) -> Memory:
    info = numbers_by_key(text_of(root / "proc/meminfo"))
    machine = info.get("MemTotal", 0)
    if not machine and root == ROOT and sys.platform != "win32":
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    old_kernels = info.get("MemFree", 0) + info.get("Cached", 0) + info.get("Buffers", 0)
    total, available = machine, info.get("MemAvailable", old_kernels) if info else machine
    swap = info.get("SwapTotal", 0)
    limits = _process_limits(root)
    if (group := group_memory(root)) is not None:
        limits.append((group.limit_bytes, group.left_bytes, "cgroup"))
        swap = swap if group.swap_bytes is None else min(swap, group.swap_bytes)
    limited_by: MemoryLimit = ""
    if limits:
        lowest, _, name = min(limits)
        if lowest < machine or not machine:
            total, limited_by = lowest, name
        available = min(available if machine else total, *(left for _, left, _ in limits))
    return Memory(total, max(min(available, total), min(total, 1)), machine or total, limited_by, swap)


def _process_limits(root: Path) -> list[tuple[int, int, MemoryLimit]]:
    """Each limit of this process, which its children inherit: bytes, what this process leaves of them, its name."""
    status = numbers_by_key(text_of(root / "proc/self/status"))
    found: list[tuple[int, int, MemoryLimit]] = []
    for line in text_of(root / "proc/self/limits").splitlines():
        for words, (name, counted) in _LIMITS.items():
            if line.startswith(words):
                soft = line[len(words) :].split()[:1]
                if soft and soft[0].isdecimal():
                    limit = int(soft[0])
                    found.append((limit, max(0, limit - status.get(counted, 0)), name))
    return found
