"""A repository's commits and files, and what the registry adds to what a place tells of a model."""

from __future__ import annotations

import pytest

from tests.model_store.library_fixtures import BETA, MIDDLE, OF_A_USER, OTHER, SMALL, hub_cache, refused, store
from tests.model_store.store_fixtures import COMMIT, OTHER_COMMIT, put
from zephyr_local.model_store.library import SEARCH_VARIABLE, models_here, resolve
from zephyr_local.model_store.registry import FileRecord, Registry, registry_path

pytestmark = OF_A_USER


class TestRevisionsAndFiles:
    def test_a_commit_or_its_beginning(self, home):
        older = hub_cache(home, "z.gguf", SMALL, commit=OTHER_COMMIT, ref="old")
        newer = hub_cache(home, "z.gguf", OTHER, commit=COMMIT)
        assert resolve(f"hf:{BETA}@{COMMIT}").path == newer
        assert resolve(f"hf:{BETA}@{OTHER_COMMIT[:7].upper()}").path == older
        assert resolve(f"hf:{BETA}/z.gguf@{OTHER_COMMIT[:12]}").path == older

    @pytest.mark.parametrize("revision", ["0", "012345", "f" * 40, COMMIT + "0", "old", "refs/pr/1", "v1.0"])
    def test_what_is_no_commit_that_is_here(self, home, revision):
        hub_cache(home, "z.gguf")
        error = refused(f"hf:{BETA}@{revision}")
        assert error.remedy == f"Get it: zephyr-local pull hf:{BETA}@{revision}"

    def test_without_a_file_and_a_type_mains_is_as_good_as_any(self, home):
        path = hub_cache(home, "z.gguf")
        assert resolve(f"hf:{BETA}").path == resolve(f"hf:{BETA}@main").path == path

    def test_a_file_in_a_folder_is_not_the_one_above_it(self, home):
        above = hub_cache(home, "z.gguf", SMALL)
        below = hub_cache(home, "sub/z.gguf", OTHER)
        assert resolve(f"hf:{BETA}/z.gguf").path == above
        assert resolve(f"hf:{BETA}/sub/z.gguf").path == below
        above.unlink()
        refused(f"hf:{BETA}/z.gguf")
        refused(f"hf:{BETA}/b/z.gguf")
        refused(f"hf:{BETA}/../z.gguf")

    def test_what_the_registry_knows_of_a_pulled_file_counts(self):
        path = store("z.gguf")
        refused(f"hf:{BETA}@{COMMIT}")
        status = path.stat()
        with Registry() as registry:
            rest = ("a" * 64, "hub", BETA, COMMIT, "mit", 1.0, "zephyr-local pull")
            registry.record(FileRecord(path, status.st_size, status.st_mtime_ns, *rest))
        found = resolve(f"hf:{BETA}@{COMMIT}")
        assert (found.path, found.model.revision, found.model.sha256) == (path, COMMIT, "a" * 64)
        path.write_bytes(MIDDLE)
        refused(f"hf:{BETA}@{COMMIT}")
        assert models_here().models[0].sha256 is None

    def test_the_registry_tells_the_repository_where_the_place_does_not(self, home, monkeypatch):
        path = put(home / "mine" / "z.gguf", SMALL)
        monkeypatch.setenv(SEARCH_VARIABLE, str(home / "mine"))
        status = path.stat()
        with Registry() as registry:
            rest = ("a" * 64, "hub", "org/z", COMMIT, None, 1.0, "zephyr-local pull")
            registry.record(FileRecord(path, status.st_size, status.st_mtime_ns, *rest))
        assert resolve(f"hf:org/z@{COMMIT}").path == path

    def test_a_record_of_another_repository_does_not_lend_its_commit(self):
        path = store("z.gguf")
        status = path.stat()
        with Registry() as registry:
            rest = ("a" * 64, "hub", "org/other", COMMIT, None, 1.0, "zephyr-local pull")
            registry.record(FileRecord(path, status.st_size, status.st_mtime_ns, *rest))
        assert (models_here().models[0].repository, models_here().models[0].revision) == (BETA, None)

    def test_a_damaged_registry_is_told_and_hides_no_model(self):
        path = store("z.gguf")
        put(registry_path(), b"not a database")
        assert resolve(BETA).path == path
        [notice] = models_here().notices
        assert "models.sqlite3 cannot be used" in notice

    def test_looking_makes_no_registry(self):
        store("z.gguf")
        resolve(BETA)
        assert not registry_path().exists()
