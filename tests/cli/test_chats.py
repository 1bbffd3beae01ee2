"""`zephyr-local chats`: what was saved is listed, shown, found, taken out and removed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import zephyr_local
from tests.cli.running import answer_begun, first, running
from tests.gguf_builder import write_counting_model
from tests.repl.terminal_driver import Terminal
from tests.scripted_model import ScriptedModel
from zephyr_local.chat import Chat
from zephyr_local.chat_types import Message

CAPITAL = "What is the capital of France?"
PARIS = "The capital of France is Paris."
HOSTILE = "a\x1b[31mb\x07\x9b2Jc\u202ed"
"""As a title: colours what follows, rings, clears a screen, and turns the text around."""


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Says w00 w01 …, some hundred words a second."""
    return write_counting_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def _saved(tmp_path_factory: pytest.TempPathFactory, counting: Path) -> Path:
    home = tmp_path_factory.mktemp("home")
    for arguments in (("-p", CAPITAL, "--save"), ("-p", "Who are you?", "--continue")):
        assert zephyr_local("chat", *arguments, home=home).returncode == 0
    with running("chat", counting, "-p", "Count, Ämilie", "--save", "--jsonl", home=home) as process:
        first(process, "piece")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        assert process.returncode == 130
    arguments = ("-p", "日本 語", "--system", "Be brief.", "--max-tokens", "1", "--save")
    assert zephyr_local("chat", *arguments, home=home).returncode == 0
    return home


@pytest.fixture
def home(_saved: Path, tmp_path: Path) -> Path:
    """Three chats: of two questions; interrupted; with a system prompt, and cut after a token."""
    return Path(shutil.copytree(_saved, tmp_path / "home"))


def chats(home: Path, *arguments: str | Path, code: int = 0, environment: Mapping[str, str] = {}) -> str:
    done = zephyr_local("chats", *arguments, home=home, environment=environment)
    assert done.returncode == code, done.stderr
    assert "mistake of ours" not in done.stderr
    return done.stdout


def refused(home: Path, *arguments: str | Path, code: int = 2) -> str:
    """Nothing is on stdout; returns what is on stderr."""
    done = zephyr_local("chats", *arguments, home=home)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    return done.stderr


def listed(home: Path) -> list[dict[str, Any]]:
    values: list[dict[str, Any]] = json.loads(chats(home, "list", "--json"))
    return values


def store_of(home: Path) -> Path:
    return Path(chats(home, "path").removesuffix("\n"))


# --- list, show, search ---


def test_path_says_where_without_making_it(tmp_path: Path):
    path = store_of(tmp_path)
    assert path.name == "chats.db"
    assert tmp_path in path.parents
    assert not path.exists()


def test_list(home: Path):
    lines = chats(home, "list").splitlines()
    assert [line.split()[0] for line in lines] == ["3", "2", "1"]
    when = r"\d{4}-\d\d-\d\d \d\d:\d\d"
    assert re.fullmatch(rf"  3  {when}    2 turns  日本 語  zephyr-tiny", lines[0])
    assert re.fullmatch(rf"  2  {when}    2 turns  Count, Ämilie  zephyr counting", lines[1])
    assert re.fullmatch(rf"  1  {when}    4 turns  {re.escape(CAPITAL)}  zephyr-tiny", lines[2])


def test_list_as_json(home: Path):
    found = listed(home)
    assert [summary["id"] for summary in found] == [3, 2, 1]
    assert found[2] | {"created_s": 0, "changed_s": 0} == {
        "id": 1,
        "title": CAPITAL,
        "created_s": 0,
        "changed_s": 0,
        "turns": 4,
        "branches": 1,
        "models": ["zephyr-tiny"],
    }
    assert all(time.time() - 3600 < summary["created_s"] <= summary["changed_s"] for summary in found)


def test_a_store_with_nothing_in_it(tmp_path: Path):
    done = zephyr_local("chats", "list", home=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert "no saved chats" in done.stderr
    assert listed(tmp_path) == []
    assert chats(tmp_path, "export", "--all", "--format", "sharegpt") == "[]\n"
    chats(tmp_path, "rm", "--all", "--yes")


def test_show(home: Path):
    parts = (f"# {CAPITAL}", "## You", CAPITAL, "## zephyr-tiny", PARIS, "## You", "Who are you?", "## zephyr-tiny", "")
    begin = "\n\n".join(parts)
    shown = chats(home, "show", "1")
    assert shown.startswith(begin)
    assert re.fullmatch(r"[^\n]+\.\n", shown.removeprefix(begin))
    interrupted = chats(home, "show", "2")
    assert "## zephyr counting (interrupted)\n\nw00" in interrupted
    cut = chats(home, "show", "3")
    assert cut.startswith(
        "# 日本 語\n\n## System\n\nBe brief.\n\n## You\n\n日本 語\n\n## zephyr-tiny (cut at a limit)\n\n"
    )
    assert "[turn 1, assistant, after turn 0, interrupted]\n w00" in chats(home, "show", "2", "--all-branches")


@pytest.mark.parametrize(
    ("verb", "number"), [("show", "0"), ("title", "-1"), ("export", "1"), ("rm", "1"), ("show", "99999999999999999999")]
)
def test_numbers_that_are_not_there(tmp_path: Path, verb: str, number: str):
    arguments = {"title": ("--", number, "x"), "rm": ("--yes", "--", number)}.get(verb, ("--", number))
    assert f"there is no chat {number}" in refused(tmp_path, verb, *arguments)


def test_search_finds_every_case_and_exits_1_when_nothing_is_found(home: Path):
    assert chats(home, "search", "PARIS") == f"1  {CAPITAL}\n    assistant: {PARIS}\n"
    assert chats(home, "search", "ämi").splitlines() == ["2  Count, Ämilie", "    user: Count, Ämilie"]
    assert chats(home, "search", "本").splitlines()[0] == "3  日本 語"
    assert chats(home, "search", "Berlin", code=1) == ""
    assert chats(home, "search", "Berlin", "--json", code=1) == "[]\n"
    assert json.loads(chats(home, "search", "paris", "--json")) == [
        {"chat": 1, "title": CAPITAL, "role": "assistant", "snippet": PARIS}
    ]
    assert chats(home, "search", "%", code=1) == "", "it is no pattern"


def test_a_locale_that_is_not_utf8(home: Path):
    latin = {"PYTHONIOENCODING": "latin-1"}
    chats(home, "title", "3", "日本")
    assert chats(home, "search", "日本", environment=latin).startswith("3  ??\n    user: ?? ?\n")
    assert json.loads(chats(home, "list", "--json", environment=latin))[0]["title"] == "日本"
    exported = chats(home, "export", "3", "--format", "json", environment=latin)
    assert json.loads(exported)["turns"][0]["content"] == "日本 語"


# --- export ---


def test_export_as_markdown(home: Path):
    assert chats(home, "export", "1") == chats(home, "show", "1")
    both = chats(home, "export", "2", "1")
    assert both.index("# Count") < both.index(f"# {CAPITAL}")
    assert chats(home, "export", "1", "-o", home / "x.md") == ""
    assert (home / "x.md").read_text("utf-8") == chats(home, "show", "1")


def test_export_as_json_is_what_load_reads(home: Path):
    chats(home, "export", "3", "--output", home / "x.json")
    chat = Chat.load(ScriptedModel(), home / "x.json")
    assert chat.system == "Be brief."
    assert chat.turns[0] == Message("user", "日本 語")
    assert Chat.from_json(ScriptedModel(), chats(home, "export", "3", "--format", "json")).messages == chat.messages
    assert "JSON holds one chat" in refused(home, "export", "1", "2", "-o", home / "y.json")
    assert not (home / "y.json").exists()


def test_export_as_sharegpt_is_what_the_data_commands_read(home: Path):
    (one,) = json.loads(chats(home, "export", "1", "--format", "sharegpt"))
    assert one["id"] == "zephyr-local-1"
    assert [turn["from"] for turn in one["conversations"]] == ["human", "gpt", "human", "gpt"]
    assert one["conversations"][1]["value"] == PARIS
    exported, train = home / "sharegpt.json", home / "train.jsonl"
    said = zephyr_local("chats", "export", "--all", "--format", "sharegpt", "-o", exported, home=home)
    assert said.returncode == 0
    assert said.stderr.splitlines()[:2] == [
        f"Chat {number} is left out: none of its answers is whole." for number in (2, 3)
    ]
    done = zephyr_local("data", "dialogues", exported, "-o", train, home=home)
    assert done.returncode == 0, done.stderr
    dialogues = [json.loads(line) for line in train.read_text("utf-8").splitlines()]
    contents = [[turn["content"].strip() for turn in dialogue["messages"]] for dialogue in dialogues]
    assert next(turns for turns in contents if turns[0] == CAPITAL)[:2] == [CAPITAL, PARIS]
    assert len(dialogues) == 1


def test_export_replaces_nothing_unless_told(home: Path):
    path = home / "x.md"
    path.write_text("mine")
    assert "x.md exists" in refused(home, "export", "1", "-o", path)
    assert path.read_text() == "mine"
    chats(home, "export", "1", "-o", path, "--force")
    assert PARIS in path.read_text()
    assert not [name for name in home.iterdir() if name.name.endswith(".tmp")]


def test_the_format_is_the_ending_unless_it_is_given(home: Path):
    chats(home, "export", "1", "-o", home / "a.MD")
    chats(home, "export", "1", "-o", home / "b.markdown")
    assert (home / "a.MD").read_bytes() == (home / "b.markdown").read_bytes()
    assert "ends neither in .md nor in .json" in refused(home, "export", "1", "-o", home / "c.txt")
    chats(home, "export", "1", "-o", home / "c.txt", "--format", "json")
    assert json.loads((home / "c.txt").read_text("utf-8"))["format"] == "zephyr-local chat"


@pytest.mark.parametrize("arguments", [("export",), ("export", "--all", "1"), ("rm",), ("rm", "--all", "1")])
def test_either_numbers_or_all(tmp_path: Path, arguments: tuple[str, ...]):
    assert "Give the numbers of chats, or --all" in refused(tmp_path, *arguments)


# --- title, rm ---


def test_title(home: Path):
    chats(home, "title", "1", "  Städte 東京 ")
    assert listed(home)[2]["title"] == "Städte 東京"
    assert chats(home, "search", "städte").startswith("1  Städte 東京")
    assert "the title is empty" in refused(home, "title", "1", " \n")


def test_rm_removes_all_or_none(home: Path):
    assert "there is no chat 9" in refused(home, "rm", "1", "9", "--yes")
    assert "no terminal to ask on" in refused(home, "rm", "1")
    assert len(listed(home)) == 3
    done = zephyr_local("chats", "rm", "1", "3", "1", "--yes", home=home)
    assert (done.returncode, done.stderr) == (0, "Removed 2.\n")
    assert [summary["id"] for summary in listed(home)] == [2]
    zephyr_local("chat", "-p", "Hello", "--save", home=home)
    assert [summary["id"] for summary in listed(home)] == [4, 2], "a number is never given again"
    chats(home, "rm", "--all", "--yes")
    assert listed(home) == []
    data = b"".join(path.read_bytes() for path in store_of(home).parent.iterdir())
    assert PARIS.encode() not in data


@pytest.mark.parametrize(("answer", "code", "left"), [("y", 0, [3, 1]), ("n", 1, [3, 2, 1]), ("", 1, [3, 2, 1])])
def test_rm_asks_on_a_terminal(home: Path, answer: str, code: int, left: list[int]):
    terminal = Terminal("chats", "rm", "2", home=home)
    try:
        terminal.shows("Remove 1 chat for good?")
        terminal.send(answer + "\r")
        assert terminal.ended() == code
    finally:
        terminal.close()
    assert [summary["id"] for summary in listed(home)] == left


def test_a_chat_that_is_open_elsewhere_is_left_alone(home: Path, counting: Path):
    with running("chat", counting, "-p", "Hello", "--save", home=home):
        answer_begun(home)
        assert "chat 4 is open" in refused(home, "rm", "4", "--yes")
        assert "chat 4 is open" in refused(home, "rm", "--all", "--yes")
        done = zephyr_local("chat", "--chat", "4", "-p", "Hello", home=home)
        assert (done.returncode, done.stdout) == (2, "")
        assert "chat 4 is open" in done.stderr
        assert "## zephyr counting (being written)\n\nw00 w01" in chats(home, "show", "4")
        assert len(listed(home)) == 4
        done = zephyr_local("chat", "--continue", "-p", "Hello", "--json", home=home)
        assert json.loads(done.stdout)["chat"] == 3, "the newest that nobody has open"
    # The process was killed, and with it its hold on the chat ended.
    done = zephyr_local("chat", "--chat", "4", "-p", "Hello", "--max-tokens", "2", "--json", home=home)
    assert json.loads(done.stdout)["chat"] == 4
    assert "## zephyr counting (interrupted)\n\nw00 w01" in chats(home, "show", "4")
    chats(home, "rm", "4", "--yes")


# --- what is hostile, foreign or damaged ---


def test_a_terminal_shows_control_characters_and_does_not_obey_them(home: Path):
    chats(home, "title", "1", HOSTILE)
    assert listed(home)[2]["title"] == HOSTILE
    for arguments in (("list",), ("list", "--json"), ("show", "1"), ("show", "1", "--plain"), ("search", "capital")):
        terminal = Terminal("chats", *arguments, home=home)
        try:
            assert terminal.ended() == 0
        finally:
            terminal.close()
        for sequence in ("\x1b[31mb", "\x07", "\x9b2J", "\u202e"):
            assert sequence.encode() not in terminal.raw, arguments
        shown = terminal.text
        assert ("\\u001b[31mb\\u0007\\u009b2Jc\\u202ed" if "--json" in arguments else "a^[[31mb^G\\x9b2Jc") in shown


def test_a_store_of_a_newer_release_is_refused_and_left_alone(home: Path):
    path = store_of(home)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = path.read_bytes()
    for arguments in (("list",), ("show", "1"), ("export", "--all"), ("rm", "--all", "--yes"), ("title", "1", "x")):
        assert "Update zephyr-local" in refused(home, *arguments, code=1)
    done = zephyr_local("chat", "--continue", "-p", "Hello", home=home)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Update zephyr-local" in done.stderr
    assert zephyr_local("chat", "-p", "Hello", home=home).returncode == 0, "which needs no store"
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content", [b"This is no database, but a letter.\n" * 200, b"SQLite format 3\0" + b"\xff" * 5000]
)
def test_a_store_that_is_no_database_is_refused_and_left_alone(tmp_path: Path, content: bytes):
    path = store_of(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert str(path) in refused(tmp_path, "list", code=1)
    done = zephyr_local("chat", "-p", "Hello", "--save", home=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "--no-save" in done.stderr
    assert path.read_bytes() == content


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path):
    tmp_path.chmod(0o500)
    try:
        assert "cannot be made" in refused(tmp_path, "list", code=1)
    finally:
        tmp_path.chmod(0o700)
