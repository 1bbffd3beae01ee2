"""One process at a time works on a file; a second one is told so at once."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from zephyr_local.errors import OutputError

_LOCKED_BYTE: Final = 1 << 30
"""On Windows, where a locked byte cannot be read: past the number of the process that holds it."""


@contextlib.contextmanager
def file_lock(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file at ``path``, which is made, and removed at the end; a killed process no longer holds it.

    Raises OutputError where another holds it, which "downloads ``what``", and OSError where it cannot be made.
    """
    descriptor = _take(path, what)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        if os.name == "nt":  # an open file cannot be removed there
            os.close(descriptor)
            with contextlib.suppress(OSError):
                path.unlink()
        else:
            with contextlib.suppress(OSError):
                path.unlink()
            os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether a process holds the lock file at ``path`` now."""
    try:
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    except OSError:  # there is none
        return False
    try:
        return not _lock(descriptor)
    finally:
        os.close(descriptor)


def _take(path: Path, what: str) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        try:
            if not _lock(descriptor):
                raise OutputError(
                    f"{_holder(descriptor)} downloads {what} now", "Wait for it, or end it: what it has got is kept"
                )
            if _has_name(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the one before has removed it in between


def _lock(descriptor: int) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows: what can be had without more packages
        import msvcrt

        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Some network file systems know no locks; two at once would be found out by the digest.
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def _has_name(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    with contextlib.suppress(OSError):
        number = os.read(descriptor, 20).decode(errors="replace")
        if number.isascii() and number.isdigit():
            return "this process" if int(number) == os.getpid() else f"the process {number}"
    return "another process"
