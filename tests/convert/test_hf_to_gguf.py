"""What a conversion writes: weights, keys, vocabulary, provenance; whatever way the checkpoint was saved."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.checkpoint_builder import (
    ZEPHYR_TEMPLATE,
    ModelShape,
    as_stored,
    build_checkpoint,
    change_json,
    mistral_sentencepiece_model,
    read_tensors,
    rewrite_tensors,
    with_changes,
    write_json,
)
from zephyr_local import EngineSettings, Zephyr
from zephyr_local.convert.hf_to_gguf import ConvertOptions, Progress, convert_checkpoint, default_target_name
from zephyr_local.convert.rope_permute import interleave_pairs
from zephyr_local.errors import CheckpointError
from zephyr_local.gguf_file import GGUFFile, read_gguf
from zephyr_local.quantize.kernels import ggml
from zephyr_local.quantize.pipeline import block_weights
from zephyr_local.quantize.types import FileType, TensorType

SHAPE = ModelShape(n_layers=2)


def convert(checkpoint: Path, file_type: FileType = FileType.F16, **options: int) -> GGUFFile:
    target = checkpoint.parent / f"{checkpoint.name}-{file_type.name}.gguf"
    convert_checkpoint(checkpoint, target, file_type, ConvertOptions(overwrite=True, **options))
    return read_gguf(target)


def weights(path: Path) -> dict[str, np.ndarray]:
    return {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}


# --- logits


@pytest.mark.parametrize(
    "shape",
    [
        ModelShape(n_layers=3, rope_theta=50000.0),
        ModelShape(n_heads=4, n_kv_heads=1, head_dim=128, rope_theta=1e6),
        ModelShape(n_kv_heads=8, tied=True, architecture="LlamaForCausalLM"),
    ],
    ids=["grouped heads", "wide heads", "tied"],
)
def test_f32_logits_are_those_of_transformers(shape: ModelShape, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tests.llama_eval import Evaluator
    from zephyr_local.engine.llama import LlamaModel
    from zephyr_local.settings import EngineSettings

    checkpoint = build_checkpoint(tmp_path / "checkpoint", shape, dtype="F32")
    ids = [1, *range(300, 348)]
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    loaded = LlamaModel.load(convert(checkpoint, FileType.F32).path, EngineSettings(n_ctx=256, kv_type="f32"))
    try:
        evaluator = Evaluator(loaded)
        for n in (2, 17, len(ids)):
            evaluator.evaluate(ids[:n])
            assert np.abs(evaluator.logits() - expected[n - 1]).max() < 1e-4
    finally:
        loaded.close()


# --- weights


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_f32_holds_every_source_value(dtype: str, tmp_path: Path) -> None:
    checkpoint = build_checkpoint(tmp_path / "checkpoint", SHAPE, dtype=dtype)  # type: ignore[arg-type]
    stored = read_tensors(checkpoint / "model.safetensors")
    found = weights(convert(checkpoint, FileType.F32).path)
    for name, target in (
        ("lm_head.weight", "output.weight"),
        ("model.layers.1.mlp.up_proj.weight", "blk.1.ffn_up.weight"),
    ):
        kind, values = stored[name]
        expected = ggml.decode(TensorType[kind], np.frombuffer(values.tobytes(), np.uint8), values.size)[0]
        assert np.array_equal(found[target].ravel(), expected)


def test_query_rows_are_interleaved_head_by_head() -> None:
    rows = np.arange(16, dtype=np.float32).reshape(16, 1)  # two heads of 8
    assert interleave_pairs(rows, 8)[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]


def test_mixed_types_in_many_shards(tmp_path: Path) -> None:
    mixed = {"lm_head.weight": "F32", "model.norm.weight": "F32", "model.layers.0.self_attn.q_proj.weight": "F16"}
    checkpoint = build_checkpoint(tmp_path / "checkpoint", SHAPE, dtype=mixed, n_shards=5)  # type: ignore[arg-type]
    assert len(convert(checkpoint).tensors) == 21


def test_shards_without_an_index(tmp_path: Path) -> None:
    checkpoint = build_checkpoint(tmp_path / "checkpoint", SHAPE, n_shards=3)
    with_index = convert(checkpoint).path.read_bytes()
    (checkpoint / "model.safetensors.index.json").unlink()
    assert convert(checkpoint).path.read_bytes() == with_index


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_the_number_of_threads_changes_nothing(threads: int, tmp_path: Path) -> None:
    checkpoint = build_checkpoint(tmp_path / "checkpoint", ModelShape(hidden_size=1024, ffn_size=2048, n_layers=1))
    expected = convert(checkpoint, FileType.Q5_K_M, threads=3).path.read_bytes()
    assert convert(checkpoint, FileType.Q5_K_M, threads=threads).path.read_bytes() == expected


def test_many_threads_share_the_memory_of_few() -> None:
    assert block_weights(1) == block_weights(8) < block_weights(16) == 1 << 20
    assert all(2 * threads * block_weights(threads) <= 64 << 20 for threads in range(1, 512))


def test_rotary_buffers_of_old_checkpoints_are_skipped(tmp_path: Path) -> None:
    checkpoint = build_checkpoint(tmp_path / "checkpoint", SHAPE)
    expected = weights(convert(checkpoint).path)
    path = checkpoint / "model.safetensors"
    tensors = read_tensors(path)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = ("F32", np.ones(16, "<f4"))
    rewrite_tensors(path, tensors)
    found = convert(checkpoint)
    assert weights(found.path).keys() == expected.keys()
    assert found.metadata["zephyr_local.source.sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_tied_checkpoint_that_stores_its_output_matrix(tmp_path: Path) -> None:
    """As transformers reads it and llama.cpp's converter writes it: what is stored is used."""
    checkpoint = build_checkpoint(tmp_path / "checkpoint", SHAPE)
    change_json(checkpoint / "config.json", tie_word_embeddings=True)
    assert "output.weight" in [tensor.name for tensor in convert(checkpoint).tensors]


# --- keys


def test_keys_of_the_model(tmp_path: Path) -> None:
    shape = ModelShape(n_layers=2, n_heads=4, n_kv_heads=2, head_dim=32, rope_theta=1e6, rms_norm_eps=1e-6)
    found = convert(build_checkpoint(tmp_path / "tiny-chat-v2", shape), FileType.Q4_K_M)
    expected = {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "Tiny Chat v2",
        "general.finetune": "chat",
        "general.version": "v2",
        "general.basename": "tiny",
        "general.size_label": "1.2M",
        "general.file_type": 15,
        "general.quantization_version": 2,
        "llama.block_count": 2,
        "llama.context_length": 512,
        "llama.embedding_length": 256,
        "llama.feed_forward_length": 512,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 32,
        "llama.attention.value_length": 32,
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
        "llama.rope.freq_base": 1e6,
        "llama.rope.dimension_count": 32,
        "llama.vocab_size": 512,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": ZEPHYR_TEMPLATE,
    }
    ours = {"zephyr_local.version", "zephyr_local.source.sha256", "zephyr_local.source.manifest"}
    lists = {"tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type"}
    assert {key: value for key, value in found.metadata.items() if key not in ours | lists} == expected
    assert found.metadata.keys() == expected.keys() | ours | lists


@pytest.mark.parametrize(
    ("architecture", "given", "recorded"),
    [
        ("MistralForCausalLM", 128, 128),
        ("MistralForCausalLM", None, None),
        ("MistralForCausalLM", ..., 4096),  # what MistralConfig fills in
        ("LlamaForCausalLM", 128, None),  # its attention has none
        ("LlamaForCausalLM", ..., None),
    ],
)
def test_the_sliding_window_is_recorded(tmp_path: Path, architecture: str, given: object, recorded: int | None) -> None:
    checkpoint = build_checkpoint(tmp_path / "checkpoint", with_changes(SHAPE, architecture=architecture))
    change_json(checkpoint / "config.json", sliding_window=given)
    found = convert(checkpoint)
    assert found.metadata.get("zephyr_local.sliding_window") == recorded
    assert recorded is None or found.value_types["zephyr_local.sliding_window"] == "u32"


def test_a_sliding_window_from_the_checkpoint_to_the_chat(tmp_path: Path) -> None:
    checkpoint = build_checkpoint(tmp_path / "checkpoint", SHAPE)
    change_json(checkpoint / "config.json", sliding_window=256)
    path = convert(checkpoint, FileType.Q8_0).path
    for n_ctx, warned in ((256, False), (512, True)):
        with Zephyr(path, EngineSettings(n_ctx=n_ctx), template="zephyr") as zephyr:
            assert any("last 256 tokens" in notice for notice in zephyr.notices) == warned


@pytest.mark.parametrize("given", [0, -1, 1.5, "wide", True])
def test_a_sliding_window_that_is_none(tmp_path: Path, given: object) -> None:
    checkpoint = build_checkpoint(tmp_path / "checkpoint", SHAPE)
    change_json(checkpoint / "config.json", sliding_window=given)
    with pytest.raises(CheckpointError, match="sliding_window is"):
        convert(checkpoint)


def test_rope_parameters_of_transformers_5(tmp_path: Path) -> None:
    checkpoint = build_checkpoint(tmp_path / "checkpoint", SHAPE)
    rope = {"rope_theta": 250000.0, "rope_type": "default"}
    change_json(checkpoint / "config.json", rope_theta=..., rope_parameters=rope)
    assert convert(checkpoint).metadata["llama.rope.freq_base"] == 250000.0


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"type": "linear", "factor": 2.0}, {"type": "linear", "factor": 2.0}),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
            {"type": "yarn", "factor": 4.0, "original_context_length": 128},
        ),
    ],
)
def test_rope_scaling(section: dict[str, object], expected: dict[str, object], tmp_path: Path) -> None:
    checkpoint = build_checkpoint(tmp_path / "checkpoint", SHAPE)
    change_json(checkpoint / "config.json", rope_scaling=section)
    prefix = "llama.rope.scaling."
    found = convert(checkpoint).metadata
    assert {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)} == expected


def test_absent_entries_get_the_defaults_of_transformers(tmp_path: Path) -> None:
    checkpoint = build_checkpoint(tmp_path / "checkpoint", ModelShape(n_layers=1, n_kv_heads=8))
    change_json(checkpoint / "config.json", num_key_value_heads=..., rms_norm_eps=..., max_position_embeddings=...)
    found = convert(checkpoint).metadata
    assert found["llama.attention.head_count_kv"] == 8
    assert found["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    assert found["llama.context_length"] == 131072


def test_the_model_card(tmp_path: Path) -> None:
    checkpoint = build_checkpoint(tmp_path / "checkpoint", SHAPE)
    card = (
        "---\nlicense: mit\nlanguage:\n- en\n- no\ntags: [zephyr]\nbase_model: mistralai/Mistral-7B-v0.1\n---\n# Hi\n"
    )
    (checkpoint / "README.md").write_text(card)
    write_json(checkpoint / "generation_config.json", {"temperature": 1, "top_k": 50, "repetition_penalty": 1.1})
    found = convert(checkpoint).metadata
    assert found["general.license"] == "mit"
    assert found["general.languages"] == ["en", "no"]
    assert found["general.tags"] == ["zephyr"]
    assert found["general.base_model.0.name"] == "Mistral 7B v0.1"
    assert found["general.sampling.temp"] == 1.0
    assert found["general.sampling.penalty_repeat"] == pytest.approx(1.1)


# --- provenance


def test_one_shard_gives_its_own_sha256(tmp_path: Path) -> None:
    checkpoint = build_checkpoint(tmp_path / "checkpoint", SHAPE)
    target = tmp_path / "x.gguf"
    result = convert_checkpoint(checkpoint, target, FileType.Q8_0)
    expected = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    found = read_gguf(target)
    assert result.source_sha256 == found.metadata["zephyr_local.source.sha256"] == expected
    assert result.size_bytes == target.stat().st_size
    assert result.n_tensors == len(found.tensors) == 21
    assert result.bits_per_weight == pytest.approx(8.5, abs=0.1)


def test_the_manifest_of_several_can_be_checked_by_sha256sum(tmp_path: Path) -> None:
    checkpoint = build_checkpoint(tmp_path / "checkpoint", SHAPE, n_shards=3)
    found = convert(checkpoint).metadata
    manifest = str(found["zephyr_local.source.manifest"])
    assert len(manifest.splitlines()) == 3
    assert found["zephyr_local.source.sha256"] == hashlib.sha256(manifest.encode()).hexdigest()
    subprocess.run(["sha256sum", "--check", "--strict"], input=manifest, text=True, cwd=checkpoint, check=True)


def test_default_names(tmp_path: Path) -> None:
    folder = tmp_path / "zephyr-7b-beta"
    folder.mkdir()
    assert default_target_name(folder, FileType.Q4_K_M) == "zephyr-7b-beta-Q4_K_M.gguf"
    snapshot = tmp_path / "models--HuggingFaceH4--zephyr-7b-beta" / "snapshots" / ("0a" * 20)
    snapshot.mkdir(parents=True)
    assert default_target_name(snapshot, FileType.BF16) == "zephyr-7b-beta-BF16.gguf"
    bare = tmp_path / ("0b" * 20)
    bare.mkdir()
    write_json(bare / "config.json", {"_name_or_path": "someone/their-model"})
    assert default_target_name(bare, FileType.F16) == "their-model-F16.gguf"


def test_the_name_in_a_hub_cache_is_the_repositorys(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--HuggingFaceH4--zephyr-7b-beta" / "snapshots" / ("0a" * 20)
    assert convert(build_checkpoint(snapshot, SHAPE)).metadata["general.name"] == "Zephyr 7b Beta"


# --- vocabulary


def test_the_real_vocabulary_of_mistral(tmp_path: Path) -> None:
    import sentencepiece

    shape = ModelShape(hidden_size=64, ffn_size=64, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=32000)
    found = convert(build_checkpoint(tmp_path / "checkpoint", shape, tokenizer=mistral_sentencepiece_model()))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(mistral_sentencepiece_model()))
    tokens, scores = found.metadata["tokenizer.ggml.tokens"], found.metadata["tokenizer.ggml.scores"]
    assert tokens == [pieces.IdToPiece(i) for i in range(32000)]
    assert scores == [pieces.GetScore(i) for i in range(32000)]


def test_added_tokens_and_padding(tmp_path: Path) -> None:
    checkpoint = build_checkpoint(tmp_path / "checkpoint", ModelShape(n_layers=1, vocab_size=520))
    write_json(checkpoint / "added_tokens.json", {"<pad>": 512, "plain": 513})
    decoder = {
        "2": {"content": "</s>", "special": True},
        "512": {"content": "<pad>", "special": False},
        "514": {"content": "<|user|>", "special": False},
        "515": {"content": "\u2581two words", "special": False},
    }
    change_json(checkpoint / "tokenizer_config.json", added_tokens_decoder=decoder, pad_token="<pad>")
    write_json(
        checkpoint / "tokenizer.json",
        {
            "added_tokens": [
                {"id": 516, "content": "<extra>", "special": True},
                {"id": 514, "content": "no", "special": True},
            ]
        },
    )
    found = convert(checkpoint).metadata
    tokens, kinds = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert isinstance(tokens, list)
    assert isinstance(kinds, list)
    assert tokens[511:] == [
        tokens[511],
        "<pad>",
        "plain",
        "<|user|>",
        " two words",
        "<extra>",
        *(f"[PAD{i}]" for i in range(517, 520)),
    ]
    assert kinds[512:] == [3, 4, 3, 4, 3, 5, 5, 5]
    assert found["tokenizer.ggml.padding_token_id"] == 512


def test_special_ids_that_only_the_sentencepiece_model_knows(tmp_path: Path) -> None:
    checkpoint = build_checkpoint(tmp_path / "checkpoint", SHAPE)
    change_json(checkpoint / "config.json", bos_token_id=..., eos_token_id=[2, 7])
    (checkpoint / "tokenizer_config.json").unlink()
    found = convert(checkpoint).metadata
    assert (found["tokenizer.ggml.bos_token_id"], found["tokenizer.ggml.eos_token_id"]) == (1, 2)
    assert found["tokenizer.chat_template"] == ZEPHYR_TEMPLATE


@pytest.mark.parametrize("template", ["of the config", [{"name": "default", "template": "of the config"}]])
def test_the_chat_template_in_tokenizer_config(template: object, tmp_path: Path) -> None:
    checkpoint = build_checkpoint(tmp_path / "checkpoint", SHAPE)
    (checkpoint / "chat_template.jinja").unlink()
    change_json(checkpoint / "tokenizer_config.json", chat_template=template)
    assert convert(checkpoint).metadata["tokenizer.chat_template"] == "of the config"


# --- progress


def test_progress_adds_up(tmp_path: Path) -> None:
    checkpoint = build_checkpoint(tmp_path / "checkpoint", SHAPE, n_shards=2)
    seen: list[Progress] = []
    convert_checkpoint(checkpoint, tmp_path / "x.gguf", FileType.Q4_K_M, None, seen.append)
    stages = list(dict.fromkeys(progress.stage for progress in seen))
    assert [stage for stage in stages if stage != "compile"] == ["check", "convert", "verify"]
    for stage in ("convert", "verify"):
        steps = [progress for progress in seen if progress.stage == stage]
        assert [step.done_bytes for step in steps] == sorted(step.done_bytes for step in steps)
        assert steps[-1].tensor_index == steps[-1].n_tensors == 21
        assert steps[-1].done_bytes == steps[-1].total_bytes
        assert steps[-1].remaining_s == 0
    assert json.dumps([progress.tensor for progress in seen]).count("lm_head.weight") >= 2


def test_bf16_is_copied_bit_for_bit(tmp_path: Path) -> None:
    """Denormals and negative zero too."""
    checkpoint = build_checkpoint(tmp_path / "checkpoint", SHAPE)
    path = checkpoint / "model.safetensors"
    tensors = read_tensors(path)
    values = tensors["lm_head.weight"][1]
    values[0, :4] = [0x0001, 0x8000, 0x807F, 0x7F7F]
    rewrite_tensors(path, tensors)
    reader = gguf.GGUFReader(convert(checkpoint, FileType.BF16).path)
    (output,) = (tensor for tensor in reader.tensors if tensor.name == "output.weight")
    assert output.data.tobytes() == values.tobytes()
    assert as_stored(np.ones(2, np.float32), "BF16").tolist() == [0x3F80, 0x3F80]
