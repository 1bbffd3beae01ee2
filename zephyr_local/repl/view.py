"""What the terminal chat writes: answers on stdout, and all that is ours on stderr."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable
from typing import Final, Protocol, TextIO

from zephyr_local.errors import ZephyrError
from zephyr_local.repl.screen import at_words, visible
from zephyr_local.repl.theme import Theme

_SLOW_S: Final = 0.5  # what takes less shows no bar
_BAR_CELLS: Final = 20


class AnswerView(Protocol):
    """Where an answer goes, piece by piece."""

    def feed(self, text: str) -> None: ...

    def close(self) -> None:
        """The answer is over: its last line ends."""


class View:
    """Two streams and how they are written to."""

    def __init__(self, theme: Theme, *, plain: bool, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self.theme, self.plain = theme, plain
        self._out, self._err = out or sys.stdout, err or sys.stderr
        self._status_shown = False

    def answer(self) -> AnswerView:
        """A place for one answer: rendered on a terminal, as it is elsewhere."""
        if not self._out.isatty():
            return _Raw(self.write, show_controls=False)
        if self.plain:
            return _Raw(self.write, show_controls=True)
        from zephyr_local.repl.markdown import MarkdownStream  # when the first answer comes: the prompt must not wait

        return MarkdownStream(
            self.write, theme=self.theme, width=self.columns, encoding=getattr(self._out, "encoding", None) or "utf-8"
        )

    def columns(self) -> int:
        """The terminal's width now: of the terminal itself, since COLUMNS may be what it was when a shell began."""
        for stream in (self._out, self._err):
            with contextlib.suppress(OSError, ValueError):
                if (columns := os.get_terminal_size(stream.fileno()).columns) > 0:
                    return columns
        return shutil.get_terminal_size().columns

    def write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()

    def note(self, text: str) -> None:
        """A line of ours about what happened."""
        self._line(text, self.theme.note)

    def error(self, error: ZephyrError, hint: str = "") -> None:
        """What went wrong, what to do, and what has become of the chat."""
        self._line(f"error: {error}{' ' if hint else ''}{hint}", self.theme.error)

    def text(self, text: str, *, indent: int = 0) -> None:
        """Lines that were asked for, such as a list; what does not fit a line goes on at the column ``indent``."""
        self._line(text, "", indent)

    def status(self, text: str) -> None:
        """A line on stderr that the next output replaces; on a terminal alone."""
        if self._err.isatty():
            self._err.write("\r\x1b[K" + visible(text)[: max(0, self.columns() - 1)])
            self._err.flush()
            self._status_shown = True

    def clear_status(self) -> None:
        if self._status_shown:
            self._err.write("\r\x1b[K")
            self._err.flush()
            self._status_shown = False

    def _line(self, text: str, style: str, indent: int = 0) -> None:
        self.clear_status()
        shown = _encodable(visible(text), getattr(self._err, "encoding", None) or "utf-8")
        if self._err.isatty():
            shown = at_words(shown, self.columns(), indent)
            shown = self.theme.paint(shown, style)
        self._err.write(shown + "\n")
        self._err.flush()


def _encodable(text: str, encoding: str) -> str:
    """``text`` as a terminal of another encoding than UTF-8 can show it."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.replace("…", "...").replace("→", "->").encode(encoding, "replace").decode(encoding)
    return text


class SlowBar:
    """Progress of one wait, shown where it lasts over half a second."""

    def __init__(self, view: View, label: str) -> None:
        self._view, self._label = view, label
        self._start_s = time.monotonic()

    def update(self, done: float, total: float, told: str = "") -> None:
        if time.monotonic() - self._start_s > _SLOW_S and total > 0:
            filled = round(_BAR_CELLS * min(1.0, done / total))
            bar = "#" * filled + "-" * (_BAR_CELLS - filled)
            self._view.status(f"{self._label} [{bar}] {done / total:4.0%} {told}".rstrip())

    def clear(self) -> None:
        self._view.clear_status()


class _Raw:
    """The answer as it comes, control characters shown where they would be obeyed."""

    def __init__(self, write: Callable[[str], object], *, show_controls: bool) -> None:
        self._write, self._show_controls = write, show_controls
        self._last = ""

    def feed(self, text: str) -> None:
        if text:
            self._write(visible(text) if self._show_controls else text)
            self._last = text

    def close(self) -> None:
        if not self._last.endswith("\n"):
            self.feed("\n")
