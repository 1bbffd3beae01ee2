"""A recipe that trains a model of some thousand weights for some steps, with its base and data, for tests."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.checkpoint_builder import ModelShape, build_checkpoint

COMMON: dict[str, Any] = {
    "dtype": "float32",
    "max_length": 64,
    "learning_rate": 1e-3,
    "max_steps": 6,
    "per_device_train_batch_size": 4,
    "use_cpu": True,
    "bf16": False,
    "activation_checkpointing": False,
    "eval_strategy": "no",
    "save_steps": 2,
    "logging_steps": 2,
    "seed": 5,
}
LORA: dict[str, Any] = {"use_peft": True, "lora_r": 4, "lora_alpha": 16, "lora_target_modules": ["q_proj", "v_proj"]}
_WORDS = [
    "cow",
    "dog",
    "cat",
    "sheep",
    "horse",
    "moo",
    "woof",
    "meow",
    "baa",
    "red",
    "blue",
    "green",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
]


def build_recipe(folder: Path, stages: Mapping[str, Mapping[str, Any]] | None = None, **own: Any) -> Path:
    """Write base, data and recipe into `folder`; `stages` gives keys beside COMMON, `own` those of recipe.yaml."""
    stages = stages or {"dsft": {}, "ddpo": {}}
    base = build_checkpoint(folder / "base", ModelShape(vocab_size=512, n_layers=1), dtype="F32")
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# a base\n")
    write_dialogues(folder / "dialogues.jsonl", 60)
    write_pairs(folder / "pairs.jsonl", 40)
    recipe = {
        "base": "base",
        "stages": list(stages),
        "data": {
            "dsft": {"train": ["dialogues.jsonl"], "prepare": {"truecase": False}},
            "ddpo": {"train": ["pairs.jsonl"]},
        },
        **own,
    }
    recipe["data"] = {stage: recipe["data"][stage] for stage in stages}
    (folder / "recipe.yaml").write_text("# For a test.\n" + yaml.safe_dump(recipe))
    for stage, keys in stages.items():
        extra = {"precompute_ref_log_probs": True} if stage == "ddpo" else {"assistant_only_loss": True}
        (folder / f"{stage}.yaml").write_text(yaml.safe_dump({**COMMON, **extra, **keys}))
    return folder


def sentence(dice: random.Random, n_words: int) -> str:
    """Some words, a capital in front, a full stop behind."""
    text = " ".join(dice.choice(_WORDS) for _ in range(n_words))
    return text[0].upper() + text[1:] + "."


def write_dialogues(path: Path, count: int) -> None:
    """Dialogues of one turn each, all different."""
    dice = random.Random(3)
    with path.open("w") as out:
        for number in range(count):
            turns = [("user", f"{number}: {sentence(dice, 4)}"), ("assistant", sentence(dice, 6))]
            out.write(json.dumps({"messages": [{"role": r, "content": c} for r, c in turns]}) + "\n")


def write_pairs(path: Path, count: int) -> None:
    """Pairs whose chosen answer begins with Yes."""
    dice = random.Random(4)
    with path.open("w") as out:
        for number in range(count):
            record = {
                "prompt": [{"role": "user", "content": f"{number}: {sentence(dice, 3)}"}],
                "chosen": [{"role": "assistant", "content": f"Yes. {sentence(dice, 3)}"}],
                "rejected": [{"role": "assistant", "content": f"No. {sentence(dice, 3)}"}],
            }
            out.write(json.dumps(record) + "\n")
