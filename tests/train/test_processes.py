"""Two processes reach the losses of one with twice the batch."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import skip_or_fail
from tests.train.recipe_builder import build_recipe
from zephyr_local.errors import InvalidInputError
from zephyr_local.train.launch import LaunchOptions, launcher_file
from zephyr_local.train.recipe import Recipe
from zephyr_local.train.run import RunOptions, run_recipe

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    keys: dict[str, Any] = {"logging_steps": 1, "dataloader_drop_last": True}
    return build_recipe(tmp_path_factory.mktemp("recipe"), {"dsft": keys, "ddpo": keys})


def losses(out: Path, stage: str) -> list[float]:
    log = json.loads((out / stage / "results.json").read_text())["log"]
    return [entry["loss"] for entry in log if "loss" in entry]


def train(recipe: Path, out: Path, launch: LaunchOptions, per_device: int, *more: str) -> Path:
    overrides = [f"{stage}.per_device_train_batch_size={per_device}" for stage in ("dsft", "ddpo")]
    overrides += ["sequences_a_step={dsft: 4, ddpo: 4}", *more]
    run_recipe(Recipe.read(recipe, overrides), out, RunOptions(threads=1, launch=launch))
    return out


@pytest.fixture(scope="module")
def one(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(recipe, tmp_path_factory.mktemp("one"), LaunchOptions(), 4)


@pytest.mark.slow
def test_ddp(recipe: Path, one: Path, tmp_path: Path):
    two = train(recipe, tmp_path / "two", LaunchOptions(launcher="torchrun", n_processes=2), 2)
    for stage in ("dsft", "ddpo"):
        assert losses(two, stage) == pytest.approx(losses(one, stage), abs=TOLERANCE)
        assert json.loads((two / stage / "results.json").read_text())["processes"] == 2


@pytest.mark.slow
def test_zero3(recipe: Path, one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if importlib.util.find_spec("deepspeed") is None:
        skip_or_fail("deepspeed", "pip install --no-build-isolation deepspeed")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    # The bundled file computes in bfloat16, which is not what one process in float32 is to be compared with.
    file = tmp_path / "zero3-float32.yaml"
    file.write_text(launcher_file("zero3").read_text().replace("mixed_precision: bf16", "mixed_precision: 'no'"))
    assert "'no'" in file.read_text()
    two = train(recipe, tmp_path / "two", LaunchOptions(launcher=file, n_processes=2), 2)
    for stage in ("dsft", "ddpo"):
        assert losses(two, stage) == pytest.approx(losses(one, stage), abs=TOLERANCE)


def test_the_batch_is_asserted(recipe: Path, tmp_path: Path):
    with pytest.raises(InvalidInputError) as refused:
        train(recipe, tmp_path / "out", LaunchOptions(), 3)
    assert "3 a process x accumulation 1 x 1 processes make 3 sequences a step, not 4" in refused.value.problem
