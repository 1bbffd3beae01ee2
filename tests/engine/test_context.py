"""The context against itself and numpy: sequences, batches, cancelling, numbers; on models of random weights."""

from __future__ import annotations

import logging
import random
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.engine.conftest import SETTINGS
from tests.gguf_builder import tiny_model
from tests.llama_eval import Evaluator
from zephyr_local.engine import cancel, context
from zephyr_local.engine.cancel import CancelFlag, Cancelled
from zephyr_local.engine.context import Segment
from zephyr_local.engine.llama import LlamaModel
from zephyr_local.engine.samplers import make_sampler
from zephyr_local.errors import ContextExceededError, EngineError
from zephyr_local.settings import KEPT_SEQUENCES, EngineSettings, Sampling

GREEDY = Sampling(temperature=0.0)


def random_tokens(dice: random.Random, model: LlamaModel, count: int) -> list[int]:
    return [dice.randrange(260, model.n_vocab) for _ in range(count)]


def logits_of(model: LlamaModel, tokens: list[int]) -> np.ndarray:
    """The logits after ``tokens``, computed in the last sequence, which is empty again afterwards."""
    last = model.context.n_sequences - 1
    evaluator = Evaluator(model, last)
    evaluator.evaluate(tokens)
    logits = evaluator.logits()
    model.context.truncate(last, 0)
    return logits


def greedy(model: LlamaModel, prompt: list[int], n_tokens: int) -> list[int]:
    evaluator, sampler = Evaluator(model), make_sampler(model, GREEDY, prompt)
    evaluator.evaluate(prompt)
    tokens = []
    for _ in range(n_tokens):
        tokens.append(evaluator.sample(sampler))
        evaluator.append(tokens[-1])
    return tokens


def test_facts_of_the_context(tiny: LlamaModel) -> None:
    assert tiny.context.n_ctx == tiny.n_ctx == 512
    assert tiny.context.n_sequences == SETTINGS.n_parallel + KEPT_SEQUENCES
    assert tiny.context.n_batch == 512  # not 516, which its cells could not hold
    assert (tiny.context.n_vocab, tiny.context.n_embd) == (tiny.n_vocab, 32)


def test_append_equals_evaluate(tiny: LlamaModel) -> None:
    prompt, evaluator = [1, *tiny.tokenize("the hen in a den")], Evaluator(tiny)
    evaluator.evaluate(prompt)
    at_once = evaluator.logits()
    evaluator.evaluate(prompt[:2])
    for token in prompt[2:]:
        evaluator.append(token)
    assert at_once.shape == (tiny.n_vocab,)
    assert at_once.dtype == np.float32
    assert np.allclose(evaluator.logits(), at_once, atol=1e-4)


@pytest.mark.parametrize(("n_batch", "n_parallel"), [(1, 1), (1, 4), (3, 4), (1, 64), (65536, 64)])
def test_the_size_of_the_batch_makes_no_difference(
    tiny_path: Path, tiny: LlamaModel, n_batch: int, n_parallel: int
) -> None:
    prompt = [1, *tiny.tokenize("the hen in a den " * 10)]
    small = LlamaModel.load(tiny_path, replace(SETTINGS, n_batch=n_batch, n_parallel=n_parallel))
    assert np.allclose(logits_of(small, prompt), logits_of(tiny, prompt), atol=1e-4)
    small.close()


def test_a_truncated_sequence_is_the_shorter_one(tiny: LlamaModel) -> None:
    dice, one = random.Random(1), tiny.context
    tokens = random_tokens(dice, tiny, 40)
    one.decode([Segment(0, 0, tokens, wants_logits=False)])
    assert one.held(0) == 40
    for length in (39, 17, 1):
        assert one.truncate(0, length) == one.held(0) == length
        (index,) = one.decode([Segment(0, length, [300, 301], wants_logits=True)])
        found = one.logits(index)
        assert one.held(0) == length + 2
        assert np.allclose(found, logits_of(tiny, [*tokens[:length], 300, 301]), atol=1e-4)
    assert one.truncate(0, 0) == one.held(0) == 0
    assert one.truncate(5, 0) == one.held(5) == 0, "one that never held anything"


def test_a_shared_prefix_is_that_of_both_and_takes_no_cells(tiny: LlamaModel) -> None:
    dice, one = random.Random(2), tiny.context
    tokens = random_tokens(dice, tiny, 400)
    one.decode([Segment(0, 0, tokens, wants_logits=False)])
    for target in (1, 2, 3):
        one.share(0, target, 300)
        assert one.held(target) == 300
    ends = [random_tokens(dice, tiny, 30) for _ in range(3)]  # 400 + 3 * 30 of 512 cells
    indices = one.decode([Segment(1 + n, 300, end, wants_logits=True) for n, end in enumerate(ends)])
    found = [one.logits(index) for index in indices]
    one.truncate(0, 0)
    (index,) = one.decode([Segment(2, 330, [300], wants_logits=True)])
    last = one.logits(index)
    for sequence in (1, 2, 3):
        one.truncate(sequence, 0)
    for end, logits in zip(ends, found, strict=True):
        assert np.allclose(logits, logits_of(tiny, tokens[:300] + end), atol=1e-4)
    assert np.allclose(last, logits_of(tiny, [*tokens[:300], *ends[1], 300]), atol=1e-4)


def test_sequences_of_one_batch_do_not_see_each_other(tiny: LlamaModel) -> None:
    dice = random.Random(3)
    parts = [random_tokens(dice, tiny, dice.randrange(1, 30)) for _ in range(8)]
    wanted = [n % 3 != 2 for n in range(8)]
    segments = [
        Segment(n, 0, part, wants_logits=wants) for n, (part, wants) in enumerate(zip(parts, wanted, strict=True))
    ]
    indices = tiny.context.decode(segments)
    assert [index >= 0 for index in indices] == wanted
    found = [tiny.context.logits(index) if index >= 0 else None for index in indices]
    for part, logits in zip(parts, found, strict=True):
        assert logits is None or np.allclose(logits, logits_of(tiny, part), atol=1e-4)


def test_embeddings_of_each_token(tiny: LlamaModel) -> None:
    one, tokens = tiny.context, [1, 300, 301, 302]
    before = logits_of(tiny, tokens)
    one.decode([Segment(0, 0, tokens, wants_logits=True)], embeddings=True)
    found = np.stack([one.embeddings(index) for index in range(4)])
    assert found.shape == (4, tiny.context.n_embd)
    assert found.dtype == np.float32
    # output.weight times the last layer's output are the logits
    weights = np.frombuffer(tiny_model().tensor("output.weight").data, "<f4").reshape(tiny.n_vocab, 32)
    assert np.allclose(weights @ found[3], before, atol=1e-4)
    one.truncate(0, 0)
    assert np.allclose(logits_of(tiny, tokens), before, atol=1e-5), "and back to logits"


def test_the_context_is_full(tiny: LlamaModel) -> None:
    one = tiny.context
    one.decode([Segment(0, 0, [300] * 500, wants_logits=False)])
    with pytest.raises(ContextExceededError, match="context of 512 tokens is full"):
        one.decode([Segment(1, 0, [300] * 13, wants_logits=True)])
    assert (one.held(0), one.held(1)) == (500, 0)
    one.decode([Segment(1, 0, [300] * 12, wants_logits=True)])
    with pytest.raises(ContextExceededError, match="full"):
        one.decode([Segment(0, 500, [300], wants_logits=True)])
    one.truncate(1, 0)
    one.decode([Segment(0, 500, [300], wants_logits=True)])


def test_logits_that_were_not_asked_for(tiny: LlamaModel) -> None:
    (index,) = tiny.context.decode([Segment(0, 0, [1, 300], wants_logits=False)])
    assert index == -1
    with pytest.raises(EngineError, match="no logits"):
        tiny.context.logits(0)


def test_sampling_follows_its_settings(tiny: LlamaModel) -> None:
    prompt, evaluator = [1, *tiny.tokenize("the")], Evaluator(tiny)
    evaluator.evaluate(prompt)
    best = int(np.argmax(evaluator.logits()))
    order = np.argsort(-evaluator.logits())

    def draw(count: int, **settings: float) -> list[int]:
        sampler = make_sampler(tiny, Sampling(**{"seed": 3, **settings}), prompt)  # type: ignore[arg-type]
        return [evaluator.sample(sampler) for _ in range(count)]

    assert draw(20, temperature=0.0) == [best] * 20
    assert draw(20, top_k=1) == [best] * 20
    assert set(draw(200, top_k=3, temperature=50.0, top_p=1.0)) == set(order[:3].tolist())
    assert draw(20, top_p=1e-6) == [best] * 20
    assert draw(20, min_p=1.0) == [best] * 20
    assert draw(50, temperature=5.0) == draw(50, temperature=5.0)
    assert draw(50, temperature=5.0) != draw(50, temperature=5.0, seed=4)
    assert draw(50, temperature=5.0, seed=None) != draw(50, temperature=5.0, seed=None)


def test_repetition_penalty_sees_the_prompt(tiny: LlamaModel) -> None:
    evaluator = Evaluator(tiny)
    evaluator.evaluate([1, 300])
    best = int(np.argmax(evaluator.logits()))
    penalised = Sampling(temperature=0.0, repeat_penalty=50.0)
    assert evaluator.sample(make_sampler(tiny, penalised, [1, 300])) == best
    assert evaluator.sample(make_sampler(tiny, penalised, [1, best])) != best
    assert evaluator.sample(make_sampler(tiny, penalised, [best] + [300] * 64)) == best  # the last 64 only


def test_a_temperature_near_zero_is_the_likeliest_token(tiny: LlamaModel) -> None:
    evaluator = Evaluator(tiny)
    evaluator.evaluate([1, 300, 301])
    best = int(np.argmax(evaluator.logits()))
    for temperature in (0.0, 1e-38, 1e-30, 1e-7):
        sampler = make_sampler(tiny, Sampling(temperature=temperature, top_p=1.0, top_k=0, seed=1))
        assert evaluator.sample(sampler) == best, temperature
        sampler.close()


# --- cancelling ---


def test_a_set_flag_cancels_before_anything_is_decoded(tiny: LlamaModel) -> None:
    tiny.context.abort.set()
    with pytest.raises(Cancelled):
        Evaluator(tiny).evaluate([1, 300])
    assert tiny.context.held(0) == 0
    tiny.context.abort.clear()
    Evaluator(tiny).evaluate([1, 300])  # the flag of one decode does not outlive it
    assert tiny.context.held(0) == 2


def test_cancel_in_the_middle_of_a_prefill(slow_path: Path) -> None:
    settings = EngineSettings(n_ctx=4096, n_batch=4096, n_threads=1, kv_type="f32")
    model, fresh = LlamaModel.load(slow_path, settings), LlamaModel.load(slow_path, settings)
    prompt = [1, *random_tokens(random.Random(1), model, 4000)]
    cancelled_at: list[float] = []

    def set_later() -> None:
        cancelled_at.append(time.perf_counter())
        model.context.abort.set()

    threading.Timer(0.2, set_later).start()
    with pytest.raises(Cancelled):
        Evaluator(model).evaluate(prompt)
    waited_s = time.perf_counter() - cancelled_at[0]
    assert waited_s < 2  # a watchdog; measured some milliseconds
    model.context.abort.clear()
    held = model.context.held(0)
    assert held < len(prompt)
    # What is held is the prompt's beginning.
    kept = model.context.truncate(0, min(held, 300))
    (index,) = model.context.decode([Segment(0, kept, [300], wants_logits=True)])
    assert np.allclose(model.context.logits(index), logits_of(fresh, [*prompt[:kept], 300]), atol=1e-3)
    short = [*prompt[:100], *prompt[:20]]
    assert greedy(model, short, 8) == greedy(fresh, short, 8)
    model.close()
    fresh.close()


def test_an_aborted_batch_says_what_each_sequence_holds(slow_path: Path) -> None:
    """A step that several share: one prefills, the other's next token is in the first of the batch's parts."""
    model = LlamaModel.load(slow_path, EngineSettings(n_ctx=4096, n_batch=4000, n_threads=1, kv_type="f32"))
    one = model.context
    one.decode([Segment(0, 0, [1, 300], wants_logits=True)])
    prompt = [1, *random_tokens(random.Random(2), model, 3900)]
    threading.Timer(0.5, one.abort.set).start()
    with pytest.raises(Cancelled):
        one.decode([Segment(0, 2, [301], wants_logits=True), Segment(1, 0, prompt, wants_logits=True)])
    one.abort.clear()
    assert one.held(0) in (2, 3)
    assert one.held(1) < len(prompt)
    assert (one.held(0) == 3) == (one.held(1) > 0)
    one.truncate(1, 0)
    one.truncate(0, 2)
    (index,) = one.decode([Segment(0, 2, [301], wants_logits=True)])
    found = one.logits(index)
    assert np.allclose(found, logits_of(model, [1, 300, 301]), atol=1e-4)
    model.close()


def test_cancel_in_the_middle_of_an_answer(tiny_path: Path, tiny: LlamaModel) -> None:
    prompt = [1, *tiny.tokenize("the hen")]
    expected = greedy(tiny, prompt, 20)
    model = LlamaModel.load(tiny_path, SETTINGS)
    evaluator, sampler = Evaluator(model), make_sampler(model, GREEDY)
    evaluator.evaluate(prompt)
    for _ in range(7):
        evaluator.append(evaluator.sample(sampler))
    model.context.abort.set()
    with pytest.raises(Cancelled):
        evaluator.append(evaluator.sample(sampler))
    model.context.abort.clear()
    assert model.context.held(0) == len(prompt) + 7
    (index,) = model.context.decode([Segment(0, len(prompt) + 7, [expected[7]], wants_logits=True)])
    assert model.context.sample(sampler, index) == expected[8]
    assert greedy(model, prompt, 20) == expected
    model.close()


def test_the_callback_without_libc_cancels_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoLibc:
        @property
        def strlen(self) -> None:
            raise AttributeError

    monkeypatch.setattr(cancel.ctypes, "CDLL", lambda name: NoLibc())
    callback = context._make_abort_callback()
    flag = CancelFlag()
    assert callback(flag.address) is False
    flag.set()
    assert callback(flag.address) is True
    flag.clear()
    assert callback(flag.address) is False


def test_the_native_callback_reads_the_flag() -> None:
    flag = CancelFlag()
    assert context._abort_callback(flag.address) is False
    flag.set()
    assert context._abort_callback(flag.address) is True
    assert flag.is_set()
    flag.clear()
    assert context._abort_callback(flag.address) is False


def test_a_cancelled_decode_is_no_error_in_the_log(slow_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = LlamaModel.load(slow_path, replace(SETTINGS, n_ctx=8192))
    threading.Timer(0.05, model.context.abort.set).start()
    with caplog.at_level(logging.DEBUG, logger="zephyr_local.native"), pytest.raises(Cancelled):
        Evaluator(model).evaluate([1] + [300] * 4000)
    model.close()
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.DEBUG] == []


# --- what must not end the process ---


def test_threads_on_one_model(tiny: LlamaModel) -> None:
    failures: list[BaseException] = []

    def work(sequence: int) -> None:
        dice, evaluator = random.Random(sequence), Evaluator(tiny, sequence)
        try:
            for _ in range(60):
                evaluator.evaluate([1, *random_tokens(dice, tiny, dice.randrange(1, 40))])
                tiny.tokenize("the hen in the den")
                assert tiny.context.held(sequence) <= 40
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(sequence,)) for sequence in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []


def test_numbers_that_are_not_finite_do_not_reach_the_sampler(tmp_path: Path) -> None:
    n_vocab = len(tiny_model().metadata["tokenizer.ggml.tokens"][1])
    huge = tiny_model(weights={"output.weight": np.full((n_vocab, 32), 3e38, "<f4")})
    model = LlamaModel.load(huge.write(tmp_path / "huge.gguf"), SETTINGS)
    evaluator = Evaluator(model)
    evaluator.evaluate([1, 300])
    with pytest.raises(EngineError, match="not finite"):
        evaluator.sample(make_sampler(model, GREEDY))
    model.close()


@pytest.mark.parametrize(("n_ctx", "n_parallel", "expected"), [(8, 1, 256), (8, 64, 256), (257, 4, 512)])
def test_a_context_smaller_than_its_sequences(tiny_path: Path, n_ctx: int, n_parallel: int, expected: int) -> None:
    """llama.cpp ends the process where it gets fewer tokens of context than sequences."""
    settings = EngineSettings(n_ctx=n_ctx, n_parallel=n_parallel, n_threads=1)
    model = LlamaModel.load(tiny_path, settings)
    assert model.n_ctx == expected
    evaluator = Evaluator(model)
    evaluator.evaluate([1, 300])
    assert np.isfinite(evaluator.logits()).all()
    model.close()
