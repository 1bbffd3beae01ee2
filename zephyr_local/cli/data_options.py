"""What the commands of `zephyr-local data` share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

FILE = click.Path(path_type=Path)


def setting(*names: str, **given: Any) -> Callable[[Any], Any]:  # noqa: ANN401 — click's own options
    """An option whose default is the setting's, which is not repeated here: None leaves it."""
    return click.option(*names, default=None, **given)


def given_settings(values: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that were given."""
    return {name: value for name, value in values.items() if value not in (None, ())}


def progress() -> Callable[[int], object] | None:
    """Shows how many records are read, where somebody looks."""
    return _show_progress if sys.stderr.isatty() else None


def _show_progress(n_read: int) -> None:
    click.echo(f"\rread {n_read:,}\r", nl=False, err=True)
