"""A model is found once, within limits, and nothing is written."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import get_args

from tests.model_store import store_fixtures as stores
from tests.model_store.place_fixtures import A_MINUTE, MODEL, OTHER, found_in, names, posix
from tests.model_store.store_fixtures import link, put
from zephyr_local.model_store import places
from zephyr_local.model_store.places import Owner, Place, find_models, known_places

pytestmark = A_MINUTE


class TestOnceAndWithinLimits:
    @posix
    def test_a_file_in_two_places_is_the_more_telling_ones(self, tmp_path):
        cached = stores.put_in_hub_cache(tmp_path / "hub", MODEL)
        link(tmp_path / "lm" / "org" / "zephyr" / "zephyr.gguf", cached)
        mine = put(tmp_path / "mine" / "mine.gguf", OTHER)
        (tmp_path / "gpt4all").mkdir()
        os.link(mine, tmp_path / "gpt4all" / "hard.gguf")
        found = find_models(
            [
                Place("folder", tmp_path / "mine"),
                Place("lm-studio", tmp_path / "lm"),
                Place("gpt4all", tmp_path / "gpt4all"),
                Place("huggingface", tmp_path / "hub"),
                Place("folder", tmp_path),
            ]
        )
        assert [(model.owner, model.name) for model in found.models] == [("huggingface", "zephyr"), ("gpt4all", "hard")]

    def test_a_place_that_is_given_twice(self, tmp_path):
        put(tmp_path / "a" / "zephyr.gguf", MODEL)
        put(tmp_path / "a" / "bad.gguf", b"bad")
        found = find_models([Place("folder", tmp_path), Place("folder", tmp_path / "a"), Place("folder", tmp_path)])
        assert names(found) == ["zephyr"]
        assert len(found.notices) == 1

    def test_two_files_of_one_content_are_two(self, tmp_path):
        put(tmp_path / "a.gguf", MODEL)
        put(tmp_path / "b.gguf", MODEL)
        assert names(found_in("folder", tmp_path)) == ["a", "b"]

    def test_a_place_without_end(self, tmp_path, monkeypatch):
        for number in range(20):
            put(tmp_path / f"{number:02}" / f"{number:02}.gguf", MODEL)
        assert len(found_in("folder", tmp_path).models) == 20
        monkeypatch.setattr(places, "MAX_ENTRIES", 25)
        found = find_models([Place("folder", tmp_path), Place("lm-studio", tmp_path / "19")])
        assert names(found) == ["19", "00", "01", "02", "03", "04"], "the limit is each place's own"
        assert found.notices == (f"{tmp_path} has more than 25 files: not all were looked at",)

    def test_a_place_full_of_damage(self, tmp_path):
        for number in range(places.MAX_NOTICES + 5):
            put(tmp_path / f"{number}.gguf", b"damage")
        found = found_in("folder", tmp_path)
        assert len(found.notices) == places.MAX_NOTICES + 1
        assert found.notices[-1] == f"{tmp_path}: 5 more such problems"

    @posix
    def test_a_thousand_models_and_a_huge_one(self, tmp_path):
        """Of a file its first bytes are read: the huge one has 64 GiB, all of them a hole."""
        for number in range(1000):
            put(tmp_path / str(number % 50) / f"{number}.gguf", b"GGUF")
        with put(tmp_path / "huge.gguf", b"GGUF").open("r+b") as file:
            file.truncate(64 << 30)
        begun = time.monotonic()
        found = found_in("folder", tmp_path)
        elapsed_s = time.monotonic() - begun
        assert len(found.models) == 1001
        assert found.models[0].size_bytes == 64 << 30
        assert elapsed_s < 10, "a watchdog: some hundredths of a second are usual"

    @posix
    def test_nothing_is_written_anywhere(self, tmp_path):
        owners = [owner for owner in get_args(Owner) if owner != "checkout"]
        stores.put_everywhere(tmp_path, dict.fromkeys(owners, MODEL))
        put(tmp_path / ".lmstudio" / "settings.json", b"{}")

        def everything() -> dict[Path, tuple[int, int, int]]:
            states = ((path, path.lstat()) for path in [tmp_path, *tmp_path.rglob("*")])
            return {path: (status.st_mtime_ns, status.st_size, status.st_ino) for path, status in states}

        before = everything()
        find_models(known_places(store=tmp_path / "store", environment={}, home=tmp_path, platform="darwin"))
        assert everything() == before
