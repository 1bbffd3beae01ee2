"""A judge's templates, one a criterion, and its reply: a rating and a reason for each answer, or nothing at all."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from zephyr_local.train.asking.request import UnreadableError
from zephyr_local.train.asking.template import JudgeTemplate, without_thought
from zephyr_local.train.data.ultrafeedback import ASPECTS

TEMPLATES: Final = Path(__file__).parent / "templates"

_EXAMPLE: Final[Mapping[str, Any]] = {"instruction": "<an instruction>", "answers": ["<one answer>", "<another>"]}
LONGEST_REPLY: Final = 100_000
"""Characters; a judge that goes on for longer has lost its way."""

# Models set such lines in bold, as headings, in lists or in brackets. A minus before a number is not among what is
# stripped there: what is no whole number from 1 to 5 must not become one.
_DRESS: Final = " \t*_#>`-.)(["
_ANSWER: Final = re.compile(r"answer[ _*#]{0,4}(\d{1,3})[ *_:.)\]]*\Z", re.IGNORECASE)
_RATING: Final = re.compile(r"rating[ *_]*:[ *_\[(]*(.*?)[ *_\])]*\Z", re.IGNORECASE)
_REASON: Final = re.compile(r"(?:reason|rationale)[ *_]*:[ *_]*(.*)\Z", re.IGNORECASE)
_WHOLE: Final = re.compile(r"([1-5])(?: ?/ ?5| out of 5)?\.?\Z")


@dataclass(frozen=True, slots=True)
class Rating:
    """What a judge says of one answer by one criterion."""

    rating: int
    """1 (worst) to 5."""
    rationale: str


def read_templates(folder: Path | None = None) -> dict[str, JudgeTemplate]:
    """Criterion → template, of our files or of a folder of the user's. Raises InvalidInputError, naming the file."""
    return {aspect: JudgeTemplate.read((folder or TEMPLATES) / f"{aspect}.toml", _EXAMPLE) for aspect in ASPECTS}


def read_ratings(reply: str, n_answers: int) -> tuple[Rating, ...]:
    """The ratings of so many answers, in the order in which they were shown, in whichever order they stand.

    Raises UnreadableError where one is missing, stands twice, is no whole number from 1 to 5, or has no reason: what a
    judge may have meant is never guessed.
    """
    if len(reply) > LONGEST_REPLY:
        raise UnreadableError(f"more than {LONGEST_REPLY:,} characters of judgment")
    sections: list[tuple[int, list[str]]] = []
    before: list[str] = []
    for line in without_thought(reply).splitlines():
        head = _ANSWER.match(line.lstrip(_DRESS))
        if head is not None:
            sections.append((int(head[1]), []))
        else:
            (sections[-1][1] if sections else before).append(line)
    if n_answers == 1 and not sections:
        return (_rating(before),)
    if sorted(number for number, _ in sections) != list(range(1, n_answers + 1)):
        raise UnreadableError(f"not each of the {n_answers} answers once in the judgment")
    return tuple(_rating(lines) for _, lines in sorted(sections, key=lambda section: section[0]))


def _rating(lines: Sequence[str]) -> Rating:
    given: list[str] = []
    reason: list[str] = []
    for line in lines:
        bare = line.lstrip(_DRESS)
        if found := _RATING.match(bare):
            given.append(found[1])
        elif (found := _REASON.match(bare)) and not reason:
            reason.append(found[1])
        elif reason:
            reason.append(line)
    if len(given) != 1:
        raise UnreadableError("not one rating an answer in the judgment")
    whole = _WHOLE.match(given[0])
    if whole is None:
        raise UnreadableError("a rating that is no whole number from 1 to 5")
    rationale = " ".join(" ".join(reason).split())
    if not rationale:
        raise UnreadableError("a rating without a reason")
    return Rating(int(whole[1]), rationale)
