"""What a stage needs of each GPU's memory, by arithmetic.

Model states follow Rajbhandari et al. 2020 (ZeRO, arXiv 1910.02054, section 3): with Adam in mixed precision 16 bytes a
parameter, of which ZeRO-3 and FSDP leave each of N processes 1/N. Activations follow the method of Korthikanti et al.
2022 (arXiv 2205.05198, section 4): the bytes that each operation of a layer keeps for the backward pass, summed; their
s b h (34 + 5 a s / h) is for another layer (GELU, dropout, attention scores kept), so the sum here is of Mistral's
operations as transformers runs them. tests/train/test_forecast.py holds it against what autograd keeps.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

from zephyr_local.train.model_shape import Counts, ModelShape
from zephyr_local.train.stage_plan import StagePlan

CONTEXT_BYTES: Final = 1 << 30
"""CUDA's context, cuBLAS's workspaces and what the allocator cannot use: an assumption."""

# TRL 1.16's fused output head (trl/kernels/chunked_logprob.py, trl/trainer/utils.py): logits exist a tile at a time.
TILE_TOKENS: Final = 4096
TILE_VOCABULARY: Final = 32_768

# QLoRA (arXiv 2305.14314), section 3: 4 bits, and for 64 weights a float32 scale, or 8 bits and 1/256 of a float32.
NF4_BITS: Final = 4 + 32 / 64
NF4_DOUBLE_BITS: Final = 4 + 8 / 64 + 32 / (64 * 256)

# DeepSpeed's defaults for ZeRO-3 (stage3_max_live_parameters, reduce_bucket_size): numbers, not bytes.
ZERO3_LIVE: Final = 1_000_000_000
ZERO3_BUCKET: Final = 500_000_000

_FLOAT32: Final = 4


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one GPU at the worst moment of a step."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    """The output head's tile, its gradients and the hidden states that it works on."""
    reference: int
    """DPO's second model; 0 where its log-probabilities are computed before, or adapters are turned off."""
    working: int
    """Copies that come and go: gathered layers, weights in bfloat16, communication."""
    context: int

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


def forecast_memory(plan: StagePlan, shape: ModelShape, counts: Counts) -> Memory:
    """A stage's memory on each GPU, all sequences at their greatest length."""
    share = plan.n_processes if plan.layout in ("zero3", "fsdp2") else 1
    trained_bytes = _trained_bytes(plan)
    frozen = shape.n_parameters if plan.lora_rank is not None else 0
    weights = _frozen_bytes(plan, shape) if frozen else 0
    weights += counts.n_trainable * trained_bytes
    tokens = _tokens(plan)
    return Memory(
        weights=weights // share,
        gradients=counts.n_trainable * trained_bytes // share,
        optimizer=counts.n_trainable * _optimizer_bytes(plan) // share,
        activations=_activations(plan, shape, tokens),
        logits=_logits(plan, shape, tokens),
        reference=_reference(plan, shape) // share,
        working=_working(plan, shape, counts),
        context=0 if plan.use_cpu else CONTEXT_BYTES,
    )


def _trained_bytes(plan: StagePlan) -> int:
    """Bytes of a trained weight, and of its gradient."""
    if plan.lora_rank is not None:
        return 2 if _quantised(plan) else _FLOAT32  # TRL makes QLoRA's adapters bfloat16, peft makes others float32
    if plan.layout == "zero3" and plan.bf16:
        return 2  # the float32 copy is the optimiser's
    if plan.layout == "fsdp2" and plan.bf16:
        return _FLOAT32  # accelerate widens what trains
    return plan.weight_bytes


def _optimizer_bytes(plan: StagePlan) -> int:
    """Bytes that the optimiser keeps of a trained weight."""
    name = plan.optimizer
    if "8bit" in name:
        return 2  # two moments of 8 bits; their scales, one in 256, are left out
    if name.startswith(("sgd", "adafactor")):
        return 0  # Adafactor keeps a row and a column of each matrix
    moments = 1 if name.startswith(("lion", "rmsprop", "adagrad", "paged_lion")) else 2
    if plan.layout == "zero3" and plan.bf16:
        return _FLOAT32 * (moments + 1)  # and the float32 weight
    return (_FLOAT32 if "32bit" in name else _trained_bytes(plan)) * moments


def _frozen_bytes(plan: StagePlan, shape: ModelShape) -> int:
    """A base beside adapters: bitsandbytes quantises the layers' matrices, not the vocabulary's or the norms."""
    rest = (shape.n_parameters - shape.n_linear) * plan.weight_bytes
    if plan.load_in_4bit:
        return rest + int(shape.n_linear * (NF4_DOUBLE_BITS if plan.double_quantised else NF4_BITS) / 8)
    return rest + shape.n_linear * (1 if plan.load_in_8bit else plan.weight_bytes)


def _quantised(plan: StagePlan) -> bool:
    return plan.load_in_4bit or plan.load_in_8bit


def _tokens(plan: StagePlan) -> int:
    """Positions of one forward pass of one process: a pair is two sequences."""
    return plan.per_device * (plan.max_length or 0) * (2 if plan.is_dpo else 1)


def layer_bytes_a_token(plan: StagePlan, shape: ModelShape) -> float:
    """Bytes of a token that one layer keeps for its backward pass, without checkpointing."""
    number, residual = plan.compute_bytes, _residual_bytes(plan)
    hidden, query, inner = shape.hidden_size, shape.query_size, shape.intermediate_size
    attention = number * (2 * query + 2 * shape.kv_size) + _FLOAT32 * shape.n_heads  # q, k, v, output; log-sum-exp
    if plan.attention == "eager":
        attention += shape.n_heads * (plan.max_length or 0) * (number + _FLOAT32)  # softmax in float32, and its cast
    if plan.lora_rank is not None:
        norms = 2 * _FLOAT32 * hidden  # their input, in float32; frozen weights ask for no more
        mlp = 3 * number * inner  # gate, silu(gate), up
        return norms + attention + mlp + _adapter_bytes_a_token(plan, shape)
    norms = 2 * (_FLOAT32 + residual) * hidden  # their input, in float32, and what their weight multiplies
    # Autocast casts the input of each matrix anew, where it is not in the computing type already.
    casts = 5 if residual != number else 2  # q, k, v, gate, up; or one for attention and one for the MLP
    return norms + attention + number * hidden * casts + 4 * number * inner  # and the product, down_proj's input


def _adapter_bytes_a_token(plan: StagePlan, shape: ModelShape) -> float:
    number, rank = plan.compute_bytes, plan.lora_rank or 0
    sizes = {name: size for name, size in shape.linear_sizes.items() if name in plan.lora_modules}
    inside = number * rank * len(sizes)
    mask = 1 if plan.lora_dropout else 0  # CUDA's dropout keeps a byte a number
    if mask or _trained_bytes(plan) != number:  # each module drops out, or casts, a copy of its own
        return inside + (number + mask) * sum(n_in for n_in, _ in sizes.values())
    # One input for q, k and v, one for gate and up; o_proj's is attention's output, which is counted there.
    shared = {"q_proj": "a", "k_proj": "a", "v_proj": "a", "gate_proj": "m", "up_proj": "m", "down_proj": "d"}
    inputs = {shared[name]: size[0] for name, size in sizes.items() if name in shared}
    return inside + number * sum(inputs.values())


def _residual_bytes(plan: StagePlan) -> int:
    """Bytes of a number of the residual stream, which has the type of the weights as they compute."""
    return 2 if plan.layout in ("zero3", "fsdp2") and plan.bf16 else plan.weight_bytes


def _activations(plan: StagePlan, shape: ModelShape, tokens: int) -> int:
    layer = layer_bytes_a_token(plan, shape)
    # Of the layer that the backward pass is in: gradients of its widest part and of the residual stream.
    gradients = 2 * plan.compute_bytes * shape.intermediate_size + 2 * _residual_bytes(plan) * shape.hidden_size
    if plan.checkpointing:  # each layer's input (Korthikanti, section 5: 2 s b h L), and one layer computed again
        return int(tokens * (shape.n_layers * _residual_bytes(plan) * shape.hidden_size + layer + gradients))
    return int(tokens * (shape.n_layers * layer + gradients))


def _logits(plan: StagePlan, shape: ModelShape, tokens: int) -> int:
    """TRL never has all logits at once; the head's gradients are summed in float32."""
    tile = min(tokens, TILE_TOKENS) * min(shape.vocab_size, TILE_VOCABULARY) * plan.compute_bytes
    hidden = tokens * shape.hidden_size * (2 * _FLOAT32 + 2 * _residual_bytes(plan))  # last norm; gradient
    head = shape.n_embedding * _FLOAT32 if plan.lora_rank is None else 0
    return tile + hidden + head


def _reference(plan: StagePlan, shape: ModelShape) -> int:
    if not plan.is_dpo or plan.precomputed_reference or plan.lora_rank is not None:
        return 0
    return shape.n_parameters * (2 if plan.layout == "zero3" and plan.bf16 else plan.weight_bytes)


def _working(plan: StagePlan, shape: ModelShape, counts: Counts) -> int:
    mixed = plan.bf16 or plan.fp16
    if plan.layout == "zero3":
        return 2 * (min(shape.n_parameters, ZERO3_LIVE) + min(counts.n_trainable, ZERO3_BUCKET))
    if (
        plan.layout == "fsdp2"
    ):  # two layers and the vocabulary's matrices gathered; one layer's gradients before they are
        layer = shape.n_layer * plan.compute_bytes
        trained = layer if plan.lora_rank is None else 0
        return 2 * layer + 2 * shape.n_embedding * plan.compute_bytes + trained
    if plan.load_in_4bit or plan.load_in_8bit:  # one matrix at a time, made whole
        extra = max(n_in * n_out for n_in, n_out in shape.linear_sizes.values()) * plan.compute_bytes
    else:  # autocast keeps trained weights in the computing type for as long as the forward pass
        extra = counts.n_trainable * 2 if mixed and _trained_bytes(plan) == _FLOAT32 else 0
    buckets = counts.n_trainable * _trained_bytes(plan) if plan.layout == "ddp" else 0  # DDP copies gradients to send
    return extra + buckets
