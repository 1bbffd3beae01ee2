"""What Tab completes at the prompt of a terminal chat, and what its menu shows."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.repl.terminal_driver import Terminal

OpenChat = Callable[..., Terminal]
FRANCE, JAPAN = (f"What is the capital of {country}?" for country in ("France", "Japan"))


@pytest.fixture
def chat(open_chat: OpenChat, tmp_path: Path) -> Terminal:
    (tmp_path / "notes.txt").write_text("some notes")
    (tmp_path / "my notes.txt").write_text("some notes")
    for name in (".hidden", ".other"):
        (tmp_path / name).write_text("")
    return open_chat(cwd=tmp_path, environment={"HOME": str(tmp_path)})


def line(chat: Terminal) -> str:
    """What stands at the prompt, above a menu or without one."""
    prompts = [text for text in chat.text.splitlines() if re.match(r"\S* ?> ", text)]
    return prompts[-1].rpartition("> ")[2] if prompts else ""


def completed(chat: Terminal, typed: str, expected: str) -> None:
    """Press Tab after ``typed`` and wait for what it makes of it; the line is empty again afterwards."""
    chat.send(f"{typed}\t")
    chat.wait(lambda text: line(chat) == expected)
    clear(chat)


def menu(chat: Terminal, typed: str, *expected: str) -> str:
    """The screen with the menu after ``typed``; the line is empty again afterwards."""
    chat.send(f"{typed}\t")
    text = chat.wait(lambda text: all(words in text for words in expected))
    clear(chat)
    return text


def clear(chat: Terminal) -> None:
    chat.control("c")
    chat.prompt()


def test_commands_and_what_they_do(chat: Terminal):
    completed(chat, "/ti", "/title")
    completed(chat, "/cont", "/continue")
    completed(chat, "/xyz", "/xyz")
    text = menu(chat, "/re", "/regen", "/redo", "another answer to the last question", "take back the last /undo")
    assert "/title" not in text


def test_settings_their_ranges_and_values(chat: Terminal):
    completed(chat, "/set temp", "/set temperature")
    menu(chat, "/set top_", "top_k", "50; 0 to 1048576", "top_p", "0.95; 0 to 1")
    menu(chat, "/set top_k ", "50", "now; 0 to 1048576", "default", "as at the beginning")
    completed(chat, "/set top_k d", "/set top_k default")
    completed(chat, "/overflow drop", "/overflow drop-oldest")


def test_files_also_in_the_home_folder_and_with_blanks(chat: Terminal):
    completed(chat, "/file no", "/file notes.txt")
    completed(chat, "/file my", "/file my notes.txt")
    completed(chat, "/file ~/no", "/file ~/notes.txt")
    completed(chat, "/load no", "/load notes.txt")
    completed(chat, "/model no", "/model notes.txt")


def test_chats_questions_and_branches_by_number(chat: Terminal):
    chat.ask(FRANCE, "Paris")
    chat.ask(JAPAN, "Tokyo")
    chat.ask("/regen", "Tokyo")
    chat.screen.reset()
    menu(chat, "/edit ", f"1      {FRANCE}", f"2      {JAPAN}")
    menu(chat, "/branches ", f"1      {JAPAN} → The capital of Japan is Tokyo.", "2      ")
    chat.ask("/clear")
    chat.ask("Hello", "Hello!")
    chat.screen.reset()
    text = menu(chat, "/load ", FRANCE, "notes.txt")
    assert text.index(FRANCE) < text.index("notes.txt")
    assert ".hidden" not in text
    menu(chat, "/load .", ".hidden", ".other")


def test_enter_takes_what_is_chosen_and_sends_it_with_the_next_one(chat: Terminal):
    chat.send("/re\t")
    chat.shows("/redo")
    chat.send("\t\t")
    chat.wait(lambda text: line(chat) == "/redo")
    chat.send("\r")
    chat.wait(lambda text: text.endswith("> /redo"))
    chat.send("\r")
    chat.shows("nothing was undone")


def test_a_message_is_not_completed(chat: Terminal):
    for typed in ("no", "//re", "see /re"):
        chat.send(f"{typed}\t!")
        chat.wait(lambda text, typed=typed: text.endswith(f"> {typed}!"))  # type: ignore[misc]
        clear(chat)
