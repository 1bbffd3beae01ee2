"""How far a conversion is, on stderr: on a terminal a bar with bytes, rate and time left, else a line a step."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from zephyr_local.quantize.progress import Progress

_COMPILING = "compiling the encoders for this machine (once)"


@contextmanager
def progress_display() -> Iterator[Callable[[Progress], None]]:
    """What to give as ``on_progress``."""
    if sys.stderr.isatty():
        with _bar() as update:
            yield update
    else:
        yield _line_a_step()


@contextmanager
def _bar() -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description:7}"),  # the stage: tensors' names would move the bar
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    compiling = RichProgress(TextColumn(_COMPILING), BarColumn(), console=console, transient=True)
    compiling.add_task("", total=None)  # a bar that moves without an end
    with RichProgress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None, visible=False)
        stage = ""

        def update(progress: Progress) -> None:
            nonlocal stage
            if progress.stage == "compile":
                bar.stop()  # one display at a time
                compiling.start()
                return
            if compiling.live.is_started:
                compiling.stop()
                bar.start()
            if progress.stage != stage:
                stage = progress.stage
                bar.reset(task)  # or one that is as long as the last would count as finished
            bar.update(
                task,
                description=progress.stage,
                completed=progress.done_bytes,
                total=progress.total_bytes,
                visible=progress.total_bytes > 0,
            )

        try:
            yield update
        finally:
            compiling.stop()


def _line_a_step() -> Callable[[Progress], None]:
    told: tuple[str, int] | None = None

    def update(progress: Progress) -> None:
        nonlocal told
        if progress.stage == "compile":
            click.echo(_COMPILING, err=True)
        if not progress.total_bytes:
            return  # nothing is known yet: what is wrong with the input shall stand alone
        tenths = 10 * progress.done_bytes // progress.total_bytes
        if (progress.stage, tenths) != told:
            told = (progress.stage, tenths)
            click.echo(f"{progress.stage} {10 * tenths:3}% {progress.tensor}".rstrip(), err=True)

    return update
