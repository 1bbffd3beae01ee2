"""Keys at random: whatever is typed, the chat neither ends by itself nor shows a traceback."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.repl.terminal_driver import Terminal
from zephyr_local.repl.commands import COMMANDS
from zephyr_local.repl.sampling_values import NAMES
from zephyr_local.transcripts.store import ChatStore

OpenChat = Callable[..., Terminal]

WORDS = ["What is", "the capital", "of France?", "x", " ", "日本", "👩‍👩‍👧", "é", '"""', "//", "/", "\\", "'", "`", "#"]
ARGUMENTS = ["1", "2", "0", "-1", "99", "none", '""', "default", "chat.json", "notes.txt", ".", "~", "[", "1e9", "nan"]
KEYS = [
    *(
        bytes([letter])
        for letter in b"\x01\x02\x03\x05\x06\x07\x08\x0a\x0b\x0c\x0e\x10\x12\x13\x14\x15\x16\x17\x19\x1f"
    ),
    b"\t",
    b"\x7f",
    b"\x1b",
    b"\x1b[A",
    b"\x1b[B",
    b"\x1b[C",
    b"\x1b[D",
    b"\x1b[H",
    b"\x1b[F",
    b"\x1b[3~",
    b"\x1b\r",
    b"\x1bb",
    b"\x1bf",
    b"\x1bd",
    b"\x1b[200~pasted\nlines\r\n\x1b[201~",
    b"\x18\x05",  # the editor, which is `true`
    b"\xff\xfe",  # no UTF-8
    b"\x03",
    b"\x04",
    b"\x1b[999;999R",  # an answer to a question that was not asked
]
BAD = ("Traceback", "mistake of ours", "Unhandled", "Exception", "Press ENTER")


def key(chance: random.Random) -> bytes:
    """One key, a word, or a command: what a person might press next."""
    kind = chance.random()
    if kind < 0.25:
        return chance.choice(WORDS).encode()
    if kind < 0.4:
        return b"\r"
    if kind < 0.55:
        names = [command.name for command in COMMANDS if command.name != "/exit"]
        argument = chance.choice([*ARGUMENTS, *NAMES, "", ""])
        return f"\r{chance.choice(names)} {argument} {chance.choice(['', '0.5', '7'])}".encode()
    return chance.choice(KEYS)


def settle(chat: Terminal) -> bool:
    """Let the chat deal with what was typed; False where it has ended."""
    for _ in range(100):
        before = len(chat.raw)
        if not chat.feed(0.01):
            return False
        if len(chat.raw) == before:
            break
    return bool(chat.process.isalive())


def has_chats(home: Path) -> bool:
    path = home / "data" / "zephyr-local" / "chats.db"
    if not path.exists():
        return False
    with ChatStore(path) as store:
        return bool(store.summaries())


def finish(chat: Terminal, story: object) -> None:
    """Check a chat that has ended."""
    assert chat.ended() == 0, (story, chat.text)
    assert not [word for word in BAD if word in chat.text], (story, chat.text)


def fuzz(open_chat: OpenChat, folder: Path, seed: int, keys: int = 500) -> None:
    chance = random.Random(seed)
    (folder / "notes.txt").write_text("some notes")
    more = {"cwd": folder, "environment": {"EDITOR": "true", "VISUAL": "true"}}
    chat: Terminal | None = None
    pressed: list[bytes] = []
    goes_on: tuple[str, ...] = ()
    for _ in range(keys):
        if chat is None:  # Ctrl+D and Ctrl+C twice leave
            chat = open_chat("--max-tokens", "20", *goes_on, columns=chance.choice((20, 60, 100)), wait=False, **more)
            chat.wait(lambda text, chat=chat: b"\x1b[?2004h" in chat.raw)  # type: ignore[misc]  # the prompt stands
        pressed.append(key(chance))
        chat.send(pressed[-1])
        if chance.random() < 0.02:
            chat.resize(chance.choice((12, 40, 90)), chance.choice((8, 24, 40)))
        if not settle(chat):
            finish(chat, (seed, pressed[-10:]))
            goes_on = ("--continue",) if has_chats(folder / "home") else ()
            chat = None
    for _ in range(50):
        if chat is None:
            break
        chat.control("c")
        if not settle(chat):
            finish(chat, (seed, pressed[-10:]))
            chat = None
    assert chat is None, "Ctrl+C leaves"


@pytest.mark.parametrize("seed", range(2))
def test_random_keys_end_without_a_traceback(open_chat: OpenChat, tmp_path: Path, seed: int) -> None:
    fuzz(open_chat, tmp_path, seed, keys=250)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 30))
def test_five_hundred_random_keys_end_without_a_traceback(open_chat: OpenChat, tmp_path: Path, seed: int) -> None:
    fuzz(open_chat, tmp_path, seed)
