"""How many bytes of something are done, on stderr: on a terminal a bar with rate and time left, else a line a tenth."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click


@contextmanager
def byte_bar(what: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """Gives a function that takes how many more bytes are done."""
    if not sys.stderr.isatty():
        done, told = 0, -1

        def advance(n_bytes: int) -> None:
            nonlocal done, told
            done += n_bytes
            tenths = min(10, 10 * done // max(1, total_bytes))  # it may have grown since
            if tenths > told:
                told = tenths
                click.echo(f"{what} {10 * tenths:3}%", err=True)

        yield advance
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total_bytes)
        yield lambda n_bytes: bar.advance(task, n_bytes)
