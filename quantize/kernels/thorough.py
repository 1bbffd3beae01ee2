"""What the thorough searches of affine and symmetric K-quants share.

They minimise, for each super-block, the sum of importance * (x - x')**2, with x' exactly what a decoder reads from the
stored bytes; importance is 1 where there is none. ggml's own search mostly weighs errors otherwise (by |x| or x * x as
well), tries few starting points, settles every sub-block alone and only then rounds its scale. Here several good fits
of each sub-block are kept, and the super-block's d (and d_min) are chosen so that these fits suit the whole numbers
that scale (and minimum) must be.

Squared error, of ggml's, on normal weights without importance and with a lognormal one, and what it would be without a
step:

                                             Q4_K            Q5_K            Q6_K
    as it is                                 0.933  0.914    0.853  0.825    0.847  0.816
    every start at the middle of the range   0.967  0.969    0.899  0.895        -
    one fit kept of a sub-block              0.939  0.920    0.868  0.845    0.851  0.819
    d and d_min by the largest, as ggml      0.944  0.928    0.882  0.864    0.867  0.842
    no refinement                            0.936  0.916    0.856  0.828    0.848  0.816

Blocks come as tiles of sixteen lanes, one super-block a lane, as in search.py. No lane looks at another: a super-block
gets the same bytes in whatever company.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from zephyr_local.quantize.kernels.lanes import LANES, Floats, larger, load, select, smaller, splat, store
from zephyr_local.quantize.kernels.layout import SUPER_BLOCK
from zephyr_local.quantize.kernels.search import Tile

f32 = np.float32
Mask = Any  # the outcome of a comparison of lanes, as Floats is to mypy

helper = numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""For what only compiled functions call: without entries from Python and C, compiling takes three quarters as long."""

ENTRY = 3 * LANES
ERROR, FIRST, SECOND = range(0, ENTRY, LANES)
"""Where in an entry of a shortlist its error and its two numbers are; entry k begins at k * ENTRY."""

LEAST_GAIN = f32(1e-5)
"""By which part of itself an error must fall before other bytes are taken: more than rounding makes of it (3e-6)."""
LEAST_ERROR = f32(1e-35)
"""Errors below it have lost digits to underflow: such blocks stay as they are."""
LITTLE_IMPORTANCE = f32(1e-6 / SUPER_BLOCK)
"""Of the sum of a super-block's: what a weight gets whose whole sub-block has none."""

_INTEGER_SHIFT = f32(1.5 * 2**23)  # added and taken away again, it leaves the nearest whole number, ties to even
_DENORMAL_SHIFT = f32(1.5 * 2**-1)  # likewise the nearest multiple of 2**-24, the distance of float16 denormals
_SMALLEST_NORMAL = f32(2.0**-14)  # of float16
_LARGEST_FLOAT16 = f32(65504)
_MANTISSA_SPLIT = f32(2**13 + 1)  # Veltkamp's constant: of 24 mantissa bits, float16's 11 remain


@helper
def whole_between(value: Floats, low: np.float32, high: np.float32) -> Floats:
    """The nearest whole number from `low` to `high`; of NaN, `low`. Bounds within 2**22."""
    value = smaller(larger(value, splat(low)), splat(high))
    return (value + _INTEGER_SHIFT) - _INTEGER_SHIFT


@helper
def nearest_float16(value: Floats) -> Floats:
    """The float16 nearest to a number that is not negative, as float32: no more than the largest finite one."""
    value = smaller(value, splat(_LARGEST_FLOAT16))
    product = value * _MANTISSA_SPLIT
    normal = product - (product - value)
    denormal = (value + _DENORMAL_SHIFT) - _DENORMAL_SHIFT
    return select(value < splat(_SMALLEST_NORMAL), denormal, normal)


@helper
def fill(tile: Tile, value: np.float32) -> None:
    """Writes one number everywhere."""
    for at in range(0, tile.size, LANES):
        store(tile, at, splat(value))


@helper
def put(tile: Tile, at: int, lanes: Mask, value: Floats) -> None:
    """Writes a value in the lanes of a mask."""
    store(tile, at, select(lanes, value, load(tile, at)))


@helper
def count_every_sub_block(importance: Tile, size: int) -> None:
    """Gives sub-blocks of `size` weights whose importance is 0 throughout a millionth of the super-block's mean.

    Columns that did not fire in a calibration may fire later; without this, nothing would hold their weights near what
    they were. The error that decides between two blocks is that of the importance as it was.
    """
    total = splat(f32(0))
    for at in range(0, SUPER_BLOCK * LANES, LANES):
        total = total + load(importance, at)
    little = total * LITTLE_IMPORTANCE
    for first in range(0, SUPER_BLOCK * LANES, size * LANES):
        sum_w = splat(f32(0))
        for at in range(first, first + size * LANES, LANES):
            sum_w = sum_w + load(importance, at)
        for at in range(first, first + size * LANES, LANES):
            put(importance, at, sum_w == splat(f32(0)), little)


@helper
def clear_shortlist(entries: Tile, first: Floats, second: Floats) -> None:
    """Fills a shortlist with entries of these two numbers, and an error that every number is less than."""
    for at in range(0, entries.size, ENTRY):
        store(entries, at + ERROR, splat(f32(np.inf)))
        store(entries, at + FIRST, first)
        store(entries, at + SECOND, second)


@helper
def shortlist(entries: Tile, error: Floats, first: Floats, second: Floats) -> None:
    """Puts an entry in its place among those of less and of more error, the last of which goes.

    NaN is no error to be entered. Of entries with the same error one stays: levels that were found twice give the same
    to the bit.
    """
    for at in range(0, entries.size, ENTRY):
        old_error = load(entries, at + ERROR)
        old_first, old_second = load(entries, at + FIRST), load(entries, at + SECOND)
        error = select(error == old_error, splat(f32(np.inf)), error)
        better = error < old_error
        store(entries, at + ERROR, select(better, error, old_error))
        store(entries, at + FIRST, select(better, first, old_first))
        store(entries, at + SECOND, select(better, second, old_second))
        error = select(better, old_error, error)
        first = select(better, old_first, first)
        second = select(better, old_second, second)


@helper
def squared_error(x: Tile, decoded: Tile, importance: Tile, column: int) -> np.float32:
    """The sum of importance * (x - x')**2 of a super-block, both (256,), whose importance is that from `column` on."""
    total = splat(f32(0))
    for i in range(0, SUPER_BLOCK, LANES):
        difference = load(x, i) - load(decoded, i)
        weighted = load(importance, column + i) * difference if importance.size else difference
        total = total + weighted * difference
    parts = np.empty(LANES, f32)
    store(parts, 0, total)
    error = f32(0)
    for i in range(LANES):
        error += parts[i]
    return error


@helper
def is_less(new_error: np.float32, old_error: np.float32) -> bool:
    """Whether an error fell for certain; never if one of the two is infinite or NaN."""
    return old_error - new_error > LEAST_GAIN * old_error and old_error > LEAST_ERROR
