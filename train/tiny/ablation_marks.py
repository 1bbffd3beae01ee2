"""What each model of the ablation is worth: its exam, the judge's ratings of its answers, its reward accuracy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from zephyr_local.train.chat_ids import ChatIds
from zephyr_local.train.data.records import write_whole
from zephyr_local.train.evaluate_pairs import EvaluationSettings, evaluate_pairs
from zephyr_local.train.finish import copy_tokenizer
from zephyr_local.train.tiny.ablation import (
    EPOCHS,
    START,
    VARIANTS,
    AblationFolder,
    AblationSettings,
    Say,
    rated_prompts,
)
from zephyr_local.train.tiny.asked import Asked, all_asked
from zephyr_local.train.tiny.dialogues import ExamQuestion, exam
from zephyr_local.train.tiny.exam import answers_of, is_refusal, is_right
from zephyr_local.train.tiny.judge import judge

_JUDGED_SEED: Final = 1000


@dataclass(frozen=True, slots=True)
class Marks:
    """One model's. Lists have an entry a question, so that intervals can be drawn from them."""

    exam_right: list[bool]
    confident_errors: list[bool]
    """Wrong, and said as if it were so."""
    ratings: list[float]
    """The judge's mean of four criteria, 1 to 5, an answer each."""

    def as_json(self) -> dict[str, Any]:
        return {"exam_right": self.exam_right, "confident_errors": self.confident_errors, "ratings": self.ratings}


def marks_of(model: Path, questions: Sequence[ExamQuestion], asked: Sequence[Asked]) -> Marks:
    """A checkpoint's marks: it answers all questions and prompts at temperature 0."""
    chats = [question.messages for question in questions] + [one.messages for one in asked]
    said = answers_of(model, chats)
    exam_said, judged_said = said[: len(questions)], said[len(questions) :]
    right = [is_right(question, answer) for question, answer in zip(questions, exam_said, strict=True)]
    return Marks(
        exam_right=right,
        confident_errors=[not good and not is_refusal(a) for good, a in zip(right, exam_said, strict=True)],
        ratings=[judge(one.fact, one.style, answer).mean for one, answer in zip(asked, judged_said, strict=True)],
    )


def judged_prompts(folder: AblationFolder, n: int) -> list[Asked]:
    """Prompts for the judge's comparison, the same each time, none of which feedback was given on."""
    known = set(rated_prompts(folder))
    found: list[Asked] = []
    for asked in all_asked(_JUDGED_SEED):
        if tuple((turn.role, turn.content) for turn in asked.messages) not in known:
            found.append(asked)
            if len(found) == n:
                return found
    raise AssertionError("prompts are without end")


def mark_ablation(folder: AblationFolder, settings: AblationSettings, threads: int | None, say: Say) -> None:
    """Mark every model that has no marks yet."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    questions, asked = exam(), judged_prompts(folder, settings.judged)
    for seed in range(1, settings.seeds + 1):
        for variant in VARIANTS:
            _mark(folder.marks(seed, variant), folder.model(seed, variant), questions, asked, {}, say)
        start = folder.run(seed, START).stage("dsft").folder
        data = folder.run(seed, EPOCHS).stage("ddpo").data
        for number, model in enumerate([start, *epoch_models(folder, seed)]):
            target = folder.marks(seed, f"epoch-{number}")
            if target.is_file():
                continue
            accuracies = {}
            for split, limit in (("train", settings.accuracy_pairs), ("test", None)):
                found = evaluate_pairs(model, start, [data / f"{split}.jsonl"], EvaluationSettings(limit=limit))
                accuracies[split] = list(found.right)
            _mark(target, model, questions, asked, {"accuracy": accuracies}, say)


def _mark(
    target: Path,
    model: Path,
    questions: Sequence[ExamQuestion],
    asked: Sequence[Asked],
    more: dict[str, Any],
    say: Say,
) -> None:
    if target.is_file():
        return
    marks = marks_of(model, questions, asked)
    write_whole(target, json.dumps({**marks.as_json(), **more}).encode() + b"\n")
    say(f"{target.parent.name}/{target.name}: {sum(marks.exam_right)} of {len(marks.exam_right)} in the exam")


def epoch_models(folder: AblationFolder, seed: int) -> list[Path]:
    """A checkpoint's folder after each epoch, in order; each gets the tokenizer, which a trainer does not save."""
    run = folder.run(seed, EPOCHS)
    found = sorted(run.stage("ddpo").checkpoints.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    start = folder.run(seed, START).stage("dsft").folder
    chats = ChatIds.of_checkpoint(start)
    for checkpoint in found:
        if not (checkpoint / "tokenizer.model").is_file():
            copy_tokenizer(start, checkpoint, chats)
    return found
