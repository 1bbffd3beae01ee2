"""What the tests of the adapters watch a worker with."""

from __future__ import annotations

import queue
import time
from pathlib import Path
from typing import TypeVar

from zephyr_local.desktop import events
from zephyr_local.desktop.worker import ModelWorker

_E = TypeVar("_E", bound=events.Event)

MOST_S = 60.0
"""Far more than anything here takes."""


class Watched:
    """A worker, and what it has delivered."""

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[events.Event] = queue.SimpleQueue()
        self.worker = ModelWorker(self.events.put)

    def until(self, *kinds: type[_E]) -> tuple[list[events.Event], _E]:
        """What came before the first event of one of the kinds, and that."""
        before: list[events.Event] = []
        end_s = time.monotonic() + MOST_S
        while True:
            event = self.events.get(timeout=max(0.01, end_s - time.monotonic()))
            if isinstance(event, kinds):
                return before, event
            before.append(event)

    def answer(self) -> tuple[str, events.Finished | events.Failed]:
        """The text of the answer, and its end."""
        before, end = self.until(events.Finished, events.Failed)
        return "".join(event.text for event in before if isinstance(event, events.TextArrived)), end

    def no_more(self, wait_s: float = 0.2) -> None:
        """That nothing more comes."""
        try:
            event = self.events.get(timeout=wait_s)
        except queue.Empty:
            return
        raise AssertionError(event)

    def close(self) -> None:
        self.worker.close()
        assert self.worker.wait_closed(MOST_S)


def is_there(process_id: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def is_gone(process_id: int, within_s: float = 10.0) -> bool:
    """Whether a process ends soon."""
    end_s = time.monotonic() + within_s
    while is_there(process_id):
        if time.monotonic() > end_s:
            return False
        time.sleep(0.02)
    return True
