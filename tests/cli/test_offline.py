"""Offline, what would ask the network is refused before anything is asked; what stays on this machine goes on."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from tests.cli.without_network import ENDPOINT, Answer, Ran, without_network
from tests.model_store.store_fixtures import COMMIT
from tests.train.evaluate.mt_data import drawn, write_bench
from tests.train.evaluate.test_alpaca_eval import fair, reference
from tests.train.feedback.test_feedback import judging, write_prompts
from tests.train.recipe_builder import build_recipe

ADDRESS = "http://203.0.113.1/v1"  # of documentation: RFC 5737
NAME = "http://judge.example/v1"


@dataclass(frozen=True)
class Way:
    """One of those in which a user says offline."""

    name: str
    option: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)


WAYS = [
    Way("option", option=("--offline",)),
    Way("own variable", variables={"ZEPHYR_LOCAL_OFFLINE": "1"}),
    Way("hub variable", variables={"HF_HUB_OFFLINE": "1"}),
]
each_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)


def refused(home: Path, way: Way, *arguments: str | Path, answer: Answer | None = None) -> str:
    """What a command says that offline does not let ask the network; nobody was asked."""
    ran = without_network(*way.option, *arguments, home=home, environment=way.variables, answer=answer)
    assert ran.code == 7, ran.err
    assert ran.asked_nobody, (ran.attempts, ran.counted)
    last = ran.err.splitlines()[-1]
    assert "this is offline" in last
    return last


def went_on(home: Path, way: Way, *arguments: str | Path, answer: Answer | None = None, **variables: str) -> Ran:
    ran = without_network(*way.option, *arguments, home=home, environment=way.variables | variables, answer=answer)
    assert ran.code == 0, ran.err
    assert ran.asked_nobody, (ran.attempts, ran.counted)
    return ran


@each_way
def test_a_pull_is_refused(tmp_path: Path, way: Way):
    assert "pull zephyr-7b-beta needs the network" in refused(tmp_path, way, "pull", "zephyr-7b-beta")
    assert list((tmp_path / "data").rglob("*")) == []


@each_way
@pytest.mark.parametrize("url", [ADDRESS, NAME])
def test_a_model_or_judge_beyond_this_machine_is_refused(tmp_path: Path, way: Way, url: str):
    alpaca = ("evaluate", "alpaca-eval", "--reference", reference(tmp_path), "--out", tmp_path / "alpaca")
    assert f"asking m at {url}" in refused(tmp_path, way, *alpaca, f"{url}#m", "--judge", "bundled")
    bench = ("evaluate", "mt-bench", *write_bench(tmp_path), "--out", tmp_path / "bench")
    assert f"asking j at {url}" in refused(tmp_path, way, *bench, "bundled", "--judge", f"{url}#j")
    feedback = (
        "data",
        "feedback",
        write_prompts(tmp_path, 2),
        "-o",
        tmp_path / "rated.jsonl",
        "--candidate",
        "bundled",
    )
    who = ("--candidate", f"{url}#c", "--judge", f"{ENDPOINT}#j")
    assert f"asking c at {url}" in refused(tmp_path, way, *feedback, *who, answer=judging)
    assert not (tmp_path / "rated.jsonl").exists()


def test_an_endpoint_of_a_models_file_is_refused_by_the_name_that_it_has_there(tmp_path: Path):
    models = tmp_path / "models.toml"
    models.write_text(f'[far]\nurl = "{NAME}"\nmodel = "org/judge"\napi_key_env = "NO_SUCH_KEY"\n')
    bench = ("evaluate", "mt-bench", *write_bench(tmp_path), "--out", tmp_path / "bench")
    assert f"asking far at {NAME}" in refused(
        tmp_path, WAYS[0], *bench, "bundled", "--judge", "far", "--models", models
    )


@each_way
def test_an_endpoint_on_loopback_answers(tmp_path: Path, way: Way):
    who = (f"{ENDPOINT}#mine", "--judge", f"{ENDPOINT}#judge", "--json")
    alpaca = ("evaluate", "alpaca-eval", "--reference", reference(tmp_path), "--out", tmp_path / "alpaca")
    assert json.loads(went_on(tmp_path, way, *alpaca, *who, answer=fair).out)["n_total"] == 12
    bench = ("evaluate", "mt-bench", *write_bench(tmp_path), "--out", tmp_path / "bench", "--limit", "2")
    assert json.loads(went_on(tmp_path, way, *bench, *who, answer=drawn).out)["models"][0]["model"] == "mine"


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_what_is_on_loopback_is_not_asked_through_a_proxy(tmp_path: Path, variable: str):
    bench = ("evaluate", "mt-bench", *write_bench(tmp_path), "--out", tmp_path / "bench", "--limit", "2")
    who = (f"{ENDPOINT}#mine", "--judge", f"{ENDPOINT}#judge")
    proxy = {variable: "http://203.0.113.1:3128"}
    went_on(tmp_path, WAYS[0], *bench, *who, answer=drawn, **proxy)
    went_on(tmp_path, Way("online"), *bench, *who, "--limit", "3", answer=drawn, **proxy)


# --- training ---


def recipe_with(folder: Path, **changes: object) -> Path:
    """A recipe that a run would begin with, with other keys of recipe.yaml."""
    folder.mkdir()
    file = build_recipe(folder, {"dsft": {}, "ddpo": {}}) / "recipe.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | changes))
    return folder


def in_hub_cache(home: Path, base: Path, repository: str = "org/base") -> None:
    cached = home / ".cache/huggingface/hub" / f"models--{repository.replace('/', '--')}"
    shutil.copytree(base, cached / "snapshots" / COMMIT)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text(COMMIT)


@each_way
def test_a_base_that_is_not_here_is_not_fetched(tmp_path: Path, way: Way):
    recipe = recipe_with(tmp_path / "recipe", base="org/base")
    said = refused(tmp_path, way, "train", "run", recipe, "-o", tmp_path / "run")
    assert "fetching the base org/base, which is not on this machine, needs the network" in said
    assert not (tmp_path / "run").exists()


@each_way
def test_data_of_the_hub_is_not_read_and_a_base_in_the_cache_is_no_connection(tmp_path: Path, way: Way):
    data = {"dsft": {"train": ["dialogues.jsonl"]}, "ddpo": {"train": ["hub:org/pairs@train"]}}
    recipe = recipe_with(tmp_path / "recipe", base="org/base", data=data)
    in_hub_cache(tmp_path, recipe / "base")
    said = refused(tmp_path, way, "train", "run", recipe, "-o", tmp_path / "run")
    assert "reading hub:org/pairs@train for ddpo needs the network" in said
    assert not (tmp_path / "run").exists()  # though the stage before it could have been trained


def test_a_bundled_recipe_is_refused_by_what_it_needs_first(tmp_path: Path):
    said = refused(tmp_path, WAYS[0], "train", "run", "zephyr-7b-beta", "-o", tmp_path / "run")
    assert "fetching the base mistralai/Mistral-7B-v0.1" in said


@pytest.mark.parametrize(
    ("rounds", "words"),
    [
        ({"prompts": ["pairs.jsonl"], "judge": f"{NAME}#j"}, f"asking j at {NAME} needs the network"),
        ({"prompts": ["hub:org/prompts@test"], "judge": "bundled"}, "reading hub:org/prompts@test for round 2"),
        ({"data": ["hub:org/rated@{round}"]}, "reading hub:org/rated@{round} for round 2"),
    ],
)
def test_what_a_later_round_would_ask_is_refused_before_the_first(
    tmp_path: Path, rounds: dict[str, object], words: str
):
    recipe = recipe_with(tmp_path / "recipe", rounds=rounds)
    assert words in refused(tmp_path, WAYS[0], "train", "run", recipe, "--rounds", "2", "-o", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_whose_base_is_in_the_hubs_cache_trains_offline(tmp_path: Path):
    recipe = recipe_with(tmp_path / "recipe", base="org/base", stages=["dsft"])
    in_hub_cache(tmp_path, recipe / "base")
    went_on(tmp_path, WAYS[0], "train", "run", recipe, "-o", tmp_path / "run", "--set", "dsft.max_steps=2")
    assert (tmp_path / "run/dsft/done.json").is_file()


def test_a_process_of_training_that_may_ask_the_hub_reports_nothing(tmp_path: Path):
    told = """
import os
from zephyr_local.train.child import run_child
def work():
    import datasets.config, huggingface_hub.constants as hub
    print(hub.HF_HUB_OFFLINE, hub.HF_HUB_DISABLE_TELEMETRY, datasets.config.HF_UPDATE_DOWNLOAD_COUNTS)
run_child(work, online=True)
"""
    ran = without_network(told, home=tmp_path, program=["-c"], environment={"HF_HUB_OFFLINE": "0"})
    assert ran.out == "False True False\n", ran.err


def test_another_process_of_training_asks_nobody_whatever_the_environment_says(tmp_path: Path):
    told = """
from zephyr_local.train.child import run_child
def work():
    import huggingface_hub.constants as hub
    print(hub.HF_HUB_OFFLINE, hub.HF_HUB_DISABLE_TELEMETRY)
run_child(work)
"""
    ran = without_network(told, home=tmp_path, program=["-c"], environment={"HF_HUB_OFFLINE": "0"})
    assert ran.out == "True True\n", ran.err
