"""Names that can be none, and what is told of those that mean nothing on this machine."""

from __future__ import annotations

import pytest

from tests.gguf_builder import tiny_model
from tests.model_store import store_fixtures as stores
from tests.model_store.library_fixtures import BETA, LONG, OF_A_USER, OTHER, SMALL, ollama, refused, store, user_file
from zephyr_local.errors import InvalidInputError
from zephyr_local.model_store.library import resolve, store_folder

pytestmark = OF_A_USER


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
            (f"https://huggingface.co/{BETA}/blob/main/z.gguf", f"hf:{BETA}/z.gguf@main"),
            ("zephyr-7b-beta:Q4_K_M@0123abc", f"hf:{BETA}:q4_k_m@0123abc"),
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

    @pytest.mark.parametrize(
        ("name", "meant"),
        [
            ("zephyr-7b-bata", "zephyr-7b-beta"),
            ("zephyr-7b:q4_k_m", "zephyr-7b-beta"),
            ("zefyr-7b-alpha", "zephyr-7b-alpha"),
            ("zephyr-tinny", "zephyr-tiny"),
            ("mistrall", "mistral"),
            ("offise", "office"),
        ],
    )
    def test_what_is_spelled_nearly_so_is_asked_for(self, name, meant):
        store("mistral.Q4_0.gguf")
        user_file("[aliases]\noffice = 'zephyr-7b-beta'\n")
        assert refused(name).remedy.startswith(f"Did you mean {meant}? ")

    @pytest.mark.parametrize("name", ["nonsense", "hello", "gemma-7b", "x", LONG])
    def test_what_is_like_no_name_is_not(self, name):
        assert "Did you mean" not in str(refused(name))

    @pytest.mark.parametrize("name", ["zephyr-7b-beta:nonsense", "Zephyr_7b_beta:q9"])
    def test_a_type_that_is_none_is_told_with_examples(self, name):
        error = refused(name)
        assert error.problem == f"{name.rpartition(':')[2]!r} in {name!r} is not a type that is known"
        assert error.remedy == "Write one that is, such as zephyr-7b-beta:q4_k_m or zephyr-7b-beta:q8_0"

    def test_of_many_that_are_here_a_few_are_told(self):
        for number in range(10):
            store(f"m{number}-{'x' * 230}.gguf", tiny_model(n_block=1, seed=number).build(), "org/many")
        error = refused("nonsense")
        assert error.remedy.count("xxx") > 0
        assert error.remedy.endswith(" and 4 more")
