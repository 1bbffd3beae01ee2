"""What is remembered of files: it outlives processes, is its user's alone, and counts while a file is as it was."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from zephyr_local.errors import OutputError
from zephyr_local.model_store import registry as registry_module
from zephyr_local.model_store.registry import FileRecord, Registry, all_recorded, recorded, registry_path

SHA256 = "0123456789abcdef" * 4
ROOT = Path(__file__).resolve().parents[2]
posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes and names")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a registry is to be."""
    return tmp_path / "data" / "models.sqlite3"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "a model é.gguf"
    path.write_bytes(b"GGUF and more")
    return path


def record_of(path: Path, /, **changes: object) -> FileRecord:
    status = path.stat()
    made = FileRecord(
        path, status.st_size, status.st_mtime_ns, SHA256, "hub", "org/zephyr", "c" * 40, "mit", 1.5, "zephyr-local pull"
    )
    return replace(made, **changes)  # type: ignore[arg-type]


class TestRemembering:
    def test_a_record_comes_back_as_it_was(self, file, model):
        whole = record_of(model)
        with Registry(file) as registry:
            registry.record(whole)
            assert registry.of(model) == whole
        with Registry(file) as registry:
            assert registry.of(model) == whole
            assert registry.records() == [whole]

    def test_what_nobody_told_stays_untold(self, file, model):
        bare = record_of(model, source="verify", repository=None, revision=None, licence=None)
        with Registry(file) as registry:
            registry.record(bare)
            assert registry.of(model) == bare

    def test_a_second_record_replaces_the_first_of_the_same_path(self, file, model):
        with Registry(file) as registry:
            registry.record(record_of(model))
            later = record_of(model, sha256="f" * 64, repository=None)
            registry.record(later)
            assert registry.records() == [later]

    def test_records_are_by_path(self, file, model):
        with Registry(file) as registry:
            for name in ("c", "a", "b"):
                registry.record(record_of(model, path=Path("/models").absolute() / name))
            assert [record.path.name for record in registry.records()] == ["a", "b", "c"]

    def test_a_relative_path_is_the_file_that_it_was(self, file, model, monkeypatch):
        monkeypatch.chdir(model.parent)
        with Registry(file) as registry:
            registry.record(record_of(Path(model.name)))
            (model.parent / "elsewhere").mkdir()
            monkeypatch.chdir("elsewhere")
            assert registry.of(model) == record_of(model)
            assert registry.of(Path(model.name)) is None
            registry.forget(Path("..", model.name).resolve())
            assert registry.records() == []

    def test_what_is_forgotten_is_gone_and_the_rest_is_not(self, file, model):
        other = model.with_name("other.gguf")
        with Registry(file) as registry:
            registry.record(record_of(model))
            registry.record(record_of(model, path=other))
            registry.forget(model)
            registry.forget(model.with_name("never there"))
            assert registry.of(model) is None
            assert [record.path for record in registry.records()] == [other]

    @pytest.mark.parametrize("name", ["a'; DROP TABLE files; --", "%_*?", "a\nb", "日本", "x" * 10_000, "\x1b[2J"])
    def test_any_name_is_only_a_name(self, file, model, name):
        strange = record_of(model, path=model.parent / name, command=f"zephyr-local pull {name}")
        with Registry(file) as registry:
            registry.record(strange)
            assert registry.of(strange.path) == strange

    @posix
    def test_a_name_that_is_no_unicode(self, file, model):
        path = model.with_name(os.fsdecode(b"\xff\xfe.gguf"))
        strange = record_of(model, path=path, command=f"zephyr-local models verify {path}")
        with Registry(file) as registry:
            registry.record(strange)
            assert registry.of(path) == strange
            assert registry.records() == [strange]
            registry.forget(path)
            assert registry.records() == []

    def test_templates_that_were_shown(self, file):
        with Registry(file) as registry:
            assert not registry.was_shown(SHA256)
            registry.mark_shown(SHA256, 1.0)
            registry.mark_shown(SHA256, 2.0)
            assert registry.was_shown(SHA256)
            assert not registry.was_shown("f" * 64)
        with Registry(file) as registry:
            assert registry.was_shown(SHA256)


class TestWhetherItCounts:
    def test_it_counts_for_the_file_as_it_was(self, file, model):
        with Registry(file) as registry:
            registry.record(record_of(model))
        assert recorded(model, file) == record_of(model)

    @pytest.mark.parametrize("change", ["size", "time", "gone", "a folder", "another file"])
    def test_it_does_not_once_the_file_changed(self, file, model, change):
        with Registry(file) as registry:
            registry.record(record_of(model))
        before = model.stat()
        if change == "size":
            with model.open("ab") as stream:
                stream.write(b"!")
            os.utime(model, ns=(before.st_atime_ns, before.st_mtime_ns))
        elif change == "time":
            os.utime(model, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
        else:
            model.unlink()
            if change == "a folder":
                model.mkdir()
            elif change == "another file":
                model.write_bytes(b"GGUF but other")
        assert recorded(model, file) is None
        with Registry(file) as registry:
            assert registry.of(model) is not None, "what was recorded can still be told"

    def test_it_counts_through_a_link_as_long_as_the_file_is_the_same(self, file, model):
        link = model.with_name("link.gguf")
        with contextlib.suppress(OSError):
            link.symlink_to(model)
        if not link.is_symlink():
            pytest.skip("no links here")
        with Registry(file) as registry:
            registry.record(record_of(link))
        assert recorded(link, file) == record_of(link)
        assert recorded(model, file) is None, "it was recorded by the link's name"
        link.unlink()
        link.symlink_to(model.with_name("nowhere"))
        assert recorded(link, file) is None

    @pytest.mark.parametrize("name", ["nu\0l", "x" * 10_000, "gone", "\ud800"])
    def test_a_path_that_cannot_be_is_no_file(self, model, name):
        assert not record_of(model).counts_for(model.parent / name)


class TestWhereThereIsNone:
    def test_asking_makes_nothing(self, file, model, tmp_path):
        assert recorded(model, file) is None
        assert not file.parent.exists()
        (tmp_path / "data").mkdir()
        assert recorded(model, file) is None
        assert list(file.parent.iterdir()) == []

    def test_asking_for_the_users_own_makes_nothing(self, home, model):
        assert recorded(model) is None
        assert all_recorded() == {}
        assert list(home.iterdir()) == []

    def test_the_users_own_is_in_the_folder_of_data(self, home, model):
        with Registry() as registry:
            registry.record(record_of(model))
        assert registry_path().is_relative_to(home)
        assert registry_path().is_file()
        assert recorded(model) == record_of(model)
        assert all_recorded() == {model: record_of(model)}

    @posix
    def test_a_link_that_leads_nowhere_is_no_registry(self, file, model):
        file.parent.mkdir()
        file.symlink_to(file.with_name("nowhere"))
        assert recorded(model, file) is None
        assert not file.exists()


@posix
class TestPermissions:
    def test_file_and_folder_are_the_owners_alone(self, file, model):
        before = os.umask(0)
        try:
            with Registry(file) as registry:
                registry.record(record_of(model))
                modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in file.parent.iterdir()}
        finally:
            os.umask(before)
        assert modes.pop(file.name) == 0o600
        assert set(modes.values()) <= {0o600}, "what SQLite lays beside it"
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700

    def test_one_that_others_could_read_no_longer_is(self, file):
        with Registry(file):
            pass
        file.chmod(0o644)
        with Registry(file):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600


class TestDamage:
    @pytest.mark.parametrize("data", [b"not a database", b"SQLite format 3\0" + b"\xff" * 5000, b"\0" * 4096])
    def test_what_is_no_database_is_told_and_left(self, file, model, data):
        file.parent.mkdir()
        file.write_bytes(data)
        with pytest.raises(OutputError, match=r"models\.sqlite3 cannot be used") as refused:
            Registry(file)
        assert "Move it away" in refused.value.remedy
        with pytest.raises(OutputError, match="cannot be used"):
            recorded(model, file)
        assert file.read_bytes() == data

    def test_an_empty_file_is_a_new_registry(self, file, model):
        file.parent.mkdir()
        file.touch()
        with Registry(file) as registry:
            registry.record(record_of(model))
            assert registry.of(model) == record_of(model)

    def test_pages_that_were_lost(self, file, model):
        with Registry(file) as registry:
            for number in range(20):
                registry.record(record_of(model, path=model.with_name(f"{number}.gguf"), command="x" * 2000))
        data = bytearray(file.read_bytes())
        data[4096:] = b"\xff" * (len(data) - 4096)
        file.write_bytes(data)
        with Registry(file) as registry, pytest.raises(OutputError, match="malformed") as refused:
            registry.records()
        assert "Move it away" in refused.value.remedy

    def test_one_of_a_newer_version_is_left_as_it_is(self, file, model):
        with Registry(file) as registry:
            registry.record(record_of(model))
        with contextlib.closing(sqlite3.connect(file)) as connection:
            connection.execute("PRAGMA user_version = 3")
        data = file.read_bytes()
        for _ in range(2):
            with pytest.raises(OutputError, match="was written by a newer zephyr-local"):
                Registry(file)
        assert file.read_bytes() == data

    @pytest.mark.parametrize("statement", ["CREATE TABLE files (path TEXT)", "PRAGMA user_version = 1"])
    def test_another_programs_database_gets_nothing_of_ours(self, file, statement):
        file.parent.mkdir()
        with contextlib.closing(sqlite3.connect(file)) as connection:
            connection.execute(statement)
        data = file.read_bytes()
        with pytest.raises(OutputError, match="is another program's database"):
            Registry(file)
        assert file.read_bytes() == data

    def test_a_table_that_was_changed_is_told(self, file, model):
        with Registry(file):
            pass
        with contextlib.closing(sqlite3.connect(file)) as connection:
            connection.execute("ALTER TABLE files DROP COLUMN licence")
            connection.commit()
        with Registry(file) as registry:
            for use in (registry.records, lambda: registry.of(model), lambda: registry.record(record_of(model))):
                with pytest.raises(OutputError, match="licence"):
                    use()

    def test_a_folder_of_its_name_is_refused(self, file):
        file.mkdir(parents=True)
        with pytest.raises(OutputError, match="is not a file"):
            Registry(file)

    def test_a_file_where_its_folder_is_to_be_is_refused(self, file):
        file.parent.write_bytes(b"")
        with pytest.raises(OutputError, match="is not a folder"):
            Registry(file)

    def test_a_full_disk_is_told_as_one(self, file, model):
        with Registry(file) as registry:
            n_pages = registry._connection.execute("PRAGMA page_count").fetchone()[0]
            registry._connection.execute(f"PRAGMA max_page_count = {n_pages}")
            with pytest.raises(OutputError, match="full") as refused:
                registry.record(record_of(model, command="x" * 100_000))
            assert "the disk" in refused.value.remedy
            registry.record(record_of(model))
            assert registry.of(model) == record_of(model)


@contextlib.contextmanager
def _held(file: Path) -> Iterator[None]:
    """As another process that is in the midst of writing."""
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield


class TestSeveralProcesses:
    def test_all_of_them_may_make_and_write_it_at_once(self, file, model):
        program = (
            "import sys\n"
            "from pathlib import Path\n"
            "from zephyr_local.model_store.registry import FileRecord, Registry\n"
            "file, name = Path(sys.argv[1]), sys.argv[2]\n"
            "print('ready', flush=True)\n"
            "sys.stdin.read()\n"
            "for number in range(25):\n"
            "    with Registry(file) as registry:\n"
            "        path = Path(f'/models/{name}-{number}').absolute()\n"
            "        registry.record(FileRecord(path, 1, 2, name * 64, 'hub', None, None, None, 1.0, 'pull'))\n"
            "        registry.mark_shown(f'{name}-{number}', 1.0)\n"
            "    with Registry(file.with_name(f'new-{number}')) as registry:\n"  # all make it at about the same time
            "        registry.mark_shown(name, 1.0)\n"
        )
        children = [
            subprocess.Popen(
                [sys.executable, "-c", program, str(file), name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
            for name in "abc"
        ]
        for child in children:
            assert child.stdout.readline() == "ready\n"
        for child in children:
            child.stdin.close()
            child.stdin = None
        for child in children:
            _, errors = child.communicate(timeout=120)
            assert child.returncode == 0, errors
        with Registry(file) as registry:
            names = [record.path.name for record in registry.records()]
            assert sorted(names) == sorted(f"{name}-{number}" for name in "abc" for number in range(25))
            assert all(record.sha256 == record.path.name[0] * 64 for record in registry.records())
            assert all(registry.was_shown(name) for name in names)
        for number in range(25):
            with Registry(file.with_name(f"new-{number}")) as registry:
                assert all(registry.was_shown(name) for name in "abc")

    def test_one_that_writes_too_long_is_told_and_is_no_damage(self, file, model, monkeypatch):
        monkeypatch.setattr(registry_module, "_BUSY_S", 0.05)
        with Registry(file) as registry:
            registry.record(record_of(model))
        with _held(file), pytest.raises(OutputError, match="locked") as refused:
            Registry(file)
        assert "try again" in refused.value.remedy
        assert "Move" not in refused.value.remedy
        assert recorded(model, file) == record_of(model)

    def test_a_killed_writer_leaves_it_as_it_was(self, file, model):
        with Registry(file) as registry:
            registry.record(record_of(model))
        program = (
            "import os, sqlite3, sys\n"
            "connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
            "connection.execute('PRAGMA cache_size = 1')\n"  # so that pages are written before the end
            "connection.execute('BEGIN')\n"
            "connection.execute('DELETE FROM files')\n"
            "connection.executemany('INSERT INTO shown_templates VALUES (?, 1)', [(str(n),) for n in range(20_000)])\n"
            "os._exit(9)\n"
        )
        done = subprocess.run([sys.executable, "-c", program, str(file)], check=False, timeout=120)
        assert done.returncode == 9
        assert file.with_name(f"{file.name}-journal").exists(), "it was killed in the midst of it"
        with Registry(file) as registry:
            assert registry.records() == [record_of(model)]
            assert not registry.was_shown("0")
