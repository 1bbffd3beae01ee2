"""The thorough search of Q6_K: other scales and levels than ggml's, with a smaller error.

Of each sub-block, x ~ scale * level, many starting points of both signs are followed by one step of least squares, and
the best few fits kept. A fit's levels determine its error under any other scale, so that d can be tried without a look
at the weights. The best d are then tried on the weights, and the best of these is refined.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from zephyr_local.quantize.kernels.lanes import (
    LANES,
    Floats,
    larger,
    load,
    magnitude,
    select,
    smaller,
    splat,
    store,
    transpose,
    transpose_importance,
)
from zephyr_local.quantize.kernels.layout import SUPER_BLOCK, Bytes, decode_q6
from zephyr_local.quantize.kernels.search import Tile
from zephyr_local.quantize.kernels.symmetric import FACTOR, SCALE_LEVEL, put_q6_block
from zephyr_local.quantize.kernels.thorough import (
    ENTRY,
    ERROR,
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
SUB_BLOCKS, SIZE = 16, 16
LEVEL_MIN, LEVEL_MAX = f32(-32), f32(31)
SCALE_MIN, SCALE_MAX = f32(-128), f32(127)

# A start's scale is the largest magnitude over 20, 20.66, ..., 35.2: less than 32 leaves levels unused, more clips.
# Sixteen values are so few that a scale much too large may suit them best.
START_STEPS, FIRST_STEP, STEP = 24, f32(20.0), f32(0.66)
FITS = 3
"""Fits kept of a sub-block."""

# d is the largest scale over 128, 127.5, ...
DIVISORS, FIRST_DIVISOR, DIVISOR = 60, f32(128.0), f32(0.5)
D_TRIED = 3
"""As many d are tried on the weights."""
REFINEMENTS = 2
"""How often the best d is refitted to what was chosen under it."""
RADIUS = 2
"""By how much a whole scale is moved in refinements."""

# Entries of `fits` are those of shortlists: least error, the scale at which it is, and the sum of w * level**2.
FIT_ERROR, FIT_SCALE, SUM_L2 = ERROR, FIRST, SECOND
# Where in `chosen` the whole scale of a sub-block is, with its error, and the fit of its levels.
CHOSEN = 4 * LANES
CHOSEN_ERROR, CHOSEN_SCALE, CHOSEN_FIT, CHOSEN_SUM_L2 = range(0, CHOSEN, LANES)


class Batch(NamedTuple):
    """Sixteen super-blocks, one a lane, and what is known of them so far."""

    values: Tile
    """The weights, (256 * LANES,)."""
    importance: Tile
    """(256 * LANES,)."""
    fits: Tile
    """A shortlist for each sub-block, (16 * FITS * ENTRY,)."""
    chosen: Tile
    """The best whole scale of each sub-block under some d, (16 * CHOSEN,)."""
    scales: Tile
    """A shortlist for the super-block: error and d, twice."""


@helper
def least_squares(batch: Batch, j: int, scale: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Rounds sub-block j to levels under a scale and fits them.

    Returns the error under that scale, then the fit: its error, its scale and the sum of w * level**2. All sums are of
    what the scale leaves, so that they lose no digits.
    """
    zero = splat(f32(0))
    inverse = f32(1) / scale
    error, sum_rest_l, sum_l2 = zero, zero, zero
    for i in range(j * SIZE, (j + 1) * SIZE):
        x, weight = load(batch.values, i * LANES), load(batch.importance, i * LANES)
        level = whole_between(x * inverse, LEVEL_MIN, LEVEL_MAX)
        rest = x - scale * level
        weighted = weight * level
        error = error + weight * rest * rest
        sum_rest_l = sum_rest_l + weighted * rest
        sum_l2 = sum_l2 + weighted * level
    step = select(sum_l2 > zero, sum_rest_l / sum_l2, zero)
    return error, error - step * sum_rest_l, scale + step, sum_l2


@helper
def find_fits(batch: Batch) -> None:
    """The best fits of each sub-block with any scale, into `fits`. Weights of no importance do not count."""
    zero = splat(f32(0))
    for j in range(SUB_BLOCKS):
        fits = batch.fits[j * FITS * ENTRY : (j + 1) * FITS * ENTRY]
        clear_shortlist(fits, zero, zero)
        largest = zero
        for i in range(j * SIZE, (j + 1) * SIZE):
            counts = load(batch.importance, i * LANES) > zero
            largest = larger(select(counts, magnitude(load(batch.values, i * LANES)), zero), largest)
        for i_start in range(2 * START_STEPS):
            steps = FIRST_STEP + STEP * f32(i_start // 2)
            scale = largest / (steps if i_start % 2 == 0 else -steps)
            _, fit_error, fit_scale, sum_l2 = least_squares(batch, j, scale)
            shortlist(fits, fit_error, fit_scale, sum_l2)


@helper
def scale_loss(batch: Batch, d: Floats) -> Floats:
    """The error of the super-block under this d, levels left as they are."""
    total = splat(f32(0))
    for first in range(0, SUB_BLOCKS * FITS * ENTRY, FITS * ENTRY):
        least = splat(f32(np.inf))
        for at in range(first, first + FITS * ENTRY, ENTRY):
            scale = load(batch.fits, at + FIT_SCALE)
            apart = d * whole_between(scale / d, SCALE_MIN, SCALE_MAX) - scale
            error = load(batch.fits, at + FIT_ERROR) + apart * apart * load(batch.fits, at + SUM_L2)
            least = smaller(error, least)
        total = total + least
    return total


@helper
def find_scales(batch: Batch) -> None:
    """The d that promise the least error, into `scales`."""
    zero = splat(f32(0))
    largest = zero
    for j in range(SUB_BLOCKS):
        largest = larger(magnitude(load(batch.fits, j * FITS * ENTRY + FIT_SCALE)), largest)
    clear_shortlist(batch.scales, zero, zero)
    for i in range(DIVISORS):
        d = nearest_float16(largest / (FIRST_DIVISOR - DIVISOR * f32(i)))
        shortlist(batch.scales, scale_loss(batch, d), d, d)


@helper
def try_whole(batch: Batch, j: int, scale: Floats, d: Floats) -> None:
    """Rounds sub-block j under a whole scale, and puts it into `chosen` if its error is the least so far."""
    at = j * CHOSEN
    scale = whole_between(scale, SCALE_MIN, SCALE_MAX)
    error, _, fit_scale, sum_l2 = least_squares(batch, j, d * scale)
    better = error < load(batch.chosen, at + CHOSEN_ERROR)
    put(batch.chosen, at + CHOSEN_ERROR, better, error)
    put(batch.chosen, at + CHOSEN_SCALE, better, scale)
    put(batch.chosen, at + CHOSEN_FIT, better, fit_scale)
    put(batch.chosen, at + CHOSEN_SUM_L2, better, sum_l2)


@helper
def choose_whole(batch: Batch, d: Floats, radius: int) -> Floats:
    """The best whole scales under d, into `chosen`, and their error: each fit's, then those within `radius` of it."""
    zero = splat(f32(0))
    total = zero
    for j in range(SUB_BLOCKS):
        for at in range(j * CHOSEN, (j + 1) * CHOSEN, LANES):
            store(batch.chosen, at, zero)
        store(batch.chosen, j * CHOSEN + CHOSEN_ERROR, splat(f32(np.inf)))
        for k in range(FITS):
            try_whole(batch, j, load(batch.fits, (j * FITS + k) * ENTRY + FIT_SCALE) / d, d)
        scale = load(batch.chosen, j * CHOSEN + CHOSEN_SCALE)
        for i in range(-radius, radius + 1):
            if i != 0:
                try_whole(batch, j, scale + f32(i), d)
        total = total + load(batch.chosen, j * CHOSEN + CHOSEN_ERROR)
    return total


@helper
def refit(batch: Batch, d: Floats) -> Floats:
    """d by least squares over the super-block for the levels and whole scales in `chosen`; as it was where none is."""
    zero = splat(f32(0))
    sum_s, sum_ss = zero, zero
    for at in range(0, SUB_BLOCKS * CHOSEN, CHOSEN):
        scale = load(batch.chosen, at + CHOSEN_SCALE)
        weighted = load(batch.chosen, at + CHOSEN_SUM_L2) * scale
        sum_s = sum_s + weighted * load(batch.chosen, at + CHOSEN_FIT)
        sum_ss = sum_ss + weighted * scale
    new_d = sum_s / sum_ss
    return select(new_d > zero, nearest_float16(new_d), d)


@helper
def find_thoroughly(batch: Batch, found: Tile, kept: Tile) -> None:
    """The whole search: d into `kept`, whole scales into `found`, as put_q6_block wants them."""
    fill(kept, f32(0))
    fill(found[SCALE_LEVEL], f32(0))
    find_fits(batch)
    find_scales(batch)
    least = splat(f32(np.inf))
    d = least
    for i in range(D_TRIED + REFINEMENTS):
        if i < D_TRIED:
            d = load(batch.scales, i * ENTRY + FIRST)
        elif i == D_TRIED:
            d = load(kept, 0)
        else:
            d = refit(batch, d)
        error = choose_whole(batch, d, 0 if i < D_TRIED else RADIUS)
        better = error < least
        least = select(better, error, least)
        put(kept, 0, better, d)
        for j in range(SUB_BLOCKS):
            put(found[SCALE_LEVEL], j * LANES, better, load(batch.chosen, j * CHOSEN + CHOSEN_SCALE))


def improve_symmetric(weights: Tile, importance: Tile, bits: int, packed: Bytes) -> None:
    """Betters whole super-blocks, (n * 256,), that ggml encoded as Q6_K, in place, where the search can.

    `importance`, one for each column of a row, repeats every row; empty for none. `packed`, (n * 210,), holds ggml's
    bytes; a super-block whose error would not fall for certain keeps them. `bits` is 6.
    """
    n_blocks, block_bytes = weights.size // SUPER_BLOCK, 210
    decoded = np.empty(SUPER_BLOCK, f32)
    batch = Batch(
        np.empty(SUPER_BLOCK * LANES, f32),
        np.empty(SUPER_BLOCK * LANES, f32),
        np.empty(SUB_BLOCKS * FITS * ENTRY, f32),
        np.empty(SUB_BLOCKS * CHOSEN, f32),
        np.empty(D_TRIED * ENTRY, f32),
    )
    found, kept = np.empty((4, SUB_BLOCKS * LANES), f32), np.empty(LANES, f32)
    levels, candidate = np.empty(SUPER_BLOCK, np.uint8), np.empty(block_bytes, np.uint8)
    fill(batch.importance, f32(1))
    fill(found[FACTOR], f32(0))
    for first in range(0, n_blocks, LANES):
        n_lanes = min(LANES, n_blocks - first)
        transpose(weights[first * SUPER_BLOCK :], batch.values, n_lanes, SUPER_BLOCK)
        if importance.size:
            transpose_importance(importance, batch.importance, first, SUPER_BLOCK)
            count_every_sub_block(batch.importance, SIZE)
        find_thoroughly(batch, found, kept)
        for block in range(first, first + n_lanes):
            x, own = weights[block * SUPER_BLOCK :], packed[block * block_bytes :]
            column = block * SUPER_BLOCK % max(importance.size, 1)
            decode_q6(own, decoded)
            old_error = squared_error(x, decoded, importance, column)
            put_q6_block(x, block - first, found, kept[block - first], levels, candidate)
            decode_q6(candidate, decoded)
            if is_less(squared_error(x, decoded, importance, column), old_error):
                for i in range(block_bytes):
                    own[i] = candidate[i]
