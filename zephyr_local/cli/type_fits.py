"""What each type of a model takes, and whether it fits: sizes from the shape and llama-quantize's mixes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from zephyr_local.gguf_file import TENSOR_TYPES
from zephyr_local.memory.bandwidth import expected_tokens_s
from zephyr_local.memory.estimate import MemoryEstimate
from zephyr_local.memory.plan import Machine, Shortfall, fitted
from zephyr_local.memory.shape import ModelShape, Weights, row_bytes
from zephyr_local.quantize.mixes import ModelFacts, TensorShape, choose_mix
from zephyr_local.quantize.types import FileType, TensorType
from zephyr_local.settings import EngineSettings

CONTEXTS = (2048, 4096, 8192)
UNQUANTIZED = ("F16", "BF16", "F32")
_BLOCKS = {name: (weights, n_bytes) for name, weights, n_bytes in TENSOR_TYPES.values()}


@dataclass(frozen=True, slots=True)
class TypeFit:
    """One type of a model on one machine."""

    type_name: str
    model: ModelShape
    estimates: Mapping[int, MemoryEstimate]
    """Context → what it takes, whether it fits or not; with the layers on GPUs that fit there."""
    shortfalls: Mapping[int, Shortfall]
    """Context → what is missing, where it does not fit."""
    tokens_s: float | None
    """Expected; None where that is not known."""

    def fits(self, n_ctx: int) -> bool:
        """Whether it fits at one of its contexts."""
        return n_ctx in self.estimates and n_ctx not in self.shortfalls

    @property
    def fits_anywhere(self) -> bool:
        return any(map(self.fits, self.estimates))


def shape_in_type(numbers: Mapping[str, int], file_type: FileType) -> ModelShape:
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
        "output.weight": (numbers["n_vocab"], n_embd),
    }
    shapes |= {
        f"blk.{block}.{name}.weight": rows for block in range(numbers["n_layer"]) for name, rows in blocks.items()
    }
    facts = ModelFacts(numbers["n_layer"], n_head, numbers["n_head_kv"])
    return ModelShape(
        *(numbers["n_layer"], n_embd, n_head, numbers["n_head_kv"], n_embd // n_head, n_ff),
        *(numbers["n_vocab"], numbers["n_ctx_train"], _weights_in(shapes, file_type, facts)),
    )


def in_other_type(model: ModelShape, file_type: FileType) -> ModelShape:
    """The same model as llama-quantize would make it in another type.

    Raises InvalidInputError where its rows are no whole number of the type's blocks.
    """
    shapes = {
        tensor.name: (_n_columns(tensor),) if tensor.n_rows == 1 else (tensor.n_rows, _n_columns(tensor))
        for tensor in model.tensors
    }
    facts = ModelFacts(model.n_layer, model.n_head, model.n_head_kv)
    return replace(model, tensors=_weights_in(shapes, file_type, facts))


def fit_of(
    type_name: str, model: ModelShape, machine: Machine, settings: EngineSettings, bandwidth_bytes_s: float | None
) -> TypeFit:
    """How a model fits the machine at each of the contexts that it was trained for."""
    estimates: dict[int, MemoryEstimate] = {}
    shortfalls: dict[int, Shortfall] = {}
    for n_ctx in contexts(model, settings):
        estimates[n_ctx], missing = fitted(model, replace(settings, n_ctx=n_ctx), machine)
        if missing is not None:
            shortfalls[n_ctx] = missing
    first = next(iter(estimates.values()))
    rate = None if bandwidth_bytes_s is None else expected_tokens_s(model, first, bandwidth_bytes_s)
    return TypeFit(type_name, model, estimates, shortfalls, rate)


def contexts(model: ModelShape, settings: EngineSettings) -> tuple[int, ...]:
    """The contexts of a table: what is asked for, or 2k, 4k and 8k as far as the model was trained for them."""
    if settings.n_ctx is not None:
        return (settings.n_ctx,)
    return tuple(n_ctx for n_ctx in CONTEXTS if n_ctx <= model.n_ctx_train) or (model.n_ctx_train,)


def best(fits: Sequence[TypeFit], n_ctx: int) -> TypeFit | None:
    """The largest that fits at a context: what is not quantized counts only where there is nothing else."""
    fitting = [fit for fit in fits if fit.fits(n_ctx)]
    quantized = [fit for fit in fitting if fit.type_name not in UNQUANTIZED]
    return max(quantized or fitting, key=lambda fit: fit.model.size_bytes, default=None)


def _n_columns(tensor: Weights) -> int:
    block, block_bytes = _BLOCKS[tensor.type_name]
    return tensor.size_bytes // tensor.n_rows // block_bytes * block


def _weights_in(shapes: Mapping[str, tuple[int, ...]], file_type: FileType, facts: ModelFacts) -> tuple[Weights, ...]:
    stored = file_type.default_type if file_type.name in UNQUANTIZED else TensorType.F16
    tensors = [TensorShape.of_checkpoint(name, rows, stored) for name, rows in shapes.items()]
    weights = []
    for chosen in choose_mix(tensors, file_type, facts):
        *rest, n_columns = shapes[chosen.name]
        n_rows, kind = rest[0] if rest else 1, chosen.kind.name
        weights.append(Weights(chosen.name, kind, n_rows, n_rows * row_bytes(kind, n_columns)))
    return tuple(weights)
