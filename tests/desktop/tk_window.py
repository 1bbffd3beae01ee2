"""What TkModel is watched with: a real window of Tk, and the calls that came."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import skip_or_fail
from tests.desktop.watching import MOST_S
from zephyr_local import Sampling
from zephyr_local.desktop import events

if TYPE_CHECKING:
    import tkinter

    from zephyr_local.desktop.tk import TkModel

FRANCE = "What is the capital of France?"
PARIS = "The capital of France is Paris."
BABBLE = Sampling(temperature=100, top_k=0, top_p=1, seed=1)
CALLBACKS = (
    *("on_loaded", "on_load_progress", "on_load_stopped", "on_prefill", "on_piece", "on_finished", "on_failed"),
    *("on_crashed", "on_question_returned", "on_chat_changed", "on_dropped", "on_saved", "on_closed"),
)


class Window:
    """A window of Tk, a model of it, and the calls that came."""

    def __init__(self, root: tkinter.Tk, model: TkModel) -> None:
        self.root, self.model = root, model
        self.calls: deque[tuple[Any, ...]] = deque()
        self.threads: set[threading.Thread] = set()
        self.errors: list[BaseException] = []
        root.report_callback_exception = lambda _kind, error, _traceback: self.errors.append(error)
        for name in CALLBACKS:
            setattr(model, name, partial(self.called, name))

    def called(self, name: str, *arguments: object) -> None:
        self.threads.add(threading.current_thread())
        self.calls.append((name, *arguments))
        self.root.quit()

    def until(self, *names: str) -> tuple[list[tuple[Any, ...]], tuple[Any, ...]]:
        """Run Tk's loop until one of these calls; what came before it, and it."""
        before: list[tuple[Any, ...]] = []
        while True:
            while not self.calls:
                self._run_loop()
            if self.calls[0][0] in names:
                return before, self.calls.popleft()
            before.append(self.calls.popleft())

    def _run_loop(self) -> None:
        watchdog = self.root.after(int(MOST_S * 1000), self._too_long)
        self.root.mainloop()
        self.root.after_cancel(watchdog)
        assert not any(isinstance(error, TimeoutError) for error in self.errors)

    def _too_long(self) -> None:
        self.errors.append(TimeoutError())
        self.calls.append(("too long",))
        self.root.quit()

    def answer(self) -> tuple[str, tuple[Any, ...]]:
        """The text of the answer, and its end."""
        before, end = self.until("on_finished", "on_failed")
        return "".join(call[1] for call in before if call[0] == "on_piece"), end

    def run_for(self, wait_s: float = 0.3) -> None:
        """Let Tk work for a moment."""
        end_s = time.monotonic() + wait_s
        while time.monotonic() < end_s:
            self.root.update()
            time.sleep(0.005)

    @property
    def engine(self) -> int:
        process_id = self.model.engine_process_id
        assert process_id is not None
        return process_id


@pytest.fixture
def root(display: str) -> Iterator[tkinter.Tk]:
    try:
        import tkinter
    except ImportError:
        skip_or_fail("tkinter", "apt-get install python3-tk")
    root = tkinter.Tk(screenName=display)
    yield root
    with contextlib.suppress(tkinter.TclError):  # a test has destroyed it
        root.destroy()


@pytest.fixture
def window(root: tkinter.Tk) -> Iterator[Window]:
    from zephyr_local.desktop.tk import TkModel

    window = Window(root, TkModel(root))
    yield window
    assert window.errors == []
    assert window.threads <= {threading.main_thread()}
    window.model.close()
    assert window.model.wait_closed(MOST_S)


@pytest.fixture
def ready(window: Window) -> Window:
    """With zephyr-tiny loaded."""
    window.model.load()
    window.until("on_loaded")
    return window


class ScriptedWorker:
    """Stands where the worker stands, and delivers what a test says."""

    def __init__(self, deliver: Callable[[events.Event], object]) -> None:
        self.deliver = deliver
        self.engine_process_id: int | None = None
        workers.append(self)

    def load(self, *_: object, template: object = None) -> None:
        pass

    def ask(self, *_: object) -> None:
        pass

    def close(self) -> None:
        pass


workers: list[ScriptedWorker] = []


@pytest.fixture
def scripted(root: tkinter.Tk, monkeypatch: pytest.MonkeyPatch) -> tuple[TkModel, ScriptedWorker]:
    from zephyr_local.desktop import tk

    monkeypatch.setattr(tk, "ModelWorker", ScriptedWorker)
    model = tk.TkModel(root)
    return model, workers.pop()
