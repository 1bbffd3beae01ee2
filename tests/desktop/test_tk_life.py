"""TkModel: when it ends, and how its calls get on with Tk's loop, in a real window."""
# ruff: noqa: F811 — fixtures are imported, and named as parameters

from __future__ import annotations

import gc
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.desktop.tk_window import (  # noqa: F401 — fixtures
    BABBLE,
    FRANCE,
    PARIS,
    ScriptedWorker,
    Window,
    ready,
    root,
    scripted,
    window,
)
from tests.desktop.watching import MOST_S, is_gone, is_there
from zephyr_local import (
    Dropped,
    EngineError,
    InvalidInputError,
    Message,
)
from zephyr_local.desktop import events

if TYPE_CHECKING:
    import tkinter

    from zephyr_local.desktop.tk import TkModel

ROOT = Path(__file__).resolve().parent.parent.parent


def test_close(ready: Window) -> None:
    process_id = ready.engine
    ready.model.on_closed = lambda: (ready.called("on_closed"), ready.root.destroy())
    ready.model.close()
    ready.model.close()
    assert ready.model.state == "closed"
    ready.until("on_closed")
    assert not is_there(process_id)
    for wish in (lambda: ready.model.ask(FRANCE), ready.model.load, ready.model.restart, ready.model.new_chat):
        with pytest.raises(EngineError, match="closed"):
            wish()
    ready.model.stop()
    assert ready.model.state == "closed"


def test_the_window_destroyed_in_the_middle_of_an_answer(ready: Window, capfd: pytest.CaptureFixture[str]) -> None:
    process_id = ready.engine
    ready.model.ask("hello", BABBLE)
    ready.until("on_piece")
    ready.calls.clear()
    ready.root.destroy()
    assert is_gone(process_id)
    assert ready.model.wait_closed(MOST_S)
    ready.run_for()
    assert not ready.calls
    assert ready.model.state == "closed"
    with pytest.raises(EngineError, match="closed"):
        ready.model.ask(FRANCE)
    assert capfd.readouterr().err == ""  # where Tcl tells of a timer whose call is gone


def test_a_call_that_destroys_the_window_is_the_last(window: Window) -> None:
    def on_chat_changed(_turns: object) -> None:
        window.calls.clear()
        window.root.destroy()

    window.model.on_chat_changed = on_chat_changed
    window.model.load()
    window.until("on_loaded")
    window.model.ask(FRANCE)
    window.root.mainloop()
    while window.model.state != "closed":
        window.root.mainloop()
    assert window.model.wait_closed(MOST_S)
    assert not window.calls


def test_a_part_of_a_window(root: tkinter.Tk, capfd: pytest.CaptureFixture[str]) -> None:
    import tkinter

    from zephyr_local.desktop.tk import TkModel

    frame = tkinter.Frame(root)
    inner, beside = tkinter.Label(frame), tkinter.Label(root)
    window = Window(root, TkModel(frame))
    window.model.load()
    window.until("on_loaded")
    process_id = window.engine
    inner.destroy()
    beside.destroy()
    frame.bind("<Destroy>", lambda _event: None)  # of the application, and in nobody's way
    window.model.ask(FRANCE)
    assert window.answer()[0] == PARIS
    frame.destroy()
    assert is_gone(process_id)
    window.run_for()
    assert not window.calls
    assert window.errors == []
    assert capfd.readouterr().err == ""


def test_a_callback_that_fails_is_reported_and_the_rest_comes(ready: Window) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("of the application")

    ready.model.on_piece = fail
    ready.model.on_chat_changed = fail
    ready.model.ask(FRANCE)
    _, end = ready.until("on_finished")
    assert end == ("on_finished", "stop")
    assert {str(error) for error in ready.errors} == {"of the application"}
    assert len(ready.errors) >= 2
    ready.errors.clear()


def test_a_model_that_is_dropped_closes(root: tkinter.Tk, capfd: pytest.CaptureFixture[str]) -> None:
    from zephyr_local.desktop.tk import TkModel

    window = Window(root, TkModel(root))
    window.model.load()
    window.until("on_loaded")
    process_id, there = window.engine, weakref.ref(window.model)
    del window.model
    gc.collect()
    assert there() is None
    assert is_gone(process_id)
    window.run_for()
    assert not window.calls
    assert capfd.readouterr().err == ""


def test_a_call_may_show_a_dialog_and_the_rest_comes_meanwhile(ready: Window) -> None:
    import tkinter

    is_read = tkinter.BooleanVar(ready.root)
    seen: list[str] = []

    def on_piece(_text: str) -> None:
        if not seen:
            seen.append("shown")
            ready.root.wait_variable(is_read)  # as a dialog does
            seen.append("read")

    def on_finished(reason: str) -> None:
        seen.append(reason)
        is_read.set(True)
        ready.root.after_idle(lambda: ready.called("end"))

    ready.model.on_piece, ready.model.on_finished = on_piece, on_finished
    ready.model.ask(FRANCE)
    ready.until("end")
    assert seen == ["shown", "stop", "read"]


def test_text_is_joined(scripted: tuple[TkModel, ScriptedWorker], root: tkinter.Tk) -> None:
    model, worker = scripted
    seen: list[object] = []
    model.on_piece, model.on_prefill = seen.append, lambda done, total: seen.append((done, total))
    for event in (events.PrefillProgress(1, 2), *map(events.TextArrived, "abc"), events.PrefillProgress(2, 2)):
        worker.deliver(event)
    worker.deliver(events.TextArrived("d"))
    while len(seen) < 4:
        root.update()
    assert seen == [(1, 2), "abc", (2, 2), "d"]


def test_a_burst_leaves_the_window_its_turns(scripted: tuple[TkModel, ScriptedWorker], root: tkinter.Tk) -> None:
    model, worker = scripted
    seen: list[str] = []

    def on_saved(path: str) -> None:
        seen.append(path)
        time.sleep(0.002)

    def tick() -> None:
        seen.append("tick")
        root.after(1, tick)

    model.on_saved = on_saved
    for number in range(100):
        worker.deliver(events.ChatSaved(str(number)))
    tick()
    while "99" not in seen:
        root.update()
    assert [one for one in seen if one != "tick"] == [str(number) for number in range(100)]
    assert "tick" in seen[seen.index("0") : seen.index("50")]
    assert "tick" in seen[seen.index("50") : seen.index("99")]


def test_how_many_messages_were_dropped(scripted: tuple[TkModel, ScriptedWorker], root: tkinter.Tk) -> None:
    model, worker = scripted
    seen: list[int] = []
    model.on_dropped = seen.append
    worker.deliver(Dropped((Message("user", "a"), Message("assistant", "b")), 100, 50))
    while not seen:
        root.update()
    assert seen == [2]


def test_a_save_that_fails_ends_no_answer_and_no_load(
    scripted: tuple[TkModel, ScriptedWorker], root: tkinter.Tk
) -> None:
    model, worker = scripted
    seen: list[str] = []
    model.on_failed = lambda problem, _remedy: seen.append(f"{problem}: {model.state}")
    model.on_finished = lambda _reason: seen.append(model.state)
    error = EngineError("no", "Do it again")
    model.load()
    worker.deliver(events.Failed("chat", error, (), None))
    worker.deliver(events.Failed("load", error, (), None))
    while len(seen) < 2:
        root.update()
    model.ask("hello")
    worker.deliver(events.Failed("chat", error, (), None))
    worker.deliver(events.Finished("stop", None, (), None))
    with pytest.raises(InvalidInputError, match="still being given"):
        model.ask("and?")  # nobody was told of the end yet
    while len(seen) < 4:
        root.update()
    model.ask("and?")
    worker.deliver(events.Failed("answer", error, (), None))
    while len(seen) < 5:
        root.update()
    assert seen == ["no: loading", "no: empty", "no: answering", "empty", "no: empty"]


def test_a_window_that_is_garbage_is_freed_on_any_thread(display: str, root: tkinter.Tk) -> None:
    """Its interpreter is not: Tcl would abort the process."""
    program = f"""
import gc, threading, tkinter, weakref
from zephyr_local.desktop.tk import TkModel
gc.disable()
class Application:
    def __init__(self):
        self.root = tkinter.Tk(screenName={display!r})
        self.root.application = self  # a cycle
        self.model = TkModel(self.root)
application = Application()
application.root.update()
application.root.destroy()
there = weakref.ref(application)
del application
collecting = threading.Thread(target=gc.collect)
collecting.start()
collecting.join()
print(there())
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "None\n", "")
