"""Feedback of a model on itself alone."""

from __future__ import annotations

from pathlib import Path

from zephyr_local.train.data.records import Record
from zephyr_local.train.prepare import records_of
from zephyr_local.train.recipe import Recipe
from zephyr_local.train.run_folder import RunFolder


def test_what_the_run_begins_with_is_the_only_one_that_is_asked(tmp_path: Path, small_folder: Path):
    Recipe.read("tiny", [f"base={small_folder}", "stages=[ddpo]"]).write(tmp_path / "recipe")
    made = list(records_of(["made:tiny-on-policy?n=3&seed=2"], RunFolder(tmp_path)))
    values = [record.value for record in made if isinstance(record, Record)]
    assert len(values) == len(made) == 3
    assert all(len(value["completions"]) == 4 for value in values)
    assert all(name.startswith("policy at") for value in values for name in value["models"])
    assert len({value["instruction"] for value in values}) > 1
