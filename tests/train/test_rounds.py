"""On-policy rounds: the aligned model answers, is judged, and is aligned again."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.stand_in_endpoint import Fault, Messages, StandIn
from tests.train.recipe_builder import build_recipe
from zephyr_local.cli.main import run as command_line
from zephyr_local.errors import InvalidInputError
from zephyr_local.train.asking.asker import UnansweredError
from zephyr_local.train.recipe import Recipe
from zephyr_local.train.rounds import RoundSettings, run_rounds
from zephyr_local.train.run import RunOptions

N_PROMPTS = 12


def judging(messages: Messages) -> str:
    """Rates each answer by its own text: pairs come out of it."""
    parts = messages[-1]["content"].split("# Answer ")[1:]
    drawn = [1 + zlib.crc32(part.partition("\n")[2].split("# Your task")[0].strip().encode()) % 5 for part in parts]
    return "\n\n".join(f"Answer {n}\nRating: {rating}\nReason: drawn." for n, rating in enumerate(drawn, 1))


def recipe_with_rounds(folder: Path, url: str) -> Recipe:
    rounds = {"prompts": ["prompts.jsonl"], "judge": "judge", "models": "models.toml", "n_prompts": 6, "gguf": "f32"}
    rounds |= {"samples": 3, "max_tokens": 12, "ddpo": {"max_steps": 2}}
    build_recipe(folder, {"dsft": {"max_steps": 2}, "ddpo": {"max_steps": 2}}, name="small", rounds=rounds)
    prompts = (json.dumps({"prompt": f"What is {number}?"}) for number in range(N_PROMPTS))
    (folder / "prompts.jsonl").write_text("\n".join(prompts))
    (folder / "models.toml").write_text(f'[judge]\nurl = "{url}"\nmodel = "j"\nretry_wait_s = 0.01\nattempts = 2\n')
    return Recipe.read(folder)


def rated(out: Path, number: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / f"round-{number}" / "rated.jsonl").read_text().splitlines()]


def test_each_round_answers_is_judged_and_trains_from_the_one_before(tmp_path: Path):
    said: list[str] = []
    out = tmp_path / "out"
    with StandIn(judging) as stand_in:
        recipe = recipe_with_rounds(tmp_path / "recipe", stand_in.url)
        result = run_rounds(recipe, out, 3, RunOptions(threads=1), said.append)
        n_asked = len(stand_in.served)
        assert n_asked == 2 * 6 * 4  # two rounds of six prompts, judged by four criteria
        assert result.model == out / "round-3" / "run" / "ddpo"
        again = run_rounds(recipe, out, 3, RunOptions(threads=1), said.append)
        assert again == result
        assert len(stand_in.served) == n_asked
    assert [record["instruction"] for record in rated(out, 2)] == [f"What is {n}?" for n in range(6)]
    assert [record["instruction"] for record in rated(out, 3)] == [f"What is {n}?" for n in range(6, 12)]
    assert rated(out, 2)[0]["models"] == ["round 1 #1", "round 1 #2", "round 1 #3"]
    bases = [yaml.safe_load((out / f"round-{n}/run/recipe/recipe.yaml").read_text())["base"] for n in (2, 3)]
    assert bases == [str(out / "ddpo"), str(out / "round-2" / "run" / "ddpo")]
    assert json.loads((out / "round-2" / "run" / "ddpo" / "results.json").read_text())["n_steps"] == 2
    weights = [(folder / "model.safetensors").read_bytes() for folder in (out / "ddpo", Path(bases[1]), result.model)]
    assert len(set(weights)) == 3
    assert not list(out.glob("round-*/*.gguf"))  # what answered is not kept


def test_a_round_goes_on_where_its_judge_left_it(tmp_path: Path):
    out = tmp_path / "out"
    with StandIn(judging) as stand_in:
        recipe = recipe_with_rounds(tmp_path / "recipe", stand_in.url)
        stand_in.faults = lambda number: Fault.ERROR if number >= 10 else None
        with pytest.raises(UnansweredError):
            run_rounds(recipe, out, 2, RunOptions(threads=1))
        kept = 10
        stand_in.faults = lambda _number: None
        n_before = len(stand_in.served)
        run_rounds(recipe, out, 2, RunOptions(threads=1))
        assert len(stand_in.served) - n_before == 24 - kept
    assert len(rated(out, 2)) == 6


def test_a_half_rated_round_is_not_mixed_with_another(tmp_path: Path):
    out = tmp_path / "out"
    with StandIn(judging, lambda _number: Fault.FORBIDDEN) as stand_in:
        recipe = recipe_with_rounds(tmp_path / "recipe", stand_in.url)
        with pytest.raises(InvalidInputError, match="401"):
            run_rounds(recipe, out, 2, RunOptions(threads=1))
        other = Recipe.read(tmp_path / "recipe", ["rounds.samples=2"])
        with pytest.raises(InvalidInputError, match=r"begun with other settings: rounds.samples was 3"):
            run_rounds(other, out, 2, RunOptions(threads=1))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["rounds.speed=3"], "unknown key speed"),
        (["rounds.judge=''"], "names no judge"),
        (["rounds.prompts=[]"], "has neither data and prompts"),
        (["rounds.data=['made:x?n=1']"], "has both data and prompts"),
        (["stages=[dsft]"], "which the recipe has not"),
    ],
)
def test_rounds_that_are_wrong_are_told_before_anything_runs(tmp_path: Path, overrides: list[str], words: str):
    recipe_with_rounds(tmp_path / "recipe", "http://127.0.0.1:9/v1")
    with pytest.raises(InvalidInputError, match=words):
        RoundSettings.of(Recipe.read(tmp_path / "recipe", overrides))


def test_a_recipe_without_rounds_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = build_recipe(tmp_path / "recipe", {"dsft": {}, "ddpo": {}}, name="small")
    assert command_line(["train", "run", str(folder), "-o", str(tmp_path / "out"), "--rounds", "2"]) == 2
    assert "the recipe small has no rounds" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["tiny", "qlora-24gb", "zephyr-7b-beta"])
def test_bundled_recipes_have_rounds(name: str):
    settings = RoundSettings.of(Recipe.read(name, ["rounds.judge=bundled"]))
    assert bool(settings.data) != bool(settings.prompts)
