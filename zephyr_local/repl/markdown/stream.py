"""Markdown as it streams: each line is told apart by its first characters, then goes on to its block."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable

from zephyr_local.repl.markdown.charset import Charset
from zephyr_local.repl.markdown.containers import MAX_DEPTH, Containers, Item, Quote
from zephyr_local.repl.markdown.leaves import Code, Fence, Heading, Leaf, Paragraph, Rows
from zephyr_local.repl.markdown.wrap import Piece, Segment, Wrapper
from zephyr_local.repl.theme import Theme

_HOLD = 512  # characters of a line's beginning; what is not clear by then is text
_RULE_COLUMNS = 40
_CODE_INDENT = 4

_HEADING = re.compile(r"(#{1,6}) +(?=[^ ])")
_HEADING_BEGUN = re.compile(r"#{1,6} *")
_FENCE = re.compile(r"(`{3,}+|~{3,}+)(.*)", re.DOTALL)
_RULE_BEGUN = re.compile(r"([-*_])(?: *+\1)*+ *+")
_UNDERLINE = re.compile(r"=+ *")
_MARKER = re.compile(r"([-+*]|[0-9]{1,9}[.)])( *)(?=([^ ])?)")
_ITEM = re.compile(r"(?:[-+*]|[0-9]{1,9}[.)])(?: |$)")
_NUMBER = re.compile(r"[0-9]{1,9}")
_TASK = re.compile(r"\[([ xX])\](?: +(?=[^ ])| *$)")
_TASK_BEGUN = re.compile(r"\[(?:[ xX](?:\] *)?)?")


class _Step(enum.Enum):
    """What became of a line's beginning."""

    WAIT = enum.auto()
    TAKEN = enum.auto()
    TEXT = enum.auto()


class _Head:
    """What is not decided of a line: the spaces it begins with, and what came after them; tabs are spaces here."""

    def __init__(self) -> None:
        self.spaces = 0
        self.text = ""
        self._column = 0

    def add(self, ch: str) -> None:
        count = 4 - self._column % 4 if ch == "\t" else 1
        self._column += count
        if ch not in " \t":
            self.text += ch
        elif self.text:
            self.text += " " * count
        else:
            self.spaces += count

    def cut(self, count: int) -> None:
        """Drop the beginning of the text; spaces after it are the new indentation."""
        rest = self.text[count:]
        self.text = rest.lstrip(" ")
        self.spaces = len(rest) - len(self.text)


class MarkdownStream:
    """Writes Markdown as styled lines while it comes, and never moves the cursor back.

    What is written is plain text, newlines and SGR sequences, and depends on the text alone, not on how it is cut into
    feeds. ``write`` is called once a feed at most. ``width`` is asked for each line. Characters that ``encoding`` lacks
    are shown as "?", control characters as :func:`~zephyr_local.repl.screen.visible` shows them.

    CommonMark with tables, task items and strikethrough, but for what streaming and a terminal suggest otherwise: a
    newline in a paragraph stays one; a text underlined by ``---`` or ``===`` stays a paragraph, the underline becomes a
    rule; a table's lines must begin with a pipe; reference links, entities, HTML and LaTeX are shown as they are; a
    fence in a list item goes on though its code is indented too little.
    """

    def __init__(
        self, write: Callable[[str], object], *, theme: Theme, width: Callable[[], int], encoding: str = "utf-8"
    ) -> None:
        self._write = write
        self._theme = theme
        self._charset = Charset(encoding)
        self._containers = Containers()
        self._output: list[str] = []
        self._wrapper = Wrapper(self._output.append, width, self._containers, self._charset)
        self._written = False
        self._leaf: Leaf | None = None
        self._blank = False  # lines were blank since the last block
        self._return = False  # a carriage return came, perhaps before a newline
        self._begin_line()

    def feed(self, text: str) -> None:
        """Take more of the text, and write what is clear by now."""
        for ch in text:
            if self._return:
                self._return = False
                if ch != "\n":
                    self._take("\r")
            if ch == "\n":
                self._end_line()
            elif ch == "\r":
                self._return = True
            else:
                self._take(ch)
        self._flush()

    def close(self) -> None:
        """End the text, and the line that it ends on."""
        self._return = False
        if not self._line_empty:
            self._end_line()
        self._close_leaf()
        self._wrapper.end()
        self._flush()

    def _flush(self) -> None:
        if self._output:
            self._write("".join(self._output))
            self._output.clear()
            self._written = True

    def _begin_line(self) -> None:
        self._line_empty = True
        self._head = _Head()
        self._matched = 0  # containers that go on in this line
        self._failed = False  # one does not
        self._task_possible = False
        self._body: Leaf | None = None  # takes the rest of the line
        self._decided = False

    def _take(self, ch: str) -> None:
        self._line_empty = False
        if self._body is not None:
            self._body.feed(ch)
        else:
            self._head.add(ch)
            self._decide(False)

    def _end_line(self) -> None:
        self._decide(True)
        if self._body is not None and self._body.end_line():
            self._leaf = None
        self._begin_line()

    def _decide(self, at_end: bool) -> None:
        while not self._decided and self._match_containers(at_end) and self._start(at_end):
            pass

    def _match_containers(self, at_end: bool) -> bool:
        """Whether it is known which containers the line is in."""
        head = self._head
        in_fence = isinstance(self._leaf, Fence)
        while self._matched < len(self._containers.open) and not self._failed:
            container = self._containers.open[self._matched]
            if isinstance(container, Item):
                if head.spaces >= container.content:
                    head.spaces -= container.content
                elif not head.text and not at_end:
                    return False
                elif not head.text or in_fence or head.spaces >= container.least:
                    head.spaces = 0
                else:
                    self._failed = True
                    return True
            elif head.text[:1] == ">" and head.spaces < _CODE_INDENT:
                if len(head.text) == 1 and not at_end:
                    return False
                self._cut_quote_mark()
            elif head.text or at_end:
                self._failed = True
                return True
            else:
                return False
            self._matched += 1
        return True

    def _cut_quote_mark(self) -> None:
        self._head.cut(1)
        self._head.spaces -= min(self._head.spaces, 1)

    def _start(self, at_end: bool) -> bool:
        """Decide what the line is, or the next container in it; False: it takes more to decide."""
        head = self._head
        leaf = self._leaf
        if isinstance(leaf, Fence) and not self._failed:
            self._go_on(leaf, head.spaces)
            return True
        if not head.text:
            if at_end:
                self._decided = True
                self._blank_line()
            return at_end
        if isinstance(leaf, Rows):
            if head.text[0] == "|" and not self._failed:
                self._go_on(leaf, 0)
                return True
            leaf = self._settle_rows(leaf)
        if type(leaf) is Code and not self._failed and head.spaces >= _CODE_INDENT:
            self._blank = False
            self._go_on(leaf, head.spaces - _CODE_INDENT)
            return True
        if isinstance(leaf, Paragraph) and leaf.in_math:
            self._go_on(leaf, 0 if self._failed else head.spaces)
            return True
        step = self._new_block(at_end)
        if step is _Step.TEXT:
            if isinstance(leaf, Paragraph):
                self._go_on(leaf, 0 if self._failed else head.spaces)
            else:
                self._open(Paragraph(self._wrapper, self._theme))
        return step is not _Step.WAIT

    def _go_on(self, leaf: Leaf, spaces: int) -> None:
        """Let a block have the line."""
        self._decided = True
        self._body = leaf
        leaf.begin_line(spaces)
        for ch in self._head.text:
            leaf.feed(ch)

    def _leave(self) -> None:
        """End the block before, and the containers that do not go on."""
        self._close_leaf()
        del self._containers.open[self._matched :]
        self._failed = False
        if self._blank and (self._written or self._output):
            self._wrapper.blank()
        self._blank = False

    def _open(self, leaf: Leaf, spaces: int = 0) -> None:
        self._leave()
        self._leaf = leaf
        self._go_on(leaf, spaces)

    def _close_leaf(self) -> None:
        if self._leaf is not None:
            self._leaf.close()
            self._leaf = None

    def _settle_rows(self, rows: Rows) -> Paragraph | None:
        """Write the table, or what was thought to begin one: a paragraph, which may go on."""
        if rows.is_table:
            self._close_leaf()
            return None
        self._leaf = paragraph = rows.as_paragraph()
        return paragraph

    def _blank_line(self) -> None:
        if self._leaf is None and self._containers.marker_pending:
            self._wrapper.newline()  # an item without text
            return
        if type(self._leaf) is Code and not self._failed:
            self._leaf.blank()
        else:
            self._close_leaf()
        del self._containers.open[self._matched :]
        self._blank = True

    def _new_block(self, at_end: bool) -> _Step:
        head = self._head
        first = head.text[0]
        if self._task_possible and first == "[":
            return self._task(at_end)
        if first in "`~":
            return self._fence(at_end)
        if not (self._containers.in_list and _ITEM.match(head.text)) and self._indented_code():
            return _Step.TAKEN
        if first == "#" and head.spaces < _CODE_INDENT:
            return self._heading(at_end)
        if first == ">":
            return self._quote(at_end)
        if first == "|":
            self._open(Rows(self._wrapper, self._theme, self._charset))
            return _Step.TAKEN
        if first in "-*_=":
            step = self._rule(at_end)
            if step is not _Step.TEXT:
                return step
        return self._item(at_end)

    def _indented_code(self) -> bool:
        """Only after a blank line, or first of all: elsewhere, indentation is more often carelessness than code."""
        if self._head.spaces < _CODE_INDENT or not (self._blank or not (self._written or self._output)):
            return False
        self._open(Code(self._wrapper, self._theme), self._head.spaces - _CODE_INDENT)
        return True

    def _fence(self, at_end: bool) -> _Step:
        text = self._head.text
        if len(text) > _HOLD:
            return _Step.TEXT
        found = _FENCE.match(text)
        if found is None:
            return _Step.WAIT if text == text[0] * len(text) and not at_end else _Step.TEXT
        fence, info = found.groups()
        if fence[0] == "`" and "`" in info:
            return _Step.TEXT
        if not at_end:
            return _Step.WAIT
        indent = self._head.spaces
        self._leave()
        self._leaf = Fence(self._wrapper, self._theme, info.strip(" "), fence, indent)
        self._decided = True
        return _Step.TAKEN

    def _heading(self, at_end: bool) -> _Step:
        text = self._head.text
        found = _HEADING.match(text)
        if found is None:
            waits = not at_end and len(text) <= _HOLD and _HEADING_BEGUN.fullmatch(text)
            return _Step.WAIT if waits else _Step.TEXT
        self._head.cut(found.end())
        self._open(Heading(self._wrapper, self._theme, len(found[1])))
        return _Step.TAKEN

    def _quote(self, at_end: bool) -> _Step:
        if len(self._containers.open) >= MAX_DEPTH:
            return _Step.TEXT
        if len(self._head.text) == 1 and not at_end:
            return _Step.WAIT
        self._leave()
        self._cut_quote_mark()
        self._containers.open.append(Quote(Segment(self._charset.either("│", "|") + " ", self._theme.quote)))
        self._matched += 1
        self._task_possible = False
        return _Step.TAKEN

    def _rule(self, at_end: bool) -> _Step:
        """A thematic break, or what underlines a paragraph."""
        text = self._head.text
        if text[0] == "=" and (self._failed or not isinstance(self._leaf, Paragraph)):
            return _Step.TEXT
        if len(text) > _HOLD or not (_UNDERLINE if text[0] == "=" else _RULE_BEGUN).fullmatch(text):
            return _Step.TEXT
        if not at_end:
            return _Step.WAIT
        if text.count(text[0]) < 3:
            return _Step.TEXT
        self._leave()
        dash = self._charset.either("─", "-")
        self._wrapper.line([Piece(dash * min(self._wrapper.room(), _RULE_COLUMNS), self._theme.rule)])
        self._decided = True
        return _Step.TAKEN

    def _item(self, at_end: bool) -> _Step:
        head = self._head
        found = _MARKER.match(head.text)
        if found is None:
            return _Step.WAIT if _NUMBER.fullmatch(head.text) and not at_end else _Step.TEXT
        marker, gap, after = found.groups()
        if (after and not gap) or len(self._containers.open) >= MAX_DEPTH:
            return _Step.TEXT
        if not after and not at_end and len(head.text) <= _HOLD:
            return _Step.WAIT
        in_text = isinstance(self._leaf, Paragraph) and not self._failed
        if in_text and (not after or (marker[0].isdigit() and int(marker[:-1]) != 1)):
            return _Step.TEXT  # CommonMark's rule, so that a number which begins a line of prose is no item
        self._leave()
        spaces = len(gap) if 1 <= len(gap) <= 4 else 1
        sign = marker if marker[0].isdigit() else self._charset.either("•", "*")
        content = head.spaces + len(marker) + spaces
        self._containers.open.append(Item(Segment(f"{sign} ", self._theme.bullet, True), head.spaces, content))
        self._matched += 1
        head.cut(len(marker))
        head.spaces -= min(head.spaces, spaces)
        self._task_possible = True
        return _Step.TAKEN

    def _task(self, at_end: bool) -> _Step:
        head = self._head
        found = _TASK.match(head.text)
        if found is None or (found.end() == len(head.text) and not at_end):
            if not at_end and len(head.text) <= _HOLD and _TASK_BEGUN.fullmatch(head.text):
                return _Step.WAIT
            self._task_possible = False
            return _Step.TAKEN
        box = self._charset.either("☐", "[ ]") if found[1] == " " else self._charset.either("☑", "[x]")
        item = self._containers.open[-1]
        assert isinstance(item, Item)
        number = item.marker.text if item.marker.text[0].isdigit() else ""
        item.marker = item.marker._replace(text=f"{number}{box} ")
        head.cut(found.end())
        self._task_possible = False
        return _Step.TAKEN
