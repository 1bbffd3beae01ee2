"""Real preferences through the whole road, at small scale: what a tiny model learns from them, and what it does not.

    python benchmarks/real_preferences.py ALPACA_EVAL --out FOLDER

`ALPACA_EVAL` holds folders with `model_outputs.json` and `annotations.json` in AlpacaEval's formats. A model of a few
million parameters is made, pre-trained on the answers as plain text, fine-tuned on the dialogues (dSFT), and aligned on
the annotators' preferences (dDPO). Writes `report.md`: the data's report, exact reward accuracy on held-out prompts
split by which answer is longer, and samples before and after. The data is not part of this project.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from zephyr_local import Zephyr
from zephyr_local.settings import Sampling
from zephyr_local.train.evaluate_pairs import EvaluationSettings, evaluate_pairs
from zephyr_local.train.recipe import Recipe
from zephyr_local.train.run import RunOptions, run_recipe

CPU: dict[str, Any] = {
    "dtype": "float32",
    "use_cpu": True,
    "bf16": False,
    "activation_checkpointing": False,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "eval_strategy": "no",
    "save_steps": 200,
    "logging_steps": 20,
    "seed": 17,
}
STAGES: dict[str, dict[str, Any]] = {
    "pretrain": {
        "max_length": 256, "packing": True, "packing_strategy": "wrapped", "learning_rate": 3e-3,
        "per_device_train_batch_size": 8,
    },
    "dsft": {
        "max_length": 256, "packing": True, "packing_strategy": "wrapped", "learning_rate": 1e-3,
        "per_device_train_batch_size": 8,
    },
    "ddpo": {
        "max_length": 512, "beta": 0.1, "learning_rate": 5e-5, "precompute_ref_log_probs": True,
        "per_device_train_batch_size": 8,
    },
}  # fmt: skip
ASKED = ("What is the capital of France?", "How do I bake bread?", "Write a short poem about the sea.", "Hello!")


def make_base(folder: Path, texts: Sequence[str]) -> None:
    """Random weights of zephyr-tiny's shape, with a vocabulary of these texts."""
    import torch
    from transformers import MistralForCausalLM

    from zephyr_local.train.tiny.shape import TinyShape
    from zephyr_local.train.tiny.tokenizer import train_vocabulary, write_tokenizer

    shape = TinyShape(vocab_size=4096)
    torch.manual_seed(17)
    folder.mkdir(parents=True)
    write_tokenizer(folder, train_vocabulary(texts, shape.vocab_size), shape.n_ctx)
    MistralForCausalLM(shape.config()).save_pretrained(folder)


def make_recipe(folder: Path, data: Path, steps: dict[str, int]) -> Path:
    """The recipe's folder, with its base and the texts and dialogues drawn from the models' outputs."""
    outputs = [json.loads(path.read_bytes()) for path in sorted(data.glob("*/model_outputs.json"))]
    texts = [entry["output"] for rows in outputs for entry in rows if entry["output"]]
    folder.mkdir(parents=True)
    make_base(folder / "base", texts)
    with (folder / "texts.jsonl").open("w") as out:
        out.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    recipe = {
        "name": "real-preferences",
        "base": "base",
        "stages": list(STAGES),
        "data": {
            "pretrain": {"train": ["texts.jsonl"]},
            "dsft": {"train": [str(path.absolute()) for path in sorted(data.glob("*/model_outputs.json"))]},
            "ddpo": {
                "train": [str(path.absolute()) for path in sorted(data.glob("*/annotations.json"))],
                "held_out": 0.1,
            },
        },
        "export": ["q8_0"],
    }
    (folder / "recipe.yaml").write_text("# Real preferences at small scale.\n" + json.dumps(recipe))
    for stage, keys in STAGES.items():
        (folder / f"{stage}.yaml").write_text(json.dumps({**CPU, **keys, "max_steps": steps[stage]}))
    return folder


def samples(gguf: Path) -> list[str]:
    """Answers at temperature 0."""
    with Zephyr(gguf) as zephyr:
        sampling = Sampling(temperature=0, max_tokens=48, repeat_penalty=1.1)
        return [zephyr.complete([{"role": "user", "content": text}], sampling).text for text in ASKED]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, nargs=3, default=(400, 300, 200), metavar=("PRETRAIN", "DSFT", "DDPO"))
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    recipe_folder = given.out / "recipe"
    if not recipe_folder.exists():
        make_recipe(recipe_folder, given.data, dict(zip(STAGES, given.steps, strict=True)))
    run_folder = given.out / "run"
    recipe = Recipe.read(recipe_folder)
    started = time.perf_counter()

    def say(line: str) -> None:
        print(f"[{time.perf_counter() - started:6.0f} s] {line}", flush=True)

    run_recipe(recipe, run_folder, RunOptions(only="pretrain", threads=given.threads, export=()), say)
    run_recipe(recipe, run_folder, RunOptions(only="dsft", threads=given.threads), say)
    run_recipe(recipe, run_folder, RunOptions(threads=given.threads), say)
    minutes = (time.perf_counter() - started) / 60
    test = run_folder / "data" / "ddpo" / "test.jsonl"
    settings = EvaluationSettings()
    after = evaluate_pairs(run_folder / "ddpo", run_folder / "dsft", [test], settings)
    own = {stage: evaluate_pairs(run_folder / stage, None, [test], settings) for stage in ("dsft", "ddpo")}
    report = json.loads((run_folder / "data" / "ddpo" / "report.json").read_bytes())
    lines = ["# Real preferences at small scale", "", f"{minutes:.0f} minutes.", "", "## Pairs", "", "```"]
    lines += [json.dumps({key: report[key] for key in ("read", "kept", "dropped")}, indent=1), "```", ""]
    lines += ["## Held-out prompts: DPO's reward, against the dSFT model", "", "```", *after.lines(), "```", ""]
    for stage, result in own.items():
        lines += [f"## Held-out prompts: log probability of {stage} alone", "", "```", *result.lines(), "```", ""]
    before = samples(run_folder / "real-preferences-dsft-Q8_0.gguf")
    answers = samples(run_folder / "real-preferences-Q8_0.gguf")
    lines += ["## Samples", ""]
    for asked, one, two in zip(ASKED, before, answers, strict=True):
        lines += [f"- **{asked}**", f"  - dSFT: {one!r}", f"  - dDPO: {two!r}"]
    (given.out / "report.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
