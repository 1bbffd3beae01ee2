"""What an adapter knows of its model: as of the events that its thread has taken, and of what it has asked for.

The worker is ahead of that. An adapter shows one thing after the other, so it needs the state between them.
"""

from __future__ import annotations

from collections import deque
from typing import Literal

from zephyr_local.chat_types import Finish, Message
from zephyr_local.desktop import events
from zephyr_local.errors import InvalidInputError, ZephyrError

State = Literal["empty", "loading", "ready", "answering", "crashed", "closed"]
"""``answering`` begins with the question, also while a load is waited for; ``crashed`` lasts until a load."""


class ModelStatus:
    """Told of each wish when it is made and of each event when it is taken, before anybody else is."""

    def __init__(self) -> None:
        self.model_name = ""
        """What the model that was loaded last calls itself; empty before."""
        self.n_ctx = 0
        """Tokens of its context."""
        self.notices: tuple[str, ...] = ()
        """Lines for the user about what was assumed when it was loaded."""
        self.load_share = 0.0
        """How much of a load is done, 0 to 1."""
        self.turns: tuple[Message, ...] = ()
        """The chat's turns, without a question that is being answered."""
        self.last_error: ZephyrError | None = None
        """What could not be done last, or how the engine crashed."""
        self.last_finish: Finish | None = None
        """What the last answer cost; None where it was stopped."""
        self.is_answering = False
        self._n_loads = 0  # that were asked for and have not ended
        self._is_loaded = self._is_crashed = self._is_closed = False

    @property
    def state(self) -> State:
        if self._is_closed:
            return "closed"
        if self.is_answering:
            return "answering"
        if self._n_loads:
            return "loading"
        if self._is_crashed:
            return "crashed"
        return "ready" if self._is_loaded else "empty"

    def require_idle(self) -> None:
        """Refuse until the end of the last answer was taken, too: who asks must have seen the chat that it is of."""
        if self.is_answering and not self._is_closed:  # else the worker says so
            raise InvalidInputError("an answer is still being given", "Wait for its end, or stop it")

    # --- wishes ---

    def load_asked(self) -> None:
        self._n_loads += 1
        self.load_share = 0.0

    def restart_asked(self) -> None:
        """Of a model that runs or is being loaded there is nothing to start."""
        if not self._n_loads and (self._is_crashed or not self._is_loaded):
            self.load_asked()

    def answer_asked(self) -> None:
        self.is_answering = True

    def close_asked(self) -> None:
        self._is_closed = True

    # --- events ---

    def take(self, event: events.Event) -> None:
        match event:
            case events.LoadProgress(share):
                self._n_loads = max(1, self._n_loads)  # of a question after a crash
                self.load_share = share
            case events.Loaded():
                self.model_name, self.n_ctx, self.notices = event.model_name, event.n_ctx, event.notices
                self._is_loaded, self._is_crashed, self.load_share = True, False, 1.0
                self._load_ended()
            case events.LoadStopped(has_model):
                self._is_loaded = has_model
                self._load_ended()
            case events.Crashed(error):
                self._is_crashed, self.last_error = True, error
            case events.Finished():
                self.is_answering, self.turns, self.last_finish = False, event.turns, event.finish
            case events.Failed():
                self.last_error = event.error
                if event.of == "answer":
                    self.is_answering, self.turns, self.last_finish = False, event.turns, None
                elif event.of == "load":
                    self._is_loaded = False
                    self._load_ended()
            case events.ChatOpened(turns):
                self.turns = turns

    def _load_ended(self) -> None:
        self._n_loads = max(0, self._n_loads - 1)


def next_event(arrived: deque[events.Event]) -> events.Event:
    """The next of the events that have gathered: text joined, and of a load's shares the last one."""
    event = arrived.popleft()
    if isinstance(event, events.TextArrived):
        texts = [event.text]
        while arrived and isinstance(following := arrived[0], events.TextArrived):
            texts.append(following.text)
            arrived.popleft()
        event = events.TextArrived("".join(texts))
    elif isinstance(event, events.LoadProgress):
        while arrived and isinstance(latest := arrived[0], events.LoadProgress):
            event = latest
            arrived.popleft()
    return event
