"""The engine process: requests from stdin, events to what was stdout; it dies with its parent."""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import threading
import time
import traceback
from typing import Final

from zephyr_local.engine import protocol
from zephyr_local.engine.native_log import LOGGER

_WATCH_S: Final = 1.0


class Outbox:
    """Writes events to a pipe; a full one never holds up who emits them.

    While the pipe takes them, the thread that emits also writes: another would have to be woken for each token, on a
    core that computes. What the pipe does not take gathers for a thread of the outbox's own, which joins the text of
    each answer. Windows has no pipes that refuse rather than wait; there that thread writes everything.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._refuses = sys.platform != "win32"
        if self._refuses:
            os.set_blocking(descriptor, False)
        self._changed = threading.Condition()
        self._unsent = b""  # while there is some, the outbox's thread alone writes
        self._events: list[protocol.Event] = []  # to be sent after it
        threading.Thread(target=self._write_rest, name="zephyr-local-outbox", daemon=True).start()

    def put(self, event: protocol.Event) -> None:
        with self._changed:
            if self._refuses and not self._unsent and not self._events:
                self._unsent = self._write(protocol.encode(event))
            else:
                self._events.append(event)
            if self._unsent or self._events:
                self._changed.notify()

    def _write_rest(self) -> None:
        try:
            while True:
                with self._changed:
                    while not self._unsent and not self._events:
                        self._changed.wait()
                    if not self._unsent:
                        events, self._events = joined(self._events), []
                        self._unsent = b"".join(map(protocol.encode, events))
                if self._refuses:
                    select.select([], [self._descriptor], [])
                rest = self._write(self._unsent)
                with self._changed:
                    self._unsent = rest
        except BaseException:  # else nobody would hear of anything any more
            traceback.print_exc()
            os._exit(1)

    def _write(self, data: bytes) -> bytes:
        """Write what the pipe takes; return the rest."""
        try:
            return data[os.write(self._descriptor, data) :]
        except BlockingIOError:
            return data
        except OSError:
            os._exit(0)  # the application is gone


def joined(events: list[protocol.Event]) -> list[protocol.Event]:
    """The same events, texts of one answer joined where nothing else of it came between."""
    out: list[protocol.Event] = []
    last: dict[int, int] = {}  # request → where its last text stands, while it is its last event
    for event in events:
        if isinstance(event, protocol.TextEvent) and event.id in last:
            before = out[last[event.id]]
            assert isinstance(before, protocol.TextEvent)
            out[last[event.id]] = protocol.TextEvent(
                event.id, before.text + event.text, before.logprobs + event.logprobs
            )
            continue
        if isinstance(event, protocol.TextEvent):
            last[event.id] = len(out)
        elif not isinstance(event, (protocol.NativeLog, protocol.Hello)):
            last.pop(event.id, None)
        out.append(event)
    return out


class _LogHandler(logging.Handler):
    def __init__(self, outbox: Outbox) -> None:
        super().__init__(logging.DEBUG)
        self._outbox = outbox

    def emit(self, record: logging.LogRecord) -> None:
        self._outbox.put(protocol.NativeLog(record.levelno, record.getMessage()))


def _watch_parent(parent: int) -> None:
    # The end of stdin tells it too, unless another process holds the pipe's other end.
    while os.getppid() == parent:
        time.sleep(_WATCH_S)
    os._exit(0)


def main() -> None:
    """Serve until stdin ends; returns never."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests = os.fdopen(os.dup(0), "rb")
    events = os.dup(1)
    # What native code may print goes where the parent collects it, not among the events.
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    if sys.platform != "win32":
        threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True).start()
    outbox = Outbox(events)
    outbox.put(protocol.Hello(protocol.VERSION))
    LOGGER.setLevel(logging.DEBUG)
    LOGGER.propagate = False
    LOGGER.addHandler(_LogHandler(outbox))
    from zephyr_local.engine.service import Service  # only now: it loads llama.cpp, and the parent sees a sign of life

    service = Service(outbox.put)
    while (request := protocol.read(requests)) is not None:
        service.handle(request)  # type: ignore[arg-type]
    os._exit(0)  # the parent has closed or died; the system frees all that a decode is using
