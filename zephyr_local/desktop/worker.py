"""A model and a chat with it on a thread of their own, without a toolkit: what every adapter drives.

The thread runs an asyncio event loop. Each wish (a load, a question, a save) is a task there, so that whatever it waits
for (a model's name, a load, the chat being read, an engine that is started again) is ended by cancelling the task.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from zephyr_local.async_api import AsyncZephyr
from zephyr_local.async_chat import AsyncChat
from zephyr_local.chat_file import ChatRecord, dump_chat, read_chat, write_chat
from zephyr_local.chat_fit import Policy
from zephyr_local.chat_tree import ChatTree
from zephyr_local.chat_types import Finish, Message, OnPrefill, Piece
from zephyr_local.desktop import events
from zephyr_local.errors import EngineCrashed, EngineError, InvalidInputError, ZephyrError
from zephyr_local.settings import EngineSettings, Sampling, require_kind

LOGGER: Final = logging.getLogger("zephyr_local.desktop")

_Pieces = AsyncGenerator[Piece, None]
_Begin = Callable[[AsyncChat, OnPrefill], _Pieces]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The model that was asked for last."""

    path: str | os.PathLike[str] | None
    settings: EngineSettings | None
    template: str | os.PathLike[str] | None


class ModelWorker:
    """A model, and one chat with it. Every method returns at once, on whatever thread it is called.

    What comes of it goes to ``deliver``, which is called on threads of this object and must not wait. Each answer ends
    with one of Finished and Failed; a load with one of Loaded, LoadStopped and Failed. What is wrong with the call
    itself (an answer is being given, the worker is closed) is raised at once.
    """

    def __init__(self, deliver: Callable[[events.Event], object]) -> None:
        """Start the thread. Nothing is loaded yet."""
        self._deliver_to = deliver
        self._lock = threading.Lock()
        self._is_answering = False
        self._is_closed = False
        # What follows belongs to the loop's thread.
        self._wanted: _Wanted | None = None  # the model that was asked for last
        self._has: _Wanted | None = None  # what self._zephyr was made for
        self._zephyr: AsyncZephyr | None = None
        self._record = _new_record(None, "drop_oldest")  # of the chat, while there is no model to hold it with
        self._chat: AsyncChat | None = None
        self._loading: asyncio.Task[None] | None = None
        self._load_error: ZephyrError | None = None
        self._answer: asyncio.Task[Finish] | None = None
        self._has_text = False  # whether something of the answer came
        self._others: set[asyncio.Task[None]] = set()
        self._shut = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        # A daemon: an application that forgets to close it must still be able to end.
        self._thread = threading.Thread(target=self._run, name="zephyr-local-desktop", daemon=True)
        self._thread.start()

    # --- what an application wishes ---

    def load(
        self,
        path: str | os.PathLike[str] | None = None,
        settings: EngineSettings | None = None,
        *,
        template: str | os.PathLike[str] | None = None,
    ) -> None:
        """Load a model in place of the one that is there; the arguments are ``Zephyr``'s. The chat stays.

        A load or an answer that is under way is stopped. Questions that are asked meanwhile wait.
        """
        if path is not None and not isinstance(path, (str, os.PathLike)):
            raise InvalidInputError(f"the model is of type {type(path).__name__}", "Give a path or a name")
        if settings is not None:
            require_kind(settings, EngineSettings, "settings")
        self._post(lambda: self._begin_load(_Wanted(path, settings, template)))

    def restart(self) -> None:
        """Start an engine that crashed, or a load that failed, again now; the next question would do it, too."""
        self._post(self._begin_restart)

    def ask(self, question: str, sampling: Sampling | None = None) -> None:
        """Ask; raises InvalidInputError where an answer is being given."""
        self._begin_answer(lambda chat, on_prefill: chat.stream(question, sampling, on_prefill=on_prefill), question)

    def regenerate(self, sampling: Sampling | None = None) -> None:
        """Answer the last question again; the answer before stays as a branch of the chat."""
        self._begin_answer(lambda chat, on_prefill: chat.regenerate(sampling, on_prefill=on_prefill))

    def edit(self, index: int, question: str, sampling: Sampling | None = None) -> None:
        """Ask something else in place of the question at turn ``index``; what followed it stays as a branch."""
        self._begin_answer(
            lambda chat, on_prefill: chat.edit(index, question, sampling, on_prefill=on_prefill), question
        )

    def continue_answer(self, sampling: Sampling | None = None) -> None:
        """Go on with the last answer, which was cut short."""
        self._begin_answer(lambda chat, on_prefill: chat.continue_answer(sampling, on_prefill=on_prefill))

    def stop(self) -> None:
        """End the answer that is being given, and the load that it waits for; what came of an answer is kept."""
        with contextlib.suppress(EngineError):  # closed
            self._post(self._stop_what_runs)

    def new_chat(self, *, system: str | None = None, policy: Policy = "drop_oldest") -> None:
        """Begin another chat; save the one before, where it is wanted. Raises as :meth:`ask` does."""
        self._require_idle()
        record = _new_record(system, policy)
        self._post(lambda: self._open(record))

    def resume(self, path: str | os.PathLike[str]) -> None:
        """Go on with the chat that :meth:`save` wrote. Raises as :meth:`ask` does."""
        file = Path(path).absolute()
        self._require_idle()
        self._post(lambda: self._begin_other(self._resume(file)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the chat with all its branches to a file, whole or not at all."""
        file = Path(path).absolute()
        self._post(lambda: self._begin_other(self._save(file, self._chat_as_json())))

    def close(self) -> None:
        """End what runs and free the model, soon; ``Closed`` is delivered when that is done. Closing twice is fine.

        A chat that is being saved is saved first.
        """
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        self._loop.call_soon_threadsafe(self._shut.set)

    def wait_closed(self, timeout_s: float | None = None) -> bool:
        """Wait until a close is done; whether it is. Not for the thread of a window that is still shown."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def is_answering(self) -> bool:
        """Whether a question was asked of which neither Finished nor Failed has been delivered."""
        return self._is_answering

    @property
    def engine_process_id(self) -> int | None:
        """The engine's process; None where there is none now."""
        zephyr = self._zephyr
        return None if zephyr is None else zephyr.engine_process_id

    # --- from any thread to the loop ---

    def _post(self, call: Callable[[], object]) -> None:
        with self._lock:
            if self._is_closed:
                raise EngineError("the model was closed", "Make a new one")
            self._loop.call_soon_threadsafe(call)

    def _require_idle(self) -> None:
        if self._is_answering:
            raise InvalidInputError("an answer is still being given", "Wait for its end, or stop it")

    def _begin_answer(self, begin: _Begin, question: str | None = None) -> None:
        with self._lock:
            self._require_idle()
            if not self._is_closed:
                self._is_answering = True
        self._post(lambda: self._start_answer(begin, question))

    # --- on the loop's thread ---

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
        finally:
            self._loop.close()
            self._deliver(events.Closed())

    async def _serve(self) -> None:
        await self._shut.wait()
        running = [task for task in (self._answer, self._loading) if task is not None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, *self._others, return_exceptions=True)  # a chat that is being saved is saved
        if self._zephyr is not None:
            await self._zephyr.close()

    def _deliver(self, event: events.Event) -> None:
        try:
            self._deliver_to(event)
        except Exception:  # an event that follows may still be
            LOGGER.exception("an event of the model could not be delivered")

    def _turns(self) -> tuple[Message, ...]:
        if self._chat is not None:
            return self._chat.turns
        tree = self._record.tree
        return tree.turns(tree.path(tree.leaf))

    def _stop_what_runs(self) -> None:
        for task in (self._answer, self._loading):  # both: what a question waits for is not wanted without it
            if task is not None:
                task.cancel()

    # --- loading ---

    def _begin_load(self, wanted: _Wanted) -> None:
        before = [task for task in (self._answer, self._loading) if task is not None]
        for task in before:
            task.cancel()
        self._wanted = wanted
        self._loading = self._loop.create_task(self._load(wanted, before))
        self._loading.add_done_callback(self._load_ended)

    def _begin_restart(self) -> None:
        """Of what is being loaded or runs already there is nothing to start."""
        if self._loading is None and (self._zephyr is None or not self._zephyr.is_running):
            self._wanted = self._wanted or _Wanted(None, None, None)
            self._loading = self._loop.create_task(self._load(self._wanted, []))
            self._loading.add_done_callback(self._load_ended)

    async def _load(self, wanted: _Wanted, before: list[asyncio.Task[Any]]) -> None:
        if before:
            await asyncio.wait(before)
        if self._zephyr is not None and self._has != wanted:
            await self._let_go()  # before the next one is loaded: both may not fit the memory
        if self._zephyr is None:
            self._zephyr = AsyncZephyr(
                *(wanted.path, wanted.settings), template=wanted.template, on_progress=self._load_progressed
            )
            self._has = wanted
        zephyr = self._zephyr
        try:
            await zephyr.load()
        except BaseException:  # it is closed, or never was
            await self._let_go()
            raise
        zephyr.on_crash = self._crashed
        if self._chat is None:
            self._chat = self._chat_of(self._record)

    async def _let_go(self) -> None:
        zephyr, self._zephyr = self._zephyr, None
        if self._chat is not None:
            self._record, self._chat = self._chat.record, None
        if zephyr is not None:
            zephyr.on_crash = None
            await zephyr.close()

    def _load_ended(self, task: asyncio.Task[None]) -> None:
        if self._loading is task:
            self._loading = None
        error = None if task.cancelled() else task.exception()
        if task.cancelled():
            self._load_error = InvalidInputError("the load was stopped", "Load the model again")
            self._deliver(events.LoadStopped(self._zephyr is not None and self._zephyr.is_running))
        elif error is not None:
            self._load_error = _as_told(error)
            self._deliver(events.Failed("load", self._load_error, self._turns(), None))
        elif self._zephyr is not None:
            self._load_error = None
            zephyr = self._zephyr
            self._deliver(events.Loaded(zephyr.model_name, zephyr.n_ctx, zephyr.notices))

    def _load_progressed(self, share: float) -> None:
        self._deliver(events.LoadProgress(share))

    def _crashed(self, error: EngineCrashed) -> None:
        self._deliver(events.Crashed(error))

    # --- answering ---

    def _start_answer(self, begin: _Begin, question: str | None) -> None:
        self._has_text = False
        self._answer = self._loop.create_task(self._give_answer(begin))
        self._answer.add_done_callback(lambda task: self._answer_ended(task, question))

    async def _give_answer(self, begin: _Begin) -> Finish:
        chat = await self._ready_chat()
        async with contextlib.aclosing(begin(chat, self._prefill_progressed)) as pieces:
            async for piece in pieces:
                if piece.text:
                    self._has_text = True
                    self._deliver(events.TextArrived(piece.text))
                if piece.finish is not None:
                    finish = piece.finish
        return finish

    async def _ready_chat(self) -> AsyncChat:
        """The chat, once its model is loaded, or is loaded again after a crash."""
        while True:
            if self._loading is not None:
                await asyncio.wait([self._loading])  # which goes on, should this be cancelled
            elif self._zephyr is None or self._chat is None:
                raise self._load_error or InvalidInputError("no model is loaded", "Load one first")
            elif self._zephyr.is_running:
                return self._chat
            else:
                self._begin_restart()

    def _prefill_progressed(self, done: int, total: int) -> None:
        self._deliver(events.PrefillProgress(done, total))

    def _answer_ended(self, task: asyncio.Task[Finish], question: str | None) -> None:
        self._answer = None
        taken_back = None if self._has_text else question
        self._is_answering = False  # first: who is told may ask the next question
        if task.cancelled():
            self._deliver(events.Finished("cancelled", None, self._turns(), taken_back))
        elif (error := task.exception()) is not None:
            self._deliver(events.Failed("answer", _as_told(error), self._turns(), taken_back))
        else:
            finish = task.result()
            self._deliver(events.Finished(finish.reason, finish, self._turns(), None))

    # --- the chat ---

    def _chat_of(self, record: ChatRecord) -> AsyncChat | None:
        if self._zephyr is None:
            return None
        chat = AsyncChat.of(self._zephyr, record)
        chat.on_drop = self._deliver
        return chat

    def _open(self, record: ChatRecord) -> None:
        self._record, self._chat = record, None if self._chat is None else self._chat_of(record)
        self._deliver(events.ChatOpened(self._turns()))

    def _begin_other(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._others.add(task)
        task.add_done_callback(self._other_ended)

    def _other_ended(self, task: asyncio.Task[None]) -> None:
        self._others.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._deliver(events.Failed("chat", _as_told(error), self._turns(), None))

    async def _resume(self, path: Path) -> None:
        record = await asyncio.to_thread(read_chat, path)
        if self._answer is not None:  # asked since
            raise InvalidInputError(f"{path} was not opened: an answer is being given", "Stop it first")
        self._open(record)

    def _chat_as_json(self) -> str:
        """The chat as it is now: what a save writes, whatever chat is begun before it has."""
        return dump_chat(self._record if self._chat is None else self._chat.record)

    async def _save(self, path: Path, text: str) -> None:
        await asyncio.to_thread(write_chat, path, text)
        self._deliver(events.ChatSaved(str(path)))


def _new_record(system: str | None, policy: Policy) -> ChatRecord:
    return ChatRecord(system, policy, None, ChatTree())


def _as_told(error: BaseException) -> ZephyrError:
    """What the user is told of an error; one that nobody foresaw goes to the log with its traceback."""
    if isinstance(error, ZephyrError):
        return error
    if threading.main_thread().is_alive():  # else the process ends, and threads cannot be started any more
        LOGGER.error("unforeseen", exc_info=error)
    return EngineError(
        f"something unforeseen went wrong: {type(error).__name__}: {error}", "Report it; the log has more"
    )
