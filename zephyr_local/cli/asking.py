"""What the commands that ask models share: their options, and how far they are."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zephyr_local.cli.data_options import FILE
from zephyr_local.repl.screen import visible

if TYPE_CHECKING:
    from zephyr_local.train.asking.session import Session
    from zephyr_local.train.asking.tally import Tally

_SECONDS_A_LINE = 10.0
_SECONDS_A_STROKE = 0.1


def asking_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--models``, ``--budget`` and ``--skip-failed``."""
    options = [
        click.option(
            "--models",
            "models_file",
            type=FILE,
            help="A TOML file with a table for each model: url, model, price, limits; see docs/feedback.md.",
        ),
        click.option(
            "--budget",
            type=click.FloatRange(0),
            metavar="DOLLARS",
            help="Ask nothing that could pass it; counts all that was ever asked in the folder.",
        ),
        click.option(
            "--skip-failed", is_flag=True, help="Go without the answers that no try brings, instead of ending."
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


@contextmanager
def asking(folder: Path, budget: float | None, skip_failed: bool) -> Iterator[Session]:
    """A session whose progress is shown, and which says what it came to, however it ends."""
    from zephyr_local.train.asking.session import Session

    shown = _Shown()
    with Session(folder, budget, shown.tell, skip_failed=skip_failed, on_interrupt=shown.interrupted) as session:
        try:
            yield session
        except KeyboardInterrupt:
            shown.clear()
            click.echo(f"Stopped. The same command goes on; the answers that came are in {folder}.", err=True)
            raise
        finally:
            shown.clear()
            for line in session.summary() if session.tallies else ():
                click.echo(visible(line), err=True)


class _Shown:
    """A line that is written over on a terminal, and a line now and then in a file."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._lock = threading.Lock()
        self._next_at = 0.0
        self._width = 0

    def tell(self, tally: Tally) -> None:
        with self._lock:
            now = time.monotonic()
            if now < self._next_at:
                return
            self._next_at = now + (_SECONDS_A_STROKE if self._terminal else _SECONDS_A_LINE)
            line = visible(tally.line())
            if self._terminal:
                line = line[: shutil.get_terminal_size().columns - 1]
                click.echo("\r" + line.ljust(self._width), nl=False, err=True)
                self._width = len(line)
            else:
                click.echo(line, err=True)

    def interrupted(self, n_under_way: int) -> None:
        self.clear()
        if n_under_way:
            what = "the request" if n_under_way == 1 else f"the {n_under_way:,} requests"
            click.echo(f"Waiting for {what} under way; Ctrl+C again leaves them.", err=True)

    def clear(self) -> None:
        with self._lock:
            if self._width:
                click.echo("\r" + " " * self._width + "\r", nl=False, err=True)
                self._width = 0
