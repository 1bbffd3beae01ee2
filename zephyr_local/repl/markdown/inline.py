"""What Markdown marks within a line, decided while it streams.

Nothing is held back but what a decision needs: code, links, autolinks and ``$…$`` until they are complete; ``*``, ``_``
and ``~~`` until their closer, the end of the line, or 32 characters, whichever comes first. An opener that has met
neither by then begins its style, and if it is never closed, the style ends with the paragraph and the marker is not
shown: that is the price of not waiting for the whole paragraph. Every other marker that turns out to mark nothing is
shown as it came.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from zephyr_local.repl.markdown.marks import (
    AUTOLINK,
    AUTOLINK_BEGUN,
    CLOSERS,
    LINK,
    LINK_BEGUN,
    MATH,
    PUNCTUATION,
    flanks,
    may_close,
    unescaped,
)
from zephyr_local.repl.theme import Theme

EMPHASIS_HOLD = 32
CODE_HOLD = 200
MATH_HOLD = 200
LINK_TEXT_HOLD = 200
LINK_HOLD = 1000
_DEPTH = 16  # openers that are open at a time
_LONGEST_RUN = CODE_HOLD

_SPECIAL = frozenset("\\`*_~[!<$")
_MATH_OPENERS = {"\\(": "\\)", "\\[": "\\]"}
_BEGIN, _END = "\\begin{", "\\end{"


class Sink(Protocol):
    """Where text goes: a wrapper of lines, or a list."""

    def put(self, text: str, style: str) -> None: ...

    def space(self, style: str, count: int = 1) -> None: ...

    def tab(self, style: str) -> None: ...


@dataclass(slots=True)
class _Opener:
    mark: str
    count: int


def join_styles(*styles: str) -> str:
    """One SGR parameter string of several."""
    return ";".join(style for style in styles if style)


class Inline:
    """The text of a paragraph, a heading or a cell, a character at a time, written to a sink as soon as it is clear."""

    def __init__(self, sink: Sink, theme: Theme, base: str = "") -> None:
        self._sink = sink
        self._theme = theme
        self._base = base
        self._style = base
        self._open: list[_Opener] = []
        self._held = ""
        self._before = " "  # the last character that was decided
        self._long_run = False  # the decided characters are a run too long to mark anything
        self._broken = False
        self._until = ""  # everything is text until this comes
        self._address = ""  # as much of "://" as came; complete within a bare URL, whose _ and ~ mark nothing
        self._steps: dict[str, Callable[[bool], int]] = {
            "\\": self._escape,
            "`": self._code,
            "*": self._delimiter,
            "_": self._delimiter,
            "~": self._delimiter,
            "[": self._link,
            "!": self._image,
            "<": self._autolink,
            "$": self._dollar,
        }

    @property
    def in_math(self) -> bool:
        """Whether LaTeX is open that may go on over the line's end."""
        return bool(self._until) and self._until[0] != "`"

    def feed(self, ch: str) -> None:
        if not self._held and ch not in _SPECIAL:
            self._plain(ch)
            return
        self._held += ch
        self._pump(False)

    def feed_all(self, text: str) -> None:
        """A text that is complete."""
        for ch in text:
            self.feed(ch)
        if self.end_line():
            self._plain("\\")

    def end_line(self) -> bool:
        """Decide all that is held back; True where a backslash ended the line, which was not written."""
        self._broken = False
        self._pump(True)
        self._before = " "
        self._address = ""
        if not self.in_math:
            self._until = ""
        return self._broken

    def _pump(self, at_end: bool) -> None:
        while self._held:
            taken = self._step(at_end)
            if not taken:
                return
            self._held = self._held[taken:]

    def _step(self, at_end: bool) -> int:
        """Decide the first of what is held; how many characters that took, 0: it takes more to decide."""
        first = self._held[0]
        if self._until:
            return self._verbatim(at_end)
        if self._long_run and first == self._before:
            self._plain(first)
            return 1
        self._long_run = False
        step = self._steps.get(first)
        if step is None:
            self._plain(first)
            return 1
        return step(at_end)

    def _plain(self, ch: str, style: str | None = None) -> None:
        style = self._style if style is None else style
        if ch == " ":
            self._sink.space(style)
            self._address = ""
        elif ch == "\t":
            self._sink.tab(style)
            self._address = ""
        else:
            self._sink.put(ch, style)
            if self._address != "://":
                self._address = self._address + ch if "://".startswith(self._address + ch) else ""
        self._before = ch

    def _literal(self, text: str, style: str | None = None) -> int:
        for ch in text:
            self._plain(ch, style)
        return len(text)

    def _run(self, at_end: bool) -> int:
        """The length of the run of one mark that is held first; 0: its end is not seen."""
        held = self._held
        count = len(held) - len(held.lstrip(held[0]))
        return 0 if count == len(held) and not at_end and count <= _LONGEST_RUN else count

    def _verbatim(self, at_end: bool) -> int:
        held, until = self._held, self._until
        if held[0] != until[0]:
            return self._literal(held[0])
        if until[0] == "`":
            count = self._run(at_end)
            if count == len(until):
                self._until = ""
            return self._literal(held[:count])
        if held.startswith(until):
            self._until = ""
            return self._literal(until)
        count = 2 if held[0] == "\\" else 1  # a backslash and what it escapes stay together
        if not at_end and (until.startswith(held) or len(held) < count):
            return 0
        return self._literal(held[:count])

    def _escape(self, at_end: bool) -> int:
        held = self._held
        if held == "\\" and at_end:
            self._broken = True
            return 1
        if _BEGIN.startswith(held) and held != _BEGIN and not at_end:
            return 0
        if held.startswith(_BEGIN):
            self._until = _END
            return self._literal(_BEGIN)
        pair = held[:2]
        if pair in _MATH_OPENERS:
            self._until = _MATH_OPENERS[pair]
            return self._literal(pair)
        if len(pair) == 2 and pair[1] in PUNCTUATION and pair[1] not in ")]":
            self._plain(pair[1])
            return 2
        return self._literal("\\")

    def _code(self, at_end: bool) -> int:
        held = self._held
        count = self._run(at_end)
        if not count:
            return 0
        if count > _LONGEST_RUN:
            self._long_run = True
            return self._literal(held[:count])
        close = re.compile(rf"(?<!`)`{{{count}}}(?!`)").search(held, count)
        if close and (close.end() < len(held) or at_end):
            content = held[count : close.start()]
            if content[0] == content[-1] == " " and content.strip(" "):
                content = content[1:-1]
            style = join_styles(self._style, self._theme.code)
            if not self._theme.code:
                content = f"{held[:count]}{content}{held[:count]}"
            self._literal(content, style)
            self._before = "`"
            return close.end()
        if at_end:
            return self._literal(held[:count])
        if len(held) - count > CODE_HOLD and not close:
            # It is code, most likely: let none of its characters be taken for marks.
            self._until = held[:count]
            return self._literal(held[:count])
        return 0

    def _delimiter(self, at_end: bool) -> int:
        held = self._held
        mark = held[0]
        count = self._run(at_end)
        if not count:
            return 0
        if count > 3 or (mark == "~" and count != 2) or (mark != "*" and self._address == "://"):
            self._long_run = True
            return self._literal(held[:count])
        after = held[count] if count < len(held) else " "
        opens, closes = flanks(mark, self._before, after)
        if not closes and may_close(self._before):
            closes = any(opener.mark == mark == "*" and opener.count == count for opener in self._open)
        if closes and self._close(mark, count):
            self._before = mark
            return count
        if not opens or len(self._open) >= _DEPTH:
            return self._literal(held[:count])
        if not CLOSERS[mark, count].search(held + "\n" if at_end else held, count):
            if at_end:
                return self._literal(held[:count])
            if len(held) - count <= EMPHASIS_HOLD:
                return 0
        self._open.append(_Opener(mark, count))
        self._restyle()
        self._before = mark
        return count

    def _close(self, mark: str, count: int) -> bool:
        """Close what a run of marks closes; False: nothing is open that it could."""
        left = count
        while left:
            found = self._match(mark, left)
            if found is None:
                break
            opener = self._open[found]
            used = min(left, opener.count)
            del self._open[found + 1 :]
            opener.count -= used
            if not opener.count:
                del self._open[found]
            left -= used
        if left == count:
            return False
        self._restyle()
        self._literal(mark * left)
        return True

    def _match(self, mark: str, count: int) -> int | None:
        """Of the openers, the one that a run closes: the last of its own length, else of three, else a shorter one."""
        found = [(index, opener.count) for index, opener in enumerate(self._open) if opener.mark == mark]
        same = [index for index, opened in found if opened == count]
        three = [index for index, opened in found if opened == 3]
        shorter = [index for index, opened in found if opened < count]  # a single star does not end a strong text
        candidates = same or three or shorter
        return candidates[-1] if candidates else None

    def _restyle(self) -> None:
        theme = self._theme
        counts = {opener.count for opener in self._open if opener.mark != "~"}
        self._style = join_styles(
            self._base,
            theme.strong if counts & {2, 3} else "",
            theme.emphasis if counts & {1, 3} else "",
            theme.strike if any(opener.mark == "~" for opener in self._open) else "",
        )

    def _link(self, at_end: bool) -> int:
        found = LINK.match(self._held)
        if found and (found[1].strip() or found[2]):
            self._show_link(found[1], found[2])
            return found.end()
        return 0 if not found and self._may_be_link(0, at_end) else self._literal("[")

    def _image(self, at_end: bool) -> int:
        held = self._held
        if held == "!" and not at_end:
            return 0
        found = LINK.match(held, 1)
        if found:
            text = unescaped(found[1])
            self._show_link(f"[image: {text}]" if text.strip() else "[image]", found[2], marked=False)
            return found.end()
        return 0 if held[1:2] == "[" and self._may_be_link(1, at_end) else self._literal("!")

    def _may_be_link(self, start: int, at_end: bool) -> bool:
        held = self._held
        if at_end or len(held) > LINK_HOLD or (len(held) > LINK_TEXT_HOLD and "](" not in held):
            return False
        return LINK_BEGUN.fullmatch(held, start) is not None

    def _show_link(self, text: str, destination: str, marked: bool = True) -> None:
        """A link as its text and its address, or as the address alone where the text says the same."""
        url = unescaped(destination.removeprefix("<").removesuffix(">"))
        style = join_styles(self._style, self._theme.link)
        if not text.strip() or url in (text, f"mailto:{text}"):
            self._literal(text if text.strip() else url, style)
            return
        if marked:
            Inline(self._sink, self._theme, style).feed_all(text)
        else:
            self._literal(text, style)
        if url:
            self._plain(" ", self._style)
            self._literal(f"({url})", join_styles(self._style, self._theme.url))
        self._before = ")"

    def _autolink(self, at_end: bool) -> int:
        held = self._held
        found = AUTOLINK.match(held)
        if found:
            self._literal(found[1], join_styles(self._style, self._theme.link))
            self._before = ">"
            return found.end()
        if not at_end and len(held) <= LINK_HOLD and AUTOLINK_BEGUN.fullmatch(held):
            return 0
        return self._literal("<")

    def _dollar(self, at_end: bool) -> int:
        held = self._held
        if len(held) == 1 and not at_end:
            return 0
        if held[1:2] == "$":
            self._until = "$$"
            return self._literal("$$")
        found = MATH.match(held + "\n" if at_end else held)
        if found:
            return self._literal(found[0])
        opens = held[1:2].strip() and not held[1].isdigit() and not self._before.isalnum()
        closed = "$" in held[1:-1]  # but not as it should be
        if opens and not closed and not at_end and len(held) <= MATH_HOLD:
            return 0
        return self._literal("$")
