"""The chat of :mod:`zephyr_local.chat` for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Protocol, Self, TypeVar

from zephyr_local.chat_file import read_chat, write_chat
from zephyr_local.chat_fit import CountTokens, Steps
from zephyr_local.chat_state import Answering, ChatState, Model
from zephyr_local.chat_types import Message, OnPrefill, Piece, Reply
from zephyr_local.errors import ContextExceededError
from zephyr_local.settings import Sampling

_T = TypeVar("_T")


class AsyncChatModel(Model, Protocol):
    """What a chat asks of a model; :class:`zephyr_local.async_api.AsyncZephyr` has it."""

    def stream(
        self,
        messages: tuple[Message, ...],
        sampling: Sampling | None = None,
        *,
        answer_start: str = "",
        on_prefill: OnPrefill | None = None,
    ) -> AsyncGenerator[Piece, None]: ...

    async def complete(self, messages: tuple[Message, ...], sampling: Sampling | None = None) -> Reply: ...

    async def count_tokens(self, messages: tuple[Message, ...]) -> int: ...


class AsyncChat(ChatState[AsyncChatModel]):
    """A chat with a loaded model. One answer at a time: a second one meanwhile raises InvalidInputError.

    Several chats may share a model. An answer that is cut short (its iterator closed, its task cancelled) keeps what
    came; where nothing came, the question is taken back. Whoever leaves an iterator before its end closes it with
    ``contextlib.aclosing``: asyncio closes a dropped one some time later, and until then the chat is busy.
    """

    def stream(
        self, text: str, sampling: Sampling | None = None, *, on_prefill: OnPrefill | None = None
    ) -> AsyncGenerator[Piece, None]:
        """The answer to a question, piece by piece; the last piece has ``finish``."""
        return self._pieces(self._ask(text), sampling, on_prefill)

    async def ask(self, text: str, sampling: Sampling | None = None) -> Reply:
        """The whole answer to a question."""
        answer = self._ask(text)
        async with contextlib.aclosing(self._pieces(answer, sampling)) as pieces:
            async for _ in pieces:
                pass
        return answer.reply()

    def regenerate(
        self, sampling: Sampling | None = None, *, on_prefill: OnPrefill | None = None
    ) -> AsyncGenerator[Piece, None]:
        """Another answer to the last question, as :meth:`stream`; the one before stays as a sibling."""
        return self._pieces(self._ask_again(), sampling, on_prefill)

    def edit(
        self, index: int, text: str, sampling: Sampling | None = None, *, on_prefill: OnPrefill | None = None
    ) -> AsyncGenerator[Piece, None]:
        """The answer to ``text`` in place of the question at turn ``index``, as :meth:`stream`.

        The old question stays as a sibling, with all that followed it.
        """
        return self._pieces(self._ask_edited(index, text), sampling, on_prefill)

    def continue_answer(
        self, sampling: Sampling | None = None, *, on_prefill: OnPrefill | None = None
    ) -> AsyncGenerator[Piece, None]:
        """What follows the last answer, which was cut short, as :meth:`stream`.

        Both together are a new answer, beside which the shorter one stays; where nothing follows, it stays alone.
        """
        return self._pieces(self._go_on(), sampling, on_prefill)

    async def save(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`to_json` to a file, whole or not at all; raises OutputError."""
        await asyncio.to_thread(write_chat, Path(path), self.to_json())

    @classmethod
    async def load(cls, zephyr: AsyncChatModel, path: str | os.PathLike[str]) -> Self:
        """The chat that :meth:`save` wrote; raises InvalidInputError for anything else."""
        return cls.of(zephyr, await asyncio.to_thread(read_chat, Path(path)))

    async def _pieces(
        self, answer: Answering, sampling: Sampling | None, on_prefill: OnPrefill | None = None
    ) -> AsyncGenerator[Piece, None]:
        with answer:
            sampling = answer.sampling(sampling)
            messages = await self._follow(answer.messages(sampling))
            stream = self.zephyr.stream(messages, sampling, answer_start=answer.answer_start, on_prefill=on_prefill)
            async with contextlib.aclosing(stream) as pieces:
                async for piece in pieces:
                    answer.add(piece)
                    yield piece

    async def _follow(self, steps: Steps[_T]) -> _T:
        told: int | str | None = None
        while True:
            try:
                step = steps.send(told)
            except StopIteration as end:
                result: _T = end.value
                return result
            try:
                if isinstance(step, CountTokens):
                    told = await self.zephyr.count_tokens(step.messages)
                else:
                    told = (await self.zephyr.complete(step.messages, step.sampling)).text
            except ContextExceededError:
                told = None
