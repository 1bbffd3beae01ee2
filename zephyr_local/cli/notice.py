"""What a conversion says besides its outcome."""

from __future__ import annotations

import click

from zephyr_local.repl.screen import visible


def as_line(notice: str) -> str:
    """A notice as people see it."""
    return f"note: {visible(notice)}"


def show_notice(notice: str) -> None:
    """A notice, on stderr."""
    click.echo(as_line(notice), err=True)
