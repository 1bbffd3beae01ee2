"""A recipe from data to a chatting GGUF, in the processes that a user gets."""

from __future__ import annotations

import fcntl
import json
import math
import os
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.train.recipe_builder import build_recipe
from zephyr_local import Zephyr
from zephyr_local.cli.main import run as command_line
from zephyr_local.errors import InvalidInputError, OutputError
from zephyr_local.settings import Sampling
from zephyr_local.train.chat_ids import ChatIds
from zephyr_local.train.recipe import Recipe
from zephyr_local.train.run import RunOptions, run_recipe
from zephyr_local.train.run_folder import RunFolder


@pytest.fixture(scope="module")
def recipe_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_recipe(
        tmp_path_factory.mktemp("recipe"), {"dsft": {}, "ddpo": {"logging_steps": 1}}, export=["q4_k_m"], name="small"
    )


@pytest.fixture(scope="module")
def done(recipe_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    out = tmp_path_factory.mktemp("run") / "out"
    said: list[str] = []
    run_recipe(Recipe.read(recipe_folder), out, RunOptions(threads=1, plot=True), said.append)
    return out, said


def test_a_stage_leaves_a_checkpoint_like_any_other(done: tuple[Path, list[str]], recipe_folder: Path):
    out, _ = done
    for stage in ("dsft", "ddpo"):
        names = {path.name for path in (out / stage).iterdir()}
        expected = {"config.json", "model.safetensors", "tokenizer.model", "tokenizer.json", "chat_template.jinja"}
        assert expected | {"README.md", "results.json", "done.json", "runs", "plots"} <= names
        assert not names & {"training_args.bin", "checkpoints", ".model.part"}
        config = json.loads((out / stage / "config.json").read_text())
        assert config["use_cache"] is True
        tokenizer_model = (recipe_folder / "base" / "tokenizer.model").read_bytes()
        assert (out / stage / "tokenizer.model").read_bytes() == tokenizer_model
        assert list((out / stage / "runs").glob("events.out.tfevents.*"))
    assert {path.name for path in (out / "ddpo" / "plots").iterdir()} >= {"loss.png", "rewards.png"}
    model = AutoModelForCausalLM.from_pretrained(out / "ddpo")
    before = AutoModelForCausalLM.from_pretrained(recipe_folder / "base")
    assert not torch.equal(model.lm_head.weight, before.lm_head.weight)


def test_the_tokenizer_that_it_leaves_gives_the_ids_that_it_was_trained_on(done: tuple[Path, list[str]]):
    out, _ = done
    tokenizer = AutoTokenizer.from_pretrained(out / "ddpo")
    chats = ChatIds(out / "ddpo", template=str(out / "ddpo" / "chat_template.jinja"))
    from zephyr_local.chat_types import Message

    text = "Is a cow red? <0x0A> </b> naïve"
    prompt = chats.prompt_ids([Message("user", text)])
    chat = [{"role": "user", "content": text}]
    assert tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] == prompt


def test_results_tell_loss_rewards_and_speed(done: tuple[Path, list[str]]):
    out, _ = done
    results = json.loads((out / "ddpo" / "results.json").read_text())
    logged = [entry for entry in results["log"] if "loss" in entry]
    assert len(logged) == 6
    assert {"rewards/margins", "rewards/accuracies", "num_tokens"} <= logged[-1].keys()
    assert logged[0]["loss"] == pytest.approx(math.log(2))  # the policy is the reference at first
    assert logged[-1]["loss"] < logged[0]["loss"]
    assert results["n_steps"] == 6
    assert results["peak_rss_bytes"] > 1e8
    assert "trl" in results["versions"]


def test_the_card_says_what_the_model_was_made_from(done: tuple[Path, list[str]], recipe_folder: Path):
    out, _ = done
    card = (out / "dsft" / "README.md").read_text()
    assert card.startswith("---\nmodel_name: small\nlicense: apache-2.0\n")
    assert "dialogues.jsonl" in card
    assert str(out) not in card
    assert str(recipe_folder) not in card
    assert "| `learning_rate` | `0.001` |" in card
    assert "transformers" in card


def test_the_gguf_chats(done: tuple[Path, list[str]]):
    out, _ = done
    with Zephyr(out / "small-Q4_K_M.gguf") as zephyr:
        reply = zephyr.complete([{"role": "user", "content": "Cow?"}], Sampling(temperature=0, max_tokens=8))
        assert reply.finish.completion_tokens > 0
        assert zephyr.notices == ()


def test_what_is_done_is_not_done_again(done: tuple[Path, list[str]], recipe_folder: Path):
    out, _ = done
    before = {path: path.stat().st_mtime_ns for path in (out / "dsft").iterdir()}
    said: list[str] = []
    result = run_recipe(Recipe.read(recipe_folder), out, RunOptions(threads=1), said.append)
    assert said == ["dsft: done before", "ddpo: done before"]
    assert result.ggufs == (out / "small-Q4_K_M.gguf",)
    assert {path: path.stat().st_mtime_ns for path in (out / "dsft").iterdir()} == before


def test_other_settings_are_refused_by_name(done: tuple[Path, list[str]], recipe_folder: Path):
    out, _ = done
    changed = Recipe.read(recipe_folder, ["dsft.learning_rate=2e-3", "ddpo.beta=0.5", "dsft.logging_steps=1"])
    with pytest.raises(InvalidInputError) as refused:
        run_recipe(changed, out)
    assert "dsft.learning_rate was 0.001 and is 0.002" in refused.value.problem
    assert "ddpo.beta was nothing and is 0.5" in refused.value.problem
    assert "logging_steps" not in refused.value.problem
    assert yaml.safe_load((out / "recipe" / "dsft.yaml").read_text())["learning_rate"] == 0.001


def test_other_data_are_refused(done: tuple[Path, list[str]], recipe_folder: Path):
    out, _ = done
    data = recipe_folder / "pairs.jsonl"
    before = data.read_bytes()
    data.write_bytes(before + before.splitlines(keepends=True)[0])
    try:
        with pytest.raises(InvalidInputError, match=r"data\.ddpo\.digest"):
            run_recipe(Recipe.read(recipe_folder), out)
    finally:
        data.write_bytes(before)


def test_data_that_was_wrong_from_the_start_can_be_mended(recipe_folder: Path, tmp_path: Path):
    (tmp_path / "wrong.jsonl").write_text("hello\n")
    wrong = Recipe.read(recipe_folder, [f"data.dsft={{train: [{tmp_path}/wrong.jsonl]}}"])
    with pytest.raises(InvalidInputError, match=r"wrong\.jsonl:1 is not JSON"):
        run_recipe(wrong, tmp_path / "out", RunOptions(only="dsft", threads=1))
    right = Recipe.read(recipe_folder, ["dsft.max_steps=1"])
    run_recipe(right, tmp_path / "out", RunOptions(only="dsft", threads=1, export=()))
    assert (tmp_path / "out" / "dsft" / "model.safetensors").is_file()


def test_a_folder_with_something_else_in_it_is_left_alone(recipe_folder: Path, tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InvalidInputError, match="is not empty and holds no run"):
        run_recipe(Recipe.read(recipe_folder), tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_two_runs_do_not_work_in_one_folder(recipe_folder: Path, tmp_path: Path):
    descriptor = os.open(tmp_path / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(OutputError, match="another run works in"):
            run_recipe(Recipe.read(recipe_folder), tmp_path)
    finally:
        os.close(descriptor)


def test_the_second_stage_alone_wants_the_first_done(recipe_folder: Path, tmp_path: Path):
    with pytest.raises(InvalidInputError, match="the stage dsft comes first and is not done"):
        run_recipe(Recipe.read(recipe_folder), tmp_path / "out", RunOptions(only="ddpo"))


def test_a_stage_that_trl_refuses_says_so_and_leaves_no_model(
    recipe_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    flags = ["train", "dsft", str(recipe_folder), "-o", str(out), "--set", "dsft.learning_rat=1", "--threads", "1"]
    assert command_line(flags) == 2
    said = capfd.readouterr().err
    assert "learning_rat" in said.splitlines()[-1]
    assert "zephyr-local: error:" in said
    assert "Traceback" not in said
    assert not RunFolder(out).stage("dsft").done.exists()
