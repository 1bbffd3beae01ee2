"""The store's tables, and how an older store becomes one of this version."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from zephyr_local.errors import ChatStoreError

APPLICATION_ID: Final = 0x5A657068  # "Zeph": tells our files from other programs' databases

# What is applied from one version to the next; user_version counts them. A step that was released never changes.
MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        """CREATE TABLE chats (
            id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never given again
            title TEXT NOT NULL,
            created_s REAL NOT NULL,
            changed_s REAL NOT NULL,
            model TEXT,  -- the file's path; NULL: the bundled one
            system TEXT,
            policy TEXT NOT NULL,
            reserve_tokens INTEGER,
            leaf INTEGER  -- the answer that the current branch ends with
        )""",
        """CREATE TABLE turns (
            chat INTEGER NOT NULL REFERENCES chats (id) ON DELETE CASCADE,
            node INTEGER NOT NULL,
            parent INTEGER,
            role TEXT NOT NULL,
            content TEXT NOT NULL,
            state TEXT NOT NULL,  -- whole, writing, interrupted, length
            model TEXT,  -- its name; of answers alone
            created_s REAL NOT NULL,
            dropped INTEGER NOT NULL DEFAULT 0,  -- 1: the model is not shown what stands up to here
            summary TEXT,  -- but this
            PRIMARY KEY (chat, node)
        ) WITHOUT ROWID""",
        # An answer's pieces while it is written: to add to `content` would write all of it again each time.
        """CREATE TABLE pieces (
            chat INTEGER NOT NULL REFERENCES chats (id) ON DELETE CASCADE,
            node INTEGER NOT NULL,
            number INTEGER NOT NULL,
            text TEXT NOT NULL,
            PRIMARY KEY (chat, node, number)
        ) WITHOUT ROWID""",
    ),
    (
        "ALTER TABLE chats ADD COLUMN template TEXT",  # zephyr, or a file's path; NULL: the model's own
        "ALTER TABLE chats ADD COLUMN sampling TEXT NOT NULL DEFAULT '{}'",  # JSON: what was set in the chat
    ),
)
VERSION: Final = len(MIGRATIONS)


def prepare(connection: sqlite3.Connection, path: Path | None) -> None:
    """Make the tables, or bring those of an older version up to this one, wholly or not at all.

    Raises ChatStoreError as :func:`require_ours`.
    """
    if _version(connection) == VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        require_ours(connection, path)
        for statements in MIGRATIONS[_version(connection) :]:  # none are left where another process was sooner
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def require_ours(connection: sqlite3.Connection, path: Path | None) -> None:
    """Raises ChatStoreError for a store of a newer version and for another program's database; writes nothing."""
    version = _version(connection)
    application = int(connection.execute("PRAGMA application_id").fetchone()[0])
    is_empty = version == 0 and connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    if application != APPLICATION_ID and not is_empty:
        raise ChatStoreError(f"{path} is another program's database", "Give another file, or move this one away")
    if version > VERSION:
        raise ChatStoreError(
            f"the chats in {path} are of version {version}, and this release reads up to version {VERSION}",
            "Update zephyr-local, or chat with --no-save",
        )


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])
