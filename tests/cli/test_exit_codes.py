"""Each exit code of `zephyr-local chat`, brought about for real; what came before is on stdout all the same."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.command import ROOT, isolated, zephyr_local
from tests.cli.running import engine_of, first, running
from tests.gguf_builder import tiny_model, write_counting_model
from zephyr_local.cli.main import EXIT_CODES

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc and limits")
POSIX = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Says w00 w01 …, some hundred words a second."""
    return write_counting_model(tmp_path_factory.mktemp("models"))


def failed(home: Path, code: int, *arguments: str | Path, words: str = "", **environment: str) -> str:
    """Nothing is on stdout, and one error on stderr; returned."""
    done = zephyr_local("chat", *arguments, home=home, environment=environment)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert "Traceback" not in done.stderr
    assert "mistake of ours" not in done.stderr
    assert words in done.stderr
    return done.stderr


def configure(home: Path, text: str) -> None:
    path = home / "config" / "zephyr-local" / "config.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_the_page_has_the_codes_of_help():
    page = (ROOT / "docs" / "chat-output.md").read_text(encoding="utf-8").partition("## Exit codes")[2]
    codes = ("0", "1", "2", "3", "4", "5", "6", "130")
    assert [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")][1:] == list(codes)
    assert all(f"{code} " in EXIT_CODES for code in codes)


def test_0_there_is_an_answer_be_it_cut(tmp_path: Path):
    done = zephyr_local("chat", "-p", "Hello", "--max-tokens", "1", home=tmp_path)
    assert done.returncode == 0
    assert "cut at max_tokens 1" in done.stderr


def test_1_a_model_that_is_damaged(tmp_path: Path):
    damaged = tiny_model()
    damaged.magic = b"GGML"
    failed(tmp_path, 1, damaged.write(tmp_path / "damaged.gguf"), "Hello", words="damaged.gguf")
    failed(tmp_path, 1, tmp_path, "Hello", words="is a folder")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--no-such-flag",), "--no-such-flag"),
        (("--temperature", "hot"), "'hot'"),
        (("--temperature", "nan"), "temperature is nan"),
        (("--n-ctx", "1"), "n_ctx is 1"),
        (("--top-p", "2"), "top_p is 2"),
        (("--kv-type", "q2"), "'q2'"),
        (("--overflow", "forget"), "'forget'"),
        (("--theme", "pink"), "'pink'"),
        (("--stop", ""), "stop is"),
        (("--chat", "one"), "'one'"),
        (("--profile", "none"), "'none'"),
        (("--save", "--no-such"), "--no-such"),
    ],
)
def test_2_wrong_flags_and_values(tmp_path: Path, arguments: tuple[str, ...], words: str):
    failed(tmp_path, 2, "-p", "Hello", *arguments, words=words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("temprature = 1", "temprature"),
        ("[sampling]\ntemperature = 'hot'", "sampling.temperature"),
        ("[sampling]\ntemperature = 500", "temperature is 500"),
        ("[sampling", "config.toml"),
        ("profile = 'none'", "none"),
    ],
)
def test_2_a_wrong_configuration_names_the_file_or_the_key(tmp_path: Path, text: str, words: str):
    configure(tmp_path, text)
    failed(tmp_path, 2, "-p", "Hello", words=words)
    assert zephyr_local("chats", "list", home=tmp_path).returncode == 0, "which has nothing to do with it"


def test_2_a_wrong_variable_is_named(tmp_path: Path):
    for name, value in (("N_CTX", "many"), ("TEMPERATURE", "500"), ("SAVE", "perhaps"), ("PROFILE", "none")):
        failed(tmp_path, 2, "-p", "Hello", words=f"ZEPHYR_LOCAL_{name}", **{f"ZEPHYR_LOCAL_{name}": value})


def test_3_a_model_that_is_not_there(tmp_path: Path):
    failed(tmp_path, 3, "none.gguf", "Hello", words="none.gguf")
    failed(tmp_path, 3, "-p", "Hello", words="none.gguf", ZEPHYR_LOCAL_MODEL="none.gguf")
    configure(tmp_path, "model = 'none.gguf'")
    failed(tmp_path, 3, "-p", "Hello", words="none.gguf")
    done = zephyr_local("chat", "none.gguf", stdin=None, home=tmp_path, timeout_s=30)
    assert done.returncode == 3


@LINUX
@pytest.mark.parametrize("form", ["text", "--jsonl"])
@pytest.mark.parametrize(
    ("check", "remedy"), [("--check-memory", b"It fits with --n-ctx"), ("--no-check-memory", b"Use a smaller n_ctx")]
)
def test_4_the_memory_does_not_suffice(tmp_path: Path, form: str, check: str, remedy: bytes):
    arguments = ["chat", "-p", "Hello", "--n-ctx", "1048576", check, *([] if form == "text" else [form])]
    command = shlex.join([sys.executable, "-m", "zephyr_local", *arguments])
    done = subprocess.run(
        ["sh", "-c", f"ulimit -v 1500000; exec {command}"],
        cwd=ROOT,
        env=isolated(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 4, done.stderr
    assert remedy in done.stderr
    assert b'"exit_code": 4' in done.stdout if form == "--jsonl" else done.stdout == b""


def test_5_the_question_does_not_fit(tmp_path: Path):
    for arguments in (("-p", "word " * 2000), ("-p", "Hello", "--system", "word " * 2000)):
        assert "1024" in failed(tmp_path, 5, *arguments)
        failed(tmp_path, 5, *arguments, "--overflow", "drop-oldest")


@LINUX
def test_6_the_engine_is_gone(counting: Path, tmp_path: Path):
    with running("chat", counting, "-p", "Hello", home=tmp_path) as process:
        assert process.stdout is not None
        read = process.stdout.read(4)
        os.kill(engine_of(process), signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 6, stderr
    assert (read + stdout).startswith(b" w00")
    assert stdout.endswith(b"\n")
    assert stderr.count(b"error: ") == 1
    assert b"SIGKILL" in stderr
    assert b"Traceback" not in stderr


# --- 130: Ctrl+C ---


def interrupted(process: subprocess.Popen[bytes]) -> bytes:
    """What came after Ctrl+C; the process has ended with 130 and without complaint."""
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    assert b"Traceback" not in stderr
    assert b"error" not in stderr
    return stdout


@LINUX
def test_130_while_the_model_loads(counting: Path, tmp_path: Path):
    with running("chat", counting, "-p", "Hello", "--save", home=tmp_path) as process:
        engine = engine_of(process)
        os.kill(engine, signal.SIGSTOP)
        time.sleep(0.5)  # the command waits for it
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
        os.kill(engine, signal.SIGCONT)
        stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout) == (130, b""), stderr
    assert b"Traceback" not in stderr
    assert zephyr_local("chats", "list", "--json", home=tmp_path).stdout == "[]\n"


@LINUX
def test_130_while_it_waits_for_stdin(tmp_path: Path):
    with running("chat", home=tmp_path, stdin=subprocess.PIPE) as process:
        engine_of(process)
        time.sleep(0.7)  # the bundled model loads in a fraction of it
        assert interrupted(process) == b""


@POSIX
def test_130_while_the_prompt_is_read(counting: Path, tmp_path: Path):
    with running("chat", counting, "--jsonl", "--n-batch", "8", "-p", "w01 " * 1500, home=tmp_path) as process:
        _, prefill = first(process, "prefill")
        assert prefill["done"] < prefill["total"]
        assert b'"event": "piece"' not in interrupted(process)


@POSIX
def test_130_while_it_answers(counting: Path, tmp_path: Path):
    with running("chat", counting, "-p", "Hello", home=tmp_path) as process:
        assert process.stdout is not None
        stdout = process.stdout.read(4) + interrupted(process)
    words = stdout.decode().split()
    assert words == [f"w{number % 100:02}" for number in range(len(words))]
    assert stdout.endswith(b"\n")
