"""A LoRA adapter of PEFT, checked from its headers, and its merge into the rows of a base.

The merge is that of PEFT 0.21 on the CPU (tuners/lora/layer.py: get_delta_weight, merge), with its roundings in its
places: A and B as float32, B·A in float32, times the scaling, plus the base's weights, rounded once to the base's type.
What is added to an embedding is rounded to that type beforehand, too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zephyr_local.convert.adapter_config import ADAPTER_CONFIG, MERGE_WITH_PEFT, AdapterConfig, read_adapter_config
from zephyr_local.convert.safetensors_file import Shard, SourceType, StoredTensor, read_shard
from zephyr_local.convert.tensor_names import EMBEDDING, OUTPUT
from zephyr_local.errors import CheckpointError
from zephyr_local.quantize.kernels import ggml
from zephyr_local.quantize.mapped_file import Bytes, map_file
from zephyr_local.quantize.types import TensorType

_WEIGHTS = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"
_PREFIX = "base_model.model."
_FACTOR = re.compile(
    r"(?P<module>.+)\.(?:lora_(?P<linear>[AB])(?:\.default)?\.weight|lora_embedding_(?P<embedding>[AB])(?:\.default)?)"
)
_COPIES = re.compile(r"(?P<module>.+)\.(?:modules_to_save|original_module)\.weight")
_BASE_LAYER = ".base_layer.weight"  # a targeted embedding, which PEFT saves beside its factors
_WHY_REFUSED = {
    ".lora_magnitude_vector": "a magnitude of DoRA",
    ".bias": "a bias",
    ".token_adapter.": "a trained token",
    ".trainable_tokens_": "a trained token",
}
_COPY_AGAIN = "The adapter is incomplete or damaged: save, copy or download it again"
_OTHER_BASE = "Give the base that the adapter was trained on with --base"

# PyTorch's matrix product on x86 (MKL) sums at most so many products one after the other, from zero, before it adds
# them to the sum so far; a greater rank is cut in half or in pieces of this length. Every row and thread count does the
# same there, so that these pieces give the same bits.
_DEPTH = 192


@dataclass(frozen=True, slots=True)
class _Factor:
    """A or B, as stored: bytes of the mapped file."""

    data: Bytes
    source: SourceType
    shape: tuple[int, int]

    def rows(self, rows: slice) -> NDArray[np.float32]:
        """Some rows as float32."""
        width = self.shape[1] * self.source.size_bytes
        return _widened(self.data[rows.start * width : rows.stop * width], self.source, self.shape[1])

    def columns(self, columns: slice) -> NDArray[np.float32]:
        """Some columns of every row as float32."""
        size = self.source.size_bytes
        part = self.data.reshape(self.shape[0], -1)[:, columns.start * size : columns.stop * size]
        return _widened(np.ascontiguousarray(part).reshape(-1), self.source, columns.stop - columns.start)


@dataclass(frozen=True, slots=True)
class LoraDelta:
    """What an adapter adds to one weight of the base: `scaling` times B·A, or its transpose for an embedding.

    Shapes: A (rank, n_in), B (n_out, rank); an embedding's A is (rank, n_tokens), its B (n_features, rank).
    """

    a: _Factor
    b: _Factor
    scaling: float
    is_embedding: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the weight in the base."""
        n_out, n_in = self.b.shape[0], self.a.shape[1]
        return (n_in, n_out) if self.is_embedding else (n_out, n_in)

    @property
    def widened_weights(self) -> int:
        """Weights of a factor that a merge holds as float32 at once, besides those of the block itself."""
        if self.is_embedding:
            return math.prod(self.b.shape)
        rank, n_in = self.a.shape
        return min(rank, _DEPTH) * n_in

    def merged(self, rows: NDArray[np.float32], first_row: int, stored: SourceType) -> NDArray[np.float32]:
        """The base's rows from `first_row` on with the adapter in them, rounded to `stored` as PEFT rounds them.

        `rows`, shape (n_rows, n_columns), are left as they are. Values beyond the type's range become infinite.
        """
        assert rows.shape[1] == self.shape[1], (rows.shape, self.shape)
        assert first_row + len(rows) <= self.shape[0], (first_row, rows.shape, self.shape)
        block, whole = slice(first_row, first_row + len(rows)), slice(0, self.b.shape[0])
        with np.errstate(all="ignore"):  # the caller looks for what is not finite
            if self.is_embedding:
                columns, features = self.a.columns(block), self.b.rows(whole)
                merged = _product(len(columns), lambda piece: columns[piece].T, lambda piece: features[:, piece].T)
            else:
                outputs = self.b.rows(block)  # A is widened piece by piece: of a high rank it is large
                merged = _product(self.a.shape[0], lambda piece: outputs[:, piece], self.a.rows)
            merged *= np.float32(self.scaling)
            if self.is_embedding:
                merged = rounded(merged, stored)
            merged += rows
            return rounded(merged, stored)


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter whose file and configuration agree."""

    folder: Path
    config: AdapterConfig
    shard: Shard
    deltas: Mapping[str, LoraDelta]  # by the base's tensor name
    replaced: Mapping[str, StoredTensor]  # by the base's tensor name: what stands in its place, before its delta if any

    @property
    def vocab_size(self) -> int | None:
        """Rows of the embedding or the output matrix that the adapter brings; None: it brings neither."""
        rows = [self.replaced[name].shape[0] for name in (EMBEDDING, OUTPUT) if name in self.replaced]
        return max(rows, default=None)

    @property
    def touched_vocabulary(self) -> tuple[str, ...]:
        """Embedding and output matrix, those that the adapter changes.

        A base that has one matrix for both cannot have it changed in one of its roles alone: PEFT warns that the merged
        model is then not the one that was trained, and may untie the two.
        """
        return tuple(name for name in (EMBEDDING, OUTPUT) if name in self.deltas or name in self.replaced)


def open_adapter(folder: Path) -> Adapter:
    """Opens and checks an adapter's folder; a CheckpointError says what is wrong with it."""
    config = read_adapter_config(folder)
    if not (folder / _WEIGHTS).is_file():
        if (folder / _PICKLE).is_file():
            raise CheckpointError(
                f"{folder} has its weights as a pickle only ({_PICKLE}), and loading a pickle runs its code",
                "Take the safetensors version, or save it anew with peft: save_pretrained(safe_serialization=True)",
            )
        raise CheckpointError(f"{folder} has no {_WEIGHTS}", "Give the folder that save_pretrained of peft wrote")
    shard = read_shard(folder / _WEIGHTS)
    factors, others = _sorted_by_use(shard)
    data = map_file(shard.path, shard.size_bytes)
    deltas = {f"{module}.weight": _delta(module, pair, config, data) for module, pair in factors.items()}
    return Adapter(folder, config, shard, deltas, _replaced(others, deltas))


def require_fits(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuses an adapter that does not belong to a base of these tensors (shapes by name).

    Embedding and output matrix may be replaced by ones with more rows, both alike; `shapes` may have their old rows or
    those of :attr:`Adapter.vocab_size`.
    """
    actual = dict(shapes)
    for name, tensor in adapter.replaced.items():
        _require_exists(name, shapes)
        grows = name in (EMBEDDING, OUTPUT) and tensor.shape[1:] == shapes[name][1:] and tensor.shape > shapes[name]
        if tensor.shape != shapes[name] and not grows:
            raise _misfit(name, tensor.shape, shapes[name])
        actual[name] = tensor.shape
    if EMBEDDING in actual and OUTPUT in actual and actual[EMBEDDING] != actual[OUTPUT]:
        raise CheckpointError(
            f"the adapter gives {EMBEDDING} {actual[EMBEDDING][0]} rows and {OUTPUT} {actual[OUTPUT][0]}: new tokens "
            "need a row in both",
            "Save the adapter with both (save_embedding_layers=True), or merge it with peft",
        )
    for name, delta in adapter.deltas.items():
        _require_exists(name, shapes)
        if delta.is_embedding != (name == EMBEDDING):
            raise CheckpointError(
                f"{_WEIGHTS} holds factors of {'an embedding' if delta.is_embedding else 'a linear layer'} for {name}",
                _OTHER_BASE,
            )
        if delta.shape != actual[name]:
            raise _misfit(name, delta.shape, actual[name])
    _require_complete(adapter, shapes)


def require_untied(adapter: Adapter, *, tied: bool) -> None:
    """Refuses an adapter that changes the embedding or the output matrix of a base that has one matrix for both."""
    if tied and adapter.touched_vocabulary:
        raise CheckpointError(
            f"the adapter changes {adapter.touched_vocabulary[0]}, and the base has one matrix for its embedding and "
            "its output",
            MERGE_WITH_PEFT,
        )


def rounded(values: NDArray[np.float32], stored: SourceType) -> NDArray[np.float32]:
    """The values, shape (n_rows, n_columns), as a source type holds them: to nearest, ties to even.

    A tensor that replaces one of the base is rounded so too, since PEFT loads it into a parameter of the base's type.
    """
    if stored is SourceType.F32:
        return values
    kind = TensorType[stored.name]
    return ggml.decode(kind, ggml.encode(kind, np.ascontiguousarray(values)), values.shape[1])


_Piece = Callable[[slice], NDArray[np.float32]]


def _product(rank: int, left: _Piece, right: _Piece) -> NDArray[np.float32]:
    """left @ right, given piece by piece along the rank, with the bits that PyTorch's product has."""
    depth = rank if rank <= _DEPTH else min(_DEPTH, rank // 2)
    pieces = [slice(first, min(first + depth, rank)) for first in range(0, rank, depth)]
    total = _matrix_product(left(pieces[0]), right(pieces[0]))
    for piece in pieces[1:]:
        total += _matrix_product(left(piece), right(piece))
    return total


def _matrix_product(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    if len(left) == 1:  # numpy would take BLAS's product with a vector, which sums in another order
        return (np.repeat(left, 2, axis=0) @ right)[:1]
    return left @ right


def _widened(raw: Bytes, source: SourceType, n_columns: int) -> NDArray[np.float32]:
    return ggml.decode(TensorType[source.name], raw, n_columns)


def _sorted_by_use(shard: Shard) -> tuple[dict[str, dict[str, StoredTensor]], dict[str, StoredTensor]]:
    """Factors by module and letter (with the kind of module), and everything else by its name in the base."""
    factors: dict[str, dict[str, StoredTensor]] = {}
    others: dict[str, StoredTensor] = {}
    for tensor in shard.tensors:
        name = tensor.name.removeprefix(_PREFIX)
        if name == tensor.name:
            raise _unknown(tensor.name)
        if tensor.dtype not in SourceType.__members__:
            raise CheckpointError(
                f"{tensor.name} is stored as {tensor.dtype}; BF16, F16 and F32 can be merged",
                "Save the adapter in one of these types",
            )
        if match := _FACTOR.fullmatch(name):
            letter = match["linear"] or f"embedding_{match['embedding']}"
            pair = factors.setdefault(match["module"], {})
            if letter in pair:
                raise CheckpointError(f"{_WEIGHTS} holds {pair[letter].name} and {tensor.name}", _COPY_AGAIN)
            pair[letter] = tensor
        else:
            _require_known(tensor.name)
            others[name] = tensor
    if not factors and not others:
        raise CheckpointError(f"{_WEIGHTS} holds no tensors", _COPY_AGAIN)
    return factors, others


def _require_known(name: str) -> None:
    for part, what in _WHY_REFUSED.items():
        if part in name:
            raise CheckpointError(f"{_WEIGHTS} holds {name}, {what}, which is not merged here", MERGE_WITH_PEFT)
    if "lora_" in name or not name.endswith(".weight"):
        raise _unknown(name)


def _unknown(name: str) -> CheckpointError:
    return CheckpointError(f"{_WEIGHTS} holds {name}, a tensor that is not known here", MERGE_WITH_PEFT)


def _delta(module: str, pair: Mapping[str, StoredTensor], config: AdapterConfig, data: Bytes) -> LoraDelta:
    names = ("embedding_A", "embedding_B") if "embedding_A" in pair or "embedding_B" in pair else ("A", "B")
    if pair.keys() != set(names):
        raise CheckpointError(
            f"{_WEIGHTS} holds {' and '.join(f'lora_{name}' for name in pair)} of {module}, and a LoRA is "
            f"lora_{names[0]} and lora_{names[1]}",
            _COPY_AGAIN,
        )
    if not config.targets(module):
        raise CheckpointError(
            f"{_WEIGHTS} holds a LoRA of {module}, which {ADAPTER_CONFIG} does not target: PEFT would leave it out",
            f"Take the {ADAPTER_CONFIG} that was saved with these weights",
        )
    rank, scaling = config.scaling(module)
    a, b = (pair[name] for name in names)
    for tensor, axis in ((a, 0), (b, 1)):
        if len(tensor.shape) != 2 or 0 in tensor.shape:
            raise CheckpointError(f"{tensor.name} has shape {list(tensor.shape)}, and is no matrix", _COPY_AGAIN)
        if tensor.shape[axis] != rank:
            raise CheckpointError(
                f"{tensor.name} has rank {tensor.shape[axis]}, and {ADAPTER_CONFIG} says {rank}",
                f"Take the {ADAPTER_CONFIG} that was saved with these weights",
            )
    return LoraDelta(_factor(a, data), _factor(b, data), scaling, is_embedding=names[0] == "embedding_A")


def _factor(tensor: StoredTensor, data: Bytes) -> _Factor:
    return _Factor(data[tensor.begin : tensor.end], SourceType[tensor.dtype], (tensor.shape[0], tensor.shape[1]))


def _replaced(others: Mapping[str, StoredTensor], deltas: Mapping[str, LoraDelta]) -> dict[str, StoredTensor]:
    """Whole tensors by the base's name; a module with a LoRA has its own under `base_layer`.

    Where the vocabulary grew, PEFT saves a module of modules_to_save thrice, and loads the one under its plain name.
    """
    replaced: dict[str, StoredTensor] = {}
    for name, tensor in others.items():
        if (copy := _COPIES.fullmatch(name)) and f"{copy['module']}.weight" in others:
            continue
        target = name.removesuffix(_BASE_LAYER) + ".weight" if name.endswith(_BASE_LAYER) else name
        if copy or (target in deltas) != name.endswith(_BASE_LAYER):
            raise _unknown(tensor.name)
        replaced[target] = tensor
    return replaced


def _require_exists(name: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    if name not in shapes:
        if name == OUTPUT:
            raise CheckpointError(
                f"the adapter changes {name}, and the base has one matrix for its embedding and its output",
                MERGE_WITH_PEFT,
            )
        raise CheckpointError(f"the adapter changes {name}, which the base has not", _OTHER_BASE)


def _misfit(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> CheckpointError:
    return CheckpointError(
        f"the adapter is for a {name} of shape {list(found)}, and the base's has {list(expected)}", _OTHER_BASE
    )


def _require_complete(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuses an adapter that lacks what its configuration promises; PEFT would fill in what a training starts with."""
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        if adapter.config.saves(module):
            lacks = name not in adapter.replaced
        else:
            lacks = len(shape) == 2 and name not in adapter.deltas and adapter.config.targets(module)
        if lacks:
            raise CheckpointError(
                f"{ADAPTER_CONFIG} says that {module} was trained, and {_WEIGHTS} holds nothing of it",
                "Save, copy or download the adapter again",
            )
