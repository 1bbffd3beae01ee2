"""What the user's own file says goes before what the package knows: aliases and entries of the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.model_store.library_fixtures import BETA, OF_A_USER, OTHER, SMALL, refused, store, user_file
from tests.model_store.store_fixtures import put
from zephyr_local.errors import InvalidInputError
from zephyr_local.model_store.catalogue import catalogue_path, read_catalogue
from zephyr_local.model_store.library import resolve, without_aliases

pytestmark = OF_A_USER


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
