"""AI feedback from prompts to rated answers (Tunstall et al. 2023, section 3; Cui et al. 2023, arXiv 2310.01377).

Candidates answer each prompt, a judge rates the answers by four criteria, and the records are UltraFeedback's.
"""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from zephyr_local.errors import InvalidInputError, OutputError, ZephyrError
from zephyr_local.train.asking.asker import Refused, UnansweredError
from zephyr_local.train.asking.ledger import BudgetReachedError
from zephyr_local.train.asking.models import ModelSpec
from zephyr_local.train.asking.request import Request
from zephyr_local.train.asking.session import NOT_ASKED, NotAsked, Questions, Session
from zephyr_local.train.asking.template import JudgeTemplate
from zephyr_local.train.data.normal_text import stable_hash
from zephyr_local.train.data.records import RecordWriter, WholeFile
from zephyr_local.train.data.report import DataReport
from zephyr_local.train.data.ultrafeedback import ASPECTS
from zephyr_local.train.feedback.prompts import Prompt, prompt_key, read_ready_answers
from zephyr_local.train.feedback.ratings import Rating, read_ratings

ANSWER_TEMPERATURE: Final = 0.7
ANSWER_TOKENS: Final = 1024
JUDGMENT_TOKENS: Final = 1024
JUDGMENT_TOKENS_AN_ANSWER: Final = 256
PROMPTS_A_BATCH: Final = 256
"""Prompts that are judged before the next: what a budget ends after is complete."""
LEAST_ANSWERS: Final = 2


@dataclass(frozen=True, slots=True)
class Candidate:
    """One answerer: a model, and which of its samples."""

    spec: ModelSpec
    sample: int = 0
    name: str = ""


@dataclass(frozen=True, slots=True)
class FeedbackSettings:
    """Who answers, who judges, and how."""

    candidates: tuple[ModelSpec, ...]
    judge: ModelSpec
    templates: Mapping[str, JudgeTemplate]
    """Criterion → how the judge is asked; the four of UltraFeedback."""
    samples: int = 1
    """Answers of each candidate to each prompt."""
    draw: int | None = None
    """So many of the answerers are drawn for each prompt, as UltraFeedback draws four of a pool; None: all."""
    seed: int = 0
    """Of the draw, and of the order in which answers are shown."""

    def __post_init__(self) -> None:
        n = len(self.candidates) * self.samples
        if self.samples < 1:
            raise InvalidInputError(f"samples is {self.samples}", "Give 1 or more")
        if (self.draw or n) < LEAST_ANSWERS or n < (self.draw or 0):
            of = f"{self.draw} of {n}" if self.draw is not None else str(n)
            raise InvalidInputError(
                f"each prompt would get {of} answers", "A pair is made of two or more: add --candidate or --samples"
            )
        names = [spec.name for spec in self.candidates]
        if len(set(names)) < len(names):
            raise InvalidInputError(
                f"two candidates have one name: {', '.join(names)}", "Give them names in a --models file"
            )
        self.judge.require_judge()
        for spec in self.candidates:
            if spec.kind == "file" and self.samples > 1:
                raise InvalidInputError(f"{spec.name} has one answer to a prompt", "Leave --samples out")

    @property
    def answerers(self) -> tuple[Candidate, ...]:
        many = self.samples > 1
        return tuple(
            Candidate(spec, sample, f"{spec.name} #{sample + 1}" if many else spec.name)
            for spec in self.candidates
            for sample in range(self.samples)
        )

    def drawn(self, prompt: Prompt) -> tuple[Candidate, ...]:
        """Who answers a prompt: the same each time, in the order of the candidates."""
        answerers = self.answerers
        if self.draw is None:
            return answerers
        key = prompt_key(prompt.messages)
        order = sorted(range(len(answerers)), key=lambda i: stable_hash(f"draw\0{answerers[i].name}\0{key}", self.seed))
        return tuple(answerers[index] for index in sorted(order[: self.draw]))


@dataclass(slots=True)
class Feedback:
    """What became of the prompts."""

    report: DataReport
    n_records: int = 0
    n_answers: int = 0
    n_unrated: Counter[str] = field(default_factory=Counter)
    """Criterion → prompts whose answers the judge did not rate by it."""

    def put_in_facts(self) -> None:
        """Into the report."""
        self.report.facts |= {
            "records": self.n_records,
            "answers": self.n_answers,
            "not_rated": dict(self.n_unrated),
        }


def give_feedback(
    session: Session,
    prompts: Iterable[Prompt],
    settings: FeedbackSettings,
    output: Path,
    report: DataReport,
    say: Callable[[str], object] = lambda _line: None,
) -> Feedback:
    """Have prompts answered and the answers rated; write UltraFeedback's records to `output`, .jsonl or .parquet.

    The file is whole or absent, and one that is there stays until then. Where the budget or an endpoint ends it, the
    prompts that are complete are written into the session's folder, as ``complete.jsonl``, before BudgetReachedError or
    UnansweredError is raised. OutputError where something cannot be written.
    """
    feedback = Feedback(report)
    files = {spec.name: read_ready_answers(Path(spec.file)) for spec in settings.candidates if spec.kind == "file"}
    complete = session.folder / f"complete{output.suffix}"
    for left in session.folder.glob(f".{complete.name}.*.part"):  # by a run that was killed
        left.unlink(missing_ok=True)
    try:
        try:
            ended = _write_records(session, prompts, settings, files, feedback, complete)
        finally:
            feedback.put_in_facts()
        if ended is not None:
            say(f"the {feedback.n_records:,} prompts that are complete are in {complete}")
            raise ended
        with WholeFile(output) as whole, complete.open("rb") as stream:
            shutil.copyfileobj(stream, whole.stream)
        complete.unlink()
    except OSError as error:
        raise OutputError(
            f"{error.filename or output} cannot be written: {error.strerror}",
            "Free some space: the answers are kept, and the same command goes on",
        ) from None
    return feedback


def _write_records(
    session: Session,
    prompts: Iterable[Prompt],
    settings: FeedbackSettings,
    files: Mapping[str, Mapping[str, str]],
    feedback: Feedback,
    target: Path,
) -> ZephyrError | None:
    """Write the records; returns what ended it early. Without a single record it raises that, and writes nothing."""
    ended: ZephyrError | None = None
    with RecordWriter(target) as out:
        try:
            for some, answers in _answered(session, prompts, settings, files):
                records, ended = _records(session, some, answers, settings, feedback)
                for record in records:
                    out.write(record)
                    feedback.n_records += 1
                    feedback.n_answers += len(record["completions"])
                if ended is not None:
                    break
        except (BudgetReachedError, UnansweredError) as error:
            ended = error
        if not feedback.n_records:
            raise ended or InvalidInputError(
                "no prompt got two answers" if feedback.report.n_read else "there are no prompts",
                "Check the inputs: records with prompt, question, instruction or messages",
            )
    return ended


def _answered(
    session: Session,
    prompts: Iterable[Prompt],
    settings: FeedbackSettings,
    files: Mapping[str, Mapping[str, str]],
) -> Iterator[tuple[list[Prompt], list[dict[str, str]]]]:
    """Prompts with their answers, some at a time. Where a candidate is a local model, all are answered before the first
    is judged, or each model would be loaded again for each batch.
    """
    source = iter(prompts)
    first = list(itertools.islice(source, PROMPTS_A_BATCH))
    for name, ready in files.items():  # before anybody is paid
        if first and not any(prompt_key(prompt.messages) in ready for prompt in first):
            raise InvalidInputError(
                f"{name} has no answer to any of the first {len(first):,} prompts", "Give the answers to these prompts"
            )
    source = itertools.chain(first, source)
    if not any(spec.kind == "gguf" for spec in settings.candidates):
        while some := list(itertools.islice(source, PROMPTS_A_BATCH)):
            yield some, _answers(session, some, settings, files)
        return
    every = list(source)
    answers = _answers(session, every, settings, files)
    for at in range(0, len(every), PROMPTS_A_BATCH):
        yield every[at : at + PROMPTS_A_BATCH], answers[at : at + PROMPTS_A_BATCH]


def _records(
    session: Session,
    prompts: Sequence[Prompt],
    answers: Sequence[Mapping[str, str]],
    settings: FeedbackSettings,
    feedback: Feedback,
) -> tuple[list[dict[str, Any]], ZephyrError | None]:
    """The records of the prompts that are complete, and what ended it where not all are."""
    judged: list[tuple[Prompt, Mapping[str, str]]] = []
    for prompt, said in zip(prompts, answers, strict=True):
        if len(said) < LEAST_ANSWERS:
            feedback.report.n_kept -= 1
            feedback.report.drop("fewer than two answers", prompt.id, prompt.messages[-1].content)
        else:
            judged.append((prompt, said))
    ratings, ended = _ratings(session, judged, settings, feedback)
    records = [
        _record(prompt, said, rated) for (prompt, said), rated in zip(judged, ratings, strict=True) if rated is not None
    ]
    return records, ended


def _answers(
    session: Session,
    prompts: Sequence[Prompt],
    settings: FeedbackSettings,
    files: Mapping[str, Mapping[str, str]],
) -> list[dict[str, str]]:
    """For each prompt the answerers' names and what they said, without those that said nothing."""
    drawn = [settings.drawn(prompt) for prompt in prompts]
    wanted: dict[str, list[tuple[int, Candidate]]] = {}  # model → (which prompt, which sample)
    for index, answerers in enumerate(drawn):
        for candidate in answerers:
            wanted.setdefault(candidate.spec.name, []).append((index, candidate))
    asked = [spec for spec in settings.candidates if spec.kind != "file" and spec.name in wanted]
    questions = [
        Questions(
            spec,
            [
                spec.request(
                    prompts[index].messages,
                    temperature=ANSWER_TEMPERATURE,
                    max_tokens=ANSWER_TOKENS,
                    sample=candidate.sample,
                )
                for index, candidate in wanted[spec.name]
            ],
            f"{spec.name} answers",
        )
        for spec in asked
    ]
    said: list[dict[str, str]] = [{} for _ in prompts]
    for spec, outcomes in zip(asked, session.ask_each(questions, str), strict=True):
        for (index, candidate), outcome in zip(wanted[spec.name], outcomes, strict=True):
            if not isinstance(outcome, Refused) and outcome.strip():
                said[index][candidate.name] = outcome
    for name, ready in files.items():
        for index, candidate in wanted.get(name, ()):
            answer = ready.get(prompt_key(prompts[index].messages), "")
            if answer.strip():
                said[index][candidate.name] = answer
    return [{c.name: found[c.name] for c in who if c.name in found} for who, found in zip(drawn, said, strict=True)]


def shown_order(prompt: Prompt, aspect: str, names: Sequence[str], seed: int) -> list[str]:
    """The answerers in the order in which a judge sees their answers: drawn anew for each prompt and criterion."""
    key = prompt_key(prompt.messages)
    return sorted(names, key=lambda name: stable_hash(f"order\0{aspect}\0{name}\0{key}", seed))


def _ratings(
    session: Session,
    judged: Sequence[tuple[Prompt, Mapping[str, str]]],
    settings: FeedbackSettings,
    feedback: Feedback,
) -> tuple[list[dict[str, dict[str, Rating]] | None], ZephyrError | None]:
    """For each prompt: criterion → answerer → rating, or None where it was not judged by all; and what ended it."""
    judge = settings.judge
    places, requests = list[tuple[int, str, list[str]]](), list[Request]()
    for index, (prompt, said) in enumerate(judged):
        for aspect, template in settings.templates.items():
            order = shown_order(prompt, aspect, list(said), settings.seed)
            values = {"instruction": prompt.instruction, "answers": [said[name] for name in order]}
            places.append((index, aspect, order))
            most = max(JUDGMENT_TOKENS, JUDGMENT_TOKENS_AN_ANSWER * len(order))
            requests.append(judge.request(template.messages(values), temperature=0.0, max_tokens=most))
    # How many answers a reply should rate depends on the question: it is read for each number apart.
    rated: list[dict[str, dict[str, Rating]] | None] = [{} for _ in judged]
    ended: ZephyrError | None = None
    by_count: dict[int, list[int]] = {}
    for number, (_, _, order) in enumerate(places):
        by_count.setdefault(len(order), []).append(number)
    for n_answers, numbers in sorted(by_count.items(), reverse=True):
        name = f"{judge.name} judges" + (f" {n_answers} answers" if len(by_count) > 1 else "")
        outcomes: Sequence[tuple[Rating, ...] | Refused | NotAsked] = [NOT_ASKED] * len(numbers)
        if ended is None:
            outcomes, ended = session.ask_some(
                Questions(judge, [requests[number] for number in numbers], name),
                lambda reply, n_answers=n_answers: read_ratings(reply, n_answers),  # type: ignore[misc]
            )
        for number, outcome in zip(numbers, outcomes, strict=True):
            index, aspect, order = places[number]
            of_prompt = rated[index]
            if isinstance(outcome, NotAsked):
                rated[index] = None
            elif isinstance(outcome, Refused):
                feedback.n_unrated[aspect] += 1
            elif of_prompt is not None:
                of_prompt[aspect] = dict(zip(order, outcome, strict=True))
    return rated, ended


def _record(prompt: Prompt, said: Mapping[str, str], rated: Mapping[str, Mapping[str, Rating]]) -> dict[str, Any]:
    """UltraFeedback's record. A criterion that the judge did not rate by says N/A, as there."""
    completions = []
    for name, response in said.items():
        ratings = [by_name[name].rating for by_name in rated.values()]
        mean = fmean(ratings) if ratings else None
        completions.append(
            {
                "annotations": {aspect: _annotation(rated.get(aspect, {}).get(name)) for aspect in ASPECTS},
                "custom_system_prompt": "",
                "model": name,
                "principle": "",
                "response": response,
                "critique": "",
                "fine-grained_score": mean,
                "overall_score": 2 * mean if mean is not None else None,  # a critique's score goes to ten
            }
        )
    record: dict[str, Any] = {
        "source": prompt.source,
        "instruction": prompt.messages[-1].content,
        "models": list(said),
        "completions": completions,
        "id": prompt.id,
    }
    if len(prompt.messages) > 1:  # the whole chat, which UltraFeedback has no key for
        record["prompt"] = [{"role": turn.role, "content": turn.content} for turn in prompt.messages]
    return record


def _annotation(rating: Rating | None) -> dict[str, str]:
    if rating is None:
        return {"Rating": "N/A", "Rationale": "N/A"}
    return {"Rating": str(rating.rating), "Rationale": rating.rationale}
