"""Which type each tensor of a file gets: llama.cpp's mixes, the user's exceptions to them, and the fall-backs.

The rules are those of src/llama-quant.cpp of llama.cpp 0c1e57098 (`llama_tensor_get_type` and what it calls) for the
architecture `llama` without experts, and the order is that of src/llama-model-loader.h (`weight_name_comparer`). The
rules count tensors as they meet them, so the order matters.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from zephyr_local.errors import InvalidInputError
from zephyr_local.quantize.types import FileType, TensorType

_BLOCK = re.compile(r"blk\.(\d+)\.")
_OUTPUT, _EMBEDDING = "output.weight", "token_embd.weight"


def file_order(name: str) -> tuple[int, str]:
    """Sort key of llama.cpp's order: tensors outside the layers first, then layer by layer, by name in each."""
    match = _BLOCK.match(name)
    return (int(match[1]) if match else -1, name)


@dataclass(frozen=True, slots=True)
class TensorShape:
    """What the rules need to know of a tensor.

    ``stored`` is what it keeps where it is left alone: of a GGUF's tensor the type it has there, of a checkpoint's the
    one that :meth:`of_checkpoint` gives.
    """

    name: str
    shape: tuple[int, ...]  # (n_out, n_in), or (n,) for a norm
    stored: TensorType = TensorType.F32

    @classmethod
    def of_checkpoint(cls, name: str, shape: tuple[int, ...], dtype: TensorType) -> TensorShape:
        """A checkpoint's tensor, left alone as its unquantized GGUF stores it: vectors and norms are F32 there."""
        tensor = cls(name, shape, dtype)
        return tensor if may_quantize(tensor) else cls(name, shape, TensorType.F32)

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


@functools.lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    # llama-quantize lower-cases the patterns on its command line, since every tensor name is lower case. That also
    # makes \D, \S and \W mean their opposites; ignoring case finds the same tensors and leaves those alone.
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # [[:digit:]] means something else to C++ than to Python
        return re.compile(pattern, re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class MixOptions:
    """What the user wants otherwise than the mix has it, as llama-quantize's options of the same names.

    ``tensor_types`` are pairs of a regular expression, searched in a tensor's GGUF name, and the type that the tensor
    gets; the first that matches wins. ``output_tensor_type`` and ``token_embedding_type`` go before them.
    ``pure`` gives every tensor the file type's own type, ``leave_output_tensor`` leaves output.weight as it is stored.
    """

    tensor_types: tuple[tuple[str, TensorType], ...] = ()
    output_tensor_type: TensorType | None = None
    token_embedding_type: TensorType | None = None
    pure: bool = False
    leave_output_tensor: bool = False

    def __post_init__(self) -> None:
        for pattern, kind in self.tensor_types:
            if not pattern:
                raise InvalidInputError(
                    f"the pattern for {kind.name} tensors is empty", "Give a part of the tensors' names, such as attn_v"
                )
            try:
                _compiled(pattern)
            except (re.error, FutureWarning, OverflowError, RecursionError) as error:
                raise InvalidInputError(
                    f"the tensor name pattern {pattern!r} is not a regular expression: {error}",
                    r"Give a part of the tensors' names, or an expression such as blk\.[0-3]\.ffn_down",
                ) from error
        if self.leave_output_tensor and self.output_tensor_type is not None:
            raise InvalidInputError(
                f"the output tensor cannot both be left as it is and become {self.output_tensor_type.name}",
                "Give one of the two options",
            )


MIX_ALONE = MixOptions()


class _Role(Enum):
    OUTPUT = auto()
    EMBEDDING = auto()
    ATTN_V = auto()
    ATTN_OUTPUT = auto()
    FFN_DOWN = auto()
    OTHER = auto()


def _role(name: str) -> _Role:
    if name == _OUTPUT:
        return _Role.OUTPUT
    if name == _EMBEDDING:
        return _Role.EMBEDDING
    if "attn_v.weight" in name:
        return _Role.ATTN_V
    if "attn_output.weight" in name:
        return _Role.ATTN_OUTPUT
    if "ffn_down" in name:
        return _Role.FFN_DOWN
    return _Role.OTHER


@dataclass(frozen=True, slots=True)
class _Place:
    """The i-th tensor of its role, of n, in such a model."""

    i: int
    n: int
    facts: ModelFacts
    has_importance: bool


_Condition = Callable[[_Place], bool]


def _first(count: int) -> _Condition:
    return lambda place: place.i < count


def _first_eighth(place: _Place) -> bool:
    return place.i < place.n // 8


def _first_sixteenth(place: _Place) -> bool:
    return place.i < place.n // 16


def _where_it_matters(place: _Place) -> bool:
    """The first and the last eighth of the layers, and each third one between."""
    i, n = place.i, place.n
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def _four_heads_share(place: _Place) -> bool:
    """Values that four heads or more share are few: little to pay for finer ones."""
    n_kv_heads = place.facts.n_kv_heads
    return n_kv_heads > 0 and place.facts.n_heads // n_kv_heads >= 4


def _first_eighth_with_importance(place: _Place) -> bool:
    return place.has_importance and _first_eighth(place)


@dataclass(frozen=True, slots=True)
class _Where:
    """A type where a condition holds, and another elsewhere; None is the file type's own."""

    condition: _Condition
    there: TensorType
    elsewhere: TensorType | None = None


@dataclass(frozen=True, slots=True)
class _Mix:
    """What three roles get that is not the file type's own type."""

    attn_v: TensorType | _Where | None = None
    attn_output: TensorType | _Where | None = None
    ffn_down: TensorType | _Where | None = None

    def wanted(self, role: _Role, place: _Place, default: TensorType) -> TensorType:
        rules = {_Role.ATTN_V: self.attn_v, _Role.ATTN_OUTPUT: self.attn_output, _Role.FFN_DOWN: self.ffn_down}
        rule = rules.get(role)
        if isinstance(rule, _Where):
            rule = rule.there if rule.condition(place) else rule.elsewhere
        return rule or default


# Mixes that are not named here give every tensor of the layers the file type's own type.
_MIXES: dict[FileType, _Mix] = {
    FileType.Q2_K: _Mix(
        attn_v=_Where(_four_heads_share, TensorType.Q4_K, elsewhere=TensorType.Q3_K),
        attn_output=TensorType.Q3_K,
        ffn_down=TensorType.Q3_K,
    ),
    FileType.Q3_K_M: _Mix(
        attn_v=_Where(_first(2), TensorType.Q5_K, elsewhere=TensorType.Q4_K),
        attn_output=TensorType.Q4_K,
        ffn_down=_Where(_first_sixteenth, TensorType.Q5_K, elsewhere=TensorType.Q4_K),
    ),
    FileType.Q3_K_L: _Mix(
        attn_v=TensorType.Q5_K,
        attn_output=TensorType.Q5_K,
        ffn_down=TensorType.Q5_K,
    ),
    FileType.Q4_0: _Mix(ffn_down=_Where(_first_eighth_with_importance, TensorType.Q4_1)),
    FileType.Q4_K_S: _Mix(
        attn_v=_Where(_first(4), TensorType.Q5_K),
        ffn_down=_Where(_first_eighth, TensorType.Q5_K),
    ),
    FileType.Q4_K_M: _Mix(
        attn_v=_Where(_where_it_matters, TensorType.Q6_K),
        ffn_down=_Where(_where_it_matters, TensorType.Q6_K),
    ),
    FileType.Q5_0: _Mix(ffn_down=_Where(_first_eighth_with_importance, TensorType.Q5_1)),
    FileType.Q5_K_M: _Mix(
        attn_v=_Where(_where_it_matters, TensorType.Q6_K),
        ffn_down=_Where(_where_it_matters, TensorType.Q6_K),
    ),
}
_NO_MIX = _Mix()

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
    """False for what always stays as it is stored: vectors, also those of shape (1, n), and norms."""
    is_matrix = any(n > 1 for n in tensor.shape[:-1])
    return is_matrix and tensor.name.endswith("weight") and "_norm.weight" not in tensor.name


@dataclass(frozen=True, slots=True)
class ChosenType:
    """A tensor's type, and the one that it would have if its rows were a whole number of blocks."""

    name: str
    kind: TensorType
    wanted: TensorType


class _Chooser:
    """Chooses tensor by tensor, in file order, and counts what the rules have met."""

    def __init__(
        self,
        ordered: Sequence[TensorShape],
        file_type: FileType,
        facts: ModelFacts,
        options: MixOptions,
        has_importance: bool,
    ) -> None:
        self._file_type = file_type
        self._facts = facts
        self._options = options
        self._has_importance = has_importance
        roles = [_role(tensor.name) for tensor in ordered]
        self._tied = _Role.OUTPUT not in roles
        self._totals = {_Role.ATTN_V: roles.count(_Role.ATTN_V), _Role.FFN_DOWN: facts.n_layers}
        self._seen = dict.fromkeys(_Role, 0)
        self._require_effect([tensor.name for tensor in ordered if not self._is_left(tensor)])

    def choose(self, tensor: TensorShape) -> ChosenType:
        """In llama.cpp's order: left alone, named by role, named by pattern, by the mix."""
        if self._is_left(tensor):
            return ChosenType(tensor.name, tensor.stored, tensor.stored)
        default, role = self._file_type.default_type, _role(tensor.name)
        named = self._named(role)
        if named is not None:
            _require_fit(tensor, named)
            return ChosenType(tensor.name, named, named)
        if not default.is_quantized:
            return ChosenType(tensor.name, default, default)
        wanted = self._by_pattern(tensor.name)
        if wanted is None:
            wanted = default if self._options.pure else self._by_mix(role, default)
        return ChosenType(tensor.name, fallback_type(wanted, tensor.n_columns), wanted)

    def _is_left(self, tensor: TensorShape) -> bool:
        return not may_quantize(tensor) or (self._options.leave_output_tensor and tensor.name == _OUTPUT)

    def _named(self, role: _Role) -> TensorType | None:
        if role is _Role.EMBEDDING:
            return self._options.token_embedding_type
        return self._options.output_tensor_type if role is _Role.OUTPUT else None

    def _by_pattern(self, name: str) -> TensorType | None:
        """Such a tensor is not counted, so that the mix gives the next of its role what this one would have had."""
        i = self._matching(name)
        return None if i is None else self._options.tensor_types[i][1]

    def _matching(self, name: str) -> int | None:
        """The first pattern that matches, which wins."""
        patterns = (_compiled(pattern) for pattern, _ in self._options.tensor_types)
        return next((i for i, pattern in enumerate(patterns) if pattern.search(name)), None)

    def _by_mix(self, role: _Role, default: TensorType) -> TensorType:
        if role is _Role.OUTPUT or (role is _Role.EMBEDDING and self._tied):
            # A tied embedding is also the output matrix, and is stored as finely as one.
            finest = default if default is TensorType.Q8_0 else TensorType.Q6_K
            return self._options.output_tensor_type or finest
        place = _Place(self._seen[role], self._totals.get(role, 0), self._facts, self._has_importance)
        self._seen[role] += 1
        wanted = _MIXES.get(self._file_type, _NO_MIX).wanted(role, place, default)
        if role is _Role.ATTN_V and self._facts.is_70b and wanted in (TensorType.Q3_K, TensorType.Q4_K):
            return TensorType.Q5_K  # eight heads share these weights: little to pay for finer ones
        return wanted

    def _require_effect(self, names: Sequence[str]) -> None:
        """Refuses options that llama.cpp would pass over in silence."""
        options, is_float = self._options, not self._file_type.default_type.is_quantized
        if options.tensor_types and is_float:
            raise InvalidInputError(
                f"tensor types by name have no effect in an {self._file_type.name} file",
                "Leave them out, or choose a quantized file type such as Q4_K_M",
            )
        for i, (pattern, kind) in enumerate(options.tensor_types):
            matched = [name for name in names if _compiled(pattern).search(name)]
            if not matched:
                raise InvalidInputError(
                    f"the pattern {pattern!r} for {kind.name} matches no tensor of this model that can be quantized",
                    "Use GGUF names or parts of them, such as attn_v, ffn_down or token_embd",
                )
            if all(self._named(_role(name)) or self._matching(name) != i for name in matched):
                raise InvalidInputError(
                    f"the pattern {pattern!r} for {kind.name} has no effect: an earlier pattern or another option says "
                    "what its tensors become",
                    "Leave it out, or give it first",
                )
        if not self._tied:
            return
        embedding_is_chosen = options.pure or is_float or options.token_embedding_type is not None
        if options.leave_output_tensor or (options.output_tensor_type is not None and embedding_is_chosen):
            raise InvalidInputError(
                f"the option for the output tensor has no effect: this model has no {_OUTPUT}, its embedding is both",
                "Leave it out, and give the type of the token embedding instead",
            )


def _require_fit(tensor: TensorShape, kind: TensorType) -> None:
    if not kind.fits(tensor.n_columns):
        fitting = ", ".join(other.name for other in TensorType if other.fits(tensor.n_columns))
        raise InvalidInputError(
            f"{tensor.name} cannot be {kind.name}: its rows have {tensor.n_columns} weights,"
            f" no whole number of blocks of {kind.block_weights}",
            f"Choose one of {fitting}",
        )


def choose_mix(
    tensors: Iterable[TensorShape],
    file_type: FileType,
    facts: ModelFacts,
    options: MixOptions = MIX_ALONE,
    *,
    has_importance: bool = False,
) -> list[ChosenType]:
    """The type of every tensor, in the order in which they stand in the file, and which of them fell back.

    Raises InvalidInputError for options that cannot be met or that would have no effect on this model.
    """
    ordered = sorted(tensors, key=lambda tensor: file_order(tensor.name))
    chooser = _Chooser(ordered, file_type, facts, options, has_importance)
    return [chooser.choose(tensor) for tensor in ordered]
