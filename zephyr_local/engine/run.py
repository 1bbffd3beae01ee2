"""One request on its way through the decode loop: its tokens, its sampler, its text."""

from __future__ import annotations

import time
from collections.abc import Sequence as Tokens
from typing import Protocol

import numpy as np
import numpy.typing as npt

from zephyr_local.chat_types import Finish, FinishReason, TokenLogprob
from zephyr_local.engine.cells import Sequence
from zephyr_local.engine.llama import LlamaModel
from zephyr_local.engine.samplers import Sampler, make_sampler
from zephyr_local.engine.text import StopBuffer, Utf8Buffer
from zephyr_local.settings import Sampling


class Sink(Protocol):
    """Where a run's events go; called on the decode thread, must not wait. One of the last three ends it."""

    def progress(self, done: int, total: int) -> None: ...

    def text(self, text: str, logprobs: tuple[TokenLogprob, ...]) -> None: ...

    def finished(self, text: str, logprobs: tuple[TokenLogprob, ...], finish: Finish) -> None: ...

    def embedded(self, embedding: list[float]) -> None: ...

    def failed(self, error: Exception) -> None: ...


class Run:
    """An answer that is being given. The decode loop alone touches it, but for ``cancelled``."""

    def __init__(self, prompt: Tokens[int], sampling: Sampling, sink: Sink) -> None:
        self.prompt_tokens, self.sampling, self.sink = len(prompt), sampling, sink
        self.target = list(prompt)
        """The prompt and what was sampled: what the cache must hold before the next token is sampled."""
        self.sequence: Sequence | None = None
        self.cancelled = False
        self.cached_tokens: int | None = None
        self.full_text: list[str] = []
        self._untold = ""
        self._sampler: Sampler | None = None
        self._characters, self._stops = Utf8Buffer(), StopBuffer(sampling.stop)
        self._logprobs: list[TokenLogprob] = []
        self.n_sampled = 0
        self._asked_at = self._first_at = self._last_at = time.perf_counter()

    @property
    def pending(self) -> int:
        """Tokens to decode before the next one can be sampled."""
        return len(self.target) - (len(self.sequence.tokens) if self.sequence is not None else 0)

    @property
    def stopped(self) -> bool:
        """Whether a stop string ended it."""
        return self._stops.stopped

    @property
    def generated(self) -> list[int]:
        """The tokens of the answer, without one that ended it."""
        return self.target[self.prompt_tokens :]

    def sampler(self, model: LlamaModel) -> Sampler:
        if self._sampler is None:
            self._sampler = make_sampler(model, self.sampling, self.target)
        return self._sampler

    def take(self, token: int, model: LlamaModel) -> FinishReason | None:
        """Take the sampled token, whose text ``tell`` tells; a reason where the answer ends with it."""
        self._last_at = time.perf_counter()
        if self.n_sampled == 0:
            self._first_at = self._last_at
        self.n_sampled += 1
        if model.is_end_of_generation(token):
            return "stop"
        self.target.append(token)
        self._untold += self._stops.feed(self._characters.feed(model.token_to_bytes(token)))
        if self.stopped:
            return "stop"
        limit = self.sampling.max_tokens
        if len(self.target) >= model.n_ctx or (limit is not None and self.n_sampled >= limit):
            return "length"
        return None

    def note_logprobs(self, logits: npt.NDArray[np.float32], token: int, model: LlamaModel) -> None:
        """Keep the log probability of ``token``; logits of shape (n_vocab,), before any sampler."""
        wanted = self.sampling.logprobs
        if wanted is None:
            return
        shifted = logits.astype(np.float64) - logits.max()
        log_probabilities = shifted - np.log(np.exp(shifted).sum())
        best = np.argsort(-log_probabilities, kind="stable")[:wanted]

        def entry(one: int, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
            text = model.token_to_bytes(one).decode("utf-8", "replace")
            return TokenLogprob(one, text, float(log_probabilities[one]), top)

        self._logprobs.append(entry(token, tuple(entry(int(one)) for one in best)))

    def tell(self) -> None:
        """Give the sink the text that it has not had yet."""
        if text := self._take_text():
            self.sink.text(text, self._take_logprobs())

    def finish(self, reason: FinishReason) -> None:
        """Tell the sink the end, with what was held back."""
        if not self.stopped:
            self._untold += self._stops.feed(self._characters.finish())
            if self.stopped:
                reason = "stop"
            else:
                self._untold += self._stops.finish()
        text = self._take_text()
        self.close()
        self.sink.finished(text, self._take_logprobs(), self._finish(reason))

    def fail(self, error: Exception) -> None:
        self.tell()
        self.close()
        self.sink.failed(error)

    def close(self) -> None:
        if self._sampler is not None:
            self._sampler.close()

    def _take_text(self) -> str:
        taken, self._untold = self._untold, ""
        if taken:
            self.full_text.append(taken)
        return taken

    def _take_logprobs(self) -> tuple[TokenLogprob, ...]:
        taken, self._logprobs = tuple(self._logprobs), []
        return taken

    def _finish(self, reason: FinishReason) -> Finish:
        return Finish(
            reason=reason,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens or 0,
            completion_tokens=self.n_sampled,
            prompt_s=(self._first_at if self.n_sampled else time.perf_counter()) - self._asked_at,
            completion_s=self._last_at - self._first_at,
        )


class EmbedRun:
    """A text whose embedding is wanted."""

    def __init__(self, tokens: Tokens[int], sink: Sink) -> None:
        self.target, self.sink, self.cancelled = list(tokens), sink, False

    def fail(self, error: Exception) -> None:
        self.sink.failed(error)
