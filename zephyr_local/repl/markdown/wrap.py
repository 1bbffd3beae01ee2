"""Lines of a terminal, filled word by word: a word is held back until its end is known, and nothing is rewritten."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import wcwidth

from zephyr_local.repl.markdown.charset import Charset, clusters, columns, joins

# Where Chinese and Japanese lines do not break: before what closes, after what opens (JIS X 4051, in its essence).
_NEVER_FIRST = frozenset("、。，．：；！？）」』】〕〉》〗］｝・ー々ゝヽっゃゅょッャュョ…‥”’»" + "!),.:;?]}%\"'")
_NEVER_LAST = frozenset("（「『【〔〈《〖［｛“‘«" + "([{\"'")


class Segment(NamedTuple):
    """A part of what stands before a line's text: a bar or indentation, or a marker, which is written only once."""

    text: str
    style: str = ""
    is_marker: bool = False


class Piece(NamedTuple):
    """Text in one style."""

    text: str
    style: str


class Prefix(Protocol):
    """What stands before the text of each line."""

    def segments(self, room: int) -> list[Segment]:
        """Bars and indentation, ``room`` columns at most, and the markers not written yet, which may exceed it."""

    def markers_written(self) -> None:
        """The markers stand on the screen: the next lines are indented under them."""


def is_wide(ch: str) -> bool:
    """Whether a line may break beside ``ch``: wide characters but Korean ones, which spaces part into words."""
    if ch < "\u1100" or ch <= "\u11ff" or "\uac00" <= ch <= "\ud7ff":
        return False
    return wcwidth.wcwidth(ch) == 2


def breakable(before: str, after: str) -> bool:
    """Whether a line may break between two clusters that no space parts."""
    if not (is_wide(before[0]) or is_wide(after[0])):
        return False
    return after[0] not in _NEVER_FIRST and before[-1] not in _NEVER_LAST


class Wrapper:
    """Fills lines of ``width() - 1`` columns: a character in the last one makes terminals differ about what follows.

    ``width`` is asked at the beginning of each line.
    """

    def __init__(
        self,
        write: Callable[[str], object],
        width: Callable[[], int],
        prefix: Prefix,
        charset: Charset,
    ) -> None:
        self._write = write
        self._width = width
        self._prefix = prefix
        self._charset = charset
        self._style = ""  # what the terminal is set to
        self._opened = False  # the prefix of this line is written
        self._limit = self._start = self._column = 0
        self._fresh = True  # no text on this line yet
        self._streaming = False  # the word began its line: waiting for its end would change nothing
        self._gap = 0  # spaces before the word
        self._gap_style = ""
        self._word: list[tuple[str, int, str]] = []  # clusters, their columns and styles
        self._word_columns = 0
        self._cluster = ""  # the last one, which may yet be joined
        self._cluster_style = ""
        self._owed: list[Segment] | None = None  # what stands on an empty line that is to come

    def put(self, text: str, style: str) -> None:
        """Add text without spaces."""
        for ch in self._charset.shown(text):
            if self._cluster:
                if joins(self._cluster, ch):
                    self._cluster += ch
                    continue
                last = self._cluster
                self._push_cluster()
                if breakable(last, ch):
                    self._end_word()
            self._cluster, self._cluster_style = ch, style

    def space(self, style: str = "", count: int = 1) -> None:
        """Add spaces; those at a line's end are never written, nor those where a line is broken."""
        self._end_word()
        self._gap += count
        self._gap_style = style

    def tab(self, style: str = "") -> None:
        """Add spaces up to the next multiple of 4 columns of the text."""
        self._end_word()
        self.space(style, 4 - (self._column - self._start + self._gap) % 4)

    def newline(self) -> None:
        """End the line, an empty one as well."""
        self._end_word()
        if not self._opened:
            self._open(bare=True)
        self._end_line()

    def end(self) -> None:
        """End the line if there is anything on it."""
        self._end_word()
        if self._opened:
            self._end_line()

    def line(self, pieces: Sequence[Piece]) -> None:
        """Write one line as it is, however long."""
        self.end()
        self._open(bare=not any(piece.text for piece in pieces))
        for text, style in pieces:
            self._set(style)
            self._write(self._charset.shown(text))
        self._end_line()

    def blank(self) -> None:
        """Write an empty line once another follows."""
        self.end()
        self._owed = self._prefix.segments(max(self._columns_now() - 1, 1) // 2)

    def room(self) -> int:
        """Columns for the text of the next line."""
        limit = max(self._columns_now() - 1, 1)
        taken = "".join(segment.text for segment in self._prefix.segments(limit // 2))
        return max(limit - sum(map(columns, clusters(taken))), 1)

    def _columns_now(self) -> int:
        width = self._width()
        return width if width > 0 else 80  # some terminals say 0 for "unknown"

    def _push_cluster(self) -> None:
        cluster, self._cluster = self._cluster, ""
        if not self._opened:
            self._open()
        wide = columns(cluster)
        self._word.append((cluster, wide, self._cluster_style))
        self._word_columns += wide
        if self._streaming or (self._fresh and not self._gap):
            self._streaming = True
            self._write_word()
        elif self._column + self._gap + self._word_columns > self._limit:
            if self._fresh:
                self._gap = 0
            else:
                self._break()
            self._streaming = True
            self._write_word()

    def _end_word(self) -> None:
        if self._cluster:
            self._push_cluster()
        if self._word:
            self._write_word()
        self._streaming = False

    def _write_word(self) -> None:
        if self._gap:
            self._set(self._gap_style)
            self._write(" " * self._gap)
            self._column += self._gap
            self._gap = 0
        for cluster, wide, style in self._word:
            if self._column + wide > self._limit and self._column > self._start:
                self._break()
            self._set(style)
            self._write(cluster)
            self._column += wide
        self._word.clear()
        self._word_columns = 0
        self._fresh = False

    def _break(self) -> None:
        self._end_line()
        self._open()

    def _end_line(self) -> None:
        self._set("")
        self._write("\n")
        self._opened = False
        self._fresh = True
        self._gap = self._column = self._start = 0

    def _open(self, bare: bool = False) -> None:
        self._limit = max(self._columns_now() - 1, 1)
        if self._owed is not None:
            self._write_prefix(self._owed, bare=True)
            self._write("\n")
            self._owed, self._column = None, 0
        self._write_prefix(self._prefix.segments(self._limit // 2), bare)
        self._prefix.markers_written()
        if self._limit - self._column < 2 and self._column and not bare:
            # The markers filled a very narrow line: the text begins on the next one.
            self._end_line()
            self._write_prefix(self._prefix.segments(self._limit // 2), bare)
        self._start = self._column
        self._opened = True

    def _write_prefix(self, prefix: Sequence[Segment], bare: bool) -> None:
        bare_width = 0
        if bare:
            bare_width = len("".join(segment.text for segment in prefix).rstrip(" "))
        for text, style, is_marker in prefix:
            part = text
            if bare:
                part, bare_width = text[: max(bare_width, 0)], bare_width - len(text)
            for cluster in clusters(part):
                wide = columns(cluster)
                if is_marker and self._column and self._column + wide > self._limit:
                    self._end_line()
                self._set(style if cluster != " " else "")
                self._write(cluster)
                self._column += wide
        self._set("")

    def _set(self, style: str) -> None:
        if style == self._style:
            return
        if self._style:
            self._write("\x1b[0m")
        if style:
            self._write(f"\x1b[{style}m")
        self._style = style
