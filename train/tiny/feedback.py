"""AI feedback for zephyr-tiny: prompts, the four answerers' answers, the judge's ratings, in UltraFeedback's format."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zephyr_local.train.tiny.answerers import (
    COOL_TEMPERATURE,
    HOT_TEMPERATURE,
    LONGEST_ANSWER_TOKENS,
    ChatModel,
    four_answerers,
)
from zephyr_local.train.tiny.asked import Asked, all_asked
from zephyr_local.train.tiny.judge import judge
from zephyr_local.train.tiny.sampling import Progress, SampleSettings, TinyCheckpoint

SOURCE = "zephyr-tiny"
BEST_MEAN = 5.0
ON_POLICY_TEMPERATURES = (COOL_TEMPERATURE, HOT_TEMPERATURE, HOT_TEMPERATURE, HOT_TEMPERATURE)


@dataclass(frozen=True, slots=True)
class FeedbackSettings:
    """Which prompts feedback is given on."""

    drawn_for_one: int = 3
    """Prompts that are drawn and answered by the fine-tuned model for each one that is kept. Those go first where it
    erred: a pair teaches little where its own answers are right already."""


def feedback(
    n: int, seed: int, fine_tuned: Path, base: Path, progress: Progress | None = None
) -> Iterator[dict[str, Any]]:
    """Records of ``n`` prompts with four rated answers each; the folders hold the checkpoints of the two stages.

    The same seed and checkpoints give the same records, on any number of threads but for ties in the last bits.
    """
    drawn = tuple(itertools.islice(all_asked(seed), n * FeedbackSettings().drawn_for_one))
    teacher, cool, hot, completer = four_answerers(
        TinyCheckpoint.load(fine_tuned), TinyCheckpoint.load(base), seed, progress
    )
    own = list(zip(cool.answer(drawn), hot.answer(drawn), strict=True))
    kept = _most_telling(drawn, own, n)
    asked = [drawn[index] for index in kept]
    names = (teacher.name, cool.name, hot.name, completer.name)
    taught, completed = teacher.answer(asked), completer.answer(asked)
    for number, (index, one) in enumerate(zip(kept, asked, strict=True)):
        answers = (taught[number], *own[index], completed[number])
        yield feedback_record(f"tiny-{seed}-{index}", one, dict(zip(names, answers, strict=True)))


def on_policy_feedback(n: int, seed: int, policy: Path, progress: Progress | None = None) -> Iterator[dict[str, Any]]:
    """Records of ``n`` prompts with four rated answers each, all of them of the one checkpoint."""
    drawn = tuple(itertools.islice(all_asked(seed), n * FeedbackSettings().drawn_for_one))
    checkpoint = TinyCheckpoint.load(policy)
    answerers = [
        ChatModel(
            f"policy at {temperature} #{number}", checkpoint, SampleSettings(temperature, LONGEST_ANSWER_TOKENS, s)
        )
        for number, (temperature, s) in enumerate(zip(ON_POLICY_TEMPERATURES, range(seed, seed + 4), strict=True), 1)
    ]
    own = list(zip(*(answerer.answer(drawn) for answerer in answerers), strict=True))
    for index in _most_telling(drawn, own, n):
        answers = dict(zip((answerer.name for answerer in answerers), own[index], strict=True))
        yield feedback_record(f"tiny-on-policy-{seed}-{index}", drawn[index], answers)


def _most_telling(drawn: Sequence[Asked], own: Sequence[tuple[str, ...]], n: int) -> list[int]:
    """Places of the prompts to keep, in their order: first those that the fine-tuned model got wrong."""
    erred, fine = list[int](), list[int]()
    for index, (asked, answers) in enumerate(zip(drawn, own, strict=True)):
        worst = min(judge(asked.fact, asked.style, answer).mean for answer in answers)
        (fine if worst == BEST_MEAN else erred).append(index)
    return sorted((erred + fine)[:n])


def feedback_record(name: str, asked: Asked, answers: Mapping[str, str]) -> dict[str, Any]:
    """One record. Beside UltraFeedback's keys it has ``prompt``, the whole chat: a system turn asks for a style."""
    completions = []
    for model, response in answers.items():
        verdict = judge(asked.fact, asked.style, response)
        completions.append(
            {
                "model": model,
                "response": response,
                "annotations": verdict.annotations(),
                "overall_score": 2 * verdict.mean,  # a critique's score goes to ten
            }
        )
    return {
        "instruction": asked.question,
        "prompt": [{"role": message.role, "content": message.content} for message in asked.messages],
        "models": list(answers),
        "completions": completions,
        "id": name,
        "source": SOURCE,
    }
