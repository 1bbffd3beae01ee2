"""UltraFeedback as its authors publish it: several answers to an instruction, each rated on four aspects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import fsum
from typing import Any, Final, Literal

from zephyr_local.train.data.preference_records import (
    Answer,
    ScoredAnswers,
    UnusablePreferenceError,
    checked_text,
    is_list,
    number,
    read_prompt,
    record_id,
    record_source,
)
from zephyr_local.train.data.records import Record

Score = Literal["mean", "overall"]
"""``mean``: of the ratings of the four aspects; ``overall``: the critique's ``overall_score``."""

ASPECTS: Final = ("instruction_following", "honesty", "truthfulness", "helpfulness")
RATING_LEFT_OUT: Final = "ratings that are not numbers left out"
NO_SCORE: Final = "answers without a score left out"
TEN_MADE_ONE: Final = "overall scores of 10 beside ratings of at most 2 read as 1"
DOUBTFUL_TEN: Final = "answers with an overall score of 10 beside middling ratings left out"
TOO_FEW: Final = "fewer than two answers with a score"

# UltraFeedback's first release wrote 10 for a critique's 1. Its authors' correction (README of OpenBMB/UltraFeedback,
# December 2023): 1 where the ratings average 2 or less, 10 where above 4, between them judged anew, which we cannot do.
_TEN: Final = 10
_LOW_MEAN: Final = 2
_HIGH_MEAN: Final = 4


def read_ultrafeedback(record: Record, score: Score) -> ScoredAnswers:
    """The answers that have a score. Raises UnusablePreferenceError where fewer than two have one.

    A rating that is no number (``N/A``) is left out of the mean. The system prompts that drew the answers differ from
    answer to answer and are no part of the prompt, as in the paper's data.
    """
    prompt = read_prompt(record.value)
    completions = record.value.get("completions")
    if not is_list(completions):
        raise UnusablePreferenceError("no list of completions")
    left_out: Counter[str] = Counter()
    answers = []
    for completion in completions or ():
        try:
            answers.append(_answer(completion, score, left_out))
        except UnusablePreferenceError as error:
            left_out[error.reason] += 1
    if len(answers) < 2:
        raise UnusablePreferenceError(TOO_FEW, prompt[-1].content, left_out)
    name = record_id(record, prompt, answers)
    return ScoredAnswers(prompt, name, record_source(record), tuple(answers), left_out)


def _answer(completion: object, score: Score, left_out: Counter[str]) -> Answer:
    if not isinstance(completion, Mapping):
        raise UnusablePreferenceError("answers that are no objects left out")
    try:
        text = checked_text(completion.get("response"), "")
    except UnusablePreferenceError:
        raise UnusablePreferenceError("answers that are empty or no text left out") from None
    mean = _mean_rating(completion.get("annotations"), left_out)
    given = mean if score == "mean" else _overall(completion.get("overall_score"), mean, left_out)
    if given is None:
        raise UnusablePreferenceError(NO_SCORE)
    return Answer(text, given)


def _mean_rating(annotations: object, left_out: Counter[str]) -> float | None:
    if not isinstance(annotations, Mapping):
        return None
    ratings = []
    for aspect in ASPECTS:
        annotation: Any = annotations.get(aspect)
        if annotation is None:
            annotation = annotations.get(aspect.replace("_", "-"))  # the authors' files before they met Parquet
        rating = number(annotation.get("Rating")) if isinstance(annotation, Mapping) else None
        if rating is None:
            left_out[RATING_LEFT_OUT] += 1
        else:
            ratings.append(rating)
    return fsum(ratings) / len(ratings) if ratings else None


def _overall(value: object, mean: float | None, left_out: Counter[str]) -> float | None:
    overall = number(value)
    if overall != _TEN or mean is None or mean > _HIGH_MEAN:
        return overall
    if mean <= _LOW_MEAN:
        left_out[TEN_MADE_ONE] += 1
        return 1.0
    raise UnusablePreferenceError(DOUBTFUL_TEN)
