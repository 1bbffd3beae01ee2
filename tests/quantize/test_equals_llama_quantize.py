"""Our files against llama.cpp's own quantizer on the same weights: every tensor's type and every byte."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from tests.checkpoint_builder import ModelShape, build_checkpoint
from tests.quantize.llama_quantize import llama_quantize, require_equal
from zephyr_local.convert.hf_to_gguf import ConvertOptions, convert_checkpoint
from zephyr_local.quantize.types import FileType

SHAPES = {
    # nine layers: the first and last eighth and each third between are all there and all differ
    "grouped heads": ModelShape(n_layers=9),
    "rows of 32s": ModelShape(hidden_size=288, ffn_size=416, n_heads=4, n_kv_heads=2, n_layers=3),
    "rows of 16s": ModelShape(hidden_size=272, ffn_size=400, n_heads=4, n_kv_heads=2, n_layers=2),
    "only some rows of 256s": ModelShape(hidden_size=320, ffn_size=512, n_heads=4, n_kv_heads=4, n_layers=2),
    "tied": ModelShape(n_layers=8, tied=True, architecture="LlamaForCausalLM"),
    "tied, rows of 32s": ModelShape(hidden_size=288, ffn_size=512, n_heads=4, n_kv_heads=2, tied=True),
    "wide heads": ModelShape(hidden_size=256, n_heads=4, n_kv_heads=1, head_dim=128),
}


def convert_both(folder: Path, file_types: list[FileType], shape: ModelShape) -> None:
    checkpoint = build_checkpoint(folder / "checkpoint", shape)
    bf16 = folder / "bf16.gguf"
    convert_checkpoint(checkpoint, bf16, FileType.BF16)
    for file_type in file_types:
        ours, theirs = folder / f"ours-{file_type.name}.gguf", folder / f"theirs-{file_type.name}.gguf"
        convert_checkpoint(checkpoint, ours, file_type, ConvertOptions(threads=2))
        llama_quantize(bf16, theirs, file_type)
        require_equal(ours, theirs)


@pytest.mark.parametrize("name", SHAPES)
def test_all_types_on(name: str, tmp_path: Path) -> None:
    convert_both(tmp_path, list(FileType), SHAPES[name])


def test_the_rule_for_70b_is_its_depth_with_grouped_heads(tmp_path: Path) -> None:
    shape = ModelShape(ffn_size=256, n_layers=80, n_heads=4, n_kv_heads=1, vocab_size=288)
    convert_both(tmp_path, [FileType.Q4_K_M], shape)


def test_the_header_keeps_llama_quantizes_keys(tmp_path: Path) -> None:
    """What llama_model_quantize makes of the keys of our BF16 file is what we write for the other type."""
    checkpoint = build_checkpoint(tmp_path / "checkpoint")
    convert_checkpoint(checkpoint, tmp_path / "bf16.gguf", FileType.BF16)
    convert_checkpoint(checkpoint, tmp_path / "ours.gguf", FileType.Q5_K_M)
    llama_quantize(tmp_path / "bf16.gguf", tmp_path / "theirs.gguf", FileType.Q5_K_M)
    ours, theirs = (
        {key: (field.types, field.contents()) for key, field in gguf.GGUFReader(tmp_path / name).fields.items()}
        for name in ("ours.gguf", "theirs.gguf")
    )
    assert ours == theirs
    assert (tmp_path / "ours.gguf").stat().st_size == (tmp_path / "theirs.gguf").stat().st_size
