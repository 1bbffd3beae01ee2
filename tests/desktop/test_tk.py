"""TkModel: the worker's events on Tk's own thread, in a real window."""
# ruff: noqa: F811 — fixtures are imported, and named as parameters

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.desktop.tk_window import BABBLE, FRANCE, PARIS, Window, ready, root, window  # noqa: F401 — fixtures
from tests.engine.conftest import slow_path  # noqa: F401 — a fixture
from zephyr_local import (
    EngineCrashed,
    EngineSettings,
    InvalidInputError,
    Message,
    ModelNotFoundError,
    Sampling,
)

ROOT = Path(__file__).resolve().parent.parent.parent
LONG = "x " * 3000


def test_the_package_imports_no_toolkit() -> None:
    program = (
        "import sys, zephyr_local.desktop, zephyr_local.desktop.worker;"
        "assert not {'tkinter', '_tkinter', 'PySide6', 'PyQt6'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_load_and_an_answer(window: Window) -> None:
    model = window.model
    assert (model.state, model.model_name, model.n_ctx, model.turns) == ("empty", "", 0, ())
    model.load()
    assert model.state == "loading"
    before, loaded = window.until("on_loaded")
    shares = [call[1] for call in before]
    assert {call[0] for call in before} == {"on_load_progress"}
    assert shares == sorted(shares)
    assert loaded == ("on_loaded", "zephyr-tiny")
    assert (model.state, model.model_name, model.n_ctx, model.notices) == ("ready", "zephyr-tiny", 1024, ())
    model.ask(FRANCE)
    assert model.state == "answering"
    before, end = window.until("on_finished", "on_failed")
    assert "".join(call[1] for call in before if call[0] == "on_piece") == PARIS
    turns = (Message("user", FRANCE), Message("assistant", PARIS))
    assert before[-1] == ("on_chat_changed", turns)
    assert end == ("on_finished", "stop")
    assert (model.state, model.turns, model.last_error) == ("ready", turns, None)
    assert model.last_finish is not None
    assert model.last_finish.reason == "stop"
    assert window.threads == {threading.main_thread()}


def test_a_question_waits_for_the_load_and_another_is_refused(window: Window) -> None:
    window.model.load()
    window.model.ask(FRANCE)
    assert window.model.state == "answering"
    with pytest.raises(InvalidInputError, match="still being given"):
        window.model.ask("and?")
    assert window.model.state == "answering"
    assert window.answer()[0] == PARIS


def test_a_question_may_be_asked_where_an_answer_is_over(ready: Window) -> None:
    asked = iter(["and of Japan?", "and of Italy?"])

    def on_finished(reason: str) -> None:
        assert ready.model.state == "ready"
        if (question := next(asked, None)) is not None:
            ready.model.ask(question)
        else:
            ready.called("all")

    ready.model.on_finished = on_finished
    ready.model.ask(FRANCE)
    ready.until("all")
    assert [turn.content for turn in ready.model.turns[::2]] == [FRANCE, "and of Japan?", "and of Italy?"]


def test_everything_that_the_worker_does_with_a_chat(ready: Window, tmp_path: Path) -> None:
    model, path = ready.model, tmp_path / "chat.json"
    model.ask(FRANCE)
    ready.answer()
    model.regenerate()
    assert ready.answer()[0] == PARIS
    model.edit(0, "hello", Sampling(temperature=0, max_tokens=2))
    begun, end = ready.answer()
    assert end == ("on_finished", "length")
    model.continue_answer()
    rest, _ = ready.answer()
    assert model.turns == (Message("user", "hello"), Message("assistant", begun + rest))
    kept = model.turns
    model.save(path)
    assert ready.until("on_saved")[1] == ("on_saved", str(path))
    model.new_chat(system="Answer.")
    assert ready.until("on_chat_changed")[1] == ("on_chat_changed", ())
    model.resume(path)
    assert ready.until("on_chat_changed")[1] == ("on_chat_changed", kept)
    assert model.turns == kept
    model.save(tmp_path / "no-such-folder" / "chat.json")
    ready.until("on_failed")
    assert model.state == "ready"


def test_stop_ends_an_answer_and_keeps_what_came(ready: Window) -> None:
    ready.model.ask("hello", BABBLE)
    _, (_, first) = ready.until("on_piece")
    ready.model.stop()
    rest, end = ready.answer()
    assert end == ("on_finished", "cancelled")
    assert ready.model.turns == (Message("user", "hello"), Message("assistant", first + rest))
    assert ready.model.last_finish is None


def test_stop_ends_the_reading_of_a_chat_and_gives_the_question_back(window: Window, slow_path: Path) -> None:
    window.model.load(slow_path, EngineSettings(n_ctx=8192, n_threads=1))
    window.until("on_loaded")
    window.model.ask(LONG)
    _, (_, done, total) = window.until("on_prefill")
    assert 0 < done < total
    window.model.stop()
    before, end = window.until("on_finished")
    assert "on_piece" not in {call[0] for call in before}
    assert before[-2:] == [("on_question_returned", LONG), ("on_chat_changed", ())]
    assert end == ("on_finished", "cancelled")
    assert (window.model.turns, window.model.state) == ((), "ready")


def test_stop_ends_a_load_and_restart_begins_it_again(window: Window, slow_path: Path) -> None:
    window.model.load(slow_path)
    window.model.stop()
    window.until("on_load_stopped")
    assert window.model.state == "empty"
    window.model.restart()
    assert window.model.state == "loading"
    window.until("on_loaded")


def test_a_load_that_fails(window: Window, tmp_path: Path) -> None:
    window.model.load(tmp_path / "no-such.gguf")
    _, (_, problem, remedy) = window.until("on_failed")
    error = window.model.last_error
    assert isinstance(error, ModelNotFoundError)
    assert (problem, remedy) == (error.problem, error.remedy)
    assert window.model.state == "empty"


@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
def test_an_engine_that_is_killed_is_told_of_and_the_next_question_answered(ready: Window) -> None:
    os.kill(ready.engine, signal.SIGKILL)
    before, (_, problem) = ready.until("on_crashed")
    assert before == []
    assert "SIGKILL" in problem
    assert isinstance(ready.model.last_error, EngineCrashed)
    assert ready.model.state == "crashed"
    ready.model.ask(FRANCE)
    assert ready.answer() == (PARIS, ("on_finished", "stop"))
    assert ready.model.state == "ready"
    ready.model.ask("hello", BABBLE)
    ready.until("on_piece")
    os.kill(ready.engine, signal.SIGKILL)
    before, _ = ready.until("on_failed")
    assert "on_crashed" in {call[0] for call in before}
    assert ready.model.state == "crashed"
    ready.model.restart()
    assert ready.model.state == "loading"
    ready.until("on_loaded")
    ready.model.ask(FRANCE)
    assert "Paris" in ready.answer()[0]


def test_a_callback_that_does_not_exist_is_refused(window: Window) -> None:
    with pytest.raises(AttributeError, match="on_prefill,"):
        window.model.on_prefill_progress = print  # type: ignore[attr-defined]
    window.model.on_prefill = print
