"""Which type each tensor of a file gets: llama.cpp's mixes and their fall-backs.

The rules are those of src/llama-quant.cpp of llama.cpp 0c1e57098 (`llama_tensor_get_type_impl`, `tensor_type_fallback`,
`tensor_allows_quantization`) for the architecture `llama` without experts, and the order is that of
src/llama-model-loader.h (`weight_name_comparer`). The rules count tensors as they meet them, so the order matters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from zephyr_local.quantize.types import FileType, TensorType

_BLOCK = re.compile(r"blk\.(\d+)\.")


def file_order(name: str) -> tuple[int, str]:
    """Sort key of llama.cpp's order: tensors outside the layers first, then layer by layer, by name in each."""
    match = _BLOCK.match(name)
    return (int(match[1]) if match else -1, name)


@dataclass(frozen=True, slots=True)
class TensorShape:
    """What the rules need to know of a tensor."""

    name: str
    shape: tuple[int, ...]  # (n_out, n_in), or (n,) for a norm

    @property
    def n_columns(self) -> int:
        """Weights in a row, the unit that is divided into blocks."""
        return self.shape[-1]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the rules need to know of the model."""

    n_layers: int
    n_heads: int
    n_kv_heads: int

    @property
    def is_70b(self) -> bool:
        """llama.cpp knows Llama-2-70B's shape by its depth and grouped heads (src/models/llama.cpp)."""
        return self.n_layers == 80 and self.n_heads != self.n_kv_heads


class _Role(Enum):
    OUTPUT = auto()
    EMBEDDING = auto()
    ATTN_V = auto()
    FFN_DOWN = auto()
    OTHER = auto()


def _role(name: str, embedding_is_output: bool) -> _Role:
    if name == "output.weight":
        return _Role.OUTPUT
    if name == "token_embd.weight":
        # A tied embedding is also the output matrix, and is stored as finely as one.
        return _Role.OUTPUT if embedding_is_output else _Role.EMBEDDING
    if "attn_v.weight" in name:
        return _Role.ATTN_V
    if "ffn_down" in name:
        return _Role.FFN_DOWN
    return _Role.OTHER


def _use_more_bits(i: int, n: int) -> bool:
    """The first and the last eighth of the layers, and each third one between."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


@dataclass(frozen=True, slots=True)
class _Place:
    """The i-th tensor of its role, of n."""

    i: int
    n: int


_Rule = Callable[[_Place, TensorType], TensorType]


def _q6_where_it_matters(place: _Place, default: TensorType) -> TensorType:
    return TensorType.Q6_K if _use_more_bits(place.i, place.n) else default


def _q5_in_first_four(place: _Place, default: TensorType) -> TensorType:
    return TensorType.Q5_K if place.i < 4 else default


def _q5_in_first_eighth(place: _Place, default: TensorType) -> TensorType:
    return TensorType.Q5_K if place.i < place.n // 8 else default


_RULES: dict[tuple[FileType, _Role], _Rule] = {
    (FileType.Q4_K_S, _Role.ATTN_V): _q5_in_first_four,
    (FileType.Q4_K_S, _Role.FFN_DOWN): _q5_in_first_eighth,
    (FileType.Q4_K_M, _Role.ATTN_V): _q6_where_it_matters,
    (FileType.Q4_K_M, _Role.FFN_DOWN): _q6_where_it_matters,
    (FileType.Q5_K_M, _Role.ATTN_V): _q6_where_it_matters,
    (FileType.Q5_K_M, _Role.FFN_DOWN): _q6_where_it_matters,
}

_SMALLER_BLOCKS = {
    TensorType.Q2_K: TensorType.Q4_0,
    TensorType.Q3_K: TensorType.Q4_0,
    TensorType.Q4_K: TensorType.Q5_0,
    TensorType.Q5_K: TensorType.Q5_1,
    TensorType.Q6_K: TensorType.Q8_0,
}


def fallback_type(wanted: TensorType, n_columns: int) -> TensorType:
    """`wanted`, or what llama.cpp stores instead where a row is no whole number of its blocks."""
    if wanted.fits(n_columns):
        return wanted
    smaller = _SMALLER_BLOCKS.get(wanted, wanted)
    return smaller if smaller.fits(n_columns) else TensorType.F16


def may_quantize(tensor: TensorShape) -> bool:
    """False for what always stays F32: vectors and norms."""
    return len(tensor.shape) >= 2 and tensor.name.endswith("weight") and "_norm.weight" not in tensor.name


def choose_types(tensors: Iterable[TensorShape], file_type: FileType, facts: ModelFacts) -> dict[str, TensorType]:
    """The type of every tensor, by name, in the order in which they stand in the file."""
    ordered = sorted(tensors, key=lambda tensor: file_order(tensor.name))
    embedding_is_output = all(tensor.name != "output.weight" for tensor in ordered)
    totals = {_Role.ATTN_V: _count_values(ordered), _Role.FFN_DOWN: facts.n_layers}
    seen = dict.fromkeys(totals, 0)
    types: dict[str, TensorType] = {}
    for tensor in ordered:
        if not may_quantize(tensor):
            types[tensor.name] = TensorType.F32
            continue
        chosen = file_type.default_type
        if chosen.is_quantized:
            role = _role(tensor.name, embedding_is_output)
            place = _Place(seen.get(role, 0), totals.get(role, 0))
            chosen = fallback_type(_by_rule(file_type, role, place, tensor, facts), tensor.n_columns)
            if role in seen:
                seen[role] += 1
        types[tensor.name] = chosen
    return types


def _by_rule(file_type: FileType, role: _Role, place: _Place, tensor: TensorShape, facts: ModelFacts) -> TensorType:
    default = file_type.default_type
    if role is _Role.OUTPUT:
        wanted = default if default is TensorType.Q8_0 else TensorType.Q6_K
        return wanted if default.fits(tensor.n_columns) else TensorType.Q8_0
    rule = _RULES.get((file_type, role))
    chosen = rule(place, default) if rule else default
    if role is _Role.ATTN_V and facts.is_70b and chosen in (TensorType.Q3_K, TensorType.Q4_K):
        return TensorType.Q5_K  # eight heads share these weights: little to pay for finer ones
    return chosen


def _count_values(tensors: Sequence[TensorShape]) -> int:
    return sum("attn_v.weight" in tensor.name for tensor in tensors)
