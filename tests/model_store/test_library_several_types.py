"""Of the several files that a name may mean one is chosen, by the memory, and told; damaged ones are passed over."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gguf_builder import tiny_model
from tests.model_store import store_fixtures as stores
from tests.model_store.library_fixtures import (
    BETA,
    DAMAGED,
    LARGE,
    MIDDLE,
    OF_A_USER,
    OTHER,
    SMALL,
    hub_cache,
    ollama,
    refused,
    store,
)
from tests.model_store.store_fixtures import COMMIT, OTHER_COMMIT
from zephyr_local import hardware
from zephyr_local.gguf_split import read_model
from zephyr_local.hardware import Memory, read_cpu
from zephyr_local.memory.estimate import estimate_memory
from zephyr_local.memory.shape import shape_of
from zephyr_local.model_store.library import resolve
from zephyr_local.settings import EngineSettings

pytestmark = OF_A_USER


def needed_bytes(path: Path) -> int:
    """What the estimate says that a model takes, which its own tests compare with what it takes."""
    return estimate_memory(shape_of(read_model(path)), EngineSettings(), read_cpu().features).needed_bytes


@pytest.fixture
def have(monkeypatch: pytest.MonkeyPatch):
    """Give this machine so much memory; 0: it does not tell."""

    def have(available_bytes: int) -> None:
        monkeypatch.setattr(hardware, "read_memory", lambda: Memory(1 << 40, available_bytes, 1 << 40))

    return have


class TestSeveralTypes:
    @pytest.fixture
    def types(self) -> dict[str, Path]:
        models = {"Q4_K_M": SMALL, "Q8_0": MIDDLE, "F16": LARGE}
        return {kind: store(f"zephyr-7b-beta.{kind}.gguf", model) for kind, model in models.items()}

    def test_what_fits_depends_on_the_settings(self, types, have):
        long = EngineSettings(n_ctx=32768)
        needed = [
            estimate_memory(shape_of(read_model(types[kind])), long, read_cpu().features).needed_bytes
            for kind in ("Q4_K_M", "Q8_0")
        ]
        have(max(needed_bytes(types["F16"]), *needed))
        assert resolve("zephyr-7b-beta").path == types["F16"]
        assert resolve("zephyr-7b-beta", long).path == types["Q8_0"]

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
