"""Threads that work through a queue and never hold up the process's end."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Generic, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")

_LOOK_S: Final = 0.2
"""How often a wait looks up: on Windows a Ctrl+C does not end a wait."""


class Workers(Generic[In, Out]):
    """Runs a function over items on so many threads.

    ``concurrent.futures`` joins its threads when the interpreter ends: a second Ctrl+C would wait for a slow endpoint.
    """

    def __init__(
        self, work: Callable[[In, threading.Event], Out], n_threads: int, stop: threading.Event | None = None
    ) -> None:
        self._work, self._n_threads = work, n_threads
        self.stop = stop or threading.Event()
        """Set: nothing further is begun. What is under way goes on; `work` may look at it while it waits."""
        self._tasks: queue.Queue[tuple[int, In] | None] = queue.Queue()
        self._results: queue.Queue[tuple[int, Out | BaseException]] = queue.Queue()
        self._threads: list[threading.Thread] = []

    def results(self, items: Iterable[In]) -> Iterator[tuple[int, Out | BaseException]]:
        """Each item's number and what the function returned or raised, in the order in which they come.

        Items are taken as threads get free, so there may be any number of them.
        """
        source = enumerate(items)
        under_way, more = 0, True
        while True:
            while more and not self.stop.is_set() and under_way < 2 * self._n_threads:
                task = next(source, None)
                if task is None:
                    more = False
                    break
                self._tasks.put(task)
                under_way += 1
                self._start_thread()
            if not under_way:
                return
            try:
                found = self._results.get(timeout=_LOOK_S)
            except queue.Empty:
                continue
            under_way -= 1
            yield found

    def end(self) -> None:
        """Begin nothing further, and wait for what is under way."""
        self.stop.set()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            while thread.is_alive():
                thread.join(_LOOK_S)

    def _start_thread(self) -> None:
        if len(self._threads) < self._n_threads:
            thread = threading.Thread(target=self._run, daemon=True, name=f"asking-{len(self._threads)}")
            thread.start()
            self._threads.append(thread)

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            index, item = task
            try:
                result: Out | BaseException = self._work(item, self.stop)
            except BaseException as error:
                result = error
            self._results.put((index, result))
