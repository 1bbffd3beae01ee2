"""The same as ``Zephyr``, for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Callable, Iterable
from types import TracebackType
from typing import Self

from zephyr_local.async_chat import AsyncChat
from zephyr_local.chat_fit import Policy
from zephyr_local.chat_types import OnPrefill, Piece, Reply, ReplyParts
from zephyr_local.engine import protocol
from zephyr_local.engine.client import Waiter
from zephyr_local.model_handle import MessageLike, ModelHandle, piece_of, require_text
from zephyr_local.settings import EngineSettings, Sampling


class _LoadEnded(Exception):  # noqa: N818
    """Ends a load on its thread, whatever ended it here: an executor may take Exceptions alone, as qasync's does."""


class AsyncZephyr(ModelHandle):
    """A model; an asynchronous context manager, which loads it. Methods are Zephyr's, awaited.

    Nothing blocks the event loop. A task that is cancelled cancels its request.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        settings: EngineSettings | None = None,
        *,
        template: str | os.PathLike[str] | None = None,
        on_progress: Callable[[float], object] | None = None,
        isolated: bool = True,
    ) -> None:
        """As ``Zephyr``'s, but nothing is loaded yet, and a name is looked up by ``load``.

        ``on_progress`` is called on the event loop.
        """
        super().__init__(path, settings, template=template, isolated=isolated)
        self._on_progress = on_progress

    async def load(self) -> None:
        """Load the model, where it is not yet, or again where its engine crashed. Cancelling the task ends the load.

        Raises what ``Zephyr(...)`` does.
        """
        if self._loaded is not None and self.is_running:
            return
        loop = asyncio.get_running_loop()
        stop: list[BaseException] = []

        def tell(share: float) -> None:
            try:
                if self._on_progress is not None:
                    self._on_progress(share)
            except BaseException as error:  # it comes out of load
                stop.append(error)

        def progress(share: float) -> None:
            if stop:
                raise _LoadEnded
            loop.call_soon_threadsafe(tell, share)

        loading = asyncio.ensure_future(asyncio.to_thread(self._client.load, progress))
        try:
            self._loaded = await asyncio.shield(loading)
        except asyncio.CancelledError as error:
            stop.append(error)
            await asyncio.to_thread(self._client.close)
            if self._client.is_starting:
                await asyncio.wait([loading])
            # Else a name is being looked up, which takes as long as it takes, and starts nothing any more.
            loading.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # or asyncio logs it
            raise
        except _LoadEnded:
            raise stop[0] from None
        if stop:
            await self.close()
            raise stop[0]

    async def stream(
        self,
        messages: Iterable[MessageLike],
        sampling: Sampling | None = None,
        *,
        answer_start: str = "",
        on_prefill: OnPrefill | None = None,
    ) -> AsyncGenerator[Piece, None]:
        """The answer to a chat, piece by piece; closing the generator (``contextlib.aclosing``) cancels the answer.

        ``answer_start`` is what the answer begins with already; it is not among the pieces.
        """
        waiter = await self._submit(self._generate(messages, sampling, answer_start))
        try:
            while True:
                event = await self._next(waiter)
                if isinstance(event, protocol.PrefillProgress):
                    if on_prefill is not None:
                        on_prefill(event.done, event.total)
                elif (piece := piece_of(event)) is not None:
                    yield piece
                    if piece.finish is not None:
                        return
        finally:
            self._client.leave(waiter)

    async def complete(self, messages: Iterable[MessageLike], sampling: Sampling | None = None) -> Reply:
        """The whole answer to a chat."""
        parts = ReplyParts()
        async with contextlib.aclosing(self.stream(messages, sampling)) as pieces:
            async for piece in pieces:
                parts.add(piece)
        return parts.reply()

    def chat(
        self,
        *,
        system: str | None = None,
        sampling: Sampling | None = None,
        policy: Policy = "stop",
        reserve_tokens: int | None = None,
    ) -> AsyncChat:
        """A new chat, which keeps its turns; ``policy`` says what happens when the context is full."""
        return AsyncChat(self, system=system, sampling=sampling, policy=policy, reserve_tokens=reserve_tokens)

    async def count_tokens(self, messages: Iterable[MessageLike]) -> int:
        """Tokens of a chat as the model sees it, the beginning of the answer included."""
        parsed = self._parsed(messages)
        return int((await self._call(lambda request_id: protocol.CountTokens(request_id, parsed))).numbers[0])

    async def tokenize(self, text: str) -> list[int]:
        """The tokens of a text by itself: no start token, and no control token whatever it says."""
        text = require_text(text)
        return [int(n) for n in (await self._call(lambda request_id: protocol.Tokenize(request_id, text))).numbers]

    async def embed(self, text: str) -> list[float]:
        """The mean of the last layer's outputs over a text's tokens, scaled to length 1."""
        text = require_text(text)
        return list((await self._call(lambda request_id: protocol.Embed(request_id, text))).numbers)

    async def devices(self) -> tuple[str, ...]:
        """What the engine's llama.cpp can compute on, the CPU among them."""
        return (await self._call(protocol.Devices)).texts

    async def close(self) -> None:
        """Cancel what runs and free the model. Closing twice is fine."""
        await asyncio.to_thread(self._client.close)

    async def __aenter__(self) -> Self:
        await self.load()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _submit(self, make: Callable[[int], protocol.Request]) -> Waiter:
        self._facts  # noqa: B018 — raises where it is not loaded
        if self._client.is_running:
            return self._client.submit(make)
        starting = asyncio.ensure_future(asyncio.to_thread(self._client.submit, make))  # it loads the model again
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(self._leave_unasked)
            raise

    def _leave_unasked(self, starting: asyncio.Future[Waiter]) -> None:
        """Cancel a request whose task was cancelled before it was sent."""
        if not starting.cancelled() and starting.exception() is None:
            self._client.leave(starting.result())

    async def _call(self, make: Callable[[int], protocol.Request]) -> protocol.Result:
        waiter = await self._submit(make)
        try:
            while not isinstance(event := await self._next(waiter), protocol.Result):
                pass
            return event
        finally:
            self._client.leave(waiter)

    async def _next(self, waiter: Waiter) -> protocol.Event:
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed under the answer: nobody waits any more
                loop.call_soon_threadsafe(arrived.set)

        if (event := waiter.poll()) is not None:
            return event
        waiter.listen(wake)
        while (event := waiter.poll()) is None:
            await arrived.wait()
            arrived.clear()
        return event
