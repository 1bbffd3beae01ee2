"""A recipe's stage beside TRL's own script: the same YAML and records, some steps of each, in processes of their own.

    python benchmarks/train.py --recipe qlora-24gb --stage dsft --base FOLDER --data records.jsonl --steps 24

`--base new` makes random weights of Mistral-7B's shape (`--layers` for fewer) with Mistral's vocabulary. Prints tokens
a second (the first steps left out), the peak of GPU memory beside the forecast's, and the share of the card's peak in
matrix products of bfloat16, by the forecast's count of operations without recomputation. `--set` changes keys of the
stage's file for both.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

WARM_UP_STEPS = 3
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12, "4090": 165e12, "3090": 71e12}
"""Dense bfloat16, from the makers' data sheets."""


@dataclass(frozen=True)
class Measured:
    tokens_per_s: float
    peak_bytes: int
    losses: list[float]
    device: str
    n_steps: int


def _callback(path: Path) -> Any:  # noqa: ANN401
    """Notes time, tokens and loss after each step."""
    import torch
    from transformers import TrainerCallback

    class Timer(TrainerCallback):
        def __init__(self) -> None:
            self.rows: list[dict[str, float]] = []

        def on_log(self, args, state, control, logs=None, **kwargs) -> None:  # noqa: ANN001, ANN003
            if logs and "loss" in logs:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                self.rows.append(
                    {"s": time.perf_counter(), "tokens": float(logs.get("num_tokens", 0)), "loss": float(logs["loss"])}
                )

        def on_train_end(self, args, state, control, **kwargs) -> None:  # noqa: ANN001, ANN003
            on_gpu = torch.cuda.is_available() and not args.use_cpu
            peak = torch.cuda.max_memory_reserved() if on_gpu else 0
            device = torch.cuda.get_device_name() if on_gpu else "CPU"
            path.write_text(json.dumps({"rows": self.rows, "peak": peak, "device": device}))
            os._exit(0)  # what comes after is saving, which is not measured

    return Timer()


def run_ours(work: Path, result: Path) -> None:
    """The stage as `train run` trains it: its ids, TRL's trainer."""
    import yaml

    from zephyr_local.train.chat_ids import ChatIds
    from zephyr_local.train.child import quiet_libraries
    from zephyr_local.train.hf_tokenizer import tokenizer_from_pieces
    from zephyr_local.train.ids_file import read_ids, write_ids
    from zephyr_local.train.trainers import StageData, make_trainer, parse_stage

    quiet_libraries()
    given = json.loads((work / "given.json").read_text())
    stage, base = given["stage"], Path(given["base"])
    arguments = parse_stage(stage, yaml.safe_load((work / "stage.yaml").read_text()), work / "out")
    chats = ChatIds(base, "zephyr", given["system_turn"])
    ids = work / "ids.arrow"
    started = time.perf_counter()
    counts = write_ids(work / "data" / "train.jsonl", ids, stage, chats, assistant_only=arguments.assistant_only_loss)
    print(f"  encoded {counts['tokens']:,} tokens in {time.perf_counter() - started:.1f} s", flush=True)
    data = StageData(read_ids(ids), None)
    trainer = make_trainer(arguments, base, tokenizer_from_pieces(chats), data, [_callback(result)])
    trainer.train()


def run_trl(work: Path, result: Path) -> None:
    """TRL's own script, in this process so that a callback can be given to it."""
    import importlib

    from transformers import trainer as transformers_trainer

    given = json.loads((work / "given.json").read_text())
    transformers_trainer.DEFAULT_CALLBACKS.append(_callback(result))
    script = importlib.import_module("trl.scripts.dpo" if given["stage"] == "ddpo" else "trl.scripts.sft")
    flags = ["--config", str(work / "stage.yaml"), "--model_name_or_path", given["base"]]
    flags += ["--dataset_name", str(work / "data"), "--output_dir", str(work / "out-trl")]
    script.main(*script.make_parser().parse_args_and_config(flags))


def make_base(folder: Path, layers: int) -> None:
    """Random bfloat16 weights of Mistral-7B's shape, and Mistral's vocabulary."""
    import shutil

    import torch
    from transformers import MistralConfig, MistralForCausalLM

    from zephyr_local.train.chat_ids import ChatIds
    from zephyr_local.train.hf_tokenizer import tokenizer_from_pieces

    config = MistralConfig(
        num_hidden_layers=layers, sliding_window=4096, dtype="bfloat16", bos_token_id=1, eos_token_id=2
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = MistralForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    shutil.copyfile(_mistral_vocabulary(), folder / "tokenizer.model")
    tokenizer_from_pieces(ChatIds(folder)).save_pretrained(folder)


def _mistral_vocabulary() -> Path:
    if "MISTRAL_TOKENIZER" in os.environ:
        return Path(os.environ["MISTRAL_TOKENIZER"])
    import mistral_common

    return Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"


def measure(who: str, work: Path) -> Measured:
    """One run, in a process of its own."""
    result = work / f"{who}.json"
    started = time.perf_counter()
    with (work / f"{who}.log").open("wb") as log:
        code = subprocess.call(
            [sys.executable, __file__, "--child", who, "--work", str(work)], stdout=log, stderr=subprocess.STDOUT
        )
    if not result.is_file():
        print((work / f"{who}.log").read_text()[-3000:])
        raise SystemExit(f"{who} failed with code {code}")
    entry = json.loads(result.read_text())
    rows = entry["rows"]
    spans = [(b["tokens"] - a["tokens"]) / (b["s"] - a["s"]) for a, b in itertools.pairwise(rows)]
    steady = rows[WARM_UP_STEPS:]
    rate = (steady[-1]["tokens"] - steady[0]["tokens"]) / (steady[-1]["s"] - steady[0]["s"])
    print(
        f"  {who}: {rate:,.0f} tokens/s (median step {statistics.median(spans[WARM_UP_STEPS:]):,.0f}), "
        f"peak {entry['peak'] / 2**30:.1f} GiB, loss {rows[0]['loss']:.3f} to {rows[-1]['loss']:.3f}, "
        f"{time.perf_counter() - started:.0f} s in all",
        flush=True,
    )
    return Measured(rate, entry["peak"], [row["loss"] for row in rows], entry["device"], len(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="qlora-24gb")
    parser.add_argument("--stage", choices=("dsft", "ddpo"), default="dsft")
    parser.add_argument("--base", default="new")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--data", type=Path, help="dialogues or pairs as the data commands write them")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--make-base", type=Path, help="make the base there, and end")
    parser.add_argument("--child", choices=("ours", "trl"))
    parser.add_argument("--work", type=Path)
    given = parser.parse_args()
    if given.child:
        {"ours": run_ours, "trl": run_trl}[given.child](given.work, given.work / f"{given.child}.json")
        return
    if given.make_base:
        make_base(given.make_base, given.layers)
        return
    import yaml

    from zephyr_local.train.recipe import Recipe

    recipe = Recipe.read(given.recipe, [f"{given.stage}.{pair}" for pair in given.set])
    with tempfile.TemporaryDirectory(prefix="zephyr-train-") as scratch:
        work = Path(scratch)
        base = given.base
        if base == "new":
            base = str(work / "base")
            make_base(Path(base), given.layers)
        stage = {**recipe.trl[given.stage], "max_steps": given.steps, "logging_steps": 1, "save_strategy": "no"}
        stage |= {"eval_strategy": "no", "report_to": "none"}
        (work / "stage.yaml").write_text(yaml.safe_dump(stage))
        (work / "data").mkdir()
        (work / "data" / "train.jsonl").write_bytes(given.data.read_bytes())
        facts = {"stage": given.stage, "base": base, "system_turn": "as_written"}  # TRL's script knows no other
        (work / "given.json").write_text(json.dumps(facts))
        print(f"{given.recipe} {given.stage}, {given.steps} steps, {' '.join(given.set)}", flush=True)
        ours, trl = measure("ours", work), measure("trl", work)
        tell(recipe, given.stage, Path(base), ours, trl)


def tell(recipe: Any, stage: Any, base: Path, ours: Measured, trl: Measured) -> None:  # noqa: ANN401
    """The two side by side, and the forecast."""
    from zephyr_local.train.forecast import flops_a_token, forecast_stage
    from zephyr_local.train.model_shape import ModelShape, count
    from zephyr_local.train.stage_plan import plan_stage

    print(f"  ratio ours / TRL: {ours.tokens_per_s / trl.tokens_per_s:.3f} tokens/s on {ours.device}")
    plan, shape = plan_stage(recipe, stage, "one", 1), ModelShape.from_folder(base)
    forecast = forecast_stage(plan, shape)
    print(f"  memory forecast {forecast.memory.total / 2**30:.1f} GiB, peak {ours.peak_bytes / 2**30:.1f} GiB")
    useful = replace(plan, checkpointing=False)
    counts = count(shape, plan.lora_rank, plan.lora_modules)
    flops = flops_a_token(useful, shape, counts, plan.max_length / (2 if plan.is_dpo else 1))
    if plan.is_dpo and not plan.precomputed_reference:
        flops += 2 * shape.n_multiplied
    peak = next((peak for name, peak in PEAK_FLOPS.items() if name in ours.device), None)
    if peak is not None:
        shares = [measured.tokens_per_s * flops / peak for measured in (ours, trl)]
        print(f"  share of the card's peak: ours {shares[0]:.1%}, TRL {shares[1]:.1%} ({flops:.3g} operations a token)")


if __name__ == "__main__":
    main()
