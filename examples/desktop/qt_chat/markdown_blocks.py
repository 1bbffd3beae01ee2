"""Where a Markdown text that still grows can be cut, so that what stands before the cut needs no second look."""

from __future__ import annotations

import re
from dataclasses import dataclass

_FENCE = re.compile(r" *(`{3,}|~{3,})(.*)")
_DEFINITION = re.compile(r"^ {0,3}\[[^\]\n]+\]: ", re.MULTILINE)
_ITEM = re.compile(r"(?:[-*+]|(\d{1,9})[.)]) ")
_RULE = re.compile(r" {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$")
_TELLING = 12  # so many characters tell what a line is that is not complete
_LINES_OF_CODE = 24  # longer code is cut, too


@dataclass(frozen=True, slots=True)
class Cut:
    """What stands before ``at`` is finished."""

    at: int = 0
    fence: str = ""
    """The line that opened the code in which the cut lies; what follows needs it before it."""


def last_cut(text: str, cut: Cut) -> Cut:
    """The last cut that ``text`` has, given one that it had when it was shorter.

    A cut lies before a line at the left edge, outside of code, that follows an empty line or is a list's next item:
    what comes later belongs to that line's block. No cut follows a table or a rule, which Qt's editor cannot be
    continued after. In long code there is a cut before its last complete line.
    """
    scan = _Scan(cut)
    for line in text[cut.at :].splitlines(keepends=True):
        if not line.endswith("\n") and len(line) < _TELLING:
            break
        scan.take(line)
    return scan.cut


def has_definitions(text: str) -> bool:
    """Whether links may have their address elsewhere in the text, so that a part alone does not know it."""
    return _DEFINITION.search(text) is not None


class _Scan:
    """Goes through the lines that follow a cut."""

    def __init__(self, cut: Cut) -> None:
        self.cut = cut
        self._at = cut.at
        self._fence = cut.fence  # the line that opened the code that we are in
        self._n_code = 0  # lines of it that were seen
        self._item: re.Match[str] | None = None  # the first line of the list's last item
        self._line_before = ""  # the last one that was not empty
        self._is_after_gap = False

    def take(self, line: str) -> None:
        bare = line.rstrip()
        if self._fence:
            self._take_code(line, bare)
        else:
            if bare and not line[0].isspace():
                self._take_edge(line, bare)
            match = _FENCE.match(bare)
            if match is not None and not (match[1][0] == "`" and "`" in match[2]):
                self._fence, self._n_code = bare, 0
        self._is_after_gap = not bare
        self._line_before = bare or self._line_before
        self._at += len(line)

    def _take_code(self, line: str, bare: str) -> None:
        opening, match = _FENCE.match(self._fence), _FENCE.match(bare)
        if match is not None and opening is not None and match[1].startswith(opening[1]) and not match[2].strip():
            self._fence = ""
            return
        self._n_code += 1
        if self._n_code > _LINES_OF_CODE and not self._fence[0].isspace() and line.endswith("\n"):
            self.cut, self._n_code = Cut(self._at, self._fence), 1

    def _take_edge(self, line: str, bare: str) -> None:
        """A line at the left edge."""
        item_here = None if _RULE.match(bare) else _ITEM.match(line)
        before = self._item
        is_next = before is not None and item_here is not None and _counts_on(before, item_here)
        begins = self._is_after_gap and _can_end(self._line_before) and (before is None or item_here is None)
        if is_next or begins:
            self.cut = Cut(self._at)
        if item_here is not None or self._is_after_gap:
            self._item = item_here


def _counts_on(item: re.Match[str], following: re.Match[str]) -> bool:
    """Whether an item that begins a list of its own has the number that it would have in the list before."""
    number, next_number = item[1], following[1]
    if number is None or next_number is None:
        return number is next_number
    return int(next_number) == int(number) + 1


def _can_end(line: str) -> bool:
    return bool(line) and not line.lstrip().startswith("|") and not line.endswith("|") and not _RULE.match(line)
