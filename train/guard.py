"""What is wrong with a stage on this hardware, found before hours are spent, and what to set instead."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from zephyr_local.errors import CheckpointError, InvalidInputError
from zephyr_local.train.forecast import Forecast, forecast_stage
from zephyr_local.train.launch import layout_here, require_world
from zephyr_local.train.model_shape import ModelShape
from zephyr_local.train.recipe import Recipe, Stage
from zephyr_local.train.stage_plan import StagePlan, plan_from_arguments

FORCE_FLAG: Final = "--force"

_FLASH_PACKAGES: Final = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
_FLASH_CAPABILITY: Final = {"flash_attention_2": (8, 0), "flash_attention_3": (8, 0)}
_BF16_CAPABILITY: Final = (8, 0)
PACKAGES: Final = ("flash_attn", "flash_attn_interface", "bitsandbytes", "deepspeed", "peft")
"""What stages may ask for and an installation may lack."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU that torch sees."""

    name: str
    memory_bytes: int
    capability: tuple[int, int]
    """CUDA's compute capability, such as (8, 0) of an A100."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a stage's process finds on its machine."""

    gpus: tuple[Gpu, ...] = ()
    ram_bytes: int = 0
    """0: unknown."""
    packages: frozenset[str] = frozenset()
    """Those of :data:`PACKAGES` that can be imported."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong; `remedy` names the keys to set."""

    problem: str
    remedy: str
    can_be_forced: bool = False
    """It would run, but likely in vain or out of memory: the user may insist."""


def probe_hardware() -> Hardware:
    """Ask torch and the installation. Imports torch, but none of :data:`PACKAGES`."""
    import importlib.util

    import torch

    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        gpus.append(Gpu(properties.name, properties.total_memory, (properties.major, properties.minor)))
    found = frozenset(name for name in PACKAGES if importlib.util.find_spec(name) is not None)
    return Hardware(tuple(gpus), _ram_bytes(), found)


def find_problems(plan: StagePlan, hardware: Hardware, forecast: Forecast | None = None) -> list[Problem]:
    """Everything that speaks against running `plan` on `hardware`; a forecast adds whether it fits into memory."""
    problems = [
        *batch_problems(plan),
        *_precision(plan, hardware),
        *_packages(plan, hardware),
        *_devices(plan, hardware),
    ]
    return problems + (_memory(plan, hardware, forecast) if forecast is not None else [])


def require_ready(
    recipe: Recipe,
    stage: Stage,
    arguments: Any,  # noqa: ANN401 — trainers.StageArguments, which imports TRL
    *,
    world: int,
    force: bool,
    say: Callable[[str], None],
) -> None:
    """Refuse to start a stage that cannot run here, or would run in vain; says what `force` lets pass.

    Raises InvalidInputError with all that is wrong.
    """
    require_world(world)
    processes = (layout_here(), world)
    plan = plan_from_arguments(recipe, stage, arguments.training, arguments.model, processes)
    shape = _shape(recipe)
    forecast = forecast_stage(plan, shape) if shape is not None else None
    raise_problems(stage, find_problems(plan, probe_hardware(), forecast), force=force, say=say)


def raise_problems(stage: Stage, problems: list[Problem], *, force: bool, say: Callable[[str], None]) -> None:
    """Raise InvalidInputError for problems that stand; say those that `force` lets pass."""
    standing = [problem for problem in problems if not (force and problem.can_be_forced)]
    for problem in problems:
        if problem not in standing:
            say(f"{stage}: {problem.problem} (goes on because of {FORCE_FLAG})")
    if standing:
        remedies = [problem.remedy for problem in standing]
        if all(problem.can_be_forced for problem in standing):
            remedies.append(f"Or go on regardless with {FORCE_FLAG}")
        raise InvalidInputError(
            f"{stage} should not start: {'; '.join(problem.problem for problem in standing)}", "; ".join(remedies)
        )


def _shape(recipe: Recipe) -> ModelShape | None:
    """None where the model is made by the run, or is none that forecasts know."""
    if not recipe.base or not Path(recipe.base).is_dir():
        return None
    try:
        return ModelShape.from_folder(Path(recipe.base))
    except CheckpointError:
        return None


def batch_problems(plan: StagePlan) -> list[Problem]:
    """Whether batch, accumulation and processes make the recipe's step; names the keys that would."""
    wanted = plan.sequences_a_step
    if wanted is None or wanted == plan.product:
        return []
    unit = "pairs" if plan.is_dpo else "sequences"
    problem = (
        f"{plan.per_device} a process x accumulation {plan.accumulation} x {plan.n_processes} processes make "
        f"{plan.product} {unit} a step, not {wanted}"
    )
    return [Problem(problem, _batch_remedy(plan, wanted))]


def _batch_remedy(plan: StagePlan, wanted: int) -> str:
    own = f"or --set sequences_a_step.{plan.stage}={plan.product} for another step than the recipe's"
    rest, over = divmod(wanted, plan.per_device * plan.n_processes)
    if not over:
        return f"Give --set {plan.stage}.gradient_accumulation_steps={rest}, {own}"
    a_process, over = divmod(wanted, plan.n_processes)
    if over:
        return f"{plan.n_processes} processes do not divide {wanted}: run with another number, {own}"
    per_device = max(size for size in range(1, plan.per_device + 1) if a_process % size == 0)
    keys = (
        f"{plan.stage}.per_device_train_batch_size={per_device} "
        f"--set {plan.stage}.gradient_accumulation_steps={a_process // per_device}"
    )
    return f"Give --set {keys}, {own}"


def _on_cpu(plan: StagePlan, hardware: Hardware) -> bool:
    return plan.use_cpu or not hardware.gpus


def _precision(plan: StagePlan, hardware: Hardware) -> list[Problem]:
    stage = plan.stage
    problems = []
    if plan.bf16 and _on_cpu(plan, hardware):
        where = "a CPU" if plan.use_cpu else "this machine, which has no GPU that torch sees,"
        remedy = f"Give --set {stage}.bf16=false --set {stage}.dtype=float32 --set {stage}.use_cpu=true"
        problems.append(Problem(f"bf16 on {where} is about twelve times slower than float32", remedy, True))
    elif plan.bf16 and (old := _below(hardware, _BF16_CAPABILITY)):
        remedy = f"Give --set {stage}.bf16=false --set {stage}.fp16=true, or use an Ampere GPU or a later one"
        problems.append(Problem(f"{old.name} has no bfloat16 (compute capability {_dotted(old)}, below 8.0)", remedy))
    if plan.fp16 and _on_cpu(plan, hardware):
        remedy = f"Give --set {stage}.fp16=false"
        problems.append(Problem("fp16 needs a GPU: half precision with a loss scale is CUDA's", remedy))
    if plan.fp16 and plan.dtype == "float16" and plan.lora_rank is None:
        remedy = f"Give --set {stage}.dtype=float32, or bf16 instead of fp16"
        problems.append(Problem("fp16 cannot train float16 weights: their gradients cannot be unscaled", remedy))
    elif plan.lora_rank is None and plan.dtype in ("bfloat16", "float16") and plan.layout in ("one", "ddp"):
        remedy = (
            f"Give --set {stage}.dtype=float32, --launcher zero3 or fsdp2 (both keep float32 copies), or train adapters"
        )
        # bfloat16 has 8 bits of fraction: a change below 1/512 of a weight is rounded away (Micikevicius et al. 2018).
        problem = f"{plan.dtype} weights without float32 copies lose updates as small as a fine-tuning step's"
        problems.append(Problem(problem, remedy, True))
    return problems


def _packages(plan: StagePlan, hardware: Hardware) -> list[Problem]:
    stage, has = plan.stage, hardware.packages
    problems = []
    package = _FLASH_PACKAGES.get(plan.attention or "")
    if package is not None and plan.attention is not None:
        remedy = f"Give --set {stage}.attn_implementation=sdpa: torch has flash attention of its own"
        needed = _FLASH_CAPABILITY[plan.attention]
        if _on_cpu(plan, hardware):
            problems.append(Problem(f"{plan.attention} needs a GPU", remedy))
        elif old := _below(hardware, needed):
            limit = f"{needed[0]}.{needed[1]}"
            problem = f"{plan.attention} needs compute capability {limit}, and {old.name} has {_dotted(old)}"
            problems.append(Problem(problem, remedy))
        elif package not in has:
            problems.append(Problem(f"{plan.attention} needs the package {package}, which is not here", remedy))
        elif plan.weight_bytes == 4 and not plan.bf16 and not plan.fp16:
            problems.append(Problem(f"{plan.attention} does not compute in float32", remedy))
    if (plan.load_in_4bit or plan.load_in_8bit) and "bitsandbytes" not in has:
        key = "load_in_4bit" if plan.load_in_4bit else "load_in_8bit"
        remedy = f"Install bitsandbytes, or give --set {stage}.{key}=false"
        problems.append(Problem(f"{key} needs the package bitsandbytes, which is not here", remedy))
    if "8bit" in plan.optimizer or "paged" in plan.optimizer:
        remedy = f"Give --set {stage}.optim=adamw_torch"
        if "bitsandbytes" not in has:
            problems.append(
                Problem(f"optim {plan.optimizer} needs the package bitsandbytes, which is not here", remedy)
            )
        elif _on_cpu(plan, hardware):
            problems.append(Problem(f"optim {plan.optimizer} needs a GPU", remedy))
    if plan.lora_rank is not None and "peft" not in has:
        problems.append(Problem("use_peft needs the package peft, which is not here", "Install peft"))
    if plan.layout == "zero3" and "deepspeed" not in has:
        remedy = "Install deepspeed, or use --launcher fsdp2, which needs nothing more"
        problems.append(Problem("ZeRO-3 needs the package deepspeed, which is not here", remedy))
    return problems


def _devices(plan: StagePlan, hardware: Hardware) -> list[Problem]:
    problems = []
    if plan.layout == "one" and not plan.use_cpu and len(hardware.gpus) > 1:
        problem = (
            f"one process sees {len(hardware.gpus)} GPUs, and torch would split each batch over them (DataParallel)"
        )
        remedy = f"Use --launcher ddp --processes {len(hardware.gpus)}, or set CUDA_VISIBLE_DEVICES=0"
        problems.append(Problem(problem, remedy))
    if (plan.load_in_4bit or plan.load_in_8bit) and plan.lora_rank is None:
        remedy = f"Give --set {plan.stage}.use_peft=true"
        problems.append(Problem("quantised weights do not train: only adapters beside them do", remedy))
    if plan.layout == "fsdp2" and _on_cpu(plan, hardware):
        problem = "FSDP2 needs GPUs: on CPUs accelerate runs plain data parallelism in its place, without a word"
        problems.append(Problem(problem, "Use --launcher torchrun"))
    if plan.load_in_4bit and plan.layout == "zero3":
        problems.append(Problem("4-bit weights do not go with ZeRO-3", "Use --launcher ddp, or no launcher"))
    return problems


def _memory(plan: StagePlan, hardware: Hardware, forecast: Forecast) -> list[Problem]:
    """The smallest device decides; on a CPU, all processes share the RAM."""
    needed = forecast.memory.total
    if _on_cpu(plan, hardware):
        needed, have, where = needed * plan.n_processes, hardware.ram_bytes, "this machine has"
    else:
        smallest = min(hardware.gpus, key=lambda gpu: gpu.memory_bytes)
        have, where = smallest.memory_bytes, f"{smallest.name} has"
    if not have or needed <= have:
        return []
    problem = f"about {needed / (1 << 30):.1f} GiB are needed and {where} {have / (1 << 30):.1f}"
    return [Problem(problem, f"Give {', or '.join(_savings(plan))}", True)]


def _savings(plan: StagePlan) -> list[str]:
    """What would help, the cheapest first."""
    stage = plan.stage
    savings = []
    if plan.per_device > 1:
        half = plan.per_device // 2
        more = plan.accumulation * plan.per_device // half
        savings.append(
            f"--set {stage}.per_device_train_batch_size={half} --set {stage}.gradient_accumulation_steps={more}"
        )
    if not plan.checkpointing:
        savings.append(f"--set {stage}.activation_checkpointing=true")
    if plan.is_dpo and not plan.precomputed_reference and plan.lora_rank is None:
        savings.append(f"--set {stage}.precompute_ref_log_probs=true")
    if plan.lora_rank is None:
        savings.append("--launcher zero3 or fsdp2 with more processes" if not plan.use_cpu else "a smaller base")
        savings.append("the recipe qlora-24gb")
    elif not plan.load_in_4bit:
        savings.append(f"--set {stage}.load_in_4bit=true")
    return savings or ["a smaller max_length"]


def _below(hardware: Hardware, capability: tuple[int, int]) -> Gpu | None:
    return next((gpu for gpu in hardware.gpus if gpu.capability < capability), None)


def _dotted(gpu: Gpu) -> str:
    return f"{gpu.capability[0]}.{gpu.capability[1]}"


def _ram_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 0
