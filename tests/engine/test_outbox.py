"""How events leave the engine's process: in order, whole, and never holding up who emits them."""

from __future__ import annotations

import io
import os
import random
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from zephyr_local.engine import protocol
from zephyr_local.engine.worker import Outbox

WATCHDOG_S = 30
TEXT = protocol.TextEvent


class Pipe:
    """An outbox and the other end of its pipe."""

    def __init__(self) -> None:
        self.reading, self._writing = os.pipe()
        self.outbox = Outbox(self._writing)

    def read_until(self, last: protocol.Event) -> list[protocol.Request | protocol.Event]:
        """The events up to ``last``."""
        data = bytearray()
        end = protocol.encode(last)
        while not data.endswith(end):
            data += os.read(self.reading, 1 << 16)
        stream, events = io.BytesIO(bytes(data)), list[protocol.Request | protocol.Event]()
        while (event := protocol.read(stream)) is not None:
            events.append(event)
        return events


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    one = Pipe()  # its writing end stays: the outbox's thread has it, and ends with the process
    yield one
    os.close(one.reading)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pipes that refuse rather than wait")
def test_an_event_is_in_the_pipe_when_put_returns(pipe: Pipe) -> None:
    os.set_blocking(pipe.reading, False)
    for number in range(100):
        event = TEXT(number, "hello")
        pipe.outbox.put(event)
        assert protocol.decode(os.read(pipe.reading, 1 << 16)[4:]) == event


def test_a_full_pipe_holds_nobody_up_and_what_gathers_is_joined(pipe: Pipe) -> None:
    count, last = 20_000, protocol.Result(1)
    started = time.perf_counter()
    for number in range(count):
        pipe.outbox.put(TEXT(number % 2, f"{number} "))
    pipe.outbox.put(last)
    assert time.perf_counter() - started < WATCHDOG_S
    events = pipe.read_until(last)
    assert len(events) < count  # joined
    for request in (0, 1):
        text = "".join(event.text for event in events if isinstance(event, TEXT) and event.id == request)
        assert text == "".join(f"{number} " for number in range(request, count, 2))


def test_events_larger_than_the_pipe_arrive_whole(pipe: Pipe) -> None:
    rng = random.Random(5)
    texts = ["x" * rng.choice((1, 100, 5_000, 300_000)) for _ in range(60)]
    last = protocol.Result(2)

    def emit() -> None:
        for number, text in enumerate(texts):
            pipe.outbox.put(TEXT(1, f"{number}:{text}\n"))
            if rng.random() < 0.3:
                time.sleep(0.002)  # some of them find the pipe empty
        pipe.outbox.put(last)

    thread = threading.Thread(target=emit)
    thread.start()
    events = pipe.read_until(last)
    thread.join(WATCHDOG_S)
    joined = "".join(event.text for event in events if isinstance(event, TEXT))
    assert joined == "".join(f"{number}:{text}\n" for number, text in enumerate(texts))


def test_events_of_several_threads_stay_whole(pipe: Pipe) -> None:
    last = protocol.Result(9)

    def emit(request: int) -> None:
        for number in range(2_000):
            pipe.outbox.put(TEXT(request, f"{number},"))

    threads = [threading.Thread(target=emit, args=(request,)) for request in range(1, 4)]
    found: list[protocol.Request | protocol.Event] = []
    reader = threading.Thread(target=lambda: found.extend(pipe.read_until(last)))
    reader.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WATCHDOG_S)
    pipe.outbox.put(last)
    reader.join(WATCHDOG_S)
    for request in range(1, 4):
        text = "".join(event.text for event in found if isinstance(event, TEXT) and event.id == request)
        assert text == "".join(f"{number}," for number in range(2_000))
