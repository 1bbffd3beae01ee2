"""What was on the screen is in the store: after a kill at any moment, nothing that was shown is lost."""

from __future__ import annotations

import os
import random
import re
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.command import zephyr_local
from tests.repl.terminal_driver import Terminal
from zephyr_local.transcripts.store import ChatStore

OpenChat = Callable[..., Terminal]
WORD = re.compile(rb"w(\d\d)")
GREEDY = ("--temperature", "0", "--threads", "1")


def store_of(home: Path) -> ChatStore:
    return ChatStore(home / "data" / "zephyr-local" / "chats.db")


def words_shown(raw: bytes) -> int:
    """How many whole words of the counting model were written to the terminal."""
    return len(WORD.findall(re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", raw)))


def words_of(text: str) -> list[str]:
    return text.split()


def is_count(words: list[str]) -> bool:
    return words == [f"w{number % 100:02}" for number in range(len(words))]


def kill_at_a_random_moment(chat: Terminal, moment_s: float) -> None:
    """Read the screen as the person does, and end the process after so many seconds."""
    deadline = time.monotonic() + moment_s
    while time.monotonic() < deadline:
        chat.feed(min(0.01, max(0.0, deadline - time.monotonic())))
    os.kill(chat.process.pid, signal.SIGKILL)
    while chat.feed(0.5):
        pass
    chat.process.wait()


def kills(open_chat: OpenChat, home: Path, counting: str, times: int, seed: int) -> None:
    """Ask, and be killed; the next run finds all of it, goes on, asks, and is killed."""
    chance = random.Random(seed)
    whole: list[str] = []  # the answers that ended
    lost = 0
    for number in range(times):
        arguments = ("--max-tokens", str(chance.choice((20, 60, 400))))
        chat = open_chat(counting, *GREEDY, *arguments, *(("--continue",) if number else ()), wait=False)
        chat.empty_prompt()  # where a question that was not answered may stand again
        question = f"question {number} ?"
        chat.raw = b""
        chat.send(question + "\r")
        kill_at_a_random_moment(chat, chance.uniform(0.0, 1.2))
        shown = words_shown(chat.raw.rpartition(b"?")[2])
        store = store_of(home)
        turns = store.turns(store.summaries()[0].id) if store.summaries() else []
        store.close()
        contents = [turn.message.content for turn in turns]
        assert contents[: len(whole)] == whole, "a turn that was whole has changed"
        rest = contents[len(whole) :]
        if rest:
            assert rest[0] == question
            words = words_of(rest[1])
            assert is_count(words), words
            assert len(words) >= shown, "a word was on the screen and is not in the store"
        else:
            assert shown == 0
            lost += 1
        if len(rest) == 2 and rest[1]:
            whole = contents
    assert len(whole) >= times // 2, "most kills came in an answer"
    last = open_chat(counting, *GREEDY, "--continue", "--max-tokens", "5", wait=False)
    last.empty_prompt()
    last.ask("/show", "question")
    last.ask("after all", "w04")
    store = store_of(home)
    turns = [turn.message.content for turn in store.turns(store.summaries()[0].id)]
    assert turns[: len(whole)] == whole
    assert turns[-2] == "after all"
    assert len(store.summaries()) == 1


def test_five_kills_lose_nothing_that_was_shown(open_chat: OpenChat, tmp_path: Path, counting: str) -> None:
    kills(open_chat, tmp_path / "home", counting, 5, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_a_hundred_kills_lose_nothing_that_was_shown(
    open_chat: OpenChat, tmp_path: Path, counting: str, seed: int
) -> None:
    kills(open_chat, tmp_path / "home", counting, 25, seed)


def test_a_killed_chat_is_taken_up_where_it_was(open_chat: OpenChat, tmp_path: Path, counting: str) -> None:
    chat = open_chat(counting, *GREEDY, "--system", "Count.")
    chat.say("Go")
    chat.shows("w10")
    os.kill(chat.process.pid, signal.SIGKILL)
    chat.process.wait()
    again = open_chat("--continue", *GREEDY)
    assert "Chat 1, 'Go', 2 turns" in again.text
    assert "w10" in again.text
    assert "[this answer was not finished; /continue goes on]" in again.text
    again.ask("/system", "Count.")
    again.say("/continue")
    again.shows("w40")
    again.control("c")
    again.prompt()
    store = store_of(tmp_path / "home")
    turns = store.turns(1)
    assert is_count(words_of(turns[-1].message.content))
    assert [turn.state for turn in store.turns(1, all_branches=True)] == ["whole", "interrupted", "interrupted"]
    shown = zephyr_local("chats", "show", "1", home=tmp_path / "home").stdout
    assert "(interrupted)" in shown


def test_a_question_that_was_never_answered_stands_at_the_prompt_again(
    open_chat: OpenChat, tmp_path: Path, counting: str
) -> None:
    chat = open_chat(counting, *GREEDY, "--n-batch", "1")
    chat.send("word " * 500 + "END\r")
    chat.shows("Reading [")
    os.kill(chat.process.pid, signal.SIGKILL)
    chat.process.wait()
    again = open_chat("--continue", *GREEDY, wait=False)
    again.shows("Your last question was not answered")
    again.wait(lambda text: text.endswith("END"))


def test_two_terminals_have_two_chats(open_chat: OpenChat, tmp_path: Path) -> None:
    first = open_chat()
    first.ask("What is the capital of France?", "Paris")
    second = open_chat()
    second.ask("What is the capital of Japan?", "Tokyo")
    third = open_chat("--continue", wait=False)
    assert third.ended() == 2
    assert "is open in another terminal" in third.text
    second.ask("/load 1", "chat 1 is open in another terminal")
    second.say("/exit")
    assert second.ended() == 0
    fourth = open_chat("--continue")
    assert "Chat 2" in fourth.text
    first.ask("and of Italy?", "Rome")
    fourth.say("/exit")
    assert fourth.ended() == 0
    fifth = open_chat("--continue")
    assert "Chat 1 is open in another terminal; this is the one before." in fifth.text
    assert "Chat 2" in fifth.text
    assert [summary.turns for summary in store_of(tmp_path / "home").summaries()] == [4, 2]


def test_the_store_is_for_its_owner_alone(open_chat: OpenChat, tmp_path: Path) -> None:
    chat = open_chat()
    chat.ask("What is the capital of France?", "Paris")
    files = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"chats.db", "chats.db-wal", "history"}
    for path in files:
        if "zephyr-local" in path.parts:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_a_chat_goes_on_with_what_was_set_in_it(open_chat: OpenChat) -> None:
    chat = open_chat()
    chat.ask("/set top_k 7", "top_k is 7")
    chat.ask('/set stop ["END", "STOP"]', "stop is")
    chat.ask("/overflow drop-oldest", "drop-oldest")
    chat.ask("/title A name", "A name")
    chat.ask("What is the capital of France?", "Paris")
    chat.say("/exit")
    assert chat.ended() == 0
    again = open_chat("--continue")
    assert "'A name'" in again.text
    again.ask("/set top_k", "top_k is 7")
    again.ask("/set stop", '["END", "STOP"]')
    again.ask("/overflow", "drop-oldest")
    again.say("/exit")
    again.ended()
    other = open_chat("--continue", "--top-k", "9")
    other.ask("/set top_k", "top_k is 9")
