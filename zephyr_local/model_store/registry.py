"""What is remembered of files: where each is from, what its digest was, which templates were shown. One SQLite file.

It is a memory and not the truth: a row counts while the file's size and time are those of the row.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from zephyr_local.errors import OutputError
from zephyr_local.user_folders import data_folder, make_private_file, make_private_folder

FILE_NAME: Final = "models.sqlite3"
_BUSY_S: Final = 10.0
_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS files (
    path TEXT PRIMARY KEY, size_bytes INTEGER NOT NULL, modified_ns INTEGER NOT NULL, sha256 TEXT NOT NULL,
    source TEXT NOT NULL, repository TEXT, revision TEXT, licence TEXT, recorded_s REAL NOT NULL, command TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS shown_templates (sha256 TEXT PRIMARY KEY, shown_s REAL NOT NULL) STRICT;
"""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What is known of one file."""

    path: Path
    size_bytes: int
    modified_ns: int
    sha256: str
    source: str
    """``hub``: the digest is the hub's, and the file had it; ``verify``: computed here, with nothing to compare it
    with; ``quantize``: computed here when the file was made."""
    repository: str | None
    revision: str | None
    """A commit."""
    licence: str | None
    recorded_s: float
    """Seconds since 1970."""
    command: str

    def counts_for(self, path: Path) -> bool:
        """Whether the file is still the one that was recorded, as far as size and time tell."""
        try:
            status = path.stat()
        except OSError:
            return False
        return (status.st_size, status.st_mtime_ns) == (self.size_bytes, self.modified_ns)


class Registry:
    """Several processes may use it at once; a context manager. Raises OutputError where its file cannot be used."""

    def __init__(self, path: Path | None = None) -> None:
        """Open it, made where it is missing; None: the user's own."""
        self.path = registry_path() if path is None else path
        make_private_folder(self.path.parent)
        make_private_file(self.path)
        with self._told():
            self._connection = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None)
        try:
            with self._told():
                version = self._connection.execute("PRAGMA user_version").fetchone()[0]
                if version > _VERSION:
                    raise OutputError(
                        f"{self.path} was written by a newer zephyr-local", "Use that one, or move the file away"
                    )
                self._connection.execute("PRAGMA journal_mode = WAL")
                self._connection.executescript(_SCHEMA + f"PRAGMA user_version = {_VERSION};")
        except BaseException:
            self._connection.close()
            raise

    def record(self, record: FileRecord) -> None:
        """Remember a file, in place of what was known of its path."""
        values = (
            *(str(record.path), record.size_bytes, record.modified_ns, record.sha256, record.source),
            *(record.repository, record.revision, record.licence, record.recorded_s, record.command),
        )
        with self._told():
            self._connection.execute(f"INSERT OR REPLACE INTO files VALUES ({', '.join('?' * len(values))})", values)

    def of(self, path: Path) -> FileRecord | None:
        """What was recorded of a path, whether or not it still counts."""
        with self._told():
            row = self._connection.execute("SELECT * FROM files WHERE path = ?", [str(path)]).fetchone()
        return None if row is None else _record(row)

    def records(self) -> list[FileRecord]:
        """All, by path."""
        with self._told():
            return [_record(row) for row in self._connection.execute("SELECT * FROM files ORDER BY path")]

    def forget(self, path: Path) -> None:
        with self._told():
            self._connection.execute("DELETE FROM files WHERE path = ?", [str(path)])

    def was_shown(self, template_sha256: str) -> bool:
        """Whether the user has seen a chat template."""
        with self._told():
            found = self._connection.execute("SELECT 1 FROM shown_templates WHERE sha256 = ?", [template_sha256])
            return found.fetchone() is not None

    def mark_shown(self, template_sha256: str, now_s: float) -> None:
        with self._told():
            self._connection.execute("INSERT OR IGNORE INTO shown_templates VALUES (?, ?)", [template_sha256, now_s])

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise OutputError(
                f"{self.path} cannot be used: {error}",
                "Move it away: what is known of where files are from is lost, the files are not",
            ) from None


def registry_path() -> Path:
    """The user's own registry; it need not exist."""
    return data_folder() / FILE_NAME


def recorded(path: Path, registry: Path | None = None) -> FileRecord | None:
    """What the registry knows of a file that is as it was; None too where there is no registry, which is not made."""
    file = registry_path() if registry is None else registry
    if not file.exists():
        return None
    with Registry(file) as opened:
        found = opened.of(path)
    return found if found is not None and found.counts_for(path) else None


def _record(row: tuple[object, ...]) -> FileRecord:
    path, *rest = row
    return FileRecord(Path(str(path)), *rest)  # type: ignore[arg-type]
