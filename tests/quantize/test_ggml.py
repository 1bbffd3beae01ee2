"""The binding to ggml's encoders and decoders."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from zephyr_local.quantize.kernels import ggml
from zephyr_local.quantize.types import TensorType

QUANTIZED = [kind for kind in TensorType if kind.is_quantized]


@pytest.mark.parametrize("kind", TensorType)
def test_decoded_weights_are_ggufs_to_the_bit(kind: TensorType) -> None:
    """Random bytes, so that every code and every finite scale comes, also those that no encoder would write."""
    raw = np.random.default_rng(0).integers(0, 256, kind.size_bytes(3 * 512 * 64), dtype=np.uint8)
    halves = raw.view("<u2").reshape(-1, kind.block_bytes // 2)
    exponent = 0x7F80 if kind in (TensorType.BF16, TensorType.F32) else 0x7C00
    halves[(halves & exponent) == exponent] &= ~np.uint16(0x0400)  # NaN and infinity compare by no rule
    before = raw.copy()
    found = ggml.decode(kind, raw, 512)
    expected = gguf.quants.dequantize(raw.reshape(3 * 64, -1), gguf.GGMLQuantizationType[kind.name])
    assert found.shape == (3 * 64, 512)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.uint32), expected.astype(np.float32).view(np.uint32))
    found[:] = 0
    np.testing.assert_array_equal(raw, before)  # a copy, whatever the type


@pytest.mark.parametrize("kind", QUANTIZED)
def test_importance_moves_the_errors_to_where_they_count_less(kind: TensorType) -> None:
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((64, 512), dtype=np.float32)
    importance = np.where(np.arange(512) % 8 == 0, 100, 1).astype(np.float32)

    def error(weights: np.ndarray | None) -> float:
        decoded = ggml.decode(kind, ggml.encode(kind, rows, weights), 512)
        return float(((decoded - rows) ** 2 * importance).sum())

    if kind is TensorType.Q8_0:  # it is fine enough without
        assert error(importance) == error(None)
    else:
        assert error(importance) < error(None)


@pytest.mark.parametrize("kind", QUANTIZED)
@pytest.mark.parametrize("weight", [0.0, 1e-40, 1e30, 3e38])
def test_no_importance_ends_the_process(kind: TensorType, weight: float) -> None:
    """Absurd weights may give scales that is_valid refuses, but never a crash; weights of 0 give good ones."""
    rows = np.random.default_rng(0).standard_normal((4, 512), dtype=np.float32)
    encoded = ggml.encode(kind, rows, np.full(512, weight, dtype=np.float32))
    assert ggml.is_valid(kind, encoded) or weight > 1


@pytest.mark.parametrize(
    "importance",
    [np.ones(511, np.float32), np.ones(512, np.float64), np.ones((512, 1), np.float32), np.ones(1024, np.float32)[::2]],
)
def test_importance_that_ggml_would_misread_is_refused(importance: np.ndarray) -> None:
    with pytest.raises(AssertionError):
        ggml.encode(TensorType.Q4_K, np.ones((1, 512), np.float32), importance)


def test_a_part_of_a_row_is_not_decoded() -> None:
    with pytest.raises(AssertionError):
        ggml.decode(TensorType.Q4_K, np.zeros(144, np.uint8), 512)
