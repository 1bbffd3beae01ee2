"""The chat of a desktop application, without a toolkit: the model works on a thread, the user's side never waits.

``main`` plays the user's side: it takes events where a window would take them from a timer or a signal, and presses
Stop in the middle of an answer. Run it as it stands, or with the path of a GGUF.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import queue
import sys
import threading
from collections.abc import Coroutine
from dataclasses import dataclass

from zephyr_local import AsyncChat, AsyncZephyr, EngineCrashed, Sampling, ZephyrError, freeze_support


@dataclass(frozen=True)
class Loading:
    share: float


@dataclass(frozen=True)
class Ready:
    model_name: str


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Ended:
    reason: str


@dataclass(frozen=True)
class Failed:
    problem: str
    remedy: str


Event = Loading | Ready | Text | Ended | Failed


class ChatWorker:
    """A model and a chat on a thread of their own. Every method returns at once; what happens comes in ``events``."""

    def __init__(self, model_path: str | None = None) -> None:
        self.events: queue.Queue[Event] = queue.Queue()
        self._zephyr = AsyncZephyr(model_path, on_progress=lambda share: self.events.put(Loading(share)))
        self._chat: AsyncChat | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chat")
        self._thread.start()
        self._work = self._start(self._load())

    def ask(self, question: str, sampling: Sampling | None = None) -> None:
        self._work = self._start(self._answer(question, sampling))

    def stop(self) -> None:
        """The Stop button: ends a load, or an answer at whatever point it is."""
        self._work.cancel()

    def save(self, path: str) -> None:
        if self._chat is not None:
            self._work = self._start(self._chat.save(path))

    def close(self) -> None:
        """End what runs, free the model, and wait for both; this one takes a moment."""
        self.stop()
        asyncio.run_coroutine_threadsafe(self._zephyr.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _start(self, work: Coroutine[object, object, None]) -> concurrent.futures.Future[None]:
        return asyncio.run_coroutine_threadsafe(self._reported(work), self._loop)

    async def _reported(self, work: Coroutine[object, object, None]) -> None:
        try:
            await work
        except asyncio.CancelledError:
            self.events.put(Ended("stopped"))
            raise
        except EngineCrashed as error:  # the next question starts the engine again
            self.events.put(Failed(error.problem, "Ask again"))
        except ZephyrError as error:
            self.events.put(Failed(error.problem, error.remedy))

    async def _load(self) -> None:
        await self._zephyr.load()
        self._chat = self._zephyr.chat(policy="drop_oldest")
        self.events.put(Ready(self._zephyr.model_name))

    async def _answer(self, question: str, sampling: Sampling | None) -> None:
        assert self._chat is not None, "ask after Ready"
        async for piece in self._chat.stream(question, sampling):
            self.events.put(Text(piece.text))
            if piece.finish_reason is not None:
                self.events.put(Ended(piece.finish_reason))


def wait_for_end(worker: ChatWorker, *, press_stop: bool = False) -> None:
    """Show events until the load or the answer is over."""
    while True:
        event = worker.events.get()
        if isinstance(event, Text):
            print(event.text, end="", flush=True)
            if press_stop:
                worker.stop()
        elif isinstance(event, Ready):
            print(f"{event.model_name} is ready")
            return
        elif isinstance(event, Ended):
            print(f" [{event.reason}]")
            return
        elif isinstance(event, Failed):
            print(f"{event.problem}. {event.remedy}.")
            return


def main() -> None:
    worker = ChatWorker(sys.argv[1] if len(sys.argv) > 1 else None)
    try:
        wait_for_end(worker)
        worker.ask("What is the capital of France?")
        wait_for_end(worker)
        worker.ask("Hello!", Sampling(temperature=100, top_k=0, top_p=1, seed=1))  # babble that goes on for long
        wait_for_end(worker, press_stop=True)
        worker.ask("What is the capital of Japan?")
        wait_for_end(worker)
    finally:
        worker.close()


if __name__ == "__main__":
    freeze_support()  # for an application that is frozen (PyInstaller, Nuitka and the like)
    main()
