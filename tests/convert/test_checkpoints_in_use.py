"""Side files as they lie on the hub: each of these checkpoints converts, loads, and has the ids that it should."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.checkpoint_builder import ModelShape, build_checkpoint, change_json, write_json
from zephyr_local.chat_template import ZEPHYR_TEMPLATE
from zephyr_local.convert.hf_to_gguf import ConvertOptions, ConvertResult, convert_checkpoint
from zephyr_local.engine.llama import LlamaModel
from zephyr_local.gguf_file import GGUFFile, read_gguf
from zephyr_local.quantize.types import FileType
from zephyr_local.settings import EngineSettings

T = "tokenizer.ggml."
CONTROL, USER_DEFINED = 3, 4
MODEL_FILE_TOKENS = {"</s>": 2, "<s>": 1, "<unk>": 0}


def convert(checkpoint: Path) -> tuple[GGUFFile, ConvertResult]:
    target = checkpoint.parent / "out.gguf"
    result = convert_checkpoint(checkpoint, target, FileType.Q8_0, ConvertOptions(overwrite=True))
    LlamaModel.load(target, EngineSettings(n_threads=1)).close()
    return read_gguf(target), result


def llama_tokenizer_json() -> dict[str, object]:
    """The parts of a Llama tokenizer.json that gguf-py looks at: added tokens, and the template with its pair."""

    def special(text: str) -> dict[str, object]:
        return {"SpecialToken": {"id": text, "type_id": 0}}

    def sequence(name: str) -> dict[str, object]:
        return {"Sequence": {"id": name, "type_id": 0}}

    return {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": text, "special": True} for i, text in enumerate(("<unk>", "<s>", "</s>"))
        ],
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [special("<s>"), sequence("A")],
            "pair": [special("<s>"), sequence("A"), special("<s>"), sequence("B")],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }


@pytest.fixture
def zephyr(tmp_path: Path) -> Path:
    """zephyr-7b-beta's side files around small weights."""
    folder = build_checkpoint(tmp_path / "zephyr-7b-beta", ModelShape(n_layers=1))
    change_json(
        folder / "config.json",
        _name_or_path="HuggingFaceH4/mistral-7b-sft-beta",
        pad_token_id=2,
        sliding_window=4096,
        transformers_version="4.35.0",
        use_cache=True,
    )
    write_json(folder / "added_tokens.json", MODEL_FILE_TOKENS)
    write_json(folder / "tokenizer.json", llama_tokenizer_json())
    write_json(folder / "special_tokens_map.json", {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"})
    decoder = {str(i): {"content": text, "special": True, "lstrip": False} for text, i in MODEL_FILE_TOKENS.items()}
    change_json(
        folder / "tokenizer_config.json",
        added_tokens_decoder=decoder,
        chat_template=ZEPHYR_TEMPLATE,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        legacy=True,
        tokenizer_class="LlamaTokenizer",
        truncation_side="left",
    )
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    write_json(folder / "generation_config.json", {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2})
    (folder / "README.md").write_text(
        "---\nlicense: mit\nbase_model: mistralai/Mistral-7B-v0.1\ntags:\n- generated_from_trainer\nlanguage:\n- en\n"
        "datasets:\n- HuggingFaceH4/ultrachat_200k\n- HuggingFaceH4/ultrafeedback_binarized\n---\n# Zephyr\n"
    )
    (folder / "pytorch_model-00001-of-00008.bin").write_bytes(b"a pickle")
    (folder / "eval_results.json").write_text("{}")
    return folder


def test_zephyr_7b_beta(zephyr: Path):
    found, result = convert(zephyr)
    assert result.notices == ()
    keys = found.metadata
    assert [keys[f"{T}{name}_token_id"] for name in ("bos", "eos", "padding")] == [1, 2, 2]
    assert keys[f"{T}add_bos_token"] is True
    assert keys[f"{T}add_sep_token"] is False
    assert keys["tokenizer.chat_template"] == ZEPHYR_TEMPLATE
    assert keys["general.license"] == "mit"
    kinds = keys[f"{T}token_type"]
    assert isinstance(kinds, list)
    assert kinds[1:3] == [CONTROL, CONTROL]


def test_added_tokens_json_alone_makes_no_text_of_the_end_token(zephyr: Path):
    change_json(zephyr / "tokenizer_config.json", added_tokens_decoder={})
    (zephyr / "tokenizer.json").unlink()
    kinds = convert(zephyr)[0].metadata[f"{T}token_type"]
    assert isinstance(kinds, list)
    assert kinds[:3] == [2, CONTROL, CONTROL]


def test_a_chatml_mistral_whose_end_token_only_added_tokens_json_names(tmp_path: Path):
    folder = build_checkpoint(tmp_path / "chatml", ModelShape(n_layers=1, vocab_size=514))
    write_json(folder / "added_tokens.json", {"<|im_end|>": 512, "<|im_start|>": 513})
    change_json(folder / "config.json", eos_token_id=512)
    change_json(folder / "tokenizer_config.json", eos_token="<|im_end|>", added_tokens_decoder=...)
    found, _ = convert(folder)
    assert found.metadata[f"{T}eos_token_id"] == 512
    kinds = found.metadata[f"{T}token_type"]
    assert isinstance(kinds, list)
    assert kinds[512] == CONTROL


def test_a_pad_token_without_a_row_is_left_out_with_a_notice(tmp_path: Path):
    folder = build_checkpoint(tmp_path / "llama-2", ModelShape(n_layers=1))
    write_json(folder / "added_tokens.json", {"<pad>": 512})
    found, result = convert(folder)
    tokens = found.metadata[f"{T}tokens"]
    assert isinstance(tokens, list)
    assert "<pad>" not in tokens
    assert len(result.notices) == 1
    assert "'<pad>' with id 512, past the 512 rows" in result.notices[0]


def test_llama_1s_pad_id_below_zero_means_none(tmp_path: Path):
    folder = build_checkpoint(tmp_path / "llama", ModelShape(n_layers=1))
    change_json(folder / "config.json", pad_token_id=-1)
    assert f"{T}padding_token_id" not in convert(folder)[0].metadata


def test_several_named_templates(tmp_path: Path):
    folder = build_checkpoint(tmp_path / "hermes", ModelShape(n_layers=1))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    templates = [{"name": "default", "template": ZEPHYR_TEMPLATE}, {"name": "tool_use", "template": "{{ tools }}"}]
    change_json(folder / "tokenizer_config.json", chat_template=templates)
    found, _ = convert(folder)
    assert found.metadata["tokenizer.chat_template"] == ZEPHYR_TEMPLATE
    assert found.metadata["tokenizer.chat_template.tool_use"] == "{{ tools }}"


def test_yarn_with_all_its_parameters(tmp_path: Path):
    folder = build_checkpoint(tmp_path / "yarn", ModelShape(n_layers=1))
    scaling = {
        "type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "attention_factor": 1.2,
        "extrapolation_factor": 1.0,
    }
    change_json(folder / "config.json", rope_scaling=scaling)
    found, result = convert(folder)
    assert result.notices == ()
    prefix = "llama.rope.scaling."
    assert found.metadata[f"{prefix}yarn_beta_fast"] == 32.0
    assert found.metadata[f"{prefix}yarn_beta_slow"] == 1.0
    assert found.metadata[f"{prefix}yarn_ext_factor"] == 1.0
    assert found.metadata[f"{prefix}yarn_attn_factor"] == pytest.approx(1.2)


def test_a_new_model_safetensors_beside_an_old_index(tmp_path: Path):
    """transformers takes model.safetensors; saving into the folder of a sharded model leaves such an index behind."""
    new = build_checkpoint(tmp_path / "new", ModelShape(n_layers=1), seed=1)
    folder = build_checkpoint(tmp_path / "old", ModelShape(n_layers=1), n_shards=2, seed=2)
    (new / "model.safetensors").rename(folder / "model.safetensors")
    _, result = convert(folder)
    import hashlib

    assert result.source_sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    for shard in folder.glob("model-*.safetensors"):
        shard.unlink()  # the index alone is left
    assert convert(folder)[1].source_sha256 == result.source_sha256


@pytest.mark.parametrize(
    ("card", "notice"),
    [
        ("version: 1.0\nlicense: mit", "general.version"),
        ("tags: [7, chat]", "general.tags"),
        ("license: [", "README.md"),
    ],
)
def test_a_model_card_that_cannot_be_stored_costs_its_keys_and_no_more(tmp_path: Path, card: str, notice: str):
    folder = build_checkpoint(tmp_path / "odd-card", ModelShape(n_layers=1))
    (folder / "README.md").write_text(f"---\n{card}\n---\n")
    found, result = convert(folder)
    assert len(result.notices) == 1
    assert notice in result.notices[0]
    assert found.text("general.name") != ""


@pytest.mark.parametrize("generation", [{"temperature": "hot"}, [1, 2]])
def test_a_generation_config_that_cannot_be_stored(tmp_path: Path, generation: object):
    folder = build_checkpoint(tmp_path / "odd-generation", ModelShape(n_layers=1))
    (folder / "generation_config.json").write_text(json.dumps(generation))
    found, result = convert(folder)
    assert len(result.notices) == 1
    assert "general.sampling.temp" not in found.metadata


def test_a_path_through_a_link_is_the_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "deep")
    meant = build_checkpoint(tmp_path / "real" / "model", ModelShape(n_layers=1), seed=1)
    build_checkpoint(tmp_path / "model", ModelShape(n_layers=1), seed=2)
    monkeypatch.chdir(tmp_path)
    through = convert_checkpoint(Path("link/../model"), tmp_path / "a.gguf", FileType.F16)
    direct = convert_checkpoint(meant, tmp_path / "b.gguf", FileType.F16)
    assert through.source_sha256 == direct.source_sha256
