"""Tables: rows are gathered until the table ends, since each may widen every column."""

from __future__ import annotations

import re
from collections.abc import Sequence

from zephyr_local.repl.markdown.charset import Charset, clusters, columns
from zephyr_local.repl.markdown.inline import Inline
from zephyr_local.repl.markdown.wrap import Piece
from zephyr_local.repl.theme import Theme

MAX_CHARS = 100_000
"""A table is not gathered beyond this."""

_DELIMITER = re.compile(r"\|?+ *+:?-++:? *+(?:\| *+:?-++:? *+)*+\|?+ *+")
_BOUNDARY = re.compile(r"(?<!\\)((?:\\\\)*)\|")


class Pieces:
    """A sink of inline text that keeps it."""

    def __init__(self) -> None:
        self.found: list[Piece] = []

    def put(self, text: str, style: str) -> None:
        self.found.append(Piece(text, style))

    def space(self, style: str, count: int = 1) -> None:
        self.found.append(Piece(" " * count, style))

    def tab(self, style: str) -> None:
        self.space(style)


def is_delimiter(line: str) -> bool:
    """Whether this is the line under a table's head, such as ``| --- | :-: |``."""
    return "|" in line and _DELIMITER.fullmatch(line.strip(" \t")) is not None


def cells(line: str) -> list[str]:
    """The cells of a row; a pipe within one is written ``\\|``."""
    line = line.strip(" \t").removeprefix("|")
    parts = [part.strip(" \t") for part in _BOUNDARY.sub("\\1\n", line).split("\n")]
    if len(parts) > 1 and not parts[-1]:
        parts.pop()
    return [part.replace("\\|", "|") for part in parts]


def _wide(cell: Sequence[Piece]) -> int:
    return sum(columns(cluster) for cluster in clusters("".join(piece.text for piece in cell)))


class Table:
    """A head, a delimiter line and rows, laid out in columns."""

    def __init__(self, lines: Sequence[str], theme: Theme, charset: Charset) -> None:
        self._theme = theme
        self._charset = charset
        head, delimiter, *rows = lines
        self._rows = [self._row(head, theme.table_head)] + [self._row(row, "") for row in rows]
        count = max(map(len, self._rows))
        for row in self._rows:
            row.extend([] for _ in range(count - len(row)))
        marks = cells(delimiter)
        self._marks = marks + ["-"] * (count - len(marks))
        self._widths = [max(1, *(_wide(row[index]) for row in self._rows)) for index in range(count)]

    @property
    def columns(self) -> int:
        """Columns of the terminal that it takes."""
        return sum(self._widths) + 3 * (len(self._widths) - 1)

    def lines(self) -> list[list[Piece]]:
        """The table as lines in pieces."""
        bar = Piece(f" {self._charset.either('│', '|')} ", self._theme.table_line)
        dash, cross = self._charset.either("─", "-"), self._charset.either("┼", "+")
        rule = f"{dash}{cross}{dash}".join(dash * width for width in self._widths)
        found = [self._line(row, bar) for row in self._rows]
        return [found[0], [Piece(rule, self._theme.table_line)], *found[1:]]

    def _row(self, line: str, base: str) -> list[list[Piece]]:
        found = []
        for cell in cells(line):
            pieces = Pieces()
            Inline(pieces, self._theme, base).feed_all(cell)
            found.append([Piece(self._charset.shown(text), style) for text, style in pieces.found])
        return found

    def _line(self, row: list[list[Piece]], bar: Piece) -> list[Piece]:
        line: list[Piece] = []
        for index, cell in enumerate(row):
            spare = self._widths[index] - _wide(cell)
            mark = self._marks[index]
            centred = mark[:1] == mark[-1:] == ":"
            left = spare // 2 if centred else spare if mark[-1:] == ":" else 0
            line += [bar] if index else []
            line += [Piece(" " * left, ""), *cell, Piece(" " * (spare - left), "")]
        while line and not line[-1].text.strip(" "):
            line.pop()
        if line and line[-1] is bar:
            line[-1] = Piece(bar.text.rstrip(" "), bar.style)
        return line


def lay_out(lines: Sequence[str], theme: Theme, charset: Charset, room: int) -> list[list[Piece]] | None:
    """A table of ``room`` columns at most, in lines of pieces; None: it is wider."""
    if max(line.count("|") for line in lines) > room:
        return None  # before anything is made of thousands of cells
    table = Table(lines, theme, charset)
    return table.lines() if table.columns <= room else None
