"""Q4_K, Q5_K and Q2_K for numba: super-blocks of 256 weights whose sub-blocks have a scale and a minimum.

x ~ d * scale * level - d_min * minimum, with d and d_min float16 numbers of the super-block, scale and minimum small
integers of the sub-block, level an integer of the weight. After ggml/src/ggml-quants.c of llama.cpp 0c1e57098:
quantize_row_q{2,4,5}_K_ref without importance, quantize_row_q{2,4,5}_K_impl with it. The blocks' layouts are those of
ggml/src/ggml-common.h.
"""

from __future__ import annotations

import numba
import numpy as np

from zephyr_local.quantize.kernels.lanes import (
    LANES,
    larger,
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
    wrapped_byte,
)
from zephyr_local.quantize.kernels.layout import (
    SUPER_BLOCK,
    Bytes,
    pack_high_bits,
    pack_nibbles,
    pack_pairs,
    pack_scales_k4,
    put_float16,
    unpack_scales_k4,
)
from zephyr_local.quantize.kernels.search import (
    Tile,
    affine_scale,
    importance_weights,
    mean_square,
    mean_weights,
    positive_scale,
)

f32 = np.float32

# What find_affine leaves for a batch of super-blocks: tiles of the sub-blocks' numbers, one super-block a lane.
SCALE, MINIMUM, FACTOR, OFFSET, SCALE_LEVEL, MINIMUM_LEVEL, SUM_W = range(7)
D, D_MIN = 0, 1


@numba.njit
def affine_shape(bits: int) -> tuple[int, int, int, int]:
    """Of the type with `bits` a level: sub-blocks, weights in each, largest level, largest scale level."""
    if bits == 2:
        return 16, 16, 3, 15
    return 8, 32, (15 if bits == 4 else 31), 63


@numba.njit
def find_plain(tile: Tile, bits: int, weights: Tile, levels: Tile, found: Tile, d: Tile) -> None:
    """Scales and minimums of a batch without importance: each searched alone, then rounded under the largest."""
    n_sub_blocks, size, n_max, scale_max = affine_shape(bits)
    zero = splat(f32(0))
    max_scale, max_minimum = zero, zero
    for j in range(n_sub_blocks):
        if bits == 2:
            for i in range(size):
                store(weights, i * LANES, magnitude(load(tile, (j * size + i) * LANES)))
        else:
            mean_weights(tile, j * size, size, weights)
        start, n_steps = (f32(-1.0), 20) if bits == 4 else (f32(-0.5), 15)
        scale, minimum, factor, offset = affine_scale(
            tile, j * size, size, weights, levels, n_max, start, f32(0.1), n_steps, bits == 2
        )
        store(found[SCALE], j * LANES, scale)
        store(found[MINIMUM], j * LANES, minimum)
        store(found[FACTOR], j * LANES, factor)
        store(found[OFFSET], j * LANES, offset)
        max_scale = larger(scale, max_scale)
        max_minimum = larger(minimum, max_minimum)
    top = f32(scale_max)
    inverse_scale = select(max_scale > zero, top / max_scale, zero)
    inverse_minimum = select(max_minimum > zero, top / max_minimum, zero)
    for j in range(n_sub_blocks):
        scale = wrapped_byte(nearest(inverse_scale * load(found[SCALE], j * LANES)))
        minimum = wrapped_byte(nearest(inverse_minimum * load(found[MINIMUM], j * LANES)))
        if bits != 2:
            scale = smaller(scale, splat(top))
            minimum = smaller(minimum, splat(top))
        store(found[SCALE_LEVEL], j * LANES, scale)
        store(found[MINIMUM_LEVEL], j * LANES, minimum)
    store(d[D], 0, max_scale / top)
    store(d[D_MIN], 0, max_minimum / top)


@numba.njit
def find_weighted(tile: Tile, importance: Tile, bits: int, weights: Tile, levels: Tile, found: Tile, d: Tile) -> None:
    """Scales and minimums of a batch with importance: the rounding of both is searched too, by positive_scale."""
    n_sub_blocks, size, n_max, scale_max = affine_shape(bits)
    sigma2 = mean_square(tile, SUPER_BLOCK, f32(1.0) if bits == 2 else f32(2.0))
    for j in range(n_sub_blocks):
        sum_w = importance_weights(tile, importance, j * size, size, sigma2, weights)
        scale, minimum, factor, offset = affine_scale(
            tile, j * size, size, weights, levels, n_max, f32(-0.9), f32(0.05), 36, False
        )
        store(found[SCALE], j * LANES, scale)
        store(found[MINIMUM], j * LANES, minimum)
        store(found[FACTOR], j * LANES, factor)
        store(found[OFFSET], j * LANES, offset)
        store(found[SUM_W], j * LANES, sum_w)
    store(d[D], 0, positive_scale(found[SCALE], n_sub_blocks, found[SUM_W], found[SCALE_LEVEL], scale_max))
    store(d[D_MIN], 0, positive_scale(found[MINIMUM], n_sub_blocks, found[SUM_W], found[MINIMUM_LEVEL], scale_max))


@numba.njit
def put_levels(
    x: Tile, bits: int, lane: int, scales: Bytes, minimums: Bytes, d: np.float32, d_min: np.float32, found: Tile,
    levels: Bytes,
) -> None:  # fmt: skip
    """The 256 levels of a super-block, under its scales as they are stored; `x`, its weights, (256,).

    Where a sub-block's scale is 0, C leaves the levels that the search found.
    """
    n_sub_blocks, size, n_max, _ = affine_shape(bits)
    for j in range(n_sub_blocks):
        scale = d * f32(scales[j])
        if scale != f32(0):
            minimum = d_min * f32(minimums[j])
            for i in range(j * size, (j + 1) * size, LANES):
                store_bytes(levels, i, nearest_between((load(x, i) + minimum) / scale, 0, n_max))
        else:
            factor, offset = found[FACTOR, j * LANES + lane], found[OFFSET, j * LANES + lane]
            for i in range(j * size, (j + 1) * size, LANES):
                store_bytes(levels, i, nearest_between(factor * (load(x, i) - offset), 0, n_max))


@numba.njit
def put_block(
    x: Tile, bits: int, lane: int, found: Tile, d: Tile, scales: Bytes, minimums: Bytes, levels: Bytes, packed: Bytes
) -> None:
    """Writes the super-block of that lane.

    Q4_K, 144 bytes: d 2, d_min 2, scales 12, low bits of levels 128
    Q5_K, 176 bytes: d 2, d_min 2, scales 12, fifth bits of levels 32, low bits of levels 128
    Q2_K,  84 bytes: scales 16 (bits 0-3 scale, bits 4-7 minimum), levels 64, d 2, d_min 2
    """
    n_sub_blocks = affine_shape(bits)[0]
    for j in range(n_sub_blocks):
        scales[j] = np.uint8(found[SCALE_LEVEL, j * LANES + lane])
        minimums[j] = np.uint8(found[MINIMUM_LEVEL, j * LANES + lane])
        if bits == 5:  # with importance, a degenerate sub-block's may be larger, and Q4_K's code lets it be
            scales[j] = min(scales[j], 63)
            minimums[j] = min(minimums[j], 63)
    at_d = 80 if bits == 2 else 0
    block_d = put_float16(packed[at_d:], d[D, lane])
    block_d_min = put_float16(packed[at_d + 2 :], d[D_MIN, lane])
    if bits == 2:
        for j in range(16):
            packed[j] = scales[j] | (minimums[j] << 4)
            scales[j] = packed[j] & 0xF
            minimums[j] = packed[j] >> 4
    else:
        pack_scales_k4(scales, minimums, packed[4:])
        unpack_scales_k4(packed[4:], scales, minimums)
    put_levels(x, bits, lane, scales, minimums, block_d, block_d_min, found, levels)
    if bits == 2:
        pack_pairs(levels, packed[16:])
    elif bits == 4:
        pack_nibbles(levels, packed[16:])
    else:
        pack_high_bits(levels, packed[16:], 4)
        pack_nibbles(levels, packed[48:])


def encode_affine(weights: Tile, importance: Tile, bits: int, packed: Bytes) -> None:
    """Encodes whole super-blocks, (n * 256,), as Q4_K, Q5_K or Q2_K by the bits of a level.

    `importance`, one for each column of a row, repeats every row; empty for none. `packed`, (n * block bytes,).
    """
    n_blocks = weights.size // SUPER_BLOCK
    block_bytes = packed.size // max(n_blocks, 1)
    tile = np.empty(SUPER_BLOCK * LANES, f32)
    importance_tile = np.empty(SUPER_BLOCK * LANES if importance.size else 0, f32)
    sub_weights, sub_levels = np.empty(32 * LANES, f32), np.empty(32 * LANES, f32)
    found, d = np.empty((7, 16 * LANES), f32), np.empty((2, LANES), f32)
    scales, minimums, levels = np.empty(16, np.uint8), np.empty(16, np.uint8), np.empty(SUPER_BLOCK, np.uint8)
    for first in range(0, n_blocks, LANES):
        n_lanes = min(LANES, n_blocks - first)
        transpose(weights[first * SUPER_BLOCK :], tile, n_lanes, SUPER_BLOCK)
        if importance.size:
            transpose_importance(importance, importance_tile, first, SUPER_BLOCK)
            find_weighted(tile, importance_tile, bits, sub_weights, sub_levels, found, d)
        else:
            find_plain(tile, bits, sub_weights, sub_levels, found, d)
        for lane in range(n_lanes):
            block = first + lane
            put_block(
                weights[block * SUPER_BLOCK :], bits, lane, found, d, scales, minimums, levels,
                packed[block * block_bytes :],
            )  # fmt: skip
