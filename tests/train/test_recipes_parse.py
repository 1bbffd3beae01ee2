"""The bundled recipes: TRL takes every key, on a machine without a GPU too, and each holds what its sources say."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from zephyr_local.errors import InvalidInputError
from zephyr_local.train.guard import batch_problems
from zephyr_local.train.launch import Layout
from zephyr_local.train.recipe import RECIPES_FOLDER, Recipe, bundled_recipes
from zephyr_local.train.stage_plan import plan_stage, trl_arguments

NAMES = ("handbook", "lora", "qlora-24gb", "tiny", "tiny-short", "zephyr-7b-beta")
LAUNCHED: dict[str, tuple[Layout, int]] = {
    "zephyr-7b-beta": ("zero3", 16),
    "handbook": ("zero3", 8),
}
FILES = sorted(RECIPES_FOLDER.glob("*/*.yaml"))


def test_the_recipes_that_are_promised_are_there() -> None:
    assert tuple(bundled_recipes()) == NAMES
    assert all(len(line) > 20 for line in bundled_recipes().values())


@pytest.mark.parametrize("name", NAMES)
def test_trl_takes_each_stage_and_the_step_is_what_the_recipe_says(name: str) -> None:
    recipe = Recipe.read(name)
    layout, n_processes = LAUNCHED.get(name, ("one", 1))
    for stage in recipe.stages:
        plan = plan_stage(recipe, stage, layout, n_processes)
        assert recipe.sequences_a_step[stage] == plan.product
        assert batch_problems(plan) == []
        assert plan.max_length


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_numbers_are_numbers_to_every_yaml_reader(file: Path) -> None:
    """YAML 1.1 reads 2e-5 as a text; written with a point it is a number to all."""
    ours = Recipe.read(file.parent)
    plain = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert plain == (ours.own if file.stem == "recipe" else ours.trl[file.stem])  # type: ignore[index]


@pytest.mark.parametrize(
    "file",
    [file for file in FILES if not file.parent.name.startswith("tiny") and file.stem != "recipe"],
    ids=lambda file: f"{file.parent.name}/{file.name}",
)
def test_keys_that_decide_the_weights_name_their_source(file: Path) -> None:
    free = {"per_device_eval_batch_size", "save_strategy", "save_steps", "save_total_limit", "logging_steps"}
    free |= {"eval_steps", "gradient_accumulation_steps", "activation_checkpointing_kwargs", "use_peft"}
    free |= {"per_device_train_batch_size"}
    previous = ""
    for line in file.read_text(encoding="utf-8").splitlines():
        key = line.partition(":")[0]
        if line and not line.startswith("#") and key not in free:
            assert " # " in line or previous.startswith("#"), line
        previous = line


def test_the_paper_s_recipe_has_the_paper_s_numbers() -> None:
    """Tunstall et al. 2023, sections 4, 4.3 and 4.4."""
    recipe = Recipe.read("zephyr-7b-beta")
    sft, model = trl_arguments("dsft", recipe.trl["dsft"])
    assert (sft.learning_rate, sft.lr_scheduler_type, sft.warmup_steps, sft.weight_decay) == (2e-5, "cosine", 0.1, 0)
    assert (sft.max_length, sft.packing, sft.packing_strategy, sft.num_train_epochs) == (2048, True, "wrapped", 1)
    assert sft.bf16
    assert sft.activation_checkpointing
    assert (model.dtype, model.attn_implementation, model.use_peft) == ("bfloat16", "flash_attention_2", False)
    dpo, _ = trl_arguments("ddpo", recipe.trl["ddpo"])
    assert (dpo.learning_rate, dpo.lr_scheduler_type, dpo.warmup_steps, dpo.beta) == (5e-7, "linear", 0.1, 0.1)
    assert (dpo.num_train_epochs, dpo.precompute_ref_log_probs) == (3, True)
    assert recipe.sequences_a_step == {"dsft": 512, "ddpo": 32}


def test_warmup_is_a_tenth_of_the_steps_not_a_tenth_of_one() -> None:
    sft, _ = trl_arguments("dsft", Recipe.read("zephyr-7b-beta").trl["dsft"])
    assert sft.get_warmup_steps(1000) == 100


def test_the_cpu_recipes_turn_off_what_trl_turns_on() -> None:
    for name in ("tiny", "tiny-short"):
        recipe = Recipe.read(name)
        for stage in recipe.stages:
            training, model = trl_arguments(stage, recipe.trl[stage])
            assert recipe.trl[stage]["use_cpu"] is True
            assert (training.bf16, training.activation_checkpointing, model.dtype) == (False, False, "float32")
            assert training.full_determinism


def test_qlora_quantises_twice_and_trains_all_linear_layers() -> None:
    plan = plan_stage(Recipe.read("qlora-24gb"), "ddpo", "one", 1)
    assert (plan.load_in_4bit, plan.double_quantised, plan.lora_rank, len(plan.lora_modules)) == (True, True, 16, 7)
    assert plan.lora_dropout == 0  # DPOTrainer turns it off


def test_an_unknown_key_is_named() -> None:
    with pytest.raises(InvalidInputError, match="warmup_ratio of dsft"):
        trl_arguments("dsft", {"warmup_ratio": 0.1})
    with pytest.raises(InvalidInputError, match="env of ddpo"):  # TRL's files may set environment variables: ours not
        trl_arguments("ddpo", {"env": {"LD_PRELOAD": "x"}})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"learning_rate": "fast"}, "refused by TRL: argument --learning_rate"),
        ({"lr_scheduler_type": "zigzag"}, "refused by TRL"),
        ({"bf16": True, "fp16": True}, "fp16 and bf16"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "4 bit|8 bit"),
    ],
)
def test_values_that_trl_refuses_are_errors_of_ours(keys: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        trl_arguments("dsft", keys)
