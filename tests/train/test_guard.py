"""The guard: what hardware lacks is refused before a stage starts, with keys that would work."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from zephyr_local.errors import InvalidInputError
from zephyr_local.train.forecast import forecast_stage
from zephyr_local.train.guard import (
    PACKAGES,
    Gpu,
    Hardware,
    Problem,
    batch_problems,
    find_problems,
    probe_hardware,
    raise_problems,
    require_ready,
)
from zephyr_local.train.model_shape import MISTRAL_7B
from zephyr_local.train.recipe import Recipe
from zephyr_local.train.stage_plan import StagePlan, plan_stage, trl_arguments

GIB = 1 << 30
ALL = frozenset(PACKAGES)
A100 = Gpu("NVIDIA A100-SXM4-80GB", 79 * GIB, (8, 0))
T4 = Gpu("Tesla T4", 15 * GIB, (7, 5))
RTX = Gpu("NVIDIA GeForce RTX 4090", 24 * GIB, (8, 9))
ON_CPU = Hardware(ram_bytes=16 * GIB, packages=frozenset({"peft", "bitsandbytes"}))
FULL = StagePlan("dsft", "zero3", 16, per_device=16, accumulation=2, max_length=2048, dtype="bfloat16", bf16=True)
QLORA = StagePlan(
    "dsft",
    per_device=2,
    max_length=2048,
    dtype="bfloat16",
    bf16=True,
    lora_rank=16,
    load_in_4bit=True,
    optimizer="paged_adamw_8bit",
)
TINY = StagePlan("dsft", use_cpu=True, checkpointing=False, max_length=128)


def problems(plan: StagePlan, hardware: Hardware) -> list[str]:
    return [problem.problem for problem in find_problems(plan, hardware)]


def remedies(plan: StagePlan, hardware: Hardware) -> str:
    return "; ".join(problem.remedy for problem in find_problems(plan, hardware))


def test_what_fits_is_left_alone() -> None:
    assert find_problems(FULL, Hardware((A100,), packages=ALL), forecast_stage(FULL, MISTRAL_7B)) == []
    assert find_problems(QLORA, Hardware((RTX,), packages=ALL), forecast_stage(QLORA, MISTRAL_7B)) == []
    assert find_problems(TINY, ON_CPU) == []


def test_a_cpu_recipe_is_fine_beside_gpus() -> None:
    assert find_problems(TINY, Hardware((T4, T4), packages=ALL)) == []


@pytest.mark.parametrize("use_cpu", [True, False])
def test_bf16_on_a_cpu_is_refused_unless_forced(use_cpu: bool) -> None:
    plan = replace(TINY, bf16=True, use_cpu=use_cpu)
    (problem,) = find_problems(plan, ON_CPU)
    assert "twelve times slower" in problem.problem
    assert "dsft.bf16=false" in problem.remedy
    assert problem.can_be_forced


def test_bf16_needs_an_ampere_gpu() -> None:
    (problem,) = find_problems(QLORA, Hardware((T4,), packages=ALL))
    assert "Tesla T4 has no bfloat16 (compute capability 7.5, below 8.0)" in problem.problem
    assert "dsft.bf16=false --set dsft.fp16=true" in problem.remedy
    assert not problem.can_be_forced


@pytest.mark.parametrize(
    ("attention", "hardware", "message"),
    [
        ("flash_attention_2", Hardware((A100,), packages=frozenset({"deepspeed"})), "needs the package flash_attn,"),
        ("flash_attention_2", Hardware((T4,), packages=ALL), "needs compute capability 8.0, and Tesla T4 has 7.5"),
        ("flash_attention_2", Hardware(packages=ALL), "flash_attention_2 needs a GPU"),
        ("flash_attention_3", Hardware((A100,), packages=frozenset({"deepspeed", "flash_attn"})), "_attn_interface"),
    ],
)
def test_flash_attention_is_refused_where_it_cannot_run(attention: str, hardware: Hardware, message: str) -> None:
    plan = replace(FULL, attention=attention)
    assert any(message in problem for problem in problems(plan, hardware))
    assert "dsft.attn_implementation=sdpa" in remedies(plan, hardware)
    assert "flash" not in "".join(problems(replace(plan, attention="sdpa"), hardware))


def test_packages_that_are_asked_for_must_be_there() -> None:
    bare = Hardware((A100,))
    assert [text.split(" needs")[0] for text in problems(QLORA, bare)] == [
        "load_in_4bit",
        "optim paged_adamw_8bit",
        "use_peft",
    ]
    assert problems(FULL, bare) == ["ZeRO-3 needs the package deepspeed, which is not here"]
    assert "fsdp2" in remedies(FULL, bare)


@pytest.mark.parametrize("layout", ["one", "ddp"])
def test_bfloat16_weights_alone_lose_small_updates(layout: Any) -> None:
    plan = replace(FULL, layout=layout, n_processes=1)
    (problem,) = find_problems(plan, Hardware((A100,), packages=ALL))
    assert "lose updates" in problem.problem
    assert "dsft.dtype=float32" in problem.remedy
    assert problem.can_be_forced


def test_bfloat16_weights_alone_do_lose_small_updates() -> None:
    """The reason of the rule above: AdamW's steps of 2e-5 move a weight of 0.02 in float32, and not in bfloat16."""
    import torch

    moved = {}
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.nn.Parameter(torch.full((8,), 0.02, dtype=dtype))
        optimizer = torch.optim.AdamW([weight], lr=2e-5, weight_decay=0.0)
        before = weight.detach().clone()
        for _ in range(20):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        moved[dtype] = float((weight.detach() - before).abs().max())
    assert moved[torch.float32] > 3e-4
    assert moved[torch.bfloat16] == 0


def test_fp16_cannot_train_float16_weights_or_run_on_a_cpu() -> None:
    plan = replace(FULL, layout="one", n_processes=1, bf16=False, fp16=True, dtype="float16")
    assert any("unscaled" in text for text in problems(plan, Hardware((A100,), packages=ALL)))
    assert any("fp16 needs a GPU" in text for text in problems(replace(TINY, fp16=True), ON_CPU))


def test_one_process_does_not_take_several_gpus_by_itself() -> None:
    (problem,) = find_problems(QLORA, Hardware((A100, A100), packages=ALL))
    assert "DataParallel" in problem.problem
    assert "--launcher ddp --processes 2" in problem.remedy


def test_fsdp2_on_cpus_is_refused() -> None:
    plan = replace(TINY, layout="fsdp2", n_processes=2)
    assert any("FSDP2 needs GPUs" in text for text in problems(plan, ON_CPU))
    assert find_problems(replace(TINY, layout="ddp", n_processes=2), ON_CPU) == []


def test_quantised_weights_need_adapters_and_no_zero3() -> None:
    assert any("only adapters" in text for text in problems(replace(QLORA, lora_rank=None), Hardware((RTX,), 0, ALL)))
    sharded = replace(QLORA, layout="zero3", n_processes=2)
    assert any("do not go with ZeRO-3" in text for text in problems(sharded, Hardware((RTX, RTX), 0, ALL)))


@pytest.mark.parametrize(
    ("per_device", "accumulation", "n_processes", "wanted", "remedy"),
    [
        (16, 2, 8, 512, "Give --set dsft.gradient_accumulation_steps=4, or"),
        (16, 2, 32, 512, "Give --set dsft.gradient_accumulation_steps=1, or"),
        (16, 1, 64, 512, "per_device_train_batch_size=8 --set dsft.gradient_accumulation_steps=1, or"),
        (3, 1, 4, 32, "per_device_train_batch_size=2 --set dsft.gradient_accumulation_steps=4, or"),
        (5, 1, 1, 7, "per_device_train_batch_size=1 --set dsft.gradient_accumulation_steps=7, or"),
        (16, 2, 12, 512, "12 processes do not divide 512"),
    ],
)
def test_a_wrong_step_names_values_that_make_it(
    per_device: int, accumulation: int, n_processes: int, wanted: int, remedy: str
) -> None:
    plan = StagePlan("dsft", "ddp", n_processes, wanted, per_device, accumulation)
    (problem,) = batch_problems(plan)
    assert f"make {per_device * accumulation * n_processes} sequences a step, not {wanted}" in problem.problem
    assert remedy in problem.remedy
    given = dict(part.split("=") for part in problem.remedy.split(", or")[0].split() if "=" in part)
    if given:
        fixed = replace(
            plan,
            accumulation=int(given["dsft.gradient_accumulation_steps"]),
            per_device=int(given.get("dsft.per_device_train_batch_size", per_device)),
        )
        assert batch_problems(fixed) == []


def test_too_little_memory_is_a_refusal_that_can_be_forced() -> None:
    plan = replace(FULL, layout="ddp", n_processes=8, dtype="float32")
    (problem,) = find_problems(plan, Hardware((A100,) * 8, packages=ALL), forecast_stage(plan, MISTRAL_7B))
    assert "GiB are needed and NVIDIA A100-SXM4-80GB has 79.0" in problem.problem
    assert "dsft.per_device_train_batch_size=8 --set dsft.gradient_accumulation_steps=4" in problem.remedy
    assert "--launcher zero3" in problem.remedy
    assert problem.can_be_forced


def test_the_smallest_gpu_decides_and_processes_share_a_cpu_s_memory() -> None:
    forecast = forecast_stage(QLORA, MISTRAL_7B)
    small = Gpu("small", 4 * GIB, (8, 6))
    mixed = Hardware((A100, small), packages=ALL)
    assert any("and small has 4.0" in problem.problem for problem in find_problems(QLORA, mixed, forecast))
    on_cpu = StagePlan("dsft", "ddp", 4, use_cpu=True, max_length=128)
    one = forecast_stage(on_cpu, MISTRAL_7B).memory.total
    found = find_problems(on_cpu, replace(ON_CPU, ram_bytes=2 * one), forecast_stage(on_cpu, MISTRAL_7B))
    assert len(found) == 1
    assert find_problems(on_cpu, replace(ON_CPU, ram_bytes=5 * one), forecast_stage(on_cpu, MISTRAL_7B)) == []


def test_force_lets_pass_what_can_run_and_nothing_else() -> None:
    said: list[str] = []
    soft, hard = Problem("slow", "Be fast", can_be_forced=True), Problem("broken", "Mend it")
    raise_problems("dsft", [], force=False, say=said.append)
    raise_problems("dsft", [soft], force=True, say=said.append)
    assert said == ["dsft: slow (goes on because of --force)"]
    with pytest.raises(InvalidInputError, match="Or go on regardless with --force"):
        raise_problems("dsft", [soft], force=False, say=said.append)
    with pytest.raises(InvalidInputError) as caught:
        raise_problems("dsft", [soft, hard], force=False, say=said.append)
    assert (caught.value.problem, caught.value.remedy) == ("dsft should not start: slow; broken", "Be fast; Mend it")
    with pytest.raises(InvalidInputError, match="broken"):
        raise_problems("dsft", [soft, hard], force=True, say=said.append)


class _Arguments:
    """As trainers.StageArguments."""

    def __init__(self, recipe: Recipe) -> None:
        self.training, self.model = trl_arguments("dsft", recipe.trl["dsft"])


def test_a_stage_of_the_tiny_recipe_may_start_here_and_one_of_the_paper_s_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr("zephyr_local.train.guard.probe_hardware", lambda: ON_CPU)
    tiny = Recipe.read("tiny")
    require_ready(tiny, "dsft", _Arguments(tiny), world=1, force=False, say=print)
    paper = Recipe.read("zephyr-7b-beta")
    with pytest.raises(InvalidInputError, match="flash_attention_2 needs a GPU") as caught:
        require_ready(paper, "dsft", _Arguments(paper), world=1, force=True, say=lambda _line: None)
    assert "make 32 sequences a step, not 512" in caught.value.problem
    with pytest.raises(InvalidInputError, match="2 processes should train"):
        require_ready(tiny, "dsft", _Arguments(tiny), world=2, force=True, say=print)


def test_the_probe_tells_this_machine_as_torch_does() -> None:
    import torch

    hardware = probe_hardware()
    assert len(hardware.gpus) == torch.cuda.device_count()
    assert hardware.ram_bytes > GIB
    assert "peft" in hardware.packages
    assert hardware.packages <= ALL


def test_every_bundled_recipe_runs_on_the_hardware_that_it_names() -> None:
    for name, stages in {"qlora-24gb": Hardware((RTX,), packages=ALL), "lora": Hardware((A100,), packages=ALL)}.items():
        recipe = Recipe.read(name)
        for stage in recipe.stages:
            plan = plan_stage(recipe, stage, "one", 1)
            assert find_problems(plan, stages, forecast_stage(plan, MISTRAL_7B)) == []
    for name, n_processes in {"zephyr-7b-beta": 16, "handbook": 8}.items():
        recipe = Recipe.read(name)
        for stage in recipe.stages:
            for layout in ("zero3", "fsdp2"):
                plan = plan_stage(recipe, stage, layout, n_processes)  # type: ignore[arg-type]
                assert find_problems(plan, Hardware((A100,), packages=ALL), forecast_stage(plan, MISTRAL_7B)) == []
