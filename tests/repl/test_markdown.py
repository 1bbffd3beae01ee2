"""Markdown's blocks on a terminal."""

from __future__ import annotations

import pytest

from tests.repl.markdown_documents import DARK, plain, render
from zephyr_local.repl.theme import Theme


def lines(text: str, width: int = 80) -> list[str]:
    shown = plain(text, width)
    assert shown == "" or shown.endswith("\n")
    return shown.split("\n")[:-1]


def test_headings_lose_their_signs():
    assert lines("# One\n## Two ##\n###  C# # \n#no\n####### no\n#") == ["One", "Two", "C#", "#no", "####### no", "#"]
    assert lines("# a # b\n## c#\n## #d ##e") == ["a # b", "c#", "#d ##e"]
    assert render("# **One** `x`\n") == (
        f"\x1b[{DARK.title};1mOne\x1b[0m\x1b[{DARK.title}m \x1b[0m\x1b[{DARK.title};{DARK.code}mx\x1b[0m\n"
    )


def test_a_heading_ends_with_its_line():
    assert render("## a *b\nc\n").endswith("\nc\n")


def test_newlines_of_a_paragraph_are_kept():
    assert lines("one\ntwo  \nthree\\\nfour\\") == ["one", "two", "three", "four\\"]
    assert lines("one\\\n\n\\\ntwo") == ["one\\", "", "\\", "two"]


def test_blank_lines_are_collapsed_to_one_and_none_begins_or_ends_the_text():
    assert lines("\n\n \na\n\n\n\t\nb\n# c\nd\n\n\n") == ["a", "", "b", "c", "d"]
    assert lines("") == lines("\n\n  \n") == []
    assert lines("a\n\n> ") == lines("a\n\n```") == lines("a\n\n```\n\n\n") == ["a"]


def test_lists_nest_with_hanging_indentation():
    assert lines("- a b c d e f g h\n  - i\n    1. j k l m n o\n       p\n\n  q\n* r\n", 16) == (
        ["• a b c d e f g", "  h", "  • i", "    1. j k l m", "       n o", "       p", "", "  q", "• r"]
    )
    assert lines("9. a\n10. b\n    c\n11) d") == ["9. a", "10. b", "    c", "11) d"]
    assert lines("- - a\n  - b\n1. - c") == ["• • a", "  • b", "1. • c"]


def test_carelessly_indented_lists():
    assert lines("1. a\n  - b\n  c\n\n  d\n2. e\n      - f") == [
        "1. a",
        "   • b",
        "     c",
        "",
        "   d",
        "2. e",
        "   • f",
    ]
    assert lines("Steps:\n    - a") == ["Steps:", "• a"]


def test_what_is_no_list():
    assert lines("-a\n1.5\n1986.\n\nIn\n1986. A year\n") == ["-a", "1.5", "1986.", "", "In", "1986. A year"]
    assert lines("text\n-\n+\n") == ["text", "-", "+"]


def test_an_item_may_be_empty_or_hold_any_block():
    assert lines("-\n- a\n-\n  b\n- # c\n- > d\n- ```\n  e\n  ```\n- ***\n", 8) == (
        ["•", "• a", "•", "  b", "• c", "• │ d", "• e", "• ─────"]
    )


def test_task_items():
    assert lines("- [ ] a\n- [x] b\n  c\n1. [X] d\n- [y] e\n- [x](f)\n- [x]g\n- [ ]\n- [ ] - h") == (
        ["☐ a", "☑ b", "  c", "1. ☑ d", "• [y] e", "• x (f)", "• [x]g", "☐", "☐ • h"]
    )


def test_a_list_ends():
    assert lines("- a\n\nb\n- c\nlazy\n# d") == ["• a", "", "b", "• c", "  lazy", "d"]


def test_quotes_have_bars_on_every_line():
    assert lines("> a b c d\n> e\n>\n> > f\n> g\n\n> - h i j k\n\nl", 10) == (
        ["│ a b c d", "│ e", "│", "│ │ f", "│ │ g", "", "│ • h i j", "│   k", "", "l"]
    )
    assert lines("> a\n\n> b\nlazy\n- c") == ["│ a", "", "│ b", "│ lazy", "• c"]


def test_code_is_not_wrapped_nor_touched():
    code = "x = 'a  b' # " + "*long* " * 20
    assert lines(f"```\n{code}\n\n\n  **y**\n```\nz", 20) == [code, "", "", "  **y**", "z"]
    assert lines("~~~\n```\n&lt;\n~~~~\nz") == ["```", "&lt;", "z"]
    assert lines("```\na\tb\n\tc\n```") == ["a   b", "    c"]


def test_the_language_stands_above_the_code():
    assert lines("```python\nx\n```\n``` js  title\ny\n```") == ["python", "x", "js  title", "y"]
    assert render("```sh\n```\n") == f"\x1b[{DARK.note}msh\x1b[0m\n"


def test_code_in_lists_and_quotes():
    assert lines("1. a\n   ```\n   b\n     c\n\n   d\n   ```\n2. e") == ["1. a", "   b", "     c", "", "   d", "2. e"]
    assert lines("- ```\n  a\nb\n  ```\nc") == ["• a", "  b", "c"]  # indented too little: code all the same
    assert lines("> ```\n> a\n>\n> b\n> ```\n> c") == ["│ a", "│", "│ b", "│ c"]
    assert lines("> ```\n> a\n*b*") == ["│ a", "b"]


def test_code_may_end_with_the_text():
    assert lines("```\na\n\n") == ["a"]
    assert lines("```py\na") == ["py", "a"]


def test_backticks_at_a_lines_beginning_may_be_a_span():
    assert lines("``` a `` b ``` c\n```d```") == ["a `` b c", "d"]


def test_indented_code_only_after_a_blank_line():
    assert lines("a\n    *b*\n\n    *c*\n\n\n      d\n\ne") == ["a", "    b", "", "*c*", "", "", "  d", "", "e"]
    assert lines("- a\n\n      *b*\n- c\n\n      - d") == ["• a", "", "  *b*", "• c", "", "  • d"]


def test_rules():
    rule = "─" * 40
    assert lines("---\n***\n_ _ _\n\na\n---\nb\n===\n--\n* * * c") == (
        [rule, rule, rule, "", "a", rule, "b", rule, "--", "• • • c"]
    )
    assert lines("---", 20) == ["─" * 19]
    assert lines("====") == ["===="]


def test_tables_are_aligned():
    assert lines("| a | b | c |\n|:--|--:|:-:|\n| **long** | 1 | x |\n| `d` | 222 | yyy | z |\n|e|\n\nend") == [
        "a    │   b │  c  │",
        "─────┼─────┼─────┼──",
        "long │   1 │  x  │",
        "d    │ 222 │ yyy │ z",
        "e    │     │     │",
        "",
        "end",
    ]


def test_wide_characters_in_tables():
    assert lines("|中文|b|\n|-|-|\n|c|d|") == ["中文 │ b", "─────┼──", "c    │ d"]


def test_a_pipe_in_a_cell():
    assert lines("|a\\|b|`c\\|d`|\n|-|-|") == ["a|b │ c|d", "────┼────"]


def test_a_table_too_wide_comes_as_text():
    table = "| one | two three |\n|:-----|------|\n| 1 | four five six |\n"
    assert lines(table, 16) == ["| one | two", "three |", "|:---|---|", "| 1 | four five", "six |"]


def test_tables_in_lists_and_quotes():
    assert lines("- |a|b|\n  |-|-|\n  |c|d|\n\n> |a|\n> |-|\nb") == [
        "• a │ b",
        "  ──┼──",
        "  c │ d",
        "",
        "│ a",
        "│ ─",
        "b",
    ]


def test_a_table_is_gathered_only_so_far(monkeypatch):
    monkeypatch.setattr("zephyr_local.repl.markdown.leaves.MAX_CHARS", 20)
    assert lines("|a|\n|-|\n|b|\n|c|\n|dddddddd|\n|e|\n|f|") == ["a", "─" * 8, "b", "c", "dddddddd", "|e|", "|f|"]


def test_lines_with_pipes_that_are_no_table():
    assert lines("| a\n| b\n|-\nc\n|d|") == ["| a", "b", "─", "c", "|d|"]
    assert lines("a | b\n--- | ---") == ["a | b", "--- | ---"]


def test_html_and_latex_are_shown_as_they_are():
    html = ["<div class='x'>", "  <p>a</p>", "</div>", "<!-- b -->", "&lt;"]
    assert lines("\n".join(html)) == html
    latex = ["$$", "- a_1 * b_2 * c", "= \\frac{1}{2} \\\\", "1. \\{x\\}", "$$", "\\[ x_1*y_1*z \\] \\(\\alpha_i\\)"]
    assert lines("\n".join(latex)) == latex
    align = ["\\begin{align}", "a &= b_1 \\\\", "+ c*d*e", "\\end{align}"]
    assert lines("\n".join(align)) == align


def test_carriage_returns():
    assert lines("a\r\nb\r\n\r\n- c\r\n```\r\nd\r\n```\r\n") == ["a", "b", "", "• c", "d"]
    assert lines("a\rb\r") == ["a^Mb"]


def test_what_an_encoding_lacks():
    text = "- [ ] é中\n- a\n\n> b\n\n---\n|c|d|\n|-|-|\n"
    assert plain(text, 12, "ascii").split("\n") == (["[ ] ??", "* a", "", "| b", "", "-" * 11, "c | d", "--+--", ""])
    assert plain("“é”", encoding="latin-1") == "?é?\n"
    assert plain("“é”", encoding="no such encoding") == "???\n"
    assert plain("é", encoding="utf-16") == "é\n"


def test_a_theme_without_a_style_for_code_keeps_its_backticks():
    assert render("**a** `b` ``c`d`` [e](f)", theme=Theme()) == "a `b` ``c`d`` e (f)\n"


@pytest.mark.parametrize(
    "text", ["a", "a\n", "a\n\n\n", "# a", "- a\n-", "> a\n>\n", "```\na\n\n\n```\n", "|a|\n|-|\n\n"]
)
def test_the_output_ends_with_one_newline(text):
    shown = plain(text)
    assert shown.endswith("\n")
    assert not shown.endswith("\n\n")


def test_nothing_waits_longer_than_it_must():
    from zephyr_local.repl.markdown import MarkdownStream

    written: list[str] = []
    stream = MarkdownStream(written.append, theme=Theme(), width=lambda: 40)
    for fed, shown in [
        ("Some wor", "Some"),
        ("ds ", " words"),
        ("and **bo", " and"),
        ("ld** te", " bold"),
        ("xt\n", " text\n"),
        ("```py\n", "py\n"),
        ("x = 1", ""),
        ("\n", "x = 1\n"),
        ("```\n- it", "• i"),
    ]:
        written.clear()
        stream.feed(fed)
        assert "".join(written) == shown
