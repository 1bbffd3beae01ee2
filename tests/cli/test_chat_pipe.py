"""`zephyr-local chat` among other programs: what it reads, what it writes, and what of it is saved."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import ROOT, isolated, zephyr_local
from tests.cli.running import running
from tests.gguf_builder import write_counting_model
from zephyr_local.transcripts.store import ChatStore
from zephyr_local.transcripts.stored_chat import ChatOrigin, StoredChat

CAPITAL = "What is the capital of France?"
NOTES = "Paris is the capital of France.\n\nIt is on the Seine.\n"


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Says w00 w01 …, some hundred words a second."""
    return write_counting_model(tmp_path_factory.mktemp("models"))


def chat(home: Path, *arguments: str | Path, stdin: str | bytes | None = None, **environment: str) -> str:
    """The answer; the command must succeed."""
    done = zephyr_local("chat", *arguments, stdin=stdin, home=home, environment=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def as_json(home: Path, *arguments: str | Path, **environment: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(chat(home, "--json", *arguments, **environment))
    return values


def saved(home: Path, number: int = 1) -> tuple[str | None, list[str]]:
    """The system prompt and the turns of a saved chat."""
    with store_of(home) as store:
        record = store.record(number)
    return record.system, [node.message.content for node in record.tree.nodes]


def numbers(home: Path) -> list[int]:
    with store_of(home) as store:
        return [summary.id for summary in store.summaries()]


def store_of(home: Path) -> ChatStore:
    return ChatStore(Path(zephyr_local("chats", "path", home=home).stdout.removesuffix("\n")))


def configure(home: Path, text: str) -> None:
    path = home / "config" / "zephyr-local" / "config.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


# --- what is asked ---


@pytest.mark.parametrize(
    ("arguments", "stdin", "question"),
    [
        (("Summarise this",), NOTES, "Summarise this\n\n" + NOTES.removesuffix("\n")),
        (("-p", "Summarise"), NOTES, "Summarise\n\n" + NOTES.removesuffix("\n")),
        (("Summarise this",), " \n\t\n", "Summarise this"),
        ((), "two\nlines\n\n", "two\nlines\n"),
        ((), "\ufeffof Windows\r\n", "of Windows"),
        ((" 日本 é ",), "ü", " 日本 é \n\nü"),
    ],
)
def test_the_question_stands_first_then_an_empty_line_then_stdin(
    tmp_path: Path, arguments: tuple[str, ...], stdin: str, question: str
):
    chat(tmp_path, "--save", *arguments, stdin=stdin)
    assert saved(tmp_path)[1][0] == question


def test_stdout_is_the_answer_and_one_newline(tmp_path: Path):
    done = zephyr_local("chat", CAPITAL, stdin="", home=tmp_path)
    assert done.stdout == "The capital of France is Paris.\n"
    assert len(done.stderr.splitlines()) == 1


def test_the_ways_to_ask_are_the_same(tmp_path: Path):
    ways: list[tuple[tuple[str, ...], str | None]] = [
        ((CAPITAL,), None),
        (("--prompt", CAPITAL), None),
        ((), CAPITAL),
    ]
    assert {chat(tmp_path, *arguments, stdin=stdin) for arguments, stdin in ways} == {
        "The capital of France is Paris.\n"
    }


def test_model_and_question_go_together(counting: Path, tmp_path: Path):
    for arguments in ((counting, "Hello"), (counting, "-p", "Hello"), (counting, "two words")):
        assert chat(tmp_path, *arguments, "--max-tokens", "3") == " w00 w01 w02\n"


def test_a_path_with_blanks_is_a_model_where_it_exists(counting: Path, tmp_path: Path):
    for name in ("my model.gguf", "my model"):
        (tmp_path / name).hardlink_to(counting)
        done = zephyr_local("chat", name, "--max-tokens", "2", stdin="Hello", cwd=tmp_path, home=tmp_path)
        assert done.stdout == " w00 w01\n"


@pytest.mark.parametrize("words", ["hello", "no such model.gguf", "NO SUCH.GGUF", "models/zephyr"])
def test_words_that_must_be_a_model_and_are_none_are_not_found(tmp_path: Path, words: str):
    done = zephyr_local("chat", words, stdin="Hello", home=tmp_path)
    assert (done.returncode, done.stdout) == (3, "")
    assert words in done.stderr
    assert "a question of one word goes after --prompt" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("model.gguf", "Hello", "-p", "Hello"), "QUESTION and --prompt"),
        (("two words", "-p", "Hello"), "QUESTION and --prompt"),
        (("-p", "Hello", "--json", "--jsonl"), "--json and --jsonl"),
        (("-p", "Hello", "--continue", "--no-save"), "--no-save"),
        (("-p", "Hello", "--chat", "1", "--no-save"), "--no-save"),
        (("-p", "Hello", "--continue"), "no chat to go on with"),
        (("-p", "Hello", "--chat", "1"), "no chat 1"),
        (("-p", "Hello", "--chat", "0"), "0"),
        (("-p", "Hello", "--chat", "99999999999999999999"), "99999999999999999999"),
        (("-p", ""), "the question is empty"),
        (("-p", " \n "), "the question is empty"),
        (("",), "the question is empty"),
        (("", "Hello"), "MODEL is empty"),
        ((), "stdin holds no question"),
        (("a", "b", "c"), "unexpected extra argument"),
    ],
)
def test_what_does_not_go_together_is_wrong_usage(tmp_path: Path, arguments: tuple[str, ...], words: str):
    done = zephyr_local("chat", *arguments, home=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take no such arguments")
@pytest.mark.parametrize(
    "arguments",
    [
        ("chat", "-p", b"caf\xe9"),
        ("chat", b"caf\xe9 au lait"),
        ("chat", "-p", "x", "--system", b"\xff"),
        ("chats", "title", "1", b"\xff"),
        ("chats", "search", b"\xff"),
    ],
)
def test_an_argument_that_is_not_utf8_is_refused(tmp_path: Path, arguments: tuple[str | bytes, ...]):
    done = zephyr_local(*map(os.fsdecode, arguments), home=tmp_path)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "not UTF-8" in done.stderr


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_stdin_that_is_not_utf8_is_refused_with_the_place(tmp_path: Path, form: tuple[str, ...]):
    done = zephyr_local("chat", "Summarise this", *form, stdin=b"abc\xff", home=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "not UTF-8 (byte 3)" in done.stderr


@pytest.mark.parametrize("word", ["a", "a word "])
def test_a_megabyte_is_refused_with_the_number_of_tokens_that_fit(tmp_path: Path, word: str):
    stdin = word * (1_000_000 // len(word))
    done = zephyr_local("chat", "Summarise this", stdin=stdin, home=tmp_path, timeout_s=30)
    assert (done.returncode, done.stdout) == (5, "")
    assert "1024" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="there is no yes")
def test_stdin_without_an_end_is_refused(tmp_path: Path):
    with (
        subprocess.Popen(["yes"], stdout=subprocess.PIPE) as yes,
        running("chat", "Summarise this", home=tmp_path, stdin=yes.stdout.fileno()) as process,  # type: ignore[union-attr]
    ):
        stdout, stderr = process.communicate(timeout=60)
        yes.kill()
    assert (process.returncode, stdout) == (5, b"")
    assert b"stdin is over" in stderr


# --- what is written ---


FORCED = {"FORCE_COLOR": "1", "CLICOLOR_FORCE": "1", "PY_COLORS": "1", "TERM": "xterm-256color"}


@pytest.mark.parametrize("form", ["text", "--jsonl"])
def test_no_colours_and_no_bars_in_a_pipe(counting: Path, tmp_path: Path, form: str):
    """The prompt takes more than the half second after which a terminal shows a bar."""
    arguments = ["--n-batch", "16", "--max-tokens", "2", "--theme", "dark", *([] if form == "text" else [form])]
    done = subprocess.run(
        [sys.executable, "-m", "zephyr_local", "chat", counting, *arguments],
        input=b"w01 " * 500,
        env=isolated(tmp_path) | FORCED,
        cwd=ROOT,
        capture_output=True,
        check=True,
        timeout=60,
    )
    for stream in (done.stdout, done.stderr):
        assert b"\x1b" not in stream
        assert b"\r" not in stream
    assert b"[##" not in done.stderr
    if form == "text":
        assert done.stdout == b" w00 w01\n"


@pytest.mark.parametrize("arguments", [("-p", "Hello", "--n-ctx", "4"), ("nothing.gguf", "Hello"), ("--no-such-flag",)])
def test_errors_have_no_colours_in_a_pipe(tmp_path: Path, arguments: tuple[str, ...]):
    done = zephyr_local("chat", *arguments, home=tmp_path, environment={"FORCE_COLOR": "1", "CLICOLOR_FORCE": "1"})
    assert done.returncode
    assert done.stdout == ""
    assert "\x1b" not in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="a POSIX pipe")
@pytest.mark.parametrize("form", [(), ("--jsonl",)])
def test_a_reader_that_has_enough_ends_the_answer(counting: Path, tmp_path: Path, form: tuple[str, ...]):
    with running("chat", counting, "-p", "Hello", "--save", *form, home=tmp_path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1)
        process.stdout.close()
        stderr = process.stderr.read()
        assert process.wait(timeout=30) == 0, stderr
        assert b"rror" not in stderr
    if not form:
        assert len(saved(tmp_path)[1]) == 2, "what came is saved"


@pytest.mark.parametrize("form", ["text", "--json"])
def test_a_locale_that_is_not_utf8_takes_nothing_from_json(tmp_path: Path, form: str):
    model = write_counting_model(tmp_path, name="日本")
    arguments = ("chat", model, "-p", "Hello", "--max-tokens", "1", *(() if form == "text" else (form,)))
    done = zephyr_local(*arguments, home=tmp_path, environment={"PYTHONIOENCODING": "latin-1"})
    assert done.returncode == 0
    if form == "--json":
        assert json.loads(done.stdout)["model"] == "zephyr 日本"
    else:
        assert done.stdout == " w00\n"


# --- what is saved ---


def test_nothing_is_saved_unless_it_is_asked_for(tmp_path: Path):
    chat(tmp_path, "-p", CAPITAL)
    chat(tmp_path, stdin=CAPITAL)
    assert not (tmp_path / "data").exists()
    assert not (tmp_path / "state").exists()
    assert as_json(tmp_path, "-p", CAPITAL)["chat"] is None
    assert as_json(tmp_path, "-p", CAPITAL, "--save")["chat"] == 1
    assert numbers(tmp_path) == [1]
    assert not (tmp_path / "state").exists(), "a question in a pipe is no line that was typed"


def test_the_configuration_can_ask_for_it(tmp_path: Path):
    configure(tmp_path, "save = true")
    assert as_json(tmp_path, "-p", CAPITAL)["chat"] == 1
    assert as_json(tmp_path, "-p", CAPITAL, "--no-save")["chat"] is None


def test_continue_goes_on_with_the_chat_that_was_changed_last(tmp_path: Path):
    first = as_json(tmp_path, "-p", "one two three", "--save")
    other = as_json(tmp_path, "-p", CAPITAL, "--save")
    assert (first["chat"], other["chat"]) == (1, 2)
    second = as_json(tmp_path, "--continue", "-p", CAPITAL)
    assert second["chat"] == 2
    assert second["prompt_tokens"] > other["prompt_tokens"] + other["completion_tokens"]
    back = as_json(tmp_path, "--chat", "1", "-p", CAPITAL)
    assert back["chat"] == 1
    assert back["prompt_tokens"] > first["prompt_tokens"] + first["completion_tokens"]
    assert as_json(tmp_path, "-c", "-p", "Who are you?")["chat"] == 1
    assert saved(tmp_path, 1)[1][::2] == ["one two three", CAPITAL, "Who are you?"]
    shown = zephyr_local("chats", "show", "2", home=tmp_path).stdout
    assert shown.count(f"## You\n\n{CAPITAL}\n\n## zephyr-tiny\n\nThe capital") == 2


def test_save_goes_with_continue(tmp_path: Path):
    chat(tmp_path, "-p", CAPITAL, "--save")
    assert as_json(tmp_path, "-p", CAPITAL, "--continue", "--save")["chat"] == 1


def test_a_question_that_fails_leaves_the_chat_as_it_was(tmp_path: Path):
    chat(tmp_path, "-p", CAPITAL, "--save")
    before = saved(tmp_path)
    assert zephyr_local("chat", "-c", home=tmp_path, stdin="word " * 5000).returncode == 5
    assert saved(tmp_path) == before
    assert zephyr_local("chat", "--save", home=tmp_path, stdin="word " * 5000).returncode == 5
    assert numbers(tmp_path) == [1]


def test_a_model_that_is_gone_is_not_found_until_another_is_given(counting: Path, tmp_path: Path):
    own = tmp_path / "own.gguf"
    own.hardlink_to(counting)
    chat(tmp_path, own, "-p", "Hello", "--save", "--max-tokens", "3")
    own.unlink()
    done = zephyr_local("chat", "-c", "-p", "Hello", home=tmp_path)
    assert (done.returncode, done.stdout) == (3, "")
    assert str(own) in done.stderr
    assert "chat 1" in done.stderr
    assert "one word" not in done.stderr, "nobody has mistaken a question for a model"
    assert chat(tmp_path, "-c", counting, "-p", "Hello", "--max-tokens", "3") == " w00 w01 w02\n"


def test_continue_takes_the_chats_own_and_a_flag_goes_before_it(counting: Path, tmp_path: Path):
    chat(tmp_path, counting, "-p", "Hello", "--save", "--system", "Be brief.", "--max-tokens", "2")
    with store_of(tmp_path) as store:
        stored, _ = StoredChat.resume(store, 1)
        stored.origin = dataclasses.replace(stored.origin, sampling=(("max_tokens", 3),))
        stored.close()
    # What is set for every chat does not change one that has its own.
    configure(tmp_path, 'model = "none.gguf"\nsystem = "Be long."\ntemplate = "none"\n[sampling]\nmax_tokens = 9')
    assert chat(tmp_path, "-c", "-p", "Hello") == " w00 w01 w02\n"
    assert saved(tmp_path)[0] == "Be brief."
    assert zephyr_local("chat", "-p", "Hello", home=tmp_path).returncode == 3
    assert chat(tmp_path, "-c", "-p", "Hello", "--max-tokens", "4") == " w00 w01 w02 w03\n"
    assert chat(tmp_path, "-c", "-p", "Hello", "--system", "Be brave.", "--max-tokens", "1") == " w00\n"
    assert saved(tmp_path)[0] == "Be brave."
    assert chat(tmp_path, "-c", "-p", "Hello", ZEPHYR_LOCAL_SYSTEM="Be kind.", ZEPHYR_LOCAL_MAX_TOKENS="2").endswith(
        " w00 w01\n"
    )
    assert saved(tmp_path)[0] == "Be kind."


def test_a_flag_counts_for_its_run_and_the_chat_keeps_its_own(tmp_path: Path):
    zephyr_local("chat", "Who are you?", "--save", home=tmp_path)
    with ChatStore(tmp_path / "data" / "zephyr-local" / "chats.db") as store:
        stored, _ = StoredChat.resume(store, 1)
        stored.origin = ChatOrigin(None, None, (("max_tokens", 3),))
        stored.close()
    longer = json.loads(zephyr_local("chat", "-c", "--json", "--max-tokens", "5", "Who are you?", home=tmp_path).stdout)
    assert longer["completion_tokens"] == 5
    again = json.loads(zephyr_local("chat", "-c", "--json", "Who are you?", home=tmp_path).stdout)
    assert again["completion_tokens"] == 3


def test_another_model_takes_the_chat_over_without_the_first_ones_template(counting: Path, tmp_path: Path):
    zephyr_local("chat", "Who are you?", "--save", "--template", "zephyr", home=tmp_path)
    done = zephyr_local("chat", "-c", counting, "-p", "Count", "--max-tokens", "3", home=tmp_path)
    assert done.stdout.split() == ["w00", "w01", "w02"], done.stderr
    with ChatStore(tmp_path / "data" / "zephyr-local" / "chats.db") as store:
        origin = StoredChat.resume(store, 1)[0].origin
    assert origin == ChatOrigin(str(counting), None)


def test_continue_and_a_number_are_two_things(tmp_path: Path):
    done = zephyr_local("chat", "-c", "--chat", "1", "-p", "hi", home=tmp_path)
    assert done.returncode == 2
    assert "choose one" in done.stderr
