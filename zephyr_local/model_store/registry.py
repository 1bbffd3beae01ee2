"""What is remembered of files: where each is from, what its digest was, which templates were shown. One SQLite file.

It is a memory and not the truth: a row counts while the file's size and time are those of the row.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from zephyr_local.errors import OutputError
from zephyr_local.user_folders import data_folder, make_private_file, make_private_folder

FILE_NAME: Final = "models.sqlite3"
_BUSY_S: Final = 10.0
_APPLICATION_ID: Final = 0x5A706872  # "Zphr": tells our file from other programs' databases
_STEPS: Final = (  # from each version to the next, the first from nothing
    (
        """CREATE TABLE files (
            path TEXT PRIMARY KEY, size_bytes INTEGER NOT NULL, modified_ns INTEGER NOT NULL, sha256 TEXT NOT NULL,
            source TEXT NOT NULL, repository TEXT, revision TEXT, licence TEXT, recorded_s REAL NOT NULL,
            command TEXT NOT NULL
        ) STRICT""",
        "CREATE TABLE shown_templates (sha256 TEXT PRIMARY KEY, shown_s REAL NOT NULL) STRICT",
    ),
    (
        "ALTER TABLE files ADD COLUMN is_wrong INTEGER NOT NULL DEFAULT 0",
        """CREATE TABLE also_known (
            path TEXT NOT NULL, sha256 TEXT NOT NULL, repository TEXT NOT NULL, revision TEXT NOT NULL,
            file TEXT NOT NULL, PRIMARY KEY (path, repository, revision, file)
        ) STRICT""",
    ),
)
_VERSION: Final = len(_STEPS)
_COLUMNS: Final = (  # FileRecord's
    "path, size_bytes, modified_ns, sha256, source, repository, revision, licence, recorded_s, command, is_wrong"
)
_ALSO_COLUMNS: Final = "path, sha256, repository, revision, file"  # AlsoKnown's
_OF_THE_DISK: Final = frozenset(
    {sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM}
)


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
    is_wrong: bool = False
    """Whether it was read and has another digest than ``sha256``, which it must have."""

    def counts_for(self, path: Path) -> bool:
        """Whether the file is still the one that was recorded, as far as size and time tell, and not known as wrong."""
        return not self.is_wrong and self.is_as_it_was(path)

    def is_as_it_was(self, path: Path) -> bool:
        """Whether it has the size and the time that were recorded."""
        try:
            status = path.stat()
        except (OSError, ValueError):  # ValueError: no system would take the name
            return False
        return (status.st_size, status.st_mtime_ns) == (self.size_bytes, self.modified_ns)


@dataclass(frozen=True, slots=True)
class AlsoKnown:
    """A file that has the bytes of a repository's, wherever it lies itself."""

    path: Path
    sha256: str
    repository: str
    revision: str
    """A commit."""
    file: str
    """Below the repository."""


class Registry:
    """Several processes may use it at once; a context manager. Raises OutputError where its file cannot be used.

    A path is remembered as an absolute one, its links unresolved; a relative one counts from the current folder.
    SQLite's journal is the usual one: several processes that turn a new file to a write-ahead log at once are refused.
    """

    def __init__(self, path: Path | None = None) -> None:
        """Open it, made where it is missing; None: the user's own."""
        self.path = registry_path() if path is None else path
        make_private_folder(self.path.parent)
        make_private_file(self.path)
        with self._told():
            self._connection = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None)
        try:
            self._connection.text_factory = os.fsdecode  # a file's name need not be UTF-8
            with self._told():
                self._require_ours()  # before anything is written
                if self._pragma("user_version") < _VERSION:
                    self._make_tables()
        except BaseException:
            self._connection.close()
            raise

    def record(self, record: FileRecord) -> None:
        """Remember a file, in place of what was known of its path."""
        values = (
            *(_absolute(record.path), record.size_bytes, record.modified_ns, record.sha256, record.source),
            *(record.repository, record.revision, record.licence, record.recorded_s, record.command, record.is_wrong),
        )
        self._insert("files", _COLUMNS, values)

    def record_also(self, also: AlsoKnown) -> None:
        """Remember that a file is a repository's, too."""
        values = (_absolute(also.path), also.sha256, also.repository, also.revision, also.file)
        self._insert("also_known", _ALSO_COLUMNS, values)

    def also_known(self) -> list[AlsoKnown]:
        """All, by path, repository, revision and file."""
        with self._told():
            rows = self._connection.execute(f"SELECT {_ALSO_COLUMNS} FROM also_known ORDER BY 1, 3, 4, 5").fetchall()
        return [AlsoKnown(Path(path), *rest) for path, *rest in rows]

    def of(self, path: Path) -> FileRecord | None:
        """What was recorded of a path, whether or not it still counts."""
        where = [os.fsencode(_absolute(path))]
        with self._told():
            found = self._connection.execute(f"SELECT {_COLUMNS} FROM files WHERE path = CAST(? AS TEXT)", where)
            row = found.fetchone()
        return None if row is None else _record(row)

    def records(self) -> list[FileRecord]:
        """All, by path."""
        with self._told():
            rows = self._connection.execute(f"SELECT {_COLUMNS} FROM files ORDER BY path")
            return [_record(row) for row in rows]

    def forget(self, path: Path) -> None:
        """Remember a path no longer; that of which nothing is known is none the worse."""
        where = [os.fsencode(_absolute(path))]
        with self._told():
            for table in ("files", "also_known"):
                self._connection.execute(f"DELETE FROM {table} WHERE path = CAST(? AS TEXT)", where)

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

    def _insert(self, table: str, columns: str, values: Sequence[object]) -> None:
        places = ", ".join("CAST(? AS TEXT)" if isinstance(value, str) else "?" for value in values)
        encoded = [os.fsencode(value) if isinstance(value, str) else value for value in values]
        with self._told():
            self._connection.execute(f"INSERT OR REPLACE INTO {table} ({columns}) VALUES ({places})", encoded)

    def _require_ours(self) -> None:
        version = self._pragma("user_version")
        tables = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if self._pragma("application_id") != _APPLICATION_ID and (version or tables):
            raise OutputError(f"{self.path} is another program's database", "Move it away")
        if version > _VERSION:
            raise OutputError(f"{self.path} was written by a newer zephyr-local", "Use that one, or move the file away")

    def _make_tables(self) -> None:
        """All of them or none."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            version = self._pragma("user_version")
            if version < _VERSION:  # where no other process was sooner
                for statement in itertools.chain(*_STEPS[version:]):
                    self._connection.execute(statement)
                self._connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                self._connection.execute(f"PRAGMA user_version = {_VERSION}")
            self._connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # a full disk has ended it already
                self._connection.execute("ROLLBACK")
            raise

    def _pragma(self, name: str) -> int:
        return int(self._connection.execute(f"PRAGMA {name}").fetchone()[0])

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # the rest of it tells details
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                remedy = "Another process writes to it: try again"
            elif code in _OF_THE_DISK:
                remedy = f"Check {self.path.parent}, its permissions and the disk"
            else:
                remedy = "Move it away: what is known of where files are from is lost, the files are not"
            raise OutputError(f"{self.path} cannot be used: {error}", remedy) from None


def registry_path() -> Path:
    """The user's own registry; it need not exist."""
    return data_folder() / FILE_NAME


def recorded(path: Path, registry: Path | None = None) -> FileRecord | None:
    """What the registry knows of a file that is as it was; None too where there is no registry, which is not made."""
    file = registry_path() if registry is None else registry
    if not _is_there(file):
        return None
    with Registry(file) as opened:
        found = opened.of(path)
    return found if found is not None and found.counts_for(path) else None


def all_recorded() -> dict[Path, FileRecord]:
    """What the user's registry knows, by path, whether or not it still counts; nothing where there is none."""
    if not _is_there(registry_path()):
        return {}
    with Registry() as opened:
        return {record.path: record for record in opened.records()}


def all_also_known() -> list[AlsoKnown]:
    """What the user's registry knows of further names; nothing where there is none."""
    if not _is_there(registry_path()):
        return []
    with Registry() as opened:
        return opened.also_known()


def _is_there(registry: Path) -> bool:
    return os.path.exists(registry)  # noqa: PTH110 — Path.exists raises in a folder that is closed to this user


def _absolute(path: Path) -> str:
    return str(path.absolute())


def _record(row: tuple[object, ...]) -> FileRecord:
    path, *rest = row
    rest[-1] = bool(rest[-1])
    return FileRecord(Path(str(path)), *rest)  # type: ignore[arg-type]
