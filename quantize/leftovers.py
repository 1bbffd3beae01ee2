"""What a run has beside its targets while it works, and how the next run settles it where this one was killed.

It stands in the target's folder, as the target's name, 16 hex digits and an ending:

- `.part`: what is being written.
- `.zephyr-old`: what stood at the target, until all files of the run have their names.
- `.zephyr-none`: empty; nothing stood at the target, which is a part of a model.

A model in parts goes through three states, one name at a time, so that no program opens parts of two runs as one:

1. Old. What stood there gets the ending `.zephyr-old`, the first part first.
2. Without its first part. The new parts get their names, the first part last.
3. New. What was kept is deleted, the first part's first.

Whether the first part is there therefore says what a killed run leaves to do: without it everything that was kept comes
back, the first part last, and with it everything that was kept goes. A run that fails in state 3 takes its first part
away and is in state 2. A model in one file has no state 2: the new file replaces the old one in one step, and
`.zephyr-old` is a second link of that. Where links cannot be made (FAT), it is not kept: what was replaced stays new.

The run holds locks on its files while it lives. A model of which a living run holds anything is left alone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows: there an open file can neither be deleted nor renamed, which serves as the lock
    fcntl = None  # type: ignore[assignment]

MARK = b"zephyr_local."
"""What the first kilobytes of every file that we write contain: keys of ours."""

WRITTEN, _OLD, _NONE = ".part", ".zephyr-old", ".zephyr-none"
_HEAD_BYTES = 1 << 16


def beside(target: Path, ending: str) -> Path:
    """A new name for something of this run beside a target."""
    return target.with_name(f"{target.name}.{secrets.token_hex(8)}{ending}")


def lock_written(path: Path, fd: int) -> bool:
    """Locks a new `.part`; False where another run has taken it for a leftover in the instant before."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return path.stat().st_ino == os.fstat(fd).st_ino
    except (BlockingIOError, FileNotFoundError):
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
            raise
        return True  # a file system without locks: leftovers stay there for the user to delete


class KeptFile:
    """What stands at `target`, kept until all files of a run have their names.

    `identity` is the device and inode of the new file, and `in_parts` whether it is one of several of a model.
    """

    def __init__(self, target: Path, identity: tuple[int, int], *, in_parts: bool) -> None:
        self._target = target
        self._identity = identity
        self._in_parts = in_parts
        self._replaces = False
        self._kept: Path | None = None
        self._lock: IO[bytes] | None = None

    def keep(self, *, overwrite: bool) -> None:
        """Keeps what stands at the target: a part under the other name alone, anything else under both."""
        exists = os.path.lexists(self._target)
        if exists and overwrite:
            self._replaces = True
            self._kept = beside(self._target, _OLD)
            self._keep_old(self._kept)
        elif self._in_parts and not exists:
            self._kept = beside(self._target, _NONE)
            self._kept.touch(exist_ok=False)

    def _keep_old(self, kept: Path) -> None:
        if self._in_parts:
            self._target.replace(kept)
        else:
            try:
                if self._target.is_symlink():
                    kept.symlink_to(self._target.readlink())
                else:
                    os.link(self._target, kept)
            except OSError:
                self._kept = None  # no links here (FAT, some network shares): it cannot be brought back
                return
        with contextlib.suppress(OSError):  # without this lock, those of the run's `.part` files remain
            # On Windows an open file cannot be replaced, under its other name either.
            if (fcntl is not None or self._in_parts) and kept.is_file():
                self._lock = kept.open("rb")
                if fcntl is not None:
                    fcntl.flock(self._lock, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def withdraw(self) -> None:
        """Deletes the new file where it has its name already."""
        with contextlib.suppress(FileNotFoundError):
            if identity_of(self._target.lstat()) == self._identity:
                self._target.unlink()

    def bring_back(self) -> None:
        """Takes back the new file's name and :meth:`keep`, as far as they were done."""
        self._unlock()
        if not self._replaces:
            self.withdraw()
        elif self._kept is not None and os.path.lexists(self._kept):
            self._kept.replace(self._target)
        if self._kept is not None:
            self._kept.unlink(missing_ok=True)  # still there where both names were links of one file

    def forget(self) -> None:
        """Deletes what was kept."""
        self._unlock()
        if self._kept is not None:
            self._kept.unlink(missing_ok=True)

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()


def bring_back(kept: Sequence[KeptFile]) -> None:
    """Brings back what was kept of a model, of its parts the first one last."""
    with contextlib.suppress(OSError):  # the next run does the rest
        if len(kept) > 1:
            kept[0].withdraw()
        for file in reversed(kept):
            file.bring_back()


def forget(kept: Sequence[KeptFile]) -> None:
    """Deletes what was kept of a model, of its parts the first one first."""
    with contextlib.suppress(OSError):  # the next run does the rest
        for file in kept:
            file.forget()


def identity_of(status: os.stat_result) -> tuple[int, int]:
    """Device and inode."""
    return status.st_dev, status.st_ino


def settle_leftovers(target: Path) -> None:
    """Makes what a killed run left of this target old or complete again, and deletes the rest of it.

    A `.part` counts as ours by its name and by our keys at its head (or by being empty: killed before the first write).
    What is held by a living run, or cannot be read, moved or deleted, stays.
    """
    stem = re.escape(target.name.removesuffix(".gguf"))  # also of runs that cut the model into other parts
    pattern = re.compile(rf"({stem})(?:-\d{{5}}(-of-\d{{5}}))?(\.gguf)?\.[0-9a-f]{{16}}({WRITTEN}|{_OLD}|{_NONE})")
    written: dict[Path, list[Path]] = {}
    kept: dict[Path, list[Path]] = {}
    with contextlib.suppress(OSError):  # a folder that cannot be listed is refused as a place for the output
        for path in sorted(target.parent.iterdir()):
            if match := pattern.fullmatch(path.name):
                name, of_parts, suffix, ending = match.groups(default="")
                first = target.with_name(f"{name}{of_parts and '-00001' + of_parts}{suffix}")
                (written if ending == WRITTEN else kept).setdefault(first, []).append(path)
    for first in written.keys() | kept.keys():
        held = [path for path in written.get(first, []) if _delete_or_find_held(path)]
        if not held and not any(map(_is_held, kept.get(first, []))):
            with contextlib.suppress(OSError):  # and stops there: the first part comes when all others have
                _settle(first, kept.get(first, []))


def is_being_written(path: Path) -> bool:
    """Whether a living run writes a `.part`."""
    return _is_held(path)


def _settle(first: Path, kept: Sequence[Path]) -> None:
    if os.path.lexists(first):
        for path in kept:
            path.unlink()
        return
    for path in reversed(kept):
        target = path.with_name(path.name.rsplit(".", 2)[0])
        if path.name.endswith(_OLD):
            path.replace(target)
            continue
        if target.is_file():
            with target.open("rb") as file:
                ours = _is_ours(file.read(_HEAD_BYTES))
            if ours:
                target.unlink()
        path.unlink()


def _is_held(path: Path) -> bool:
    """Whether a living process holds a lock on a file (or on what a link stands for), or none can be had."""
    try:
        if not path.is_file():  # a link to nothing
            return False
        if fcntl is None:
            path.rename(path)  # fails on Windows if the file is open
            return False
        with _open_for_lock(path) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def _delete_or_find_held(path: Path) -> bool:
    """Deletes a dead `.part` of ours; returns whether a living process holds it."""
    try:
        if path.is_symlink() or not path.is_file():
            return False
        with _open_for_lock(path) as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            head = file.read(_HEAD_BYTES)
            if head and not _is_ours(head):
                return False
            if fcntl is not None:
                path.unlink()  # under the lock, so that a writer which has just created it notices
                return False
        path.unlink()
    except OSError:
        return True
    return False


def _open_for_lock(path: Path) -> IO[bytes]:
    return path.open("r+b" if os.access(path, os.W_OK) else "rb")  # NFS locks only what is open for writing


def _is_ours(head: bytes) -> bool:
    return head.startswith(b"GGUF") and MARK in head
