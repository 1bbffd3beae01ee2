"""A decode loop on a thread of its own, for tests, and what its requests got."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import TracebackType

import numpy as np

from tests.llama_eval import Evaluator
from zephyr_local.chat_types import Finish, Message, TokenLogprob
from zephyr_local.engine.llama import LlamaModel
from zephyr_local.engine.run import EmbedRun, Run
from zephyr_local.engine.scheduler import Scheduler
from zephyr_local.engine.session import Session
from zephyr_local.settings import EngineSettings, Sampling

GREEDY = Sampling(temperature=0.0, max_tokens=24)
TIMEOUT_S = 120.0  # a watchdog
NEAR_TIE = 0.01  # logits that differ by less may change places when the batch is another


class Collector:
    """A sink that keeps what comes; ``on_text`` and ``on_progress`` are called on the decode thread."""

    def __init__(
        self,
        *,
        on_text: Callable[[str], object] | None = None,
        on_progress: Callable[[int, int], object] | None = None,
    ) -> None:
        self._on_text, self._on_progress = on_text, on_progress
        self._over = threading.Event()
        self.n_ends = 0
        self.pieces: list[str] = []
        self.steps: list[tuple[int, int]] = []
        self.logprobs: list[TokenLogprob] = []
        self.logprobs_by_piece: list[int] = []
        self.finish: Finish | None = None
        self.embedding: list[float] | None = None
        self.error: Exception | None = None

    def progress(self, done: int, total: int) -> None:
        self.steps.append((done, total))
        if self._on_progress is not None:
            self._on_progress(done, total)

    def text(self, text: str, logprobs: tuple[TokenLogprob, ...]) -> None:
        self.pieces.append(text)
        self.logprobs += logprobs
        self.logprobs_by_piece.append(len(logprobs))
        if self._on_text is not None:
            self._on_text(text)

    def finished(self, text: str, logprobs: tuple[TokenLogprob, ...], finish: Finish) -> None:
        self.pieces.append(text)
        self.logprobs += logprobs
        self.logprobs_by_piece.append(len(logprobs))
        self.finish = finish
        self._end()

    def embedded(self, embedding: list[float]) -> None:
        self.embedding = embedding
        self._end()

    def failed(self, error: Exception) -> None:
        self.error = error
        self._end()

    def _end(self) -> None:
        self.n_ends += 1
        self._over.set()

    @property
    def is_over(self) -> bool:
        return self._over.is_set()

    def wait(self) -> None:
        assert self._over.wait(TIMEOUT_S), "the request never ended"


class Answer:
    """A request and what has come of it."""

    def __init__(self, run: Run, sink: Collector) -> None:
        self.run, self.sink = run, sink

    def wait(self) -> Answer:
        """Wait for its end; an error comes out."""
        self.sink.wait()
        if self.sink.error is not None:
            raise self.sink.error
        return self

    @property
    def text(self) -> str:
        return "".join(self.sink.pieces)

    @property
    def tokens(self) -> list[int]:
        return self.run.generated

    @property
    def finish(self) -> Finish:
        self.wait()
        assert self.sink.finish is not None
        return self.sink.finish


class Loop:
    """A scheduler that runs on a thread until the block ends."""

    def __init__(self, model: LlamaModel, settings: EngineSettings) -> None:
        self.model = model
        self.scheduler = Scheduler(model, settings)
        self.scheduler.tell_s = 0.0  # a piece for each token
        self._thread = threading.Thread(target=self.scheduler.run, daemon=True)

    def __enter__(self) -> Loop:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.scheduler.close()
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive(), "the loop did not end"

    def start(self, prompt: Sequence[int], sampling: Sampling = GREEDY, sink: Collector | None = None) -> Answer:
        sink = sink or Collector()
        run = Run(prompt, sampling, sink)
        self.scheduler.submit(run)
        return Answer(run, sink)

    def start_all(self, prompts: Sequence[Sequence[int]], sampling: Sampling = GREEDY) -> list[Answer]:
        """All of them before the loop sees the first."""
        with self.scheduler._wake:
            return [self.start(prompt, sampling) for prompt in prompts]

    def answer(self, prompt: Sequence[int], sampling: Sampling = GREEDY) -> Answer:
        return self.start(prompt, sampling).wait()

    def cancel(self, answer: Answer) -> None:
        self.scheduler.cancel(answer.run)

    def embed(self, tokens: Sequence[int]) -> list[float]:
        sink = Collector()
        self.scheduler.submit(EmbedRun(tokens, sink))
        sink.wait()
        if sink.error is not None:
            raise sink.error
        assert sink.embedding is not None
        return sink.embedding


def answer_alone(model: LlamaModel, settings: EngineSettings, prompt: Sequence[int], sampling: Sampling) -> Answer:
    """The answer of a loop that has nothing else to do and nothing in its cache."""
    with Loop(model, settings) as loop:
        answer = loop.answer(prompt, sampling)
        forget_kept(loop)
    return answer


def chat_answer(session: Session, settings: EngineSettings, messages: list[Message], sampling: Sampling) -> str:
    """The answer to a chat, on a loop of its own; leaves the model as it was."""
    with Loop(session.model, settings) as loop:
        answer = loop.answer(session.prompt.encode(messages).ids, sampling)
        forget_kept(loop)
    return answer.text


def forget_kept(loop: Loop) -> None:
    """End the loop and drop the finished sequences that it kept."""
    loop.close()
    scheduler = loop.scheduler
    assert not scheduler._running
    for sequence in list(scheduler._kept):
        scheduler._drop(sequence)


def assert_nothing_leaks(loop: Loop) -> None:
    """Ends the loop. Without what it kept every cell and every id is free, in our books and in llama.cpp's."""
    forget_kept(loop)
    scheduler, context = loop.scheduler, loop.model.context
    assert not scheduler._waiting
    assert not scheduler._inbox
    assert scheduler._ledger.n_free == scheduler._ledger.capacity == context.n_ctx
    assert sorted(scheduler._free_ids) == list(range(context.n_sequences))
    assert [context.held(sequence) for sequence in range(context.n_sequences)] == [0] * context.n_sequences


def assert_same_answer(model: LlamaModel, prompt: Sequence[int], one: list[int], other: list[int]) -> None:
    """Greedy answers are the same up to where the two best logits are nearly equal.

    ``model`` is one that no loop uses. A shorter answer that the other begins with is a difference, too.
    """
    if one == other:
        return
    place = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    evaluator = Evaluator(model)
    evaluator.evaluate([*prompt, *one[:place]])
    best = np.sort(evaluator.logits())[-2:]
    model.context.truncate(0, 0)
    assert best[1] - best[0] < NEAR_TIE, f"answers differ at token {place}: {one[place:][:3]}, {other[place:][:3]}"
