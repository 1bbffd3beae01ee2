"""Lines of Markdown on terminals of several widths, some of them read through a terminal emulator."""

from __future__ import annotations

import random
import re

import pyte
import pytest
import wcwidth

from tests.repl.markdown_documents import CORPUS, DARK, SGR, plain, render
from zephyr_local.repl.markdown import MarkdownStream, charset
from zephyr_local.repl.markdown.charset import clusters
from zephyr_local.repl.theme import Theme

WIDTHS = [20, 40, 80, 120]


def screen_lines(text: str, width: int) -> list[str]:
    """What a terminal shows that got this; a line that it broke itself is two lines here."""
    screen = pyte.Screen(width, text.count("\n") * 8 + 10)
    pyte.Stream(screen).feed(text.replace("\n", "\r\n"))
    return [line.rstrip() for line in screen.display]


def columns(line: str) -> int:
    return sum(max(wcwidth.wcwidth(ch), 0) for ch in line)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_screen_shows_every_word_whole(width):
    rng = random.Random(width)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(1, 12))) for _ in range(400)]
    source = ""
    for index, word in enumerate(words):
        mark = rng.choice(["", "", "", "**", "*", "`"])
        source += f"{mark}{word}{mark}" + rng.choice([" "] * 12 + ["\n", "\n\n- ", "\n> ", "\n\n1. ", "\n  - ", "\n\n"])
        if index == 200:
            source += "\n\n"
    shown = screen_lines(render(source, width), width)
    found = re.findall("[a-j]+", "\n".join(shown))
    assert found == words
    assert all(columns(line) < width for line in shown)


@pytest.mark.parametrize("width", WIDTHS)
def test_what_is_written_is_what_the_screen_shows(width):
    """Nothing is overwritten, and no line but code's is broken by the terminal."""
    for source in CORPUS:
        if "`" in source or "~~~" in source or "    " in source or "\t" in source:
            continue
        written = render(source, width)
        lines = SGR.sub("", written).split("\n")
        assert all(columns(line) < width for line in lines), source
        if "\u0301" in source or "\u200d" in source or "\ufe0f" in source:
            continue  # the emulator composes marks
        shown = screen_lines(written, width)
        # The emulator leaves a cell empty behind a wide character and does not show it.
        assert shown[: len(lines)] == [line.rstrip() for line in lines], source


@pytest.mark.parametrize("width", WIDTHS)
def test_wide_characters(width):
    text = "中文没有空格的文字也要换行" * 10 + "。" + "日本語の文章もです" * 10
    lines = plain(text, width).split("\n")[:-1]
    assert "".join(lines) == text
    assert all(width - 4 <= columns(line) < width for line in lines[:-1])
    assert screen_lines(render(text, width), width)[: len(lines)] == lines


def test_punctuation_stays_with_the_character_before_it():
    for width in range(8, 30):
        lines = plain("中文，没有「空格」的。" * 8, width).split("\n")[:-1]
        assert not [line for line in lines if line[0] in "，」。" or line[-1] == "「"]


def test_korean_words_stay_whole():
    text = "한국어는 단어로 나눕니다"
    assert plain(text, 12) == "한국어는\n단어로\n나눕니다\n"


@pytest.mark.parametrize("old_wcwidth", [False, True])
def test_grapheme_clusters_are_never_split(monkeypatch, old_wcwidth):
    if old_wcwidth:  # as it was before it knew of clusters
        monkeypatch.setattr(charset, "_iter_graphemes", None)
    charset._joins.cache_clear()
    whole = ["👩‍👩‍👧", "❤️", "🇩🇪", "🇫🇷", "👍🏽", "1️⃣", "e\u0301", "a\u0300\u0323", "中", "🏳️‍🌈"]
    text = "".join(whole) * 6
    assert list(clusters(text)) == whole * 6
    for width in range(2, 40):
        lines = plain(text, width).split("\n")
        assert [cluster for line in lines for cluster in clusters(line)] == whole * 6
    charset._joins.cache_clear()


def test_a_mark_on_a_mark_on_a_mark_is_bounded():
    text = "a" + "\u0301" * 1000
    assert plain(text) == text + "\n"


def test_a_long_word_breaks_at_the_width():
    assert plain("ab " + "x" * 25 + " c", 11) == "ab\nxxxxxxxxxx\nxxxxxxxxxx\nxxxxx c\n"
    assert plain("- " + "x" * 12, 8) == "• xxxxx\n  xxxxx\n  xx\n"


def test_the_width_is_asked_for_each_line():
    widths = iter([10, 10, 20, 20, 20])
    written: list[str] = []
    stream = MarkdownStream(written.append, theme=Theme(), width=lambda: next(widths))
    stream.feed("a " * 20)
    stream.close()
    assert "".join(written) == "a a a a a\na a a a a\na a a a a a a a a a\n"


def test_a_width_that_is_not_known():
    assert plain("a " * 80, 0) == plain("a " * 80, 80)


@pytest.mark.parametrize("width", range(1, 9))
def test_very_narrow_terminals(width):
    for source in CORPUS:
        for text in (source, source.replace("\n", "\n> ")):
            shown = plain(text, width)
            assert shown == "" or shown.endswith("\n")
    assert "".join(plain("- 10. abc def\n", width).split()) == "•10.abcdef"


def test_styles_never_run_over_a_newline_or_an_indentation():
    for source in CORPUS:
        for line in render(source, 24).split("\n"):
            assert not line or not line.startswith(" ") or not re.match(r"\x1b\[[^m]*m {2}", line)
            codes = SGR.findall(line)
            assert not codes or codes[-1] == "\x1b[0m"
    assert render("- **a b c d**\n", 8) == (f"\x1b[{DARK.bullet}m•\x1b[0m \x1b[1ma b c\x1b[0m\n  \x1b[1md\x1b[0m\n")


def test_no_line_of_prose_ends_with_a_space():
    for source in CORPUS:
        if "```" not in source and "~~~" not in source:
            assert not re.search(" $", plain(source, 20), re.MULTILINE), source
