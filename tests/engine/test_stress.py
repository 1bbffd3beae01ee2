"""The engine is killed and cancelled at random moments; nothing hangs, is lost, wrong, or left behind."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.engine.stress import (
    SETTINGS,
    Footprint,
    Question,
    ask_fresh_engines,
    cancel_at_random,
    exists,
    kill_at_random,
    no_core_files,
)
from zephyr_local import Zephyr

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs Linux's /proc")  # noqa: PTH110

FEW_AND_MANY = [
    pytest.param(12, marks=pytest.mark.timeout(120)),
    pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(600)]),
]


def isolated() -> Zephyr:
    return Zephyr(settings=SETTINGS)


def in_process() -> Zephyr:
    return Zephyr(settings=SETTINGS, isolated=False)


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return ask_fresh_engines(isolated)


@pytest.mark.parametrize("times", FEW_AND_MANY)
def test_kills(questions: list[Question], times: int) -> None:
    before = Footprint.now()
    with no_core_files(), isolated() as zephyr:
        zephyr.complete(questions[0].messages)
        open_before = Footprint.now()
        kills = kill_at_random(zephyr, questions, times)
        open_after = Footprint.now()
    assert kills.wrong == []
    assert kills.crashed + kills.answered == kills.next_right == times
    assert kills.crashed >= times // 2
    assert len(kills.process_ids) == times
    assert not any(exists(process_id) for process_id in kills.process_ids)
    assert (open_after.descriptors, open_after.threads) == (open_before.descriptors, open_before.threads)
    assert len(open_after.children - before.children) == 1
    _require_nothing_left(before)


@pytest.mark.parametrize("make", [isolated, in_process])
@pytest.mark.parametrize("times", FEW_AND_MANY)
def test_cancels(questions: list[Question], make: Callable[[], Zephyr], times: int) -> None:
    with make():
        pass  # what the first load in this process opens for good is not a cancel's
    before = Footprint.now()
    with make() as zephyr:
        zephyr.complete(questions[-1].messages)
        open_before = Footprint.now()
        cancels = cancel_at_random(zephyr, questions, times)
        open_after = Footprint.now()
    assert cancels.wrong == []
    assert cancels.next_right == times
    assert len(cancels.in_prefill) >= 2, "the prompts are too short to be cancelled"
    assert len(cancels.in_decode) >= 2
    assert open_after == open_before
    _require_nothing_left(before)


def _require_nothing_left(before: Footprint) -> None:
    after = Footprint.now()
    assert (after.descriptors, after.threads) == (before.descriptors, before.threads)
    assert after.children <= before.children
