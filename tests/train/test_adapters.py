"""Adapters, trained beside a full-precision or a 4-bit base, are merged and exported with the same logits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.train.recipe_builder import LORA, build_recipe
from zephyr_local.train.export import EXACT_LIMIT, Reference
from zephyr_local.train.recipe import Recipe
from zephyr_local.train.run import RunOptions, run_recipe

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FOUR_BITS: dict[str, Any] = {
    **LORA,
    "lora_target_modules": LINEAR,
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "use_bnb_nested_quant": True,
}


@pytest.mark.parametrize(
    "keys",
    [pytest.param(LORA, id="lora"), pytest.param(FOUR_BITS, id="qlora", marks=pytest.mark.slow)],
)
def test_merged_into_the_full_precision_base_and_exported(tmp_path: Path, keys: dict[str, Any]):
    from peft import PeftModel

    recipe = build_recipe(tmp_path / "recipe", {"dsft": keys, "ddpo": keys}, export=["f32", "q8_0"])
    out = tmp_path / "out"
    run_recipe(Recipe.read(recipe, ["ddpo.precompute_ref_log_probs=false"]), out, RunOptions(threads=1))
    ids = torch.arange(3, 60)[None]
    for stage, base in (("dsft", recipe / "base"), ("ddpo", out / "dsft")):
        adapter = json.loads((out / stage / "adapter" / "adapter_config.json").read_text())
        assert Path(adapter["base_model_name_or_path"]) == base
        merged = AutoModelForCausalLM.from_pretrained(out / stage)
        assert merged.dtype == torch.float32
        assert "quantization_config" not in json.loads((out / stage / "config.json").read_text())
        unmerged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), out / stage / "adapter")
        with torch.inference_mode():
            difference = (merged(ids).logits - unmerged(ids).logits).abs().max()
            moved = (merged(ids).logits - AutoModelForCausalLM.from_pretrained(base)(ids).logits).abs().max()
        assert difference < 1e-4
        assert moved > 10 * difference, "the adapter has learnt something"
    check = Reference(out / "ddpo").compare(out / "recipe-F32.gguf")
    assert check.n_tokens == 72
    assert check.largest_difference < EXACT_LIMIT / 10
    assert check.same_likeliest >= check.n_tokens - 1


def test_an_export_that_disagrees_is_refused_and_removed(tmp_path: Path):
    from zephyr_local.errors import CheckpointError
    from zephyr_local.train import export

    recipe = build_recipe(tmp_path / "recipe")
    folder = tmp_path / "other"
    shutil.copytree(recipe / "base", folder)
    target = tmp_path / "x-F32.gguf"
    export.export(folder, [("f32", target)], lambda _line: None)
    weights = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        weights.lm_head.weight.mul_(-1)
    weights.save_pretrained(folder)
    check = Reference(folder).compare(target)
    assert check.largest_difference > EXACT_LIMIT
    assert check.same_likeliest < export.AGREEMENT_LIMIT * check.n_tokens
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reference, "compare", lambda *_arguments: check)
        with pytest.raises(CheckpointError, match="differ by"):
            export.export(folder, [("q8_0", tmp_path / "y-Q8_0.gguf")], lambda _line: None)
    assert not (tmp_path / "y-Q8_0.gguf").exists()
    assert not list(folder.glob(".export*"))
