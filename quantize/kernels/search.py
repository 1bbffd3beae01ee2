"""The steps by which ggml searches a block's scale (and minimum), sixteen blocks at once, bit for bit.

Each function is one of ggml/src/ggml-quants.c's of llama.cpp 0c1e57098, named in its docstring, with one block a lane
and the same float32 operations in the same order. A branch of the C code is a `select` here: both sides are computed,
and the lanes for which C would not have gone there keep what they had.

Blocks come as tiles: `values[(first + i) * LANES + k]` is the i-th weight of lane k's block. Scales and minimums of a
super-block come likewise, one super-block a lane. No function here knows a type's bit layout.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from zephyr_local.quantize.kernels.lanes import (
    LANES,
    Floats,
    any_lane,
    larger,
    load,
    magnitude,
    nearest,
    nearest_between,
    select,
    smaller,
    splat,
    sqrt,
    store,
    wrapped_byte,
)

f32 = np.float32
Tile = NDArray[np.float32]

GROUP_MAX_EPS = f32(1e-15)
"""A block whose largest magnitude is below this counts as zeros (ggml's GROUP_MAX_EPS)."""


@numba.njit
def mean_weights(values: Tile, first: int, n: int, weights: Tile) -> None:
    """Without importance, Q4_K and Q5_K weigh an error by |x| plus the block's root mean square."""
    sum_x2 = splat(f32(0))
    for i in range(first, first + n):
        x = load(values, i * LANES)
        sum_x2 = sum_x2 + x * x
    root_mean_square = sqrt(sum_x2 / f32(n))
    for i in range(n):
        store(weights, i * LANES, root_mean_square + magnitude(load(values, (first + i) * LANES)))


@numba.njit
def mean_square(values: Tile, n: int, factor: np.float32) -> Floats:
    """`factor` times the sum of squares, over n: ggml's sigma2 of a super-block."""
    sum_x2 = splat(f32(0))
    for i in range(n):
        x = load(values, i * LANES)
        sum_x2 = sum_x2 + x * x
    return factor * sum_x2 / f32(n)


@numba.njit
def importance_weights(values: Tile, importance: Tile, first: int, n: int, sigma2: Floats, weights: Tile) -> Floats:
    """With importance, an error weighs importance * sqrt(sigma2 + x * x); returns the block's sum of weights."""
    total = splat(f32(0))
    for i in range(n):
        x = load(values, (first + i) * LANES)
        weight = load(importance, (first + i) * LANES) * sqrt(sigma2 + x * x)
        store(weights, i * LANES, weight)
        total = total + weight
    return total


@numba.njit
def affine_error(
    values: Tile, first: int, n: int, weights: Tile, levels: Tile, scale: Floats, minimum: Floats, mad: bool
) -> Floats:
    """The weighted error of x ~ scale * level + minimum: squared, or absolute (`mad`)."""
    error = splat(f32(0))
    for i in range(n):
        difference = scale * load(levels, i * LANES) + minimum - load(values, (first + i) * LANES)
        deviation = magnitude(difference) if mad else difference * difference
        error = error + load(weights, i * LANES) * deviation
    return error


@numba.njit
def affine_scale(
    values: Tile,
    first: int,
    n: int,
    weights: Tile,
    levels: Tile,
    n_max: int,
    start: np.float32,
    step: np.float32,
    n_steps: int,
    mad: bool,
) -> tuple[Floats, Floats, Floats, Floats]:
    """Scale and minimum of x ~ scale * level - minimum, levels 0 to n_max: make_qkx2_quants and make_qkx3_quants.

    Tries n_steps + 1 ranges about the block's own; under each, levels are rounded and the best scale and minimum for
    them computed. Returns scale, minimum, and by which factor and offset the best levels were found: the level of x
    was nearest(factor * (x - offset)). `weights` and the scratch `levels` are tiles of n rows.
    """
    zero = splat(f32(0))
    top = f32(n_max)
    x = load(values, first * LANES)
    weight = load(weights, 0)
    low, high, sum_w, sum_x = x, x, weight, weight * x
    for i in range(1, n):
        x = load(values, (first + i) * LANES)
        weight = load(weights, i * LANES)
        low = smaller(x, low)
        high = larger(x, high)
        sum_w = sum_w + weight
        sum_x = sum_x + weight * x
    low = select(low > zero, zero, low)
    flat = high == low
    flat_minimum = -low

    factor = top / (high - low)
    scale = f32(1) / factor
    for i in range(n):
        store(levels, i * LANES, nearest_between(factor * (load(values, (first + i) * LANES) - low), 0, n_max))
    best_error = affine_error(values, first, n, weights, levels, scale, low, mad)
    best_factor, best_offset = factor, low
    # `low` becomes the minimum of the best so far, and the next range begins there: so it does in C.
    for i_step in range(n_steps + 1):
        factor = (start + step * f32(i_step) + top) / (high - low)
        sum_l, sum_l2, sum_xl = zero, zero, zero
        for i in range(n):
            x = load(values, (first + i) * LANES)
            level = nearest_between(factor * (x - low), 0, n_max)
            store(levels, i * LANES, level)
            weighted = load(weights, i * LANES) * level
            sum_l = sum_l + weighted
            sum_l2 = sum_l2 + weighted * level
            sum_xl = sum_xl + weighted * x
        determinant = sum_w * sum_l2 - sum_l * sum_l
        new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        new_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        above_zero = new_low > zero
        new_scale = select(above_zero, sum_xl / sum_l2, new_scale)
        new_low = select(above_zero, zero, new_low)
        error = affine_error(values, first, n, weights, levels, new_scale, new_low, mad)
        better = (determinant > zero) & (error < best_error)
        best_error = select(better, error, best_error)
        best_factor = select(better, factor, best_factor)
        best_offset = select(better, low, best_offset)
        scale = select(better, new_scale, scale)
        low = select(better, new_low, low)
    return (
        select(flat, zero, scale),
        select(flat, flat_minimum, -low),
        select(flat, zero, best_factor),
        select(flat, zero, best_offset),
    )


@numba.njit
def extreme(values: Tile, first: int, n: int) -> tuple[Floats, Floats]:
    """The first value of the largest magnitude, and that magnitude."""
    value = splat(f32(0))
    largest = value
    for i in range(first, first + n):
        x = load(values, i * LANES)
        size = magnitude(x)
        value = select(size > largest, x, value)
        largest = select(size > largest, size, largest)
    return value, largest


@numba.njit
def symmetric_sums(
    values: Tile, first: int, n: int, weights: Tile, factor: Floats, n_max: int
) -> tuple[Floats, Floats]:
    """Sum of w * x * l and of w * l * l over a block, with levels l = nearest(factor * x) from -n_max to n_max - 1."""
    sum_xl = splat(f32(0))
    sum_l2 = sum_xl
    for i in range(n):
        x = load(values, (first + i) * LANES)
        weight = load(weights, i * LANES)
        level = nearest_between(factor * x, -n_max, n_max - 1)
        sum_xl = sum_xl + weight * x * level
        sum_l2 = sum_l2 + weight * level * level
    return sum_xl, sum_l2


@numba.njit
def symmetric_scale(values: Tile, first: int, n: int, weights: Tile, n_max: int) -> tuple[Floats, Floats]:
    """Scale of x ~ scale * level, levels -n_max to n_max - 1: make_qx_quants with a weight for each value.

    Tries nineteen factors about -n_max / (the value of largest magnitude). Returns the scale and the factor of the best
    levels: the level of x was nearest(factor * x). Both are 0 for a block that counts as zeros.
    """
    zero = splat(f32(0))
    value, largest = extreme(values, first, n)
    factor = f32(-n_max) / value
    sum_xl, sum_l2 = symmetric_sums(values, first, n, weights, factor, n_max)
    scale = select(sum_l2 != zero, sum_xl / sum_l2, zero)
    best = scale * sum_xl
    best_factor = factor
    for i_step in range(-9, 10):
        if i_step != 0:
            factor = -(f32(n_max) + f32(0.1) * f32(i_step)) / value
            sum_xl, sum_l2 = symmetric_sums(values, first, n, weights, factor, n_max)
            better = (sum_l2 > zero) & (sum_xl * sum_xl > best * sum_l2)
            new_scale = sum_xl / sum_l2
            scale = select(better, new_scale, scale)
            best = select(better, new_scale * sum_xl, best)
            best_factor = select(better, factor, best_factor)
    none = largest < splat(GROUP_MAX_EPS)
    return select(none, zero, scale), select(none, zero, best_factor)


@numba.njit
def refine_level(
    x: Floats, level: Floats, sum_xl: Floats, sum_l2: Floats, n_max: int
) -> tuple[Floats, Floats, Floats, Floats]:
    """Moves one level to where the others put it, if that lowers the error; returns it, the sums, and 1 where moved."""
    weight = x * x
    new_xl = sum_xl - weight * x * level
    new_l2 = sum_l2 - weight * level * level
    new_level = nearest_between(x * new_l2 / new_xl, -n_max, n_max - 1)
    tried = (new_xl > splat(f32(0))) & (new_level != level)
    unmoved = splat(f32(0))
    if not any_lane(tried):  # as nearly always after the first pass
        return level, sum_xl, sum_l2, unmoved
    new_xl = new_xl + weight * x * new_level
    new_l2 = new_l2 + weight * new_level * new_level
    better = tried & (new_l2 > splat(f32(0))) & (new_xl * new_xl * sum_l2 > sum_xl * sum_xl * new_l2)
    return (
        select(better, new_level, level),
        select(better, new_xl, sum_xl),
        select(better, new_l2, sum_l2),
        select(better, splat(f32(1)), unmoved),
    )


@numba.njit
def first_levels(values: Tile, first: int, n: int, levels: Tile, n_max: int) -> tuple[Floats, Floats, Floats]:
    """Levels under -n_max / (the value of largest magnitude); returns their sums, and that magnitude."""
    value, largest = extreme(values, first, n)
    factor = f32(-n_max) / value
    sum_xl = splat(f32(0))
    sum_l2 = sum_xl
    for i in range(first, first + n):
        x = load(values, i * LANES)
        level = nearest_between(factor * x, -n_max, n_max - 1)
        store(levels, i * LANES, level)
        sum_xl = sum_xl + x * x * x * level
        sum_l2 = sum_l2 + x * x * level * level
    return sum_xl, sum_l2, largest


@numba.njit
def refined_scales(values: Tile, first: int, n: int, levels: Tile, n_max: int) -> tuple[Floats, Floats]:
    """Scales of x ~ scale * level, each level in turn moved while the error falls: make_q3_quants with `do_rmse`.

    Weights are x * x. Of two neighbouring blocks at once, the second from row `first` + n on: each move waits for the
    one before it in its block, and the two waits overlap. Writes the levels, -n_max to n_max - 1, to the same rows of
    the tile `levels`. C leaves a block that counts as zeros with levels of 0 after adding n_max: -n_max.
    """
    zero = splat(f32(0))
    sum_xl, sum_l2, largest = first_levels(values, first, n, levels, n_max)
    second_xl, second_l2, second_largest = first_levels(values, first + n, n, levels, n_max)
    for _ in range(5):
        changed = zero
        for i in range(first, first + n):
            level, sum_xl, sum_l2, moved = refine_level(
                load(values, i * LANES), load(levels, i * LANES), sum_xl, sum_l2, n_max
            )
            second, second_xl, second_l2, second_moved = refine_level(
                load(values, (i + n) * LANES), load(levels, (i + n) * LANES), second_xl, second_l2, n_max
            )
            store(levels, i * LANES, level)
            store(levels, (i + n) * LANES, second)
            changed = changed + moved + second_moved
        if not any_lane(changed != zero):  # a pass that changes nothing in a lane changes nothing there when repeated
            break
    none, second_none = largest < splat(GROUP_MAX_EPS), second_largest < splat(GROUP_MAX_EPS)
    for i in range(first, first + n):
        store(levels, i * LANES, select(none, splat(f32(-n_max)), load(levels, i * LANES)))
        store(levels, (i + n) * LANES, select(second_none, splat(f32(-n_max)), load(levels, (i + n) * LANES)))
    scale = select(sum_l2 > zero, sum_xl / sum_l2, zero)
    second_scale = select(second_l2 > zero, second_xl / second_l2, zero)
    return select(none, zero, scale), select(second_none, zero, second_scale)


@numba.njit
def positive_scale(values: Tile, n: int, weights: Tile, levels: Tile, n_max: int) -> Floats:
    """Scale of x ~ scale * level for a super-block's scales or minimums, levels 0 to n_max: make_qp_quants.

    Writes the levels as C's uint8_t hold them to the tile `levels`, (n, LANES), and returns the scale.
    """
    zero = splat(f32(0))
    top = f32(n_max)
    largest = zero
    for i in range(n):
        largest = larger(largest, load(values, i * LANES))
    none = largest < splat(GROUP_MAX_EPS)
    factor = top / largest
    scale = f32(1) / factor
    best_error = zero
    for i in range(n):
        x = load(values, i * LANES)
        difference = x - scale * wrapped_byte(nearest(factor * x))  # not limited to n_max, in C neither
        best_error = best_error + load(weights, i * LANES) * difference * difference
    for i_step in range(-4, 5):
        if i_step != 0:
            new_factor = (f32(0.1) * f32(i_step) + top) / largest
            scale = f32(1) / new_factor
            error = zero
            for i in range(n):
                x = load(values, i * LANES)
                difference = x - scale * smaller(nearest(new_factor * x), splat(top))
                error = error + load(weights, i * LANES) * difference * difference
            better = error < best_error
            best_error = select(better, error, best_error)
            factor = select(better, new_factor, factor)
    sum_xl, sum_l2 = zero, zero
    for i in range(n):
        x = load(values, i * LANES)
        weight = load(weights, i * LANES)
        level = smaller(nearest(factor * x), splat(top))
        store(levels, i * LANES, wrapped_byte(level))
        sum_xl = sum_xl + weight * x * level
        sum_l2 = sum_l2 + weight * level * level
    for _ in range(5):
        changed = zero
        for i in range(n):
            x = load(values, i * LANES)
            weight = load(weights, i * LANES)
            level = load(levels, i * LANES)
            new_xl = sum_xl - weight * x * level
            new_l2 = sum_l2 - weight * level * level
            new_level = smaller(nearest(x * new_l2 / new_xl), splat(top))
            tried = (new_xl > zero) & (new_l2 > zero) & (new_level != level)
            new_xl = new_xl + weight * x * new_level
            new_l2 = new_l2 + weight * new_level * new_level
            better = tried & (new_xl * new_xl * sum_l2 > sum_xl * sum_xl * new_l2)
            store(levels, i * LANES, select(better, wrapped_byte(new_level), level))
            sum_xl = select(better, new_xl, sum_xl)
            sum_l2 = select(better, new_l2, sum_l2)
            changed = select(better, splat(f32(1)), changed)
        if not any_lane(changed != zero):
            break
    for i in range(n):
        store(levels, i * LANES, select(none, zero, load(levels, i * LANES)))
    return select(none, zero, select(sum_l2 > zero, sum_xl / sum_l2, zero))
