"""What a stage will cost before it starts: parameters, memory, tokens, steps, floating-point operations, hours.

Operations follow Kaplan et al. 2020 (arXiv 2001.08361, section 2.1): 2 a multiplied parameter and token forward, twice
that backward; computing a layer's activations again adds a forward pass. Attention adds what PaLM's appendix B counts
(Chowdhery et al. 2022, arXiv 2204.02311), halved, because a causal kernel leaves the masked half out.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Final

from zephyr_local.train.hardware_table import gpu_model
from zephyr_local.train.memory import Memory, forecast_memory
from zephyr_local.train.model_shape import LINEAR_MODULES, Counts, ModelShape, count
from zephyr_local.train.stage_plan import StagePlan

FULL_MFU: Final = 0.4
"""Share of a GPU's peak that full training reaches: an assumption (PaLM reports 0.46 on TPUs, others 0.3 to 0.5)."""
QLORA_MFU: Final = 0.3
"""With 4-bit weights, which are made whole at each use: an assumption."""

# Records of the sets that recipes name, as their cards say. UltraChat's are counted as rows of 2,048 tokens: the card
# of alignment-handbook/zephyr-7b-sft-full says 1,090 steps of 128 for one epoch.
PUBLISHED_SEQUENCES: Final = {
    "hub:HuggingFaceH4/ultrachat_200k@train_sft": 139_520,
    "hub:HuggingFaceH4/ultrafeedback_binarized@train_prefs": 61_135,
    "hub:openbmb/UltraFeedback@train": 63_967,
}


@dataclass(frozen=True, slots=True)
class Work:
    """How much there is to do. `n_sequences` are rows of ids, or pairs, of one epoch; None: not known yet."""

    n_sequences: int | None = None
    mean_length: float | None = None
    """Tokens of a sequence (a pair has two); None: each is counted at its greatest."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """A stage's costs. Fields that depend on data are None where it is not known."""

    plan: StagePlan
    counts: Counts
    memory: Memory
    tokens_a_step: int
    n_steps: int | None
    n_tokens: int | None
    flops: float | None
    """The reference's passes included."""
    gpu: str | None
    """The kind of GPU that this is for; None: no hours."""
    gpu_bytes: int | None
    """Its memory."""
    mfu: float
    hours: float | None
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """JSON values; memory in bytes."""
        value = asdict(self)
        value["counts"] = self.counts._asdict()
        value["plan"]["lora_modules"] = list(self.plan.lora_modules)
        value["memory"]["total"] = self.memory.total
        value["notes"] = list(self.notes)
        return value

    def lines(self) -> list[str]:
        """For the terminal."""
        plan, memory = self.plan, self.memory
        trained = f"{self.counts.n_trainable:,} trained" if plan.lora_rank is not None else "all trained"
        device = "process" if plan.use_cpu else "GPU"
        processes = f"{plan.n_processes} process{'es' if plan.n_processes > 1 else ''}"
        unit = "pairs" if plan.is_dpo else "sequences"
        room = f" of {_gib(self.gpu_bytes)}" if self.gpu_bytes is not None and not plan.use_cpu else ""
        parts = ((name, size) for name, size in asdict(memory).items() if size)
        lines = [
            f"{plan.stage}: {self.counts.n_parameters:,} parameters, {trained}",
            f"  {processes} ({plan.layout}), {plan.per_device} x {plan.accumulation} x {plan.n_processes}"
            f" = {plan.product} {unit} a step, at most {self.tokens_a_step:,} tokens",
            f"  memory a {device}: {_gib(memory.total)} GiB{room}: "
            + ", ".join(f"{name} {_gib(size)}" for name, size in parts),
        ]
        if self.n_steps is not None:
            tokens = f", {self.n_tokens:,} tokens" if self.n_tokens is not None else ""
            lines.append(f"  {self.n_steps:,} steps{tokens}" + (f", {self.flops:.2e} FLOP" if self.flops else ""))
        if self.hours is not None:
            lines.append(
                f"  about {self.hours:.1f} hours on {plan.n_processes} x {self.gpu}, at {self.mfu:.0%} of its peak"
            )
        return lines + [f"  {note}" for note in self.notes]


def forecast_stage(
    plan: StagePlan, shape: ModelShape, work: Work | None = None, gpu: str | None = None, mfu: float | None = None
) -> Forecast:
    """A stage's costs; `gpu` is a name of :data:`~zephyr_local.train.hardware_table.GPU_MODELS`, for hours.

    `mfu` is the share of the GPU's peak that training reaches; None: an assumed one.
    """
    work = work or Work()
    gpu_bytes = gpu_model(gpu).memory_bytes if gpu is not None else None
    counts = count(shape, plan.lora_rank, plan.lora_modules)
    length = min(work.mean_length or math.inf, plan.max_length or math.inf)
    known = math.isfinite(length)
    per_record = (2 if plan.is_dpo else 1) * (length if known else 0)
    n_steps = count_steps(plan, work)
    n_tokens = int(n_steps * plan.product * per_record) if n_steps is not None and known else None
    reached = mfu if mfu is not None else QLORA_MFU if plan.load_in_4bit else FULL_MFU
    flops = hours = None
    if n_tokens is not None:
        flops = n_tokens * flops_a_token(plan, shape, counts, length) + _reference_flops(
            plan, shape, work, n_tokens, length
        )
        if gpu is not None and not plan.use_cpu:
            hours = flops / (plan.n_processes * gpu_model(gpu).bf16_flops * reached) / 3600
    memory = forecast_memory(plan, shape, counts)
    return Forecast(
        plan=plan,
        counts=counts,
        memory=memory,
        tokens_a_step=int(plan.product * (plan.max_length or 0) * (2 if plan.is_dpo else 1)),
        n_steps=n_steps,
        n_tokens=n_tokens,
        flops=flops,
        gpu=gpu,
        gpu_bytes=gpu_bytes,
        mfu=reached,
        hours=hours,
        notes=(*_fit(plan, memory, gpu_bytes), *_notes(plan, work, hours is not None, mfu is None)),
    )


def count_steps(plan: StagePlan, work: Work) -> int | None:
    """Optimiser steps, as transformers' Trainer counts them: a last part of an epoch's step is a step."""
    if plan.max_steps is not None:
        return plan.max_steps
    if work.n_sequences is None:
        return None
    return math.ceil(plan.epochs * math.ceil(work.n_sequences / plan.product))


def flops_a_token(plan: StagePlan, shape: ModelShape, counts: Counts, length: float) -> float:
    """Operations of a token in training: 6 a parameter, 8 with checkpointing; beside a frozen base 4 and 6.

    A frozen matrix has no gradient of its own, only one of its input; adapters are matrices of their own.
    """
    again = 1 if plan.checkpointing else 0
    forward = _forward_flops(shape, length)
    if plan.lora_rank is None:
        return (3 + again) * forward
    attention = forward - 2 * shape.n_multiplied
    return (2 + again) * 2 * shape.n_multiplied + (3 + again) * (attention + 2 * counts.n_trainable)


def _forward_flops(shape: ModelShape, length: float) -> float:
    """Operations of one token's forward pass; a token looks back on half the sequence on average."""
    seen = min(length, shape.sliding_window or math.inf) / 2
    return 2 * shape.n_multiplied + 4 * shape.n_layers * shape.query_size * seen


def _reference_flops(plan: StagePlan, shape: ModelShape, work: Work, n_tokens: int, length: float) -> float:
    """DPO's passes through the reference: one over the data where they are precomputed, else one an epoch."""
    if not plan.is_dpo:
        return 0.0
    passes = float(n_tokens)
    if plan.precomputed_reference and work.n_sequences is not None:
        passes = 2 * work.n_sequences * length
    return passes * _forward_flops(shape, length)


def _fit(plan: StagePlan, memory: Memory, gpu_bytes: int | None) -> list[str]:
    if gpu_bytes is None or plan.use_cpu or memory.total <= gpu_bytes:
        return []
    return [f"does not fit: {_gib(memory.total)} GiB are needed on a GPU of {_gib(gpu_bytes)}"]


def _notes(plan: StagePlan, work: Work, timed: bool, assumed: bool) -> list[str]:
    notes = []
    if plan.max_length is None:
        notes.append("max_length is not set, so activations and tokens are not counted")
    elif work.mean_length is None and not plan.packed:
        notes.append("each sequence is counted at its greatest length: an upper bound")
    if plan.max_steps is None and work.n_sequences is None:
        notes.append("steps and hours need the data: they are known when it is prepared")
    if timed and assumed:
        notes.append("hours rest on an assumed share of the peak, and leave evaluation and saving out")
    unknown = [name for name in plan.lora_modules if name not in LINEAR_MODULES]
    if plan.lora_rank is not None and unknown:
        notes.append(f"adapters of {', '.join(unknown)} are not counted")
    return notes


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f}"
