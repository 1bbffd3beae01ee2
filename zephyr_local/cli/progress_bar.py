"""How far a conversion is, on stderr: on a terminal a bar with bytes, rate and time left, else a line a step."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from zephyr_local.cli.notice import as_line, show_notice

if TYPE_CHECKING:
    from zephyr_local.quantize.progress import Progress

_COMPILING = "compiling the encoders of these types, once on this machine"


@dataclass(frozen=True, slots=True)
class Display:
    """What to give as ``on_progress`` and ``on_notice``."""

    update: Callable[[Progress], None]
    note: Callable[[str], None]


@contextmanager
def progress_display() -> Iterator[Display]:
    """Shows how far a conversion is, until it ends."""
    if sys.stderr.isatty():
        with _bar() as display:
            yield display
    else:
        yield Display(_line_a_step(), show_notice)


@contextmanager
def _bar() -> Iterator[Display]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

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

        def end_compiling() -> None:
            if compiling.live.is_started:
                compiling.stop()
                bar.start()

        def note(notice: str) -> None:
            end_compiling()
            console.print(Text(as_line(notice)), soft_wrap=True)  # above the bar; the terminal breaks the line

        def update(progress: Progress) -> None:
            nonlocal stage
            if progress.stage == "compile":
                bar.stop()  # one display at a time
                compiling.start()
                return
            end_compiling()
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
            yield Display(update, note)
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
