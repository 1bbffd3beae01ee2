"""What the tests of the Qt adapter watch a model with. No window: a QCoreApplication has the event loop.

They run with the binding that ``qt_binding`` takes; test_qt_bindings.py runs them once more with the other.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.desktop.watching import MOST_S
from zephyr_local import Sampling
from zephyr_local.desktop.qt import ZephyrModel
from zephyr_local.desktop.qt_binding import BINDING, QCoreApplication, QObject

ROOT = Path(__file__).resolve().parent.parent.parent
QtCore: Any = importlib.import_module(f"{BINDING}.QtCore")

FRANCE = "What is the capital of France?"
PARIS = "The capital of France is Paris."
BABBLE = Sampling(temperature=100, top_k=0, top_p=1, seed=1)
SIGNALS = (
    *("loaded", "load_progress", "load_stopped", "prefill_progress", "piece", "finished", "failed", "crashed"),
    *("question_returned", "chat_changed", "dropped", "saved", "closed", "state_changed"),
)

Call = tuple[Any, ...]


class Heard:
    """A model, and the signals that came, each with its arguments."""

    def __init__(self, model: ZephyrModel) -> None:
        self.model = model
        self.calls: deque[Call] = deque()
        self.is_on_thread: set[bool] = set()
        self._loop = QtCore.QEventLoop()
        for name in SIGNALS:
            # Directly: on the thread that the signal comes on.
            getattr(model, name).connect(
                lambda *arguments, name=name: self._hear(name, *arguments), QtCore.Qt.ConnectionType.DirectConnection
            )

    def _hear(self, *call: Any) -> None:
        self.is_on_thread.add(QtCore.QThread.currentThread() == self.model.thread())
        self.calls.append(call)
        self._loop.quit()

    def until(self, *names: str) -> tuple[list[Call], Call]:
        """Run the event loop until one of these signals; what came before it, and it."""
        before: list[Call] = []
        while True:
            while not self.calls:
                run(self._loop)
            call = self.calls.popleft()
            if call[0] in names:
                return before, call
            before.append(call)

    def answer(self) -> tuple[str, Call]:
        """The text of the answer, and its end."""
        before, end = self.until("finished", "failed")
        return "".join(call[1] for call in before if call[0] == "piece"), end

    def no_more(self, wait_ms: int = 200) -> None:
        spin(wait_ms)
        assert not self.calls


def run(loop: Any) -> None:
    """Run an event loop until it is told to quit, not forever."""
    watchdog = QtCore.QTimer()
    watchdog.setSingleShot(True)
    late: list[bool] = []
    watchdog.timeout.connect(lambda: (late.append(True), loop.quit()))
    watchdog.start(int(MOST_S * 1000))
    loop.exec()
    watchdog.stop()
    assert not late


def spin(wait_ms: int) -> None:
    """Run the event loop for a while."""
    loop = QtCore.QEventLoop()
    QtCore.QTimer.singleShot(wait_ms, loop.quit)
    loop.exec()


def destroy(thing: QObject) -> None:
    """Destroy what C++ has of an object now, as the end of its parent does."""
    if BINDING == "PySide6":
        importlib.import_module("shiboken6").delete(thing)
    else:
        importlib.import_module("PyQt6.sip").delete(thing)


@contextlib.contextmanager
def at_once(model: ZephyrModel) -> Iterator[None]:
    """What is wished for meanwhile meets the worker together, however slow this process is."""
    is_said = threading.Event()
    model._worker._loop.call_soon_threadsafe(is_said.wait, MOST_S)
    try:
        yield
    finally:
        is_said.set()


def engine_of(model: ZephyrModel) -> int:
    process_id = model.engine_process_id
    assert process_id is not None
    return process_id


@pytest.fixture(scope="session")
def application() -> QCoreApplication:
    return QCoreApplication.instance() or QCoreApplication([])


@pytest.fixture
def heard(application: QCoreApplication) -> Iterator[Heard]:
    heard = Heard(ZephyrModel())
    yield heard
    heard.model.close()
    assert heard.model.wait_closed(MOST_S)
    assert heard.is_on_thread <= {True}


@pytest.fixture(scope="module")
def loaded(application: QCoreApplication) -> Iterator[Heard]:
    heard = Heard(ZephyrModel())
    heard.model.load()
    heard.until("loaded")
    yield heard
    heard.model.close()
    assert heard.model.wait_closed(MOST_S)
    assert heard.is_on_thread == {True}


@pytest.fixture
def ready(loaded: Heard) -> Heard:
    """With zephyr-tiny loaded, which every test leaves so, and a new chat."""
    loaded.model.new_chat()
    loaded.until("chat_changed")
    assert (loaded.model.state, loaded.model.model_name) == ("ready", "zephyr-tiny")
    loaded.calls.clear()
    loaded.model._status.last_error = None
    return loaded
