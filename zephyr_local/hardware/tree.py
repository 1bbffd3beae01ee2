"""Reads the small files of /proc and /sys; what is missing or not as it should be is not known, and no error."""

from __future__ import annotations

from pathlib import Path
from typing import Final

ROOT: Final = Path("/")

_MOST_CPUS: Final = 1 << 16


def text_of(path: Path) -> str:
    """The file's text without blanks around it; empty where it cannot be read."""
    try:
        return path.read_text("utf-8", "replace").strip("\0\n\t ")  # the device tree's texts end with a null character
    except OSError:
        return ""


def number_in(path: Path) -> int | None:
    """The whole number in a file; None where there is none, such as ``max`` in a cgroup's."""
    try:
        return int(text_of(path))
    except ValueError:
        return None


def numbers_by_key(text: str) -> dict[str, int]:
    """The lines ``key number`` or ``key: number kB`` of a text; the latter in bytes."""
    found = {}
    for line in text.splitlines():
        match line.split():
            case [key, number] if number.isdecimal():
                found[key.rstrip(":")] = int(number)
            case [key, number, "kB"] if number.isdecimal():
                found[key.rstrip(":")] = int(number) << 10
    return found


def cpu_list(text: str) -> frozenset[int]:
    """The numbers in the kernel's notation for CPUs, such as ``0-3,8``; empty where it is something else."""
    numbers: set[int] = set()
    try:
        for part in filter(None, text.strip().split(",")):
            first, dash, last = part.partition("-")
            end = int(last if dash else first) + 1
            if end > _MOST_CPUS:
                return frozenset()
            numbers.update(range(int(first), end))
    except ValueError:
        return frozenset()
    return frozenset(numbers)
