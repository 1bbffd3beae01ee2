"""What is marked within a line."""

from __future__ import annotations

import re

import pytest

from tests.repl.markdown_documents import plain, render
from zephyr_local.repl.markdown.inline import CODE_HOLD, EMPHASIS_HOLD
from zephyr_local.repl.theme import Theme

# Styles that can be read in what is written.
NAMED = Theme(strong="1", emphasis="3", strike="9", code="36", link="4", url="2")


def styled(text: str) -> str:
    """A text's one line, with <1;3>…</> where it is styled."""
    shown = render(text, width=2000, theme=NAMED)
    return re.sub(r"\x1b\[([0-9;]+)m", r"<\1>", shown.replace("\x1b[0m", "</>")).rstrip("\n")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("**a** b", "<1>a</> b"),
        ("*a* _b_ __c__", "<3>a</> <3>b</> <1>c</>"),
        ("***a*** b", "<1;3>a</> b"),
        ("***a* b** c", "<1;3>a</><1> b</> c"),
        ("***a** b* c", "<1;3>a</><3> b</> c"),
        ("**a *b* c** d", "<1>a </><1;3>b</><1> c</> d"),
        ("*a **b*** c", "<3>a </><1;3>b</> c"),
        ("**a *b*** c", "<1>a </><1;3>b</> c"),
        ("**a *b** c", "<1>a *b</> c"),
        ("**a* b** c", "<1>a* b</> c"),
        ("~~a **b**~~ c", "<9>a </><1;9>b</> c"),
        ("~~a~~, ~b~", "<9>a</>, ~b~"),
        ("(**a**), “*b*”.", "(<1>a</>), “<3>b</>”."),
        ("**a**b **c**: d", "<1>a</>b <1>c</>: d"),
        ("**Note:**text **(a)**b", "<1>Note:</>text <1>(a)</>b"),
        ("**a**\nb", "<1>a</>\nb"),
    ],
)
def test_emphasis(text, shown):
    assert styled(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "5 * 3 = 15",
        "2*3*4 and a*b and 2**3",
        "snake_case_name and __a_b",
        "f(*args, x)",
        "* no * item *",
        "** a ** _ b _",
        "****a****",
        "a ~ b ~~ c",
        "price*",
        "*a",
        "**a",
        "_a b",
        "~~a",
        "*see below, and no more",
        "https://a.b/_c_/~~d~~/e",
        "a_ b* c** d__",
    ],
)
def test_what_marks_nothing_is_shown(text):
    # Behind a word, as a star at a line's beginning may be an item's.
    assert styled(f"x {text}") == f"x {text}"


def test_an_opener_that_never_closes_styles_the_rest_of_its_paragraph():
    text = "x" * EMPHASIS_HOLD
    assert styled(f"*{text}\nb\n\nc") == f"*{text}\nb\n\nc"
    assert styled(f"*{text}y\nb\n\nc") == f"<3>{text}y</>\n<3>b</>\n\nc"


def test_emphasis_may_go_on_over_lines():
    assert styled(f"*{'x' * 40}\ny* z") == f"<3>{'x' * 40}</>\n<3>y</> z"


def test_chinese_and_japanese_need_no_spaces():
    assert styled("这是**重点**的") == "这是<1>重点</>的"
    assert styled("内容**“重点”**内容") == "内容<1>“重点”</>内容"
    assert styled("**太字。**です") == "<1>太字。</>です"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("`a` b", "<36>a</> b"),
        ("``a`b`` c", "<36>a`b</> c"),
        ("` a ` `` ` ``", "<36>a</> <36>`</>"),
        ("`*a*` `b\\` c", "<36>*a*</> <36>b\\</> c"),
        ("`a\n*b*`", "`a\n<3>b</>`"),
        ("`a ``b` c", "<36>a ``b</> c"),
        ("**`a`** b", "<1;36>a</> b"),
        ("a ` b", "a ` b"),
        ("a `", "a `"),
    ],
)
def test_code(text, shown):
    assert styled(text) == shown


def test_code_too_long_to_hold_back_loses_nothing():
    code = "*x* [y](z) " * (CODE_HOLD // 10)
    assert styled(f"`{code}` *b*") == f"`{code}` <3>b</>"
    assert styled(f"`{code}\n*b*") == f"`{code.rstrip()}\n<3>b</>"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[a *b*](u) c", "<4>a </><4;3>b</> <2>(u)</> c"),
        ("[a](<u v>) [b](w \"title\") [c](x 'y')", "<4>a</> <2>(u v)</> <4>b</> <2>(w)</> <4>c</> <2>(x)</>"),
        ("[a](b(c)d\\)) e", "<4>a</> <2>(b(c)d))</> e"),
        ("[`a[0]`](u)", "<4;36>a[0]</> <2>(u)</>"),
        ("[https://a.b](https://a.b) [](c) [d]()", "<4>https://a.b</> <4>c</> <4>d</>"),
        ("[a@b.c](mailto:a@b.c)", "<4>a@b.c</>"),
        ("**[a](u)** b", "<1;4>a</><1> </><1;2>(u)</> b"),
        ("![a](u) ![](v)", "<4>[image: a]</> <2>(u)</> <4>[image]</> <2>(v)</>"),
        ("[![a](b)](c)", "<4;4>[image: a]</><4> </><4;2>(b)</> <2>(c)</>"),
        ("<https://a.b/c_d_e> <a@b.c>", "<4>https://a.b/c_d_e</> <4>a@b.c</>"),
    ],
)
def test_links(text, shown):
    assert styled(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "[a] [b][c] [d]: e",
        "[a](b c) [d]( [e](f g",
        "[]() [ ]( )",
        "a[0](x y) [1]",
        "! a! b!",
        "a < b <br> <b>c</b> <d e> x<y",
        "[" * 10,
        "[^1] [x",
        "![y",
    ],
)
def test_what_is_no_link_is_shown(text):
    assert styled(text) == text


def test_escapes():
    assert styled("\\*a\\* \\_b\\_ \\`c\\` \\\\ \\# \\d \\<e> 1\\. \\![f](g)") == (
        "*a* _b_ `c` \\ # \\d <e> 1. !<4>f</> <2>(g)</>"
    )
    assert styled("\\- a") == "- a"


@pytest.mark.parametrize(
    "text",
    [
        "$a_1*b*c$ and $\\mathbf{x}_i + \\mathbf{y}_j$",
        "$$a*b*c \\\\ \\{d\\}$$",
        "\\(a_i * b_i*c\\) \\[d*e*f\\]",
        "$5 or $6, US$7, $HOME $PATH",
        "a $ b",
        "a$",
    ],
)
def test_latex_is_shown_as_it_is(text):
    assert styled(text) == text


def test_text_goes_on_after_latex():
    assert styled("$a$ *b* $$c$$ *d* \\(e\\) *f*") == "$a$ <3>b</> $$c$$ <3>d</> \\(e\\) <3>f</>"


def test_spaces_within_a_line_are_kept():
    assert plain("a  b   c \n   d") == "a  b   c\n   d\n"
    assert plain("a\tb\tcdef\tg\n") == "a   b   cdef    g\n"
