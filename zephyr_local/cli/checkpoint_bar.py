"""How far a checkpoint's pull is, on stderr: what comes and what is converted, which go on at once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zephyr_local.cli.notice import as_line
from zephyr_local.memory.plan import readable

if TYPE_CHECKING:
    from zephyr_local.model_store.pull import PullProgress
    from zephyr_local.quantize.progress import Progress


@dataclass(frozen=True, slots=True)
class CheckpointDisplay:
    """What to call with each step; ``fetch`` may be called by another thread than the rest."""

    fetch: Callable[[PullProgress], None]
    convert: Callable[[Progress], None]
    note: Callable[[str], None]


@contextmanager
def checkpoint_display() -> Iterator[CheckpointDisplay]:
    """On a terminal two bars, one above the other; else lines of both."""
    if sys.stderr.isatty():
        with _bars() as display:
            yield display
        return
    from zephyr_local.cli.progress_bar import progress_display
    from zephyr_local.cli.pull_bar import pull_bar

    with pull_bar() as fetch, progress_display() as display_of_conversion:
        yield CheckpointDisplay(fetch, display_of_conversion.update, display_of_conversion.note)


@contextmanager
def _bars() -> Iterator[CheckpointDisplay]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    console = Console(stderr=True)
    columns = (TextColumn("{task.description:7}", markup=False), BarColumn(), DownloadColumn())
    # Rate and time left are our own: rich's would count what is read again as fetched.
    pace_column = TextColumn("{task.fields[pace]}", markup=False)
    with RichProgress(*columns, pace_column, console=console, transient=True) as bars:
        fetching = bars.add_task("fetch", total=None, visible=False, pace="")
        converting = bars.add_task("", total=None, visible=False, pace="")
        trouble: str | None = None
        stage = ""

        def note(notice: str) -> None:
            console.print(Text(as_line(notice)), soft_wrap=True)

        def fetch(progress: PullProgress) -> None:
            nonlocal trouble
            if progress.trouble is not None and progress.trouble != trouble:
                note(progress.trouble)
            trouble = progress.trouble
            pace = _pace(progress.rate_bytes_s, progress.left_s)
            total = progress.total_bytes
            bars.update(fetching, completed=progress.done_bytes, total=total, visible=True, pace=pace)

        def convert(progress: Progress) -> None:
            nonlocal stage
            if progress.stage != stage:
                stage = progress.stage
                bars.reset(converting)  # or one that is as long as the last would count as finished
            bars.update(
                converting,
                description=progress.stage,
                completed=progress.done_bytes,
                total=progress.total_bytes or None,
                visible=progress.stage == "compile" or progress.total_bytes > 0,
                pace=_pace(progress.bytes_per_s, progress.remaining_s),
            )

        yield CheckpointDisplay(fetch, convert, note)


def _pace(rate_bytes_s: float | None, left_s: float | None) -> str:
    pace = f"{readable(int(rate_bytes_s))}/s" if rate_bytes_s else ""
    if left_s is None:
        return pace
    minutes, seconds = divmod(round(left_s), 60)
    return f"{pace}, {minutes}:{seconds:02} left"
