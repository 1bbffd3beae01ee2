"""The colours of code blocks."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.repl.markdown_documents import DARK, render
from zephyr_local.repl.markdown import code
from zephyr_local.repl.markdown.code import Highlighter, language
from zephyr_local.repl.theme import Theme


def styles(info: str, source: str) -> list[list[tuple[str, str]]]:
    """The lines of a block, in pieces with a role's name."""
    named = Theme(
        **{role: role for role in ("code_keyword", "code_name", "code_string", "code_comment", "code_number")}
    )
    highlighter = Highlighter(info, named)
    return [[tuple(piece) for piece in highlighter.line(line)] for line in source.split("\n")]


@pytest.mark.parametrize(
    ("info", "name"),
    [
        ("python", "python"),
        (" Python x=1", "python"),
        ('{.python title="x"}', "python"),
        ("c++", "c++"),
        ("python:file.py", "python"),
        ("", ""),
        ("«»", ""),
    ],
)
def test_the_language_of_an_info_string(info, name):
    assert language(info) == name


def test_tokens_have_styles():
    first, second = styles("python", "def f(x):  # y\n    return 12")
    assert first[0] == ("def", "code_keyword")
    assert ("f", "code_name") in first
    assert first[-1] == ("# y", "code_comment")
    assert second[-1] == ("12", "code_number")


def test_a_string_of_several_lines_is_one():
    lines = styles("python", 'x = """a\n\ndef b\n"""\ndef c')
    assert lines[1] == []
    assert lines[2] == [("def b", "code_string")]
    assert lines[4][0] == ("def", "code_keyword")


def test_a_long_block_is_lexed_from_its_tail_with_the_same_colours():
    source = "\n".join(
        f'class A{n}:\n    """Text {n}\n\n    if not a text.\n    """\n\n    def f(self):\n        return "{n}"  # if'
        for n in range(40)
    )
    whole = styles("python", source)
    highlighter = Highlighter("python", DARK)
    for line in source.split("\n"):
        highlighter.line(line)
    assert len(highlighter._lines) < 60
    assert whole[:8] == [[(text.replace("39", "0"), style) for text, style in line] for line in whole[-8:]]


@pytest.mark.parametrize("info", ["", "no-such-language", "text", "../x", "\x1b[31m"])
def test_without_a_language_code_is_plain(info):
    assert styles(info, "if x\n") == [[("if x", "")], [] if info == "text" else [("", "")]]


def test_the_cost_is_bounded(monkeypatch):
    lines = styles("python", "\n".join(["if x: pass"] * (code.MAX_LINES + 2)))
    assert [len(line) > 1 for line in lines] == [True] * code.MAX_LINES + [False] * 2
    lines = styles("python", "if x\n" + "if " * code.MAX_LINE_CHARS + "\nif x")
    assert [len(line) > 1 for line in lines] == [True, False, False]
    monkeypatch.setattr(code, "_LEX_BUDGET_CHARS", 100)
    lines = styles("python", "\n".join(["if x: pass"] * 20))
    assert [len(line) > 1 for line in lines] == [True] * 4 + [False] * 16


def test_a_lexer_that_fails_costs_the_colours_alone(monkeypatch):
    from pygments.lexers import PythonLexer

    def fail(self, text):
        raise RuntimeError(text)

    monkeypatch.setattr(PythonLexer, "get_tokens_unprocessed", fail)
    assert styles("python", "if x\nif y") == [[("if x", "")], [("if y", "")]]


def test_code_with_every_colour_is_still_the_code():
    source = 'def f():\n    """a\n    b"""\n    return 1 + x  # é 中\n'
    for name in ("python", "c", "html", "diff", "console", "json", "rust", "bash"):
        shown = render(f"```{name}\n{source}```\n", theme=Theme(note="2", code_keyword="35", code_string="32"))
        for sequence in ("\x1b[2m", "\x1b[35m", "\x1b[32m", "\x1b[0m"):
            shown = shown.replace(sequence, "")
        assert shown == f"{name}\n{source}"


def test_pygments_is_imported_for_the_first_block_alone():
    program = (
        "import sys; from zephyr_local.repl.markdown import MarkdownStream; from zephyr_local.repl.theme import Theme;"
        "s = MarkdownStream(str, theme=Theme(note='2'), width=lambda: 80); s.feed('# a\\n`b`\\n\\n```\\nx\\n```\\n');"
        "assert 'pygments' not in sys.modules; s.feed('```py\\nx\\n'); assert 'pygments' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
