"""`zephyr-local chat` in a pipe; tests/repl drives it on a terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.command import ROOT, zephyr_local
from tests.gguf_builder import write_endless_model, write_reciting_model

GREEDY = ("--temperature", "0")


def test_answers_once_with_only_the_answer_on_stdout():
    done = zephyr_local("chat", *GREEDY, stdin="What is the capital of France?\n")
    assert done.returncode == 0
    assert "Paris" in done.stdout
    assert done.stdout.count("\n") == 1
    assert done.stdout.endswith("\n")
    assert "\x1b" not in done.stdout
    assert "zephyr-7b-beta" in done.stderr, "without MODEL, one line says how to get the real one"
    assert len(done.stderr.splitlines()) == 1


def test_prompt_flag_is_the_same_as_stdin():
    piped = zephyr_local("chat", *GREEDY, stdin="Who are you?")
    flagged = zephyr_local("chat", *GREEDY, "--prompt", "Who are you?")
    assert flagged.stdout == piped.stdout
    assert flagged.stdout.strip()


def test_the_same_seed_gives_the_same_answer():
    ask = ("chat", "-p", "Tell me about cats.", "--temperature", "1.5", "--seed", "7")
    assert zephyr_local(*ask).stdout == zephyr_local(*ask).stdout


def test_max_tokens_and_stop_end_the_answer():
    whole = zephyr_local("chat", *GREEDY, "-p", "What is the capital of France?").stdout
    short = zephyr_local("chat", *GREEDY, "-p", "What is the capital of France?", "--max-tokens", "2").stdout
    stopped = zephyr_local("chat", *GREEDY, "-p", "What is the capital of France?", "--stop", "Paris").stdout
    assert len(short) < len(whole)
    assert whole.startswith(short.rstrip("\n"))
    assert "Paris" in whole
    assert "Paris" not in stopped


def test_verbose_tells_timings_on_stderr():
    done = zephyr_local("chat", *GREEDY, "-p", "Hello", "--verbose")
    assert "first token after" in done.stderr
    assert "first token after" not in done.stdout


def test_a_chat_that_does_not_fit_says_the_numbers():
    done = zephyr_local("chat", "--n-ctx", "256", stdin="word " * 600)
    assert done.returncode == 5
    assert "256" in done.stderr
    assert done.stdout.strip() == ""


def test_stdin_that_is_not_utf8_is_refused():
    done = zephyr_local("chat", stdin=b"caf\xe9")
    assert done.returncode == 2
    assert "not UTF-8" in done.stderr


def test_ctrl_c_in_a_pipe_leaves_with_130(tmp_path: Path):
    endless = (str(write_endless_model(tmp_path)), "--temperature", "0", "--n-ctx", "65536", "-p", "Hello")
    process = subprocess.Popen(
        [sys.executable, "-m", "zephyr_local", "chat", *endless],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.read(1)  # the answer has begun
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    assert b"Traceback" not in stderr


def test_the_bundled_model_answers_the_same_each_time_unless_told_otherwise():
    ask = ("chat", "-p", "What is the capital of France?")
    assert {zephyr_local(*ask).stdout for _ in range(2)} == {zephyr_local(*ask, *GREEDY).stdout}
    hot = {zephyr_local(*ask, "--temperature", "50", "--top-p", "1", "--seed", str(seed)).stdout for seed in (1, 2)}
    assert len(hot) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full on this system")
def test_the_bundled_models_name_is_a_model(tmp_path: Path):
    asked = ["What is the capital of France?", "--json"]
    plain = zephyr_local("chat", *asked)
    for name in ("zephyr-tiny", "Zephyr_Tiny"):
        named = zephyr_local("chat", name, *asked)
        assert (named.returncode, named.stderr) == (0, "")  # who names it knows that it is tiny
        answers = [json.loads(done.stdout) for done in (plain, named)]
        assert answers[0]["answer"] == answers[1]["answer"]


def test_a_chat_goes_over_to_the_bundled_model_by_its_name(tmp_path: Path):
    other = write_reciting_model(tmp_path, "All is well that ends well.")
    assert "All is well" in zephyr_local("chat", other, "Is it?", "--save", home=tmp_path).stdout
    gone_on = zephyr_local("chat", "zephyr-tiny", "What is the capital of France?", "--continue", home=tmp_path)
    assert "Paris" in gone_on.stdout
    again = zephyr_local("chat", "What is the capital of France?", "--continue", home=tmp_path)
    assert "Paris" in again.stdout


def test_only_one_word_alone_may_have_been_a_question():
    remark = "a question of one word goes after --prompt"
    assert remark in zephyr_local("chat", "nosuch", stdin="What?").stderr
    for words in (["nosuch", "What is it?"], ["nosuch", "--prompt", "What"]):
        done = zephyr_local("chat", *words)
        assert done.returncode == 3
        assert remark not in done.stderr


def test_a_full_disk_behind_stdout_is_not_called_our_mistake():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "zephyr_local", "chat", "-p", "Hello"],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert done.returncode == 1
    assert "the system refused" in done.stderr
    assert "mistake of ours" not in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="descriptors are closed in a POSIX shell")
@pytest.mark.parametrize(("closing", "words"), [("<&-", "stdin holds no question"), ("-p hi >&-", "stdout is closed")])
def test_closed_streams_are_said(closing: str, words: str):
    command = f"'{sys.executable}' -m zephyr_local chat {closing}"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert words in done.stderr


def test_a_reader_that_leaves_early_is_no_error():
    process = subprocess.Popen(
        [sys.executable, "-m", "zephyr_local", "chat", "-p", "Hello", "--temperature", "0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    process.stdout.close()
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.stderr is not None
    assert b"Traceback" not in process.stderr.read()
    assert process.returncode == 0
