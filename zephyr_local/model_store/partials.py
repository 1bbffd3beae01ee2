"""Files that have come in part: named by their digest, so whoever wants the same file goes on with them.

``DIGEST`` holds the bytes from the beginning, ``DIGEST.json`` says what they are of, and ``DIGEST.lock`` is there while
a process works on them. Only the bytes matter: with the note gone or damaged, a download still goes on.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final

from zephyr_local.errors import HubError, InvalidInputError, OutputError
from zephyr_local.folder_sync import sync_folder
from zephyr_local.model_store.file_lock import file_lock, is_held
from zephyr_local.model_store.hub import HubFile, HubSnapshot, check_file_path, parse_repository

READ_BYTES: Final = 1 << 20
DISK_MARGIN_BYTES: Final = 64 << 20
"""What a download leaves free."""

_DIGEST: Final = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")
_MOST_NOTE_BYTES: Final = 1 << 16
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class Partial:
    """A download that was not finished. What its note does not say is None."""

    digest: str
    """SHA-256, or git's SHA-1 of a small file."""
    repository: str | None
    commit: str | None
    path: str | None
    """Below the repository."""
    size_bytes: int | None
    """Of the whole file."""
    there_bytes: int
    date: datetime | None
    """When it was last begun or taken up."""
    file: Path


class PartialFile:
    """The bytes of one partial file, open and locked; what the disk refuses is an OutputError."""

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        self.path = path
        self._stream = stream
        self.size_bytes = os.fstat(stream.fileno()).st_size
        self._is_ended = False

    def pieces(self) -> Iterator[bytes]:
        """What is there, from the beginning; afterwards :meth:`append` goes on from its end."""
        with self._told():
            self._stream.seek(0)
            while piece := self._stream.read(READ_BYTES):
                yield piece

    def append(self, data: bytes) -> None:
        """Hand bytes to the system, all of them, before anything else happens: a kill loses none."""
        with self._told():
            rest = memoryview(data)
            while rest:
                n_bytes = self._stream.write(rest)  # unbuffered, so it may take fewer
                self.size_bytes += n_bytes
                rest = rest[n_bytes:]

    def cut(self, size_bytes: int) -> None:
        """Keep the first bytes alone."""
        with self._told():
            self._stream.truncate(size_bytes)
            self._stream.seek(size_bytes)
            self.size_bytes = size_bytes

    def require_room(self, n_bytes: int) -> None:
        """Raises OutputError where the disk has no room for so many bytes more."""
        with self._told():
            free = shutil.disk_usage(self.path.parent).free
        missing = n_bytes + DISK_MARGIN_BYTES - free
        if missing > 0:
            raise OutputError(
                f"the disk of {self.path.parent} has {amount(free)} free; {amount(n_bytes)} are still to come, and "
                f"{amount(DISK_MARGIN_BYTES)} stay free, so {amount(missing)} are missing",
                "Free them, or choose another folder; what has come is kept",
            )

    def finish(self, target: Path) -> None:
        """Put the whole file at its name, where it is whole or absent; what was there before is replaced."""
        with self._told():
            os.fsync(self._stream.fileno())
            self._stream.close()
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                self.path.replace(target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                _copy_whole(self.path, target)
        except OSError as error:
            raise OutputError(
                f"{target} cannot be written: {error.strerror}",
                "Check its folder and who uses the file; the download is whole and kept, and the same command ends it",
            ) from None
        sync_folder(target.parent)
        self._is_ended = True
        with contextlib.suppress(OSError):  # the file has its name, so nothing has failed
            _remove(self.path)

    def discard(self) -> None:
        """Leave nothing of it."""
        self._is_ended = True
        self._stream.close()
        with self._told():
            _remove(self.path)

    def close(self) -> None:
        """Keep what is there, if anything is."""
        if not self._is_ended:
            self._stream.close()
            if self.size_bytes == 0:
                with contextlib.suppress(OSError):
                    _remove(self.path)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                there = amount(self.size_bytes)
                problem = f"the disk of {self.path.parent} takes no more ({error.strerror}); {there} are there"
                remedy = "Free some of it, and run the same command again: it goes on from there"
            else:
                problem = f"{self.path} cannot be read or written: {error.strerror}"
                remedy = "Check its folder, its permissions and the disk; what has come is kept"
            raise OutputError(problem, remedy) from None


@contextlib.contextmanager
def open_partial(folder: Path, snapshot: HubSnapshot, file: HubFile) -> Iterator[PartialFile]:
    """The partial of a file, new or from before, for this process alone.

    Raises OutputError where another process has it, or the folder cannot be written.
    """
    if not _DIGEST.fullmatch(file.digest):
        raise HubError(f"the hub gives no digest of {file.path}", "Fetch that file by other means, and with care")
    path = folder / file.digest
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(file_lock(_lock_path(path), file.path))
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
            partial = PartialFile(path, os.fdopen(descriptor, "r+b", buffering=0))
            stack.callback(partial.close)
            with contextlib.suppress(OSError):  # nothing hangs on it
                _write_note(path, snapshot, file)
        except OSError as error:
            raise OutputError(
                f"{folder} cannot be written: {error.strerror}", "Check its permissions and the disk, or choose another"
            ) from None
        yield partial


def list_partials(folder: Path) -> tuple[Partial, ...]:
    """What lies in a folder of partial files, the latest first; nothing where there is no folder."""
    try:
        paths = [path for path in folder.iterdir() if _DIGEST.fullmatch(path.name)]
    except OSError:
        return ()
    found = []
    for path in paths:
        with contextlib.suppress(OSError):  # gone in between
            found.append(_read_partial(path))
    oldest = datetime.min.replace(tzinfo=UTC)
    return tuple(sorted(found, key=lambda partial: (partial.date or oldest, partial.digest), reverse=True))


def is_downloading(partial: Partial) -> bool:
    """Whether a process works on it now."""
    return is_held(_lock_path(partial.file))


def remove_partial(partial: Partial) -> None:
    """Remove a partial file and its note. Raises OutputError where a process works on it, or that is refused."""
    try:
        with file_lock(_lock_path(partial.file), partial.path or partial.digest):
            _remove(partial.file)
    except FileNotFoundError:  # the folder is gone
        return
    except OSError as error:
        raise OutputError(
            f"{partial.file} cannot be removed: {error.strerror}", "Check its folder's permissions"
        ) from None


def forget_partial(folder: Path, digest: str) -> None:
    """Remove what is left of a download whose file is whole elsewhere, as far as that can be done."""
    path = folder / digest
    with contextlib.suppress(OSError, OutputError):
        if path.exists() or _note_path(path).exists():
            with file_lock(_lock_path(path), digest):
                _remove(path)


def amount(n_bytes: int) -> str:
    """Bytes as a person reads them, in powers of ten as disks and downloads are sold."""
    if n_bytes >= 10**9:
        return f"{n_bytes / 10**9:.2f} GB"
    return f"{n_bytes / 10**6:.1f} MB" if n_bytes >= 10**6 else f"{n_bytes} bytes"


def _read_partial(path: Path) -> Partial:
    there_bytes, note = path.stat().st_size, _read_note(path)
    repository, commit, hub_path, size_bytes = (note.get(key) for key in ("repository", "commit", "path", "size_bytes"))
    return Partial(
        path.name,
        repository if isinstance(repository, str) and _is_valid(parse_repository, repository) else None,
        commit if isinstance(commit, str) and _DIGEST.fullmatch(commit) else None,
        hub_path if isinstance(hub_path, str) and _is_valid(check_file_path, hub_path) else None,
        size_bytes if isinstance(size_bytes, int) and not isinstance(size_bytes, bool) and size_bytes >= 0 else None,
        there_bytes,
        _parse_date(note.get("date")),
        path,
    )


def _is_valid(check: Any, text: str) -> bool:  # noqa: ANN401
    try:
        check(text)
    except InvalidInputError:
        return False
    return True


def _parse_date(value: object) -> datetime | None:
    try:
        date = datetime.fromisoformat(value) if isinstance(value, str) else None
        return date.astimezone(UTC) if date is not None else None
    except (ValueError, OverflowError):
        return None


def _read_note(path: Path) -> dict[str, Any]:
    try:
        with _note_path(path).open("rb") as stream:
            note = json.loads(stream.read(_MOST_NOTE_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return note if isinstance(note, dict) else {}


def _write_note(path: Path, snapshot: HubSnapshot, file: HubFile) -> None:
    note = {
        "repository": snapshot.repository,
        "commit": snapshot.commit,
        "path": file.path,
        "size_bytes": file.size_bytes,
        "sha256": file.sha256,
        "git_blob": file.git_blob,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    temporary = _temporary_path(path)
    temporary.write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
    temporary.replace(_note_path(path))


def _copy_whole(source: Path, target: Path) -> None:
    """For a target on another disk: the copy, too, is whole or absent."""
    temporary = target.with_name(f".{target.name}.copying")
    try:
        with source.open("rb") as read, temporary.open("wb") as written:
            shutil.copyfileobj(read, written, READ_BYTES)
            written.flush()
            os.fsync(written.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _remove(path: Path) -> None:
    # The note last: without its bytes it is nothing, and bytes without a note cannot be told from others.
    for each in (path, _temporary_path(path), _note_path(path)):
        each.unlink(missing_ok=True)


def _note_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _temporary_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json.new")


def _lock_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")
