"""MT-Bench run: models answer two turns, a judge rates each answer or compares two, and nothing is asked twice."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Final, Literal

from zephyr_local.chat_types import Message
from zephyr_local.errors import InvalidInputError
from zephyr_local.train.asking.asker import Refused
from zephyr_local.train.asking.models import ModelSpec
from zephyr_local.train.asking.request import Request, UnreadableError
from zephyr_local.train.asking.session import Questions, Session
from zephyr_local.train.evaluate.model_names import file_name, require_different
from zephyr_local.train.evaluate.mt_files import (
    ERROR_ANSWER,
    Answers,
    JudgePrompt,
    Question,
    judge_prompt,
    read_answers,
    require_answers,
    write_answers,
    write_judgments,
)
from zephyr_local.train.evaluate.mt_scores import NO_RATING

Mode = Literal["single", "pairwise-baseline", "pairwise-all"]
MODES: Final[tuple[Mode, ...]] = ("single", "pairwise-baseline", "pairwise-all")

ANSWER_TOKENS: Final = 1024
JUDGMENT_TOKENS: Final = 2048
TIE_DIFFERENCE: Final = 0.1
"""Two ratings of one judgment that are nearer than this are a tie."""

_NUMBER: Final = r"(\d{1,9}\.?\d{0,9})"
_RATING: Final = re.compile(rf"\[\[{_NUMBER}\]\]")
_BARE_RATING: Final = re.compile(rf"\[{_NUMBER}\]")
_TWO_RATINGS: Final = re.compile(rf"\[\[{_NUMBER},\s?{_NUMBER}\]\]")


@dataclass(frozen=True, slots=True)
class MtBench:
    """What a run is given."""

    questions: Sequence[Question]
    prompts: Mapping[str, JudgePrompt]
    references: Answers | None
    """Reference answers, for the categories that need one."""
    judge: ModelSpec
    mode: Mode = "single"
    baseline: str | None = None
    """The model that the others are compared with, in ``pairwise-baseline``."""

    def __post_init__(self) -> None:
        """Raises InvalidInputError where a question needs a reference answer that is not there."""
        needing = [question for question in self.questions if question.needs_reference]
        if needing and self.references is None:
            names = ", ".join(sorted({question.category for question in needing}))
            raise InvalidInputError(
                f"the judge of {names} is shown reference answers, and there are none",
                "Give --references, such as FastChat's reference_answer/gpt-4.jsonl",
            )
        if needing and self.references is not None:
            require_answers(needing, self.references, "the --references file")
        if self.mode == "pairwise-baseline" and not self.baseline:
            raise InvalidInputError("there is no baseline to compare with", "Give --baseline NAME")
        self.judge.require_judge()


def answer_questions(session: Session, bench: MtBench, specs: Sequence[ModelSpec]) -> dict[str, Answers]:
    """Every model's answers, asked for or read, each written to ``model_answer/`` of the session's folder."""
    ready = {spec: read_answers(Path(spec.file)) for spec in specs if spec.kind == "file"}
    for spec, (_, answers) in ready.items():
        require_answers(bench.questions, answers, spec.file)
    names = [ready[spec][0] if spec in ready else spec.name for spec in specs]
    require_different(names)
    if bench.mode != "single":
        _pairs(bench, names)
    found: dict[str, Answers] = dict(ready.values())
    asked = [spec for spec in specs if spec not in ready]
    first = session.ask_each([_turn(bench, spec, None) for spec in asked], str)
    with_second = [question for question in bench.questions if len(question.turns) > 1]
    firsts = [dict(zip((q.id for q in bench.questions), map(_text, outcome), strict=True)) for outcome in first]
    second = session.ask_each([_turn(bench, spec, texts) for spec, texts in zip(asked, firsts, strict=True)], str)
    for spec, texts, outcome in zip(asked, firsts, second, strict=True):
        seconds = dict(zip((q.id for q in with_second), map(_text, outcome), strict=True))
        answers = {q.id: (texts[q.id], *([seconds[q.id]] if q.id in seconds else [])) for q in bench.questions}
        found[spec.name] = answers
    for name, answers_of_model in found.items():
        write_answers(session.folder / "model_answer" / f"{file_name(name)}.jsonl", name, answers_of_model)
    return found


def _text(outcome: str | Refused) -> str:
    return ERROR_ANSWER if isinstance(outcome, Refused) else outcome


def _turn(bench: MtBench, spec: ModelSpec, firsts: Mapping[int | str, str] | None) -> Questions:
    """What a model is asked in the first turn, or, with its answers to that, in the second."""
    requests = []
    for question in bench.questions:
        if firsts is not None and len(question.turns) < 2:
            continue
        messages = [Message("user", question.turns[0])]
        if firsts is not None:
            messages += [Message("assistant", firsts[question.id]), Message("user", question.turns[1])]
        requests.append(spec.request(tuple(messages), temperature=question.temperature, max_tokens=ANSWER_TOKENS))
    return Questions(spec, requests, f"{spec.name}, turn {1 if firsts is None else 2}")


# --- judging ---


@dataclass(frozen=True, slots=True)
class _Match:
    """One judgment of one answer, or of two in this order."""

    question: Question
    turn: int
    models: tuple[str, ...]
    prompt: JudgePrompt
    filled: str

    def request(self, judge: ModelSpec) -> Request:
        messages = [Message("system", self.prompt.system_prompt)] if self.prompt.system_prompt.strip() else []
        asked = (*messages, Message("user", self.filled))
        return judge.request(asked, temperature=0.0, max_tokens=JUDGMENT_TOKENS)


def judge_singly(session: Session, bench: MtBench, answers: Mapping[str, Answers]) -> list[dict[str, Any]]:
    """Rate every answer of every model; returns FastChat's records, which are in ``model_judgment/`` too."""
    matches = [
        _match(bench, question, turn, (model,), answers)
        for turn in (1, 2)
        for question in bench.questions
        if len(question.turns) >= turn
        for model in answers
    ]
    outcomes = _judged(session, bench, matches, read_rating)
    now = time.time()
    judgments = [
        {
            "question_id": match.question.id,
            "model": match.models[0],
            "judge": [bench.judge.name, match.prompt.name],
            "user_prompt": match.filled,
            "judgment": judgment,
            "score": NO_RATING if score is None else score,
            "turn": match.turn,
            "tstamp": now,
        }
        for match, (judgment, score) in zip(matches, outcomes, strict=True)
    ]
    return write_judgments(_judgment_file(session, bench, "single"), judgments, ("model",))


def judge_pairs(session: Session, bench: MtBench, answers: Mapping[str, Answers]) -> list[dict[str, Any]]:
    """Compare models two by two, each pair in both orders; returns FastChat's records."""
    pairs = _pairs(bench, list(answers))
    games = [
        (question, turn, pair)
        for turn in (1, 2)
        for question in bench.questions
        if len(question.turns) >= turn
        for pair in pairs
    ]
    matches = [
        _match(bench, question, turn, order, answers) for question, turn, pair in games for order in (pair, pair[::-1])
    ]
    outcomes = _judged(session, bench, matches, read_winner)
    now = time.time()
    judgments = []
    for index, (question, turn, pair) in enumerate(games):
        (judgment_1, winner_1), (judgment_2, winner_2) = outcomes[2 * index : 2 * index + 2]
        judgments.append(
            {
                "question_id": question.id,
                "model_1": pair[0],
                "model_2": pair[1],
                "g1_winner": _winner(winner_1, ("model_1", "model_2")),
                "g2_winner": _winner(winner_2, ("model_2", "model_1")),
                "judge": [bench.judge.name, matches[2 * index].prompt.name],
                "g1_user_prompt": matches[2 * index].filled,
                "g1_judgment": judgment_1,
                "g2_user_prompt": matches[2 * index + 1].filled,
                "g2_judgment": judgment_2,
                "turn": turn,
                "tstamp": now,
            }
        )
    return write_judgments(_judgment_file(session, bench, "pair"), judgments, ("model_1", "model_2"))


def _pairs(bench: MtBench, names: Sequence[str]) -> list[tuple[str, str]]:
    """Which models are compared. Raises InvalidInputError where there are not two."""
    if bench.mode == "pairwise-all":
        pairs = list(combinations(names, 2))
    else:
        assert bench.baseline is not None, "MtBench has checked it"
        if bench.baseline not in names:
            raise InvalidInputError(
                f"the baseline {bench.baseline} is none of {', '.join(names)}", "Name it among the models"
            )
        pairs = [(model, bench.baseline) for model in names if model != bench.baseline]
    if not pairs:
        raise InvalidInputError("there are not two models to compare", "Name two or more")
    return pairs


def _winner(letter: str | None, models: tuple[str, str]) -> str:
    return {"A": models[0], "B": models[1], "tie": "tie"}.get(letter or "", "error")


def _match(
    bench: MtBench, question: Question, turn: int, models: tuple[str, ...], answers: Mapping[str, Answers]
) -> _Match:
    single = len(models) == 1
    kind = "math-v1" if question.needs_reference else "v1" if single else "v2"
    name = f"{'single' if single else 'pair'}-{kind}{'-multi-turn' if turn == 2 else ''}"
    values: dict[str, str] = {}
    if turn == 1:
        values["question"] = question.turns[0]
    else:
        values["question_1"], values["question_2"] = question.turns
    for letter, model in zip(("",) if single else ("_a", "_b"), models, strict=True):
        if turn == 1:
            values[f"answer{letter}"] = answers[model][question.id][0]
        else:
            values[f"answer{letter}_1"], values[f"answer{letter}_2"] = answers[model][question.id][:2]
    if question.needs_reference and bench.references is not None:
        for number, text in enumerate(bench.references[question.id][:turn], start=1):
            values[f"ref_answer_{number}"] = text
    prompt = judge_prompt(bench.prompts, name)
    return _Match(question, turn, models, prompt, prompt.fill(values))


@dataclass(frozen=True, slots=True)
class _Read:
    """Keeps a judgment's text beside what was read in it."""

    text: str
    value: Any


def _judged(
    session: Session,
    bench: MtBench,
    matches: Sequence[_Match],
    read: Any,  # noqa: ANN401
) -> list[tuple[str, Any]]:
    """Each match's judgment and what it says; None where nothing could be read in it."""
    requests = [match.request(bench.judge) for match in matches]
    outcomes: list[_Read | Refused] = session.ask(
        Questions(bench.judge, requests, f"{bench.judge.name} judges"), lambda text: _Read(text, read(text))
    )
    return [
        (outcome.text, None) if isinstance(outcome, Refused) else (outcome.text, outcome.value) for outcome in outcomes
    ]


def read_rating(judgment: str) -> float | int:
    """The rating of a judgment by FastChat's rule: the first ``[[5]]``, else the first ``[5]``.

    Raises UnreadableError where there is none from 1 to 10.
    """
    match = _RATING.search(judgment) or _BARE_RATING.search(judgment)
    if match is None:
        raise UnreadableError("no [[rating]] in the judgment")
    rating = float(match[1]) if "." in match[1] else int(match[1])
    if not 1 <= rating <= 10:
        raise UnreadableError("a rating outside 1 to 10")
    return rating


def read_winner(judgment: str) -> str:
    """``A``, ``B`` or ``tie``, by FastChat's rule; of two ratings, the higher. Raises UnreadableError."""
    for mark, winner in (("[[A]]", "A"), ("[[B]]", "B"), ("[[C]]", "tie")):
        if mark in judgment:
            return winner
    match = _TWO_RATINGS.search(judgment)
    if match is None:
        raise UnreadableError("no [[A]], [[B]] or [[C]] in the judgment")
    first, second = float(match[1]), float(match[2])
    if abs(first - second) <= TIE_DIFFERENCE:
        return "tie"
    return "A" if first > second else "B"


def _judgment_file(session: Session, bench: MtBench, kind: str) -> Path:
    return session.folder / "model_judgment" / f"{file_name(bench.judge.name)}_{kind}.jsonl"
