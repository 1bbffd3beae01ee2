"""ZephyrModel: the worker's events as signals on the model's own thread, its methods as slots."""
# ruff: noqa: F811 — fixtures are imported, and named as parameters

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from tests.desktop.qt_watching import (
    BABBLE,
    FRANCE,
    PARIS,
    Heard,
    QtCore,
    application,  # noqa: F401 — a fixture
    engine_of,
    heard,  # noqa: F401 — a fixture
    loaded,  # noqa: F401 — a fixture
    ready,  # noqa: F401 — a fixture
)
from tests.desktop.watching import MOST_S
from tests.engine.conftest import slow_path  # noqa: F401 — a fixture
from zephyr_local import (
    EngineCrashed,
    EngineSettings,
    InvalidInputError,
    Message,
    ModelNotFoundError,
    Sampling,
)
from zephyr_local.desktop.qt_binding import BINDING, QObject, Signal

LONG = "x " * 3000
SHORT_BABBLE = replace(BABBLE, max_tokens=100)
MOST_GAP_S = 0.5
"""Ten times what is aimed at, 50 ms; benchmarks/desktop.py measures it."""


def test_the_binding_is_the_one_that_was_asked_for() -> None:
    assert ("PyQt6" if os.environ.get("QT_API") == "pyqt6" else "PySide6") == BINDING


# --- a load and an answer ---


def test_a_load_and_an_answer(heard: Heard) -> None:
    model = heard.model
    assert (model.state, model.model_name, model.n_ctx, model.load_share, model.turns) == ("empty", "", 0, 0, ())
    model.load()
    assert model.state == "loading"
    before, loaded = heard.until("loaded")
    assert before[0] == ("state_changed", "loading")
    assert before[-1] == ("state_changed", "ready")
    assert {call[0] for call in before[1:-1]} == {"load_progress"}
    shares = [call[1] for call in before[1:-1]]
    assert shares == sorted(shares)
    assert loaded == ("loaded", "zephyr-tiny")
    assert (model.state, model.model_name, model.n_ctx, model.load_share) == ("ready", "zephyr-tiny", 1024, 1)
    assert model.notices == ()
    model.ask(FRANCE)
    assert model.state == "answering"
    before, end = heard.until("finished", "failed")
    names = [call[0] for call in before]
    assert names == [
        "state_changed",
        *["prefill_progress"] * names.count("prefill_progress"),
        *["piece"] * names.count("piece"),
        *("state_changed", "chat_changed"),
    ]
    assert "".join(call[1] for call in before if call[0] == "piece") == PARIS
    assert end == ("finished", "stop")
    assert (model.state, model.last_error) == ("ready", None)
    assert model.turns == (Message("user", FRANCE), Message("assistant", PARIS))
    assert model.last_finish is not None
    assert model.last_finish.completion_tokens > 4


def test_a_question_waits_for_the_load(heard: Heard) -> None:
    heard.model.load()
    heard.model.ask(FRANCE)
    before, _ = heard.until("loaded")
    assert [call[1] for call in before if call[0] == "state_changed"] == ["loading", "answering"]
    assert not any(call[0] == "piece" for call in before)
    assert heard.answer() == (PARIS, ("finished", "stop"))


def test_what_cannot_be_done_now_is_raised(ready: Heard) -> None:
    model = ready.model
    model.ask(FRANCE)
    for wish in (
        lambda: model.ask("and?"),
        model.regenerate,
        model.continue_answer,
        lambda: model.edit(0, "or?"),
        model.new_chat,
        lambda: model.resume("chat.json"),
    ):
        with pytest.raises(InvalidInputError, match="still being given"):
            wish()
    assert ready.answer() == (PARIS, ("finished", "stop"))
    with pytest.raises(InvalidInputError, match="question is of type int"):
        model.ask(7)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="turn is of type str"):
        model.edit("0", "or?")  # type: ignore[arg-type]
    assert model.state == "ready"


def test_the_next_question_is_asked_from_a_slot(ready: Heard) -> None:
    """While the end of the first is told; its turns and its end come nevertheless."""
    model = ready.model
    states: list[str] = []

    def ask_next(state: str) -> None:
        states.append(state)
        if state == "ready" and len(states) == 2:
            model.ask("and of Japan?")

    model.state_changed.connect(ask_next)
    model.ask(FRANCE)
    assert ready.answer() == (PARIS, ("finished", "stop"))
    text, _ = ready.answer()
    assert "Tokyo" in text
    assert states == ["answering", "ready", "answering", "ready"]
    assert len(model.turns) == 4


def test_regenerate_edit_and_continue(ready: Heard) -> None:
    model = ready.model
    model.ask(FRANCE)
    ready.answer()
    model.regenerate()
    assert ready.answer()[0] == PARIS
    model.edit(-2, "What is the capital of Italy?")
    assert "Rome" in ready.answer()[0]
    assert len(model.turns) == 2
    model.ask("hello", Sampling(temperature=0, max_tokens=2))
    begun, end = ready.answer()
    assert end == ("finished", "length")
    model.continue_answer()
    rest, end = ready.answer()
    assert model.turns[-1].content == begun + rest


def test_text_that_has_gathered_comes_at_once(ready: Heard) -> None:
    """A window's thread that was busy is not flooded."""
    ready.model.ask("hello", SHORT_BABBLE)
    _, first = ready.until("piece")
    end_s = time.monotonic() + MOST_S
    while ready.model._worker.is_answering:  # without an event loop
        assert time.monotonic() < end_s
        time.sleep(0.01)
    time.sleep(0.05)
    with pytest.raises(InvalidInputError, match="still being given"):
        ready.model.ask(FRANCE)  # the end has not been told yet
    before, _ = ready.until("finished")
    assert [call[0] for call in before] == ["piece", "state_changed", "chat_changed"]
    assert ready.model.turns[-1].content == first[1] + before[0][1]


def test_the_event_loop_goes_on_meanwhile(heard: Heard) -> None:
    ticks_s: list[float] = []
    timer = QtCore.QTimer()
    timer.setTimerType(QtCore.Qt.TimerType.PreciseTimer)
    timer.timeout.connect(lambda: ticks_s.append(time.monotonic()))
    timer.start(5)
    heard.model.load()
    heard.until("loaded")
    heard.model.ask("hello", SHORT_BABBLE)
    heard.answer()
    timer.stop()
    assert len(ticks_s) > 10
    assert max(later - sooner for sooner, later in pairwise(ticks_s)) < MOST_GAP_S


class Button(QObject):
    """Emits what a button's click emits: whether it is checked."""

    clicked = Signal(bool)


def test_buttons_are_connected_to_slots(heard: Heard) -> None:
    buttons = {name: Button() for name in ("load", "new_chat", "regenerate", "continue_answer", "stop", "close")}
    for name, button in buttons.items():
        button.clicked.connect(getattr(heard.model, name))
    buttons["load"].clicked.emit(False)
    heard.until("loaded")
    heard.model.ask(FRANCE)
    heard.answer()
    buttons["regenerate"].clicked.emit(False)
    assert heard.answer() == (PARIS, ("finished", "stop"))
    buttons["new_chat"].clicked.emit(False)
    heard.until("chat_changed")
    assert heard.model.turns == ()
    buttons["stop"].clicked.emit(True)
    buttons["close"].clicked.emit(True)
    heard.until("closed")


# --- stop ---


def test_stop_ends_an_answer_and_keeps_what_came(ready: Heard) -> None:
    ready.model.ask("hello", BABBLE)
    _, first = ready.until("piece")
    ready.model.stop()
    rest, end = ready.answer()
    assert end == ("finished", "cancelled")
    assert ready.model.turns == (Message("user", "hello"), Message("assistant", first[1] + rest))
    assert ready.model.last_finish is None
    ready.model.ask(FRANCE)
    assert "Paris" in ready.answer()[0]


def test_stop_ends_the_reading_of_a_chat_and_gives_the_question_back(heard: Heard, slow_path: Path) -> None:
    heard.model.load(slow_path, EngineSettings(n_ctx=8192, n_threads=1))
    heard.until("loaded")
    heard.model.ask(LONG)
    heard.until("prefill_progress")
    heard.model.stop()
    before, end = heard.until("finished")
    told = [call for call in before if call[0] != "prefill_progress"]
    assert told == [("state_changed", "ready"), ("question_returned", LONG), ("chat_changed",)]
    assert end == ("finished", "cancelled")
    assert heard.model.turns == ()


def test_stop_ends_a_load(heard: Heard, slow_path: Path) -> None:
    heard.model.load(slow_path)
    heard.model.stop()
    heard.until("load_stopped")
    assert heard.model.state == "empty"
    heard.model.restart()
    assert heard.model.state == "loading"
    heard.until("loaded")
    assert heard.model.state == "ready"


def test_a_load_in_place_of_another(ready: Heard, slow_path: Path) -> None:
    ready.model.load(slow_path)
    ready.model.load()
    before, _ = ready.until("load_stopped")
    assert [call[1] for call in before if call[0] == "state_changed"] == ["loading"]
    before, _ = ready.until("loaded")
    assert [call[1] for call in before if call[0] == "state_changed"] == ["ready"]
    assert (ready.model.state, ready.model.model_name) == ("ready", "zephyr-tiny")
    ready.no_more()


# --- what goes wrong ---


def test_a_load_that_fails(heard: Heard, tmp_path: Path) -> None:
    model = heard.model
    model.load(tmp_path / "no-such.gguf")
    model.ask(FRANCE)
    before, failed = heard.until("failed")
    error = model.last_error
    assert isinstance(error, ModelNotFoundError)
    assert failed == ("failed", error.problem, error.remedy)
    before, failed = heard.until("failed")
    assert before == [("state_changed", "empty"), ("question_returned", FRANCE), ("chat_changed",)]
    assert failed == ("failed", error.problem, error.remedy)
    model.load()
    heard.until("loaded")
    assert model.state == "ready"


def test_a_file_that_fails_is_not_the_end_of_the_answer(ready: Heard, tmp_path: Path) -> None:
    ready.model.ask("hello", BABBLE)
    ready.until("piece")
    ready.model.save(tmp_path / "no-such-folder" / "chat.json")
    ready.until("failed")
    assert ready.model.turns == ()
    assert ready.model.state == "answering"
    ready.model.stop()
    assert ready.answer()[1] == ("finished", "cancelled")
    assert len(ready.model.turns) == 2


def test_a_crash_while_nobody_waits(ready: Heard) -> None:
    os.kill(engine_of(ready.model), signal.SIGKILL)
    before, crashed = ready.until("crashed")
    error = ready.model.last_error
    assert isinstance(error, EngineCrashed)
    assert error.signal == "SIGKILL"
    assert (before, crashed) == ([("state_changed", "crashed")], ("crashed", error.problem))
    ready.model.ask(FRANCE)
    before, _ = ready.until("loaded")
    assert ready.answer() == (PARIS, ("finished", "stop"))
    os.kill(engine_of(ready.model), signal.SIGKILL)
    ready.until("crashed")
    ready.model.restart()
    assert ready.model.state == "loading"
    ready.until("loaded")
    assert ready.model.state == "ready"


def test_a_crash_in_an_answer(ready: Heard) -> None:
    ready.model.ask("hello", BABBLE)
    ready.until("piece")
    os.kill(engine_of(ready.model), signal.SIGKILL)
    ends = {ready.until("failed", "crashed")[1][0], ready.until("failed", "crashed")[1][0]}
    assert ends == {"failed", "crashed"}
    assert ready.model.state == "crashed"
    assert len(ready.model.turns) == 2
    ready.model.ask(FRANCE)
    ready.until("loaded")
    assert "Paris" in ready.answer()[0]


# --- the chat ---


def test_a_chat_is_saved_and_resumed(ready: Heard, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    ready.model.ask(FRANCE)
    ready.answer()
    turns = ready.model.turns
    ready.model.save(str(path))
    assert ready.until("saved")[1] == ("saved", str(path))
    ready.model.new_chat("Answer.")
    ready.until("chat_changed")
    assert ready.model.turns == ()
    ready.model.resume(path)
    ready.until("chat_changed")
    assert ready.model.turns == turns
    (tmp_path / "other.json").write_text("{}")
    ready.model.resume(tmp_path / "other.json")
    ready.until("failed")
    assert ready.model.turns == turns


def test_turns_that_are_no_longer_shown_are_told(heard: Heard) -> None:
    heard.model.load(None, EngineSettings(n_ctx=512))
    counts = []
    for _ in range(4):
        heard.model.ask("hello " * 75)
        before, end = heard.until("finished", "failed")
        assert end[0] == "finished"
        counts += [call[1] for call in before if call[0] == "dropped"]
    assert counts
    assert all(count > 0 for count in counts)
