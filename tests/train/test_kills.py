"""A run that is killed goes on, and ends with the same weights; the same run twice gives the same bytes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import pytest

from tests.train.recipe_builder import build_recipe
from zephyr_local.train.recipe import Recipe
from zephyr_local.train.run import RunOptions, run_recipe

STEPS = {"max_steps": 40, "save_steps": 3}
ONE_THREAD = RunOptions(threads=1)
KILLS = 5


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_recipe(
        tmp_path_factory.mktemp("recipe"), {"dsft": STEPS, "ddpo": STEPS}, export=["q4_k_m"], name="recipe"
    )


@pytest.fixture(scope="module")
def undisturbed(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed")
    run_recipe(Recipe.read(recipe), out, ONE_THREAD)
    return files(out)


def files(out: Path) -> dict[str, bytes]:
    """What a run is for: weights, ids and the GGUF."""
    names = ("dsft/model.safetensors", "ddpo/model.safetensors", "data/dsft/train.jsonl", "data/ddpo/train.jsonl")
    return {name: (out / name).read_bytes() for name in (*names, "recipe-Q4_K_M.gguf")}


def start(recipe: Path, out: Path, said: int | IO[str] = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-P",
        "-m",
        "zephyr_local",
        "train",
        "run",
        str(recipe),
        "-o",
        str(out),
        "--threads",
        "1",
    ]
    return subprocess.Popen(command, start_new_session=True, stderr=said, stdout=said)


def wait_for_a_checkpoint(process: subprocess.Popen[bytes], out: Path) -> None:
    deadline = time.monotonic() + 240
    while not list((out / "dsft" / "checkpoints").glob("checkpoint-*/whole")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_twice_is_the_same_to_the_byte(recipe: Path, undisturbed: dict[str, bytes], tmp_path: Path):
    out = tmp_path / "again"
    run_recipe(Recipe.read(recipe), out, ONE_THREAD)
    assert files(out) == undisturbed


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_random_moments_it_ends_with_the_same_weights(
    recipe: Path, undisturbed: dict[str, bytes], tmp_path: Path
):
    out = tmp_path / "killed"
    seed = int(os.environ.get("ZEPHYR_TEST_SEED", time.time_ns() % 1_000_000))
    dice = random.Random(seed)
    killed = 0
    while killed < KILLS:
        process = start(recipe, out)
        try:
            code = process.wait(dice.uniform(2, 20))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
        else:
            assert code == 0, f"seed {seed}"
            break
    else:
        run_recipe(Recipe.read(recipe), out, ONE_THREAD)
    assert killed >= 1, "the run was over before the first kill"
    assert files(out) == undisturbed, f"seed {seed}"


def test_after_a_kill_it_goes_on_from_a_whole_checkpoint_and_ends_when_told_to(tmp_path: Path):
    recipe = build_recipe(tmp_path / "recipe", {"dsft": {"max_steps": 400, "save_steps": 2}})
    out = tmp_path / "out"
    process = start(recipe, out)
    checkpoints = out / "dsft" / "checkpoints"
    wait_for_a_checkpoint(process, out)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # As a kill in the middle of saving leaves it: newer than the whole one, and not to be gone on from.
    damaged = checkpoints / "checkpoint-9999"
    damaged.mkdir()
    (damaged / "trainer_state.json").write_text("{")
    again = start(recipe, out)
    try:
        deadline = time.monotonic() + 240
        while damaged.exists():
            assert again.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        newest = max(int(path.parent.name.rpartition("-")[2]) for path in checkpoints.glob("checkpoint-*/whole"))
        while max(int(p.parent.name.rpartition("-")[2]) for p in checkpoints.glob("checkpoint-*/whole")) <= newest:
            assert again.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        again.terminate()  # the command alone, as a scheduler does
        assert again.wait(60) != 0
        with (out / ".lock").open("rb+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nothing of the run was left behind
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(again.pid, signal.SIGKILL)
        again.wait()


def test_ctrl_c_says_one_line(tmp_path: Path):
    recipe = build_recipe(tmp_path / "recipe", {"dsft": {"max_steps": 400, "save_steps": 2}})
    out = tmp_path / "out"
    with (tmp_path / "said").open("w") as said:
        process = start(recipe, out, said)
    wait_for_a_checkpoint(process, out)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.wait(60) == 130
    text = (tmp_path / "said").read_text()
    assert f"Stopped. The same command goes on from the last checkpoint in {out}." in text
    assert "Traceback" not in text
