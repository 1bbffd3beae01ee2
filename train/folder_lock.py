"""One run at a time works in a folder."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from zephyr_local.errors import OutputError

LOCK_WAIT_S: Final = 3.0
"""A process that was killed with its command may take a moment to be gone."""


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[int]:
    """Hold a folder, which is made where it is not there; yields the descriptor, which a child process may inherit.

    Raises OutputError where another run works in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror}", "Choose another folder") from None
    try:
        _lock(descriptor, folder)
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: what can be had without more packages
        import msvcrt

        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            raise _busy(folder) from None
        return
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > deadline:
                raise _busy(folder) from None
            time.sleep(0.05)
        else:
            return


def _busy(folder: Path) -> OutputError:
    return OutputError(f"another run works in {folder}", "Wait for it, or end it, and start again")
