"""The thorough search of Q4_K and Q5_K: other scales, minimums and levels than ggml's, with a smaller error.

Of each sub-block, x ~ scale * level - minimum, many starting points are followed by one step of least squares, and the
best few fits kept. A fit's levels determine its error under any other scale and minimum, as a quadratic form, so that
d and d_min can be tried by the hundred without a look at the weights. The best pairs of d and d_min are then tried on
the weights, and the best of these is refined.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from zephyr_local.quantize.kernels.affine import D_MIN, FACTOR, MINIMUM_LEVEL, OFFSET, SCALE_LEVEL, D, put_block
from zephyr_local.quantize.kernels.lanes import (
    LANES,
    Floats,
    larger,
    load,
    select,
    smaller,
    splat,
    store,
    transpose,
    transpose_importance,
)
from zephyr_local.quantize.kernels.layout import SUPER_BLOCK, Bytes, decode_affine
from zephyr_local.quantize.kernels.search import Tile
from zephyr_local.quantize.kernels.thorough import (
    ENTRY,
    FIRST,
    SECOND,
    clear_shortlist,
    count_every_sub_block,
    fill,
    helper,
    is_less,
    nearest_float16,
    put,
    shortlist,
    squared_error,
    whole_between,
)

f32 = np.float32
SUB_BLOCKS, SIZE = 8, 32
LEVEL_MAX = f32(63)  # of scales and minimums

# A start spreads a sub-block's range over so many more steps than there are levels (fewer: the range is narrower than
# the levels; more: its ends are clipped), and shifts the levels by so many steps. Twice as many starts bring a
# thousandth of the error.
START_STEPS, FIRST_STEP, STEP = 11, f32(-6.0), f32(0.9)
START_SHIFTS, FIRST_SHIFT, SHIFT = 7, f32(-0.9), f32(0.3)
FITS = 4
"""Fits kept of a sub-block."""

# d is the largest scale over 64, 63.5, ...: less than 63 leaves the largest scale room between whole numbers.
DIVISORS, FIRST_DIVISOR, DIVISOR = 40, f32(64.0), f32(0.5)
D_TRIED = 4
"""Of as many d, d_min is searched."""
PAIRS_TRIED = 4
"""As many pairs of d and d_min are tried on the weights."""
REFINEMENTS = 2
"""How often the best pair is tried again, refitted to what was chosen under it, with whole numbers about the best."""
RADIUS = 1
"""By how much whole scales and minimums are moved then."""

# Where the numbers of a sub-block are in `sums`, those of sub-block j from j * SUMS on; y are weights less their mean.
SUMS = 5 * LANES
SUM_W, SUM_Y2, MEAN, LOW, HIGH = range(0, SUMS, LANES)
# Rows of `fits`: of the least squares for some levels. FIT_ERROR is the least error, with the scale and minimum at
# which it is; a minimum may be negative here. SPREAD is the sum of w * (level - MEAN_LEVEL)**2.
FIT = 5 * LANES
FIT_ERROR, FIT_SCALE, FIT_MINIMUM, SPREAD, MEAN_LEVEL = range(0, FIT, LANES)
# Rows of `chosen`: a fit, and the whole numbers under which its levels were rounded, with their error.
CHOSEN = 8 * LANES
CHOSEN_ERROR, CHOSEN_SCALE, CHOSEN_MINIMUM = range(FIT, CHOSEN, LANES)


class Batch(NamedTuple):
    """Sixteen super-blocks, one a lane, and what is known of them so far."""

    top: np.float32
    """The largest level."""
    centred: Tile
    """Weights less their sub-block's mean, (256 * LANES,)."""
    importance: Tile
    """(256 * LANES,)."""
    sums: Tile
    """Of each sub-block, (8 * SUMS,)."""
    fits: Tile
    """The best fits of each sub-block, (8 * FITS * FIT,)."""
    chosen: Tile
    """The best whole numbers of each sub-block under some d and d_min, (8 * CHOSEN,)."""
    starts: Tile
    """A shortlist for one sub-block: error, scale and the level at its mean."""
    scales: Tile
    """A shortlist for the super-block: error and d, twice."""
    pairs: Tile
    """A shortlist for the super-block: error, d and d_min."""


@helper
def sum_up(values: Tile, batch: Batch) -> None:
    """Centres every sub-block and notes its sums and its range. Values that weigh nothing do not count."""
    zero = splat(f32(0))
    for j in range(SUB_BLOCKS):
        sum_w, sum_x = zero, zero
        low, high = zero, splat(f32(-np.inf))
        for i in range(j * SIZE, (j + 1) * SIZE):
            x, weight = load(values, i * LANES), load(batch.importance, i * LANES)
            sum_w = sum_w + weight
            sum_x = sum_x + weight * x
            counts = weight > zero
            low = select(counts & (x < low), x, low)
            high = select(counts & (x > high), x, high)
        mean = select(sum_w > zero, sum_x / sum_w, zero)
        sum_y2 = zero
        for i in range(j * SIZE, (j + 1) * SIZE):
            y = load(values, i * LANES) - mean
            store(batch.centred, i * LANES, y)
            sum_y2 = sum_y2 + load(batch.importance, i * LANES) * y * y
        store(batch.sums, j * SUMS + SUM_W, sum_w)
        store(batch.sums, j * SUMS + SUM_Y2, sum_y2)
        store(batch.sums, j * SUMS + MEAN, mean)
        store(batch.sums, j * SUMS + LOW, low - mean)
        store(batch.sums, j * SUMS + HIGH, high - mean)


@helper
def least_squares(batch: Batch, j: int, inverse: Floats, centre: Floats) -> tuple[Floats, ...]:
    """Rounds sub-block j to the levels inverse * y + centre and fits them: error, scale, minimum, spread, mean level.

    Levels that are all the same fit nothing: their scale is 0, their minimum minus the mean.
    """
    zero = splat(f32(0))
    sum_l, sum_l2, sum_yl = zero, zero, zero
    for i in range(j * SIZE, (j + 1) * SIZE):
        y = load(batch.centred, i * LANES)
        level = whole_between(y * inverse + centre, f32(0), batch.top)
        weighted = load(batch.importance, i * LANES) * level
        sum_l = sum_l + weighted
        sum_l2 = sum_l2 + weighted * level
        sum_yl = sum_yl + weighted * y
    mean_level = sum_l / load(batch.sums, j * SUMS + SUM_W)
    spread = sum_l2 - sum_l * mean_level
    fits = spread > zero
    scale = select(fits, sum_yl / spread, zero)
    mean_level = select(fits, mean_level, zero)
    return (
        load(batch.sums, j * SUMS + SUM_Y2) - scale * sum_yl,
        scale,
        scale * mean_level - load(batch.sums, j * SUMS + MEAN),
        select(fits, spread, zero),
        mean_level,
    )


@helper
def find_fits(batch: Batch) -> None:
    """The best fits of each sub-block with any scale and any minimum from 0 up, into `fits`."""
    zero = splat(f32(0))
    for j in range(SUB_BLOCKS):
        sum_w, mean = load(batch.sums, j * SUMS + SUM_W), load(batch.sums, j * SUMS + MEAN)
        low, high = load(batch.sums, j * SUMS + LOW), load(batch.sums, j * SUMS + HIGH)
        clear_shortlist(batch.starts, zero, zero)
        for i_step in range(START_STEPS):
            inverse = (batch.top + FIRST_STEP + STEP * f32(i_step)) / (high - low)
            middle = f32(0.5) * batch.top - f32(0.5) * (low + high) * inverse
            for i_shift in range(START_SHIFTS):
                centre = middle + (FIRST_SHIFT + SHIFT * f32(i_shift))
                error, scale, minimum, spread, mean_level = least_squares(batch, j, inverse, centre)
                # No minimum is negative: at a minimum of 0 the best scale is another, and the error larger.
                negative = minimum < zero
                sum_l2 = spread + sum_w * mean_level * mean_level
                at_zero = error + minimum * minimum * sum_w * spread / sum_l2
                scale_at_zero = scale - minimum * sum_w * mean_level / sum_l2
                scale = select(negative, scale_at_zero, scale)
                shortlist(
                    batch.starts,
                    select(negative, at_zero, error), scale, select(negative, mean / scale, mean_level),
                )  # fmt: skip
        for k in range(FITS):
            inverse = f32(1) / load(batch.starts, k * ENTRY + FIRST)
            fit = least_squares(batch, j, inverse, load(batch.starts, k * ENTRY + SECOND))
            for i in range(5):
                store(batch.fits, (j * FITS + k) * FIT + i * LANES, fit[i])


@helper
def scale_loss(batch: Batch, d: Floats) -> Floats:
    """The error of the super-block under this d if its minimums needed no rounding, levels left as they are."""
    zero = splat(f32(0))
    total = zero
    for j in range(SUB_BLOCKS):
        sum_w = load(batch.sums, j * SUMS + SUM_W)
        least = splat(f32(np.inf))
        for at in range(j * FITS * FIT, (j + 1) * FITS * FIT, FIT):
            scale = load(batch.fits, at + FIT_SCALE)
            apart = d * whole_between(scale / d, f32(0), LEVEL_MAX) - scale
            below = smaller(load(batch.fits, at + FIT_MINIMUM) + apart * load(batch.fits, at + MEAN_LEVEL), zero)
            error = load(batch.fits, at + FIT_ERROR) + apart * apart * load(batch.fits, at + SPREAD)
            least = smaller(error + sum_w * below * below, least)
        total = total + least
    return total


@helper
def rounded_fit(batch: Batch, j: int, k: int, d: Floats, d_min: Floats) -> tuple[Floats, Floats, Floats]:
    """Fit k of sub-block j in whole numbers: scale and minimum, and the error with its levels left as they are."""
    at = (j * FITS + k) * FIT
    scale = load(batch.fits, at + FIT_SCALE)
    whole_scale = whole_between(scale / d, f32(0), LEVEL_MAX)
    apart = d * whole_scale - scale
    minimum = load(batch.fits, at + FIT_MINIMUM) + apart * load(batch.fits, at + MEAN_LEVEL)  # the best for that scale
    whole_minimum = whole_between(minimum / d_min, f32(0), LEVEL_MAX)
    rest = d_min * whole_minimum - minimum
    error = load(batch.fits, at + FIT_ERROR) + apart * apart * load(batch.fits, at + SPREAD)
    return whole_scale, whole_minimum, error + load(batch.sums, j * SUMS + SUM_W) * rest * rest


@helper
def pair_loss(batch: Batch, d: Floats, d_min: Floats) -> Floats:
    """The error of the super-block under this d and d_min, levels left as they are."""
    total = splat(f32(0))
    for j in range(SUB_BLOCKS):
        least = splat(f32(np.inf))
        for k in range(FITS):
            least = smaller(rounded_fit(batch, j, k, d, d_min)[2], least)
        total = total + least
    return total


@helper
def find_pairs(batch: Batch) -> None:
    """Pairs of d and d_min that promise the least error, into `pairs`: the best d alone, then d_min for each."""
    zero = splat(f32(0))
    max_scale, max_minimum = zero, zero
    for j in range(SUB_BLOCKS):
        max_scale = larger(load(batch.fits, j * FITS * FIT + FIT_SCALE), max_scale)
        max_minimum = larger(load(batch.fits, j * FITS * FIT + FIT_MINIMUM), max_minimum)
    clear_shortlist(batch.scales, zero, zero)
    for i in range(DIVISORS):
        d = nearest_float16(max_scale / (FIRST_DIVISOR - DIVISOR * f32(i)))
        shortlist(batch.scales, scale_loss(batch, d), d, d)
    clear_shortlist(batch.pairs, zero, zero)
    for k in range(D_TRIED):
        d = load(batch.scales, k * ENTRY + FIRST)
        for i in range(DIVISORS):
            d_min = nearest_float16(max_minimum / (FIRST_DIVISOR - DIVISOR * f32(i)))
            shortlist(batch.pairs, pair_loss(batch, d, d_min), d, d_min)


@helper
def try_whole(batch: Batch, j: int, scale: Floats, minimum: Floats, d: Floats, d_min: Floats) -> None:
    """Rounds sub-block j under these whole numbers, and puts them into `chosen` if its error is the least so far."""
    real_scale, real_minimum = d * scale, d_min * minimum
    inverse = f32(1) / real_scale
    fit = least_squares(batch, j, inverse, (load(batch.sums, j * SUMS + MEAN) + real_minimum) * inverse)
    fit_error, fit_scale, fit_minimum, spread, mean_level = fit
    apart = real_scale - fit_scale
    rest = real_minimum - fit_minimum - apart * mean_level
    error = fit_error + apart * apart * spread + load(batch.sums, j * SUMS + SUM_W) * rest * rest
    at = j * CHOSEN
    better = error < load(batch.chosen, at + CHOSEN_ERROR)
    for i in range(5):
        put(batch.chosen, at + i * LANES, better, fit[i])
    put(batch.chosen, at + CHOSEN_ERROR, better, error)
    put(batch.chosen, at + CHOSEN_SCALE, better, scale)
    put(batch.chosen, at + CHOSEN_MINIMUM, better, minimum)


@helper
def choose_whole(batch: Batch, d: Floats, d_min: Floats, radius: int) -> Floats:
    """The best whole numbers under d and d_min, into `chosen`, and their error: each fit's, then those around the best.

    The neighbours of a scale and minimum: the scale by up to `radius` more or less, with the minimum moved so that the
    middle level stays, by up to `radius` more or less.
    """
    zero = splat(f32(0))
    total = zero
    for j in range(SUB_BLOCKS):
        for at in range(j * CHOSEN, (j + 1) * CHOSEN, LANES):
            store(batch.chosen, at, zero)
        store(batch.chosen, j * CHOSEN + CHOSEN_ERROR, splat(f32(np.inf)))
        for k in range(FITS):
            scale, minimum, _ = rounded_fit(batch, j, k, d, d_min)
            try_whole(batch, j, scale, minimum, d, d_min)
        scale = load(batch.chosen, j * CHOSEN + CHOSEN_SCALE)
        minimum = load(batch.chosen, j * CHOSEN + CHOSEN_MINIMUM)
        tilt = d * load(batch.chosen, j * CHOSEN + MEAN_LEVEL) / d_min
        for i in range(-radius, radius + 1):
            near_scale = whole_between(scale + f32(i), f32(0), LEVEL_MAX)
            for k in range(-radius, radius + 1):
                if i != 0 or k != 0:
                    near_minimum = whole_between(minimum + tilt * f32(i) + f32(k), f32(0), LEVEL_MAX)
                    try_whole(batch, j, near_scale, near_minimum, d, d_min)
        total = total + load(batch.chosen, j * CHOSEN + CHOSEN_ERROR)
    return total


@helper
def refit(batch: Batch, d: Floats, d_min: Floats) -> tuple[Floats, Floats]:
    """d and d_min by least squares over the super-block for the levels and whole numbers in `chosen`.

    Minimises the sum of spread * (d s - scale)**2 + sum_w * (d_min m - d s * mean level + mean)**2 over sub-blocks,
    with s and m the whole numbers. Where the equations have no positive solution, d or d_min stays.
    """
    zero = splat(f32(0))
    sum_ss, sum_sm, sum_mm, sum_s, sum_m = zero, zero, zero, zero, zero
    for j in range(SUB_BLOCKS):
        sum_w = load(batch.sums, j * SUMS + SUM_W)
        spread, mean_level = load(batch.chosen, j * CHOSEN + SPREAD), load(batch.chosen, j * CHOSEN + MEAN_LEVEL)
        scale, minimum = load(batch.chosen, j * CHOSEN + CHOSEN_SCALE), load(batch.chosen, j * CHOSEN + CHOSEN_MINIMUM)
        weighted, offset = sum_w * scale * mean_level, -load(batch.sums, j * SUMS + MEAN)
        sum_ss = sum_ss + scale * scale * spread + weighted * scale * mean_level
        sum_sm = sum_sm - weighted * minimum
        sum_mm = sum_mm + sum_w * minimum * minimum
        sum_s = sum_s + scale * spread * load(batch.chosen, j * CHOSEN + FIT_SCALE) - weighted * offset
        sum_m = sum_m + sum_w * minimum * offset
    determinant = sum_ss * sum_mm - sum_sm * sum_sm
    new_d = (sum_s * sum_mm - sum_m * sum_sm) / determinant
    new_d_min = (sum_ss * sum_m - sum_sm * sum_s) / determinant
    solved = determinant > zero
    return (
        select(solved & (new_d > zero), nearest_float16(new_d), d),
        select(solved & (new_d_min > zero), nearest_float16(new_d_min), d_min),
    )


@helper
def find_thoroughly(batch: Batch, found: Tile, kept: Tile) -> None:
    """The whole search: d and d_min into `kept`, whole scales and minimums into `found`, as put_block wants them."""
    for row in (D, D_MIN):
        fill(kept[row], f32(0))
    for row in (SCALE_LEVEL, MINIMUM_LEVEL):
        fill(found[row], f32(0))
    find_fits(batch)
    find_pairs(batch)
    least = splat(f32(np.inf))
    d, d_min = least, least
    for i in range(PAIRS_TRIED + REFINEMENTS):
        if i < PAIRS_TRIED:
            d, d_min = load(batch.pairs, i * ENTRY + FIRST), load(batch.pairs, i * ENTRY + SECOND)
        elif i == PAIRS_TRIED:
            d, d_min = load(kept[D], 0), load(kept[D_MIN], 0)
        else:
            d, d_min = refit(batch, d, d_min)
        error = choose_whole(batch, d, d_min, 0 if i < PAIRS_TRIED else RADIUS)
        better = error < least
        least = select(better, error, least)
        put(kept[D], 0, better, d)
        put(kept[D_MIN], 0, better, d_min)
        for j in range(SUB_BLOCKS):
            put(found[SCALE_LEVEL], j * LANES, better, load(batch.chosen, j * CHOSEN + CHOSEN_SCALE))
            put(found[MINIMUM_LEVEL], j * LANES, better, load(batch.chosen, j * CHOSEN + CHOSEN_MINIMUM))


def improve_affine(weights: Tile, importance: Tile, bits: int, packed: Bytes) -> None:
    """Betters whole super-blocks, (n * 256,), that ggml encoded as Q4_K or Q5_K, in place, where the search can.

    `importance`, one for each column of a row, repeats every row; empty for none. `packed`, (n * block bytes,), holds
    ggml's bytes; a super-block whose error would not fall for certain keeps them.
    """
    n_blocks = weights.size // SUPER_BLOCK
    block_bytes = packed.size // max(n_blocks, 1)
    values, decoded = np.empty(SUPER_BLOCK * LANES, f32), np.empty(SUPER_BLOCK, f32)
    batch = Batch(
        f32((1 << bits) - 1),
        np.empty(SUPER_BLOCK * LANES, f32),
        np.empty(SUPER_BLOCK * LANES, f32),
        np.empty(SUB_BLOCKS * SUMS, f32),
        np.empty(SUB_BLOCKS * FITS * FIT, f32),
        np.empty(SUB_BLOCKS * CHOSEN, f32),
        np.empty(FITS * ENTRY, f32),
        np.empty(D_TRIED * ENTRY, f32),
        np.empty(PAIRS_TRIED * ENTRY, f32),
    )
    found, kept = np.empty((7, 16 * LANES), f32), np.empty((2, LANES), f32)
    scales, minimums, levels = np.empty(16, np.uint8), np.empty(16, np.uint8), np.empty(SUPER_BLOCK, np.uint8)
    candidate = np.empty(block_bytes, np.uint8)
    fill(batch.importance, f32(1))
    for row in (FACTOR, OFFSET):  # put_block rounds by them where a scale is 0
        fill(found[row], f32(0))
    for first in range(0, n_blocks, LANES):
        n_lanes = min(LANES, n_blocks - first)
        transpose(weights[first * SUPER_BLOCK :], values, n_lanes, SUPER_BLOCK)
        if importance.size:
            transpose_importance(importance, batch.importance, first, SUPER_BLOCK)
            count_every_sub_block(batch.importance, SIZE)
        sum_up(values, batch)
        find_thoroughly(batch, found, kept)
        for block in range(first, first + n_lanes):
            x, own = weights[block * SUPER_BLOCK :], packed[block * block_bytes :]
            column = block * SUPER_BLOCK % max(importance.size, 1)
            decode_affine(own, bits, scales, minimums, decoded)
            old_error = squared_error(x, decoded, importance, column)
            put_block(x, bits, block - first, found, kept, scales, minimums, levels, candidate)
            decode_affine(candidate, bits, scales, minimums, decoded)
            if is_less(squared_error(x, decoded, importance, column), old_error):
                for i in range(block_bytes):
                    own[i] = candidate[i]
