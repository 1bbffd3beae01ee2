"""Checkpoints that are refused: each message names the thing and the remedy, and no output appears."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoint_builder import (
    ModelShape,
    build_checkpoint,
    change_json,
    pack_safetensors,
    read_tensors,
    rewrite_tensors,
    sentencepiece_model,
    write_json,
)
from zephyr_local.convert.hf_to_gguf import ConvertOptions, convert_checkpoint
from zephyr_local.errors import CheckpointError, InvalidInputError, ModelFileError, OutputError
from zephyr_local.quantize import gguf_output
from zephyr_local.quantize.types import FileType

SHAPE = ModelShape(n_layers=1, ffn_size=256)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return build_checkpoint(tmp_path / "checkpoint", SHAPE)


def refuse(checkpoint: Path, match: str, file_type: FileType = FileType.Q4_K_M) -> CheckpointError:
    folder = checkpoint.parent / "out"
    folder.mkdir()
    with pytest.raises(CheckpointError, match=match) as caught:
        convert_checkpoint(checkpoint, folder / "model.gguf", file_type)
    assert list(folder.iterdir()) == []
    assert not caught.value.problem.endswith(".")
    assert not caught.value.remedy.endswith(".")
    return caught.value


def edit_tensor(checkpoint: Path, name: str, change: Callable[[np.ndarray], None]) -> None:
    path = checkpoint / "model.safetensors"
    tensors = read_tensors(path)
    change(tensors[name][1])
    rewrite_tensors(path, tensors)


# --- the folder and its files


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    refuse(tmp_path / "nowhere", "does not exist")


def test_a_file_instead_of_a_folder(checkpoint: Path) -> None:
    refuse_path = checkpoint / "model.safetensors"
    with pytest.raises(ModelFileError, match=r"looks like safetensors\. Convert its folder"):
        convert_checkpoint(refuse_path, checkpoint.parent / "x.gguf", FileType.F16)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pth", "model.pt"])
def test_a_pickle(checkpoint: Path, name: str) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / name)
    error = refuse(checkpoint, f"pickles only.*{name}.*runs its code")
    assert "safe_serialization" in error.remedy


def test_a_training_argument_pickle_beside_the_weights_is_ignored(checkpoint: Path) -> None:
    (checkpoint / "training_args.bin").write_bytes(b"\x80\x02")
    convert_checkpoint(checkpoint, checkpoint.parent / "x.gguf", FileType.F16)


def test_no_weights(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    refuse(checkpoint, "has no model.safetensors")


def test_an_adapter(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "adapter_model.safetensors")
    write_json(checkpoint / "adapter_config.json", {})
    assert "peft" in refuse(checkpoint, "adapter_config.json").remedy


# --- config.json


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "the architecture is GPT2LMHeadModel"),
        ({"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM"),
        ({"architectures": None, "model_type": "phi"}, "the architecture is phi"),
        ({"attention_bias": True}, "attention_bias is true"),
        ({"mlp_bias": True}, "mlp_bias is true"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "already quantized.*gptq"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope scaling 'llama3'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope scaling 'dynamic'"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "rope scaling 'longrope'"),
        ({"rope_scaling": {"type": "linear"}}, "factor is None"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "original_max_position_embeddings"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_theta": -1.0}, "rope_theta is -1.0"),
        ({"rope_theta": float("nan")}, "rope_theta is nan"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers is '2'"),
        ({"num_hidden_layers": 100000}, "num_hidden_layers is 100000"),
        ({"num_key_value_heads": 3}, "no multiple of num_key_value_heads, 3"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"head_dim": 33}, "head_dim is 33"),
        ({"vocab_size": 600}, "vocab_size does not match the embedding"),
        ({"intermediate_size": 512}, r"has shape \[.*and config.json means"),
        ({"num_hidden_layers": 2}, "lacks model.layers.1.input_layernorm.weight.*and 6 more"),
    ],
)
def test_config(checkpoint: Path, changes: dict[str, object], match: str) -> None:
    change_json(checkpoint / "config.json", **changes)
    refuse(checkpoint, match)


def test_config_that_is_no_json(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text('{"architectures": [')
    refuse(checkpoint, "config.json is not valid JSON")


def test_config_missing(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()
    refuse(checkpoint, "has no config.json")


# --- safetensors


def test_a_truncated_shard(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "download it again" in refuse(checkpoint, "model.safetensors is truncated").remedy


@pytest.mark.parametrize("length", [0, 5, 8, 40])
def test_a_shard_cut_in_its_header(checkpoint: Path, length: int) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    refuse(checkpoint, "too short for a safetensors file|ends inside its header")


def test_bytes_after_the_last_tensor(checkpoint: Path) -> None:
    with (checkpoint / "model.safetensors").open("ab") as file:
        file.write(b"\0" * 10)
    refuse(checkpoint, "10 bytes after its last tensor")


def test_a_git_lfs_pointer(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    assert "git lfs pull" in refuse(checkpoint, "Git LFS pointer").remedy


def entry(begin: int, end: int, shape: list[int] | None = None, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "match"),
    [
        ({"a": entry(0, 8), "b": entry(4, 12)}, "b overlaps"),
        ({"a": entry(0, 8), "b": entry(12, 16)}, "b leaves a gap"),
        ({"a": entry(0, 8, [3])}, r"gives 'a' 8 bytes, but F32 of shape \[3\] takes 12"),
        ({"a": entry(0, 1 << 60, [1 << 58])}, "truncated"),
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, "describes the tensor 'a' wrongly"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, "wrongly"),
        ({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, "wrongly"),
        ({"a": {"shape": [1], "data_offsets": [0, 4]}}, "wrongly"),
        ({"a": 7}, "wrongly"),
    ],
)
def test_a_lying_header(checkpoint: Path, header: dict[str, object], match: str) -> None:
    (checkpoint / "model.safetensors").write_bytes(pack_safetensors(header, b"\0" * 16))
    refuse(checkpoint, match)


@pytest.mark.parametrize(
    ("head", "match"),
    [
        (struct.pack("<Q", 1 << 40), "claims a header of 1099511627776 bytes"),
        (struct.pack("<Q", 10) + b"{" * 10, "not valid JSON"),
        (struct.pack("<Q", 5000) + b"[" * 5000, "not valid JSON"),
        (struct.pack("<Q", 4) + b"\xff\xfe{}", "not valid JSON"),
        (struct.pack("<Q", 2) + b"[]", "not a JSON object"),
    ],
)
def test_a_broken_header(checkpoint: Path, head: bytes, match: str) -> None:
    (checkpoint / "model.safetensors").write_bytes(head)
    refuse(checkpoint, match)


def test_a_name_twice_in_a_header(checkpoint: Path) -> None:
    text = (
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    )
    (checkpoint / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 4)
    refuse(checkpoint, "twice")


# --- tensors


def change_tensors(checkpoint: Path, change: Callable[[dict[str, tuple[str, np.ndarray]]], None]) -> None:
    path = checkpoint / "model.safetensors"
    tensors = read_tensors(path)
    change(tensors)
    rewrite_tensors(path, tensors)


def test_missing_tensors(checkpoint: Path) -> None:
    change_tensors(checkpoint, lambda tensors: [tensors.pop(n) for n in list(tensors) if "mlp" in n] and None)
    refuse(checkpoint, "lacks model.layers.0.mlp.gate_proj.weight, .*up_proj.weight, .*down_proj.weight")


def test_a_missing_output_matrix(checkpoint: Path) -> None:
    change_tensors(checkpoint, lambda tensors: tensors.pop("lm_head.weight") and None)
    refuse(checkpoint, "lacks lm_head.weight .or tie_word_embeddings")


def test_an_extra_tensor(checkpoint: Path) -> None:
    bias = ("F32", np.zeros(256, "<f4"))
    change_tensors(checkpoint, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": bias}))
    refuse(checkpoint, "holds model.layers.0.self_attn.q_proj.bias")


def test_a_wrong_type(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header["model.norm.weight"]["dtype"] = "I16"
    path.write_bytes(pack_safetensors(header, raw[8 + length :]))
    refuse(checkpoint, "model.norm.weight is stored as I16")


def test_a_shard_that_the_index_names_is_missing(tmp_path: Path) -> None:
    checkpoint = build_checkpoint(tmp_path / "checkpoint", SHAPE, n_shards=2)
    (checkpoint / "model-00002-of-00002.safetensors").unlink()
    refuse(checkpoint, "names model-00002-of-00002.safetensors, which is not there")


def test_an_index_that_disagrees(tmp_path: Path) -> None:
    checkpoint = build_checkpoint(tmp_path / "checkpoint", SHAPE, n_shards=2)
    index = checkpoint / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = "model-00001-of-00002.safetensors"
    write_json(index, content)
    refuse(checkpoint, "says that model.norm.weight is in model-00001.*it is in model-00002")


def test_an_index_that_leaves_the_folder(tmp_path: Path) -> None:
    checkpoint = build_checkpoint(tmp_path / "checkpoint", SHAPE, n_shards=2)
    write_json(checkpoint / "model.safetensors.index.json", {"weight_map": {"a": "../../etc/model.safetensors"}})
    refuse(checkpoint, "names the shard '../../etc")


def test_the_same_tensor_in_two_shards(checkpoint: Path) -> None:
    shutil.copy(checkpoint / "model.safetensors", checkpoint / "model-2.safetensors")
    (checkpoint / "model.safetensors").rename(checkpoint / "model-1.safetensors")
    refuse(checkpoint, "again in model-2.safetensors")


def test_nan(checkpoint: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    edit_tensor(checkpoint, name, lambda values: values.__setitem__((37, 5), 0x7FC0))
    refuse(checkpoint, f"{name} holds nan at row 37, column 5")


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80])
def test_infinity(checkpoint: Path, bits: int) -> None:
    edit_tensor(checkpoint, "lm_head.weight", lambda values: values.__setitem__((511, 255), bits))
    refuse(checkpoint, "lm_head.weight holds -?inf at row 511, column 255", FileType.BF16)


def test_a_value_that_f16_cannot_hold(checkpoint: Path) -> None:
    edit_tensor(checkpoint, "lm_head.weight", lambda values: values.__setitem__((0, 0), 0xC800))  # -131072
    error = refuse(checkpoint, "magnitude 131072, above F16's largest, 65504", FileType.F16)
    assert "--bf16" in error.remedy
    convert_checkpoint(checkpoint, checkpoint.parent / "x.gguf", FileType.BF16)


def test_values_too_large_for_a_scale(checkpoint: Path) -> None:
    edit_tensor(checkpoint, "lm_head.weight", lambda values: values.__setitem__((0, 0), 0x7F00))  # 1.7e38
    refuse(checkpoint, "lm_head.weight holds values too large for Q8_0", FileType.Q8_0)


def test_a_float32_that_bf16_would_round_to_infinity(tmp_path: Path) -> None:
    checkpoint = build_checkpoint(tmp_path / "checkpoint", SHAPE, dtype="F32")
    edit_tensor(checkpoint, "lm_head.weight", lambda values: values.__setitem__((0, 0), 3.4e38))
    error = refuse(checkpoint, "lm_head.weight holds values too large for BF16", FileType.BF16)
    assert "--f32" in error.remedy


# --- vocabulary


def test_no_tokenizer(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.model").unlink()
    error = refuse(checkpoint, "has no tokenizer.model")
    assert "Copy it from the base model" in error.remedy


def test_a_tokenizer_that_is_no_sentencepiece_model(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.model").write_bytes(b"\x00garbage" * 100)
    refuse(checkpoint, "tokenizer.model cannot be read|has .* byte tokens|same score")


def test_a_tokenizer_with_more_tokens_than_the_embedding(tmp_path: Path) -> None:
    checkpoint = build_checkpoint(tmp_path / "checkpoint", ModelShape(n_layers=1, vocab_size=480))
    (checkpoint / "tokenizer.model").write_bytes(sentencepiece_model(512))
    refuse(checkpoint, "has 512 tokens and the embedding 480 rows")


def test_a_tokenizer_with_far_fewer_tokens(tmp_path: Path) -> None:
    refuse(build_checkpoint(tmp_path / "checkpoint", ModelShape(n_layers=1, vocab_size=2048)), "1536 rows without one")


def test_an_added_token_that_repeats_another(checkpoint: Path) -> None:
    write_json(checkpoint / "added_tokens.json", {"<s>": 300})
    refuse(checkpoint, "the tokens 1 and 300 are both '<s>'")


def test_a_unigram_tokenizer(checkpoint: Path) -> None:
    """llama.cpp would merge its pieces as if they were BPE's, and get other tokens."""
    (checkpoint / "tokenizer.model").write_bytes(sentencepiece_model(512, "unigram"))
    refuse(checkpoint, "tokenizer.model is a unigram model")


def test_scores_that_do_not_vary(checkpoint: Path) -> None:
    path = checkpoint / "tokenizer.model"
    path.write_bytes(_with_equal_scores(path.read_bytes()))
    refuse(checkpoint, "all tokens of tokenizer.model have the same score")


def _with_equal_scores(model: bytes) -> bytes:
    """The pieces (field 1: piece, score, type) with the score of each set to 0."""
    from google.protobuf.internal.decoder import _DecodeVarint  # type: ignore[attr-defined]

    out, position = bytearray(model), 0
    while position < len(model) and model[position] == 0x0A:
        length, position = _DecodeVarint(model, position + 1)
        text_length, inner = _DecodeVarint(model, position + 1)
        inner += text_length
        assert model[inner] == 0x15
        out[inner + 1 : inner + 5] = b"\0\0\0\0"
        position += length
    return bytes(out)


# --- the output


def out_refused(checkpoint: Path, target: Path, match: str, *, overwrite: bool = False) -> None:
    with pytest.raises(OutputError, match=match):
        convert_checkpoint(checkpoint, target, FileType.F16, ConvertOptions(overwrite=overwrite))


def test_an_output_that_exists(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.gguf"
    target.write_text("mine")
    out_refused(checkpoint, target, "exists already.*--overwrite")
    assert target.read_text() == "mine"
    convert_checkpoint(checkpoint, target, FileType.F16, ConvertOptions(overwrite=True))
    assert target.read_bytes()[:4] == b"GGUF"


def test_an_output_that_is_a_dangling_link(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").symlink_to(tmp_path / "nowhere")
    out_refused(checkpoint, tmp_path / "x.gguf", "exists already")


@pytest.mark.parametrize("link", ["symlink", "hardlink", "same"])
def test_an_output_that_is_an_input(checkpoint: Path, tmp_path: Path, link: str) -> None:
    shard = checkpoint / "model.safetensors"
    before = shard.read_bytes()
    target = tmp_path / "x.gguf"
    if link == "symlink":
        target.symlink_to(shard)
    elif link == "hardlink":
        os.link(shard, target)
    else:
        target = shard
    out_refused(checkpoint, target, "is the input", overwrite=True)
    assert shard.read_bytes() == before


def test_a_target_that_is_a_folder(checkpoint: Path, tmp_path: Path) -> None:
    out_refused(checkpoint, tmp_path, "is a folder")


def test_a_target_folder_that_is_missing(checkpoint: Path, tmp_path: Path) -> None:
    out_refused(checkpoint, tmp_path / "a" / "x.gguf", "does not exist")


def test_too_little_disk(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_output.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 1000))
    out_refused(checkpoint, tmp_path / "x.gguf", r"0.00 MB free, and the output needs \d\.\d\d MB")
    assert not (tmp_path / "x.gguf").exists()


def test_what_the_runtime_would_not_load_is_refused_before_the_work(checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").write_text("x" * 100_000)
    refuse(checkpoint, "could not be loaded here: tokenizer.chat_template")


def test_threads_out_of_range() -> None:
    with pytest.raises(InvalidInputError, match="threads is 0"):
        ConvertOptions(threads=0)


def test_a_file_type_that_is_unknown() -> None:
    assert FileType.parse("q4_k_m") is FileType.parse("Q4-K-M") is FileType.Q4_K_M
    with pytest.raises(InvalidInputError, match="'q9' is not a file type"):
        FileType.parse("q9")
