"""A conversation in memory: turns, and one answer at a time."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

from zephyr_local.chat_types import Finish, Message, Piece
from zephyr_local.settings import Sampling

if TYPE_CHECKING:
    from zephyr_local.api import Zephyr


class Conversation:
    """The turns of one chat with one loaded model."""

    def __init__(
        self, zephyr: Zephyr, sampling: Sampling, *, system: str | None = None, show_timings: bool = False
    ) -> None:
        self.zephyr = zephyr
        self.sampling = sampling
        self.show_timings = show_timings
        self._system = (Message("system", system),) if system is not None else ()
        self._turns: list[Message] = []

    @property
    def messages(self) -> tuple[Message, ...]:
        """The system prompt, if any, and all turns so far."""
        return (*self._system, *self._turns)

    def clear(self) -> None:
        """Forget all turns; the system prompt stays."""
        self._turns.clear()

    def ask(self, question: str) -> Generator[Piece, None, None]:
        """Yield the answer in pieces, and keep both turns.

        An answer that is cut short (the iterator closed, Ctrl+C) keeps what came. Where nothing came, because the
        chat does not fit or the engine failed, the question is taken back, so that it can be asked differently.
        """
        self._turns.append(Message("user", question))
        parts: list[str] = []
        try:
            for piece in self.zephyr.stream(self.messages, self.sampling):
                parts.append(piece.text)
                yield piece
        finally:
            answer = "".join(parts)
            if answer:
                self._turns.append(Message("assistant", answer))
            else:
                self._turns.pop()


def timing_line(finish: Finish) -> str:
    """One line of counts and rates, such as ``--verbose`` shows after an answer."""
    new_tokens = finish.prompt_tokens - finish.cached_tokens
    prefill = f"{new_tokens / finish.prompt_s:.0f}/s" if finish.prompt_s > 0 else "-"
    steps = finish.completion_tokens - 1  # the first token is sampled from the prefill's logits
    decode = f"{steps / finish.completion_s:.1f}/s" if finish.completion_s > 0 and steps > 0 else "-"
    return (
        f"[prompt {finish.prompt_tokens} tokens, {finish.cached_tokens} cached, first token after "
        f"{finish.prompt_s:.2f} s ({prefill}); answer {finish.completion_tokens} tokens, {decode}; {finish.reason}]"
    )
