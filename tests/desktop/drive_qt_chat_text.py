"""Drives the chat's view of examples/desktop/qt_chat without a model: a scenario by name, in a process of its own.

``python drive_qt_chat_text.py SCENARIO``; it ends with 1 and a traceback where the scenario fails.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "examples" / "desktop" / "qt_chat"), str(ROOT)]

from chat_text import ChatText  # noqa: E402 — pyright: ignore[reportMissingImports]
from chat_view import ChatView  # noqa: E402 — pyright: ignore[reportMissingImports]
from look import current_look  # noqa: E402 — pyright: ignore[reportMissingImports]
from PySide6.QtCore import QAbstractListModel, QEventLoop, QModelIndex, Qt, QTimer  # noqa: E402
from PySide6.QtGui import QTextCursor, QTextDocument, QTextFormat  # noqa: E402
from PySide6.QtWidgets import QApplication, QWidget  # noqa: E402

from zephyr_local.desktop.qt import ChatModel  # noqa: E402

SAMPLE = """# A heading

Text with **bold**, *italic*, `code` and a [link](https://example.org/).

1. one
2. two
    - nested
    - more

3. three

- a
- b

## Another

```python
def add(a: int, b: int) -> int:

    return a + b
```

> A quotation

| Name | Size |
|------|-----:|
| tiny | 2 MB |

After the table.

***

- [ ] to do

End.

```
"""
SAMPLE += "".join(f"line {k}\n" for k in range(60)) + "```\n\nEnd.\n\n~~~c\nwithout an end\n"


def pause(wait_ms: int) -> None:
    loop = QEventLoop()
    QTimer.singleShot(wait_ms, loop.quit)
    loop.exec()


def blocks(document: QTextDocument) -> list[tuple[object, ...]]:
    """What is seen of a document: its blocks, their distances and signs, and the runs of text in each."""
    seen: list[tuple[object, ...]] = []
    block = document.begin()
    while block.isValid():
        form, items = block.blockFormat(), block.textList()
        number = "" if items is None else items.itemText(block)
        runs = []
        iterator = block.begin()
        while not iterator.atEnd():
            part = iterator.fragment()
            chars = part.charFormat()
            size = chars.intProperty(int(QTextFormat.Property.FontSizeAdjustment))
            runs.append((part.text(), chars.fontWeight(), chars.fontItalic(), chars.fontFamilies(), size))
            iterator += 1
        margins = (form.leftMargin(), form.topMargin(), form.bottomMargin())
        in_table = QTextCursor(block).currentTable() is not None
        seen.append((block.text(), form.headingLevel(), number, margins, in_table, runs))
        block = block.next()
    return seen


def growing() -> None:
    """However an answer arrives, it looks as if it had come whole."""
    parent = QWidget()
    whole = ChatText(current_look(), parent)
    whole._render(SAMPLE)  # in one go, which show_markdown does only where it must
    expected = blocks(whole.document())
    assert [block[0] for block in expected if block[1]] == ["A heading", "Another"]
    assert {block[2] for block in expected} >= {"1.", "2.", "3."}
    assert sum(bool(block[4]) for block in expected) == 4  # cells
    for seed in range(20):
        pieces = random.Random(seed)
        grown = ChatText(current_look(), parent)
        length = 0
        while length < len(SAMPLE):
            length += pieces.randint(1, 40)
            grown.show_markdown(SAMPLE[:length], is_whole=False)
            grown.fit(600)
        grown.show_markdown(SAMPLE, is_whole=True)
        assert blocks(grown.document()) == expected, seed
        assert grown.fit(600) == whole.fit(600), (grown.fit(600), whole.fit(600))
    grown.show_markdown("Another answer", is_whole=True)
    assert grown.toPlainText() == "Another answer"
    late = "See [the page][1].\n\nMore.\n\n[1]: https://example.org/page\n"
    for length in (20, 30, len(late)):
        grown.show_markdown(late[:length], is_whole=length == len(late))
    assert grown.toPlainText() == "See the page.\nMore."
    assert "https://example.org/page" in grown.toHtml()


def harmless() -> None:
    """HTML is text, nothing is loaded, and nothing of the answer is swallowed."""
    loaded: list[object] = []

    class Watched(ChatText):  # type: ignore[misc]
        def loadResource(self, kind: int, name: object) -> None:
            loaded.append(name)
            return super().loadResource(kind, name)

    parent = QWidget()
    text = Watched(current_look(), parent)
    picture = Path(sys.argv[2]) / "picture.png"
    text.grab().save(str(picture))
    said = f"<b>x</b> <img src='{picture}'> ![cat]({picture}) ![dog](https://example.org/dog.png) &lt;i&gt;"
    text.show_markdown(said, is_whole=True)
    text.resize(text.fit(600)[0], 100)
    text.grab()
    assert text.toPlainText() == f"<b>x</b> <img src='{picture}'> [image: cat] [image: dog] <i>"
    assert "<img" not in text.toHtml()
    assert loaded == []
    text.show_markdown("---\ntitle: x\n---\nhello", is_whole=True)  # front matter, to other readers of Markdown
    assert "title: x" in text.toPlainText()
    text.show_markdown("<script>alert(1)</script>\n\n<div>\n\n**y**", is_whole=True)
    assert text.toPlainText() == "<script>alert(1)</script>\n<div>\ny"


class Rows(QAbstractListModel):
    """A chat that is made up."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []

    def rowCount(self, parent: QModelIndex = QModelIndex()) -> int:  # type: ignore[override]  # noqa: B008
        return len(self.rows)

    def data(self, index: Any, role: int = 0) -> str:
        return self.rows[index.row()][int(role) - int(ChatModel.Role.RoleRole)]

    def add(self, *rows: tuple[str, str, str]) -> None:
        self.beginInsertRows(QModelIndex(), len(self.rows), len(self.rows) + len(rows) - 1)
        self.rows += [list(row) for row in rows]
        self.endInsertRows()

    def grow(self, text: str, state: str = "writing") -> None:
        self.rows[-1][1:] = [self.rows[-1][1] + text, state]
        self.dataChanged.emit(self.index(len(self.rows) - 1), self.index(len(self.rows) - 1))


def long_answer(n_words: int) -> str:
    """Markdown with code blocks and lists."""
    code = "\n".join(f"def step_{k}(x: int) -> int:\n    return x + {k}  # a comment" for k in range(6))
    prose = " ".join(f"word{k} **bold** and `code` of a *text*" for k in range(12))
    items = "\n".join(f"{k}. item {k} with some words in it" for k in range(1, 6))
    section = f"## Section\n\n{prose}\n\n{items}\n\n```python\n{code}\n```\n\n"
    return section * (1 + n_words // len(section.split()))


def stalls() -> None:
    """How long the event loop is away while 4,000 words are written in 4 seconds, and while a long chat is opened."""
    rows = Rows()
    view = ChatView(rows)
    view.resize(900, 640)
    view.show()
    pause(100)
    gaps_ms: list[float] = []
    last_s = time.perf_counter()

    def tick() -> None:
        nonlocal last_s
        now_s = time.perf_counter()
        gaps_ms.append(1000 * (now_s - last_s))
        last_s = now_s

    def told(what: str) -> None:
        sys.stdout.write(f"{what} {max(gaps_ms):.1f}\n")
        gaps_ms.clear()

    timer = QTimer()
    timer.setTimerType(Qt.TimerType.PreciseTimer)
    timer.timeout.connect(tick)
    timer.start(2)
    pause(300)
    told("stall_idle_ms")
    text = long_answer(4000)
    rows.add(("user", "Write a lot", "whole"), ("assistant", "", "writing"))
    step = len(text) // 120
    for begin in range(0, len(text), step):
        rows.grow(text[begin : begin + step])
        pause(33)
    rows.grow("", "whole")
    pause(100)
    told("stall_writing_ms")
    assert view.turns[-1].text == text
    bar = view.verticalScrollBar()
    assert bar.value() == bar.maximum() > 5000  # it was followed
    rows.add(*((role, long_answer(100), "whole") for _ in range(50) for role in ("user", "assistant")))
    end_s = time.monotonic() + 60
    while len(view.turns) < 102:
        assert time.monotonic() < end_s, len(view.turns)
        pause(20)
    told("stall_opening_ms")
    bar.setValue(1000)
    rows.add(("assistant", "", "writing"))
    rows.grow("more " * 1000)
    pause(200)
    assert bar.value() == 1000  # who reads is left alone
    view.follow()
    assert bar.value() == bar.maximum()


SCENARIOS: dict[str, Callable[[], None]] = {"growing": growing, "harmless": harmless, "stalls": stalls}

if __name__ == "__main__":
    app = QApplication(sys.argv[:1])
    app.setStyle("Fusion")
    SCENARIOS[sys.argv[1]]()
