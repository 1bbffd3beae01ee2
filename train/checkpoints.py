"""Checkpoints while a stage trains: which of them are whole, and so may be gone on from."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any, Final

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from zephyr_local.folder_sync import sync_folder

_MARK: Final = "whole"
_NAME: Final = re.compile(r"checkpoint-(\d+)\Z")


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end, if there is one."""
    found = [(int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := _NAME.match(path.name))]
    whole = [(step, path) for step, path in found if (path / _MARK).is_file()]
    return max(whole)[1] if whole else None


def remove_cut_short(folder: Path) -> None:
    """Remove checkpoints that a kill cut short: transformers would take the newest, whatever is in it."""
    for path in folder.glob("checkpoint-*"):
        if not (path / _MARK).is_file():
            shutil.rmtree(path)


class MarkWhole(TrainerCallback):
    """Marks a checkpoint when all its files, of all processes, are on the disk."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:  # noqa: ANN401
        args.distributed_state.wait_for_everyone()
        if not state.is_world_process_zero:
            return
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle, which nothing here reads
        for path in folder.rglob("*"):
            if path.is_file():
                _sync(path)
        (folder / _MARK).touch()
        _sync(folder / _MARK)
        sync_folder(folder)
        sync_folder(folder.parent)


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
