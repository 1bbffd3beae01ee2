"""Bits of the K-quant blocks, for numba: float16 numbers, packed scales, packed levels.

The layouts are those of ggml/src/ggml-common.h of llama.cpp 0c1e57098. `levels` holds the 256 levels of a super-block
as bytes; `packed` begins where the bytes go.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

SUPER_BLOCK = 256
f32 = np.float32
Bytes = NDArray[np.uint8]


@numba.njit
def to_float16(value: np.float32) -> int:
    """The float16 nearest to a float32, ties to even, as its 16 bits; too large becomes infinity, NaN stays NaN."""
    bits = np.int64(f32(value).view(np.uint32))
    sign = (bits >> 16) & 0x8000
    size = bits & 0x7FFFFFFF
    if size >= 0x7F800000:  # infinity; a NaN keeps its high payload bits and becomes quiet, as F16C makes it
        return sign | 0x7C00 | ((0x200 | ((size >> 13) & 0x3FF)) if size > 0x7F800000 else 0)
    exponent = size >> 23
    if exponent >= 113:  # at least 2**-14: drop thirteen bits of the mantissa; a carry may reach the exponent
        kept = size - (112 << 23)
        dropped = 13
    elif exponent >= 102:  # a float16 denormal: at least half of 2**-24
        kept = (size & 0x7FFFFF) | 0x800000
        dropped = 126 - exponent
    else:
        return sign
    half = (1 << (dropped - 1)) - 1 + ((kept >> dropped) & 1)
    return sign | min((kept + half) >> dropped, 0x7C00)


@numba.njit
def from_float16(bits: int) -> np.float32:
    """The float32 of a float16's 16 bits, exactly."""
    exponent = (bits >> 10) & 0x1F
    mantissa = bits & 0x3FF
    if exponent == 0x1F:
        size = f32(np.inf) if mantissa == 0 else f32(np.nan)
    elif exponent == 0:
        size = f32(mantissa) * f32(2.0**-24)
    else:
        size = np.uint32(((exponent + 112) << 23) | (mantissa << 13)).view(np.float32)
    return -size if bits & 0x8000 else size


@numba.njit
def pack_scales_k4(scales: Bytes, minimums: Bytes, packed: Bytes) -> None:
    """Eight scales s and eight minimums m of six bits into the twelve bytes that Q4_K and Q5_K share.

    byte 0-3    bits 0-5: s[0-3]    bits 6-7: high bits of s[4-7]
    byte 4-7    bits 0-5: m[0-3]    bits 6-7: high bits of m[4-7]
    byte 8-11   bits 0-3: low bits of s[4-7]    bits 4-7: low bits of m[4-7]
    """
    for j in range(4):
        packed[j] = scales[j] | ((scales[j + 4] >> 4) << 6)
        packed[j + 4] = minimums[j] | ((minimums[j + 4] >> 4) << 6)
        packed[j + 8] = (scales[j + 4] & 0xF) | ((minimums[j + 4] & 0xF) << 4)


@numba.njit
def unpack_scales_k4(packed: Bytes, scales: Bytes, minimums: Bytes) -> None:
    """What a decoder reads from those twelve bytes (get_scale_min_k4)."""
    for j in range(4):
        scales[j] = packed[j] & 63
        minimums[j] = packed[j + 4] & 63
        scales[j + 4] = (packed[j + 8] & 0xF) | ((packed[j] >> 6) << 4)
        minimums[j + 4] = (packed[j + 8] >> 4) | ((packed[j + 4] >> 6) << 4)


@numba.njit
def pack_nibbles(levels: Bytes, packed: Bytes) -> None:
    """Low four bits of 256 levels into 128 bytes, in four runs of 32 bytes for 64 levels each.

    byte 32 r + l    bits 0-3: level 64 r + l    bits 4-7: level 64 r + 32 + l
    """
    for run in range(4):
        for i in range(32):
            packed[32 * run + i] = (levels[64 * run + i] & 0xF) | ((levels[64 * run + 32 + i] & 0xF) << 4)


@numba.njit
def pack_pairs(levels: Bytes, packed: Bytes) -> None:
    """Low two bits of 256 levels into 64 bytes, in two runs of 32 bytes for 128 levels each.

    byte 32 r + l    bits 2 j and 2 j + 1: level 128 r + 32 j + l, j from 0 to 3
    """
    for run in range(2):
        for i in range(32):
            first = 128 * run + i
            packed[32 * run + i] = (
                (levels[first] & 3)
                | ((levels[first + 32] & 3) << 2)
                | ((levels[first + 64] & 3) << 4)
                | ((levels[first + 96] & 3) << 6)
            )


@numba.njit
def put_float16(packed: Bytes, value: np.float32) -> np.float32:
    """Writes a float16 to two bytes, little-endian, and returns what a decoder reads from them."""
    bits = to_float16(value)
    packed[0] = bits & 0xFF
    packed[1] = bits >> 8
    return from_float16(bits)


@numba.njit
def pack_scales_q3(scales: Bytes, packed: Bytes) -> None:
    """Sixteen scales s of six bits into the twelve bytes of Q3_K.

    byte 0-7     bits 0-3: low bits of s[0-7]    bits 4-7: low bits of s[8-15]
    byte 8-11    bits 2 q and 2 q + 1 of byte 8 + r: high bits of s[4 q + r], q from 0 to 3
    """
    for j in range(8):
        packed[j] = (scales[j] & 0xF) | ((scales[j + 8] & 0xF) << 4)
    for j in range(4):
        packed[8 + j] = (
            (scales[j] >> 4) | ((scales[j + 4] >> 4) << 2) | ((scales[j + 8] >> 4) << 4) | ((scales[j + 12] >> 4) << 6)
        )


@numba.njit
def pack_high_bits(levels: Bytes, packed: Bytes, bit: int) -> None:
    """One bit of each of 256 levels into 32 bytes: byte l, bit j: of level 32 j + l."""
    for i in range(32):
        packed[i] = 0
    for j in range(8):
        for i in range(32):
            packed[i] |= ((levels[32 * j + i] >> bit) & 1) << j


@numba.njit
def pack_q6(levels: Bytes, packed: Bytes) -> None:
    """256 levels of six bits into the first 192 bytes of Q6_K: low bits, then high bits, each in two runs.

    byte 64 r + l, l < 32         bits 0-3: low bits of level 128 r + l         bits 4-7: of level 128 r + 64 + l
    byte 64 r + 32 + l            bits 0-3: low bits of level 128 r + 32 + l    bits 4-7: of level 128 r + 96 + l
    byte 128 + 32 r + l           bits 2 j and 2 j + 1: high bits of level 128 r + 32 j + l, j from 0 to 3
    """
    for run in range(2):
        for i in range(32):
            first = 128 * run + i
            a, b, c, e = levels[first], levels[first + 32], levels[first + 64], levels[first + 96]
            packed[64 * run + i] = (a & 0xF) | ((c & 0xF) << 4)
            packed[64 * run + 32 + i] = (b & 0xF) | ((e & 0xF) << 4)
            packed[128 + 32 * run + i] = (a >> 4) | ((b >> 4) << 2) | ((c >> 4) << 4) | ((e >> 4) << 6)


@numba.njit
def decode_affine(packed: Bytes, bits: int, scales: Bytes, minimums: Bytes, decoded: NDArray[np.float32]) -> None:
    """What a decoder reads from a super-block of Q4_K or Q5_K, (256,); `scales` and `minimums`, scratch, (8,)."""
    d = from_float16(packed[0] | (packed[1] << 8))
    d_min = from_float16(packed[2] | (packed[3] << 8))
    unpack_scales_k4(packed[4:], scales, minimums)
    high, low = packed[16:], packed[16 if bits == 4 else 48 :]
    for j in range(8):
        scale, minimum = d * f32(scales[j]), d_min * f32(minimums[j])
        for i in range(32):
            level = (low[32 * (j // 2) + i] >> (4 * (j % 2))) & 0xF
            if bits == 5:
                level |= ((high[i] >> j) & 1) << 4
            decoded[32 * j + i] = scale * f32(level) - minimum


@numba.njit
def decode_q6(packed: Bytes, decoded: NDArray[np.float32]) -> None:
    """What a decoder reads from a super-block of Q6_K, (256,)."""
    d = from_float16(packed[208] | (packed[209] << 8))
    for j in range(16):
        scale = d * f32(np.int8(packed[192 + j]))
        for i in range(16 * j, 16 * (j + 1)):
            run, row = i // 128, i % 128
            low = (packed[64 * run + row % 64] >> (4 * (row // 64))) & 0xF
            high = (packed[128 + 32 * run + row % 32] >> (2 * (row // 32))) & 3
            decoded[i] = scale * f32((low | (high << 4)) - 32)
