"""What holds for every Markdown text, however it comes."""

from __future__ import annotations

import random
import re

import pytest

from tests.repl.markdown_documents import CORPUS, SGR, parts, plain, render

CONTROLS = [chr(code) for code in [*range(0x20), *range(0x7F, 0xA0)] if chr(code) not in "\t\n"] + [
    "\u202e",
    "\u2066",
    "\ud800",
]
HIDDEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@pytest.mark.parametrize("index", range(len(CORPUS)))
def test_the_cuts_between_feeds_change_nothing(index):
    text = CORPUS[index]
    rng = random.Random(index)
    for width in (12, 30, 80):
        whole = render(text, width)
        assert render(list(text), width) == whole
        for longest in (2, 5, 20, 100):
            assert render(parts(text, rng, longest), width) == whole


def test_random_symbols_are_cut_anywhere_and_keep_their_letters():
    signs = ["|-|\n", "\n", "\n\n", "\r\n", "---\n", "|a|\n", " ", " ", " ", "  ", "    ", "\t", "\\", "\x1b[", "```"]
    signs += ["*", "**", "_", "`", "``", "[", "](", "]", ")", "(", "!", "<", ">", "#", "-", "+", "|", "~~", "$", "$$"]
    signs += ["a", "b", "cd", "1", "1.", ":", "é", "中", "👍🏽"]
    letters = re.compile("[^a-z0-9é中]")
    for seed in range(400):
        rng = random.Random(seed)
        text = "".join(rng.choices(signs, k=rng.randint(1, 60)))
        width = rng.choice([1, 3, 8, 20, 80])
        whole = render(text, width)
        assert render(parts(text, rng, 10), width) == whole
        shown = SGR.sub("", whole)
        assert not HIDDEN.search(shown)
        assert letters.sub("", shown).replace("image", "") == letters.sub("", text), text


@pytest.mark.parametrize(
    "context",
    [
        "a{}b",
        "# a{}b",
        "- a{}b\n  {}",
        "{}- a\n1{}. b",
        "- [{}] a\n- [x]{} b",
        "> a{}\n>{}b",
        "**a{}b** *{}* ~~a{}~~",
        "`a{}b` ``{}``",
        "`" + "a{}" * 100,
        "[a{}b](c{}d) [{}]({}) [a](b{}'c')",
        "![a{}b](c{}d)",
        "<http://a{}b> <a{}@b.c>",
        "```a{}b\nc{}d\n{}\n```{}",
        "```python\n'a{}b' {} # {}\n```",
        "~~~ {}\n```\n{}",
        "    a{}b\n    {}",
        "|a{}|{}|\n|-|-|\n|{}|b{}|",
        "|a{}|\n{}|-|",
        "a\n\n    {}\n\n---{}\n***{}",
        "$a{}b$ $${}$$ \\({}\\) \\{}",
        "{}",
        "\\begin{{a{}}}",
    ],
)
def test_no_control_character_reaches_the_terminal(context):
    for control in CONTROLS:
        text = context.replace("{{", "{").replace("}}", "}").replace("{}", control)
        for encoding in ("utf-8", "ascii"):
            shown = plain(text, 40, encoding)
            assert not HIDDEN.search(shown), (text, shown)
        if control not in "\r\ud800":
            seen = f"\\x{ord(control):02x}" if ord(control) < 0x100 else f"\\u{ord(control):04x}"
            assert (f"^{chr(ord(control) + 64)}" if control < " " else seen) in plain(text).replace("\n", "")
        # With any text around it, an escape sequence of the text's is shown, not obeyed.
        assert "\x1b" not in SGR.sub("", render(text + f"{control}[31m{control}]0;x\x07" + text))


def test_only_styles_of_ours_are_written():
    for text in CORPUS:
        shown = render(text, 30)
        assert not HIDDEN.search(SGR.sub("", shown).replace("\n", ""))


def _words(rng: random.Random) -> str:
    return " ".join("".join(rng.choices("abcdefg", k=rng.randint(1, 9))) for _ in range(rng.randint(1, 6)))


def _inline(rng: random.Random) -> tuple[str, str]:
    """A part of a line, and its text."""
    a, b = _words(rng), _words(rng)
    return rng.choice(
        [
            (a, a),
            (f"**{a}**", a),
            (f"*{a}*", a),
            (f"***{a}***", a),
            (f"__{a}__", a),
            (f"~~{a}~~", a),
            (f"`{a}`", a),
            (f"``{a} ` {b}``", f"{a} ` {b}"),
            (f"**{a} *{b}***", f"{a} {b}"),
            (f"[{a}](https://x.y/z_z_)", f"{a} (https://x.y/z_z_)"),
            (f"![{a}](z.png)", f"[image: {a}] (z.png)"),
            ("<https://x.y>", "https://x.y"),
            (f"{a} * {b}", f"{a} * {b}"),
            ("a*b snake_case_name 2**3", "a*b snake_case_name 2**3"),
            (f"\\*{a}\\*", f"*{a}*"),
            (f"$a_1 * {a}$", f"$a_1 * {a}$"),
            (f"{a} < {b} & $5", f"{a} < {b} & $5"),
            ("中文**重点**。", "中文重点。"),
        ]
    )


def _line(rng: random.Random) -> tuple[str, str]:
    pairs = [_inline(rng) for _ in range(rng.randint(1, 6))]
    return " ".join(source for source, _ in pairs), " ".join(text for _, text in pairs)


def _block(rng: random.Random, depth: int = 0) -> tuple[str, str]:
    """A block and its text, the signs of ours included but for bars and rules."""
    source, text = _line(rng)
    other, other_text = _line(rng)
    kind = rng.randrange(9 if depth < 3 else 4)
    if kind == 0:
        return f"{'#' * rng.randint(1, 6)} {source}", text
    if kind == 1:
        return f"```python\n{source}\n\n    {other}\n```", f"python{source}{other}"
    if kind == 2:
        return f"| {source} | b |\n|---|---|\n| c | {other} |", f"{text}bc{other_text}"
    if kind == 3:
        return f"{source}\n{other}", text + other_text
    inner, inner_text = _block(rng, depth + 1)
    if kind in (4, 5):
        return "> " + inner.replace("\n", "\n> "), inner_text
    marker, sign, indent = ("- ", "•", "  ") if kind in (6, 7) else ("12. ", "12.", "    ")
    return f"{marker}{source}\n\n{indent}" + inner.replace("\n", f"\n{indent}"), f"{sign}{text}{inner_text}"


def test_no_text_is_lost():
    for seed in range(300):
        rng = random.Random(seed)
        blocks = [_block(rng) for _ in range(8)]
        source = "\n\n".join(block for block, _ in blocks)
        expected = re.sub(r"\s", "", "".join(text for _, text in blocks))
        for width in (24, 80):
            shown = re.sub(r"[\s│─┼|-]", "", plain(parts(source, rng, 9), width))
            assert shown == expected, source


@pytest.mark.parametrize(
    "text",
    [
        "*" * 50_000,
        "a " + "*" * 50_000,
        "**a *b _c ~~d " * 4000,
        "`" * 50_000,
        "a " + "`" * 50_000,
        "`a " * 20_000,
        " ".join("`" * count for count in range(1, 300)),
        "[" * 50_000,
        "[a](" * 12_000,
        "[a](b 'c " * 6000,
        "![a" * 15_000,
        "<a:" * 15_000,
        "$a " * 15_000,
        "\\" * 50_000,
        "> " * 5000 + "a",
        ">" * 50_000,
        "-" * 50_000,
        "- " * 25_000,
        "".join("  " * depth + "- a\n" for depth in range(300)),
        "#" * 50_000,
        "# a" + " #" * 25_000,
        "|" * 50_000,
        "|" * 30_000 + "\n|-|\n" + "|\n" * 20_000,
        "|a|\n|" + "-|" * 25_000 + "b",
        " " * 50_000 + "a",
        "1" * 50_000,
        "x\n" + "=" * 50_000,
        "a" + "\u0301" * 50_000,
        "👩\u200d" * 20_000,
        "中。" * 25_000,
        "```" + "a" * 50_000,
        "```python\n" + "a = (\n" * 10_000,
        "```python\n" + "a" * 50_000 + "\nb\n",
        "```html\n" + "<script>\na(1);\n" * 3000,
    ],
    ids=lambda text: repr(text[:12]),
)
@pytest.mark.timeout(60)
def test_hostile_texts_end(text):
    """Each takes a fraction of a second: what takes a minute is quadratic."""
    shown = plain(list(text))
    assert len(re.sub(r"\s", "", shown)) > 0
    assert max(map(len, re.findall("^(?:│ )*", shown, re.MULTILINE))) <= 40
