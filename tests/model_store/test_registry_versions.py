"""A registry of an older version is brought to this one when it is opened, and what it remembers stays."""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from zephyr_local.model_store.registry import AlsoKnown, FileRecord, Registry, recorded

OF_VERSION_1 = (
    "CREATE TABLE files (path TEXT PRIMARY KEY, size_bytes INTEGER NOT NULL, modified_ns INTEGER NOT NULL, "
    "sha256 TEXT NOT NULL, source TEXT NOT NULL, repository TEXT, revision TEXT, licence TEXT, "
    "recorded_s REAL NOT NULL, command TEXT NOT NULL) STRICT",
    "CREATE TABLE shown_templates (sha256 TEXT PRIMARY KEY, shown_s REAL NOT NULL) STRICT",
    "PRAGMA application_id = 0x5A706872",
    "PRAGMA user_version = 1",
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the registry is."""
    return tmp_path / "data" / "models.sqlite3"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF and more")
    return path


def record_of(path: Path) -> FileRecord:
    status = path.stat()
    origin = ("hub", "org/zephyr", "c" * 40, "mit", 1.5, "zephyr-local pull")
    return FileRecord(path, status.st_size, status.st_mtime_ns, "ab" * 32, *origin)


def test_it_keeps_what_it_remembers_and_remembers_more(file: Path, model: Path) -> None:
    old = record_of(model)
    file.parent.mkdir()
    with contextlib.closing(sqlite3.connect(file)) as connection:
        for statement in OF_VERSION_1:
            connection.execute(statement)
        values = (str(old.path), old.size_bytes, old.modified_ns, old.sha256, old.source)
        more = (old.repository, old.revision, old.licence, old.recorded_s, old.command)
        connection.execute("INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*values, *more))
        connection.execute("INSERT INTO shown_templates VALUES ('a', 1)")
        connection.commit()
    for _ in range(2):
        with Registry(file) as registry:
            assert registry.records() == [old]
            assert registry.was_shown("a")
            assert registry.also_known() == []
    also = AlsoKnown(model, old.sha256, "org/repo", "c" * 40, "q8/model.gguf")
    with Registry(file) as registry:
        registry.record(replace(old, is_wrong=True))
        registry.record_also(also)
        registry.record_also(also)
    with Registry(file) as registry:
        assert registry.of(model) == replace(old, is_wrong=True)
        assert registry.also_known() == [also]
        registry.forget(model)
        assert (registry.records(), registry.also_known()) == ([], [])


def test_what_is_wrong_does_not_count_and_is_as_it_was(file: Path, model: Path) -> None:
    with Registry(file) as registry:
        registry.record(replace(record_of(model), is_wrong=True))
        found = registry.of(model)
    assert recorded(model, file) is None
    assert found.is_as_it_was(model)
