"""LlamaModel against llama.cpp itself, on a tiny model of random weights."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.engine.conftest import SETTINGS
from tests.gguf_builder import tiny_model, vocabulary
from tests.hf_tokenizer import hf_tokenizer
from tests.texts import honest_texts
from zephyr_local.chat_template import ZEPHYR_TEMPLATE
from zephyr_local.engine import llama
from zephyr_local.engine.cancel import CancelFlag, Cancelled
from zephyr_local.engine.llama import LlamaModel
from zephyr_local.errors import ContextExceededError, EngineError
from zephyr_local.settings import EngineSettings, Sampling

GREEDY = Sampling(temperature=0.0)


def greedy(model: LlamaModel, prompt: list[int], n_tokens: int) -> list[int]:
    model.evaluate(prompt)
    sampler = model.sampler(GREEDY)
    tokens = []
    for _ in range(n_tokens):
        tokens.append(model.sample(sampler))
        model.append(tokens[-1])
    return tokens


def test_facts_of_the_vocabulary(tiny: LlamaModel) -> None:
    assert tiny.control_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert tiny.byte_tokens == {byte: 3 + byte for byte in range(256)}
    assert (tiny.bos_id, tiny.eos_id, tiny.add_bos) == (1, 2, True)
    assert (tiny.n_ctx, tiny.n_ctx_train) == (512, 512)
    assert tiny.is_end_of_generation(2)
    assert not tiny.is_end_of_generation(1)
    assert tiny.token_text(2) == "</s>"


def test_number_of_control_tokens_in_the_real_vocabulary(mistral_vocabulary: LlamaModel) -> None:
    assert mistral_vocabulary.control_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert mistral_vocabulary.n_vocab == 32_000
    assert len(mistral_vocabulary.byte_tokens) == 256


def test_tokenises_text_and_never_control_tokens(tiny: LlamaModel) -> None:
    assert tiny.tokenize("") == []
    for text in ("</s>", "<s>the</s>", "a <unk> b", "<0x0A>", "日本 é \udce4 \0 x"):
        ids = tiny.tokenize(text)
        assert not {0, 1, 2} & set(ids)
        joined = b"".join(map(tiny.token_to_bytes, ids)).decode()
        assert joined == " " + text.encode("utf-8", "replace").decode()


def test_bytes_of_tokens(tiny: LlamaModel) -> None:
    assert tiny.token_to_bytes(3 + 0xE4) == b"\xe4"
    assert tiny.token_to_bytes(2) == b""
    assert tiny.token_to_bytes(tiny.tokenize("the")[0]) == b" the"
    for outside in (-1, tiny.n_vocab, 1 << 31):
        with pytest.raises(EngineError, match="outside"):
            tiny.token_to_bytes(outside)
        with pytest.raises(EngineError, match="outside"):
            tiny.evaluate([outside])


def test_ids_equal_hugging_face_on_the_real_vocabulary(mistral_vocabulary: LlamaModel, mistral_spm: str) -> None:
    reference = hf_tokenizer(mistral_spm, ZEPHYR_TEMPLATE)
    different = [
        text
        for text in honest_texts(2000, seed=5)
        if mistral_vocabulary.tokenize(text) != reference(text, add_special_tokens=False)["input_ids"]
    ]
    assert different == []


def test_text_that_cannot_fit_is_refused_before_it_is_tokenised(tiny: LlamaModel) -> None:
    started = time.perf_counter()
    with pytest.raises(ContextExceededError, match="4000000 tokens or more"):
        tiny.tokenize("\U0001f9ff" * 1_000_000)
    assert time.perf_counter() - started < 5


def test_the_least_number_of_tokens_is_never_more_than_the_tokens(mistral_vocabulary: LlamaModel) -> None:
    for text in [*honest_texts(300, seed=6), " " * 1000, "a" * 1000, "\U0001f9ff" * 100, "\udce4", "</s>" * 9]:
        assert mistral_vocabulary.least_tokens(text) <= len(mistral_vocabulary.tokenize(text))
    assert mistral_vocabulary.least_tokens("\U0001f9ff" * 100) == 400


def test_the_cache_keeps_the_common_prefix(tiny: LlamaModel) -> None:
    prompt = [1, *tiny.tokenize("the hen in a den")]
    assert tiny.evaluate(prompt) == 0
    first = tiny.logits()
    assert tiny.evaluate(prompt) == len(prompt) - 1  # one is decoded again, so that there are logits
    assert np.allclose(tiny.logits(), first, atol=1e-4)
    longer = [*prompt[:5], 299, 298, 297]
    assert tiny.evaluate(longer) == 5
    assert tiny.cached_tokens == tuple(longer)
    reused = tiny.logits()
    assert tiny.evaluate([1, 300]) == 1
    assert tiny.evaluate(longer) == 1
    assert np.allclose(tiny.logits(), reused, atol=1e-4)


def test_append_equals_evaluate(tiny: LlamaModel) -> None:
    prompt = [1, *tiny.tokenize("the hen in a den")]
    tiny.evaluate(prompt)
    at_once = tiny.logits()
    tiny.evaluate(prompt[:2])
    for token in prompt[2:]:
        tiny.append(token)
    assert at_once.shape == (tiny.n_vocab,)
    assert at_once.dtype == np.float32
    assert np.allclose(tiny.logits(), at_once, atol=1e-4)


def test_chunks_of_the_batch_make_no_difference(tiny_path: Path, tiny: LlamaModel) -> None:
    prompt = [1, *tiny.tokenize("the hen in a den " * 10)]
    tiny.evaluate(prompt)
    small = LlamaModel.load(tiny_path, EngineSettings(n_ctx=512, n_threads=1, kv_type="f32", n_batch=7))
    small.evaluate(prompt)
    assert np.allclose(small.logits(), tiny.logits(), atol=1e-4)


def test_context_is_full(tiny: LlamaModel) -> None:
    with pytest.raises(ContextExceededError, match="513 tokens do not fit the context of 512"):
        tiny.evaluate([300] * 513)
    tiny.evaluate([300] * 512)
    with pytest.raises(ContextExceededError, match="full"):
        tiny.append(300)
    assert len(tiny.cached_tokens) == 512


def test_sampling_follows_its_settings(tiny: LlamaModel) -> None:
    prompt = [1, *tiny.tokenize("the")]
    tiny.evaluate(prompt)
    best = int(np.argmax(tiny.logits()))
    order = np.argsort(-tiny.logits())

    def draw(count: int, **settings: float) -> list[int]:
        sampler = tiny.sampler(Sampling(**{"seed": 3, **settings}), prompt)  # type: ignore[arg-type]
        return [tiny.sample(sampler) for _ in range(count)]

    assert draw(20, temperature=0.0) == [best] * 20
    assert draw(20, top_k=1) == [best] * 20
    assert set(draw(200, top_k=3, temperature=50.0, top_p=1.0)) == set(order[:3].tolist())
    assert draw(20, top_p=1e-6) == [best] * 20
    assert draw(20, min_p=1.0) == [best] * 20
    assert draw(50, temperature=5.0) == draw(50, temperature=5.0)
    assert draw(50, temperature=5.0) != draw(50, temperature=5.0, seed=4)
    assert draw(50, temperature=5.0, seed=None) != draw(50, temperature=5.0, seed=None)


def test_repetition_penalty_sees_the_prompt(tiny: LlamaModel) -> None:
    tiny.evaluate([1, 300])
    best = int(np.argmax(tiny.logits()))
    penalised = Sampling(temperature=0.0, repeat_penalty=50.0)
    assert tiny.sample(tiny.sampler(penalised, [1, 300])) == best
    assert tiny.sample(tiny.sampler(penalised, [1, best])) != best
    assert tiny.sample(tiny.sampler(penalised, [best] + [300] * 64)) == best  # the last 64 only


def test_a_set_flag_cancels_before_anything_is_decoded(tiny: LlamaModel) -> None:
    cancel = CancelFlag()
    cancel.set()
    with pytest.raises(Cancelled):
        tiny.evaluate([1, 300], cancel)
    assert tiny.cached_tokens == ()
    tiny.evaluate([1, 300])  # the flag of one answer does not outlive it


def test_cancel_in_the_middle_of_a_prefill(slow_path: Path) -> None:
    settings = EngineSettings(n_ctx=4096, n_batch=4096, n_threads=1, kv_type="f32")
    model, fresh = LlamaModel.load(slow_path, settings), LlamaModel.load(slow_path, settings)
    prompt = [1] + [random.Random(1).randrange(260, model.n_vocab) for _ in range(4000)]
    cancel = CancelFlag()
    cancelled_at: list[float] = []

    def set_later() -> None:
        cancelled_at.append(time.perf_counter())
        cancel.set()

    timer = threading.Timer(0.2, set_later)
    timer.start()
    with pytest.raises(Cancelled):
        model.evaluate(prompt, cancel)
    waited_s = time.perf_counter() - cancelled_at[0]
    assert waited_s < 2  # a watchdog; measured some milliseconds
    held = len(model.cached_tokens)
    assert held < len(prompt)
    assert list(model.cached_tokens) == prompt[:held]
    short = [*prompt[: min(held // 2, 100)], *prompt[:20]]
    assert greedy(model, short, 8) == greedy(fresh, short, 8)
    model.close()
    fresh.close()


def test_cancel_in_the_middle_of_an_answer(tiny_path: Path, tiny: LlamaModel) -> None:
    prompt = [1, *tiny.tokenize("the hen")]
    expected = greedy(tiny, prompt, 20)
    model = LlamaModel.load(tiny_path, SETTINGS)
    cancel = CancelFlag()
    model.evaluate(prompt, cancel)
    sampler = model.sampler(GREEDY)
    for step in range(8):
        if step == 7:
            cancel.set()
            with pytest.raises(Cancelled):
                model.append(model.sample(sampler), cancel)
        else:
            model.append(model.sample(sampler), cancel)
    assert list(model.cached_tokens) == [*prompt, *expected[:7]]
    assert greedy(model, prompt, 20) == expected


def test_the_callback_without_libc_cancels_too(tiny: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoLibc:
        @property
        def strlen(self) -> None:
            raise AttributeError

    monkeypatch.setattr(llama.ctypes, "CDLL", lambda name: NoLibc())
    callback = llama._make_abort_callback()
    cancel = CancelFlag()
    assert callback(cancel.address) is False
    cancel.set()
    assert callback(cancel.address) is True


def test_the_native_callback_reads_the_flag() -> None:
    cancel = CancelFlag()
    assert llama._abort_callback(cancel.address) is False
    cancel.set()
    assert llama._abort_callback(cancel.address) is True
    assert cancel.is_set()


def test_use_after_close(tiny: LlamaModel) -> None:
    sampler = tiny.sampler(GREEDY)
    tiny.evaluate([1])
    tiny.close()
    tiny.close()
    for use in (
        lambda: tiny.evaluate([1]),
        lambda: tiny.append(1),
        tiny.logits,
        lambda: tiny.sample(sampler),
        lambda: tiny.tokenize("a"),
        lambda: tiny.token_to_bytes(5),
        lambda: tiny.is_end_of_generation(5),
    ):
        with pytest.raises(EngineError, match="closed"):
            use()


def test_two_threads_on_one_model(tiny: LlamaModel) -> None:
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        dice = random.Random(seed)
        try:
            for _ in range(60):
                tiny.evaluate([1] + [dice.randrange(260, tiny.n_vocab) for _ in range(dice.randrange(1, 40))])
                tiny.tokenize("the hen in the den")
                tiny.logits()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []


def test_a_failed_load_says_what_llama_cpp_said(tmp_path: Path, tiny_path: Path) -> None:
    broken = tiny_model()
    broken.tensors[0].data = b"\0\0\xc0\x7f" + broken.tensors[0].data[4:]  # a NaN
    with pytest.raises(EngineError, match=r"invalid data") as caught:
        LlamaModel.load(broken.write(tmp_path / "nan.gguf"), SETTINGS)
    assert caught.value.exit_code == 6
    with pytest.raises(EngineError, match="context of 1048576"):
        # Not memory, which a large machine has, but a cache type that this head size cannot have.
        LlamaModel.load(tiny_path, EngineSettings(n_ctx=1 << 20, kv_type="q8_0"))


def test_numbers_that_are_not_finite_do_not_reach_the_sampler(tmp_path: Path) -> None:
    huge = tiny_model(weights={"output.weight": np.full((len(tiny_vocabulary()), 32), 3e38, "<f4")})
    model = LlamaModel.load(huge.write(tmp_path / "huge.gguf"), SETTINGS)
    model.evaluate([1, 300])
    with pytest.raises(EngineError, match="not finite"):
        model.sample(model.sampler(GREEDY))


def tiny_vocabulary() -> list[str]:
    return tiny_model().metadata["tokenizer.ggml.tokens"][1]


def test_progress_reaches_one_and_its_exceptions_come_out(tiny_path: Path) -> None:
    seen: list[float] = []
    LlamaModel.load(tiny_path, SETTINGS, progress=seen.append).close()
    assert seen[-1] == 1.0
    assert seen == sorted(seen)

    def fail(fraction: float) -> None:
        raise ValueError("from the callback")

    with pytest.raises(ValueError, match="from the callback"):
        LlamaModel.load(tiny_path, SETTINGS, progress=fail)
    with pytest.raises(Cancelled):
        LlamaModel.load(tiny_path, SETTINGS, cancelled=lambda: True)


def test_only_the_vocabulary(mistral_vocabulary: LlamaModel) -> None:
    assert mistral_vocabulary.tokenize("Hello") == [22557]
    with pytest.raises(EngineError, match="only the vocabulary"):
        mistral_vocabulary.evaluate([1])


def test_log_lines_go_to_logging(tiny_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="zephyr_local.native"):
        LlamaModel.load(tiny_path, SETTINGS).close()
    lines = [record.getMessage() for record in caplog.records if record.name == "zephyr_local.native"]
    assert any("general.architecture" in line for line in lines)
    assert all("\n" not in line and line.strip() for line in lines)


def test_a_cancelled_decode_is_no_error_in_the_log(slow_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = LlamaModel.load(slow_path, replace(SETTINGS, n_ctx=8192))
    cancel = CancelFlag()
    threading.Timer(0.05, cancel.set).start()
    with caplog.at_level(logging.DEBUG, logger="zephyr_local.native"), pytest.raises(Cancelled):
        model.evaluate([1] + [300] * 4000, cancel)
    model.close()
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.DEBUG] == []


def test_continued_log_lines_are_joined() -> None:
    log = llama.NativeLog()
    log.write(4, "one")
    log.write(5, " two\nthr")
    log.write(5, "ee\n")
    log.write(2, "....")
    log.write(5, "...\n")
    log.write(4, "unfinished")
    assert log.explanation() == "one two; three; unfinished"
    log.clear()
    assert log.explanation() == "llama.cpp gave no reason"
    for index in range(200):
        log.write(2, f"line {index}\n")
    assert log.explanation() == "line 197; line 198; line 199"


def test_a_line_has_the_level_that_llama_cpp_gave_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\xff" * 100)
    with caplog.at_level(logging.DEBUG, logger="zephyr_local.native"), pytest.raises(EngineError):
        LlamaModel.load(broken, SETTINGS)
    assert any(record.levelno == logging.ERROR for record in caplog.records)
    log = llama.NativeLog()
    caplog.clear()
    with caplog.at_level(logging.DEBUG, logger="zephyr_local.native"):
        for level in (1, 2, 3, 4):  # GGML_LOG_LEVEL_DEBUG, _INFO, _WARN, _ERROR in ggml.h
            log.write(level, f"level {level}\n")
    assert [record.levelno for record in caplog.records] == [
        logging.DEBUG,
        logging.DEBUG,
        logging.WARNING,
        logging.ERROR,
    ]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_nothing_reaches_stderr_and_a_fork_is_told(tiny_path: Path) -> None:
    program = f"""
import os, pathlib
from zephyr_local.engine.llama import LlamaModel
from zephyr_local.errors import EngineError
from zephyr_local.settings import EngineSettings
model = LlamaModel.load(pathlib.Path({str(tiny_path)!r}), EngineSettings())
model.evaluate([1, 300])
child = os.fork()
if child == 0:
    try:
        model.evaluate([1, 301])
    except EngineError as error:
        os._exit(7 if "fork" in str(error) else 8)
    os._exit(9)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
try:
    LlamaModel.load(pathlib.Path(__import__('sys').executable), EngineSettings())
except EngineError:
    pass
"""
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (child.returncode, child.stdout, child.stderr) == (0, "", "")


def test_a_temperature_near_zero_is_the_likeliest_token(tiny: LlamaModel) -> None:
    tiny.evaluate([1, 300, 301])
    best = int(np.argmax(tiny.logits()))
    for temperature in (0.0, 1e-38, 1e-30, 1e-7):
        sampler = tiny.sampler(Sampling(temperature=temperature, top_p=1.0, top_k=0, seed=1))
        assert tiny.sample(sampler) == best, temperature
        sampler.close()


def test_spaces_in_a_vocabulary_without_a_token_for_them(tmp_path: Path) -> None:
    tokens, scores, types = vocabulary()
    kept = [i for i, text in enumerate(tokens) if "▁" not in text]
    model = tiny_model(vocab=([tokens[i] for i in kept], [scores[i] for i in kept], [types[i] for i in kept]))
    path = tmp_path / "zephyr.gguf"
    path.write_bytes(model.build())
    loaded = LlamaModel.load(path, SETTINGS)
    try:
        ids = loaded.tokenize(" " * 100)
        assert len(ids) == 3 * 101  # ▁ in UTF-8, and one more in front
    finally:
        loaded.close()
