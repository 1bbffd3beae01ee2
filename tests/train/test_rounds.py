"""On-policy rounds: the aligned model answers, is judged, and is aligned again."""

from __future__ import annotations

import json
import shutil
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
from zephyr_local.train.asking.ledger import BudgetReachedError
from zephyr_local.train.recipe import Recipe
from zephyr_local.train.rounds import RoundSettings, run_rounds
from zephyr_local.train.run import RunOptions

N_PROMPTS = 12


def judging(messages: Messages) -> str:
    """Rates each answer by its own text: pairs come out of it."""
    parts = messages[-1]["content"].split("# Answer ")[1:]
    drawn = [1 + zlib.crc32(part.partition("\n")[2].split("# Your task")[0].strip().encode()) % 5 for part in parts]
    return "\n\n".join(f"Answer {n}\nRating: {rating}\nReason: drawn." for n, rating in enumerate(drawn, 1))


def build_with_rounds(folder: Path) -> Path:
    rounds = {"prompts": ["prompts.jsonl"], "judge": "judge", "models": "models.toml", "n_prompts": 6, "gguf": "f32"}
    rounds |= {"samples": 3, "max_tokens": 12, "ddpo": {"max_steps": 2}}
    build_recipe(folder, {"ddpo": {"max_steps": 2}}, name="small", rounds=rounds)
    prompts = (json.dumps({"prompt": f"What is {number}?"}) for number in range(N_PROMPTS))
    (folder / "prompts.jsonl").write_text("\n".join(prompts))
    return folder


@pytest.fixture(scope="module")
def first_round(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe's folder, and its run before any further round."""
    folder = build_with_rounds(tmp_path_factory.mktemp("rounds") / "recipe")
    out = folder.parent / "out"
    run_rounds(Recipe.read(folder), out, 1, RunOptions(threads=1))
    return folder, out


class Begun:
    """A copy of that run, and the recipe with its judge at an address."""

    def __init__(self, first_round: tuple[Path, Path], folder: Path, url: str, more: str = "") -> None:
        self.out = folder / "out"
        shutil.copytree(first_round[1], self.out)
        models = folder / "models.toml"
        models.write_text(f'[judge]\nurl = "{url}"\nmodel = "j"\nretry_wait_s = 0.01\nattempts = 2\n{more}')
        self._folder, self._models = first_round[0], models

    def recipe(self, *overrides: str) -> Recipe:
        return Recipe.read(self._folder, [f"rounds.models={self._models}", *overrides])


def rated(out: Path, number: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / f"round-{number}" / "rated.jsonl").read_text().splitlines()]


def test_each_round_answers_is_judged_and_trains_from_the_one_before(tmp_path: Path, first_round: tuple[Path, Path]):
    said: list[str] = []
    with StandIn(judging) as stand_in:
        begun = Begun(first_round, tmp_path, stand_in.url)
        out = begun.out
        result = run_rounds(begun.recipe(), out, 3, RunOptions(threads=1), said.append)
        n_asked = len(stand_in.served)
        assert n_asked == 2 * 6 * 4  # two rounds of six prompts, judged by four criteria
        assert result.model == out / "round-3" / "run" / "ddpo"
        again = run_rounds(begun.recipe(), out, 3, RunOptions(threads=1), said.append)
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


def test_a_round_goes_on_where_its_judge_left_it(tmp_path: Path, first_round: tuple[Path, Path]):
    with StandIn(judging, lambda number: Fault.ERROR if number >= 10 else None) as stand_in:
        begun = Begun(first_round, tmp_path, stand_in.url)
        with pytest.raises(UnansweredError):
            run_rounds(begun.recipe(), begun.out, 2, RunOptions(threads=1))
        stand_in.faults = lambda _number: None
        n_before = len(stand_in.served)
        run_rounds(begun.recipe(), begun.out, 2, RunOptions(threads=1))
        assert len(stand_in.served) - n_before == 24 - 10
    assert len(rated(begun.out, 2)) == 6


def test_a_half_rated_round_is_not_mixed_with_another(tmp_path: Path, first_round: tuple[Path, Path]):
    with StandIn(judging, lambda _number: Fault.FORBIDDEN) as stand_in:
        begun = Begun(first_round, tmp_path, stand_in.url)
        with pytest.raises(InvalidInputError, match="401"):
            run_rounds(begun.recipe(), begun.out, 2, RunOptions(threads=1))
        with pytest.raises(InvalidInputError, match=r"begun with other settings: rounds.samples was 3"):
            run_rounds(begun.recipe("rounds.samples=2"), begun.out, 2, RunOptions(threads=1))


def test_a_budget_that_ends_a_round_leaves_it_to_go_on(tmp_path: Path, first_round: tuple[Path, Path]):
    with StandIn(judging) as stand_in:
        begun = Begun(first_round, tmp_path, stand_in.url, "price = {input = 1000, output = 1000}")
        with pytest.raises(BudgetReachedError):
            run_rounds(begun.recipe("rounds.budget=4"), begun.out, 2, RunOptions(threads=1))
        assert not (begun.out / "round-2" / "rated.jsonl").exists()
        assert 0 < len(stand_in.served) < 24
        run_rounds(begun.recipe("rounds.budget=1000"), begun.out, 2, RunOptions(threads=1))
        assert len(stand_in.served) == 24
    assert len(rated(begun.out, 2)) == 6


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["rounds.speed=3"], "unknown key speed"),
        (["rounds.judge=''"], "names no judge"),
        (["rounds.prompts=[]"], "has neither data nor prompts"),
        (["rounds.data=['made:x?n=1']"], "has both data and prompts"),
    ],
)
def test_rounds_that_are_wrong_are_told_before_anything_runs(tmp_path: Path, overrides: list[str], words: str):
    build_with_rounds(tmp_path / "recipe")
    with pytest.raises(InvalidInputError, match=words):
        RoundSettings.of(Recipe.read(tmp_path / "recipe", overrides))


def test_a_recipe_without_rounds_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = build_recipe(tmp_path / "recipe", {"dsft": {}, "ddpo": {}}, name="small")
    assert command_line(["train", "run", str(folder), "-o", str(tmp_path / "out"), "--rounds", "2"]) == 2
    assert "the recipe small has no rounds" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_rounds_want_the_stage_that_they_repeat():
    with pytest.raises(InvalidInputError, match="which the recipe has not"):
        RoundSettings.of(Recipe.read("tiny", ["stages=[pretrain, dsft]"]))


@pytest.mark.parametrize("name", ["tiny", "qlora-24gb", "zephyr-7b-beta"])
def test_bundled_recipes_have_rounds(name: str):
    settings = RoundSettings.of(Recipe.read(name, ["rounds.judge=bundled"]))
    assert bool(settings.data) != bool(settings.prompts)
