"""Forecasts against numbers worked out by hand, against instantiated models, and against what autograd keeps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from zephyr_local.cli.main import run as command_line
from zephyr_local.errors import CheckpointError, InvalidInputError
from zephyr_local.train.dry_run import DryRunOptions, dry_run, shape_of
from zephyr_local.train.forecast import Work, count_steps, flops_a_token, forecast_stage
from zephyr_local.train.hardware_table import GPU_MODELS, gpu_model
from zephyr_local.train.launch import LaunchOptions
from zephyr_local.train.memory import forecast_memory, layer_bytes_a_token
from zephyr_local.train.model_shape import (
    LINEAR_MODULES,
    MISTRAL_7B,
    Counts,
    ModelShape,
    count,
    count_on_meta,
)
from zephyr_local.train.recipe import Recipe
from zephyr_local.train.stage_plan import StagePlan

GIB = 1 << 30
MISTRAL_7B_PARAMETERS = 7_241_732_096
LORA_16 = 41_943_040
SMALL = ModelShape(128, 64, 224, n_layers=3, n_heads=4, n_kv_heads=1, head_dim=16)
CONFIG: dict[str, Any] = {
    "model_type": "mistral",
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
}


def test_mistral_7b_by_hand_and_on_the_meta_device() -> None:
    layer = 4096 * (4096 + 1024 + 1024 + 4096) + 3 * 4096 * 14_336 + 2 * 4096
    assert 32 * layer + 2 * 32_000 * 4096 + 4096 == MISTRAL_7B_PARAMETERS
    assert MISTRAL_7B.n_parameters == MISTRAL_7B_PARAMETERS
    assert count(MISTRAL_7B) == count_on_meta(MISTRAL_7B) == Counts(MISTRAL_7B_PARAMETERS, MISTRAL_7B_PARAMETERS)


def test_its_adapters_by_hand_and_by_peft_on_the_meta_device() -> None:
    by_hand = 32 * 16 * ((4096 + 4096) * 2 + (4096 + 1024) * 2 + (4096 + 14_336) * 3)
    assert by_hand == LORA_16
    assert count(MISTRAL_7B, 16) == count_on_meta(MISTRAL_7B, 16) == Counts(MISTRAL_7B_PARAMETERS + LORA_16, LORA_16)
    two = ("q_proj", "v_proj")
    assert count(MISTRAL_7B, 8, two) == count_on_meta(MISTRAL_7B, 8, two)


@pytest.mark.parametrize(
    "shape",
    [SMALL, replace(SMALL, tied=True), replace(SMALL, head_dim=24, n_kv_heads=4), replace(SMALL, n_layers=1)],
)
def test_other_shapes_count_as_transformers_builds_them(shape: ModelShape) -> None:
    assert count(shape) == count_on_meta(shape)
    assert count(shape, 4) == count_on_meta(shape, 4)


def test_a_shape_is_read_from_config_json_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert ModelShape.from_folder(tmp_path) == MISTRAL_7B
    llama = {**CONFIG, "model_type": "llama", "num_key_value_heads": None, "sliding_window": None}
    assert ModelShape.from_config(llama).n_kv_heads == 32


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "gpt2"},
        {"model_type": ["mistral"]},
        {"vocab_size": "32000"},
        {"hidden_size": -1},
        {"num_hidden_layers": True},
        {"intermediate_size": 1e9},
        {"num_attention_heads": None},
        {"vocab_size": 1 << 40},
        {"sliding_window": "wide"},
    ],
)
def test_a_config_that_is_none_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError):
        ModelShape.from_config({**CONFIG, **change})


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\xff"])
def test_a_file_that_is_no_config_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        ModelShape.from_folder(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        ModelShape.from_folder(tmp_path / "nowhere")


FULL = StagePlan("dsft", per_device=1, max_length=2048, bf16=True, checkpointing=True)


def test_model_states_are_sixteen_bytes_a_parameter() -> None:
    """ZeRO, section 3.1: 2 + 2 + 12; all layouts hold as much in sum."""
    for layout, parts in (("zero3", 16), ("fsdp2", 16)):
        plan = replace(FULL, layout=layout, n_processes=parts, dtype="bfloat16")
        memory = forecast_memory(plan, MISTRAL_7B, count(MISTRAL_7B))
        states = memory.weights + memory.gradients + memory.optimizer
        assert states == pytest.approx(MISTRAL_7B_PARAMETERS, rel=1e-6)  # 16 bytes / 16 processes
    alone = forecast_memory(FULL, MISTRAL_7B, count(MISTRAL_7B))
    assert alone.weights + alone.gradients + alone.optimizer == 16 * MISTRAL_7B_PARAMETERS
    assert alone.working == 2 * MISTRAL_7B_PARAMETERS  # autocast's copies


def test_a_4_bit_base_takes_what_the_qlora_paper_says() -> None:
    """Section 3: 0.5 bits a parameter for scales, 0.127 with double quantisation."""
    plan = replace(FULL, lora_rank=16, load_in_4bit=True, dtype="bfloat16", double_quantised=True)
    kept = 2 * 32_000 * 4096 + 65 * 4096  # vocabulary and norms stay bfloat16
    linear = MISTRAL_7B_PARAMETERS - kept
    double = forecast_memory(plan, MISTRAL_7B, count(MISTRAL_7B, 16)).weights
    assert double == pytest.approx(linear * 4.127 / 8 + kept * 2 + LORA_16 * 2, rel=1e-4)
    single = forecast_memory(replace(plan, double_quantised=False), MISTRAL_7B, count(MISTRAL_7B, 16)).weights
    assert single - double == pytest.approx(linear * 0.373 / 8, rel=1e-2)


def test_a_reference_model_takes_memory_only_where_it_must() -> None:
    plan = StagePlan("ddpo", per_device=1, max_length=1024, dtype="bfloat16", bf16=True, layout="zero3", n_processes=8)
    counts = count(MISTRAL_7B)
    assert forecast_memory(plan, MISTRAL_7B, counts).reference == 2 * MISTRAL_7B_PARAMETERS // 8
    assert forecast_memory(replace(plan, precomputed_reference=True), MISTRAL_7B, counts).reference == 0
    assert forecast_memory(replace(plan, lora_rank=16), MISTRAL_7B, count(MISTRAL_7B, 16)).reference == 0


def test_checkpointing_keeps_two_bytes_a_number_of_each_layer_s_input() -> None:
    """Korthikanti et al. 2022, section 5: 2 s b h L, and one layer computed again."""
    plan = replace(FULL, dtype="bfloat16")
    with_it = forecast_memory(plan, MISTRAL_7B, count(MISTRAL_7B)).activations
    without = forecast_memory(replace(plan, checkpointing=False), MISTRAL_7B, count(MISTRAL_7B)).activations
    layer = 2048 * layer_bytes_a_token(plan, MISTRAL_7B)
    inputs = 2 * 2048 * 4096 * 32
    assert with_it - inputs == pytest.approx(without - 31 * layer, rel=1e-6)
    assert without == pytest.approx(32 * layer, rel=0.02)
    assert 12 * GIB < without < 13 * GIB


CASES = {
    "bfloat16": replace(FULL, dtype="bfloat16", bf16=True),
    "float32": replace(FULL, dtype="float32", bf16=False),
    "float32, autocast": replace(FULL, dtype="float32", bf16=True),
    "LoRA's adapters": replace(FULL, dtype="bfloat16", bf16=True, lora_rank=4),
    "QLoRA's adapters": replace(FULL, dtype="bfloat16", bf16=True, lora_rank=4, load_in_4bit=True),
}


@pytest.mark.parametrize("name", CASES)
def test_activations_are_what_autograd_keeps(name: str) -> None:
    """Bytes that transformers' Mistral saves for the backward pass, counted with autograd's own hooks."""
    plan = CASES[name]
    kept = (_saved_bytes(plan, 5) - _saved_bytes(plan, 2)) / 3  # what a layer adds: embedding and last norm cancel
    assert layer_bytes_a_token(plan, SMALL) == pytest.approx(kept, rel=0.03)


def _saved_bytes(plan: StagePlan, n_layers: int) -> float:
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=SMALL.vocab_size,
        hidden_size=SMALL.hidden_size,
        intermediate_size=SMALL.intermediate_size,
        num_hidden_layers=n_layers,
        num_attention_heads=SMALL.n_heads,
        num_key_value_heads=SMALL.n_kv_heads,
        head_dim=SMALL.head_dim,
        attn_implementation="sdpa",
        sliding_window=None,
    )
    model: Any = MistralForCausalLM(config).to(getattr(torch, plan.dtype))
    decoder = model.model
    if plan.lora_rank is not None:
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(r=plan.lora_rank, target_modules=list(LINEAR_MODULES), lora_dropout=0.0)
        model = get_peft_model(model, lora)
        for parameter in model.parameters():
            if parameter.requires_grad and plan.load_in_4bit:
                parameter.data = parameter.data.to(torch.bfloat16)  # as TRL does beside a quantised base
        model.enable_input_require_grads()
    # Weights, and autocast's copies of them, are no activations: they do not have the batch's number of positions.
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    n_batch, n_positions = 3, 40
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tensor.numel() % n_positions == 0:
            saved[storage.data_ptr()] = tensor
        return tensor

    ids = torch.zeros((n_batch, n_positions), dtype=torch.long)
    model.train()
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast(
            "cpu", torch.bfloat16, enabled=plan.bf16 and (plan.dtype == "float32" or plan.lora_rank is not None)
        ),
    ):
        decoder(input_ids=ids, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values()) / (n_batch * n_positions)


def test_operations_are_six_a_parameter_and_eight_with_checkpointing() -> None:
    multiplied = MISTRAL_7B_PARAMETERS - 32_000 * 4096 - 65 * 4096  # no look-up, no norms
    counts = count(MISTRAL_7B)
    attention = 4 * 32 * 4096 * 1024  # forward: 2 matrices x 2 x half of 2,048 positions x 4,096, 32 layers
    without = flops_a_token(replace(FULL, checkpointing=False), MISTRAL_7B, counts, 2048)
    assert without == 6 * multiplied + 3 * attention
    assert flops_a_token(FULL, MISTRAL_7B, counts, 2048) == 8 * multiplied + 4 * attention


def test_a_frozen_base_costs_four_and_six() -> None:
    multiplied, attention = MISTRAL_7B.n_multiplied, 4 * 32 * 4096 * 1024
    counts = count(MISTRAL_7B, 16)
    lora = replace(FULL, lora_rank=16)
    assert flops_a_token(lora, MISTRAL_7B, counts, 2048) == 6 * multiplied + 4 * (attention + 2 * LORA_16)
    lora = replace(lora, checkpointing=False)
    assert flops_a_token(lora, MISTRAL_7B, counts, 2048) == 4 * multiplied + 3 * (attention + 2 * LORA_16)


def test_a_window_bounds_what_a_token_sees() -> None:
    counts = count(MISTRAL_7B)
    assert flops_a_token(FULL, MISTRAL_7B, counts, 8192) == flops_a_token(FULL, MISTRAL_7B, counts, 4096)


def test_operations_of_a_forward_pass_are_what_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=224,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=16,
        attn_implementation="eager",
    )
    model: Any = MistralForCausalLM(config)
    n_positions = 64
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros((1, n_positions), dtype=torch.long), use_cache=False)
    # Eager attention computes the masked half too, so each token sees all positions: twice what a causal kernel does.
    plan = replace(FULL, checkpointing=False)
    forecast = flops_a_token(plan, SMALL, count(SMALL), 2 * n_positions) / 3
    assert counter.get_total_flops() / n_positions == pytest.approx(forecast, rel=0.01)


def test_the_reference_is_read_once_or_once_an_epoch() -> None:
    plan = StagePlan("ddpo", per_device=2, accumulation=2, max_length=1024, epochs=3.0, dtype="bfloat16", bf16=True)
    work = Work(n_sequences=1000)
    each = forecast_stage(plan, MISTRAL_7B, work)
    once = forecast_stage(replace(plan, precomputed_reference=True), MISTRAL_7B, work)
    assert each.flops is not None
    assert once.flops is not None
    forward = 2 * MISTRAL_7B.n_multiplied + 4 * 32 * 4096 * 512
    assert each.n_tokens == 3 * 1000 * 2 * 1024
    assert each.flops - once.flops == pytest.approx(2 * 1000 * 2 * 1024 * forward)


@pytest.mark.parametrize(
    ("epochs", "max_steps", "n_sequences", "steps"),
    [(1.0, None, 1000, 63), (3.0, None, 1000, 189), (0.5, None, 1000, 32), (1.0, 7, 1000, 7), (1.0, None, None, None)],
)
def test_steps_are_transformers_own(
    epochs: float, max_steps: int | None, n_sequences: int | None, steps: int | None
) -> None:
    plan = StagePlan("dsft", per_device=4, accumulation=4, max_length=8, epochs=epochs, max_steps=max_steps)
    assert count_steps(plan, Work(n_sequences)) == steps


def test_hours_are_operations_over_what_the_gpus_reach() -> None:
    plan = replace(FULL, layout="zero3", n_processes=16, per_device=16, accumulation=2, dtype="bfloat16")
    forecast = forecast_stage(plan, MISTRAL_7B, Work(139_520), "a100-80gb", 0.5)
    assert forecast.flops is not None
    assert forecast.hours == pytest.approx(forecast.flops / (16 * 312e12 * 0.5) / 3600)
    assert forecast.n_tokens == 273 * 512 * 2048
    assert "hours rest on" not in " ".join(forecast.notes)  # the share was given, not assumed
    shorter = forecast_stage(plan, MISTRAL_7B, Work(139_520, mean_length=1024), "a100-80gb", 0.5)
    assert shorter.hours is not None
    assert shorter.hours < forecast.hours / 1.9


def test_without_data_there_are_no_hours_and_it_is_said() -> None:
    forecast = forecast_stage(FULL, MISTRAL_7B, gpu="l4")
    assert (forecast.hours, forecast.n_tokens, forecast.flops) == (None, None, None)
    text = "\n".join(forecast.lines())
    assert "steps and hours need the data" in text
    assert "does not fit: " in text  # 16 bytes x 7.2e9 on 22 GiB
    unknown = forecast_stage(replace(FULL, max_length=None), MISTRAL_7B, Work(100))
    assert unknown.n_tokens is None
    assert "max_length is not set" in " ".join(unknown.notes)


def test_gpus_have_their_sheets_and_unknown_ones_are_refused() -> None:
    assert gpu_model("a100-80gb").bf16_flops == 312e12
    assert all("NVIDIA" in gpu.source and gpu.memory_bytes > 20 * GIB for gpu in GPU_MODELS.values())
    with pytest.raises(InvalidInputError, match="no GPU 'voodoo' is known"):
        forecast_stage(FULL, MISTRAL_7B, gpu="voodoo")


def say(verb: str, *flags: str) -> int:
    """``zephyr-local train VERB ... --dry-run``: its exit code."""
    return command_line(["train", verb, *flags, "--dry-run"])


def test_the_paper_s_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert say("run", "zephyr-7b-beta", "--launcher", "zero3", "--processes", "16", "--gpu", "a100-80gb") == 0
    text = capsys.readouterr().out
    assert text.startswith("dsft: 7,241,732,096 parameters, all trained\n  16 processes (zero3), 16 x 2 x 16 = 512")
    assert "  273 steps, 286,261,248 tokens" in text
    assert "ddpo: 7,241,732,096 parameters" in text
    assert text.splitlines()[-1].startswith("all stages: about ")


def test_qlora_s_dry_run_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert say("dsft", "qlora-24gb", "--gpu", "rtx-4090", "--json") == 0
    (stage,) = json.loads(capsys.readouterr().out)["stages"]
    assert stage["counts"] == {"n_parameters": MISTRAL_7B_PARAMETERS + LORA_16, "n_trainable": LORA_16}
    memory = dict(stage["memory"])
    assert memory.pop("total") == sum(memory.values()) < stage["gpu_bytes"]
    assert stage["plan"]["load_in_4bit"] is True


def test_a_dry_run_says_what_the_guard_would(capsys: pytest.CaptureFixture[str]) -> None:
    assert say("dsft", "zephyr-7b-beta", "--launcher", "fsdp2", "--processes", "8") == 0
    assert (
        "make 256 sequences a step, not 512. Give --set dsft.gradient_accumulation_steps=4" in capsys.readouterr().out
    )
    assert say("run", "zephyr-7b-beta", "--set", "dsft.warmup_ratio=0.1") == 2
    assert "TRL does not know warmup_ratio" in capsys.readouterr().err


def test_shapes_are_found_without_a_network(tmp_path: Path) -> None:
    assert shape_of(Recipe.read("zephyr-7b-beta")) == MISTRAL_7B
    small = {**CONFIG, "num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(small))
    recipe = Recipe.read("lora", [f"base={tmp_path}"])
    (forecast,) = dry_run(recipe, DryRunOptions(LaunchOptions("ddp", 2), only="dsft"))
    assert forecast.counts == count(replace(MISTRAL_7B, n_layers=2), 16)


def test_zephyr_tiny_s_shape_is_that_of_the_model_that_is_made() -> None:
    from zephyr_local.train.tiny.shape import TinyShape

    shape = shape_of(Recipe.read("tiny"))
    assert shape == ModelShape.from_config(TinyShape().config().to_dict())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--set", "data.dsft.train=[nofile.jsonl]"], "nofile.jsonl, which is not there"),
        (["--export", "q9_z"], "q9_z"),
        (
            ["--set", "dsft.per_device_train_batch_size=0"],
            "per_device_train_batch_size of dsft.yaml is 0. Give 1 or more",
        ),
        (["--set", "dsft.learning_rate=abc"], "dsft.yaml is refused by TRL: argument --learning_rate"),
    ],
)
def test_a_dry_run_refuses_what_a_run_does(capfd: pytest.CaptureFixture[str], flags: list[str], said: str) -> None:
    assert say("run", "tiny-short", *flags) == 2
    error = capfd.readouterr().err
    assert said in error
    assert "usage:" not in error


def test_json_is_for_dry_runs(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert command_line(["train", "run", "tiny-short", "-o", str(tmp_path / "out"), "--json"]) == 2
    assert "--json is for --dry-run alone" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
