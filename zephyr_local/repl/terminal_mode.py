"""How the terminal takes what is typed between two prompts."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

try:
    import termios
except ImportError:  # Windows: what is typed meanwhile is shown, and Enter is Enter
    termios = None  # type: ignore[assignment]


@contextlib.contextmanager
def quiet_input() -> Iterator[None]:
    """What is typed meanwhile waits for the next prompt: it is not shown in the middle of an answer, and every key
    stays what it is. A terminal otherwise makes a line feed of Enter (Ctrl+J, at our prompt), takes Ctrl+D away, and
    keeps no more than 4,095 bytes of a line."""
    if termios is None or sys.stdin is None or not sys.stdin.isatty():
        yield
        return
    descriptor = sys.stdin.fileno()
    before: list[Any] = termios.tcgetattr(descriptor)
    quiet = list(before)
    quiet[0] &= ~termios.ICRNL
    quiet[3] |= termios.NOFLSH  # Ctrl+C ends an answer, and throws nothing away that was typed for later
    quiet[3] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN)  # ISIG stays: Ctrl+C ends an answer
    quiet[6] = [*before[6]]
    quiet[6][termios.VMIN], quiet[6][termios.VTIME] = 1, 0
    with _mode(descriptor, quiet, before):
        yield


@contextlib.contextmanager
def usual_input() -> Iterator[None]:
    """Inside :func:`quiet_input`: the terminal as other programs expect it."""
    if termios is None or sys.stdin is None or not sys.stdin.isatty():
        yield
        return
    descriptor = sys.stdin.fileno()
    before: list[Any] = termios.tcgetattr(descriptor)
    usual = list(before)
    usual[0] |= termios.ICRNL
    usual[3] |= termios.ECHO | termios.ICANON | termios.IEXTEN
    with _mode(descriptor, usual, before):
        yield


@contextlib.contextmanager
def _mode(descriptor: int, mode: list[Any], before: list[Any]) -> Iterator[None]:
    termios.tcsetattr(descriptor, termios.TCSANOW, mode)
    try:
        yield
    finally:
        with contextlib.suppress(termios.error):  # the terminal is gone, and we are about to be
            termios.tcsetattr(descriptor, termios.TCSANOW, before)
