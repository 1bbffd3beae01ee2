"""How far a pull is, on stderr: on a terminal a bar with rate and time left, else a line a tenth."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from zephyr_local.cli.notice import as_line, show_notice
from zephyr_local.memory.plan import readable

if TYPE_CHECKING:
    from zephyr_local.model_store.pull import PullProgress


@contextmanager
def pull_bar() -> Iterator[Callable[[PullProgress], None]]:
    """Gives what to call with each step."""
    if sys.stderr.isatty():
        with _bar() as update:
            yield update
    else:
        yield _lines()


def _lines() -> Callable[[PullProgress], None]:
    told = -1
    trouble: str | None = None

    def update(progress: PullProgress) -> None:
        nonlocal told, trouble
        if progress.trouble is not None and progress.trouble != trouble:
            show_notice(progress.trouble)
        trouble = progress.trouble
        tenths = 10 * progress.done_bytes // max(1, progress.total_bytes)
        if tenths == told:
            return
        told = tenths
        rate = f", {readable(int(progress.rate_bytes_s))}/s" if progress.rate_bytes_s else ""
        left = f", {progress.left_s:.0f} s left" if progress.left_s is not None else ""
        click.echo(f"pull {10 * tenths:3}% of {readable(progress.total_bytes)}{rate}{left}", err=True)

    return update


@contextmanager
def _bar() -> Iterator[Callable[[PullProgress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
    from rich.text import Text

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
    # Rate and time left are the download's own: rich's would count a file that is read again as fetched.
    with Progress(*columns, TextColumn("{task.fields[pace]}", markup=False), console=console, transient=True) as bar:
        task = bar.add_task("", total=None, pace="")
        trouble: str | None = None

        def update(progress: PullProgress) -> None:
            nonlocal trouble
            if progress.trouble is not None and progress.trouble != trouble:
                console.print(Text(as_line(progress.trouble)), soft_wrap=True)
            trouble = progress.trouble
            pace = f"{readable(int(progress.rate_bytes_s))}/s" if progress.rate_bytes_s else ""
            if progress.left_s is not None:
                minutes, seconds = divmod(round(progress.left_s), 60)
                pace += f", {minutes}:{seconds:02} left"
            bar.update(
                task,
                description=progress.file[-40:],
                completed=progress.done_bytes,
                total=progress.total_bytes,
                pace=pace,
            )

        yield update
