"""Paths and folders: what is a file is itself, what is none is told as one, and where models are looked for."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.gguf_builder import tiny_model
from tests.model_store import store_fixtures as stores
from tests.model_store.library_fixtures import BETA, OF_A_USER, SMALL, refused, store, user_file
from tests.model_store.place_fixtures import nobody
from tests.model_store.store_fixtures import put
from zephyr_local.errors import InvalidInputError
from zephyr_local.model_store.catalogue import read_catalogue
from zephyr_local.model_store.library import (
    SEARCH_VARIABLE,
    STORE_VARIABLE,
    existing_file,
    models_here,
    resolve,
    search_folders,
    store_folder,
)

pytestmark = OF_A_USER

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has neither such modes nor such names")


class TestPaths:
    @pytest.mark.parametrize(
        "name", ["z.gguf", "a model.gguf", "日本 é.GGUF", "a-b/c d.gguf", "no ending", "it's", "-x"]
    )
    def test_a_file_is_itself_whatever_its_name(self, name):
        put(Path(name), SMALL)
        found = resolve(name)
        assert (found.path, found.model, found.entry, found.notices) == (Path(name), None, None, ())
        assert resolve(str(Path(name).absolute())).path == Path(name).absolute()

    def test_a_tilde_is_the_users_home(self, home):
        path = put(home / "my models" / "z", SMALL)
        assert resolve("~/my models/z").path == path

    @posix
    def test_a_name_that_is_no_unicode(self):
        name = os.fsdecode(b"\xff.gguf")
        put(Path(name), SMALL)
        assert resolve(name).path == Path(name)

    @pytest.mark.parametrize("name", ["zephyr-7b-beta", "mine", "hf:a"])
    def test_a_file_goes_before_all_other_meanings(self, name):
        store("zephyr-7b-beta.Q4_K_M.gguf")
        user_file('[aliases]\nmine = "zephyr-7b-beta"\n')
        put(Path(name), SMALL)
        assert resolve(name).path == Path(name)

    def test_for_a_file_neither_settings_nor_places_are_read(self, home):
        user_file("damaged [")
        put(Path("z.gguf"), SMALL)
        assert resolve("z.gguf").path == Path("z.gguf")
        with pytest.raises(InvalidInputError, match=r"models\.toml"):
            resolve("zephyr")

    @pytest.mark.parametrize(
        "name",
        ["gone.gguf", "./gone", "~/gone", "/gone/z", "a/b/c", "models/", "~nobody-of-this-name/z.gguf", "\ud800.gguf"],
    )
    def test_a_path_to_nothing_is_told_as_one(self, name):
        error = refused(name)
        assert error.problem == f"there is no file {name}"
        assert "zephyr-local models list" in error.remedy

    def test_a_link_that_leads_nowhere_is_no_file(self):
        stores.link(Path("z.gguf"), Path("gone"))
        assert refused("z.gguf").problem == "there is no file z.gguf"

    def test_a_file_is_no_folder(self):
        put(Path("z.gguf"), SMALL)
        assert refused("z.gguf/y.gguf").problem == "there is no file z.gguf/y.gguf"

    @posix
    def test_what_cannot_be_reached_is_not_called_missing(self, tmp_path):
        folder = put(tmp_path / "closed" / "z.gguf", SMALL).parent
        folder.chmod(0)
        try:
            with nobody():
                error = refused(str(folder / "z.gguf"))
        finally:
            folder.chmod(0o700)
        assert "cannot be reached: Permission denied" in error.problem
        assert "permissions" in error.remedy

    @pytest.mark.parametrize("name", ["./zephyr", "zephyr", "a/zephyr"])
    def test_a_folder_is_left_to_who_reads_it_where_nothing_else_has_the_name(self, name):
        Path(name).mkdir(parents=True)
        assert resolve(name).path == Path(name)
        assert existing_file(name) is None

    def test_a_folder_does_not_hide_a_model(self):
        path = store("zephyr-7b-beta.Q4_K_M.gguf")
        Path("zephyr-7b-beta").mkdir()
        assert resolve("zephyr-7b-beta").path == path


class TestFolders:
    def test_the_variables_and_the_users_files(self, home, monkeypatch):
        first, second, third = home / "a b", home / "é", home / "third"
        paths = [put(folder / f"m{n}.gguf", tiny_model(n_block=1, seed=n).build())
                 for n, folder in enumerate((first, second, third))]  # fmt: skip
        monkeypatch.setenv(SEARCH_VARIABLE, os.pathsep.join([str(first), "", "~/é"]))
        user_file(f'folders = ["{third.as_posix()}"]\n')
        assert search_folders(read_catalogue()) == (first, second, third)
        assert [resolve(f"m{n}").path for n in range(3)] == paths
        assert all(model.owner == "folder" for model in models_here().models)

    def test_one_that_is_not_there_is_told_and_stops_nothing(self, home, monkeypatch):
        monkeypatch.setenv(SEARCH_VARIABLE, os.pathsep.join(["/gone", "~nobody-of-this-name/x"]))
        path = store("zephyr.gguf")
        assert resolve("zephyr").path == path
        assert "/gone, a folder to search for models, is not there" in models_here().notices

    def test_the_store_moves_with_its_variable(self, home, monkeypatch):
        monkeypatch.setenv(STORE_VARIABLE, "~/big disk/models")
        assert store_folder() == home / "big disk" / "models"
        path = store("zephyr.gguf")
        assert path.is_relative_to(home / "big disk")
        assert resolve(BETA).path == path
        monkeypatch.setenv(STORE_VARIABLE, "")
        assert store_folder() == home / ".local/share/zephyr-local/models" or sys.platform != "linux"

    def test_what_is_being_pulled_is_no_model_yet(self):
        put(store_folder() / ".partial" / f"{'a' * 64}.gguf", SMALL)
        assert "There are no models on this machine yet" in refused("a" * 64).remedy
