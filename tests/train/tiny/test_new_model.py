"""What the base stage of zephyr-tiny begins with."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoTokenizer, MistralForCausalLM

from zephyr_local.train.tiny.made import new_model


def test_a_new_model_is_a_checkpoint_with_its_vocabulary_and_licence(tmp_path: Path):
    random_state = torch.get_rng_state()
    new_model(tmp_path / "one")
    assert torch.equal(torch.get_rng_state(), random_state)
    model = MistralForCausalLM.from_pretrained(tmp_path / "one")
    assert model.dtype == torch.float32
    assert sum(parameter.numel() for parameter in model.parameters()) == 3_410_176
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    assert config["sliding_window"] is None
    assert len(AutoTokenizer.from_pretrained(tmp_path / "one")) == config["vocab_size"] == 2048
    assert "license: mit" in (tmp_path / "one" / "README.md").read_text()
    torch.manual_seed(99)
    new_model(tmp_path / "two")
    for name in ("model.safetensors", "tokenizer.model", "tokenizer.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
