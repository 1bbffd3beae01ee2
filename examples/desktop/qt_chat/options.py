"""What the command line asks for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from zephyr_local import EngineSettings


@dataclass(frozen=True, slots=True)
class Options:
    """All of it."""

    model: str | None = None
    """Path or name; None: zephyr-tiny."""
    settings: EngineSettings = field(default_factory=EngineSettings)
    data_folder: Path | None = None
    """Where the last chat is kept; None: where the desktop keeps such data."""
    resumes: bool = True
    """Whether to go on with the last chat."""
    question: str | None = None
    """Of the self-test, if there is to be one."""
    screenshot: str | None = None
    """Where the self-test saves what the window showed."""
