"""From what a user typed to a file on this machine: which one, what is said of it, and what where there is none."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gguf_builder import split_model, tiny_model, write_parts
from tests.model_store import store_fixtures as stores
from tests.model_store.store_fixtures import COMMIT, OTHER_COMMIT, put
from tests.model_store.test_places import nobody
from zephyr_local import hardware
from zephyr_local.errors import InvalidInputError, ModelNotFoundError
from zephyr_local.gguf_split import read_model
from zephyr_local.hardware import Memory, read_cpu
from zephyr_local.memory.estimate import estimate_memory
from zephyr_local.memory.shape import shape_of
from zephyr_local.model_store.catalogue import catalogue_path, read_catalogue
from zephyr_local.model_store.library import (
    SEARCH_VARIABLE,
    STORE_VARIABLE,
    base_and_type,
    existing_file,
    matching,
    models_here,
    resolve,
    search_folders,
    store_folder,
    what_is_wanted,
    without_aliases,
)
from zephyr_local.model_store.registry import FileRecord, Registry, registry_path
from zephyr_local.settings import EngineSettings

SMALL, MIDDLE, LARGE = (tiny_model(n_block=n).build() for n in (1, 2, 3))
OTHER = tiny_model(n_block=1, seed=1).build()  # of SMALL's size
DAMAGED = LARGE[:-1000]
BETA = "TheBloke/zephyr-7B-beta-GGUF"
LONG = "x" * 10_000

pytestmark = pytest.mark.timeout(60)
posix = pytest.mark.skipif(os.name == "nt", reason="Windows has neither such modes nor such names")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is asked here, no socket is opened."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)


@pytest.fixture(autouse=True)
def _home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything here is of a user who has nothing but what the test gives; the current folder is empty."""
    folder = home / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)


def store(file: str, model: bytes = SMALL, repository: str = BETA) -> Path:
    return stores.put_in_store(store_folder(), model, repository, file)


def ollama(home: Path, name: str, tag: str, model: bytes = SMALL, **where: str) -> Path:
    return stores.put_in_ollama(home / ".ollama" / "models", model, name, tag, **where)


def hub_cache(home: Path, file: str, model: bytes = SMALL, **where: str) -> Path:
    return stores.put_in_hub_cache(home / ".cache/huggingface/hub", model, where.pop("repository", BETA), file, **where)


def user_file(text: str) -> None:
    put(catalogue_path(), text.encode())


def refused(name: str) -> ModelNotFoundError:
    with pytest.raises(ModelNotFoundError) as error:
        resolve(name)
    assert len(str(error.value)) < 2000
    return error.value


def needed_bytes(path: Path) -> int:
    """What the estimate says that a model takes, which its own tests compare with what it takes."""
    return estimate_memory(shape_of(read_model(path)), EngineSettings(), read_cpu().features).needed_bytes


@pytest.fixture
def have(monkeypatch: pytest.MonkeyPatch):
    """Give this machine so much memory; 0: it does not tell."""

    def have(available_bytes: int) -> None:
        monkeypatch.setattr(hardware, "read_memory", lambda: Memory(1 << 40, available_bytes, 1 << 40))

    return have


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


class TestImpossibleNames:
    @pytest.mark.parametrize("name", ["", " ", "\t\n", "\0", "zephyr\0", "/models/\0.gguf", "hf:a/b\0"])
    def test_empty_ones_and_those_with_a_nul_are_refused(self, name):
        store("zephyr.gguf")
        with pytest.raises(InvalidInputError, match="is empty or has a NUL"):
            resolve(name)

    @pytest.mark.parametrize("name", ["-", "_", ":", "---", "-._:"])
    def test_separators_alone_are_no_models_name(self, name):
        stores.put_in_gpt4all(store_folder(), SMALL, "zephyr.gguf")  # of which no repository is known
        assert "no model of that name is known" in refused(name).problem

    @pytest.mark.parametrize(
        "name",
        [
            LONG,
            f"{LONG}.gguf",
            f"/{LONG}",
            f"a/{LONG}",
            f"hf:a/{LONG}",
            f"hf.co/a/{LONG}",
            f"zephyr:{LONG}",
            "a/" * 5000,
            f"{LONG}:q4_k_m",
            "q4" + "_a" * 5000,
            "zephyr-7b-beta:q4" + "_a" * 5000,
        ],
    )
    def test_long_ones_are_not_here_and_are_told_in_short(self, name):
        store("zephyr.gguf")
        assert name[:100] in str(refused(name))

    @pytest.mark.parametrize("name", ["hf:", "hf:zephyr", "hf:a/b:small", "hf:a/b@", f"hf:{LONG}"])
    def test_malformed_names_of_repositories(self, name):
        with pytest.raises(InvalidInputError) as error:
            resolve(name)
        assert len(str(error.value)) < 1000


class TestNamesOfFiles:
    @pytest.mark.parametrize(
        "name",
        [
            "zephyr-7b-beta",
            "Zephyr_7B.Beta",
            "ZEPHYR 7B BETA",
            "zephyr-7b-beta:q4_k_m",
            "zephyr-7b-beta:Q4_K_M",
            "zephyr-7b-beta.Q4_K_M",
            "zephyr-7b-beta-q4-k-m",
            "zephyr-7b-beta-q4_k_m",
            BETA,
            BETA.lower(),
            f"{BETA}:q4_k_m",
            f"hf:{BETA}",
            f"hf:{BETA.upper()}",
            f"hf:{BETA}:q4_k_m",
            f"hf:{BETA}@main",
            f"hf:{BETA}/zephyr-7b-beta.Q4_K_M.gguf",
            f"hf:{BETA}/zephyr-7b-beta.Q4_K_M",  # its stem, which pull takes too
            f"hf:{BETA}/ZEPHYR-7b-beta.q4_k_m.gguf@main",
            "hf:TheBloke\\zephyr-7B-beta-GGUF\\zephyr-7b-beta.Q4_K_M.gguf",
        ],
    )
    def test_the_catalogues_model_in_our_own_store(self, name):
        path = store("zephyr-7b-beta.Q4_K_M.gguf")
        store("zephyr-7b-alpha.Q4_K_M.gguf", OTHER, "TheBloke/zephyr-7B-alpha-GGUF")
        found = resolve(name)
        assert found.path == path
        assert found.model.owner == "zephyr-local"
        assert found.entry.name == "zephyr-7b-beta"
        assert found.notices == ()

    @pytest.mark.parametrize(
        "name",
        [
            "zephyr",
            "zephyr-7b-beta:q5_k_m",
            "zephyr-7b-beta:f16",
            "zephyr-7b-beta.Q5_K_M",
            f"{BETA}:q5_k_m",
            f"hf:{BETA}:q5_k_m",
            f"hf:{BETA}@0123abc",
            f"hf:{BETA}/zephyr-7b-beta.Q5_K_M.gguf",
            f"hf:{BETA}/sub/zephyr-7b-beta.Q4_K_M.gguf",
            f"hf:{BETA}/Q4_K_M.gguf",
            "hf:other/zephyr-7B-beta-GGUF",
            "beta",
            "TheBloke",
        ],
    )
    def test_what_is_another_model_is_not_taken_for_it(self, name):
        store("zephyr-7b-beta.Q4_K_M.gguf")
        refused(name)

    @pytest.mark.parametrize(
        "name", ["my-model", "My Model", "org/mine", "org/mine:q8_0", "my-model:q8_0", "my-model-Q8_0", "hf:org/mine"]
    )
    def test_a_model_that_no_catalogue_knows(self, name):
        path = store("My Model-Q8_0.gguf", repository="org/mine")
        found = resolve(name)
        assert found.path == path
        assert found.entry is None

    def test_a_file_that_is_called_by_its_type_alone(self):
        path = store("Q8_0.gguf", repository="org/mine")
        assert resolve("org/mine:q8_0").path == path
        assert resolve("q8_0").path == path
        refused("org/mine:q4_0")

    def test_accents_are_found_however_the_file_system_writes_them(self):
        path = store("Ze\u0301phyr.Q4_0.gguf", repository="org/mine")
        assert resolve("z\u00e9phyr:q4_0").path == path

    def test_a_model_in_parts_is_its_first(self):
        folder = store_folder() / "org" / "parts"
        folder.mkdir(parents=True)
        paths = write_parts(split_model(tiny_model(n_block=1), 4), folder, "big-UD-Q4_K_XL")
        for name in ("big", "big:q4_k_xl", "big:UD-Q4_K_XL", "org/parts", "big-ud-q4_k_xl"):
            assert resolve(name).path == paths[0]
        assert resolve("hf:org/parts/big-UD-Q4_K_XL-00001-of-00002.gguf").path == paths[0]
        assert resolve("hf:org/parts/big-UD-Q4_K_XL-00002-of-00002.gguf").path == paths[0]

    @pytest.mark.parametrize(
        "owner", ["zephyr-local", "huggingface", "lm-studio", "gpt4all", "ollama", "llama.cpp", "folder", "checkout"]
    )
    def test_a_model_of_each_tool_is_found_by_its_name(self, home, monkeypatch, owner):
        names = {"gpt4all": "zephyr-7b-beta", "ollama": "zephyr:7b", "llama.cpp": "org_zephyr-GGUF_zephyr"}
        names |= {"lm-studio": "z", "folder": "mine", "checkout": "zephyr-tiny"}
        if owner == "checkout":
            path = put(home / "checkout" / "models" / "zephyr-tiny.gguf", SMALL)
        else:
            path = stores.put_everywhere(home, {owner: SMALL})[owner]
        monkeypatch.setenv(SEARCH_VARIABLE, str(home / "models") if owner == "folder" else "")
        found = resolve(names.get(owner, "zephyr"))
        assert (found.path, found.model.owner) == (path, owner)
        if owner in ("zephyr-local", "huggingface", "lm-studio"):
            assert resolve("org/zephyr-GGUF").path == resolve("hf:org/zephyr-gguf").path == path


class TestOllamasNames:
    @pytest.mark.parametrize("name", ["zephyr:7b", "Zephyr:7B", "zephyr-7b", "zephyr 7b"])
    def test_a_tag(self, home, name):
        path = ollama(home, "zephyr", "7b")
        assert resolve(name).path == path

    @pytest.mark.parametrize(
        "name",
        ["zephyr:7b-beta-q4_K_M", "zephyr:7b-beta", "zephyr:7b-beta:q4_k_m", "zephyr-7b-beta", "zephyr-7b-beta:q4_k_m"],
    )
    def test_a_tag_with_a_type_is_the_catalogues_model(self, home, name):
        path = ollama(home, "zephyr", "7b-beta-q4_K_M")
        found = resolve(name)
        assert found.path == path
        assert found.entry.name == "zephyr-7b-beta"
        refused("zephyr:7b-beta:q8_0")
        refused("zephyr:7b-alpha")

    @pytest.mark.parametrize(
        "name",
        [
            f"hf.co/{BETA}:Q4_K_M",
            f"HF.co/{BETA}:q4_k_m",
            f"hf.co/{BETA}",
            BETA,
            f"{BETA}:q4_k_m",
            f"hf:{BETA}",
            f"hf:{BETA}:q4_k_m",
            "zephyr-7b-beta",
            "zephyr-7b-beta:q4_k_m",
        ],
    )
    def test_what_it_has_from_the_hub(self, home, name):
        path = ollama(home, "zephyr-7B-beta-GGUF", "Q4_K_M", host="hf.co", namespace="TheBloke")
        found = resolve(name)
        assert found.path == path
        assert found.entry.name == "zephyr-7b-beta"
        for other in (f"hf.co/{BETA}:Q8_0", f"hf:{BETA}:q8_0", f"hf:{BETA}/zephyr-7b-beta.Q4_K_M.gguf"):
            refused(other)

    def test_latest_may_be_left_out_as_there(self, home):
        path = ollama(home, "mine", "latest")
        hub = ollama(home, "theirs", "latest", OTHER, host="hf.co", namespace="org")
        assert resolve("mine").path == resolve("mine:latest").path == path
        assert resolve("hf.co/org/theirs").path == resolve("hf.co/org/theirs:latest").path == hub
        assert resolve("hf:org/theirs").path == hub
        assert base_and_type(resolve("mine").model) == ("mine", None)

    def test_a_tag_that_is_a_type(self, home):
        path = ollama(home, "mine", "q8_0")
        ollama(home, "theirs", "UD-Q4_K_XL", OTHER, host="hf.co", namespace="org")
        assert resolve("mine").path == resolve("mine:q8_0").path == path
        assert base_and_type(resolve("hf:org/theirs:q4_k_xl").model) == ("hf.co/org/theirs", "Q4_K_XL")

    def test_names_with_a_namespace_or_another_registry(self, home):
        path = ollama(home, "zephyr", "7b", namespace="team")
        other = ollama(home, "zephyr", "7b", OTHER, host="registry.example.com:5000", namespace="team")
        assert resolve("team/zephyr:7b").path == path
        assert resolve("registry.example.com:5000/team/zephyr:7b").path == other


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


class TestAliases:
    def test_to_a_path(self, home):
        path = put(home / "my models" / "é.gguf", SMALL)
        user_file(f'[aliases]\nmine = "{path.as_posix()}"\ntilde = "~/my models/é.gguf"\n')
        for name in ("mine", "MINE", "tilde"):
            found = resolve(name)
            assert (found.path, found.model) == (path, None)

    def test_a_relative_path_counts_from_the_users_file_as_folders_do(self):
        path = put(catalogue_path().parent / "here.gguf", SMALL)
        put(Path("here.gguf"), OTHER)
        user_file('[aliases]\nmine = "here.gguf"\n')
        assert resolve("mine").path == path

    def test_to_a_path_where_nothing_is(self):
        user_file('[aliases]\nmine = "/gone/z.gguf"\n')
        assert refused("mine").problem == "there is no file /gone/z.gguf, which mine stands for"

    @pytest.mark.parametrize("target", ["zephyr-7b-beta", "zephyr-7b-beta:q4_k_m", f"hf:{BETA}", BETA, "z e p h y r"])
    def test_to_a_name(self, target):
        path = store("zephyr-7b-beta.Q4_K_M.gguf")
        if " " in target:
            path = store("Z-E-P-H-Y-R.gguf", OTHER, "org/spaced")
        user_file(f'[aliases]\nMy_Model = "{target}"\n')
        assert resolve("my-model").path == path

    def test_along_a_chain(self):
        path = store("zephyr-7b-beta.Q4_K_M.gguf")
        links = "".join(f'a{n} = "A{n + 1}"\n' for n in range(50))
        user_file(f'[aliases]\n{links}a50 = "zephyr-7b-beta:q4_k_m"\n')
        assert resolve("a0").path == path
        assert without_aliases("a0", read_catalogue()) == "zephyr-7b-beta:q4_k_m"

    @pytest.mark.parametrize("aliases", ['a = "b"\nb = "a"', 'a = "b"\nb = "c"\nc = "b"', 'a = "b:q4_0"\nb = "a:q8_0"'])
    def test_in_a_circle(self, aliases):
        user_file(f"[aliases]\n{aliases}\n")
        for name in ("a", "a:q5_0", "A"):
            with pytest.raises(InvalidInputError, match="leads in a circle") as error:
                resolve(name)
            assert "alias --remove" in error.value.remedy

    @pytest.mark.parametrize(
        ("aliases", "name", "meant"),
        [
            ('fast = "zephyr-7b-beta"', "fast:q4_0", "zephyr-7b-beta:q4_0"),
            ('fast = "zephyr-7b-beta:q4_0"', "fast", "zephyr-7b-beta:q4_0"),
            ('fast = "zephyr-7b-beta:q4_0"', "fast:q8_0", "zephyr-7b-beta:q8_0"),
            ('fast = "b"\nb = "zephyr-7b-beta:q4_0"', "fast:q8_0", "zephyr-7b-beta:q8_0"),
            ('fast = "hf:a/b"', "fast:q8_0", "hf:a/b:q8_0"),
            ('fast = "hf:a/b:q4_0"', "fast:q8_0", "hf:a/b:q8_0"),
            ('fast = "hf:a/b:q4_0@main"', "fast:fp16", "hf:a/b:f16@main"),
            ('fast = "a/b"', "fast:q8_0", "a/b:q8_0"),
            ('fast = "zephyr:7b"', "fast", "zephyr:7b"),
            ('fast-q8_0 = "c"\nfast = "b"', "fast:q8_0", "c"),
            ('fast = "b"', "slow:q8_0", "slow:q8_0"),
            ('fast = "b"', "fast:small", "fast:small"),
            ('hf-a = "b"', "hf:a", "hf:a"),
            # An alias for its own name chooses a type, and may be overruled.
            ('zephyr = "zephyr:q4_0"', "zephyr", "zephyr:q4_0"),
            ('zephyr = "Zephyr:q4_0"', "zephyr:q8_0", "Zephyr:q8_0"),
            ('a = "zephyr"\nzephyr = "zephyr:q4_0"', "a", "zephyr:q4_0"),
            ('Zephyr = "zephyr"', "zephyr", "zephyr"),
        ],
    )
    def test_a_type_behind_an_alias(self, aliases, name, meant):
        user_file(f"[aliases]\n{aliases}\n")
        assert without_aliases(name, read_catalogue()) == meant

    @pytest.mark.parametrize("target", ["/models/z.gguf", "hf:a/b/z.gguf", "hf:a/b/z.gguf@main"])
    def test_a_type_behind_an_alias_for_a_file_is_refused(self, target):
        user_file(f'[aliases]\nmine = "{target}"\n')
        with pytest.raises(InvalidInputError, match="mine stands for the file") as error:
            resolve("mine:q8_0")
        assert error.value.remedy == "Leave out :q8_0"

    def test_an_alias_goes_before_the_catalogue(self):
        store("zephyr-7b-beta.Q4_K_M.gguf")
        path = store("zephyr-7b-alpha.Q4_K_M.gguf", OTHER, "TheBloke/zephyr-7B-alpha-GGUF")
        user_file('[aliases]\nzephyr-7b-beta = "zephyr-7b-alpha"\n')
        assert resolve("zephyr-7b-beta").path == path

    def test_what_an_alias_stands_for_is_told_where_it_is_not_here(self):
        user_file('[aliases]\nfast = "zephyr-7b-beta"\n')
        error = refused("fast:q4_0")
        assert error.problem == "fast:q4_0, which is zephyr-7b-beta:q4_0, is not on this machine"
        assert error.remedy == "Get it: zephyr-local pull zephyr-7b-beta:q4_0"


class TestOwnEntries:
    def test_an_own_entry_names_what_its_repositories_hold(self):
        path = store("some-file.Q4_K_M.gguf", repository="me/things")
        user_file('[models.mine]\nlicence = "MIT"\ngguf = ["Me/Things"]\n')
        for name in ("mine", "Mine:q4_k_m", "mine-q4_k_m"):
            found = resolve(name)
            assert (found.path, found.entry.name, found.entry.licence) == (path, "mine", "MIT")
        refused("mine:q8_0")

    def test_it_goes_before_the_packages_of_that_name(self):
        own = store("other.Q4_K_M.gguf", OTHER, "me/other")
        store("z.Q4_K_M.gguf")
        user_file('[models.zephyr-7b-beta]\ngguf = ["me/other"]\n')
        found = resolve("zephyr-7b-beta")
        assert (found.path, found.entry.is_own) == (own, True)

    def test_a_model_found_by_its_path_in_the_hubs_terms_has_its_entry(self):
        store("z.Q4_K_M.gguf", repository="me/things")
        user_file('[models.mine]\ngguf = ["me/things"]\n')
        assert resolve("z").entry.name == "mine"
        assert resolve("hf:me/things").entry.name == "mine"

    @pytest.mark.parametrize("text", ["[models.mine]\nlicense = 'x'", "[", "aliases.a = ''"])
    def test_a_malformed_file_is_told_before_anything_is_guessed(self, text):
        store("zephyr-7b-beta.Q4_K_M.gguf")
        user_file(text)
        with pytest.raises(InvalidInputError, match=r"models\.toml"):
            resolve("zephyr-7b-beta")


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


class TestSeveralTypes:
    @pytest.fixture
    def types(self) -> dict[str, Path]:
        models = {"Q4_K_M": SMALL, "Q8_0": MIDDLE, "F16": LARGE}
        return {kind: store(f"zephyr-7b-beta.{kind}.gguf", model) for kind, model in models.items()}

    @pytest.mark.parametrize("name", ["zephyr-7b-beta", BETA, f"hf:{BETA}"])
    def test_the_largest_that_fits_is_taken_and_told(self, types, have, name):
        have(needed_bytes(types["Q8_0"]))
        found = resolve(name)
        assert found.path == types["Q8_0"]
        told = f"{name} is here as F16, Q4_K_M too; took Q8_0, the largest that fits the memory"
        assert found.notices == (told,)

    def test_one_byte_too_few_is_too_few(self, types, have):
        have(needed_bytes(types["Q8_0"]) - 1)
        assert resolve("zephyr-7b-beta").path == types["Q4_K_M"]

    @pytest.mark.parametrize("available", [1 << 40, 0])
    def test_with_memory_enough_or_unknown_it_is_the_largest(self, types, have, available):
        have(available)
        assert resolve("zephyr-7b-beta").path == types["F16"]

    def test_where_none_fits_it_is_the_smallest_and_no_word_of_fitting(self, types, have):
        have(1)
        found = resolve("zephyr-7b-beta")
        assert found.path == types["Q4_K_M"]
        [notice] = found.notices
        assert notice.endswith("took Q4_K_M, the smallest, as none fits the memory")

    def test_where_none_fits_the_smallest_is_that_of_the_most_telling_owner(self, types, have, home):
        have(1)
        ollama(home, "zephyr", "7b-beta-q4_K_M", OTHER)
        assert resolve("zephyr-7b-beta").path == types["Q4_K_M"]

    @pytest.mark.parametrize("kind", ["Q4_K_M", "Q8_0", "F16"])
    def test_a_type_that_is_asked_for_is_taken_whether_it_fits_or_not(self, types, have, kind):
        have(1)
        for name in (f"zephyr-7b-beta:{kind}", f"zephyr-7b-beta.{kind}", f"hf:{BETA}:{kind}", f"{BETA}:{kind}"):
            found = resolve(name)
            assert (found.path, found.notices) == (types[kind], ())

    def test_a_type_that_is_not_among_them_is_refused_with_those_that_are(self, types):
        for name, pull in (("zephyr-7b-beta:q5_0", "zephyr-7b-beta:q5_0"), (f"hf:{BETA}:q5_0", f"hf:{BETA}:q5_0")):
            error = refused(name)
            assert error.problem == f"{name} is not on this machine"
            assert error.remedy == f"Get it: zephyr-local pull {pull}; here it is as F16, Q4_K_M, Q8_0"

    def test_types_in_other_places_count_too(self, have, home):
        store("zephyr-7b-beta.Q4_K_M.gguf", SMALL)
        path = ollama(home, "zephyr", "7b-beta-q8_0", MIDDLE)
        have(1 << 40)
        found = resolve("zephyr-7b-beta")
        assert (found.path, found.model.owner) == (path, "ollama")
        assert "is here as Q4_K_M too; took Q8_0" in found.notices[0]

    def test_copies_of_one_type_are_no_choice_to_tell_of(self, have, home):
        have(1 << 40)
        path = store("zephyr-7b-beta.Q4_K_M.gguf", SMALL)
        ollama(home, "zephyr", "7b-beta-q4_K_M", OTHER)
        stores.put_in_gpt4all(home / ".cache" / "gpt4all", tiny_model(n_block=1, seed=2).build(), "zephyr-7b-beta.gguf")
        found = resolve("zephyr-7b-beta:q4_k_m")
        assert (found.path, found.notices) == (path, ()), "of the owner that tells most"
        found = resolve("zephyr-7b-beta")
        assert found.path == path
        assert found.notices == (
            "zephyr-7b-beta is here as zephyr-7b-beta too; took Q4_K_M, the largest that fits the memory",
        )

    def test_one_alone_is_taken_without_being_read(self, have, monkeypatch):
        path = store("zephyr-7b-beta.Q4_K_M.gguf", b"GGUF" + b"\0" * 100)
        monkeypatch.delattr(hardware, "read_memory")
        assert resolve("zephyr-7b-beta").path == path


class TestDamaged:
    def test_a_damaged_file_is_passed_over_and_told(self, have):
        have(1 << 40)
        good = store("zephyr-7b-beta.Q4_K_M.gguf", SMALL)
        damaged = store("zephyr-7b-beta.Q8_0.gguf", DAMAGED)
        found = resolve("zephyr-7b-beta")
        assert found.path == good
        [notice] = found.notices
        assert notice.startswith(f"{damaged} is passed over: zephyr-7b-beta.Q8_0.gguf: ")

    def test_a_copy_of_the_same_size_that_is_damaged(self, have, home):
        have(1 << 40)
        store("zephyr-7b-beta.Q4_K_M.gguf", b"GGUF" + b"\xff" * (len(SMALL) - 4))
        good = stores.put_in_lm_studio(home / ".lmstudio/models", SMALL, BETA, "zephyr-7b-beta.Q4_K_M.gguf")
        for name in ("zephyr-7b-beta", "zephyr-7b-beta:q4_k_m", f"hf:{BETA}/zephyr-7b-beta.Q4_K_M.gguf"):
            found = resolve(name)
            assert found.path == good
            assert "is passed over" in found.notices[0]

    def test_the_smallest_is_not_taken_where_it_is_damaged(self, have):
        have(1)
        store("zephyr-7b-beta.Q2_K.gguf", SMALL[:-100])
        good = store("zephyr-7b-beta.Q4_K_M.gguf", MIDDLE)
        store("zephyr-7b-beta.Q8_0.gguf", LARGE)
        assert resolve("zephyr-7b-beta").path == good

    def test_a_model_of_another_architecture_is_passed_over_too(self, have, home):
        have(1 << 40)
        other = tiny_model(n_block=3)
        other.metadata["general.architecture"] = ("str", "gemma3")
        store("zephyr-7b-beta.F16.gguf", other.build())
        good = store("zephyr-7b-beta.Q4_K_M.gguf", SMALL)
        assert resolve("zephyr-7b-beta").path == good

    def test_where_all_are_damaged_the_reader_tells(self, have):
        have(1 << 40)
        store("zephyr-7b-beta.Q4_K_M.gguf", SMALL[:-100])
        first = store("zephyr-7b-beta.Q8_0.gguf", DAMAGED)
        assert resolve("zephyr-7b-beta").path == first

    def test_a_file_is_the_first_that_is_whole_whatever_fits(self, have, home):
        have(1)
        first = hub_cache(home, "z.Q8_0.gguf", MIDDLE, commit=COMMIT)
        hub_cache(home, "z.Q8_0.gguf", SMALL, commit=OTHER_COMMIT, ref=None)
        found = resolve(f"hf:{BETA}/z.Q8_0.gguf")
        assert (found.path, found.notices) == (first, ()), "main's, though the other is smaller"


class TestNothingHere:
    @pytest.mark.parametrize(
        ("name", "pull"),
        [
            ("zephyr-7b-beta", "zephyr-7b-beta"),
            ("Zephyr_7B_Beta", "zephyr-7b-beta"),
            ("zephyr-7b-beta:Q4_K_M", "zephyr-7b-beta:q4_k_m"),
            ("zephyr-7b-beta.Q4_K_M", "zephyr-7b-beta:q4_k_m"),
            ("zephyr-7b-beta-q4_k_m", "zephyr-7b-beta:q4_k_m"),
            ("zephyr:7b-beta-q4_K_M", "zephyr-7b-beta:q4_k_m"),
            (BETA, f"hf:{BETA}"),
            (f"{BETA}:q4_k_m", f"hf:{BETA}:q4_k_m"),
            (f"hf:{BETA}", f"hf:{BETA}"),
            ("hf:some/thing", "hf:some/thing"),
            ("hf:some/thing:Q4_K_M@main", "hf:some/thing:q4_k_m@main"),
            ("hf:some/thing/a b.gguf@0123abc", "hf:some/thing/a b.gguf@0123abc"),
            (r"hf:some\thing\b.gguf", "hf:some/thing/b.gguf"),
            (f"hf.co/{BETA}:Q4_K_M", f"hf:{BETA}:q4_k_m"),
        ],
    )
    def test_what_is_known_is_refused_with_the_command_that_pulls_it(self, name, pull):
        error = refused(name)
        assert error.problem == f"{name} is not on this machine"
        get_it = "If it is a repository of the hub" if name.startswith("hf.co") else "Get it"
        assert error.remedy == f"{get_it}: zephyr-local pull {pull}"
        assert error.exit_code == 3

    def test_what_may_be_a_repository_is_not_said_to_be_one(self):
        error = refused("some/thing:q4_0")
        assert error.remedy == "If it is a repository of the hub: zephyr-local pull hf:some/thing:q4_0"

    def test_an_own_entry_without_a_repository(self):
        user_file("[models.mine]\n")
        assert "names no repository of it: zephyr-local models add mine OWNER/REPO" in refused("mine:q4_0").remedy

    def test_an_own_entry_with_a_checkpoint_alone_can_be_pulled(self):
        user_file("[models.mine]\ncheckpoint = 'me/mine'\n")
        assert refused("mine").remedy == "Get it: zephyr-local pull mine"

    @pytest.mark.parametrize("name", ["nonsense", "zephyr:7b", "nonsense:q4_k_m", "hello", "é", "a b"])
    def test_an_unknown_name_is_refused_with_how_to_begin(self, name):
        error = refused(name)
        assert error.problem == f"{name} is not on this machine, and no model of that name is known"
        assert "zephyr-local pull zephyr-7b-beta" in error.remedy

    def test_an_unknown_name_is_refused_with_what_is_here(self, home):
        store("one.Q4_0.gguf")
        ollama(home, "two", "7b", OTHER)
        error = refused("nonsense")
        assert error.remedy == "Here are: one.Q4_0, two:7b"

    def test_of_many_that_are_here_a_few_are_told(self):
        for number in range(10):
            store(f"m{number}-{'x' * 230}.gguf", tiny_model(n_block=1, seed=number).build(), "org/many")
        error = refused("nonsense")
        assert error.remedy.count("xxx") > 0
        assert error.remedy.endswith(" and 4 more")


class TestWhatOthersUse:
    def test_all_that_a_name_may_mean(self, home):
        paths = {store(f"zephyr-7b-beta.{kind}.gguf", model) for kind, model in (("Q4_0", SMALL), ("Q8_0", MIDDLE))}
        paths.add(ollama(home, "zephyr", "7b-beta-q4_0", OTHER))
        store("zephyr-7b-alpha.Q4_0.gguf", LARGE, "TheBloke/zephyr-7B-alpha-GGUF")
        wanted = what_is_wanted("zephyr-7b-beta", read_catalogue())
        assert {model.path for model in matching(wanted, models_here().models)} == paths
        of_type = what_is_wanted("zephyr-7b-beta:q4_0", read_catalogue())
        assert len(list(matching(of_type, models_here().models))) == 2

    @pytest.mark.parametrize(
        ("name", "base", "file_type", "entry"),
        [
            ("zephyr-7b-beta", "zephyr-7b-beta", None, "zephyr-7b-beta"),
            ("zephyr-7b-beta:q4_k_m", "zephyr-7b-beta", "Q4_K_M", "zephyr-7b-beta"),
            ("zephyr-7b-beta.Q4_K_M", "zephyr-7b-beta", "Q4_K_M", "zephyr-7b-beta"),
            (f"hf:{BETA}:q8_0@main", BETA, "Q8_0", "zephyr-7b-beta"),
            (BETA, BETA, None, "zephyr-7b-beta"),
            ("other.Q4_K_M", "other.Q4_K_M", None, None),
            ("zephyr:7b", "zephyr:7b", None, None),
        ],
    )
    def test_what_a_name_says(self, name, base, file_type, entry):
        wanted = what_is_wanted(name, read_catalogue())
        assert (wanted.text, wanted.base, wanted.file_type) == (name, base, file_type)
        assert (wanted.entry and wanted.entry.name) == entry
        assert (wanted.hub is None) == (not name.startswith("hf:"))

    def test_a_repository_whose_slash_a_path_of_windows_turned_round(self, monkeypatch):
        catalogue = read_catalogue()
        monkeypatch.setattr(os, "sep", "\\")
        assert what_is_wanted(BETA.replace("/", "\\"), catalogue).base == BETA


@pytest.mark.parametrize("use", ["import zephyr_local", "from zephyr_local.cli.main import run; run(['--help'])"])
def test_neither_the_package_nor_help_waits_for_the_store(use):
    program = (
        f"import sys; {use}; print(); "
        "print([name for name in sys.modules if name.startswith(('zephyr_local.model_store', 'zephyr_local.memory', "
        "'zephyr_local.hardware', 'sqlite3', 'tomllib'))])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
