"""A real answer on a real pseudo-terminal: rendered as it comes, at several widths, resized, in several encodings."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.gguf_builder import write_reciting_model
from tests.repl.terminal_driver import Terminal
from zephyr_local.repl.theme import choose_theme
from zephyr_local.repl.view import SlowBar, View

OpenChat = Callable[..., Terminal]
GREEDY = ("--temperature", "0", "--threads", "1")
TEXT = """# Capitals of the world

Paris is the *capital* of **France**, and snake_case_names stay.

- first item with several words that must be wrapped somewhere
- second, `inline code` here

```python
def add(first, second):
    return "sum", first + second  # a comment
```

Wide: 日本語の文章はここです。 Emoji: 🎉 done.

| city | country |
|------|--------:|
| Oslo | Norway |

Hidden \x1b[31mred\x1b]0;title\x07 \x9b2J end of it.
"""
SGR = re.compile(rb"\x1b\[[0-9;]*m")
ANY_SEQUENCE = re.compile(rb"\x1b(\[[0-9;?]*[ -/]*[@-~]|\][^\x07]*\x07|[^\[\]])")


@pytest.fixture(scope="module")
def reciting(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_reciting_model(tmp_path_factory.mktemp("reciting"), TEXT))


def answer(chat: Terminal) -> tuple[str, bytes]:
    """What the answer to a question left on the screen, and the bytes that did."""
    chat.say("Go")
    before = len(chat.raw)
    chat.shows("of it.")  # its line may be broken before
    raw = chat.raw[before:].partition(b"Capitals")[2].rpartition(b"of it.")[0]  # behind the bar of a slow load
    chat.prompt()
    text = chat.text
    return text[text.index("> Go") + 4 : text.rindex("of it.") + 6], raw


def cell(chat: Terminal, words: str) -> object:
    """The first character of ``words`` on the screen, with its colours."""
    for row, line in enumerate(chat.screen.display):
        if words in line:
            return chat.screen.buffer[row][line.index(words)]
    raise AssertionError(f"{words!r} is not on the screen:\n{chat.text}")


@pytest.mark.parametrize("columns", [24, 40, 80, 120])
def test_an_answer_is_rendered_at_every_width(open_chat: OpenChat, reciting: str, columns: int) -> None:
    stale = {"COLUMNS": "33"}  # what a shell exported, and is no longer true
    chat = open_chat(reciting, *GREEDY, "--theme", "dark", columns=columns, rows=60, environment=stale)
    text, raw = answer(chat)
    lines = text.splitlines()
    assert max(map(len, lines)) > min(columns * 0.6, 55)
    assert "Capitals of the" in text
    assert "# Cap" not in text
    assert "**" not in text
    assert "```" not in text
    assert "snake_case_names" in text.replace("\n", "")
    assert all(len(line) <= columns for line in lines)
    words = " ".join(lines).split()
    for word in ("Paris", "capital", "wrapped", "somewhere", "country", "Norway"):
        assert any(word in each for each in words), f"{word} was broken"
    assert "日本語の文章はここです。" in text.replace("\n", "").replace(" ", "")
    assert "🎉" in text
    if columns >= 80:
        assert '    return "sum", first + second  # a comment' in text
        assert cell(chat, "France").bold  # type: ignore[attr-defined]
        assert cell(chat, "def").fg != "default"  # type: ignore[attr-defined]
        assert cell(chat, "def").fg != cell(chat, "add").fg or cell(chat, "def").bold  # type: ignore[attr-defined]
    rest = SGR.sub(b"", raw)
    assert not ANY_SEQUENCE.search(rest), "an answer moves the cursor nowhere and draws nothing twice"


def test_control_sequences_of_a_model_are_shown_and_not_obeyed(open_chat: OpenChat, reciting: str) -> None:
    chat = open_chat(reciting, *GREEDY)
    text, raw = answer(chat)
    shown = text.replace("\n", "")
    assert "^[[31mred^[]0;title^G" in shown
    assert "\\x9b2J" in shown
    assert chat.screen.title == ""
    assert cell(chat, "end of it").fg == "default"  # type: ignore[attr-defined]
    plain = open_chat(reciting, *GREEDY, "--plain")
    text, raw = answer(plain)
    assert "# Capitals of the world" in text
    assert "**France**" in text
    assert "^[[31mred^[]0;title^G" in text
    assert b"\x1b" not in raw


def test_a_terminal_that_is_resized_in_the_middle_gets_lines_of_its_new_width(
    open_chat: OpenChat, tmp_path: Path
) -> None:
    words = " ".join(f"word{number:03}" for number in range(250))
    path = write_reciting_model(tmp_path, words, n_block=96)
    chat = open_chat(str(path), *GREEDY, columns=100)
    chat.say("Go")
    chat.shows("word040")
    chat.resize(50)
    chat.shows("word249")
    chat.prompt()
    lines = [line.decode() for line in SGR.sub(b"", chat.raw).split(b"\r\n") if b"word" in line]  # as they were written
    lengths = [len(line) for line in lines]
    assert 80 < max(lengths[:3]) < 100
    assert 35 < max(lengths[-4:-1]) < 50
    assert re.findall(r"word\d\d\d", " ".join(lines)) == words.split()


@pytest.mark.parametrize(
    ("encoding", "bullet", "kept", "lost"), [("latin-1", "*", "Straße", "日本"), ("ascii", "*", "item", "ß")]
)
def test_a_terminal_that_is_not_utf8_shows_what_it_can(
    open_chat: OpenChat, tmp_path: Path, encoding: str, bullet: str, kept: str, lost: str
) -> None:
    path = write_reciting_model(tmp_path, "Die Straße und 日本 hier\n\n- one item\n- two ends.\n")
    chat = open_chat(str(path), *GREEDY, environment={"PYTHONIOENCODING": encoding}, wait=False)
    chat.shows(">")
    chat.send("Go\r")
    chat.wait(lambda text: "two ends." in text)
    raw = chat.raw.rpartition(b"Go")[2]
    assert kept.encode(encoding) in raw
    assert f"{bullet} one item".encode(encoding) in SGR.sub(b"", raw)
    assert lost.encode() not in raw
    assert "Traceback" not in chat.text


@pytest.mark.parametrize(
    ("environment", "arguments", "has_colour", "has_style"),
    [
        ({}, ("--theme", "light"), True, True),
        ({"NO_COLOR": "1"}, (), False, True),
        ({}, ("--theme", "none"), False, False),
        ({"TERM": "dumb"}, (), False, False),
    ],
)
def test_colours_are_left_out_where_they_are_not_wanted(
    open_chat: OpenChat,
    reciting: str,
    environment: dict[str, str],
    arguments: tuple[str, ...],
    has_colour: bool,
    has_style: bool,
) -> None:
    chat = open_chat(reciting, *GREEDY, *arguments, environment=environment, wait=False)
    chat.shows(">")
    chat.say("Go")
    before = len(chat.raw)
    chat.shows("end of it.")
    raw = chat.raw[before:].partition(b"end of it.")[0]
    codes = {int(code) for found in re.findall(rb"\x1b\[([0-9;]*)m", raw) for code in found.split(b";") if code}
    assert bool(codes & {*range(30, 49), *range(90, 108)}) == has_colour, codes
    assert bool(codes - {0}) == has_style, codes


def test_a_bar_shows_while_a_long_chat_is_read_and_goes_when_the_answer_comes(
    open_chat: OpenChat, counting: str
) -> None:
    chat = open_chat(counting, *GREEDY, "--n-batch", "1", "--max-tokens", "3")
    chat.send("word " * 60 + "END\r")
    chat.shows("Reading [")
    chat.shows("w02")
    chat.prompt()
    assert "Reading" not in chat.text


def test_a_bar_shows_only_what_takes_over_half_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    class TerminalText(io.StringIO):
        def isatty(self) -> bool:
            return True

    now_s = 100.0
    monkeypatch.setattr("zephyr_local.repl.view.time.monotonic", lambda: now_s)
    error = TerminalText()
    view = View(choose_theme("none", {}), plain=False, out=TerminalText(), err=error)
    quick = SlowBar(view, "Reading")
    for share in range(5):
        now_s += 0.09
        quick.update(share, 5)
    quick.clear()
    assert error.getvalue() == ""
    slow = SlowBar(view, "Reading")
    now_s += 0.6
    slow.update(3, 4, "of 4 tokens")
    assert "Reading [###############-----]  75% of 4 tokens" in error.getvalue()
    slow.clear()
    assert error.getvalue().endswith("\r\x1b[K")


def test_emoji_sequences_and_combining_characters_arrive_whole(open_chat: OpenChat, tmp_path: Path) -> None:
    words = "Family 👩‍👩‍👧 flag 🇳🇴 thumb 👍🏽 accent e\u0301 heart ❤️ ends."
    chat = open_chat(str(write_reciting_model(tmp_path, words)), *GREEDY, columns=30)
    chat.say("Go")
    chat.prompt()
    raw = SGR.sub(b"", chat.raw).decode().replace("\r\n", " ")
    assert words in raw
