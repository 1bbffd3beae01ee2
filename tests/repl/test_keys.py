"""Keys of the terminal chat: several lines, the editor, the history, and Ctrl+C where it may come between things."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.command import ROOT, isolated
from tests.repl.terminal_driver import Terminal
from zephyr_local.repl.session import line_of, message_of
from zephyr_local.transcripts.store import ChatStore

OpenChat = Callable[..., Terminal]
GREEDY = ("--temperature", "0")
FRANCE = "What is the capital of France?"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def questions(home: Path, chat: int = 1) -> list[str]:
    """What was asked, as the store has it."""
    with ChatStore(home / "data" / "zephyr-local" / "chats.db") as store:
        return [turn.message.content for turn in store.turns(chat) if turn.message.role == "user"]


def answered(chat: Terminal) -> None:
    """Wait for the end of the first answer."""
    chat.wait(lambda text: re.fullmatch(r"[1-9]\d*/\d+ >", text.splitlines()[-1]) is not None)


# --- several lines ---


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ('"""one\rtwo\r\rthree"""\r', "one\ntwo\n\nthree"),
        ('"""\rone\r  two\r"""\r', "one\n  two"),
        ("one\ntwo\r", "one\ntwo"),  # Ctrl+J
        ("one\x1b\rtwo\r", "one\ntwo"),  # Alt+Enter
        ("\x1b[200~one\ntwo\r\nthree\rfour\x1b[201~\r", "one\ntwo\nthree\nfour"),  # pasted
        ("see \x1b[200~/help\r\n\x1b[201~\r", "see /help"),
    ],
)
def test_several_lines_are_one_message(open_chat: OpenChat, home: Path, keys: str, message: str):
    chat = open_chat()
    chat.send(keys[:-1])
    last = re.split(r"[\r\n]", message)[-1]
    chat.wait(lambda text: last in text.splitlines()[-1] or "…" in text.splitlines()[-1])
    assert not (home / "data" / "zephyr-local" / "chats.db").exists() or questions(home) == [], "nothing is sent yet"
    chat.send("\r")
    answered(chat)
    assert questions(home) == [message]


@pytest.mark.parametrize("message", ["plain", "two\nlines", "/help", "//", '"""', '"""open', 'a """ b', "/a\n/b"])
def test_every_message_can_be_typed(message: str):
    assert message_of(line_of(message)) == message


def test_a_long_paste_during_an_answer_arrives_whole(open_chat: OpenChat, counting: str, home: Path):
    chat = open_chat(counting, *GREEDY, "--max-tokens", "60")
    chat.say("Count")
    chat.shows("w10")
    text = " ".join(f"{number:04}" for number in range(1200))  # more than the 4,095 bytes of a terminal's line
    chat.send(f"/title {text}\r")
    chat.shows("w59")
    chat.wait(lambda shown: "The chat is called" in shown)
    chat.prompt()
    with ChatStore(home / "data" / "zephyr-local" / "chats.db") as store:
        assert store.summaries()[0].title == text


# --- the editor ---


def editor(folder: Path, script: str) -> dict[str, str]:
    """An environment whose editor is this script; $1 is the file."""
    path = folder / "my editor"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return {"EDITOR": f'"{path}"', "VISUAL": ""}


def test_ctrl_x_ctrl_e_and_editor_write_the_message_elsewhere(open_chat: OpenChat, tmp_path: Path, home: Path):
    chat = open_chat(environment=editor(tmp_path, 'cat "$1" > seen; printf "one\ntwo\n" > "$1"'), cwd=tmp_path)
    chat.send("begun")
    chat.shows("> begun")
    for keys in ("\x18\x05", "\x7f" * 8 + "/editor begun again\r"):
        chat.send(keys)
        chat.wait(lambda text: text.endswith("> one\n… two"))
        chat.send("!")
        chat.wait(lambda text: text.endswith("> one\n… two!"))
    assert (tmp_path / "seen").read_text().strip() == "begun again"
    chat.send("\r")
    answered(chat)
    assert questions(home) == ["one\ntwo!"], "it is sent when Enter says so"


@pytest.mark.parametrize(("script", "told"), [("exit 0", "Nothing was saved in the editor."), ("exit 3", "error:")])
def test_an_editor_that_writes_nothing_leaves_the_chat_as_it_is(
    open_chat: OpenChat, tmp_path: Path, script: str, told: str
):
    chat = open_chat(environment=editor(tmp_path, script))
    chat.ask("/editor", told)
    chat.ask("Hello", "Hello!")


def test_an_editor_finds_the_terminal_as_it_expects_it(open_chat: OpenChat, tmp_path: Path):
    chat = open_chat(environment=editor(tmp_path, 'echo go on; read line; echo "got $line" > "$1"'))
    for line in ("/editor", ""):
        chat.send(f"{line}\r" if line else "\x18\x05")
        chat.shows("go on")
        chat.send("typed\r")
        chat.wait(lambda text: text.endswith("got typed"))
        chat.control("c")
        chat.prompt()
        chat.screen.reset()


# --- the history ---


def test_up_and_ctrl_r_find_lines_of_this_run_and_the_last(open_chat: OpenChat, home: Path):
    chat = open_chat()
    chat.ask(FRANCE, "Paris")
    chat.ask("/title Two words")
    chat.send('"""one\rtwo"""\r')
    chat.wait(lambda text: '… two"""\n' in text)
    chat.prompt()
    chat.control("d")
    assert chat.ended() == 0
    path = home / "state" / "zephyr-local" / "history"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for run in range(2):
        again = open_chat(*(["--continue"] if run else []))
        again.send("\x1b[A")
        again.wait(lambda text: text.endswith('… two"""'))
        again.control("c")
        again.prompt()
        again.control("r")
        again.send("capital")
        again.wait(lambda text: FRANCE in text.splitlines()[-1] or FRANCE in text.splitlines()[-2])
        again.send("\r")
        again.wait(lambda text: text.endswith(f"> {FRANCE}"))
        again.control("c")
        again.prompt()
        again.control("r")
        again.shows("I-search")
        again.control("c")  # leaves the search alone
        again.prompt()
        again.control("d")
        assert again.ended() == 0


@pytest.mark.parametrize("flags", [("--no-history",), ("--no-save",)])
def test_without_a_history_lines_are_remembered_as_long_as_the_program(
    open_chat: OpenChat, home: Path, flags: tuple[str, ...]
):
    chat = open_chat(*flags)
    chat.ask("/title Ours")
    chat.send("\x1b[A")
    chat.wait(lambda text: text.endswith("> /title Ours"))
    chat.control("c")
    chat.control("d")
    assert chat.ended() == 0
    assert not (home / "state" / "zephyr-local" / "history").exists()


def test_a_history_may_be_kept_without_the_chats(open_chat: OpenChat, home: Path):
    chat = open_chat("--no-save", "--history")
    chat.ask("Hello", "Hello!")
    chat.control("d")
    assert chat.ended() == 0
    assert [path.name for path in home.rglob("*") if path.is_file()] == ["history"]


def test_a_history_that_cannot_be_made_is_done_without(open_chat: OpenChat, home: Path):
    (home / "state").mkdir(parents=True)
    (home / "state" / "zephyr-local").write_text("a file where a folder must be")
    chat = open_chat()
    chat.ask("Hello", "Hello!")


def test_a_history_that_has_grown_large_is_shortened(open_chat: OpenChat, home: Path):
    path = home / "state" / "zephyr-local" / "history"
    path.parent.mkdir(parents=True)
    path.write_text("".join(f"\n# 2026-01-01 00:00:00\n+line {number}\n" for number in range(40_000)))
    chat = open_chat()
    assert path.stat().st_size < 600_000
    chat.send("\x1b[A")
    chat.wait(lambda text: text.endswith("> line 39999"))


# --- Ctrl+C and Ctrl+D between things ---


def test_ctrl_c_after_a_question_was_sent_stops_its_answer(open_chat: OpenChat, counting: str):
    chat = open_chat(counting, *GREEDY, "--max-tokens", "2000")
    for _ in range(6):  # twenty seconds each, unless they are stopped
        chat.send("Count\r\x03")
        chat.wait(lambda text: "[stopped" in text, timeout_s=15)
        if "[stopped before the answer began]" in chat.text:
            chat.wait(lambda text: text.endswith("> Count"))
            chat.control("c")
        chat.prompt()
        assert "Traceback" not in chat.text
        chat.screen.reset()


def test_a_signal_at_the_prompt_is_ctrl_c(open_chat: OpenChat):
    chat = open_chat()
    chat.send("half")
    chat.shows("> half")
    os.kill(chat.process.pid, signal.SIGINT)
    chat.prompt()
    os.kill(chat.process.pid, signal.SIGINT)
    chat.shows("Ctrl+C again")
    chat.control("c")
    assert chat.ended() == 0


def test_ctrl_d_right_after_a_line_leaves(open_chat: OpenChat):
    for _ in range(3):
        chat = open_chat()
        chat.send("/title Ours\r\x04")
        assert chat.ended() == 0
        assert "Traceback" not in chat.text


def test_bytes_that_are_no_utf8_become_a_mark_and_end_nothing(open_chat: OpenChat, home: Path):
    chat = open_chat(environment={"EDITOR": "true", "VISUAL": "true"})
    chat.send(b"caf\xe9 \xff\xfe or\r")
    answered(chat)
    assert "mistake" not in chat.text
    with ChatStore(home / "data" / "zephyr-local" / "chats.db") as store:
        assert store.turns(1)[0].message.content == "caf\ufffd \ufffd\ufffd or"
    chat.send(b"\x1b[200~\xfe pasted\x1b[201~")
    chat.shows("pasted")
    chat.send(b"\x18\x05")
    chat.shows("pasted")
    assert "Unhandled" not in chat.text


@pytest.mark.skipif(shutil.which("bash") is None, reason="job control is tried from bash, which is not here")
def test_ctrl_z_suspends_and_fg_comes_back_to_what_was_typed(home: Path):
    pexpect = pytest.importorskip("pexpect")
    environment = isolated(home) | {"PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm-256color", "PS1": "SHELL$ "}
    shell = pexpect.spawn(
        "bash", ["--norc", "-i"], env=environment, encoding="utf-8", dimensions=(30, 100), timeout=60, cwd=str(ROOT)
    )
    try:
        shell.expect(r"SHELL\$")
        shell.sendline(f"'{sys.executable}' -m zephyr_local chat --no-save")
        shell.expect("0/1024")
        shell.send("half a question")
        shell.expect("question")
        shell.sendcontrol("z")
        shell.expect("Stopped")
        shell.expect(r"SHELL\$")
        shell.sendline("fg")
        shell.expect("half a question")
        shell.send(" now\r")
        shell.expect(r"\d\d/1024")
        shell.sendcontrol("d")
        shell.expect(r"SHELL\$")
    finally:
        shell.close(force=True)
