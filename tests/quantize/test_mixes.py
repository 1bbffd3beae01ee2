"""The rules alone, without weights: order, fall-backs, and who is counted."""

from __future__ import annotations

import random

import pytest

from zephyr_local.quantize.mixes import ModelFacts, TensorShape, choose_types, fallback_type, file_order
from zephyr_local.quantize.types import FileType, TensorType


def test_file_order_counts_layers_as_numbers() -> None:
    names = ["blk.10.attn_v.weight", "token_embd.weight", "blk.2.ffn_up.weight", "blk.2.attn_k.weight", "output.weight"]
    assert sorted(names, key=file_order) == [
        "output.weight",
        "token_embd.weight",
        "blk.2.attn_k.weight",
        "blk.2.ffn_up.weight",
        "blk.10.attn_v.weight",
    ]


@pytest.mark.parametrize(
    ("wanted", "columns", "stored"),
    [
        (TensorType.Q4_K, 512, TensorType.Q4_K),
        (TensorType.Q4_K, 288, TensorType.Q5_0),
        (TensorType.Q5_K, 288, TensorType.Q5_1),
        (TensorType.Q6_K, 288, TensorType.Q8_0),
        (TensorType.Q6_K, 272, TensorType.F16),
        (TensorType.Q8_0, 272, TensorType.F16),
    ],
)
def test_fall_backs(wanted: TensorType, columns: int, stored: TensorType) -> None:
    assert fallback_type(wanted, columns) is stored


def tensors_of(n_layers: int) -> list[TensorShape]:
    tensors = [TensorShape("token_embd.weight", (512, 256)), TensorShape("output.weight", (512, 256))]
    for layer in range(n_layers):
        tensors += [TensorShape(f"blk.{layer}.{name}.weight", (256, 256)) for name in ("attn_q", "attn_v", "ffn_down")]
        tensors.append(TensorShape(f"blk.{layer}.attn_norm.weight", (256,)))
    return tensors


def test_q4_k_m_of_32_layers_is_the_known_mix() -> None:
    """Layers 0-3, 28-31 and each third between get Q6_K for their values and their down projection."""
    tensors = tensors_of(32)
    random.Random(0).shuffle(tensors)  # the order of the source must not matter
    types = choose_types(tensors, FileType.Q4_K_M, ModelFacts(32, 32, 8))
    finer = [layer for layer in range(32) if types[f"blk.{layer}.attn_v.weight"] is TensorType.Q6_K]
    assert finer == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert finer == [layer for layer in range(32) if types[f"blk.{layer}.ffn_down.weight"] is TensorType.Q6_K]
    assert types["output.weight"] is TensorType.Q6_K
    assert types["token_embd.weight"] is TensorType.Q4_K
    assert types["blk.5.attn_q.weight"] is TensorType.Q4_K
    assert types["blk.5.attn_norm.weight"] is TensorType.F32


@pytest.mark.parametrize("kind", TensorType)
def test_numbers_and_blocks_are_ggufs(kind: TensorType) -> None:
    import gguf

    number = gguf.GGMLQuantizationType[kind.name]
    assert kind.ggml_id == number
    assert (kind.block_weights, kind.block_bytes) == gguf.GGML_QUANT_SIZES[number]
    assert TensorType.from_ggml(kind.ggml_id) is kind


@pytest.mark.parametrize("file_type", FileType)
def test_file_types_are_ggufs(file_type: FileType) -> None:
    import gguf

    assert any(
        member.value == file_type.ftype and member.name.endswith(file_type.name) for member in gguf.LlamaFileType
    )
