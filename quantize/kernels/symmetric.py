"""Q6_K and Q3_K for numba: super-blocks of 256 weights in sixteen sub-blocks that have a scale each.

x ~ d * scale * level, with d a float16 number of the super-block, scale a small signed integer of the sub-block, level
a signed integer of the weight. After ggml/src/ggml-quants.c of llama.cpp 0c1e57098: quantize_row_q{3,6}_K_ref without
importance, quantize_row_q{3,6}_K_impl with it. The blocks' layouts are those of ggml/src/ggml-common.h.
"""

from __future__ import annotations

import numba
import numpy as np

from zephyr_local.quantize.kernels.lanes import (
    LANES,
    Floats,
    load,
    magnitude,
    nearest,
    nearest_between,
    select,
    smaller,
    splat,
    store,
    store_bytes,
    transpose,
    transpose_importance,
)
from zephyr_local.quantize.kernels.layout import (
    SUPER_BLOCK,
    Bytes,
    pack_high_bits,
    pack_pairs,
    pack_q6,
    pack_scales_q3,
    put_float16,
)
from zephyr_local.quantize.kernels.search import (
    GROUP_MAX_EPS,
    Tile,
    importance_weights,
    mean_square,
    refined_scales,
    symmetric_scale,
)

f32 = np.float32
SUB_BLOCKS, SIZE = 16, 16

# What is found for a batch of super-blocks: tiles of the sub-blocks' numbers, (16 * LANES,), one super-block a lane.
SCALE, FACTOR, SCALE_LEVEL, SUM_W = range(4)


@numba.njit
def largest_scale(found: Tile) -> tuple[Floats, Floats]:
    """The first scale of the largest magnitude, and that magnitude."""
    value = splat(f32(0))
    largest = value
    for j in range(SUB_BLOCKS):
        scale = load(found[SCALE], j * LANES)
        size = magnitude(scale)
        value = select(size > largest, scale, value)
        largest = select(size > largest, size, largest)
    return value, largest


@numba.njit
def find_q6(tile: Tile, importance: Tile, weights: Tile, found: Tile, d: Tile) -> None:
    """Scales of a batch of Q6_K, each searched alone, then rounded to eight bits under the largest.

    An error weighs x * x without importance (an empty tile), and importance alone with it. d becomes 0 where no scale
    counts.
    """
    for j in range(SUB_BLOCKS):
        for i in range(SIZE):
            row = (j * SIZE + i) * LANES
            x = load(tile, row)
            store(weights, i * LANES, load(importance, row) if importance.size else x * x)
        scale, factor = symmetric_scale(tile, j * SIZE, SIZE, weights, 32)
        store(found[SCALE], j * LANES, scale)
        store(found[FACTOR], j * LANES, factor)
    value, largest = largest_scale(found)
    inverse = f32(-128) / value
    for j in range(SUB_BLOCKS):
        level = smaller(nearest(inverse * load(found[SCALE], j * LANES)), splat(f32(127)))
        store(found[SCALE_LEVEL], j * LANES, level)
    store(d, 0, select(largest < splat(GROUP_MAX_EPS), splat(f32(0)), f32(1) / inverse))


@numba.njit
def find_q3_plain(tile: Tile, found: Tile, levels: Tile, d: Tile) -> None:
    """Scales of a batch of Q3_K without importance, and in `levels` the levels found: each sub-block refined alone."""
    for j in range(0, SUB_BLOCKS, 2):
        first, second = refined_scales(tile, j * SIZE, SIZE, levels, 4)
        store(found[SCALE], j * LANES, first)
        store(found[SCALE], (j + 1) * LANES, second)
    value, _ = largest_scale(found)
    zero = splat(f32(0))
    inverse = f32(-32) / value
    for j in range(SUB_BLOCKS):
        # int8_t in C: more than 127 or less than -128 would wrap, and no scale is larger than the largest
        level = nearest_between(inverse * load(found[SCALE], j * LANES), -32, 31)
        store(found[SCALE_LEVEL], j * LANES, select(value != zero, level, splat(f32(-32))))
    store(d, 0, select(value != zero, f32(1) / inverse, zero))


@numba.njit
def find_q3_weighted(tile: Tile, importance: Tile, weights: Tile, found: Tile, levels: Tile, d: Tile) -> None:
    """Scales of a batch of Q3_K with importance, and in `levels` the levels found; the rounding is searched too."""
    sigma2 = mean_square(tile, SUPER_BLOCK, f32(2.0))
    for j in range(SUB_BLOCKS):
        sum_w = importance_weights(tile, importance, j * SIZE, SIZE, sigma2, weights)
        scale, factor = symmetric_scale(tile, j * SIZE, SIZE, weights, 4)
        store(found[SCALE], j * LANES, scale)
        store(found[SUM_W], j * LANES, sum_w)
        for i in range(SIZE):
            row = (j * SIZE + i) * LANES
            level = nearest_between(factor * load(tile, row), -4, 3)
            store(levels, row, select(factor == splat(f32(0)), splat(f32(-4)), level))
    scale, factor = symmetric_scale(found[SCALE], 0, SUB_BLOCKS, found[SUM_W], 32)
    for j in range(SUB_BLOCKS):
        level = nearest_between(factor * load(found[SCALE], j * LANES), -32, 31)
        store(found[SCALE_LEVEL], j * LANES, select(factor == splat(f32(0)), splat(f32(-32)), level))
    store(d, 0, scale)


@numba.njit
def put_q6_block(x: Tile, lane: int, found: Tile, d: np.float32, levels: Bytes, packed: Bytes) -> None:
    """Writes a super-block of Q6_K, 210 bytes: levels 192 (pack_q6), scales 16 (int8), d 2.

    Where a sub-block's scale is 0, C leaves the levels that the search found: 0, not 32, if it counts as zeros.
    """
    block_d = put_float16(packed[208:], d)
    if d == f32(0):
        packed[:208] = 0
        return
    for j in range(SUB_BLOCKS):
        scale_level = np.int8(np.int64(found[SCALE_LEVEL, j * LANES + lane]))
        packed[192 + j] = np.uint8(scale_level)
        scale = block_d * f32(scale_level)
        factor = found[FACTOR, j * LANES + lane]
        for i in range(j * SIZE, (j + 1) * SIZE, LANES):
            if scale != f32(0):
                level = nearest_between(load(x, i) / scale, -32, 31)
            else:
                level = nearest_between(factor * load(x, i), -32, 31)
                if factor == f32(0):
                    level = splat(f32(-32))
            store_bytes(levels, i, level + f32(32))
    pack_q6(levels, packed)


@numba.njit
def put_q3_block(
    x: Tile, lane: int, found: Tile, searched: Tile, d: np.float32, scales: Bytes, levels: Bytes, packed: Bytes
) -> None:
    """Writes a super-block of Q3_K, 110 bytes: third bits of levels 32, low bits of levels 64, scales 12, d 2.

    Where a sub-block's scale is 0, C leaves the levels that the search found.
    """
    block_d = put_float16(packed[108:], d)
    for j in range(SUB_BLOCKS):
        scale_level = found[SCALE_LEVEL, j * LANES + lane]
        scales[j] = np.uint8(scale_level + f32(32))
        scale = block_d * scale_level
        if scale != f32(0):
            for i in range(j * SIZE, (j + 1) * SIZE, LANES):
                store_bytes(levels, i, nearest_between(load(x, i) / scale, -4, 3) + f32(4))
        else:
            for i in range(j * SIZE, (j + 1) * SIZE):
                levels[i] = np.uint8(searched[i * LANES + lane] + f32(4))
    pack_high_bits(levels, packed, 2)
    pack_pairs(levels, packed[32:])
    pack_scales_q3(scales, packed[96:])


def encode_symmetric(weights: Tile, importance: Tile, bits: int, packed: Bytes) -> None:
    """Encodes whole super-blocks, (n * 256,), as Q6_K or Q3_K by the bits of a level.

    `importance`, one for each column of a row, repeats every row; empty for none. `packed`, (n * block bytes,).
    """
    n_blocks = weights.size // SUPER_BLOCK
    block_bytes = 210 if bits == 6 else 110
    tile, levels = np.empty(SUPER_BLOCK * LANES, f32), np.empty(SUPER_BLOCK * LANES, f32)
    importance_tile = np.empty(SUPER_BLOCK * LANES if importance.size else 0, f32)
    sub_weights = np.empty(SIZE * LANES, f32)
    found, d = np.empty((4, SUB_BLOCKS * LANES), f32), np.empty(LANES, f32)
    block_scales, block_levels = np.empty(SUB_BLOCKS, np.uint8), np.empty(SUPER_BLOCK, np.uint8)
    for first in range(0, n_blocks, LANES):
        n_lanes = min(LANES, n_blocks - first)
        transpose(weights[first * SUPER_BLOCK :], tile, n_lanes, SUPER_BLOCK)
        if importance.size:
            transpose_importance(importance, importance_tile, first, SUPER_BLOCK)
        if bits == 6:
            find_q6(tile, importance_tile, sub_weights, found, d)
        elif importance.size:
            find_q3_weighted(tile, importance_tile, sub_weights, found, levels, d)
        else:
            find_q3_plain(tile, found, levels, d)
        for lane in range(n_lanes):
            block = first + lane
            x, out = weights[block * SUPER_BLOCK :], packed[block * block_bytes :]
            if bits == 6:
                put_q6_block(x, lane, found, d[lane], block_levels, out)
            else:
                put_q3_block(x, lane, found, levels, d[lane], block_scales, block_levels, out)
