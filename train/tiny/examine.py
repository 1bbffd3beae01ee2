"""Have a finished run of the recipe ``tiny`` sit the exam: ``python -m zephyr_local.train.tiny.examine RUN``.

Leaves in RUN/exam: ``exam.json`` (every stage's marks and mistakes), ``results.md`` (a table, twenty samples, the
GGUF's mistakes) and ``zephyr-tiny.md``, the card that is shipped beside the GGUF.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from zephyr_local.errors import InvalidInputError
from zephyr_local.train.child import run_child
from zephyr_local.train.data.records import write_whole
from zephyr_local.train.recipe import Stage
from zephyr_local.train.run_folder import RunFolder
from zephyr_local.train.tiny.card import (
    StageFacts,
    exam_table,
    made_by_stages,
    mistakes_text,
    model_card,
    samples,
)
from zephyr_local.train.tiny.dialogues import ExamQuestion
from zephyr_local.train.tiny.exam import ExamResult, take_exam

_STAGES: Final[tuple[tuple[Stage, str, str], ...]] = (
    ("pretrain", "pre-training", "paragraphs"),
    ("dsft", "dSFT", "chats"),
    ("ddpo", "dDPO", "pairs of answers"),
)


@dataclass(frozen=True, slots=True)
class Examination:
    """What the models of a run got."""

    results: Mapping[str, ExamResult]
    """``pretrain``, ``dsft``, ``ddpo`` and the GGUF's file name, in this order."""
    stages: tuple[StageFacts, ...]
    n_parameters: int
    gguf: Path

    def write(self, folder: Path) -> None:
        """exam.json, results.md and zephyr-tiny.md, each whole or absent."""
        exported = self.results[self.gguf.name]
        titles = [*(title for _, title, _ in _STAGES), self.gguf.name]
        columns = list(zip(titles, self.results.values(), strict=True))
        values = {name: result.as_json() for name, result in self.results.items()}
        made = made_by_stages(self.stages)
        card = model_card(self.n_parameters, self.gguf.stat().st_size, columns, made)
        read = f"{samples(self.gguf)}\n\nMistakes of {self.gguf.name}:\n\n{mistakes_text(exported.mistakes)}\n"
        write_whole(folder / "exam.json", json.dumps(values, indent=2, ensure_ascii=False).encode() + b"\n")
        write_whole(folder / "results.md", f"{made}\n\n{exam_table(columns)}\n\n{read}".encode())
        write_whole(folder / "zephyr-tiny.md", card.encode())


def examine(folder: Path, questions: Sequence[ExamQuestion] | None = None) -> Examination:
    """The exam (or other questions) after each stage of a run, and of its GGUF.

    Raises InvalidInputError for a run that is not finished.
    """
    run = RunFolder(folder)
    ggufs = sorted(folder.glob("*.gguf"))
    unfinished = [name for name, _, _ in _STAGES if not run.stage(name).done.is_file()]
    if unfinished or len(ggufs) != 1:
        what = f"the stage {unfinished[0]} is not done" if unfinished else f"there are {len(ggufs)} GGUF files, not one"
        raise InvalidInputError(f"{folder} is no finished run of tiny: {what}", "Run the recipe tiny into it first")
    stages, n_parameters = [], 0
    for name, title, things in _STAGES:
        facts, data = _json(run.stage(name).results), _json(run.stage(name).data_report)
        stages.append(StageFacts(title, f"{data['kept']:,} {things}", facts["n_steps"], facts["elapsed_s"]))
        n_parameters = facts["n_parameters"]
    results: dict[str, ExamResult] = {name: take_exam(run.stage(name).folder, questions) for name, _, _ in _STAGES}
    results[ggufs[0].name] = take_exam(ggufs[0], questions)
    return Examination(results, tuple(stages), n_parameters, ggufs[0])


def _json(path: Path) -> Any:  # noqa: ANN401 — JSON values
    return json.loads(path.read_bytes())


def main() -> int:
    """The process's entry point; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m zephyr_local.train.tiny.examine")
    parser.add_argument("run", type=Path, help="what `zephyr-local train run` was told to write to")
    run: Path = parser.parse_args().run
    code = run_child(lambda: examine(run).write(run / "exam"))
    if code == 0:
        sys.stdout.write((run / "exam" / "results.md").read_text(encoding="utf-8"))
    return code


if __name__ == "__main__":
    sys.exit(main())
