"""An engine that ends by itself is told, also while no call waits, and the next call starts it again."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.engine.conftest import SETTINGS, tiny_path  # noqa: F401 — a fixture
from zephyr_local import EngineCrashed, Sampling, Zephyr

HELLO = [{"role": "user", "content": "the hen in a den"}]
GREEDY = Sampling(temperature=0, max_tokens=24)


def _kill_engine(zephyr: Zephyr) -> None:
    assert zephyr.engine_process_id is not None
    os.kill(zephyr.engine_process_id, signal.SIGKILL)


def _kill_engine_in_an_answer(zephyr: Zephyr) -> EngineCrashed:
    """What who waits for the answer gets."""
    caught: list[EngineCrashed] = []

    def ask() -> None:
        try:
            zephyr.complete(HELLO, GREEDY)
        except EngineCrashed as error:
            caught.append(error)

    assert zephyr.engine_process_id is not None
    os.kill(zephyr.engine_process_id, signal.SIGSTOP)  # so that no answer is sooner than the crash
    asking = threading.Thread(target=ask)
    asking.start()
    while not zephyr._client._waiters:
        time.sleep(0.01)
    _kill_engine(zephyr)
    asking.join(60)
    (error,) = caught
    return error


@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
def test_a_crash_is_told_once_whether_or_not_a_call_waits_and_a_close_is_none(tiny_path: Path) -> None:  # noqa: F811
    told: queue.SimpleQueue[EngineCrashed] = queue.SimpleQueue()
    with Zephyr(tiny_path, SETTINGS) as model:
        model.on_crash = told.put
        _kill_engine(model)  # nobody waits
        crash = told.get(timeout=60)
        assert isinstance(crash, EngineCrashed)
        assert crash.signal == "SIGKILL"
        assert not model.is_running
        assert model.complete(HELLO, GREEDY).text
        assert model.is_running
        error = _kill_engine_in_an_answer(model)
        assert told.get(timeout=60) is error
        assert model.complete(HELLO, GREEDY).text
    time.sleep(0.2)
    assert told.empty()


@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
def test_an_on_crash_that_raises_harms_no_call(tiny_path: Path) -> None:  # noqa: F811
    told: list[EngineCrashed] = []

    def on_crash(error: EngineCrashed) -> None:
        told.append(error)
        raise RuntimeError("of the application")

    with Zephyr(tiny_path, SETTINGS) as model:
        model.on_crash = on_crash
        error = _kill_engine_in_an_answer(model)
        assert model.complete(HELLO, GREEDY).text
    assert told == [error]


@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
def test_a_relative_path_is_loaded_again_after_a_crash_elsewhere(
    tiny_path: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tiny_path.parent)
    crashed = threading.Event()
    with Zephyr(tiny_path.name, SETTINGS) as model:
        model.on_crash = lambda _error: crashed.set()
        monkeypatch.chdir(tmp_path)
        _kill_engine(model)
        assert crashed.wait(60)
        assert model.complete(HELLO, GREEDY).text
