"""One training stage, in a process (or several) of its own: ``python -m zephyr_local.train.stage OUT STAGE``.

Started by train/run.py, alone or by a launcher. It reads the recipe that the run wrote down and the ids that
train/prepare.py made, trains with TRL, and leaves a checkpoint's folder; a stage that was killed goes on from its
newest whole checkpoint. Exit codes are the command line's (train/child.py).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zephyr_local.train.child import run_child
from zephyr_local.train.data.records import write_whole
from zephyr_local.train.recipe import Recipe, Stage
from zephyr_local.train.run_folder import RunFolder, stage_base


@dataclass(frozen=True, slots=True)
class StageOptions:
    """What a stage may be told besides its recipe; none of it changes what a weight becomes."""

    world: int = 1
    """How many processes must run."""
    force: bool = False
    """Begin although the guard objects."""


def train_stage(out: Path, stage: Stage, options: StageOptions, say: Callable[[str], None]) -> None:
    """Train one stage of the run in `out`, from where it was left. Raises ZephyrError kinds."""
    import torch
    import torch.utils.deterministic
    from transformers import PrinterCallback, set_seed

    from zephyr_local.train.chat_ids import ChatIds
    from zephyr_local.train.checkpoints import MarkWhole, newest_whole, remove_cut_short
    from zephyr_local.train.guard import require_ready
    from zephyr_local.train.hf_tokenizer import tokenizer_from_pieces
    from zephyr_local.train.ids_file import read_ids
    from zephyr_local.train.progress import TellProgress
    from zephyr_local.train.trainers import StageData, make_trainer, parse_stage

    run = RunFolder(out)
    recipe, folder = Recipe.read(run.recipe), run.stage(stage)
    base = stage_base(run, recipe, stage)
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder.runs)
    arguments = parse_stage(stage, recipe.trl[stage], folder.checkpoints)
    require_ready(recipe, stage, arguments, world=options.world, force=options.force, say=say)
    chats = ChatIds(base, recipe.template, recipe.system_turn)
    set_seed(arguments.training.seed)
    data = StageData(
        read_ids(folder.ids("train")), read_ids(folder.ids("test")) if folder.ids("test").is_file() else None
    )
    main = arguments.training.process_index == 0
    if main:
        remove_cut_short(folder.checkpoints)
    arguments.training.distributed_state.wait_for_everyone()
    resume = newest_whole(folder.checkpoints)
    tell = say if main else _say_nothing
    if getattr(arguments.training, "precompute_ref_log_probs", False):
        tell(f"{stage}: computing the reference's log probabilities of {len(data.train):,} pairs")
    trainer = make_trainer(
        arguments, base, tokenizer_from_pieces(chats), data, [MarkWhole(), TellProgress(stage, tell)]
    )
    trainer.remove_callback(PrinterCallback)
    if resume is not None:
        tell(f"{stage}: going on from step {resume.name.rpartition('-')[2]}")
    # full_determinism has torch fill new memory with NaN, which costs TRL's fused head a quarter of a step on a CPU.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    started = time.perf_counter()
    output = trainer.train(resume_from_checkpoint=str(resume) if resume is not None else None)
    elapsed_s = time.perf_counter() - started
    evaluation = _evaluation(trainer) if trainer.eval_dataset is not None else {}
    _save(trainer, folder.saved)
    if main:
        results = _results(stage, trainer, arguments, elapsed_s)
        results |= {"train": dict(output.metrics), "test": evaluation, "resumed_from": resume.name if resume else None}
        write_whole(folder.results, json.dumps(results, indent=2).encode() + b"\n")
    arguments.training.distributed_state.wait_for_everyone()


def _say_nothing(_line: str) -> None:
    """For all processes but the first."""


def _evaluation(trainer: Any) -> dict[str, float]:  # noqa: ANN401 — TRL's
    """The test split after the last step, unless the recipe has just had it evaluated."""
    last = next((entry for entry in reversed(trainer.state.log_history) if "eval_loss" in entry), None)
    if last is not None and last["step"] == trainer.state.global_step:
        return {key: value for key, value in last.items() if key.startswith("eval_")}
    return dict(trainer.evaluate())


def _save(trainer: Any, folder: Path) -> None:  # noqa: ANN401
    """The whole model, or the adapter; under ZeRO-3 and FSDP every process takes part in gathering it."""
    if trainer.is_fsdp_enabled:
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    if trainer.args.process_index == 0:
        shutil.rmtree(folder, ignore_errors=True)
    trainer.args.distributed_state.wait_for_everyone()
    trainer.save_model(str(folder))
    trainer.args.distributed_state.wait_for_everyone()


def _results(stage: Stage, trainer: Any, arguments: Any, elapsed_s: float) -> dict[str, Any]:  # noqa: ANN401
    """What a card and plots are made from: JSON values."""
    import torch

    model = trainer.accelerator.unwrap_model(trainer.model)
    on_gpu = torch.cuda.is_available() and not arguments.training.use_cpu
    return {
        "stage": stage,
        "n_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "n_trained": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "n_steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "processes": arguments.training.world_size,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        "elapsed_s": elapsed_s,
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "peak_rss_bytes": _peak_rss_bytes(),
        "log": trainer.state.log_history,
        "versions": _versions(),
    }


def _peak_rss_bytes() -> int | None:
    """None on Windows, whose Python has no resource module."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("zephyr-local", "torch", "transformers", "trl", "peft", "datasets", "accelerate")
    return {"python": sys.version.split()[0], **{name: version(name) for name in names}}


def main() -> int:
    """The process's entry point; returns its exit code."""
    from zephyr_local.train.terminal import say_on_stderr

    parser = argparse.ArgumentParser(prog="python -m zephyr_local.train.stage")
    parser.add_argument("out", type=Path)
    parser.add_argument("stage")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--world", type=int, default=1)
    parser.add_argument("--force", action="store_true")
    given = parser.parse_args()
    options = StageOptions(given.world, given.force)
    return run_child(lambda: train_stage(given.out, given.stage, options, say_on_stderr), threads=given.threads)


if __name__ == "__main__":
    sys.exit(main())
