"""SIMD lanes for numba: sixteen float32 values that go through the same operations side by side.

A compiler may not reorder floating-point sums, so it cannot spread the search for one block's scale over SIMD lanes by
itself. It need not: sixteen blocks are independent of each other. With one block a lane, every lane does what ggml's
scalar code does, operation by operation, and ends with the same bits, at the rate of the whole vector unit.

`Lanes` is a numba type that LLVM holds as a vector, in registers. `+ - * /`, unary minus and the comparisons work lane
by lane, a float32 beside lanes stands for sixteen equal ones, and a comparison's result goes to `select` or through
`&`. No operation is fused or reassociated: multiply and add round separately, as in ggml on x86-64.

Sixteen lanes are one AVX-512 register, two of AVX, four of SSE and NEON: the same source and the same bits everywhere.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

LANES = 16

_I1, _I8, _I32, _F32 = ir.IntType(1), ir.IntType(8), ir.IntType(32), ir.FloatType()
_FLOAT_VECTOR = ir.VectorType(_F32, LANES)
_INT_VECTOR = ir.VectorType(_I32, LANES)
_BYTE_VECTOR = ir.VectorType(_I8, LANES)
_MASK_VECTOR = ir.VectorType(_I1, LANES)
_SUFFIX = f"v{LANES}f32"  # of LLVM's own functions on these vectors

# Adding 1.5 * 2**23 to a float32 leaves its nearest integer, ties to even, in the low 23 bits (ggml's nearest_int).
_INTEGER_SHIFT = 12582912.0
_INTEGER_BITS = 0x7FFFFF
_INTEGER_ZERO = 0x400000


class Lanes(types.Type):
    """Sixteen values of one element type: float32, or the truth values of a comparison."""

    def __init__(self, element: str, vector: ir.VectorType) -> None:
        self.vector = vector
        super().__init__(name=f"Lanes({element} x {LANES})")


FLOATS = Lanes("float32", _FLOAT_VECTOR)
MASK = Lanes("bool", _MASK_VECTOR)

Floats = Any
"""What a function that works on lanes of float32 says of an argument: mypy does not see inside numba."""


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: Lanes) -> None:
        super().__init__(manager, lanes, lanes.vector)


def _splat(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """A scalar in every lane."""
    undefined = ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, first, ir.Constant(_INT_VECTOR, [0] * LANES))


def _ints(value: int) -> ir.Constant:
    return ir.Constant(_INT_VECTOR, [value] * LANES)


def _floats(value: float) -> ir.Constant:
    return ir.Constant(_FLOAT_VECTOR, [value] * LANES)


def _call_llvm(builder: ir.IRBuilder, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
    signature = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), arguments)


def _register_binary(
    operation: Callable[..., Any], lanes: Lanes, result: Lanes, emit: Callable[[ir.IRBuilder, ir.Value, ir.Value], Any]
) -> None:
    """Gives lanes a binary operator; for floats also between lanes and a float32."""
    operands = [(lanes, lanes)]
    if lanes is FLOATS:
        operands += [(FLOATS, types.float32), (types.float32, FLOATS)]

    @type_callable(operation)
    def typer(context: Any) -> Any:
        return lambda left, right: result if (left, right) in operands else None

    def lower(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        left, right = (
            value if kind == lanes else _splat(builder, value)
            for kind, value in zip(signature.args, arguments, strict=True)
        )
        return emit(builder, left, right)

    for left, right in operands:
        lower_builtin(operation, left, right)(lower)


def _arithmetic(instruction: str) -> Callable[[ir.IRBuilder, ir.Value, ir.Value], Any]:
    return lambda builder, left, right: getattr(builder, instruction)(left, right)


def _ordered(comparison: str) -> Callable[[ir.IRBuilder, ir.Value, ir.Value], Any]:
    """False where either is NaN, as in C."""
    return lambda builder, left, right: builder.fcmp_ordered(comparison, left, right)


for _operation, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _register_binary(_operation, FLOATS, FLOATS, _arithmetic(_instruction))
for _operation, _comparison in (
    (operator.lt, "<"),
    (operator.le, "<="),
    (operator.gt, ">"),
    (operator.ge, ">="),
    (operator.eq, "=="),
):
    _register_binary(_operation, FLOATS, MASK, _ordered(_comparison))
# NaN differs from everything, as in C.
_register_binary(operator.ne, FLOATS, MASK, lambda builder, left, right: builder.fcmp_unordered("!=", left, right))
_register_binary(operator.and_, MASK, MASK, _arithmetic("and_"))


@type_callable(operator.neg)
def _type_negative(context: Any) -> Any:
    return lambda value: FLOATS if value == FLOATS else None


@lower_builtin(operator.neg, FLOATS)
def _lower_negative(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
    return builder.fneg(arguments[0])


def _element_pointer(context: Any, builder: ir.IRBuilder, kind: Any, array: Any, index: Any, vector: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), ir.PointerType(vector))


@intrinsic
def load(typing: Any, array: Any, index: Any) -> Any:
    """Sixteen neighbours of a contiguous float32 array, from `index` on; nothing checks that they exist."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        pointer = _element_pointer(context, builder, signature.args[0], *arguments, _FLOAT_VECTOR)
        return builder.load(pointer, typ=_FLOAT_VECTOR, align=4)

    return FLOATS(array, types.intp), generate


@intrinsic
def store(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Writes lanes to sixteen neighbours of a contiguous float32 array, from `index` on, unchecked."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        pointer = _element_pointer(context, builder, signature.args[0], *arguments[:2], _FLOAT_VECTOR)
        builder.store(arguments[2], pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, FLOATS), generate


@intrinsic
def store_bytes(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Writes lanes that hold whole numbers to sixteen neighbours of a uint8 array, modulo 256, unchecked."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        pointer = _element_pointer(context, builder, signature.args[0], *arguments[:2], _BYTE_VECTOR)
        whole = builder.fptosi(arguments[2], _INT_VECTOR)
        builder.store(builder.trunc(whole, _BYTE_VECTOR), pointer, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, FLOATS), generate


@intrinsic
def splat(typing: Any, value: Any) -> Any:
    """A float32 in every lane."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return _splat(builder, arguments[0])

    return FLOATS(types.float32), generate


@intrinsic
def select(typing: Any, mask: Any, chosen: Any, otherwise: Any) -> Any:
    """The one's lane where the mask is true, the other's elsewhere."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.select(*arguments)

    return FLOATS(MASK, FLOATS, FLOATS), generate


@intrinsic
def any_lane(typing: Any, mask: Any) -> Any:
    """Whether the mask is true in any lane."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        found = _call_llvm(builder, f"llvm.vector.reduce.or.v{LANES}i1", _I1, arguments[0])
        return context.cast(builder, builder.zext(found, _I8), types.uint8, types.boolean)

    return types.boolean(MASK), generate


@intrinsic
def largest_lane(typing: Any, value: Any) -> Any:
    """The largest of sixteen numbers, none of them NaN."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return _call_llvm(builder, f"llvm.vector.reduce.fmax.{_SUFFIX}", _F32, arguments[0])

    return types.float32(FLOATS), generate


@intrinsic
def sqrt(typing: Any, value: Any) -> Any:
    """The correctly rounded square root."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return _call_llvm(builder, f"llvm.sqrt.{_SUFFIX}", _FLOAT_VECTOR, arguments[0])

    return FLOATS(FLOATS), generate


@intrinsic
def magnitude(typing: Any, value: Any) -> Any:
    """The absolute value."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return _call_llvm(builder, f"llvm.fabs.{_SUFFIX}", _FLOAT_VECTOR, arguments[0])

    return FLOATS(FLOATS), generate


def _nearest_int(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    shifted = builder.bitcast(builder.fadd(value, _floats(_INTEGER_SHIFT)), _INT_VECTOR)
    return builder.sub(builder.and_(shifted, _ints(_INTEGER_BITS)), _ints(_INTEGER_ZERO))


@intrinsic
def nearest(typing: Any, value: Any) -> Any:
    """The nearest whole number as ggml's nearest_int finds it, also where it does not: beyond 2**22, infinity, NaN."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.sitofp(_nearest_int(builder, arguments[0]), _FLOAT_VECTOR)

    return FLOATS(FLOATS), generate


@intrinsic
def nearest_between(typing: Any, value: Any, low: Any, high: Any) -> Any:
    """`nearest`, then no less than `low` and no more than `high` (two integers)."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        low, high = (
            _splat(builder, context.cast(builder, bound, kind, types.int32))
            for bound, kind in zip(arguments[1:], signature.args[1:], strict=True)
        )
        whole = _nearest_int(builder, arguments[0])
        whole = builder.select(builder.icmp_signed("<", whole, high), whole, high)
        whole = builder.select(builder.icmp_signed(">", whole, low), whole, low)
        return builder.sitofp(whole, _FLOAT_VECTOR)

    return FLOATS(FLOATS, types.int32, types.int32), generate


@intrinsic
def wrapped_byte(typing: Any, value: Any) -> Any:
    """A whole number modulo 256: what a C `uint8_t` keeps of it."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        whole = builder.fptosi(arguments[0], _INT_VECTOR)
        return builder.sitofp(builder.and_(whole, _ints(0xFF)), _FLOAT_VECTOR)

    return FLOATS(FLOATS), generate


@intrinsic
def _towards_zero(typing: Any, value: Any) -> Any:
    """The whole number towards zero, of values within int32."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.sitofp(builder.fptosi(arguments[0], _INT_VECTOR), _FLOAT_VECTOR)

    return FLOATS(FLOATS), generate


@numba.njit
def round_half_away(value: Floats) -> Floats:
    """C's roundf of values within int32; 0 for larger ones, infinity and NaN, of which x86 keeps a low byte of 0."""
    value = select(magnitude(value) < splat(np.float32(2**31)), value, splat(np.float32(0)))
    whole = _towards_zero(value)
    rest = value - whole
    whole = select(rest >= splat(np.float32(0.5)), whole + np.float32(1), whole)
    return select(rest <= splat(np.float32(-0.5)), whole - np.float32(1), whole)


@numba.njit
def smaller(left: Floats, right: Floats) -> Floats:
    """C's `left < right ? left : right`."""
    return select(left < right, left, right)


@numba.njit
def larger(left: Floats, right: Floats) -> Floats:
    """C's `left > right ? left : right`."""
    return select(left > right, left, right)


@numba.njit
def transpose(values: np.ndarray, tile: np.ndarray, n_lanes: int, n_rows: int) -> None:
    """Turns `n_lanes` runs of `n_rows` values into a tile in which run k is lane k; lanes beyond them become zeros.

    `values`, float32 (n_lanes * n_rows,); `tile`, float32 (n_rows * LANES,), whose row i starts at i * LANES.
    """
    for lane in range(LANES):
        if lane < n_lanes:
            for i in range(n_rows):
                tile[i * LANES + lane] = values[lane * n_rows + i]
        else:
            for i in range(n_rows):
                tile[i * LANES + lane] = np.float32(0)


@numba.njit
def transpose_importance(importance: np.ndarray, tile: np.ndarray, first: int, size: int) -> None:
    """A tile of the importance of blocks `first` on: block b of a row of n has that of columns b * size on.

    `importance`, float32 (n * size,), is the same for every row; `tile`, float32 (size * LANES,).
    """
    row_blocks = importance.size // size
    for lane in range(LANES):
        column = ((first + lane) % row_blocks) * size
        for i in range(size):
            tile[i * LANES + lane] = importance[column + i]
