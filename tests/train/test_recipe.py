"""Recipes are read whole or refused by file and key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.train.recipe_builder import build_recipe
from zephyr_local.errors import InvalidInputError
from zephyr_local.train.recipe import Recipe, bundled_recipes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return build_recipe(tmp_path / "recipe")


def change(folder: Path, **keys: object) -> None:
    """Change keys of recipe.yaml; None removes one."""
    path = folder / "recipe.yaml"
    value = yaml.safe_load(path.read_text()) | keys
    path.write_text(yaml.safe_dump({key: entry for key, entry in value.items() if entry is not None}))


def test_paths_are_relative_to_the_recipe(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.read(folder, ["data.dsft.prepare.against=prompts.txt"])
    assert recipe.base == str(folder / "base")
    assert recipe.data["dsft"].prepare["against"] == [str(folder / "prompts.txt")]
    assert recipe.data["dsft"].train == (str(folder / "dialogues.jsonl"),)
    assert recipe.stages == ("dsft", "ddpo")
    assert recipe.name == "recipe"


def test_files_of_set_are_looked_for_where_the_command_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    for name in ("mine.jsonl", "prompts.txt", "none"):
        (tmp_path / name).touch()
    overrides = ["data.dsft.train=[mine.jsonl]", "data.ddpo={train: mine.jsonl, prepare: {drop_duplicates: none}}"]
    recipe = Recipe.read(folder, [*overrides, "data.dsft.prepare.against=prompts.txt"])
    assert recipe.data["dsft"].train == recipe.data["ddpo"].train == (str(tmp_path / "mine.jsonl"),)
    assert recipe.data["dsft"].prepare["against"] == [str(tmp_path / "prompts.txt")]
    assert recipe.data["ddpo"].prepare["drop_duplicates"] == "none"


def test_a_base_of_set_takes_the_place_of_a_new_model(folder: Path):
    recipe = Recipe.read("tiny-short", [f"base={folder / 'base'}", "stages=[dsft]"])
    assert (recipe.base, recipe.new) == (str(folder / "base"), "")
    recipe = Recipe.read(folder, ["new=tiny"])
    assert (recipe.base, recipe.new) == ("", "tiny")
    assert Recipe.read(folder, ["new=null"]).base  # nothing takes no place


def test_set_changes_a_stages_key_or_one_of_ours(folder: Path):
    recipe = Recipe.read(
        folder, ["dsft.learning_rate=1e-5", "ddpo.max_steps=3", "stages=[dsft]", "data.dsft.held_out=0.1"]
    )
    assert recipe.trl["dsft"]["learning_rate"] == 1e-5  # YAML 1.1 would make a text of it
    assert recipe.trl["ddpo"]["max_steps"] == 3
    assert recipe.stages == ("dsft",)
    assert recipe.data["dsft"].held_out == 0.1


def test_what_is_written_is_read_back_the_same(folder: Path, tmp_path: Path):
    recipe = Recipe.read(folder, ["dsft.learning_rate=1e-5"])
    recipe.write(tmp_path / "copy")
    again = Recipe.read(tmp_path / "copy")
    assert again.settings() == recipe.settings()
    assert (again.base, again.data, again.trl, again.name) == (recipe.base, recipe.data, recipe.trl, recipe.name)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"colour": "red"}, "unknown key colour"),
        ({"stages": ["ddpo", "dsft"]}, "The order is dsft, ddpo"),
        ({"stages": ["dsft", "rlhf"]}, "Give some of pretrain, dsft, ddpo"),
        ({"stages": ["pretrain", "dsft"]}, r"there is no .*pretrain\.yaml"),
        ({"base": None}, "neither base nor new"),
        ({"new": "tiny"}, "both base and new"),
        ({"base": "./nowhere"}, "'./nowhere' is no folder"),
        ({"data": {"dsft": {"train": ["x.jsonl"]}}}, "no data for the stage ddpo"),
        ({"data": {"dsft": {"train": []}, "ddpo": {"train": ["x"]}}}, "data.dsft.train is empty"),
        ({"data": {"dsft": {"train": [3]}, "ddpo": {"train": ["x"]}}}, "data.dsft.train"),
        ({"data": {"dsft": {"train": ["x"], "shuffle": 1}, "ddpo": {"train": ["x"]}}}, "unknown key data.dsft.shuffle"),
        ({"data": {"dsft": {"train": ["x"], "held_out": 1.5}, "ddpo": {"train": ["x"]}}}, "held_out is 1.5"),
        ({"data": {"dsft": {"train": ["x"], "held_out": 0.1, "test": ["y"]}, "ddpo": {"train": ["x"]}}}, "one of the"),
        ({"sequences_a_step": {"sft": 4}}, "names the stage 'sft'"),
        ({"sequences_a_step": {"dsft": "many"}}, "sequences_a_step.dsft is 'many'"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, keys: dict[str, object], said: str):
    change(folder, **keys)
    with pytest.raises(InvalidInputError, match=said):
        Recipe.read(folder)


@pytest.mark.parametrize("override", ["learning_rate", "=3", ".=3", "dsft..x=3", "pretrain.seed=3", "dsft.seed=[1"])
def test_overrides_that_say_nothing(folder: Path, override: str):
    with pytest.raises(InvalidInputError, match="--set"):
        Recipe.read(folder, [override])


@pytest.mark.parametrize("key", ["output_dir", "model_name_or_path", "env", "resume_from_checkpoint"])
def test_keys_that_the_run_sets_are_refused_in_a_stages_file(folder: Path, key: str):
    with pytest.raises(InvalidInputError, match=f"sets {key}"):
        Recipe.read(folder, [f"dsft.{key}=x"])


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "\x00", "- a\n- b", "!!python/object/apply:os.system ['true']"])
def test_files_that_are_no_mapping(folder: Path, text: str):
    (folder / "recipe.yaml").write_text(text)
    with pytest.raises(InvalidInputError, match=r"recipe\.yaml"):
        Recipe.read(folder)


def test_a_name_that_is_no_recipe(tmp_path: Path):
    with pytest.raises(InvalidInputError, match="zephyr-7b-beta"):
        Recipe.read(tmp_path / "nothing")


def test_every_bundled_recipe_says_what_it_is():
    recipes = bundled_recipes()
    assert {"zephyr-7b-beta", "handbook", "qlora-24gb", "lora", "tiny", "tiny-short"} <= recipes.keys()
    for name, title in recipes.items():
        assert title.endswith("."), name
        Recipe.read(name)
