"""Requests of the decode loop that are cancelled: waiting, in prefill, in an answer, in any order and number."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.conftest import SETTINGS, SLOW
from tests.engine.scheduling import (
    GREEDY,
    Answer,
    Collector,
    Loop,
    answer_alone,
    assert_nothing_leaks,
    assert_same_answer,
)
from tests.engine.test_scheduler import ENDLESS, SMALL, random_prompt, up_to
from zephyr_local.engine.cancel import Cancelled
from zephyr_local.engine.cells import Sequence
from zephyr_local.engine.context import Segment
from zephyr_local.engine.llama import LlamaModel
from zephyr_local.engine.run import EmbedRun, Run
from zephyr_local.engine.scheduler import Scheduler
from zephyr_local.errors import EngineError
from zephyr_local.settings import Sampling

WATCHDOG_S = 2.0  # measured some milliseconds


class CancelsItself(Collector):
    """Cancels its own request at its n-th piece of text."""

    def __init__(self, scheduler: Scheduler, n_pieces: int) -> None:
        super().__init__(on_text=self._seen)
        self._scheduler, self._left = scheduler, n_pieces
        self.run: Run | None = None

    def _seen(self, _text: str) -> None:
        self._left -= 1
        if self._left == 0 and self.run is not None:
            self._scheduler.cancel(self.run)


def start_and_cancel_at(loop: Loop, prompt: list[int], n_pieces: int, sampling: Sampling = ENDLESS) -> Answer:
    sink = CancelsItself(loop.scheduler, n_pieces)
    sink.run = Run(prompt, sampling, sink)
    loop.scheduler.submit(sink.run)
    return Answer(sink.run, sink)


@pytest.fixture(scope="module")
def other_slow(slow_path: Path) -> Iterator[LlamaModel]:
    model = LlamaModel.load(slow_path, SLOW)
    yield model
    model.close()


def test_one_that_waits_ends_at_once(slow: LlamaModel) -> None:
    """Though those that run go on, and the one behind it is served."""
    with Loop(slow, SLOW) as loop:
        running = loop.start_all([[1, 290 + n] for n in range(SLOW.n_parallel)], up_to(150))
        while len(loop.scheduler._running) < SLOW.n_parallel:
            time.sleep(0.001)
        waiting, behind = loop.start([1, 300]), loop.start([1, 301], up_to(2))
        began = time.perf_counter()
        loop.cancel(waiting)
        finish = waiting.finish
        assert time.perf_counter() - began < WATCHDOG_S
        assert (finish.reason, finish.completion_tokens, finish.cached_tokens) == ("cancelled", 0, 0)
        assert waiting.text == ""
        assert not any(answer.sink.is_over for answer in running)
        assert [answer.finish.completion_tokens for answer in running] == [150] * SLOW.n_parallel
        assert behind.finish.completion_tokens == 2
        loop.cancel(waiting)  # again, and too late
        assert waiting.sink.n_ends == 1
        assert_nothing_leaks(loop)


def test_a_prefill_ends_in_its_middle_and_what_it_did_is_kept(slow: LlamaModel, other_slow: LlamaModel) -> None:
    prompt = random_prompt(random.Random(1), 3000)
    cancelled_at = 0.0

    def cancel() -> None:
        nonlocal cancelled_at
        cancelled_at = time.perf_counter()
        loop.cancel(answer)

    def progress(done: int, _total: int) -> None:
        if done == 3 * 128:
            threading.Timer(0.03, cancel).start()

    with Loop(slow, SLOW) as loop:
        with loop.scheduler._wake:
            answer = loop.start(prompt, up_to(4), Collector(on_progress=progress))
        finish = answer.finish
        assert time.perf_counter() - cancelled_at < WATCHDOG_S
        assert (finish.reason, finish.completion_tokens, finish.prompt_tokens) == ("cancelled", 0, 3000)
        (kept,) = loop.scheduler._kept
        assert 3 * 128 <= len(kept.tokens) < 3000
        assert kept.tokens == prompt[: len(kept.tokens)]
        assert slow.context.held(kept.id) == len(kept.tokens)
        n_kept = len(kept.tokens)
        short = [*prompt[: n_kept + 20], 300]
        after = loop.answer(short, up_to(8))
        assert after.finish.cached_tokens == n_kept
        assert_nothing_leaks(loop)
    alone = answer_alone(other_slow, SLOW, short, up_to(8))
    assert_same_answer(other_slow, short, alone.tokens, after.tokens)


def test_a_decode_ends_in_its_middle(slow: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only the chunk after it is left out."""
    decode, aborted = slow.context.decode, []

    def cancelled_meanwhile(segments: Any, **arguments: Any) -> list[int]:
        if segments[0].start == 256:
            loop.cancel(answer)
        try:
            return decode(segments, **arguments)
        except Cancelled:
            aborted.append(segments[0].start)
            raise

    monkeypatch.setattr(slow.context, "decode", cancelled_meanwhile)
    with Loop(slow, SLOW) as loop:
        with loop.scheduler._wake:
            answer = loop.start(random_prompt(random.Random(8), 1000), up_to(4))
        assert answer.finish.reason == "cancelled"
        assert aborted == [256]
        assert_nothing_leaks(loop)


def test_what_an_aborted_batch_did_is_not_done_again_nor_lost(
    tiny: LlamaModel, other: LlamaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Aborts at random places, of which the requests know nothing: each segment is decoded in part."""
    dice, decode, aborts, lost, done = random.Random(9), tiny.context.decode, 0, 0, 0

    def aborting(segments: list[Segment], **arguments: Any) -> list[int]:
        nonlocal aborts, lost, done
        if dice.random() < 0.7:
            done += sum(len(one.tokens) for one in segments)
            return decode(segments, **arguments)
        aborts += 1
        lost += len(segments)  # at most a token each, whose logits are lost
        parts = [replace(one, tokens=one.tokens[: dice.randrange(len(one.tokens) + 1)]) for one in segments]
        done += sum(len(part.tokens) for part in parts)
        if parts := [part for part in parts if part.tokens]:
            decode(parts, **arguments)
        raise Cancelled

    prompts = [random_prompt(dice, dice.randrange(1, 100)) for _ in range(6)]
    monkeypatch.setattr(tiny.context, "decode", aborting)
    with Loop(tiny, SETTINGS) as loop:
        answers = [answer.wait() for answer in loop.start_all(prompts, up_to(30))]
        assert aborts > 10
        assert done <= sum(map(len, prompts)) + 30 * len(prompts) + lost
        for sequence in loop.scheduler._kept:
            assert tiny.context.held(sequence.id) == len(sequence.tokens)
        assert_nothing_leaks(loop)
    for prompt, answer in zip(prompts, answers, strict=True):
        alone = answer_alone(other, SETTINGS, prompt, up_to(30))
        assert_same_answer(other, prompt, alone.tokens, answer.tokens)


@pytest.mark.parametrize("delay_s", [0.0, 0.01, 0.05])
def test_a_cancelled_prefill_leaves_the_answers_beside_it_alone(
    slow: LlamaModel, other_slow: LlamaModel, delay_s: float
) -> None:
    dice = random.Random(2)
    prompts = [random_prompt(dice, 20) for _ in range(2)]
    with Loop(slow, SLOW) as loop:
        beside = loop.start_all(prompts, up_to(40))
        while not all(answer.sink.pieces for answer in beside):
            time.sleep(0.001)
        filling: list[Answer] = []

        def progress(done: int, _total: int) -> None:
            if done >= 64:
                threading.Timer(delay_s, lambda: loop.cancel(filling[0])).start()

        with loop.scheduler._wake:
            filling.append(loop.start(random_prompt(dice, 3000), up_to(4), Collector(on_progress=progress)))
        assert filling[0].finish.reason == "cancelled"
        assert filling[0].finish.completion_tokens == 0
        for answer in beside:
            assert answer.finish.completion_tokens == 40
        for sequence in loop.scheduler._kept:
            assert slow.context.held(sequence.id) == len(sequence.tokens)
        assert_nothing_leaks(loop)
    for prompt, answer in zip(prompts, beside, strict=True):
        alone = answer_alone(other_slow, SLOW, prompt, up_to(40))
        assert_same_answer(other_slow, prompt, alone.tokens, answer.tokens)


@pytest.mark.parametrize("n_pieces", [1, 2, 17])
def test_an_answer_ends_and_the_next_one_is_right(tiny: LlamaModel, other: LlamaModel, n_pieces: int) -> None:
    prompt = [1, *tiny.tokenize("the hen")]
    with Loop(tiny, SETTINGS) as loop:
        cancelled = start_and_cancel_at(loop, prompt, n_pieces)
        finish = cancelled.finish
        assert finish.reason == "cancelled"
        assert n_pieces <= finish.completion_tokens < n_pieces + 20  # bytes of a character come without a piece
        assert len(cancelled.tokens) == finish.completion_tokens
        again = loop.answer(prompt, up_to(40))
        assert again.finish.cached_tokens == len(prompt) - 1
        assert again.text.startswith("".join(cancelled.sink.pieces[:-1]))
        assert_nothing_leaks(loop)
    alone = answer_alone(other, SETTINGS, prompt, up_to(40))
    assert_same_answer(other, prompt, alone.tokens, again.tokens)


def test_one_of_several_in_a_batch(tiny: LlamaModel, other: LlamaModel) -> None:
    dice = random.Random(3)
    prompts = [random_prompt(dice, 20) for _ in range(3)]
    with Loop(tiny, SETTINGS) as loop:
        with loop.scheduler._wake:
            answers = loop.start_all(prompts[:2], up_to(60))
            cancelled = start_and_cancel_at(loop, random_prompt(dice, 20), 5)
            answers.append(loop.start(prompts[2], up_to(60)))
        assert cancelled.finish.reason == "cancelled"
        for prompt, answer in zip(prompts, answers, strict=True):
            assert answer.finish.completion_tokens == 60
            alone = answer_alone(other, SETTINGS, prompt, up_to(60))
            assert_same_answer(other, prompt, alone.tokens, answer.tokens)
        assert_nothing_leaks(loop)


def test_one_that_is_paused_keeps_what_it_said(tiny_path: Path) -> None:
    model, alone = LlamaModel.load(tiny_path, SMALL), LlamaModel.load(tiny_path, SMALL)
    with Loop(model, SMALL) as loop:
        paused: list[Run] = []
        pause = loop.scheduler._pause

        def pause_and_cancel(run: Run) -> None:
            pause(run)
            if not paused:
                paused.append(run)
                loop.scheduler.cancel(run)

        loop.scheduler._pause = pause_and_cancel  # type: ignore[method-assign]
        answers = loop.start_all([[1, 280 + n] for n in range(4)], ENDLESS)
        reasons = [answer.finish.reason for answer in answers]
        assert sorted(reasons) == ["cancelled", "length", "length", "length"]
        cancelled = answers[reasons.index("cancelled")]
        assert cancelled.run is paused[0]
        assert cancelled.finish.completion_tokens == len(cancelled.tokens) > 10
        prompt = cancelled.run.target[:2]
        expected = answer_alone(alone, SMALL, prompt, up_to(len(cancelled.tokens)))
        assert_same_answer(alone, prompt, expected.tokens, cancelled.tokens)
        assert_nothing_leaks(loop)
    model.close()
    alone.close()


def test_before_it_is_asked_and_after_it_ended(tiny: LlamaModel) -> None:
    with Loop(tiny, SETTINGS) as loop:
        answer = Answer(Run([1, 300], GREEDY, sink := Collector()), sink)
        loop.cancel(answer)
        loop.scheduler.submit(answer.run)
        assert answer.finish.reason == "cancelled"
        done = loop.answer([1, 300])
        loop.cancel(done)
        assert loop.answer([1, 300]).text == done.text
        assert done.sink.n_ends == answer.sink.n_ends == 1


def test_an_embedding(slow: LlamaModel) -> None:
    with Loop(slow, SLOW) as loop:
        sink = Collector(on_progress=lambda done, total: loop.scheduler.cancel(run) if done == 256 else None)
        run = EmbedRun(random_prompt(random.Random(4), 3000), sink)
        loop.scheduler.submit(run)
        sink.wait()
        assert isinstance(sink.error, EngineError)
        assert "cancelled" in str(sink.error)
        assert sink.steps[-1] == (256, 3000)
        assert loop.answer([1, 300], up_to(2)).finish.completion_tokens == 2
        assert_nothing_leaks(loop)


def test_closing_ends_all_of_them(slow: LlamaModel) -> None:
    dice = random.Random(5)
    for delay_s in (0.0, 0.05, 0.3):
        loop = Loop(slow, SLOW)
        with loop:
            answers = loop.start_all([random_prompt(dice, 400) for _ in range(6)], ENDLESS)
            waits = Collector()
            loop.scheduler.submit(EmbedRun([1, 300], waits))
            time.sleep(delay_s)
            began = time.perf_counter()
        assert time.perf_counter() - began < WATCHDOG_S
        assert [answer.finish.reason for answer in answers] == ["cancelled"] * 6
        assert [answer.sink.n_ends for answer in answers] == [1] * 6
        assert waits.n_ends == 1
        assert_nothing_leaks(loop)


def test_closing_while_one_is_being_paused(tiny_path: Path) -> None:
    """It is neither among the running ones then nor among the waiting."""
    model = LlamaModel.load(tiny_path, SMALL)
    with Loop(model, SMALL) as loop:
        drop = loop.scheduler._drop

        def close_and_drop(sequence: Sequence) -> None:
            loop.scheduler._drop = drop  # type: ignore[method-assign]
            loop.scheduler.close()
            drop(sequence)

        loop.scheduler._drop = close_and_drop  # type: ignore[method-assign]
        answers = loop.start_all([[1, 280 + n] for n in range(4)], ENDLESS)
        assert [answer.finish.reason for answer in answers] == ["cancelled"] * 4
    model.close()


@pytest.mark.parametrize("seed", range(3))
def test_nothing_leaks_after_hundreds_of_requests_and_cancels(tiny_path: Path, seed: int) -> None:
    settings = replace(SMALL, n_parallel=3, n_batch=32)
    dice, model = random.Random(seed), LlamaModel.load(tiny_path, settings)
    with Loop(model, settings) as loop:
        asked: list[tuple[list[int], Answer, int]] = []
        embeddings: list[Collector] = []
        stems = [random_prompt(dice, 80) for _ in range(4)]
        for _ in range(250):
            prompt = dice.choice(stems)[: dice.randrange(1, 80)] + random_prompt(dice, dice.randrange(1, 60))
            max_tokens = dice.choice((1, 3, 20, 60, 250))
            asked.append((prompt, loop.start(prompt, up_to(max_tokens)), max_tokens))
            if dice.random() < 0.05:
                embeddings.append(Collector())
                loop.scheduler.submit(EmbedRun(prompt, embeddings[-1]))
            if dice.random() < 0.5:
                loop.cancel(dice.choice(asked[-8:])[1])
            if dice.random() < 0.3:
                time.sleep(dice.random() * 0.02)
        for prompt, answer, max_tokens in asked:
            finish = answer.finish
            assert answer.sink.n_ends == 1
            assert finish.prompt_tokens == len(prompt)
            assert finish.completion_tokens == len(answer.tokens)
            if finish.reason == "length":
                assert finish.completion_tokens == min(max_tokens, 256 - len(prompt))
        for sink in embeddings:
            sink.wait()
            assert sink.n_ends == 1
            assert sink.embedding is not None
            assert np.linalg.norm(sink.embedding) == pytest.approx(1.0)
        assert_nothing_leaks(loop)
    for prompt, answer, _ in dice.sample(asked, 40):
        if answer.tokens:
            alone = answer_alone(model, settings, prompt, up_to(len(answer.tokens)))
            assert_same_answer(model, prompt, alone.tokens, answer.tokens)
    model.close()
