"""From token ids to pieces of text: three small machines in a row.

``TokenRun`` gives the tokens of one answer, ``Utf8Buffer`` and ``StopBuffer`` make text of them, ``stream_text`` joins
all three. Incomplete characters and possible stop strings are held back here and nowhere else.
"""

from __future__ import annotations

import codecs
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from zephyr_local.chat_types import Finish, FinishReason, Piece
from zephyr_local.engine.cancel import CancelFlag, Cancelled
from zephyr_local.errors import ContextExceededError
from zephyr_local.settings import Sampling

if TYPE_CHECKING:
    from zephyr_local.engine.llama import LlamaModel


class Utf8Buffer:
    """Turns the bytes of tokens into text, holding back a character whose bytes have not all come."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes) -> str:
        return self._decoder.decode(data)

    def finish(self) -> str:
        """What is left: U+FFFD for a character that never became whole."""
        return self._decoder.decode(b"", final=True)


class StopBuffer:
    """Lets text through until a stop string appears, holding back only what may be the beginning of one.

    Of several stop strings the one that is complete first counts, so that the outcome does not depend on how the text
    was cut into tokens.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """Text that is certainly part of the answer; after ``stopped`` there is no more."""
        if self.stopped:
            return ""
        if not self._stops:
            return text
        held = self._held + text
        found = [(start + len(stop), start) for stop in self._stops if (start := held.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return held[: min(found)[1]]
        keep = max((_partial_match(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def finish(self) -> str:
        """What was held back and turned out not to be a stop string."""
        held, self._held = self._held, ""
        return held


def _partial_match(text: str, stop: str) -> int:
    """The length of the longest end of ``text`` that ``stop`` begins with, short of all of it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


class TokenRun:
    """The tokens of one answer, end-of-generation tokens excluded, and what they cost.

    Iterate it once. Never more than ``max_tokens`` tokens are sampled, an end-of-generation token included, and never
    more than the context holds. A token is decoded only when the one after it is asked for.
    """

    def __init__(
        self, model: LlamaModel, prompt: Sequence[int], sampling: Sampling, cancel: CancelFlag | None = None
    ) -> None:
        """Raises ContextExceededError where ``prompt`` leaves no room for a single token."""
        room = model.n_ctx - len(prompt)
        if room < 1:
            raise ContextExceededError(
                f"the chat has {len(prompt)} tokens and the context {model.n_ctx}, which leaves no room for an answer",
                "Shorten or clear the chat, or load the model with a larger n_ctx",
            )
        self._model, self._prompt, self._sampling = model, prompt, sampling
        self._cancel = cancel or CancelFlag()
        self._limit = room if sampling.max_tokens is None else min(room, sampling.max_tokens)
        self._reason: FinishReason = "length"
        self._cached_tokens = self._n_sampled = 0
        self._asked_at = self._first_at = self._last_at = time.perf_counter()

    def __iter__(self) -> Iterator[int]:
        model, cancel = self._model, self._cancel
        sampler = model.sampler(self._sampling, self._prompt)
        try:
            self._cached_tokens = model.evaluate(self._prompt, cancel)
            while True:
                token = model.sample(sampler)
                self._count_token()
                if model.is_end_of_generation(token):
                    self._reason = "stop"
                    return
                yield token
                if self._n_sampled >= self._limit:
                    return
                model.append(token, cancel)
        except Cancelled:
            self._reason = "cancelled"
        finally:
            sampler.close()

    def _count_token(self) -> None:
        self._last_at = time.perf_counter()
        if self._n_sampled == 0:
            self._first_at = self._last_at
        self._n_sampled += 1

    def finish(self, *, stopped: bool = False) -> Finish:
        """The answer's end as far as it has come; ``stopped``: a stop string ended it."""
        return Finish(
            reason="stop" if stopped else self._reason,
            prompt_tokens=len(self._prompt),
            cached_tokens=self._cached_tokens,
            completion_tokens=self._n_sampled,
            prompt_s=(self._first_at if self._n_sampled else time.perf_counter()) - self._asked_at,
            completion_s=self._last_at - self._first_at,
        )


def stream_text(
    model: LlamaModel, prompt: Sequence[int], sampling: Sampling, cancel: CancelFlag | None = None
) -> Iterator[Piece]:
    """The answer to a prompt of token ids, as text; the last piece has ``finish``, and its text may be empty.

    Raises ContextExceededError at once, not when the first piece is asked for.
    """
    return _stream_text(model, TokenRun(model, prompt, sampling, cancel), StopBuffer(sampling.stop))


def _stream_text(model: LlamaModel, run: TokenRun, stops: StopBuffer) -> Iterator[Piece]:
    characters = Utf8Buffer()
    for token in run:
        text = stops.feed(characters.feed(model.token_to_bytes(token)))
        if stops.stopped:
            yield Piece(text, run.finish(stopped=True))
            return
        if text:
            yield Piece(text)
    text = stops.feed(characters.finish())
    if not stops.stopped:
        text += stops.finish()
    yield Piece(text, run.finish(stopped=stops.stopped))
