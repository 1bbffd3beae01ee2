"""The blocks that hold text: paragraphs, headings, code and tables, each a line at a time."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod

from zephyr_local.repl.markdown.charset import Charset
from zephyr_local.repl.markdown.code import Highlighter
from zephyr_local.repl.markdown.inline import Inline
from zephyr_local.repl.markdown.table import MAX_CHARS, is_delimiter, lay_out
from zephyr_local.repl.markdown.wrap import Wrapper
from zephyr_local.repl.theme import Theme


class Leaf(ABC):
    """A block that is open: its lines come as the spaces before them, then character by character."""

    @abstractmethod
    def begin_line(self, spaces: int) -> None: ...

    @abstractmethod
    def feed(self, ch: str) -> None: ...

    @abstractmethod
    def end_line(self) -> bool:
        """The line is complete; True where the block is, too."""

    @abstractmethod
    def close(self) -> None:
        """Write what was held back: the block ends."""


class Paragraph(Leaf):
    """Text whose newlines are kept: models do not break lines to fit a width, but to begin one."""

    def __init__(self, wrapper: Wrapper, theme: Theme) -> None:
        self._wrapper = wrapper
        self._inline = Inline(wrapper, theme)
        self._begun = False
        self._broken = False  # by a backslash, which is text if nothing follows
        self._line_empty = True

    @property
    def in_math(self) -> bool:
        return self._inline.in_math

    def begin_line(self, spaces: int) -> None:
        if self._broken:
            self._wrapper.newline()
            self._broken = False
        if self._begun and spaces:
            self._wrapper.space(count=spaces)
        self._begun = True
        self._line_empty = True

    def feed(self, ch: str) -> None:
        self._line_empty = self._line_empty and ch == "\\"
        self._inline.feed(ch)

    def end_line(self) -> bool:
        self._broken = self._inline.end_line()
        if self._broken and self._line_empty:
            self._wrapper.put("\\", "")  # alone, it breaks nothing
            self._broken = False
        if not self._broken:
            self._wrapper.newline()
        return False

    def close(self) -> None:
        if self._broken:
            self._wrapper.put("\\", "")
        self._wrapper.end()


class Heading(Leaf):
    """One line, without the number signs that may close it."""

    def __init__(self, wrapper: Wrapper, theme: Theme, level: int) -> None:
        self._wrapper = wrapper
        self._style = theme.title if level == 1 else theme.heading
        self._inline = Inline(wrapper, theme, self._style)
        self._tail: list[str] = []  # a space, and what else may belong to the closing signs

    def begin_line(self, spaces: int) -> None:
        pass

    def feed(self, ch: str) -> None:
        if ch == " " or (ch == "#" and self._tail):
            self._tail.append(ch)
            return
        self._take_tail()
        self._inline.feed(ch)

    def end_line(self) -> bool:
        tail = "".join(self._tail).rstrip(" ")
        content = tail.rstrip("#")
        self._tail = list(content.rstrip(" "))
        self._take_tail()
        if self._inline.end_line():
            self._wrapper.put("\\", self._style)
        self._wrapper.newline()
        return True

    def close(self) -> None:
        self._wrapper.end()

    def _take_tail(self) -> None:
        for ch in self._tail:
            self._inline.feed(ch)
        self._tail.clear()


class Code(Leaf):
    """Lines that are written as they are, each once it is complete; blank ones once another follows."""

    def __init__(self, wrapper: Wrapper, theme: Theme, info: str = "") -> None:
        self._wrapper = wrapper
        self._highlighter = Highlighter(info, theme)
        self._blank_lines = 0
        self._line: list[str] = []

    def begin_line(self, spaces: int) -> None:
        self._line = [" " * spaces]

    def feed(self, ch: str) -> None:
        self._line.append(ch)

    def end_line(self) -> bool:
        self._write("".join(self._line))
        return False

    def close(self) -> None:
        pass

    def blank(self) -> None:
        self._blank_lines += 1

    def _write(self, line: str) -> None:
        line = line.expandtabs(4)
        if not line.strip(" "):
            self.blank()
            return
        for _ in range(self._blank_lines):
            self._wrapper.line(self._highlighter.line(""))
        self._blank_lines = 0
        self._wrapper.line(self._highlighter.line(line))


class Fence(Code):
    """Code between fences; a dim line before it names the language."""

    def __init__(self, wrapper: Wrapper, theme: Theme, info: str, fence: str, indent: int) -> None:
        super().__init__(wrapper, theme, info)
        self._fence = fence
        self._indent = indent
        for word in info.split(" "):
            wrapper.put(word, theme.note)
            wrapper.space(theme.note)
        wrapper.end()

    def end_line(self) -> bool:
        line = "".join(self._line)
        text = line.strip(" ")
        spaces = len(line) - len(line.lstrip(" "))
        closes = len(text) >= len(self._fence) and not text.strip(self._fence[0])
        if closes and spaces <= self._indent + 3:
            return True
        self._write(line[min(spaces, self._indent) :])
        return False


class Rows(Leaf):
    """Lines that begin with a pipe: a table if the second says so, else text."""

    def __init__(self, wrapper: Wrapper, theme: Theme, charset: Charset) -> None:
        self._wrapper = wrapper
        self._theme = theme
        self._charset = charset
        self._lines: list[str] = []
        self._chars = 0
        self._line: list[str] = []

    @property
    def is_table(self) -> bool:
        return len(self._lines) > 1

    def begin_line(self, spaces: int) -> None:
        self._line = []

    def feed(self, ch: str) -> None:
        self._line.append(ch)

    def end_line(self) -> bool:
        line = "".join(self._line)
        if len(self._lines) == 1 and not is_delimiter(line):
            self.as_paragraph().close()
        self._lines.append(line)
        self._chars += len(line)
        if self._chars <= MAX_CHARS:
            return False
        self.close()
        return True

    def as_paragraph(self) -> Paragraph:
        """The first line as text, and the paragraph that it began."""
        paragraph = Paragraph(self._wrapper, self._theme)
        paragraph.begin_line(0)
        for ch in self._lines.pop():
            paragraph.feed(ch)
        paragraph.end_line()
        return paragraph

    def close(self) -> None:
        if not self.is_table:
            self.as_paragraph().close()
            return
        lines = lay_out(self._lines, self._theme, self._charset, self._wrapper.room())
        if lines is not None:
            for line in lines:
                self._wrapper.line(line)
            return
        for text in self._lines:
            inline = Inline(self._wrapper, self._theme)
            inline.feed_all(re.sub(" {2,}", " ", re.sub("-{3,}", "---", text)).rstrip(" "))
            self._wrapper.newline()
