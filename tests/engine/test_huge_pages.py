"""Moving weights into huge pages: the right memory, unchanged, and only while nobody waits."""

from __future__ import annotations

import errno
import mmap
import random
import sys
import time

import pytest

from tests.engine.conftest import SETTINGS
from tests.engine.scheduling import Loop
from zephyr_local.engine import huge_pages
from zephyr_local.engine.huge_pages import HUGE_PAGE_BYTES, HugePages, anonymous_ranges, without
from zephyr_local.engine.llama import LlamaModel

WATCHDOG_S = 30.0
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux can be asked to move memory")


def private_memory(size: int) -> mmap.mmap:
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def test_what_is_in_none_of_the_others() -> None:
    dice = random.Random(1)

    def ranges() -> list[huge_pages.Range]:
        edges = sorted(dice.sample(range(60), 2 * dice.randrange(6)))
        return list(zip(edges[::2], edges[1::2], strict=True))

    for _ in range(2000):
        one, taken = ranges(), ranges()
        found = list(without(one, taken))
        assert all(start < end for start, end in found)
        members = [number for start, end in found for number in range(start, end)]
        inside = {number for start, end in taken for number in range(start, end)}
        assert members == [number for start, end in one for number in range(start, end) if number not in inside]


@linux
def test_memory_that_came_since_is_moved_and_unchanged() -> None:
    size = 32 << 20
    content = random.Random(2).randbytes(1 << 20) * (size >> 20)
    pages = HugePages()
    with private_memory(size) as memory:
        memory.write(content)
        pages.find()
        assert len(pages._left) >= size // HUGE_PAGE_BYTES - 1  # its ends need not be those of huge pages
        known = {start // HUGE_PAGE_BYTES for start, end in pages._before if end - start >= HUGE_PAGE_BYTES}
        assert not known & {address // HUGE_PAGE_BYTES for address in pages._left}
        while not pages.done:
            pages.move_one()
        assert memory[:] == content
    assert pages.moved_bytes % HUGE_PAGE_BYTES == 0


@linux
def test_it_gives_up_where_there_are_no_huge_pages_left(monkeypatch: pytest.MonkeyPatch) -> None:
    results = iter([0, 0, errno.EINVAL, 0, errno.ENOMEM])  # the first is that of the whole range

    monkeypatch.setattr(huge_pages, "_native_madvise", lambda: lambda *_: next(results))
    monkeypatch.setattr(huge_pages, "anonymous_ranges", list)
    pages = HugePages()
    monkeypatch.setattr(huge_pages, "anonymous_ranges", lambda: [(HUGE_PAGE_BYTES - 4096, 20 * HUGE_PAGE_BYTES + 1)])
    pages.find()
    assert len(pages._left) == 19
    for left in (18, 17, 16, 0):
        pages.move_one()
        assert len(pages._left) == left
    assert pages.moved_bytes == 2 * HUGE_PAGE_BYTES


@linux
def test_this_processs_memory_is_found() -> None:
    before = anonymous_ranges()
    with private_memory(16 << 20) as memory:
        memory[0] = 1
        assert sum(end - start for start, end in without(anonymous_ranges(), before)) >= 16 << 20
    assert all(start < end for start, end in before)


def test_elsewhere_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    pages = HugePages()
    assert anonymous_ranges() == []
    pages.find()
    assert pages.done


class Slow(HugePages):
    """Pages without end; notes who waited while one was moved."""

    def __init__(self) -> None:
        super().__init__()
        self.loop: Loop | None = None
        self.n_moved = 0
        self.waited: list[bool] = []

    @property
    def done(self) -> bool:
        return False

    def move_one(self) -> None:
        assert self.loop is not None
        self.n_moved += 1
        self.waited.append(bool(self.loop.scheduler._running or self.loop.scheduler._waiting))
        time.sleep(0.001)


def test_pages_are_moved_only_while_nobody_waits(tiny: LlamaModel) -> None:
    pages = Slow()
    tiny.pages = pages
    pages.loop = Loop(tiny, SETTINGS)
    with pages.loop as loop:
        for _ in range(3):
            moved, until = pages.n_moved, time.monotonic() + WATCHDOG_S
            while pages.n_moved < moved + 5 and time.monotonic() < until:
                time.sleep(0.001)
            assert pages.n_moved >= moved + 5
            assert loop.answer([1, 300, 301]).finish.completion_tokens > 0
    assert not any(pages.waited)
    loop.close()  # though pages are left
