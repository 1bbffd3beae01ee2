"""A judge's templates, one a criterion, and its reply: a rating and a reason for each answer, or nothing at all."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from zephyr_local.train.asking.request import UnreadableError
from zephyr_local.train.asking.template import JudgeTemplate
from zephyr_local.train.data.ultrafeedback import ASPECTS

TEMPLATES: Final = Path(__file__).parent / "templates"
LOWEST: Final = 1
HIGHEST: Final = 5

_EXAMPLE: Final[Mapping[str, Any]] = {"instruction": "", "answers": ["", ""]}
# Models set such lines in bold, as headings, or in brackets; the words are what counts.
_ANSWER: Final = re.compile(r"^[\W_]*answer[\W_]*(\d+)[\W_]*$", re.IGNORECASE | re.MULTILINE)
_RATING: Final = re.compile(r"^[\W_]*rating[\W_]*:[\W_]*(.*?)[\W_]*$", re.IGNORECASE | re.MULTILINE)
_REASON: Final = re.compile(r"^[\W_]*(?:reason|rationale)[\W_]*?:[*_\s]*(.*)", re.IGNORECASE | re.MULTILINE | re.DOTALL)
_WHOLE: Final = re.compile(r"([1-5])(?: */ *5| out of 5)?\Z")


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
    heads = list(_ANSWER.finditer(reply))
    numbers = [int(head[1]) for head in heads]
    if n_answers == 1 and not heads:
        return (_rating(reply),)
    if sorted(numbers) != list(range(1, n_answers + 1)):
        raise UnreadableError(f"not each of the {n_answers} answers once in the judgment")
    ends = [*(head.start() for head in heads[1:]), len(reply)]
    sections = {number: reply[head.end() : end] for number, head, end in zip(numbers, heads, ends, strict=True)}
    return tuple(_rating(sections[number]) for number in range(1, n_answers + 1))


def _rating(section: str) -> Rating:
    given: Sequence[str] = _RATING.findall(section)
    if len(given) != 1:
        raise UnreadableError("not one rating an answer in the judgment")
    whole = _WHOLE.match(given[0])
    if whole is None:
        raise UnreadableError("a rating that is no whole number from 1 to 5")
    reason = _REASON.search(section)
    if reason is None or not reason[1].strip():
        raise UnreadableError("a rating without a reason")
    return Rating(int(whole[1]), " ".join(reason[1].split()))
