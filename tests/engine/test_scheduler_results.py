"""Log probabilities and embeddings of the decode loop, against numpy."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.engine.conftest import SETTINGS, SLOW
from tests.engine.scheduling import Answer, Collector, Loop, assert_nothing_leaks
from tests.engine.test_scheduler import BAN_END, random_prompt, up_to
from tests.llama_eval import Evaluator
from zephyr_local.engine.context import Segment
from zephyr_local.engine.llama import LlamaModel
from zephyr_local.engine.run import EmbedRun
from zephyr_local.engine.scheduler import Scheduler
from zephyr_local.errors import ContextExceededError, EngineError
from zephyr_local.settings import Sampling


@pytest.fixture
def other(tiny_path: Path) -> Iterator[LlamaModel]:
    model = LlamaModel.load(tiny_path, SETTINGS)
    yield model
    model.close()


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.0, max_tokens=25, logprobs=5, logit_bias=BAN_END),
        Sampling(temperature=1.7, seed=3, max_tokens=25, logprobs=20, top_k=0, logit_bias={2: -5.0, 300: 5.0}),
        Sampling(temperature=1.0, seed=4, max_tokens=25, logprobs=0, presence_penalty=2.0),
    ],
)
def test_logprobs_are_those_of_the_model_before_any_sampler(
    tiny: LlamaModel, other: LlamaModel, sampling: Sampling
) -> None:
    prompt, evaluator = [1, 300, 301], Evaluator(other)
    with Loop(tiny, SETTINGS) as loop:
        beside = loop.start([1, 305], up_to(40))
        answer = loop.answer(prompt, sampling)
        assert beside.wait().sink.logprobs == []
    entries = answer.sink.logprobs
    assert len(entries) == answer.finish.completion_tokens
    assert [entry.token for entry in entries][: len(answer.tokens)] == answer.tokens
    for place, entry in enumerate(entries):
        evaluator.evaluate([*prompt, *answer.tokens[:place]])
        expected = log_softmax(evaluator.logits())
        assert entry.logprob == pytest.approx(expected[entry.token], abs=1e-3)
        assert entry.text == tiny.token_to_bytes(entry.token).decode(errors="replace")
        values = [one.logprob for one in entry.top]
        assert len(values) == sampling.logprobs
        assert values == sorted(values, reverse=True)
        assert np.allclose(values, np.sort(expected)[::-1][: len(values)], atol=1e-3)
        assert len({one.token for one in entry.top}) == len(values)
        assert all(one.top == () for one in entry.top)
        assert np.exp(values).sum() <= 1 + 1e-9
        if sampling.temperature == 0:
            assert entry.top[0].token == entry.token


def test_logprobs_of_the_whole_vocabulary_sum_to_one(tiny: LlamaModel) -> None:
    """Each token forced in turn by a bias, which the log probabilities do not show."""
    total = 0.0
    with Loop(tiny, SETTINGS) as loop:
        for token in range(tiny.n_vocab):
            forced = Sampling(temperature=0, max_tokens=1, logprobs=0, logit_bias={token: 1000.0})
            (entry,) = loop.answer([1, 300], forced).sink.logprobs
            assert entry.token == token
            total += np.exp(entry.logprob)
    assert total == pytest.approx(1.0, abs=1e-4)


def test_logprobs_come_with_the_text_of_their_tokens(tiny: LlamaModel) -> None:
    """Bytes of a character give no text until it is whole; the end's token has an entry, too."""
    with Loop(tiny, SETTINGS) as loop:
        sampling = Sampling(temperature=2.0, top_k=0, top_p=1.0, seed=1, max_tokens=200, logprobs=1)
        answer = loop.answer([1, 300], sampling)
        assert sum(answer.sink.logprobs_by_piece) == answer.finish.completion_tokens
        assert all(count > 0 for count in answer.sink.logprobs_by_piece[:-1])
        assert max(answer.sink.logprobs_by_piece) > 1
        ended = loop.answer([1, 300], Sampling(logit_bias={2: 1000.0}, logprobs=1))
        assert ended.finish.reason == "stop"
        assert [entry.token for entry in ended.sink.logprobs] == [2]
        assert ended.text == ""


# --- embeddings ---


def test_an_embedding_is_the_mean_of_the_outputs(tiny: LlamaModel, other: LlamaModel) -> None:
    dice = random.Random(1)
    with Loop(tiny, SETTINGS) as loop:
        for length in (1, 2, 127, 128, 129, 400):
            tokens = random_prompt(dice, length)
            found = np.array(loop.embed(tokens))
            other.context.decode([Segment(0, 0, tokens, wants_logits=True)], embeddings=True)
            mean = np.mean([other.context.embeddings(index) for index in range(length)], axis=0)
            other.context.truncate(0, 0)
            assert found.shape == (tiny.context.n_embd,)
            assert np.linalg.norm(found) == pytest.approx(1.0)
            assert np.allclose(found, mean / np.linalg.norm(mean), atol=1e-4)
        assert_nothing_leaks(loop)


def test_an_embedding_is_the_same_after_other_work(tiny: LlamaModel) -> None:
    dice = random.Random(2)
    tokens = random_prompt(dice, 50)
    with Loop(tiny, SETTINGS) as loop:
        before = loop.embed(tokens)
        chat = loop.answer(tokens, up_to(30))
        assert np.allclose(loop.embed(tokens), before, atol=1e-5)
        loop.embed(random_prompt(dice, 300))
        running = loop.start_all([random_prompt(dice, 30) for _ in range(3)], up_to(30))
        assert np.allclose(loop.embed(tokens), before, atol=1e-5)
        assert all(answer.sink.is_over for answer in running), "it has the context to itself"
        again = loop.answer(tokens, up_to(30))
        assert again.finish.cached_tokens == 49, "an embedding takes no chat's cells without need"
        assert again.tokens == chat.tokens
        different = loop.embed(random_prompt(dice, 50))
        assert not np.allclose(different, before, atol=0.01)
        assert_nothing_leaks(loop)


def test_an_embedding_waits_and_is_waited_for(tiny: LlamaModel) -> None:
    order: list[str] = []
    with Loop(tiny, SETTINGS) as loop:
        with loop.scheduler._wake:
            first = loop.start([1, 300], up_to(50), Collector(on_text=lambda _: order.append("first")))
            sink = Collector(on_progress=lambda done, total: order.append("embedding"))
            loop.scheduler.submit(EmbedRun([1, 301, 302], sink))
            last = loop.start([1, 303], up_to(5), Collector(on_text=lambda _: order.append("last")))
        first.wait()
        last.wait()
        assert sink.embedding is not None
    assert list(dict.fromkeys(order)) == ["first", "embedding", "last"]
    assert order == sorted(order, key=["first", "embedding", "last"].index)


def test_an_embedding_of_what_cannot_be(tiny: LlamaModel) -> None:
    with Loop(tiny, SETTINGS) as loop:
        with pytest.raises(ContextExceededError, match="512 tokens and the context 512"):
            loop.embed([300] * 512)
        with pytest.raises(EngineError, match="no tokens"):
            loop.embed([])
        assert len(loop.embed([300] * 511)) == tiny.context.n_embd
        assert_nothing_leaks(loop)


# --- how text is passed on ---


def test_text_is_gathered_between_an_answers_first_token_and_its_end(tiny: LlamaModel) -> None:
    with Loop(tiny, SETTINGS) as loop:
        loop.scheduler.tell_s = 3600.0
        the = Sampling(temperature=0.0, max_tokens=40, logit_bias={tiny.tokenize("the")[0]: 1000.0})
        assert loop.answer([1, 300], the).sink.pieces[-1] == " the" * 39  # the hour begins
        assert loop.answer([1, 301, 302], the).sink.pieces == [" the", " the" * 39]


def test_text_is_not_held_back_while_another_fills_its_prompt(slow: LlamaModel) -> None:
    """A chunk of a prompt takes longer than the text of the tokens beside it should wait."""
    with Loop(slow, SLOW) as loop:
        loop.scheduler.tell_s = 3600.0
        filling: list[Answer] = []
        during: list[str] = []

        def on_text(text: str) -> None:
            if not filling:
                filling.append(loop.start(random_prompt(random.Random(1), 2000), up_to(1)))
            elif filling[0].run.n_sampled == 0:
                during.append(text)

        answer = loop.start([1, 300], up_to(200), Collector(on_text=on_text))
        assert answer.finish.completion_tokens == 200
        assert filling[0].finish.completion_tokens == 1
        assert len(during) > 3
        assert answer.text == b"".join(map(slow.token_to_bytes, answer.tokens)).decode(errors="replace")


def test_a_smooth_rate_loses_nothing(tiny: LlamaModel) -> None:
    sampling = Sampling(temperature=0.0, max_tokens=60, logprobs=0, logit_bias=BAN_END)
    with Loop(tiny, SETTINGS) as loop:
        expected = [loop.answer([1, 300 + n], sampling) for n in range(3)]
        for tell_s in (Scheduler.tell_s, 0.001):
            loop.scheduler.tell_s = tell_s
            for n, answer in enumerate(loop.start_all([[1, 300 + n] for n in range(3)], sampling)):
                assert answer.wait().text == expected[n].text
                assert len(answer.sink.logprobs) == 60
                assert len(answer.sink.pieces) < len(expected[n].sink.pieces)


def test_what_was_said_is_told_before_an_error(tiny: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with Loop(tiny, SETTINGS) as loop:
        loop.scheduler.tell_s = 3600.0
        context, decode, left = loop.model.context, loop.model.context.decode, 10

        def failing(segments: Sequence[Segment], **arguments: bool) -> list[int]:
            nonlocal left
            left -= 1
            if left == 0:
                raise EngineError("the device is gone", "Plug it in")
            return decode(segments, **arguments)

        monkeypatch.setattr(context, "decode", failing)
        the = Sampling(temperature=0.0, max_tokens=40, logit_bias={tiny.tokenize("the")[0]: 1000.0})
        answer = loop.start([1, 300], the)
        with pytest.raises(EngineError, match="the device is gone"):
            answer.wait()
        assert answer.text == " the" * 9
