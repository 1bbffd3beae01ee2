"""LlamaModel against llama.cpp itself: vocabulary, loading, logging, its end; on a tiny model of random weights."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.command import ROOT
from tests.engine.conftest import SETTINGS
from tests.gguf_builder import tiny_model, vocabulary
from tests.hf_tokenizer import hf_tokenizer
from tests.llama_eval import Evaluator
from tests.texts import honest_texts
from zephyr_local.chat_template import ZEPHYR_TEMPLATE
from zephyr_local.engine import llama
from zephyr_local.engine.cancel import Cancelled
from zephyr_local.engine.llama import LlamaModel
from zephyr_local.engine.samplers import make_sampler
from zephyr_local.errors import ContextExceededError, EngineError
from zephyr_local.settings import EngineSettings, Sampling

GREEDY = Sampling(temperature=0.0)


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
            Evaluator(tiny).evaluate([outside])


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


def test_use_after_close(tiny: LlamaModel) -> None:
    sampler, context, evaluator = make_sampler(tiny, GREEDY), tiny.context, Evaluator(tiny)
    evaluator.evaluate([1])
    tiny.close()
    tiny.close()
    for use in (
        lambda: evaluator.evaluate([1]),
        lambda: evaluator.append(1),
        evaluator.logits,
        lambda: evaluator.sample(sampler),
        lambda: context.embeddings(0),
        lambda: context.held(0),
        lambda: context.share(0, 1, 1),
        lambda: tiny.context,
        lambda: make_sampler(tiny, Sampling(dry_multiplier=1.0)),
        lambda: tiny.tokenize("a"),
        lambda: tiny.token_to_bytes(5),
        lambda: tiny.is_end_of_generation(5),
        lambda: tiny.token_text(5),
    ):
        with pytest.raises(EngineError, match="closed"):
            use()


def test_a_failed_load_says_what_llama_cpp_said(tmp_path: Path, tiny_path: Path) -> None:
    broken = tiny_model()
    broken.tensors[0].data = b"\0\0\xc0\x7f" + broken.tensors[0].data[4:]  # a NaN
    with pytest.raises(EngineError, match=r"invalid data") as caught:
        LlamaModel.load(broken.write(tmp_path / "nan.gguf"), SETTINGS)
    assert caught.value.exit_code == 6
    with pytest.raises(EngineError, match="context of 1048576"):
        # Not memory, which a large machine has, but a cache type that this head size cannot have.
        LlamaModel.load(tiny_path, EngineSettings(n_ctx=1 << 20, kv_type="q8_0"))


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
        mistral_vocabulary.context.held(0)


def test_log_lines_go_to_logging(tiny_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="zephyr_local.native"):
        LlamaModel.load(tiny_path, SETTINGS).close()
    lines = [record.getMessage() for record in caplog.records if record.name == "zephyr_local.native"]
    assert any("general.architecture" in line for line in lines)
    assert all("\n" not in line and line.strip() for line in lines)


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
from tests.llama_eval import Evaluator
from zephyr_local.engine.llama import LlamaModel
from zephyr_local.errors import EngineError
from zephyr_local.settings import EngineSettings
model = LlamaModel.load(pathlib.Path({str(tiny_path)!r}), EngineSettings())
evaluator = Evaluator(model)
evaluator.evaluate([1, 300])
child = os.fork()
if child == 0:
    try:
        evaluator.evaluate([1, 301])
    except EngineError as error:
        os._exit(7 if "fork" in str(error) else 8)
    os._exit(9)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
try:
    LlamaModel.load(pathlib.Path(__import__('sys').executable), EngineSettings())
except EngineError:
    pass
"""
    child = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert (child.returncode, child.stdout, child.stderr) == (0, "", "")


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
