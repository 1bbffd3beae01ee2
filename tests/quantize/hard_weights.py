"""Weights and importances at which an encoder that only resembles ggml's gives other bytes.

Every kind is a function of a generator, the rows and the columns (a multiple of 32) to C-contiguous, finite float32
rows of that shape. What the kinds aim at stands in ggml/src/ggml-quants.c of llama.cpp 0c1e57098.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

import zephyr_local.data

Weights = NDArray[np.float32]

_SUB_BLOCK = 16  # the smallest group of weights with a scale of its own; Q4_K, Q5_K and the 32-weight types have 32
_LARGEST = float(np.finfo(np.float32).max)
_SMALLEST_SCALE = 1e-15  # GROUP_MAX_EPS: below it a sub-block counts as zeros


def _float32(values: np.ndarray) -> Weights:
    """In C order, clipped to what float32 holds."""
    return np.ascontiguousarray(np.clip(values, -_LARGEST, _LARGEST), dtype=np.float32)


def _per_sub_block(factors: np.ndarray, n_columns: int, size: int = _SUB_BLOCK) -> np.ndarray:
    """A factor for each sub-block, (n_rows, n_columns // size), repeated over its weights, (n_rows, n_columns)."""
    return np.repeat(factors, size, axis=1)[:, :n_columns]


def _powers_of_ten(rng: np.random.Generator, low: float, high: float, n_rows: int, n_columns: int) -> np.ndarray:
    return 10.0 ** rng.uniform(low, high, (n_rows, n_columns))


def normal(rng: np.random.Generator, n_rows: int, n_columns: int) -> Weights:
    """As most tensors of a language model are."""
    return _float32(rng.normal(0, 0.02, (n_rows, n_columns)))


def heavy_tailed(rng: np.random.Generator, n_rows: int, n_columns: int) -> Weights:
    """Student's t with three degrees of freedom, and one weight in a thousand made a hundred times larger."""
    values = rng.standard_t(3, (n_rows, n_columns)) * 0.02
    return _float32(np.where(rng.random(values.shape) < 1e-3, values * 100, values))


def constant_rows(rng: np.random.Generator, n_rows: int, n_columns: int) -> Weights:
    """By turns: a positive row, a negative one, a row of one magnitude in both signs, constant 16s, constant 32s."""
    rows = np.empty((n_rows, n_columns))
    for i, row in enumerate(rows):
        scale = rng.uniform(0.001, 2)
        if i % 5 < 2:
            row[:] = scale if i % 5 == 0 else -scale
        elif i % 5 == 2:
            row[:] = scale * rng.choice([-1, 1], n_columns)
        else:
            size = 16 if i % 5 == 3 else 32
            row[:] = _per_sub_block(rng.normal(0, 0.1, (1, n_columns // size)), n_columns, size)[0]
    return _float32(rows)


def zeros(rng: np.random.Generator, n_rows: int, n_columns: int) -> Weights:
    """By turns: zeros, negative zeros, zeros of both signs, scattered zeros, zero sub-blocks, zero 128s."""
    rows = rng.normal(0, 0.05, (n_rows, n_columns))
    for i, row in enumerate(rows):
        if i % 6 < 3:
            row[:] = (0.0, -0.0, 0.0)[i % 6]
            if i % 6 == 2:
                row[rng.random(n_columns) < 0.5] = -0.0
        elif i % 6 == 3:
            row[rng.random(n_columns) < 0.7] = 0.0
        else:
            size = 16 if i % 6 == 4 else 128
            kept = rng.random((1, -(-n_columns // size))) < 0.5
            row *= _per_sub_block(kept, n_columns, size)[0] * 10
    return _float32(rows)


def denormals(rng: np.random.Generator, n_rows: int, n_columns: int) -> Weights:
    """By turns: denormal numbers; sub-blocks about GROUP_MAX_EPS; of any small scale; those beside ordinary ones."""
    rows = rng.standard_normal((n_rows, n_columns))
    n_groups = n_columns // _SUB_BLOCK
    for i, row in enumerate(rows):
        if i % 4 == 0:
            row *= 10.0 ** rng.uniform(-45, -37)
        elif i % 4 == 1:
            row /= np.abs(row).reshape(-1, _SUB_BLOCK).max(axis=1).repeat(_SUB_BLOCK)
            row *= _per_sub_block(_SMALLEST_SCALE * rng.uniform(0.97, 1.03, (1, n_groups)), n_columns)[0]
        else:
            scales = _powers_of_ten(rng, -45, -12 if i % 4 == 2 else 0, 1, n_groups)
            row *= _per_sub_block(scales, n_columns)[0]
    return _float32(rows)


def huge(rng: np.random.Generator, n_rows: int, n_columns: int) -> Weights:
    """By turns: 3e38; squares that overflow; sub-blocks of 1e19 to 1e38; rows about the largest float16 scale."""
    rows = rng.standard_normal((n_rows, n_columns))
    for i, row in enumerate(rows):
        if i % 4 == 0:
            row *= 3e38 / np.abs(row).max()
        elif i % 4 == 1:
            row *= 10.0 ** rng.uniform(19, 37)
        elif i % 4 == 2:
            row *= _per_sub_block(_powers_of_ten(rng, 19, 38, 1, n_columns // _SUB_BLOCK), n_columns)[0]
        else:
            row *= 10.0 ** rng.uniform(4, 8)
    return _float32(rows)


@functools.cache
def _bundled_weights() -> Weights:
    """The weights of every tensor of the bundled model, (n_weights,)."""
    path = Path(zephyr_local.data.__file__).parent / "zephyr-tiny-Q4_K_M.gguf"
    tensors = gguf.GGUFReader(path).tensors
    return np.concatenate([gguf.quants.dequantize(tensor.data, tensor.tensor_type).ravel() for tensor in tensors])


def real(rng: np.random.Generator, n_rows: int, n_columns: int) -> Weights:
    """The bundled model's weights from a random block on; where they do not suffice, again by random factors."""
    weights = _bundled_weights()
    n_needed = n_rows * n_columns
    first = 256 * int(rng.integers(0, max(1, (weights.size - n_needed) // 256)))
    pieces = [weights[first : first + n_needed]]
    while sum(piece.size for piece in pieces) < n_needed:
        pieces.append(weights * np.float32(rng.lognormal()))
    return _float32(np.concatenate(pieces)[:n_needed].reshape(n_rows, n_columns))


def mixed_scale(rng: np.random.Generator, n_rows: int, n_columns: int) -> Weights:
    """Sub-blocks up to a million times smaller than others: their scale rounds to 0, their quants stay the search's."""
    size = 16 << int(rng.integers(0, 2))
    scales = _powers_of_ten(rng, -6, 0, n_rows, n_columns // size)
    return _float32(rng.normal(0, 1, (n_rows, n_columns)) * _per_sub_block(scales, n_columns, size))


def ties(rng: np.random.Generator, n_rows: int, n_columns: int) -> Weights:
    """Multiples of a power of two or of 0.1, few of them, so that halves are rounded and errors come out equal."""
    steps = rng.integers(-1, 2, (n_rows, 1)) * rng.integers(1, 33, (n_rows, 1))
    numerators = rng.integers(-np.abs(steps) - 1, np.abs(steps) + 2, (n_rows, n_columns))
    grid = np.where(rng.random((n_rows, 1)) < 0.5, 2.0 ** rng.integers(-8, 3, (n_rows, 1)), 0.1)
    return _float32(numerators * grid)


def positive_only(rng: np.random.Generator, n_rows: int, n_columns: int) -> Weights:
    """As norms are: around 1, or spread from 0 up."""
    around_1 = 1 + rng.normal(0, 0.1, (n_rows, n_columns))
    spread = rng.gamma(1.0, 0.5, (n_rows, n_columns))
    return _float32(np.abs(np.where(np.arange(n_rows)[:, None] % 2 == 0, around_1, spread)))


def negative_only(rng: np.random.Generator, n_rows: int, n_columns: int) -> Weights:
    """The same, below 0."""
    return -positive_only(rng, n_rows, n_columns)


def bfloat16(rng: np.random.Generator, n_rows: int, n_columns: int) -> Weights:
    """Normal weights as a BF16 checkpoint holds them: rounded to nearest, ties to even."""
    bits = normal(rng, n_rows, n_columns).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)


def one_large(rng: np.random.Generator, n_rows: int, n_columns: int) -> Weights:
    """A single weight of each 256 is not zero; in every third row the others are a millionth of it."""
    rows = np.zeros((n_rows, n_columns))
    rows[::3] = rng.normal(0, 1e-6, rows[::3].shape)
    for first in range(0, n_columns, 256):
        columns = rng.integers(first, min(first + 256, n_columns), n_rows)
        rows[np.arange(n_rows), columns] = rng.standard_normal(n_rows)
    return _float32(rows)


KINDS: dict[str, Callable[[np.random.Generator, int, int], Weights]] = {
    kind.__name__: kind
    for kind in (
        normal,
        heavy_tailed,
        constant_rows,
        zeros,
        denormals,
        huge,
        real,
        mixed_scale,
        ties,
        positive_only,
        negative_only,
        bfloat16,
        one_large,
    )
}


def _with_zeros(rng: np.random.Generator, n_columns: int) -> Weights:
    """A tenth of the columns, a fifth of the 16s and a fifth of the 256s weigh nothing."""
    importance = rng.lognormal(size=n_columns)
    importance[rng.random(n_columns) < 0.1] = 0
    for size in (16, 256):
        importance[np.repeat(rng.random(-(-n_columns // size)) < 0.2, size)[:n_columns]] = 0
    return _float32(importance)


IMPORTANCE: dict[str, Callable[[np.random.Generator, int], Weights | None]] = {
    "none": lambda rng, n_columns: None,
    "lognormal": lambda rng, n_columns: _float32(rng.lognormal(size=n_columns)),
    "with_zeros": _with_zeros,
    "ones": lambda rng, n_columns: np.ones(n_columns, np.float32),
    "wide": lambda rng, n_columns: _float32(10.0 ** rng.uniform(-6, 6, n_columns)),
}
"""An importance for each column, (n_columns,), finite and not negative; or none."""
