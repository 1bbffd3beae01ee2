"""Markdown to try the renderer with, and ways to render it."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable

from zephyr_local.repl.markdown import MarkdownStream
from zephyr_local.repl.theme import Theme, choose_theme

DARK = choose_theme("dark", {})
SGR = re.compile(r"\x1b\[[0-9;]*m")


def render(text: str | Iterable[str], width: int = 80, theme: Theme = DARK, encoding: str = "utf-8") -> str:
    """What is written for a text, or for a text in parts."""
    written: list[str] = []
    stream = MarkdownStream(written.append, theme=theme, width=lambda: width, encoding=encoding)
    for part in [text] if isinstance(text, str) else text:
        stream.feed(part)
    stream.close()
    return "".join(written)


def plain(text: str | Iterable[str], width: int = 80, encoding: str = "utf-8") -> str:
    """The same without styles."""
    return SGR.sub("", render(text, width, encoding=encoding))


def parts(text: str, rng: random.Random, longest: int) -> list[str]:
    """A text cut anywhere."""
    found = []
    while text:
        count = rng.randint(1, longest)
        found.append(text[:count])
        text = text[count:]
    return found


CORPUS = [
    "",
    "\n\n \n",
    "plain",
    "# One\n## Two ##\n### Three # ###   \n#not\n####### seven\n#\n# #\n",
    "Title\n=====\n\nOther\n---\ntext\n",
    "a **b** *c* ***d*** ~~e~~ `f` ``g ` h`` __i__ _j_ ___k___\n",
    "5 * 3 = 15, a*b*c, 2**3, snake_case_name, __init__.py, *args and **kwargs\n",
    "**never closed, and so it goes on until the paragraph ends\nwith this line\n\nnext\n",
    "*short\n**short\n_short\n~~short\n`short\n[short\n![short\n<short\n$short\n",
    "*a **b*** c **d *e*** f ***g** h* i ***j* k** l *m `*` n*\n",
    "**Note:**text **(a)**b (**c**) **d**. *e*, **`f`** and `**g**`\n",
    "\\*no\\* \\_no\\_ \\`no\\` \\# \\\\ \\a \\\nnext \\",
    '[a](u) [b c](<u v> "t") [`d`](e_f_g) [g](h(i)j) [](k) [l]() [m][n] [o] [p](q r) [q](q)\n',
    "![alt](a.png) ![](b.png) [![c](d)](e) ![f]! !\n",
    "<https://a.b/c?d=e> <mailto:a@b.c> <a@b.c> <b>bold</b> <br> a < b > c <!-- d -->\n",
    "[mail](mailto:mail) [a@b.c](mailto:a@b.c) https://a.b/_c_/d~~e~~f\n",
    "`" + "x" * 150 + "` and `" + "y *z* " * 60 + "` end\n",
    "``` not a fence ` \n\n```a`b```\n\n``a`` b `c\nd` e\n",
    "- a\n- b\n  - c\n    - d\n      e\n  - f\n\n  g\n- h\n\nout\n",
    "* a\n* b\n+ c\n1. d\n2) e\n   1. f\n   - g\n10. h\n    i\n",
    "- [ ] a\n- [x] b\n- [X] **c**\n1. [ ] d\n- [y] e\n- [x](f)\n- [ ]\n- [x]g\n",
    "- \n- a\n-\n  b\n-\n\n  c\n- ```\n  d\n  ```\n- > e\n- # f\n- 1. g\n- - h\n",
    "> a\n> b\n>\n> c\nlazy\n\n> > d\n> e\n\n> - f\n>   g\n> 1. h\n",
    ">a\n>> b\n>>> c\n> > > > d\n\n> ```py\n> x = 1\n>\n> y\n> ```\n> e\n\n> ```\n> f\ng\n",
    '```python\ndef f(x):\n    """a\n    b"""\n\n\treturn x\n```\nafter\n',
    "~~~\na\n```\nb\n~~~~\nc\n\n````md\n```\nd\n```\n````\n",
    "1. a\n   ```sh\n   b\n     c\n   ```\n2. d\n\n   ```\n   e\nf\n   ```\n3. g\n",
    "```{.python title=\"x\"}\nx = 'a'\n```\n```unknown-language\nx\n```\n```\n\n\n```\n",
    "```c\nint main() {\n  /* a\n     b */\n  return 0;\n",
    "a\n\n    code\n\n\n    more\n  \n\nb\n    not code\n\n\tcode\n- c\n\n      code\n",
    "---\n***\n_ _ _\n- - -\n--\n**\n* * * a\n-----b\n",
    "| a | b |\n|---|--:|\n| **c** | 1 |\n| d\\|e | 22 | f |\n|\nend\n",
    "| a |\n|:-:|\n| `b` |\n\n| c |\n| d |\n|---|\n| e |\n\n|f|\n\n|---|\n",
    "- | a | b |\n  |---|---|\n  | c | d |\n- e\n> | a |\n> |---|\n> | b |\n",
    "| " + " | ".join(["wide cell"] * 12) + " |\n|" + "---|" * 12 + "\n| " + " | ".join(["x"] * 12) + " |\n",
    "$a_1 + b_2$ and $$\\frac{a*b*c}{d}$$ and \\(x_1 * y_2\\) costs $5 or $6 \\$7 $HOME $PATH\n",
    "$$\n- a\n+ b_1 * c_2\n\\\\\n= d\n$$\nend *e*\n\n\\[\n1. x\n\\]\n\\begin{align}\na &= b_1 \\\\ c\n\\end{align}\n",
    "$$ open\n\nx *y*\n",
    "中文没有空格的文字也要换行，因为终端的宽度有限。「引用」的标点不应该在行首。**“重点”**内容，这是**重点**的。\n",
    "日本語の文章も、行の終わりで折り返します。한국어는 단어로 나눕니다. **太字**です。\n",
    "👩‍👩‍👧 family, ❤️ heart, 🇩🇪🇫🇷 flags, 👍🏽 thumb, 1️⃣ key, e\u0301a\u0300 marks, \u200d\u0301\n",
    "a\r\nb\r\n\r\n- c\r\n- d\re\r\n```\r\nf\r\n```\r\n|g|\r\n|-|\r\n",
    "\x1b[31mred\x1b[0m \x07 \x00 **\x1b]0;x\x07** `\x9b2J` [\x1b](\x1b) \u202e\n",
    "a\tb\tc\n-\td\n\te\n\n```\n\tf\n\t\tg\n```\n>\th\n",
    "  a\n   b\n\n   - c\n    d\n\n<div>\n  <p>e</p>\n</div>\n",
    "x" * 200 + " " + "https://example.org/" + "y" * 100 + "\n\n- " + "z" * 100 + "\n",
    "Poem line one,\nline two,  \nline three\\\nline four.\n\n*Whole verse\nin emphasis*\n",
    "Steps:\n1. a\n2. b\nIn\n1986. A year\n2. no item\n- item\n-\n",
    "> " * 30 + "a\n" + "- " * 30 + "b\n" + "".join("  " * n + "- c\n" for n in range(30)),
]
