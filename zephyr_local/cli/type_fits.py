"""What each type of a model takes, and whether it fits: sizes from the shape and llama-quantize's mixes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from zephyr_local.errors import NotEnoughMemoryError
from zephyr_local.memory.bandwidth import expected_tokens_s
from zephyr_local.memory.estimate import MemoryEstimate
from zephyr_local.memory.plan import Machine, Plan, plan
from zephyr_local.memory.shape import ModelShape, Weights, row_bytes
from zephyr_local.quantize.mixes import ModelFacts, TensorShape, choose_mix
from zephyr_local.quantize.types import FileType, TensorType
from zephyr_local.settings import EngineSettings

CONTEXTS = (2048, 4096, 8192)
UNQUANTIZED = ("F16", "BF16", "F32")


@dataclass(frozen=True, slots=True)
class TypeFit:
    """One type of a model on one machine."""

    type_name: str
    model: ModelShape
    plans: Mapping[int, Plan | None]
    """Context → what it takes and the layers on GPUs; None where it does not fit."""
    estimates: Mapping[int, MemoryEstimate]
    """Context → what it takes, whether it fits or not; with the layers on GPUs that fit there."""
    tokens_s: float | None
    """Expected; None where that is not known."""

    @property
    def fits_anywhere(self) -> bool:
        return any(found is not None for found in self.plans.values())


def shape_in_type(numbers: Mapping[str, int], file_type: FileType, *, is_tied: bool = False) -> ModelShape:
    """A model of the given shape (``catalogue.SHAPE_KEYS``) with the tensors that llama-quantize would make."""
    n_embd, n_head, n_ff = numbers["n_embd"], numbers["n_head"], numbers["n_ff"]
    n_kv = n_embd // n_head * numbers["n_head_kv"]
    blocks = {
        "attn_norm": (n_embd,),
        "attn_q": (n_embd, n_embd),
        "attn_k": (n_kv, n_embd),
        "attn_v": (n_kv, n_embd),
        "attn_output": (n_embd, n_embd),
        "ffn_norm": (n_embd,),
        "ffn_gate": (n_ff, n_embd),
        "ffn_up": (n_ff, n_embd),
        "ffn_down": (n_embd, n_ff),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (numbers["n_vocab"], n_embd),
        "output_norm.weight": (n_embd,),
    }
    if not is_tied:
        shapes["output.weight"] = (numbers["n_vocab"], n_embd)
    shapes |= {
        f"blk.{block}.{name}.weight": rows for block in range(numbers["n_layer"]) for name, rows in blocks.items()
    }
    return _with_types(shapes, file_type, ModelFacts(numbers["n_layer"], n_head, numbers["n_head_kv"]), numbers)


def in_other_type(model: ModelShape, file_type: FileType) -> ModelShape:
    """The same model as llama-quantize would make it in another type."""
    numbers = {
        "n_layer": model.n_layer,
        "n_embd": model.n_embd,
        "n_head": model.n_head,
        "n_head_kv": model.n_head_kv,
        "n_ff": model.n_ff,
        "n_vocab": model.n_vocab,
        "n_ctx_train": model.n_ctx_train,
    }
    is_tied = all(tensor.name != "output.weight" for tensor in model.tensors)
    return shape_in_type(numbers, file_type, is_tied=is_tied)


def fit_of(
    type_name: str, model: ModelShape, machine: Machine, settings: EngineSettings, bandwidth_bytes_s: float | None
) -> TypeFit:
    """How a model fits the machine at each of the contexts that it was trained for."""
    plans: dict[int, Plan | None] = {}
    estimates: dict[int, MemoryEstimate] = {}
    for n_ctx in contexts(model, settings):
        asked = replace(settings, n_ctx=n_ctx, check_memory=True)
        try:
            planned = plans[n_ctx] = plan(model, asked, machine, type_name)
            estimates[n_ctx] = planned.estimate
        except NotEnoughMemoryError:
            plans[n_ctx] = None
            estimates[n_ctx] = _estimate_anyway(model, asked, machine, type_name)
    first = next(iter(estimates.values()))
    rate = None if bandwidth_bytes_s is None else expected_tokens_s(model, first, bandwidth_bytes_s)
    return TypeFit(type_name, model, plans, estimates, rate)


def contexts(model: ModelShape, settings: EngineSettings) -> tuple[int, ...]:
    """The contexts of a table: what is asked for, or 2k, 4k and 8k as far as the model was trained for them."""
    if settings.n_ctx is not None:
        return (settings.n_ctx,)
    return tuple(n_ctx for n_ctx in CONTEXTS if n_ctx <= model.n_ctx_train) or (model.n_ctx_train,)


def best(fits: Sequence[TypeFit], n_ctx: int) -> TypeFit | None:
    """The largest that fits at a context: what is not quantized counts only where there is nothing else."""
    fitting = [fit for fit in fits if fit.plans.get(n_ctx) is not None]
    quantized = [fit for fit in fitting if fit.type_name not in UNQUANTIZED]
    return max(quantized or fitting, key=lambda fit: fit.model.size_bytes, default=None)


def _estimate_anyway(model: ModelShape, settings: EngineSettings, machine: Machine, name: str) -> MemoryEstimate:
    return plan(model, replace(settings, check_memory=False, n_gpu_layers=0), machine, name).estimate


def _with_types(
    shapes: Mapping[str, tuple[int, ...]], file_type: FileType, facts: ModelFacts, numbers: Mapping[str, int]
) -> ModelShape:
    stored = file_type.default_type if file_type.name in UNQUANTIZED else TensorType.F16
    tensors = [TensorShape.of_checkpoint(name, rows, stored) for name, rows in shapes.items()]
    weights = []
    for chosen in choose_mix(tensors, file_type, facts):
        *rest, n_columns = shapes[chosen.name]
        n_rows = rest[0] if rest else 1
        kind = chosen.kind.name
        weights.append(Weights(chosen.name, kind, n_rows, n_rows * row_bytes(kind, n_columns)))
    return ModelShape(
        numbers["n_layer"],
        numbers["n_embd"],
        numbers["n_head"],
        numbers["n_head_kv"],
        numbers["n_embd"] // numbers["n_head"],
        numbers["n_ff"],
        numbers["n_vocab"],
        numbers["n_ctx_train"],
        tuple(weights),
    )
