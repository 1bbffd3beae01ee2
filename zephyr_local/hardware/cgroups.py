"""The limits that Linux sets a group of processes, as containers have them: cgroup v1, v2, and both at once.

A limit of any ancestor counts as well as the group's own. The files are those of the kernel's
Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zephyr_local.hardware.tree import number_in, numbers_by_key, text_of

_OCTAL: Final = re.compile(r"\\([0-7]{3})")  # how mountinfo writes a blank in a name

_NONE: Final = 1 << 62  # v1 has no word for no limit: it is 2⁶³ less a page


@dataclass(frozen=True, slots=True)
class GroupMemory:
    """What a group may still take."""

    limit_bytes: int
    """The lowest limit."""
    left_bytes: int
    """The least that is left under any of the limits; file cache that has not been used lately counts as left."""
    swap_bytes: int | None
    """None: no limit of its own."""


def cpu_quota(root: Path) -> float | None:
    """The cores' worth of time that this process may use; None: no limit."""
    quotas = []
    for version, folder in _folders(root, "cpu"):
        if version == 2:
            quota, _, period = text_of(folder / "cpu.max").partition(" ")
        else:
            quota, period = text_of(folder / "cpu.cfs_quota_us"), text_of(folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal() and int(period):  # no limit: "max", or -1
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def group_memory(root: Path) -> GroupMemory | None:
    """The limits on memory; None where there are none."""
    limits, lefts, swaps = [], [], []
    for version, folder in _folders(root, "memory"):
        stat = numbers_by_key(text_of(folder / "memory.stat"))
        if version == 2:
            own = [number_in(folder / name) for name in ("memory.max", "memory.high")]
            used, idle = number_in(folder / "memory.current"), stat.get("inactive_file", 0)
            swaps.append(number_in(folder / "memory.swap.max"))
        else:
            own = [number_in(folder / "memory.limit_in_bytes")]
            used = number_in(folder / "memory.usage_in_bytes")
            idle = stat.get("total_inactive_file", stat.get("inactive_file", 0))
        limit = min((number for number in own if number is not None and 0 <= number < _NONE), default=None)
        if limit is not None:
            limits.append(limit)
            lefts.append(max(0, limit - max(0, (used or 0) - idle)))
    swap = min((number for number in swaps if number is not None), default=None)
    return GroupMemory(min(limits), min(lefts), swap) if limits else None


def _folders(root: Path, controller: str) -> Iterator[tuple[int, Path]]:
    """The folders of this process's group and of its ancestors, as far as they can be seen; with cgroup's version."""
    groups: dict[int, str] = {}
    for line in text_of(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            groups[2] = path
        elif controller in controllers.split(","):
            groups[1] = path
    for line in text_of(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if len(fields) < 5 or len(kinds) < 3:
            continue
        version = {"cgroup": 1, "cgroup2": 2}.get(kinds[0])
        if version is None or version not in groups or (version == 1 and controller not in kinds[2].split(",")):
            continue
        mounted = root / _unescaped(fields[4]).lstrip("/")
        own = mounted / _below(groups[version], _unescaped(fields[3]))
        yield version, own
        for folder in own.parents:
            if not folder.is_relative_to(mounted):
                break
            yield version, folder


def _below(path: str, mounted: str) -> str:
    """Where the group ``path`` is below a mount of the group ``mounted``.

    The mount itself where it is not below: a container that sees its own part of the hierarchy under the host's names.
    """
    prefix = mounted.rstrip("/") + "/"
    if not path.startswith(prefix) or ".." in path.split("/"):
        return ""
    return path[len(prefix) :]


def _unescaped(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)
