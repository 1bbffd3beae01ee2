"""A model and a chat with it for Tk: the worker's events as calls on Tk's thread, by ``after``."""

from __future__ import annotations

import os
import sys
import time
import tkinter
import weakref
from collections import deque
from collections.abc import Callable
from typing import Final

from zephyr_local.chat_fit import Dropped, Policy
from zephyr_local.chat_types import Finish, Message
from zephyr_local.desktop import events
from zephyr_local.desktop.status import ModelStatus, State, next_event
from zephyr_local.desktop.worker import ModelWorker
from zephyr_local.errors import ZephyrError
from zephyr_local.settings import EngineSettings, Sampling

_BUSY_MS: Final = 15  # between two looks, while something runs
_IDLE_MS: Final = 100
_SOON_MS: Final = 1  # where one look did not do: the window comes in between
_LOOK_S: Final = 0.008  # no new call is begun in a look that has taken so long

# Kept for good: Tcl aborts the process where an interpreter is freed on another thread than its own, and a window that
# is part of a cycle is freed on whatever thread the garbage collector happens to run, the worker's among them.
_interpreters: set[object] = set()


_CALLBACKS: Final = frozenset(
    f"on_{what}"
    for what in (
        *("loaded", "load_progress", "load_stopped", "prefill", "piece", "finished", "failed", "crashed"),
        *("question_returned", "chat_changed", "dropped", "saved", "closed"),
    )
)


def _nothing(*_: object) -> None:
    pass


def _call_if_there(reference: weakref.WeakMethod[Callable[[], None]]) -> None:
    if (method := reference()) is not None:
        method()


class TkModel:
    """A model, and one chat with it. Every method returns at once; what comes of it comes as calls of ``on_...``.

    For Tk's thread alone, on which the calls come, too. What is wrong with a call itself is raised at once:
    InvalidInputError while an answer is given, EngineError after a close. An exception of a callback goes to
    ``report_callback_exception``, as Tk's own callbacks' do, and what follows still comes.

    Keep it, as an attribute of the window: one that is dropped is closed. So is one whose widget is destroyed; nothing
    is called after that.
    """

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse a callback that does not exist, which would never be called."""
        if name.startswith("on_") and name not in _CALLBACKS:
            raise AttributeError(f"TkModel has no {name}; it has {', '.join(sorted(_CALLBACKS))}")
        super().__setattr__(name, value)

    def __init__(self, widget: tkinter.Misc) -> None:
        """Nothing is loaded yet. ``widget`` is the window, or the part of it, that the model belongs to."""
        self.on_loaded: Callable[[str], object] = _nothing
        """Takes the model's name; also where one is ready again after a crash."""
        self.on_load_progress: Callable[[float], object] = _nothing
        """Takes how much of a load is done, 0 to 1."""
        self.on_load_stopped: Callable[[], object] = _nothing
        """A load was ended by ``stop``, or by another load."""
        self.on_prefill: Callable[[int, int], object] = _nothing
        """Takes how many tokens of the chat are read, and of how many, before the answer begins."""
        self.on_piece: Callable[[str], object] = _nothing
        """Takes more of the answer."""
        self.on_finished: Callable[[str], object] = _nothing
        """Takes why an answer is over: ``stop``, ``length`` or ``cancelled``."""
        self.on_failed: Callable[[str, str], object] = _nothing
        """Takes the problem and the remedy of what could not be done."""
        self.on_crashed: Callable[[str], object] = _nothing
        """Takes how the engine's process ended; the next question starts it again."""
        self.on_question_returned: Callable[[str], object] = _nothing
        """Takes a question that nothing came of, before ``on_finished`` or ``on_failed``."""
        self.on_chat_changed: Callable[[tuple[Message, ...]], object] = _nothing
        """Takes ``turns``, before ``on_finished`` or ``on_failed``, and where another chat is opened."""
        self.on_dropped: Callable[[int], object] = _nothing
        """Takes how many messages the model is no longer shown."""
        self.on_saved: Callable[[str], object] = _nothing
        """Takes the path of the file that the chat lies in now."""
        self.on_closed: Callable[[], object] = _nothing
        """The engine's process has ended after ``close``."""
        self._status = ModelStatus()
        self._is_widget_gone = False
        self._widget = widget
        _interpreters.add(widget.tk)
        self._arrived: deque[events.Event] = deque()
        self._worker = ModelWorker(self._arrived.append)  # which does not hold this object, nor do Tk's calls
        weakref.finalize(self, self._worker.close)
        look, forget_widget = weakref.WeakMethod(self._look), weakref.WeakMethod(self._forget_widget)
        self._look_again = lambda: _call_if_there(look)
        self._timer: str | None = None
        # A tag of its own, and not the widget's: it hears of no child's end, and another `bind` does not replace it.
        tag = f"ZephyrLocal{id(self)}"
        widget.bindtags((*widget.bindtags(), tag))
        self._on_destroy = widget.bind_class(tag, "<Destroy>", lambda _event: _call_if_there(forget_widget))
        self._look_in(_IDLE_MS)

    # --- what an application wishes ---

    def load(
        self,
        path: str | os.PathLike[str] | None = None,
        settings: EngineSettings | None = None,
        template: str | os.PathLike[str] | None = None,
    ) -> None:
        """Load a model in place of the one that is there; the arguments are ``Zephyr``'s. The chat stays."""
        self._worker.load(path, settings, template=template)
        self._status.load_asked()
        self._look_in(_BUSY_MS)

    def restart(self) -> None:
        """Start an engine that crashed, or a load that failed, again now; the next question would do it, too."""
        self._worker.restart()
        self._status.restart_asked()
        self._look_in(_BUSY_MS)

    def ask(self, text: str, sampling: Sampling | None = None) -> None:
        """Ask; a load that is under way is waited for."""
        self._begin(lambda: self._worker.ask(text, sampling))

    def regenerate(self, sampling: Sampling | None = None) -> None:
        """Answer the last question again; the answer before stays as a branch of the chat."""
        self._begin(lambda: self._worker.regenerate(sampling))

    def continue_answer(self, sampling: Sampling | None = None) -> None:
        """Go on with the last answer, which was cut short."""
        self._begin(lambda: self._worker.continue_answer(sampling))

    def edit(self, index: int, text: str, sampling: Sampling | None = None) -> None:
        """Ask something else in place of the question at turn ``index``; what followed it stays as a branch."""
        self._begin(lambda: self._worker.edit(index, text, sampling))

    def stop(self) -> None:
        """End the answer that is being given, and the load; what came of an answer is kept."""
        self._worker.stop()

    def new_chat(self, system: str | None = None, policy: Policy = "drop_oldest") -> None:
        """Begin another chat; save the one before, where it is wanted."""
        self._status.require_idle()
        self._worker.new_chat(system=system, policy=policy)
        self._look_in(_BUSY_MS)

    def resume(self, path: str | os.PathLike[str]) -> None:
        """Go on with the chat that :meth:`save` wrote."""
        self._status.require_idle()
        self._worker.resume(path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the chat with all its branches to a file, whole or not at all."""
        self._worker.save(path)

    def close(self) -> None:
        """End what runs and free the model, soon; ``on_closed`` is called when that is done. Closing twice is fine."""
        if self.state != "closed":
            self._status.close_asked()
            self._worker.close()
            self._look_in(_BUSY_MS)

    def wait_closed(self, timeout_s: float | None = None) -> bool:
        """Wait until a close is done; whether it is. For after ``mainloop``."""
        return self._worker.wait_closed(timeout_s)

    # --- what is known ---

    @property
    def state(self) -> State:
        """``answering`` begins with the question, also while a load is waited for; ``crashed`` lasts until a load."""
        return self._status.state

    @property
    def model_name(self) -> str:
        """What the model that was loaded last calls itself; empty before."""
        return self._status.model_name

    @property
    def n_ctx(self) -> int:
        """Tokens of its context; 0 before."""
        return self._status.n_ctx

    @property
    def notices(self) -> tuple[str, ...]:
        """Lines for the user about what was assumed when it was loaded."""
        return self._status.notices

    @property
    def turns(self) -> tuple[Message, ...]:
        """The chat's turns, as of the last ``on_chat_changed``."""
        return self._status.turns

    @property
    def last_error(self) -> ZephyrError | None:
        """What ``on_failed`` or ``on_crashed`` told last."""
        return self._status.last_error

    @property
    def last_finish(self) -> Finish | None:
        """What the last answer cost; None where it was stopped."""
        return self._status.last_finish

    @property
    def engine_process_id(self) -> int | None:
        """The engine's process; None where there is none now."""
        return self._worker.engine_process_id

    # --- how an answer begins ---

    def _begin(self, ask: Callable[[], None]) -> None:
        self._status.require_idle()
        ask()
        self._status.answer_asked()
        self._look_in(_BUSY_MS)

    # --- Tk's timer ---

    def _look_in(self, wait_ms: int) -> None:
        self._stop_looking()
        self._timer = self._widget.after(wait_ms, self._look_again)

    def _stop_looking(self) -> None:
        if self._timer is not None:
            self._widget.after_cancel(self._timer)
            self._timer = None

    def _look(self) -> None:
        """Make the calls of what has arrived, as many as a look may make."""
        # First the next look: a call may show a dialog, whose own loop lasts until the user has read it.
        self._look_in(_BUSY_MS if self.state in ("loading", "answering", "closed") else _IDLE_MS)
        end_s = time.monotonic() + _LOOK_S
        while self._arrived and not self._is_widget_gone:
            if time.monotonic() > end_s:
                self._look_in(_SOON_MS)
                return
            event = next_event(self._arrived)
            self._status.take(event)  # first: what is called may ask the next question
            self._take(event)

    def _forget_widget(self) -> None:
        """The widget is being destroyed, and perhaps what the calls would show something in."""
        self._stop_looking()
        self._widget.deletecommand(self._on_destroy)  # which holds the widget, and with it all that hangs on it
        self._is_widget_gone = True
        self._status.close_asked()
        self._worker.close()

    # --- events ---

    def _take(self, event: events.Event) -> None:
        match event:
            case events.TextArrived(text):
                self._call(self.on_piece, text)
            case events.PrefillProgress(done, total):
                self._call(self.on_prefill, done, total)
            case events.LoadProgress(share):
                self._call(self.on_load_progress, share)
            case events.Loaded(model_name):
                self._call(self.on_loaded, model_name)
            case events.LoadStopped():
                self._call(self.on_load_stopped)
            case events.Finished(reason):
                self._take_end(event)
                self._call(self.on_finished, reason)
            case events.Failed(of, error):
                if of == "answer":
                    self._take_end(event)
                self._call(self.on_failed, error.problem, error.remedy)
            case events.Crashed(error):
                self._call(self.on_crashed, error.problem)
            case events.ChatOpened(turns):
                self._call(self.on_chat_changed, turns)
            case events.ChatSaved(path):
                self._call(self.on_saved, path)
            case Dropped(messages):
                self._call(self.on_dropped, len(messages))
            case events.Closed():
                self._stop_looking()
                self._call(self.on_closed)

    def _take_end(self, event: events.Finished | events.Failed) -> None:
        if event.question is not None:
            self._call(self.on_question_returned, event.question)
        self._call(self.on_chat_changed, event.turns)

    def _call(self, callback: Callable[..., object], *arguments: object) -> None:
        if self._is_widget_gone:
            return
        try:
            callback(*arguments)
        except Exception:
            self._widget.nametowidget(".").report_callback_exception(*sys.exc_info())
