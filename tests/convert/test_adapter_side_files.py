"""An adapter's keys: what its own side files tell, what its base's do, and what is nobody's concern."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest

from tests import adapter_builder as adapters
from tests.checkpoint_builder import ModelShape, build_checkpoint, change_json, write_json
from zephyr_local.convert.hf_to_gguf import ConvertOptions, convert_checkpoint
from zephyr_local.quantize.types import FileType

SHAPE = ModelShape(64, 160, 1, 4, 2, vocab_size=300)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return build_checkpoint(tmp_path / "base", SHAPE)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return adapters.build_adapter(tmp_path / "adapter", SHAPE)


def values(adapter: Path, base: Path) -> dict[str, Any]:
    """Every key of the merged model."""
    target = adapter.parent / "out.gguf"
    convert_checkpoint(adapter, target, FileType.BF16, ConvertOptions(base=base, overwrite=True))
    return {key: field.contents() for key, field in gguf.GGUFReader(target).fields.items()}


def test_how_to_sample_is_the_bases_to_say(base: Path, adapter: Path) -> None:
    write_json(base / "generation_config.json", {"temperature": 0.5, "top_k": 7})
    found = values(adapter, base)
    assert found["general.sampling.top_k"] == 7
    assert found["general.sampling.temp"] == 0.5


def test_ids_that_only_config_json_tells_are_kept(base: Path, adapter: Path) -> None:
    change_json(base / "config.json", pad_token_id=5)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(base / name, adapter / name)
    assert values(adapter, base)["tokenizer.ggml.padding_token_id"] == 5


@pytest.mark.parametrize("name", ["/home/someone/secret-project", "./secret", "mistralai/Mistral-7B-v0.1"])
def test_a_path_in_the_model_card_stays_at_home(base: Path, adapter: Path, name: str) -> None:
    """PEFT's cards name a base that lay in a folder by its path; a base on the hub is kept."""
    card = f"---\nbase_model: {name}\ntags:\n- base_model:adapter:{name}\n- lora\n---\n"
    (adapter / "README.md").write_text(card, encoding="utf-8")
    found = {key: value for key, value in values(adapter, base).items() if key.startswith("general.")}
    assert "secret" not in str(found)
    assert "lora" in found["general.tags"]
    if "/Mistral" in name:
        assert found["general.base_model.0.repo_url"].endswith(name)
        assert f"base_model:adapter:{name}" in found["general.tags"]
