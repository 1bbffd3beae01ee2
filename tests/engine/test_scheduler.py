"""The decode loop: several answers at once, their order, their prefixes, their cells; on a tiny random model."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.engine.conftest import SETTINGS
from tests.engine.scheduling import (
    GREEDY,
    Answer,
    Collector,
    Loop,
    answer_alone,
    assert_nothing_leaks,
    assert_same_answer,
)
from tests.gguf_builder import tiny_model
from tests.llama_eval import Evaluator
from zephyr_local.engine.llama import LlamaModel
from zephyr_local.errors import ContextExceededError, EngineError, InvalidInputError
from zephyr_local.settings import EngineSettings, Sampling

SMALL = replace(SETTINGS, n_ctx=256)
BAN_END = {2: float("-inf")}
ENDLESS = Sampling(temperature=0.0, logit_bias=BAN_END)


def up_to(max_tokens: int) -> Sampling:
    return Sampling(temperature=0.0, logit_bias=BAN_END, max_tokens=max_tokens)


def random_prompt(dice: random.Random, length: int) -> list[int]:
    return [1, *(dice.randrange(260, 310) for _ in range(length - 1))]


@pytest.fixture
def loop(tiny: LlamaModel) -> Iterator[Loop]:
    with Loop(tiny, SETTINGS) as loop:
        yield loop


@pytest.fixture
def small(tiny_path: Path) -> Iterator[LlamaModel]:
    model = LlamaModel.load(tiny_path, SMALL)
    yield model
    model.close()


def assert_as_alone(other: LlamaModel, answers: list[Answer], sampling: Sampling, settings: EngineSettings) -> None:
    for answer in answers:
        prompt = answer.run.target[: answer.run.prompt_tokens]
        alone = answer_alone(other, settings, prompt, sampling)
        assert_same_answer(other, prompt, alone.tokens, answer.tokens)
        assert answer.text == b"".join(map(other.token_to_bytes, answer.tokens)).decode(errors="replace")


# --- several at once ---


def test_several_answers_at_once_are_those_given_alone(loop: Loop, other: LlamaModel) -> None:
    dice = random.Random(1)
    prompts = [random_prompt(dice, length) for length in (2, 60, 9, 31, 1, 90, 17)]
    answers = [answer.wait() for answer in loop.start_all(prompts)]
    assert_as_alone(other, answers, GREEDY, SETTINGS)
    assert [answer.finish.prompt_tokens for answer in answers] == [len(prompt) for prompt in prompts]
    assert_nothing_leaks(loop)


@pytest.mark.parametrize("n_batch", [1, 5, 40])
def test_answers_do_not_depend_on_the_batch(tiny_path: Path, other: LlamaModel, n_batch: int) -> None:
    settings = replace(SETTINGS, n_batch=n_batch)
    model, dice = LlamaModel.load(tiny_path, settings), random.Random(2)
    with Loop(model, settings) as loop:
        answers = [answer.wait() for answer in loop.start_all([random_prompt(dice, 50) for _ in range(6)])]
        assert_nothing_leaks(loop)
    assert_as_alone(other, answers, GREEDY, SETTINGS)
    model.close()


def test_each_answer_has_a_sampler_of_its_own(loop: Loop, other: LlamaModel) -> None:
    prompt = [1, 300, 301]
    settings = [Sampling(temperature=1.5, seed=seed, max_tokens=20, logit_bias=BAN_END) for seed in (1, 2, 3, 1)]
    answers = [loop.start(prompt, sampling) for sampling in settings]
    texts = [answer.wait().text for answer in answers]
    assert texts[0] == texts[3]
    assert len(set(texts)) == 3
    assert texts[1] == answer_alone(other, SETTINGS, prompt, settings[1]).text


def test_first_come_first_served_and_never_more_than_allowed(loop: Loop) -> None:
    most, began = 0, []

    def begins(number: int) -> Collector:
        def seen(_done: int, _total: int) -> None:
            nonlocal most
            most = max(most, len(loop.scheduler._running))
            began.append(number)

        return Collector(on_progress=seen)

    dice = random.Random(3)
    with loop.scheduler._wake:
        answers = [
            loop.start(random_prompt(dice, 12), up_to(3 + number * 5 % 7), begins(number)) for number in range(12)
        ]
    for answer in answers:
        assert answer.finish.reason == "length"
    assert began == list(range(12))
    assert most == SETTINGS.n_parallel


def test_one_at_a_time(tiny_path: Path) -> None:
    settings = replace(SETTINGS, n_parallel=1)
    model = LlamaModel.load(tiny_path, settings)
    seen: list[int] = []
    with Loop(model, settings) as loop:
        with loop.scheduler._wake:
            answers = [
                loop.start([1, 290 + n], up_to(10), Collector(on_text=lambda _, n=n: seen.append(n))) for n in range(4)
            ]
        for answer in answers:
            answer.wait()
    assert seen == sorted(seen)
    assert set(seen) == set(range(4))
    model.close()


# --- prefixes ---


def test_a_finished_sequence_is_taken_over(loop: Loop, other: LlamaModel) -> None:
    dice = random.Random(4)
    prompt = random_prompt(dice, 60)
    first = loop.answer(prompt, up_to(10))
    assert first.finish.cached_tokens == 0
    again = loop.answer(prompt, up_to(10))
    assert again.finish.cached_tokens == 59  # one is decoded again, so that there are logits
    longer = [*prompt, *again.tokens, 280, 281]
    third = loop.answer(longer, up_to(10))
    assert third.finish.cached_tokens == 60 + 9  # the last token was not decoded
    assert len(loop.scheduler._kept) == 1
    assert third.sink.steps == [(72, 72)]
    shorter = loop.answer([*prompt[:20], 299], up_to(10))  # of 80, less than half: shared
    assert shorter.finish.cached_tokens == 20
    assert len(loop.scheduler._kept) == 2
    assert_as_alone(other, [first, again, third, shorter], up_to(10), SETTINGS)
    assert_nothing_leaks(loop)


def test_the_prefix_of_a_running_answer_is_shared(loop: Loop, other: LlamaModel) -> None:
    dice = random.Random(5)
    prompt = random_prompt(dice, 200)
    followers: list[Answer] = []

    def seen(_text: str) -> None:
        if len(followers) < 2:
            followers.append(loop.start([*prompt[:150], 280, 281 + len(followers)], up_to(20)))

    first = loop.start(prompt, up_to(60), Collector(on_text=seen)).wait()
    assert [follower.finish.cached_tokens for follower in followers] == [150, 151]
    # 200 + 60 and what three short answers add fit 512 cells only where the prefix is not copied.
    assert_as_alone(other, followers, up_to(20), SETTINGS)
    assert_as_alone(other, [first], up_to(60), SETTINGS)
    assert_nothing_leaks(loop)


def test_the_longest_prefix_counts(loop: Loop) -> None:
    dice = random.Random(6)
    base = random_prompt(dice, 40)
    loop.answer([*base, *random_prompt(dice, 40)], up_to(1))
    loop.answer([*base[:20], *random_prompt(dice, 40)], up_to(1))
    assert loop.answer([*base, 299], up_to(1)).finish.cached_tokens == 40
    assert loop.answer([*base[:30], 299], up_to(1)).finish.cached_tokens == 30


def test_more_chats_than_ids_forget_the_least_recently_used(loop: Loop) -> None:
    prompts = [[280 + n, *[290 + n] * 8] for n in range(14)]
    for prompt in prompts:
        loop.answer(prompt, up_to(2))
    n_ids = loop.model.context.n_sequences
    assert len(loop.scheduler._kept) == n_ids
    assert [loop.answer(prompt, up_to(2)).finish.cached_tokens for prompt in prompts[-n_ids:]] == [8] * n_ids
    assert loop.answer(prompts[0], up_to(2)).finish.cached_tokens == 0
    assert_nothing_leaks(loop)


# --- more than fits ---


def test_endless_answers_are_paused_and_none_is_cut(small: LlamaModel, tiny_path: Path) -> None:
    dice = random.Random(7)
    alone = LlamaModel.load(tiny_path, SMALL)
    prompts = [random_prompt(dice, length) for length in (30, 7, 50, 3, 100, 12)]
    with Loop(small, SMALL) as loop:
        pauses = counted_pauses(loop)
        answers = [answer.wait() for answer in loop.start_all(prompts, ENDLESS)]
        assert len(pauses) > 3
        assert answers[0].run not in pauses, "the one that was admitted last"
        for prompt, answer in zip(prompts, answers, strict=True):
            assert answer.finish.reason == "length"
            assert answer.finish.completion_tokens == len(answer.tokens) == 256 - len(prompt)
            assert answer.sink.n_ends == 1
            assert answer.finish.cached_tokens < len(prompt)
        assert_nothing_leaks(loop)
    assert_as_alone(alone, answers, ENDLESS, SMALL)
    alone.close()


def test_limited_answers_that_do_not_fit_together(small: LlamaModel, tiny_path: Path) -> None:
    dice = random.Random(8)
    alone = LlamaModel.load(tiny_path, SMALL)
    prompts = [random_prompt(dice, dice.randrange(2, 60)) for _ in range(16)]
    with Loop(small, SMALL) as loop:
        pauses = counted_pauses(loop)
        answers = [answer.wait() for answer in loop.start_all(prompts, up_to(120))]
        assert pauses
        assert [answer.finish.completion_tokens for answer in answers] == [120] * 16
        assert_nothing_leaks(loop)
    assert_as_alone(alone, answers, up_to(120), SMALL)
    alone.close()


def test_sampled_answers_go_on_with_their_seed_after_a_pause(small: LlamaModel, tiny_path: Path) -> None:
    """What looks back, too: the penalties have seen what was said before the pause."""
    sampling = Sampling(temperature=0.0, logit_bias=BAN_END, frequency_penalty=0.5, repeat_last_n=40)
    alone = LlamaModel.load(tiny_path, SMALL)
    prompts = [[1, 280 + n] for n in range(4)]
    with Loop(small, SMALL) as loop:
        pauses = counted_pauses(loop)
        answers = [answer.wait() for answer in loop.start_all(prompts, sampling)]
        assert pauses
    for prompt, answer in zip(prompts, answers, strict=True):
        expected = answer_alone(alone, SMALL, prompt, sampling)
        same = next((i for i, (a, b) in enumerate(zip(expected.tokens, answer.tokens, strict=True)) if a != b), 254)
        assert same > 30  # near-ties of penalised logits are not looked into
    alone.close()


def test_a_paused_answer_goes_on_before_those_behind_it_begin(tiny_path: Path) -> None:
    settings = replace(SMALL, n_parallel=2)
    model = LlamaModel.load(tiny_path, settings)
    with Loop(model, settings) as loop:
        pauses = counted_pauses(loop)
        states: list[bool] = []
        with loop.scheduler._wake:
            first, second = loop.start([1, 290], ENDLESS), loop.start([1, 291], ENDLESS)

            def seen(_done: int, _total: int) -> None:
                states.append(second.sink.is_over or second.run in loop.scheduler._running)

            behind = [loop.start([292 + n, 300, 301], up_to(3), Collector(on_progress=seen)) for n in range(2)]
        for answer in (first, second, *behind):
            assert answer.finish.reason == "length"
        assert pauses == [second.run] * len(pauses) != []
        assert states == [True, True]
    model.close()


def counted_pauses(loop: Loop) -> list[object]:
    pauses: list[object] = []
    pause = loop.scheduler._pause

    def counting(run: object) -> None:
        pauses.append(run)
        pause(run)  # type: ignore[arg-type]

    loop.scheduler._pause = counting  # type: ignore[method-assign, assignment]
    return pauses


def test_what_can_never_fit_is_refused_with_the_numbers(loop: Loop) -> None:
    for length in (512, 513, 5000):
        with pytest.raises(ContextExceededError, match=rf"has {length} tokens and the context 512"):
            loop.start([300] * length)
    last = loop.answer([300] * 511, ENDLESS)
    assert (last.finish.reason, last.finish.completion_tokens) == ("length", 1)
    with pytest.raises(EngineError, match="no tokens to start from"):
        loop.start([])
    assert loop.answer([1, 300]).finish.completion_tokens > 0


def test_one_that_does_not_fit_now_waits(loop: Loop, other: LlamaModel) -> None:
    """And so does everyone behind it, short or not."""
    dice = random.Random(9)
    order: list[str] = []
    n_running: set[int] = set()

    def sink(name: str) -> Collector:
        def begins(_done: int, _total: int) -> None:
            order.append(name)

        def seen(_text: str) -> None:
            if name == "first":
                n_running.add(len(loop.scheduler._running))

        return Collector(on_progress=begins, on_text=seen)

    lengths = {"first": 300, "large": 290, "short": 5}
    with loop.scheduler._wake:
        answers = [loop.start(random_prompt(dice, n), up_to(30), sink(name)) for name, n in lengths.items()]
    first, large, short = (answer.wait() for answer in answers)
    assert list(dict.fromkeys(order)) == ["first", "large", "short"]
    assert n_running == {1}, "what the first will need is not given to others"
    assert first.finish.completion_tokens == large.finish.completion_tokens == short.finish.completion_tokens == 30
    assert large.finish.prompt_s > first.finish.prompt_s + first.finish.completion_s * 0.9
    assert_as_alone(other, [first, large, short], up_to(30), SETTINGS)
    assert_nothing_leaks(loop)


# --- failures ---


def test_settings_that_the_model_cannot_have_fail_that_request_alone(loop: Loop) -> None:
    good = loop.start([1, 300])
    bad = loop.start([1, 301], Sampling(logit_bias={100_000: 1.0}))
    also_good = loop.start([1, 302])
    with pytest.raises(InvalidInputError, match="100000"):
        bad.wait()
    assert good.finish.completion_tokens > 0
    assert also_good.finish.completion_tokens > 0
    assert bad.sink.n_ends == 1
    assert_nothing_leaks(loop)


def test_numbers_that_are_not_finite_fail_that_request_alone(tmp_path: Path) -> None:
    """One row of the output overflows where a certain number of the last layer's is large: after some tokens only."""
    output = np.frombuffer(tiny_model().tensor("output.weight").data, "<f4").reshape(-1, 32).copy()
    output[305] = 0
    output[305, 3] = -1.5e38
    model = LlamaModel.load(tiny_model(weights={"output.weight": output}).write(tmp_path / "odd-zephyr.gguf"), SETTINGS)
    evaluator = Evaluator(model)
    finite, infinite = [], []
    for token in range(260, 310):
        evaluator.evaluate([1, token])
        (finite if np.isfinite(evaluator.logits()).all() else infinite).append(token)
    model.context.truncate(0, 0)
    assert finite
    assert infinite
    with Loop(model, SETTINGS) as loop:
        for _ in range(3):
            good = loop.start([1, finite[0]], up_to(1))
            bad = loop.start([1, infinite[0]], up_to(1))
            also_good = loop.start([1, finite[-1]], up_to(1))
            with pytest.raises(EngineError, match="not finite"):
                bad.wait()
            assert good.finish.completion_tokens == also_good.finish.completion_tokens == 1
        assert_nothing_leaks(loop)
    model.close()


def test_numbers_that_are_not_finite_do_not_stay_in_the_cache(tmp_path: Path) -> None:
    """Values of the first layer overflow for some tokens; others' attention makes NaN of them, even in freed cells."""
    tensors = tiny_model()
    values = np.frombuffer(tensors.tensor("blk.0.attn_v.weight").data, "<f4").reshape(-1, 32).copy()
    values[0] = 0
    values[0, 3] = 2e38
    embeddings = np.frombuffer(tensors.tensor("token_embd.weight").data, "<f4").reshape(-1, 32)
    normalised = np.abs(embeddings[:, 3]) / np.sqrt((embeddings**2).mean(axis=1))
    good = [int(token) for token in np.argsort(normalised) if token > 2][:6]
    bad = int(np.argmax(normalised))
    path = tiny_model(weights={"blk.0.attn_v.weight": values}).write(tmp_path / "odd-zephyr.gguf")
    model = LlamaModel.load(path, SETTINGS)
    only_good = Sampling(
        temperature=0, max_tokens=30, logit_bias={t: BAN_END[2] for t in range(model.n_vocab) if t not in good}
    )
    with Loop(model, SETTINGS) as loop:
        expected = loop.answer(good, only_good).text
        for _ in range(2):
            beside = loop.start(good, only_good)
            with pytest.raises(EngineError, match="not finite"):
                loop.answer([bad], up_to(1))
            beside.sink.wait()  # with numbers or without
            assert loop.answer(good, only_good).text == expected
        with pytest.raises(EngineError, match="not finite"):
            loop.embed([bad, bad])
        assert loop.answer(good, only_good).text == expected
        assert_nothing_leaks(loop)
    model.close()


def test_a_decode_that_fails_loses_these_requests_and_not_the_loop(
    loop: Loop, other: LlamaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = loop.model.context
    decode, left = context.decode, 5

    def failing(segments: object, **arguments: object) -> list[int]:
        nonlocal left
        left -= 1
        if left == 0:
            raise EngineError("the device is gone", "Plug it in")
        return decode(segments, **arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(context, "decode", failing)
    answers = loop.start_all([[1, 290 + n, 300] for n in range(6)])
    failed = 0
    for answer in answers:
        answer.sink.wait()
        failed += answer.sink.error is not None
        assert answer.sink.n_ends == 1
    assert 1 <= failed <= SETTINGS.n_parallel
    after = [answer.wait() for answer in loop.start_all([[1, 290 + n, 300] for n in range(6)])]
    assert_as_alone(other, after, GREEDY, SETTINGS)
    assert_nothing_leaks(loop)
