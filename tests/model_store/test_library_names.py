"""A model on this machine is found by the names that its file, its repository and its tool give it."""

from __future__ import annotations

import os

import pytest

from tests.gguf_builder import split_model, tiny_model, write_parts
from tests.model_store import store_fixtures as stores
from tests.model_store.library_fixtures import BETA, LARGE, MIDDLE, OF_A_USER, OTHER, SMALL, ollama, refused, store
from tests.model_store.store_fixtures import put
from zephyr_local.model_store.catalogue import read_catalogue
from zephyr_local.model_store.library import (
    SEARCH_VARIABLE,
    base_and_type,
    matching,
    models_here,
    resolve,
    store_folder,
    what_is_wanted,
)

pytestmark = OF_A_USER


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
