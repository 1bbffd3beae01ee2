"""MT-Bench's files as FastChat reads and writes them: questions, judge prompts, answers, judgments.

The formats are those of FastChat's ``llm_judge`` (Zheng et al. 2023, arXiv 2306.05685); none of its files is shipped.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from zephyr_local.errors import InvalidInputError
from zephyr_local.train.data.records import Record, RecordWriter, read_records

NEED_REFERENCE: Final = frozenset({"math", "reasoning", "coding", "arena-hard-200"})
"""Categories whose judge is shown a reference answer."""
TEMPERATURES: Final[Mapping[str, float]] = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
    "arena-hard-200": 0.0,
}
"""At which a category is answered; others at 0.7."""
ERROR_ANSWER: Final = "$ERROR$"
"""What stands for an answer that the model could not give."""

_BRACES: Final = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


@dataclass(frozen=True, slots=True)
class Question:
    """A question of one turn or two."""

    id: int | str
    category: str
    turns: tuple[str, ...]
    required_temperature: float | None = None

    @property
    def temperature(self) -> float:
        if self.required_temperature is not None:
            return self.required_temperature
        return TEMPERATURES.get(self.category, 0.7)

    @property
    def needs_reference(self) -> bool:
        return self.category in NEED_REFERENCE


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """How a judge is asked."""

    name: str
    system_prompt: str
    prompt_template: str
    output_format: str
    """``[[rating]]``, ``[[A]]`` or ``[[rating_a,rating_b]]``."""

    def fill(self, values: Mapping[str, str]) -> str:
        """The template with its placeholders filled; doubled braces are single ones, as in Python's format strings.

        Raises InvalidInputError for a placeholder that has no value here.
        """

        def one(match: re.Match[str]) -> str:
            found = match[0]
            if found in ("{{", "}}"):
                return found[0]
            if match[1] is None or match[1] not in values:
                raise InvalidInputError(
                    f"the judge prompt {self.name} has {found!r}",
                    f"Here are {', '.join(values)}; write a brace of the text twice",
                )
            return values[match[1]]

        return _BRACES.sub(one, self.prompt_template)


Answers = Mapping[int | str, tuple[str, ...]]
"""A question's id → the answers to its turns."""


def read_questions(path: Path) -> list[Question]:
    """Raises InvalidInputError, naming the line."""
    found: dict[int | str, Question] = {}
    for record in read_records(path):
        identifier, turns, temperature = _id(record), _texts(record, "turns"), record.value.get("required_temperature")
        if len(turns) > 2:
            raise InvalidInputError(f"{record.where} has {len(turns)} turns", "Judge prompts know one turn or two")
        if identifier in found:
            raise InvalidInputError(f"{record.where} has the question_id {identifier} again", "Give each question one")
        category = record.value.get("category")
        found[identifier] = Question(
            identifier,
            category if isinstance(category, str) else "general",
            turns,
            float(temperature) if isinstance(temperature, (int, float)) else None,
        )
    if not found:
        raise InvalidInputError(f"{path} has no questions", "Give FastChat's question.jsonl")
    return list(found.values())


def read_judge_prompts(path: Path) -> dict[str, JudgePrompt]:
    """Raises InvalidInputError, naming the line."""
    found = {}
    for record in read_records(path):
        values = [record.value.get(key) for key in ("name", "system_prompt", "prompt_template", "output_format")]
        texts = [value for value in values if isinstance(value, str)]
        if len(texts) != 4:
            raise InvalidInputError(
                f"{record.where} lacks one of name, system_prompt, prompt_template, output_format",
                "Give FastChat's judge_prompts.jsonl",
            )
        found[texts[0]] = JudgePrompt(*texts)
    return found


def judge_prompt(prompts: Mapping[str, JudgePrompt], name: str) -> JudgePrompt:
    """Raises InvalidInputError where the file has no such prompt."""
    if name not in prompts:
        raise InvalidInputError(
            f"there is no judge prompt {name}; there are {', '.join(prompts)}", "Add it to the --judge-prompts file"
        )
    return prompts[name]


def read_answers(path: Path) -> tuple[str, dict[int | str, tuple[str, ...]]]:
    """The model's name and its answers, the first choice of each. Raises InvalidInputError, naming the line."""
    found: dict[int | str, tuple[str, ...]] = {}
    name = path.stem
    for record in read_records(path):
        choices = record.value.get("choices")
        first = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(first, Mapping):
            raise InvalidInputError(f"{record.where} has no choices", "Give answers as FastChat writes them")
        found[_id(record)] = _texts(Record(record.where, first), "turns")
        model = record.value.get("model_id")
        name = model if isinstance(model, str) and model else name
    return name, found


def write_answers(path: Path, model: str, answers: Answers) -> None:
    """As FastChat writes them."""
    now = time.time()
    with RecordWriter(path) as out:
        for identifier, turns in answers.items():
            seed = "\0".join([model, str(identifier), *turns]).encode(errors="replace")
            out.write(
                {
                    "question_id": identifier,
                    "answer_id": hashlib.blake2b(seed, digest_size=11).hexdigest(),
                    "model_id": model,
                    "choices": [{"index": 0, "turns": list(turns)}],
                    "tstamp": now,
                }
            )


def write_judgments(path: Path, judgments: Iterable[Mapping[str, Any]], models: Sequence[str]) -> list[dict[str, Any]]:
    """Write judgments, keeping those of other models that the file has; returns all of them.

    A new one replaces an old one of the same question, turn and models, which the keys `models` name; a pair is the
    same whichever of the two comes first.
    """
    merged = {}
    before = [dict(record.value) for record in read_records(path)] if path.is_file() else []
    for judgment in [*before, *judgments]:
        of = sorted(str(judgment.get(name)) for name in models)
        merged[(str(judgment.get("question_id")), str(judgment.get("turn")), *of)] = dict(judgment)
    with RecordWriter(path) as out:
        for judgment in merged.values():
            out.write(judgment)
    return list(merged.values())


def require_answers(questions: Sequence[Question], answers: Answers, whose: str) -> None:
    """Raises InvalidInputError where a question, or one of its turns, has no answer."""
    missing = [str(q.id) for q in questions if len(answers.get(q.id, ())) < len(q.turns)]
    if missing:
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        raise InvalidInputError(
            f"{whose} has no answer to {', '.join(missing[:8])}{more}", "Give a file with all of them"
        )


def _id(record: Record) -> int | str:
    identifier = record.value.get("question_id")
    if isinstance(identifier, bool) or not isinstance(identifier, (int, str)):
        raise InvalidInputError(f"{record.where} has no question_id", "Give a number or a name")
    return identifier


def _texts(record: Record, key: str) -> tuple[str, ...]:
    value = record.value.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise InvalidInputError(f"{record.where} has no list of texts in {key}", "Write them as FastChat does")
    return tuple(value)
