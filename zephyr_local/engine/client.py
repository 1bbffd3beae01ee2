"""Calls and streams to an engine, wherever it runs; restarts one that crashed.

Knows neither llama.cpp nor numpy: what an application imports to talk to its engine process.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Final, NamedTuple, Protocol

from zephyr_local.engine import protocol
from zephyr_local.errors import EngineCrashed, EngineError, ZephyrError
from zephyr_local.settings import EngineSettings

_WAIT_S: Final = 0.2  # Windows delivers Ctrl+C only between waits


class Engine(Protocol):
    """What runs a service: RemoteEngine, LocalEngine."""

    @property
    def lost(self) -> EngineError | None:
        """How it ended, where it has; set before ``on_lost`` is called."""

    def send(self, request: protocol.Request) -> None: ...

    def close(self) -> None: ...

    def forget_after_fork(self) -> None: ...


class ModelPlace(NamedTuple):
    """What an engine is to load."""

    path: str
    template: str | None
    """A name or a file's path; None: the model's own."""
    template_is_file: bool


class Waiter:
    """The events of one request, in order, for one consumer; never holds up who brings them.

    An answer is bounded by the context, so its events are.
    """

    def __init__(self, request_id: int, engine: Engine | None) -> None:
        self.id, self.engine = request_id, engine
        # Not a condition's: this is done for each token, beside a computation that has every core.
        self._events: SimpleQueue[protocol.Event | ZephyrError] = SimpleQueue()
        self._next: protocol.Event | ZephyrError | None = None  # taken from the queue to look at it
        self._on_event: Callable[[], object] | None = None
        self.ended = False

    def put(self, event: protocol.Event | ZephyrError) -> None:
        if isinstance(event, (protocol.Loaded, protocol.Finished, protocol.Result, protocol.Failed, ZephyrError)):
            self.ended = True
        self._events.put(event)
        listener = self._on_event
        if listener is not None:
            with contextlib.suppress(Exception):  # the consumer's mistake, and this is the engine's thread
                listener()

    def get(self) -> protocol.Event:
        """The next event; raises what the request failed with."""
        while self._next is None:
            with contextlib.suppress(Empty):
                self._next = self._events.get(timeout=_WAIT_S)
        event = self.poll()
        assert event is not None, "one consumer reads a waiter"
        return event

    def poll(self) -> protocol.Event | None:
        """The next event, text that has gathered joined; None where there is none yet. Raises as ``get`` does."""
        event = self._take()
        if isinstance(event, protocol.TextEvent):
            gathered = [event]
            while isinstance(following := self._take(), protocol.TextEvent):
                gathered.append(following)
            self._next = following
            if len(gathered) > 1:
                logprobs = tuple(entry for one in gathered for entry in one.logprobs)
                event = protocol.TextEvent(self.id, "".join(one.text for one in gathered), logprobs)
        if isinstance(event, protocol.Failed):
            raise protocol.error_of(event)
        if isinstance(event, ZephyrError):
            raise event
        return event

    def _take(self) -> protocol.Event | ZephyrError | None:
        event, self._next = self._next, None
        if event is None and not self._events.empty():
            event = self._events.get()
        return event

    def forget_after_fork(self) -> None:
        """In a forked process, where no event comes: end the request with an error."""
        self._events, self._next = SimpleQueue(), None  # another thread of the parent may hold the queue's lock
        self._on_event = None
        self.put(EngineError("the answer was asked for before this process was forked", "Ask again"))

    def listen(self, on_event: Callable[[], object]) -> None:
        """Have ``on_event`` called, on any thread, whenever there may be something to ``poll``."""
        self._on_event = on_event
        on_event()  # what came before


class EngineClient:
    """One model in an engine; any thread may use it."""

    def __init__(self, locate: Callable[[], ModelPlace], settings: EngineSettings, *, isolated: bool) -> None:
        """``locate`` may take a moment and raise; each load asks it. Nothing is started yet."""
        self._locate, self._settings, self.isolated = locate, settings, isolated
        self.on_crash: Callable[[EngineCrashed], object] | None = None
        """Is told, on a thread of the engine's, when a loaded engine ended by itself, also while nobody waits."""
        self._ids = itertools.count(1)
        self._closed = False
        self._reset_locks()
        self._engine: Engine | None = None  # with its model loaded
        self._starting: Engine | None = None  # while it loads
        self._owner = os.getpid()
        self._waiters: dict[int, Waiter] = {}
        self._abandoned: deque[Waiter] = deque()
        self._loaded: protocol.Loaded | None = None
        _clients.add(self)

    def _reset_locks(self) -> None:
        self._lock = threading.RLock()  # the fields; the garbage collector may close the model inside it
        self._loading = threading.Lock()  # one load at a time; taken before _lock

    # --- loading ---

    def load(self, on_progress: Callable[[float], object] | None = None) -> protocol.Loaded:
        """Start an engine and load the model; an exception while it waits (Ctrl+C, ``on_progress``'s) ends both."""
        with self._loading:
            if self._engine is not None and self._loaded is not None:
                return self._loaded
            return self._load(on_progress)

    def _load(self, on_progress: Callable[[float], object] | None) -> protocol.Loaded:
        path, template, is_file = self._locate()
        if self._closed:  # while a name was looked up
            raise closed_error()
        engine = self._start()
        waiter = Waiter(next(self._ids), engine)
        with self._lock:
            self._waiters[waiter.id] = waiter
            self._starting = engine
        try:
            if self._closed:
                raise closed_error()
            if engine.lost is not None:  # before it was known here
                raise engine.lost
            engine.send(protocol.Load(waiter.id, path, self._settings, template, is_file))
            while not isinstance(event := waiter.get(), protocol.Loaded):
                if isinstance(event, protocol.LoadProgress) and on_progress is not None:
                    on_progress(event.share)
            with self._lock:
                if self._closed:
                    raise closed_error()
                if engine.lost is not None:
                    raise engine.lost
                self._loaded = event
                self._engine, self._starting = engine, None  # only now: nobody may ask one without a model
                self._waiters.pop(waiter.id, None)
            return event
        except BaseException:
            with self._lock:
                self._starting = None
                self._waiters.pop(waiter.id, None)
            engine.send(protocol.Cancel(waiter.id))
            engine.close()
            raise

    def _start(self) -> Engine:
        if self.isolated:
            from zephyr_local.engine.remote import RemoteEngine

            return RemoteEngine(self._dispatch, self._lost)
        from zephyr_local.engine.local import LocalEngine

        return LocalEngine(self._dispatch)

    # --- requests ---

    def submit(self, make: Callable[[int], protocol.Request]) -> Waiter:
        """Send a request, first starting the engine again where it crashed. Raises EngineError where that fails."""
        self._leave_abandoned()
        while True:
            self.require_usable()
            with self._lock:
                engine = self._engine
                if engine is not None:
                    waiter = Waiter(next(self._ids), engine)
                    self._waiters[waiter.id] = waiter
            if engine is not None:
                try:
                    engine.send(make(waiter.id))
                except BaseException:
                    self.leave(waiter)
                    raise
                return waiter
            with self._loading:
                if self._engine is None and not self._closed:
                    self._load(None)

    def call(self, make: Callable[[int], protocol.Request]) -> protocol.Result:
        """Send a request that has one result, and wait for it."""
        waiter = self.submit(make)
        try:
            while not isinstance(event := waiter.get(), protocol.Result):
                pass
            return event
        finally:
            self.leave(waiter)

    def cancel(self, waiter: Waiter) -> None:
        """End a request soon; its last event still comes."""
        engine = self._engine
        if not waiter.ended and engine is not None and engine is waiter.engine:
            engine.send(protocol.Cancel(waiter.id))

    def leave(self, waiter: Waiter) -> None:
        """Be done with a request; cancels it where it has not ended, and wakes who waits for it."""
        with self._lock:
            self._waiters.pop(waiter.id, None)
        self.cancel(waiter)
        if not waiter.ended:
            waiter.put(EngineError("the answer was closed", "Ask again"))

    def abandon(self, waiter: Waiter) -> None:
        """Leave a request soon. For ``__del__``, which may run inside any lock of this thread: takes none."""
        self._abandoned.append(waiter)

    def _leave_abandoned(self) -> None:
        while self._abandoned:
            with contextlib.suppress(IndexError):  # another thread was sooner
                self.leave(self._abandoned.popleft())

    def require_usable(self) -> None:
        """Raises EngineError where the model was closed, or belongs to the process that this one was forked from."""
        if self._closed:
            raise closed_error()
        if not self.isolated and self._owner != os.getpid():
            raise EngineError(
                "the model was loaded before this process was forked", "Load it after the fork, or use isolated=True"
            )

    def close(self) -> None:
        """End what runs, and the engine. Closing twice is fine."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            engine, self._engine = self._engine or self._starting, None
            waiters = list(self._waiters.values())
        if engine is not None and self._owner == os.getpid():
            engine.close()
        for waiter in waiters:
            if not waiter.ended:
                waiter.put(closed_error())

    @property
    def is_running(self) -> bool:
        """Whether a request can be sent without loading the model first."""
        return self._engine is not None

    @property
    def is_starting(self) -> bool:
        """Whether an engine has been started that does not have its model yet."""
        return self._starting is not None

    @property
    def process_id(self) -> int | None:
        """The engine's process; None where there is none now, or where it is this one."""
        engine = self._engine
        return getattr(engine, "process_id", None)

    # --- called by the engine's threads ---

    def _dispatch(self, event: protocol.Event) -> None:
        if isinstance(event, (protocol.NativeLog, protocol.Hello)):
            return
        with self._lock:
            waiter = self._waiters.get(event.id)
        if waiter is not None:
            waiter.put(event)
        self._leave_abandoned()  # the events of an answer that nobody reads bring its end

    def _lost(self, engine: Engine, error: EngineError) -> None:
        with self._lock:
            was_loaded = self._engine is engine
            if was_loaded:
                self._engine = None
            lost = [waiter for waiter in self._waiters.values() if waiter.engine is engine and not waiter.ended]
        if was_loaded and isinstance(error, EngineCrashed) and (on_crash := self.on_crash) is not None:
            with contextlib.suppress(Exception):  # the application's mistake: who waits must be told all the same
                on_crash(error)
        for waiter in lost:
            waiter.put(error)

    def _forget_after_fork(self) -> None:
        self._reset_locks()
        engine, self._engine = self._engine or self._starting, None
        self._starting = None
        for waiter in self._waiters.values():
            waiter.forget_after_fork()
        self._waiters = {}
        self._abandoned.clear()
        if engine is not None:
            engine.forget_after_fork()
        if self.isolated:
            self._owner = os.getpid()  # it starts a process of its own at its next call


def closed_error() -> EngineError:
    return EngineError("the model was closed", "Make a new Zephyr")


_clients: weakref.WeakSet[EngineClient] = weakref.WeakSet()


def _forget_all_after_fork() -> None:
    for client in list(_clients):
        with contextlib.suppress(Exception):  # one client's trouble is not the others'
            client._forget_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all_after_fork)
