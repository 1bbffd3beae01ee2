"""The K-quants and Q8_0, encoded by a torch device such as a CUDA one: ggml's bytes, without a kernel of our own.

After ggml/src/ggml-quants.c of llama.cpp 0c1e57098: quantize_row_q*_K_ref without importance, quantize_row_q*_K_impl
with it, quantize_row_q8_0_ref. The blocks' layouts are those of ggml/src/ggml-common.h.

Super-blocks lie in the last dimension throughout: weights are (size, n_sub_blocks, n_blocks), what belongs to a
sub-block is (n_sub_blocks, n_blocks), what belongs to a super-block is (n_blocks,). Only the packers have blocks first.

Importing this needs torch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zephyr_local.errors import EngineError, InvalidInputError
from zephyr_local.quantize.kernels.devices import parse_device
from zephyr_local.quantize.kernels.ggml import require_encodable
from zephyr_local.quantize.kernels.torch_search import (
    GROUP_MAX_EPS,
    Ranges,
    affine_fit,
    extreme_of,
    largest_of,
    nearest,
    nearest_between,
    ordered_sum,
    over,
    positive_fit,
    quotient,
    refined_fit,
    square_root,
    symmetric_fit,
    wrapped_byte,
)
from zephyr_local.quantize.types import TensorType

CHUNK_WEIGHTS = 1 << 22
"""Weights that are encoded at once. Each takes up to 42 bytes of the device's memory, and an allocator some more."""
_CHUNK_MIB: Final = 256
_SUPER_BLOCK: Final = 256
_NAN_HALF: Final = -0x200  # 0xFE00 as int16: of the NaN that x86-64 makes; CUDA's would have other bits
_ONE_AT_A_TIME: Final = threading.Lock()
"""Threads would only wait for each other, for Python starts every operation, and take the memory several times."""


def open_device(name: str) -> torch.device:
    """The device of that name: `cpu`, `cuda`, `cuda:1`, or `mps`; raises InvalidInputError where it cannot be had."""
    kind, number = parse_device(name)
    if kind == "cpu":
        return torch.device("cpu")
    if kind == "mps":
        if not torch.backends.mps.is_available():
            raise InvalidInputError("torch finds no Metal device", "Use the CPU")
        device = torch.device("mps")
    else:
        n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if n_devices == 0:
            raise InvalidInputError(
                "torch finds no CUDA device", "Use the CPU, or install a torch and a driver that fit the device"
            )
        index = torch.cuda.current_device() if number is None else number
        if index >= n_devices:
            raise InvalidInputError(
                f"there is no device {name}: torch finds {n_devices}", f"Use cuda:0 to cuda:{n_devices - 1}, or the CPU"
            )
        device = torch.device("cuda", index)
    try:
        torch.zeros(1, device=device).add_(1).cpu()
    except (RuntimeError, AssertionError) as error:  # a card too old for this torch, or one in another's hands
        raise InvalidInputError(f"the device {name} cannot be used ({error})", "Use the CPU") from error
    return device


def encode(
    kind: TensorType, rows: NDArray[np.float32], importance: NDArray[np.float32] | None, device: torch.device
) -> NDArray[np.uint8]:
    """Encodes float32 rows, shape (n_rows, n_columns); returns the bytes. The columns must be whole blocks.

    `importance`, shape (n_columns,), finite and not negative, weighs each column's errors against the others'. Raises
    EngineError where the device's memory does not suffice, or the device fails.
    """
    require_encodable(kind, rows, importance)
    encode_blocks = _ENCODERS[kind]
    blocks = rows.reshape(-1, kind.block_weights)
    of_columns = None if importance is None or kind is TensorType.Q8_0 else importance.reshape(-1, kind.block_weights)
    encoded = np.empty((blocks.shape[0], kind.block_bytes), dtype=np.uint8)
    n_together = max(1, CHUNK_WEIGHTS // kind.block_weights)
    for first in range(0, blocks.shape[0], n_together):
        chunk = blocks[first : first + n_together]
        weights = None
        if of_columns is not None:  # the blocks of a row follow each other, then those of the next row
            weights = of_columns[np.arange(first, first + chunk.shape[0]) % of_columns.shape[0]]
        try:
            with _ONE_AT_A_TIME, torch.inference_mode():
                packed = encode_blocks(
                    # Copied, because torch warns of arrays that may not be written.
                    torch.from_numpy(chunk.copy()).to(device),
                    None if weights is None else torch.from_numpy(weights).to(device),
                )
                encoded[first : first + n_together] = packed.cpu().numpy()
        except torch.OutOfMemoryError as error:
            raise EngineError(
                f"{device} has too little free memory to encode, which takes about {_CHUNK_MIB} MiB",
                "Leave out --device, or end what else uses that memory",
            ) from error
        except RuntimeError as error:  # an operation that the device has not, a driver that failed
            raise EngineError(f"{device} cannot encode {kind.name} ({error})", "Leave out --device") from error
    return encoded.reshape(-1)


def _by_position(blocks: Tensor, size: int) -> Tensor:
    """Super-blocks, (n_blocks, 256), as (size, n_sub_blocks, n_blocks)."""
    return blocks.view(blocks.shape[0], -1, size).permute(2, 1, 0).contiguous()


def _by_block(levels: Tensor) -> Tensor:
    """The reverse."""
    return levels.permute(2, 1, 0).reshape(levels.shape[2], -1)


def _to_half(values: Tensor) -> tuple[Tensor, Tensor]:
    """Each as the two bytes of a float16, (n_blocks, 2), and the float32 that a decoder reads from them."""
    bits = torch.where(values.isnan(), _NAN_HALF, values.to(torch.float16).view(torch.int16))
    return bits.unsqueeze(1).view(torch.uint8), bits.view(torch.float16).to(torch.float32)


def _sum_of_squares(values: Tensor) -> Tensor:
    """Of each super-block, weight by weight: (size, n_sub_blocks, n_blocks) to (n_blocks,)."""
    return ordered_sum((values * values).transpose(0, 1).flatten(0, 1))


def _importance_weights(values: Tensor, importance: Tensor, factor: float) -> Tensor:
    """With importance, an error weighs importance * sqrt(sigma2 + x * x), sigma2 `factor` times the mean of x * x."""
    # 256 is a power of two, so that dividing by it and multiplying by its reciprocal are the same.
    sigma2 = _sum_of_squares(values) * factor / _SUPER_BLOCK
    return square_root((values * values).add_(sigma2)).mul_(importance)


@dataclass(frozen=True, slots=True)
class _Affine:
    """A type whose sub-blocks have a scale and a minimum: x ~ d * scale * level - d_min * minimum."""

    size: int
    n_max: int  # largest level
    top: int  # largest scale and minimum
    ranges: Ranges  # without importance
    absolute: bool  # without importance, whether the error is not squared
    clamps: bool  # with importance, whether a degenerate super-block's scales are limited to `top`
    sigma2_factor: float


_Q2_K: Final = _Affine(16, 3, 15, Ranges(-0.5, 0.1, 15), absolute=True, clamps=False, sigma2_factor=1.0)
_Q4_K: Final = _Affine(32, 15, 63, Ranges(-1.0, 0.1, 20), absolute=False, clamps=False, sigma2_factor=2.0)
_Q5_K: Final = _Affine(32, 31, 63, Ranges(-0.5, 0.1, 15), absolute=False, clamps=True, sigma2_factor=2.0)
_WEIGHTED_RANGES: Final = Ranges(-0.9, 0.05, 36)


@dataclass(frozen=True, slots=True)
class _AffineBlocks:
    """What is found for super-blocks: scales and minimums as they are stored, and levels that may be stored."""

    d: Tensor  # (n_blocks,)
    d_min: Tensor
    scales: Tensor  # (n_sub_blocks, n_blocks), int32, a byte
    minimums: Tensor
    levels: Tensor  # (size, n_sub_blocks, n_blocks), uint8


def _find_plain(form: _Affine, values: Tensor) -> _AffineBlocks:
    """Without importance: each sub-block searched alone, then its scale and minimum rounded under the largest."""
    weights = values.abs()
    if not form.absolute:  # Q2_K weighs an error by |x| alone, the others by |x| plus the root mean square
        weights += square_root(ordered_sum(values * values) / form.size)  # the size is a power of two
    fit = affine_fit(values, weights, form.n_max, form.ranges, form.absolute)
    stored = []
    for found in (fit.scale, fit.minimum):
        largest = largest_of(found)
        inverse = torch.where(largest > 0, quotient(form.top, largest), 0.0)
        rounded = wrapped_byte(nearest(found * inverse))
        stored.append((over(largest, form.top), rounded if form is _Q2_K else rounded.clamp_(max=form.top)))
    (d, scales), (d_min, minimums) = stored
    return _AffineBlocks(d, d_min, scales, minimums, fit.levels)


def _find_weighted(form: _Affine, values: Tensor, importance: Tensor) -> _AffineBlocks:
    """With importance: the rounding of scales and minimums is searched too, weighing each sub-block by its weights."""
    weights = _importance_weights(values, importance, form.sigma2_factor)
    fit = affine_fit(values, weights, form.n_max, _WEIGHTED_RANGES)
    sum_w = ordered_sum(weights)
    found = torch.stack([fit.scale, fit.minimum], dim=1)  # (n_sub_blocks, 2, n_blocks): both searched side by side
    d, rounded = positive_fit(found, sum_w.unsqueeze(1), form.top)
    if form.clamps:
        rounded.clamp_(max=form.top)
    return _AffineBlocks(d[0], d[1], rounded[:, 0], rounded[:, 1], fit.levels)


def _encode_affine(form: _Affine, blocks: Tensor, importance: Tensor | None) -> Tensor:
    """The bytes of super-blocks of Q4_K, Q5_K or Q2_K, (n_blocks, block_bytes).

    Q4_K, 144 bytes: d 2, d_min 2, scales 12, low bits of levels 128
    Q5_K, 176 bytes: d 2, d_min 2, scales 12, fifth bits of levels 32, low bits of levels 128
    Q2_K,  84 bytes: scales 16 (bits 0-3 scale, bits 4-7 minimum), levels 64, d 2, d_min 2
    """
    values = _by_position(blocks, form.size)
    if importance is None:
        found = _find_plain(form, values)
    else:
        found = _find_weighted(form, values, _by_position(importance, form.size))
    d_bytes, d = _to_half(found.d)
    d_min_bytes, d_min = _to_half(found.d_min)
    if form is _Q2_K:
        packed_scales = (found.scales | (found.minimums << 4)).to(torch.uint8).T
        scales, minimums = (packed_scales & 0xF).T, (packed_scales >> 4).T
    else:
        packed_scales = _pack_scales_k4(found.scales.to(torch.uint8).T, found.minimums.to(torch.uint8).T)
        scales, minimums = (stored.T for stored in _unpack_scales_k4(packed_scales))
    scale, minimum = d * scales.to(torch.float32), d_min * minimums.to(torch.float32)
    rounded = nearest_between((values + minimum).div_(scale), 0, form.n_max).to(torch.uint8)
    levels = _by_block(torch.where(scale != 0, rounded, found.levels))  # C: `if (!d) continue`
    if form is _Q2_K:
        return torch.cat([packed_scales, _pack_pairs(levels), d_bytes, d_min_bytes], dim=1)
    fifth_bits = [_pack_high_bits(levels, 4)] if form is _Q5_K else []
    return torch.cat([d_bytes, d_min_bytes, packed_scales, *fifth_bits, _pack_nibbles(levels)], dim=1)


def _signed_levels(values: Tensor, scale: Tensor, searched: Tensor, n_max: int) -> Tensor:
    """Levels from 0 up, (n_blocks, 256), under the stored scales; where one is 0, C leaves those of the search."""
    rounded = nearest_between(values / scale, -n_max, n_max - 1).add_(n_max).to(torch.uint8)
    return _by_block(torch.where(scale != 0, rounded, searched))


def _signed_byte(integers: Tensor) -> Tensor:
    """What C's int8_t holds of each int32."""
    return integers.bitwise_and(0xFF).bitwise_xor_(0x80).sub_(0x80)


def _encode_q6(blocks: Tensor, importance: Tensor | None) -> Tensor:
    """The bytes of super-blocks of Q6_K, (n_blocks, 210): levels 192 (_pack_q6), scales 16 (int8), d 2."""
    values = _by_position(blocks, 16)
    weights = values * values if importance is None else _by_position(importance, 16)
    found, searched = symmetric_fit(values, weights, 32)
    extreme, largest = extreme_of(found)
    inverse = quotient(-128, extreme)
    d_bytes, d = _to_half(quotient(1, inverse))
    scales = _signed_byte(nearest(found * inverse).clamp_(max=127))
    levels = _signed_levels(values, d * scales.to(torch.float32), searched, 32)
    packed = torch.cat([_pack_q6(levels), scales.to(torch.int8).T.contiguous().view(torch.uint8), d_bytes], dim=1)
    return torch.where((largest < GROUP_MAX_EPS).unsqueeze(1), 0, packed)


def _encode_q3(blocks: Tensor, importance: Tensor | None) -> Tensor:
    """The bytes of super-blocks of Q3_K, (n_blocks, 110): third bits of levels 32, low bits 64, scales 12, d 2.

    Scales are six bits, 32 more than their value.
    """
    values = _by_position(blocks, 16)
    if importance is None:
        found, searched = refined_fit(values, 4)
        extreme, _ = extreme_of(found)
        inverse = quotient(-32, extreme)
        rounded = _signed_byte(nearest(found * inverse)).clamp_(-32, 31).add_(32)
        scales = torch.where(extreme != 0, rounded, 0).to(torch.uint8)
        d_bytes, d = _to_half(torch.where(extreme != 0, quotient(1, inverse), 0.0))
    else:
        weights = _importance_weights(values, _by_position(importance, 16), 2.0)
        found, searched = symmetric_fit(values, weights, 4)
        d_found, scales = symmetric_fit(found, ordered_sum(weights), 32)
        d_bytes, d = _to_half(d_found)
    levels = _signed_levels(values, d * (scales.to(torch.float32) - 32), searched, 4)
    return torch.cat([_pack_high_bits(levels, 2), _pack_pairs(levels), _pack_scales_q3(scales.T), d_bytes], dim=1)


def _encode_q8_0(blocks: Tensor, importance: Tensor | None) -> Tensor:
    """The bytes of blocks of 32 weights, (n_blocks, 34): d 2, levels 32 (int8); importance changes nothing."""
    values = blocks.T.contiguous()
    d = over(largest_of(values.abs()), 127)
    inverse = torch.where(d != 0, quotient(1, d), 0.0)
    scaled = values * inverse
    towards_zero = scaled.trunc()
    is_half = (scaled - towards_zero).abs_() >= 0.5  # the difference is exact
    rounded = towards_zero + torch.where(is_half, scaled.sign(), 0.0)  # roundf: halves away from zero
    # A d so small that its inverse is infinite makes every product infinite or NaN, which C's int8_t holds as 0.
    levels = torch.where(rounded.isfinite(), rounded, 0.0).to(torch.int8)
    return torch.cat([_to_half(d)[0], levels.T.contiguous().view(torch.uint8)], dim=1)


def _pack_scales_k4(scales: Tensor, minimums: Tensor) -> Tensor:
    """Eight scales s and minimums m of six bits, (n_blocks, 8), into the twelve bytes that Q4_K and Q5_K share.

    byte 0-3    bits 0-5: s[0-3]    bits 6-7: high bits of s[4-7]
    byte 4-7    bits 0-5: m[0-3]    bits 6-7: high bits of m[4-7]
    byte 8-11   bits 0-3: low bits of s[4-7]    bits 4-7: low bits of m[4-7]
    """
    high_scales = scales[:, :4] | ((scales[:, 4:] >> 4) << 6)
    high_minimums = minimums[:, :4] | ((minimums[:, 4:] >> 4) << 6)
    low = (scales[:, 4:] & 0xF) | ((minimums[:, 4:] & 0xF) << 4)
    return torch.cat([high_scales, high_minimums, low], dim=1)


def _unpack_scales_k4(packed: Tensor) -> tuple[Tensor, Tensor]:
    """What a decoder reads from those twelve bytes (get_scale_min_k4); a scale above 63 has run into its neighbour."""
    high_scales, high_minimums, low = packed.chunk(3, dim=1)
    scales = torch.cat([high_scales & 63, (low & 0xF) | ((high_scales >> 6) << 4)], dim=1)
    minimums = torch.cat([high_minimums & 63, (low >> 4) | ((high_minimums >> 6) << 4)], dim=1)
    return scales, minimums


def _pack_scales_q3(scales: Tensor) -> Tensor:
    """Sixteen scales s of six bits, (n_blocks, 16), into the twelve bytes of Q3_K.

    byte 0-7     bits 0-3: low bits of s[0-7]    bits 4-7: low bits of s[8-15]
    byte 8-11    bits 2 q and 2 q + 1 of byte 8 + r: high bits of s[4 q + r], q from 0 to 3
    """
    low = (scales[:, :8] & 0xF) | ((scales[:, 8:] & 0xF) << 4)
    return torch.cat([low, _four_pairs(scales >> 4)], dim=1)


def _four_pairs(pairs: Tensor) -> Tensor:
    """Two bits each, (n_blocks, 4 n), into n bytes: byte l, bits 2 j and 2 j + 1: those of n j + l."""
    a, b, c, d = pairs.chunk(4, dim=1)
    return a | (b << 2) | (c << 4) | (d << 6)


def _pack_nibbles(levels: Tensor) -> Tensor:
    """Low four bits of levels, (n_blocks, 256), into 128 bytes, in four runs of 32 bytes for 64 levels each.

    byte 32 r + l    bits 0-3: level 64 r + l    bits 4-7: level 64 r + 32 + l
    """
    low, high = (levels & 0xF).view(-1, 4, 2, 32).unbind(2)
    return (low | (high << 4)).flatten(1)


def _pack_pairs(levels: Tensor) -> Tensor:
    """Low two bits of levels, (n_blocks, 256), into 64 bytes, in two runs of 32 bytes for 128 levels each.

    byte 32 r + l    bits 2 j and 2 j + 1: level 128 r + 32 j + l, j from 0 to 3
    """
    first, second = (levels & 3).chunk(2, dim=1)
    return torch.cat([_four_pairs(first), _four_pairs(second)], dim=1)


def _pack_high_bits(levels: Tensor, bit: int) -> Tensor:
    """One bit of each level, (n_blocks, 256), into 32 bytes: byte l, bit j: of level 32 j + l."""
    packed = torch.zeros_like(levels[:, :32])
    for j, run in enumerate(levels.chunk(8, dim=1)):
        packed |= ((run >> bit) & 1) << j
    return packed


def _pack_q6(levels: Tensor) -> Tensor:
    """Levels of six bits, (n_blocks, 256), into the first 192 bytes of Q6_K: low bits, then high, each in two runs.

    byte 64 r + l, l < 64     bits 0-3: low bits of level 128 r + l    bits 4-7: of level 128 r + 64 + l
    byte 128 + 32 r + l       bits 2 j and 2 j + 1: high bits of level 128 r + 32 j + l, j from 0 to 3
    """
    low, high = (levels & 0xF).view(-1, 2, 2, 64).unbind(2)
    return torch.cat([(low | (high << 4)).flatten(1), _pack_pairs(levels >> 4)], dim=1)


def _affine_encoder(form: _Affine) -> Callable[[Tensor, Tensor | None], Tensor]:
    return lambda blocks, importance: _encode_affine(form, blocks, importance)


_ENCODERS: Final[dict[TensorType, Callable[[Tensor, Tensor | None], Tensor]]] = {
    TensorType.Q4_K: _affine_encoder(_Q4_K),
    TensorType.Q5_K: _affine_encoder(_Q5_K),
    TensorType.Q2_K: _affine_encoder(_Q2_K),
    TensorType.Q6_K: _encode_q6,
    TensorType.Q3_K: _encode_q3,
    TensorType.Q8_0: _encode_q8_0,
}
KINDS: Final = frozenset(_ENCODERS)
"""What a device encodes."""
