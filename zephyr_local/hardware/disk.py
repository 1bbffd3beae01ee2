"""The disk that a file would be written to."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from zephyr_local.errors import OutputError


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system that a path is on, or would be."""

    folder: Path
    """The path, or the nearest above it that exists."""
    total_bytes: int
    free_bytes: int
    """What this user can have of it."""
    is_writable: bool
    """Whether this user may write into ``folder``."""


def disk_of(path: Path) -> Disk:
    """The disk of a path that need not exist yet. Raises OutputError where the system does not tell."""
    import shutil  # some milliseconds, which an engine need not wait for

    absolute = path.absolute()
    reason = ""
    for folder in (absolute, *absolute.parents):
        try:
            usage = shutil.disk_usage(folder)
        except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a null character
            reason = reason or str(error)
            continue
        except OSError as error:
            reason = error.strerror or str(error)
            break
        return Disk(folder, usage.total, usage.free, os.access(folder, os.W_OK))
    raise OutputError(f"the disk of {path} cannot be asked: {reason}", "Check the path and its permissions")
