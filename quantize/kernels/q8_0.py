"""Q8_0 for numba: blocks of 32 weights, each a scale and 32 signed bytes; no search, so importance changes nothing.

After quantize_row_q8_0_ref of ggml/src/ggml-quants.c of llama.cpp 0c1e57098.
"""

from __future__ import annotations

import numpy as np

from zephyr_local.quantize.kernels.lanes import (
    LANES,
    larger,
    largest_lane,
    load,
    magnitude,
    round_half_away,
    store_bytes,
)
from zephyr_local.quantize.kernels.layout import Bytes, put_float16
from zephyr_local.quantize.kernels.search import Tile

f32 = np.float32
SIZE, BLOCK_BYTES = 32, 34


def encode_q8_0(weights: Tile, importance: Tile, bits: int, packed: Bytes) -> None:
    """Encodes whole blocks, (n * 32,); `packed`, (n * 34,): d 2 bytes, levels 32 (int8). The rest counts nothing."""
    for block in range(weights.size // SIZE):
        x, out = weights[block * SIZE :], packed[block * BLOCK_BYTES :]
        largest = largest_lane(larger(magnitude(load(x, 0)), magnitude(load(x, LANES))))
        d = largest / f32(127)
        inverse = f32(1) / d if d != f32(0) else f32(0)
        put_float16(out, d)
        store_bytes(out, 2, round_half_away(load(x, 0) * inverse))
        store_bytes(out, 2 + LANES, round_half_away(load(x, LANES) * inverse))
