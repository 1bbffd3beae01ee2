"""The steps by which ggml searches a block's scale (and minimum), all blocks of a tensor at once, bit for bit.

Each search is one function of ggml/src/ggml-quants.c of llama.cpp 0c1e57098, named in its docstring, with one block an
element: values have shape (size, ...), the i-th weights of all blocks being row i, and what is found for each block has
the shape (...). A branch of the C code is a `where`: both sides are computed, and the blocks for which C would not have
gone there keep what they had.

The bits are ggml's on any device that rounds float32 as IEEE 754 says, because every operation stands alone, in ggml's
order: a product is rounded before it is added, and a sum over a block is a loop over its rows. So nothing here may
become torch.sum, addcmul, or what a compiler fuses; and constants divide, or are divided by, tensors alone, since
`1 / t` is not one division in torch, nor `t / 63` on CUDA (`quotient`, `over`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

_NEAREST_MAGIC: Final = 12582912.0  # 1.5 * 2**23: a small number added to it is rounded to an integer
GROUP_MAX_EPS: Final = float(np.float32(1e-15))
"""A block whose largest magnitude is below this counts as zeros (ggml's GROUP_MAX_EPS)."""
_INFINITY: Final = float("inf")


def quotient(numerator: float, denominators: Tensor) -> Tensor:
    """A constant over each, rounded once; Python's `/` would take the reciprocal and multiply."""
    return torch.div(denominators.new_full((), numerator), denominators)


def over(numerators: Tensor, denominator: float) -> Tensor:
    """Each over a constant, rounded once; Python's `/` would multiply by the reciprocal on CUDA."""
    return torch.div(numerators, numerators.new_full((), denominator))


def square_root(values: Tensor) -> Tensor:
    """The nearest float32 to each root.

    On the CPU torch.sqrt of float32 is MKL's, and one unit off at times. A float64 root, even one unit off, rounds
    right: no root of a float32 is that close to the middle of two float32. Metal has no float64.
    """
    if values.device.type == "mps":
        return values.sqrt()
    return values.to(torch.float64).sqrt_().to(torch.float32)


def nearest(values: Tensor) -> Tensor:
    """ggml's nearest_int, as int32: the nearest integer, ties to even, up to a magnitude of 4194303.

    Beyond, it is what the same bits of the sum mean: -4194304 of an infinity, for example. A NaN gives 0, as it does
    where the NaN that a processor makes has no payload; CUDA's has one.
    """
    shifted = (values + _NEAREST_MAGIC).nan_to_num_(nan=_NEAREST_MAGIC, posinf=_INFINITY, neginf=-_INFINITY)
    return shifted.view(torch.int32).bitwise_and_(0x007FFFFF).sub_(0x00400000)


def nearest_between(values: Tensor, lowest: int, highest: int) -> Tensor:
    """The nearest integers within limits, as float32."""
    return nearest(values).clamp_(lowest, highest).to(torch.float32)


def wrapped_byte(integers: Tensor) -> Tensor:
    """What C's uint8_t holds of each int32, still as int32."""
    return integers.bitwise_and(0xFF)


def ordered_sum(terms: Tensor) -> Tensor:
    """The sum over the first dimension, term by term from 0: (n, ...) to (...)."""
    total = torch.zeros_like(terms[0])
    for term in terms.unbind(0):
        total.add_(term)
    return total


def largest_of(values: Tensor) -> Tensor:
    """The largest over the first dimension, or 0 where none is above: (n, ...) to (...)."""
    largest = torch.zeros_like(values[0])
    for value in values.unbind(0):
        largest = torch.where(value > largest, value, largest)
    return largest


def extreme_of(values: Tensor) -> tuple[Tensor, Tensor]:
    """The first value of the largest magnitude over the first dimension, and that magnitude: (n, ...) to (...)."""
    extreme = torch.zeros_like(values[0])
    largest = extreme
    for value in values.unbind(0):
        size = value.abs()
        extreme = torch.where(size > largest, value, extreme)
        largest = torch.where(size > largest, size, largest)
    return extreme, largest


@dataclass(frozen=True, slots=True)
class Ranges:
    """What an affine search tries as factors: (start + step * i + n_max) / (high - low), i from 0 to n_steps."""

    start: float
    step: float
    n_steps: int

    def numerators(self, n_max: int) -> list[float]:
        """The numerators, computed in float32."""
        start, step = np.float32(self.start), np.float32(self.step)
        return [float(start + step * np.float32(i) + np.float32(n_max)) for i in range(self.n_steps + 1)]


@dataclass(frozen=True, slots=True)
class AffineFit:
    """x ~ scale * level - minimum."""

    scale: Tensor  # (...)
    minimum: Tensor  # (...)
    levels: Tensor  # (size, ...), uint8


def _affine_levels(values: Tensor, factor: Tensor, low: Tensor, n_max: int) -> Tensor:
    return nearest_between((values - low).mul_(factor), 0, n_max)


def _affine_error(
    values: Tensor, weights: Tensor, levels: Tensor, fit: tuple[Tensor, Tensor], absolute: bool
) -> Tensor:
    """The weighted error of x ~ scale * level + low, `fit` being scale and low: squared, or absolute."""
    scale, low = fit
    difference = (levels * scale).add_(low).sub_(values)
    deviation = difference.abs_() if absolute else difference.mul_(difference)
    return ordered_sum(deviation.mul_(weights))


def _affine_sums(values: Tensor, weights: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of w * l, w * l * l and w * l * x; added up side by side, which takes a third of the device's calls."""
    terms = values.new_empty((values.shape[0], 3, *values.shape[1:]))
    weighted, squares, products = terms.unbind(1)
    torch.mul(weights, levels, out=weighted)
    torch.mul(weighted, levels, out=squares)
    torch.mul(weighted, values, out=products)
    sum_l, sum_l2, sum_xl = ordered_sum(terms).unbind(0)
    return sum_l, sum_l2, sum_xl


def affine_fit(values: Tensor, weights: Tensor, n_max: int, ranges: Ranges, absolute: bool = False) -> AffineFit:
    """Scale, minimum and levels, 0 to n_max, of each block: make_qkx2_quants and make_qkx3_quants.

    Levels are rounded under each of the ranges about the block's own, and the best scale and minimum for them computed;
    those with the smallest weighted error, squared or `absolute`, are kept.
    """
    low = high = values[0]
    for x in values[1:].unbind(0):
        low = torch.where(x < low, x, low)
        high = torch.where(x > high, x, high)
    low = torch.where(low > 0, 0.0, low)
    flat, flat_minimum = high == low, -low
    sum_w, sum_x = ordered_sum(weights), ordered_sum(weights * values)

    factor = quotient(n_max, high - low)
    scale = quotient(1, factor)
    best_error = _affine_error(values, weights, _affine_levels(values, factor, low, n_max), (scale, low), absolute)
    best_factor, best_offset = factor, low
    # `low` becomes the minimum of the best so far, and the next range begins there: so it does in C.
    for numerator in ranges.numerators(n_max):
        factor = quotient(numerator, high - low)
        levels = _affine_levels(values, factor, low, n_max)
        sum_l, sum_l2, sum_xl = _affine_sums(values, weights, levels)
        determinant = sum_w * sum_l2 - sum_l * sum_l
        new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        new_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        above_zero = new_low > 0
        new_scale = torch.where(above_zero, sum_xl / sum_l2, new_scale)
        new_low = torch.where(above_zero, 0.0, new_low)
        error = _affine_error(values, weights, levels, (new_scale, new_low), absolute)
        better = (determinant > 0) & (error < best_error)
        best_error = torch.where(better, error, best_error)
        best_factor = torch.where(better, factor, best_factor)
        best_offset = torch.where(better, low, best_offset)
        scale = torch.where(better, new_scale, scale)
        low = torch.where(better, new_low, low)
    levels = _affine_levels(values, best_factor, best_offset, n_max).to(torch.uint8)
    return AffineFit(torch.where(flat, 0.0, scale), torch.where(flat, flat_minimum, -low), torch.where(flat, 0, levels))


def _symmetric_sums(values: Tensor, weights: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of w * x * l and of w * l * l, added up side by side."""
    terms = values.new_empty((values.shape[0], 2, *values.shape[1:]))
    products, squares = terms.unbind(1)
    torch.mul(weights, values, out=products).mul_(levels)
    torch.mul(weights, levels, out=squares).mul_(levels)
    sum_xl, sum_l2 = ordered_sum(terms).unbind(0)
    return sum_xl, sum_l2


def _from_zero(levels: Tensor, none: Tensor, n_max: int) -> Tensor:
    """Signed levels as C stores them, from 0 up, as uint8; a block that counts as zeros has 0, not n_max."""
    return torch.where(none, 0.0, levels + n_max).to(torch.uint8)


def symmetric_fit(values: Tensor, weights: Tensor, n_max: int) -> tuple[Tensor, Tensor]:
    """Scale of x ~ scale * (level - n_max), and the levels, 0 to 2 * n_max - 1, as uint8: make_qx_quants.

    Its `rmse_type` is 1 and the weights are given. Tries nineteen factors about -n_max / (the value of largest
    magnitude). A block that counts as zeros has the scale 0 and levels of 0.
    """
    extreme, largest = extreme_of(values)
    factor = quotient(-n_max, extreme)
    sum_xl, sum_l2 = _symmetric_sums(values, weights, nearest_between(values * factor, -n_max, n_max - 1))
    scale = torch.where(sum_l2 != 0, sum_xl / sum_l2, 0.0)
    best, best_factor = scale * sum_xl, factor
    for i in (*range(-9, 0), *range(1, 10)):
        factor = quotient(float(-(np.float32(n_max) + np.float32(0.1) * np.float32(i))), extreme)
        sum_xl, sum_l2 = _symmetric_sums(values, weights, nearest_between(values * factor, -n_max, n_max - 1))
        better = (sum_l2 > 0) & (sum_xl * sum_xl > best * sum_l2)
        new_scale = sum_xl / sum_l2
        scale = torch.where(better, new_scale, scale)
        best = torch.where(better, new_scale * sum_xl, best)
        best_factor = torch.where(better, factor, best_factor)
    none = largest < GROUP_MAX_EPS
    levels = nearest_between(values * best_factor, -n_max, n_max - 1)
    return torch.where(none, 0.0, scale), _from_zero(levels, none, n_max)


def _refine(
    values: Tensor, weights: Tensor, levels: Tensor, sums: tuple[Tensor, Tensor], n_max: int, positive: bool
) -> tuple[Tensor, Tensor]:
    """Moves each level in turn to where the others put it, if that lowers the error, five times; returns levels, scale.

    `sums` are those of w * x * l and w * l * l. Levels are -n_max to n_max - 1; `positive` ones at most n_max, and kept
    in a uint8_t. C stops after a pass that changes nothing in a block; here that pass is repeated and changes nothing.
    """
    sum_xl, sum_l2 = sums
    lowest, highest = (None, n_max) if positive else (-n_max, n_max - 1)
    kept = list(levels.unbind(0))
    for _ in range(5):
        for i, (x, weight, level) in enumerate(zip(values.unbind(0), weights.unbind(0), kept, strict=True)):
            weighted = weight * x
            new_xl = sum_xl - weighted * level
            new_l2 = sum_l2 - weight * level * level
            possible = (new_xl > 0) & (new_l2 > 0) if positive else new_xl > 0
            integer = nearest(x * new_l2 / new_xl).clamp_(lowest, highest)
            new_level = integer.to(torch.float32)
            possible &= new_level != level
            new_xl = new_xl + weighted * new_level
            new_l2 = new_l2 + weight * new_level * new_level
            if not positive:
                possible &= new_l2 > 0
            better = possible & (new_xl * new_xl * sum_l2 > sum_xl * sum_xl * new_l2)
            kept[i] = torch.where(better, wrapped_byte(integer).to(torch.float32) if positive else new_level, level)
            sum_xl = torch.where(better, new_xl, sum_xl)
            sum_l2 = torch.where(better, new_l2, sum_l2)
    return torch.stack(kept), torch.where(sum_l2 > 0, sum_xl / sum_l2, 0.0)


def refined_fit(values: Tensor, n_max: int) -> tuple[Tensor, Tensor]:
    """Scale of x ~ scale * (level - n_max), and the levels as uint8, of blocks weighted by x * x.

    make_q3_quants with `do_rmse`: the levels under -n_max / (the value of largest magnitude), then each moved in turn.
    A block that counts as zeros has the scale 0 and levels of 0.
    """
    extreme, largest = extreme_of(values)
    weights = values * values
    levels = nearest_between(values * quotient(-n_max, extreme), -n_max, n_max - 1)
    sums = _symmetric_sums(values, weights, levels)
    levels, scale = _refine(values, weights, levels, sums, n_max, positive=False)
    none = largest < GROUP_MAX_EPS
    return torch.where(none, 0.0, scale), _from_zero(levels, none, n_max)


def positive_fit(values: Tensor, weights: Tensor, n_max: int) -> tuple[Tensor, Tensor]:
    """Scale of x ~ scale * level for a super-block's scales or minimums, and the levels as int32: make_qp_quants.

    Levels are at most n_max; those below 0, which degenerate blocks have, are what C's uint8_t holds of them.
    """
    largest = torch.zeros_like(values[0])
    for value in values.unbind(0):
        largest = torch.where(largest > value, largest, value)
    none = largest < GROUP_MAX_EPS

    def error(scale: Tensor, levels: Tensor) -> Tensor:
        difference = values - levels.to(torch.float32) * scale
        return ordered_sum(weights * difference * difference)

    factor = quotient(n_max, largest)
    best_error = error(quotient(1, factor), wrapped_byte(nearest(values * factor)))  # not limited to n_max, as in C
    for i in (*range(-4, 0), *range(1, 5)):
        new_factor = quotient(float(np.float32(0.1) * np.float32(i) + np.float32(n_max)), largest)
        new_error = error(quotient(1, new_factor), nearest(values * new_factor).clamp_(max=n_max))
        better = new_error < best_error
        best_error = torch.where(better, new_error, best_error)
        factor = torch.where(better, new_factor, factor)
    integers = nearest(values * factor).clamp_(max=n_max)
    sums = _symmetric_sums(values, weights, integers.to(torch.float32))
    levels, scale = _refine(values, weights, wrapped_byte(integers).to(torch.float32), sums, n_max, positive=True)
    return torch.where(none, 0.0, scale), torch.where(none, 0.0, levels).to(torch.int32)
