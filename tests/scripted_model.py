"""Stands where a Zephyr stands, and answers from a list: what a chat is tested with."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence

from zephyr_local.chat_types import Finish, Message, Piece, Reply
from zephyr_local.errors import ContextExceededError
from zephyr_local.settings import Sampling

FINISH = Finish("stop", prompt_tokens=10, cached_tokens=4, completion_tokens=3, prompt_s=0.5, completion_s=0.2)

Script = Sequence[str | BaseException]
"""The pieces of an answer; an exception among them is raised there."""


class ScriptedModel:
    """Answers with the next script; a message has a token for each word and one more.

    Records what it was asked. ``counted_up_to``: chats with more tokens are refused already when they are counted.
    """

    def __init__(self, *answers: Script, n_ctx: int = 1000, counted_up_to: int = 1 << 30) -> None:
        self.answers = list(answers)
        self.n_ctx = n_ctx
        self.counted_up_to = counted_up_to
        self.default_sampling = Sampling(seed=7)
        self.asked: list[tuple[Message, ...]] = []
        self.starts: list[str] = []
        self.sampled: list[Sampling | None] = []
        self.closed = 0
        self.counts = 0

    def count_tokens(self, messages: Sequence[Message]) -> int:
        self.counts += 1
        tokens = sum(len(message.content.split()) + 1 for message in messages)
        if tokens > self.counted_up_to:
            raise ContextExceededError("far too long", "Shorten it")
        return tokens

    def stream(
        self,
        messages: tuple[Message, ...],
        sampling: Sampling | None = None,
        *,
        answer_start: str = "",
        on_prefill: object = None,
    ) -> Generator[Piece, None, None]:
        self.asked.append(messages)
        self.starts.append(answer_start)
        self.sampled.append(sampling)
        try:
            for text in self.answers.pop(0):
                if isinstance(text, BaseException):
                    raise text
                yield Piece(text)
            yield Piece("", FINISH)
        finally:
            self.closed += 1

    def complete(self, messages: tuple[Message, ...], sampling: Sampling | None = None) -> Reply:
        return Reply("".join(piece.text for piece in self.stream(messages, sampling)), FINISH)


class AsyncScriptedModel:
    """The same for asyncio; gives way to other tasks before every piece."""

    def __init__(self, model: ScriptedModel) -> None:
        self.model = model

    @property
    def n_ctx(self) -> int:
        return self.model.n_ctx

    @property
    def default_sampling(self) -> Sampling:
        return self.model.default_sampling

    async def count_tokens(self, messages: Sequence[Message]) -> int:
        return self.model.count_tokens(messages)

    async def stream(
        self,
        messages: tuple[Message, ...],
        sampling: Sampling | None = None,
        *,
        answer_start: str = "",
        on_prefill: object = None,
    ) -> AsyncGenerator[Piece, None]:
        import asyncio

        pieces = self.model.stream(messages, sampling, answer_start=answer_start)
        try:
            for piece in pieces:
                await asyncio.sleep(0)
                yield piece
        finally:
            pieces.close()

    async def complete(self, messages: tuple[Message, ...], sampling: Sampling | None = None) -> Reply:
        return self.model.complete(messages, sampling)
