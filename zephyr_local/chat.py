"""A chat that remembers: turns, branches, a policy for when the context is full, and a file to keep it in."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Final, Protocol, Self, TypeVar

from zephyr_local.chat_file import read_chat, write_chat
from zephyr_local.chat_fit import Complete, CountTokens, Steps
from zephyr_local.chat_state import Answering, ChatState, Model
from zephyr_local.chat_types import Finish, Message, OnPrefill, Piece, Reply
from zephyr_local.errors import ContextExceededError
from zephyr_local.settings import Sampling

_T = TypeVar("_T")


class _Cancelled(Exception):  # noqa: N818 — nothing is wrong
    """An answer was cancelled before it was asked for."""


_CANCELLED: Final = Piece("", Finish("cancelled", 0, 0, 0, 0.0, 0.0))


class Pieces(Iterator[Piece], Protocol):
    """An answer on its way; :class:`zephyr_local.piece_stream.PieceStream` is one."""

    def cancel(self) -> None: ...

    def close(self) -> None: ...


class ChatModel(Model, Protocol):
    """What a chat asks of a model; :class:`zephyr_local.api.Zephyr` has it."""

    def stream(
        self,
        messages: tuple[Message, ...],
        sampling: Sampling | None = None,
        *,
        answer_start: str = "",
        on_prefill: OnPrefill | None = None,
    ) -> Pieces: ...

    def count_tokens(self, messages: tuple[Message, ...]) -> int: ...


class Chat(ChatState[ChatModel]):
    """A chat with a loaded model. One answer at a time: a second one meanwhile raises InvalidInputError.

    Several chats may share a model. An answer that is cut short (its iterator closed, Ctrl+C) keeps what came; where
    nothing came, the question is taken back. Nothing happens before an iterator is asked for its first piece.
    """

    _pieces_now: Pieces | None = None  # of the answer that is being given
    _cancel_asked = False

    def stream(
        self, text: str, sampling: Sampling | None = None, *, on_prefill: OnPrefill | None = None
    ) -> Generator[Piece, None, None]:
        """The answer to a question, piece by piece; the last piece has ``finish``."""
        return self._pieces(self._ask(text), sampling, on_prefill)

    def ask(self, text: str, sampling: Sampling | None = None) -> Reply:
        """The whole answer to a question."""
        answer = self._ask(text)
        for _ in self._pieces(answer, sampling):
            pass
        return answer.reply()

    def regenerate(
        self, sampling: Sampling | None = None, *, on_prefill: OnPrefill | None = None
    ) -> Generator[Piece, None, None]:
        """Another answer to the last question, as :meth:`stream`; the one before stays as a sibling."""
        return self._pieces(self._ask_again(), sampling, on_prefill)

    def edit(
        self, index: int, text: str, sampling: Sampling | None = None, *, on_prefill: OnPrefill | None = None
    ) -> Generator[Piece, None, None]:
        """The answer to ``text`` in place of the question at turn ``index``, as :meth:`stream`.

        The old question stays as a sibling, with all that followed it.
        """
        return self._pieces(self._ask_edited(index, text), sampling, on_prefill)

    def continue_answer(
        self, sampling: Sampling | None = None, *, on_prefill: OnPrefill | None = None
    ) -> Generator[Piece, None, None]:
        """What follows the last answer, which was cut short, as :meth:`stream`.

        Both together are a new answer, beside which the shorter one stays; where nothing follows, it stays alone.
        """
        return self._pieces(self._go_on(), sampling, on_prefill)

    def cancel(self) -> None:
        """End the answer that is being given, from any thread; what came of it is kept. Without one, nothing."""
        self._cancel_asked = True
        if (pieces := self._pieces_now) is not None:
            pieces.cancel()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`to_json` to a file, whole or not at all; raises OutputError."""
        write_chat(Path(path), self.to_json())

    @classmethod
    def load(cls, zephyr: ChatModel, path: str | os.PathLike[str]) -> Self:
        """The chat that :meth:`save` wrote; raises InvalidInputError for anything else."""
        return cls.of(zephyr, read_chat(Path(path)))

    def _pieces(
        self, answer: Answering, sampling: Sampling | None, on_prefill: OnPrefill | None = None
    ) -> Generator[Piece, None, None]:
        with answer:
            self._cancel_asked = False
            sampling = answer.sampling(sampling)
            try:
                messages = self._follow(answer.messages(sampling))
            except _Cancelled:
                yield _CANCELLED
                return
            stream = self.zephyr.stream(messages, sampling, answer_start=answer.answer_start, on_prefill=on_prefill)
            with contextlib.closing(stream) as pieces:
                self._pieces_now = pieces
                try:
                    if self._cancel_asked:
                        pieces.cancel()
                    for piece in pieces:
                        answer.add(piece)
                        yield piece
                finally:
                    self._pieces_now = None

    def _follow(self, steps: Steps[_T]) -> _T:
        told: int | str | None = None
        while True:
            try:
                step = steps.send(told)
            except StopIteration as end:
                result: _T = end.value
                return result
            try:
                told = self._count(step) if isinstance(step, CountTokens) else self._summary(step)
            except ContextExceededError:
                told = None
            if self._cancel_asked:
                steps.close()
                raise _Cancelled

    def _count(self, step: CountTokens) -> int:
        return self.zephyr.count_tokens(step.messages)

    def _summary(self, step: Complete) -> str:
        with contextlib.closing(self.zephyr.stream(step.messages, step.sampling)) as pieces:
            self._pieces_now = pieces
            try:
                if self._cancel_asked:
                    pieces.cancel()
                return "".join(piece.text for piece in pieces)
            finally:
                self._pieces_now = None
