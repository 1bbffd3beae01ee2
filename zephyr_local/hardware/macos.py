"""What macOS's own programs say; nothing where they fail or take too long."""

from __future__ import annotations

import re
import subprocess
from typing import Final

_TIMEOUT_S: Final = 2.0
_PAGES: Final = re.compile(r"^Pages (\w+):\s+(\d+)", re.MULTILINE)
_PAGE_SIZE: Final = re.compile(r"page size of (\d+) bytes")
_SWAP: Final = re.compile(r"total = ([\d.]+)M")


def ask_sysctl() -> dict[str, str]:
    """``hw``, ``machdep.cpu``, ``vm.swapusage`` and ``sysctl.proc_translated``, name → text."""
    # An Intel Mac does not know the last one; it tells the others all the same.
    return parsed_sysctl(_said_by("/usr/sbin/sysctl", "hw", "machdep.cpu", "vm.swapusage", "sysctl.proc_translated"))


def parsed_sysctl(text: str) -> dict[str, str]:
    """sysctl's lines ``name: value``."""
    pairs = (line.partition(": ") for line in text.splitlines())
    return {name: value.strip() for name, colon, value in pairs if colon}


def ask_vm_stat() -> int | None:
    """The bytes that programs can have; None: not known."""
    return parsed_vm_stat(_said_by("/usr/bin/vm_stat"))


def parsed_vm_stat(text: str) -> int | None:
    """What is free, read ahead or not used lately, in bytes."""
    size = _PAGE_SIZE.search(text)
    pages = {name: int(count) for name, count in _PAGES.findall(text)}
    if size is None or "free" not in pages:
        return None
    return int(size[1]) * (pages["free"] + pages.get("inactive", 0) + pages.get("speculative", 0))


def swap_bytes(sysctl: dict[str, str]) -> int:
    """The swap that there is at the moment: macOS makes more of it when it wants it."""
    found = _SWAP.search(sysctl.get("vm.swapusage", ""))
    return int(float(found[1]) * (1 << 20)) if found else 0


def _said_by(*command: str) -> str:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace")
