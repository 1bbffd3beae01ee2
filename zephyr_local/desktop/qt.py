"""A model and a chat with it for Qt: the worker's events as signals on the model's thread, its methods as slots.

With PySide6 or PyQt6, whichever :mod:`zephyr_local.desktop.qt_binding` takes.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from zephyr_local.chat_fit import Dropped
from zephyr_local.chat_types import Finish, Message
from zephyr_local.desktop import events
from zephyr_local.desktop.qt_binding import QCoreApplication, QObject, Qt, Signal, Slot, qml, qml_slot, qt_property
from zephyr_local.desktop.qt_chat import ChatModel, ChatRow, ChatRows
from zephyr_local.desktop.status import ModelStatus, State, next_event
from zephyr_local.desktop.worker import ModelWorker
from zephyr_local.errors import ZephyrError
from zephyr_local.settings import EngineSettings, Sampling, require_kind

__all__ = ["ChatModel", "State", "ZephyrModel", "register_qml"]

_T = TypeVar("_T")


_END_S: Final = 10.0
"""How long the application's end waits for the engine's. A killed process is gone long before."""

# When Python has ended its threads, the bindings destroy what is left of Qt. No signal must be on its way then, and for
# the worker it is too late to do anything but fail; the engine reads the end from its stdin.
_emitting: Final = threading.Lock()
_interpreter_ends: Final = threading.Event()


@atexit.register  # after the bindings' own, and so called before these
def _let_go() -> None:
    with _emitting:
        _interpreter_ends.set()


class _Waker(QObject):
    wake = Signal()


class _Arrivals:
    """Events on their way from the worker's thread to the model's.

    The worker holds this, and this no model, so that a model that is dropped can go.
    """

    def __init__(self, status: ModelStatus) -> None:
        self.waker: _Waker | None = _Waker()
        self._status = status
        self._events: deque[events.Event] = deque()
        self._is_wake_due = False
        self.worker = ModelWorker(self._deliver)

    def _deliver(self, event: events.Event) -> None:
        self._events.append(event)
        waker = self.waker
        if not self._is_wake_due and waker is not None:
            self._is_wake_due = True
            with _emitting:
                if not _interpreter_ends.is_set():
                    waker.wake.emit()

    def take(self) -> Iterator[events.Event]:
        """What has arrived."""
        self._is_wake_due = False  # first: what arrives from here on wakes again
        while self._events:
            yield next_event(self._events)

    def owner_gone(self) -> None:
        """The model is no more, on Python's side or on C++'s."""
        self.waker = None
        self._status.close_asked()
        if not _interpreter_ends.is_set():
            self.worker.close()


class ZephyrModel(QObject):
    """A model, and one chat with it. Every slot returns at once; what comes of it comes as signals.

    For its own thread (``thread()``) alone, on which the signals come, too. What is wrong with a call itself is raised
    at once, and thrown in QML: InvalidInputError while an answer is given, EngineError after a close.

    Give it a parent or keep it: one that is dropped or destroyed is closed, and so is every one when the application
    ends.
    """

    loaded = Signal(str)
    """The model's name; also where one is ready again after a crash."""
    load_progress = Signal(float)
    """How much of a load is done, 0 to 1."""
    load_stopped = Signal()
    """A load was ended by ``stop``, or by another load."""
    prefill_progress = Signal(int, int)
    """How many tokens of the chat are read, and of how many, before the answer begins."""
    piece = Signal(str)
    """More of the answer."""
    finished = Signal(str)
    """Why an answer is over: ``stop``, ``length`` or ``cancelled``."""
    failed = Signal(str, str)
    """The problem and the remedy of what could not be done."""
    crashed = Signal(str)
    """How the engine's process ended; the next question starts it again."""
    question_returned = Signal(str)
    """A question that nothing came of, before ``finished`` or ``failed``."""
    chat_changed = Signal()
    """``turns`` are others now: before ``finished`` or ``failed``, and where another chat is opened."""
    dropped = Signal(int)
    """How many messages the model is no longer shown."""
    saved = Signal(str)
    """The path of the file that the chat lies in now."""
    closed = Signal()
    """The engine's process has ended after ``close``."""
    state_changed = Signal(str)
    """``state``; before the signal that says why."""
    rows_changed = Signal()
    """For :class:`ChatModel`: ``rows`` are others now."""

    def __init__(self, parent: QObject | None = None) -> None:
        """Nothing is loaded yet."""
        super().__init__(parent)
        self._status = ModelStatus()
        self._told_state: State = "empty"
        self._rows = ChatRows()
        self._arrivals = _Arrivals(self._status)
        self._worker = self._arrivals.worker
        assert self._arrivals.waker is not None
        self._arrivals.waker.wake.connect(self._take_arrivals, Qt.ConnectionType.QueuedConnection)
        self.destroyed.connect(self._arrivals.owner_gone)
        weakref.finalize(self, self._arrivals.owner_gone).atexit = False
        application = QCoreApplication.instance()
        if application is not None:  # directly: the loop of another thread may have ended before
            application.aboutToQuit.connect(self._end_with_application, Qt.ConnectionType.DirectConnection)

    # --- what an application wishes ---

    def load(
        self,
        path: str | os.PathLike[str] | None = None,
        settings: EngineSettings | None = None,
        template: str | os.PathLike[str] | None = None,
    ) -> None:
        """Load a model in place of the one that is there; the arguments are ``Zephyr``'s. The chat stays."""
        self._worker.load(_unless_checked(path), settings, template=template)
        self._status.load_asked()
        self._tell_state()

    def restart(self) -> None:
        """Start an engine that crashed, or a load that failed, again now; the next question would do it, too."""
        self._worker.restart()
        self._status.restart_asked()
        self._tell_state()

    def ask(self, text: str, sampling: Sampling | None = None) -> None:
        """Ask; a load that is under way is waited for."""
        require_kind(text, str, "the question")
        self._begin(lambda: self._worker.ask(text, sampling))
        self._rows.ask(text)
        self._tell_begun()

    def regenerate(self) -> None:
        """Answer the last question again; the answer before stays as a branch of the chat."""
        self._begin(self._worker.regenerate)
        self._rows.regenerate()
        self._tell_begun()

    def continue_answer(self) -> None:
        """Go on with the last answer, which was cut short."""
        self._begin(self._worker.continue_answer)
        self._rows.continue_answer()
        self._tell_begun()

    def edit(self, index: int, text: str) -> None:
        """Ask something else in place of the question at turn ``index``; what followed it stays as a branch."""
        require_kind(index, int, "the turn")
        require_kind(text, str, "the question")
        self._begin(lambda: self._worker.edit(index, text))
        self._rows.ask(text, index)
        self._tell_begun()

    def stop(self) -> None:
        """End the answer that is being given, and the load; what came of an answer is kept."""
        self._worker.stop()

    def new_chat(self, system: str | None = None) -> None:
        """Begin another chat; save the one before, where it is wanted."""
        self._status.require_idle()
        self._worker.new_chat(system=_unless_checked(system))

    def resume(self, path: str | os.PathLike[str]) -> None:
        """Go on with the chat that :meth:`save` wrote."""
        self._status.require_idle()
        self._worker.resume(path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the chat with all its branches to a file, whole or not at all."""
        self._worker.save(path)

    def close(self) -> None:
        """End what runs and free the model, soon; ``closed`` comes when that is done. Closing twice is fine."""
        self._end()
        if self._arrivals.waker is not None:
            self._tell_state()

    def wait_closed(self, timeout_s: float | None = None) -> bool:
        """Wait until a close is done; whether it is. For after the event loop's end."""
        return self._worker.wait_closed(timeout_s)

    _load = qml_slot("load", (), (str,))
    _restart = qml_slot("restart", ())
    _ask = qml_slot("ask", (str,))
    _regenerate = qml_slot("regenerate", ())
    _continue_answer = qml_slot("continue_answer", ())
    _edit = qml_slot("edit", (int, str))
    _stop = qml_slot("stop", ())
    _new_chat = qml_slot("new_chat", (), (str,))
    _resume = qml_slot("resume", (str,))
    _save = qml_slot("save", (str,))
    _close = qml_slot("close", ())

    # --- what is known ---

    state: State = qt_property(str, lambda self: self._status.state, state_changed)
    """``answering`` begins with the question, also while a load is waited for; ``crashed`` lasts until a load's end."""
    model_name: str = qt_property(str, lambda self: self._status.model_name, loaded)
    """What the model that was loaded last calls itself; empty before."""
    n_ctx: int = qt_property(int, lambda self: self._status.n_ctx, loaded)
    """Tokens of its context; 0 before."""
    load_share: float = qt_property(float, lambda self: self._status.load_share, load_progress)
    """How much of the last load is done, 0 to 1."""

    @property
    def notices(self) -> tuple[str, ...]:
        """Lines for the user about what was assumed when the model was loaded."""
        return self._status.notices

    @property
    def last_error(self) -> ZephyrError | None:
        """What ``failed`` or ``crashed`` told last."""
        return self._status.last_error

    @property
    def last_finish(self) -> Finish | None:
        """What the last answer cost; None where it was stopped or failed."""
        return self._status.last_finish

    @property
    def turns(self) -> tuple[Message, ...]:
        """The chat's turns, as of the last ``chat_changed``."""
        return self._status.turns

    @property
    def rows(self) -> tuple[ChatRow, ...]:
        """What :class:`ChatModel` shows."""
        return self._rows.rows

    @property
    def engine_process_id(self) -> int | None:
        """The engine's process; None where there is none now."""
        return self._worker.engine_process_id

    # --- how an answer begins ---

    def _begin(self, ask: Callable[[], None]) -> None:
        self._status.require_idle()
        ask()
        self._status.answer_asked()

    def _tell_begun(self) -> None:
        self.rows_changed.emit()
        self._tell_state()

    # --- events ---

    @Slot()
    def _take_arrivals(self) -> None:
        for event in self._arrivals.take():
            self._status.take(event)  # first: who is told may ask the next question
            self._take(event)

    def _take(self, event: events.Event) -> None:
        match event:
            case events.TextArrived(text):
                self._rows.add(text)
                self.rows_changed.emit()
                self.piece.emit(text)
            case events.PrefillProgress(done, total):
                self.prefill_progress.emit(done, total)
            case events.LoadProgress(share):
                self._tell_state()
                self.load_progress.emit(share)
            case events.Loaded(model_name):
                self._tell_state()
                self.loaded.emit(model_name)
            case events.LoadStopped():
                self._tell_state()
                self.load_stopped.emit()
            case events.Finished(reason):
                self._tell_end(event, is_cut=reason != "stop")
                self.finished.emit(reason)
            case events.Failed(of, error):
                if of == "answer":
                    self._tell_end(event, is_cut=True)
                self._tell_state()
                self.failed.emit(error.problem, error.remedy)
            case events.Crashed(error):
                self._tell_state()
                self.crashed.emit(error.problem)
            case events.ChatOpened(turns):
                self._rows.open(turns)
                self.rows_changed.emit()
                self.chat_changed.emit()
            case events.ChatSaved(path):
                self.saved.emit(path)
            case Dropped():
                self.dropped.emit(len(event.messages))
            case events.Closed():
                self.closed.emit()

    def _tell_end(self, event: events.Finished | events.Failed, is_cut: bool) -> None:
        self._rows.end(event.turns, is_cut)
        self.rows_changed.emit()
        self._tell_state()
        if event.question is not None:
            self.question_returned.emit(event.question)
        self.chat_changed.emit()

    def _tell_state(self) -> None:
        if (state := self._status.state) != self._told_state:
            self._told_state = state
            self.state_changed.emit(state)

    @Slot()
    def _end_with_application(self) -> None:
        """The application's thread: no engine's process may be left, nor must its end be waited for without end."""
        self._end()
        self._worker.wait_closed(_END_S)

    def _end(self) -> None:
        self._status.close_asked()
        self._worker.close()


def register_qml(uri: str = "ZephyrLocal", major: int = 1, minor: int = 0) -> None:
    """Make ``ZephyrModel`` and ``ChatModel`` known to QML, for ``import ZephyrLocal 1.0``."""
    module = qml()
    for kind in (ZephyrModel, ChatModel):
        module.qmlRegisterType(kind, uri, major, minor, kind.__name__)


def _unless_checked(value: _T) -> _T | None:
    """None for a bool, which a button's ``clicked`` hands to the slot that it is connected to."""
    return None if isinstance(value, bool) else value
