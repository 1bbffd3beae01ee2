"""Moves a loaded model's weights into huge pages, a little at a time, while nobody waits for an answer (Linux).

llama.cpp repacks most weights into anonymous memory that it reads from end to end for each token. In pages of 4 KiB the
processor spends 5 to 10 % of that time on translating addresses. Asking for huge pages before the load (glibc's tunable
``glibc.malloc.hugetlb``) made the first token late by a second and more in a virtual machine whose host had taken the
free memory back, so the load goes on as ever and this follows it. ``madvise(2)`` says what the calls do.
"""

from __future__ import annotations

import ctypes
import errno
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

HUGE_PAGE_BYTES: Final = 2 << 20  # of x86-64, and of ARM64 with pages of 4 KiB; another size makes the calls fail
_LEAST_BYTES: Final = 8 << 20
_MADV_HUGEPAGE: Final = 14
_MADV_COLLAPSE: Final = 25  # since Linux 6.1
_MAPS: Final = Path("/proc/self/maps")

Range = tuple[int, int]  # first address, and the one after the last


def anonymous_ranges() -> list[Range]:
    """This process's private anonymous memory that can be written, in order; none where that is not Linux's."""
    if sys.platform != "linux":
        return []
    try:
        lines = _MAPS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        fields = line.split()
        if len(fields) == 5 and fields[1] == "rw-p":  # no path: no file, heap or stack
            start, _, end = fields[0].partition("-")
            found.append((int(start, 16), int(end, 16)))
    return found


def without(ranges: list[Range], taken: list[Range]) -> Iterator[Range]:
    """What of ``ranges`` is in none of ``taken``; both in order and without overlaps."""
    for start, end in ranges:
        for taken_start, taken_end in taken:
            if taken_end > start and taken_start < end:
                if taken_start > start:
                    yield start, taken_start
                start = taken_end
        if start < end:
            yield start, end


class HugePages:
    """The memory that came since it was made, to be moved into huge pages.

    ``done`` from any thread; the rest on one at a time. What else the process allocated meanwhile is moved, too, which
    changes nothing that a program sees.
    """

    def __init__(self) -> None:
        self._before = anonymous_ranges()
        self._left: deque[int] = deque()  # addresses of pages
        self._madvise = _native_madvise()
        self.moved_bytes = 0

    def find(self) -> None:
        """Note what came since; called when the load is over."""
        if self._madvise is None:
            return
        for start, end in without(anonymous_ranges(), self._before):
            start, end = -(-start // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES, end // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES
            if end - start >= _LEAST_BYTES and self._madvise(start, end - start, _MADV_HUGEPAGE) == 0:
                self._left.extend(range(start, end, HUGE_PAGE_BYTES))

    @property
    def done(self) -> bool:
        return not self._left

    def move_one(self) -> None:
        """Move one huge page's worth, in 0.3 to 5 ms; gives up where the system has no more of them."""
        assert self._madvise is not None
        result = self._madvise(self._left.popleft(), HUGE_PAGE_BYTES, _MADV_COLLAPSE)
        if result == 0:
            self.moved_bytes += HUGE_PAGE_BYTES
        elif result == errno.ENOMEM:
            self._left.clear()  # any other is of this page: not all of it in use, or in use by the kernel


def _native_madvise() -> Callable[[int, int, int], int] | None:
    """``madvise`` that returns 0 or the error's number; None where there is none."""
    if sys.platform != "linux":
        return None
    try:
        function = ctypes.CDLL(None, use_errno=True).madvise
    except (AttributeError, OSError):
        return None
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int), ctypes.c_int
    return lambda address, length, advice: 0 if function(address, length, advice) == 0 else ctypes.get_errno()
