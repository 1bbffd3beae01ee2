"""From several scored answers to a chosen and a rejected one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from zephyr_local.train.data.normal_text import stable_hash
from zephyr_local.train.data.preference_formats import TIE
from zephyr_local.train.data.preference_records import Answer, Preference, ScoredAnswers, UnusablePreferenceError

Rejected = Literal["random", "lowest", "length-matched", "all"]
"""Which of the others is rejected: one at random, as in the paper; the lowest score; the one closest in length to the
chosen; or each of them, a pair each."""
Ties = Literal["drop", "keep", "redraw"]
"""Where the rejected scores as high as the chosen: drop the pair; keep it, as in the paper's published pairs; or draw
among the lower ones alone."""

ALL_ALIKE: Final = "all answers are the same"
REVERSED: Final = "the rejected answer scores higher"
NO_MARGIN: Final = "no scores to tell a margin by"
IDENTICAL_LEFT_OUT: Final = "answers that are the chosen one again left out"


@dataclass(frozen=True, slots=True)
class PairRule:
    """How pairs are made of scored answers; what of it can be asked of a ready pair is asked of that too."""

    rejected: Rejected = "random"
    ties: Ties = "drop"
    min_margin: float = 0.0
    """The least by which the chosen answer scores higher; 0 asks nothing."""
    max_length_ratio: float | None = None
    """The longer of the two answers has at most this many times the other's characters."""
    seed: int = 0
    """Of the draws. Each depends on it and on the record alone, never on the order of records."""


@dataclass(frozen=True, slots=True)
class Binarised:
    """The pairs of one record."""

    pairs: tuple[Preference, ...]
    n_identical: int = 0
    """Answers that say what the chosen one says; none can be rejected."""


def binarise(scored: ScoredAnswers, rule: PairRule) -> Binarised:
    """Pairs the best answer with one of the others, or with each.

    The rule of the paper (Tunstall et al. 2023, arXiv 2310.16944, section 3): the highest score is chosen, one of the
    others, drawn at random, is rejected. Where several have the highest score, one of these is drawn. Raises
    UnusablePreferenceError where no pair can be made; a pair that is made may still be refused (:func:`refusal`).
    """
    draw = _drawer(scored, rule.seed)
    best_score = max(_score(answer) for answer in scored.answers)
    chosen = draw("chosen", [answer for answer in scored.answers if answer.score == best_score])
    others = [answer for answer in scored.answers if answer.text.strip() != chosen.text.strip()]
    if not others:
        raise UnusablePreferenceError(ALL_ALIKE, scored.last)
    n_identical = len(scored.answers) - 1 - len(others)
    possible = [answer for answer in others if _length_ratio(chosen, answer) <= (rule.max_length_ratio or float("inf"))]
    if not possible:
        raise UnusablePreferenceError(_far_in_length(rule), scored.last)
    if rule.ties == "redraw":
        lower = [a for a in possible if _score(a) < best_score and best_score - _score(a) >= rule.min_margin]
        if not lower:
            all_tie = all(answer.score == best_score for answer in possible)
            raise UnusablePreferenceError(TIE if all_tie else _small_margin(rule), scored.last)
        possible = lower
    rejected = _rejected(chosen, possible, rule.rejected, draw)
    names = (
        [scored.id] if rule.rejected != "all" else [f"{scored.id}-{number}" for number in range(1, len(rejected) + 1)]
    )
    pairs = tuple(
        Preference(scored.prompt, name, scored.source, chosen=chosen, rejected=answer)
        for name, answer in zip(names, rejected, strict=True)
    )
    return Binarised(pairs, n_identical)


def refusal(pair: Preference, rule: PairRule) -> str | None:
    """Why the rule does not take a pair; None where it does."""
    if pair.chosen.text.strip() == pair.rejected.text.strip():
        return ALL_ALIKE
    if rule.max_length_ratio is not None and _length_ratio(pair.chosen, pair.rejected) > rule.max_length_ratio:
        return _far_in_length(rule)
    if pair.margin is None:
        return NO_MARGIN if rule.min_margin > 0 else None
    if pair.margin < 0:
        return REVERSED
    if pair.margin == 0 and rule.ties != "keep":
        return TIE
    return _small_margin(rule) if pair.margin < rule.min_margin else None


_Draw = Callable[[str, Sequence[Answer]], Answer]


def _drawer(scored: ScoredAnswers, seed: int) -> _Draw:
    def draw(purpose: str, among: Sequence[Answer]) -> Answer:
        drawn = stable_hash(f"{purpose}\0{scored.id}\0{scored.key}", seed)
        return among[drawn % len(among)]  # of 64 bits: the bias is below anything that can be measured

    return draw


def _rejected(chosen: Answer, possible: Sequence[Answer], how: Rejected, draw: _Draw) -> Sequence[Answer]:
    if how == "all":
        return possible
    if how == "lowest":
        lowest = min(_score(answer) for answer in possible)
        possible = [answer for answer in possible if answer.score == lowest]
    elif how == "length-matched":
        closest = min(abs(len(answer.text) - len(chosen.text)) for answer in possible)
        possible = [answer for answer in possible if abs(len(answer.text) - len(chosen.text)) == closest]
    return [draw("rejected", possible)]


def _score(answer: Answer) -> float:
    assert answer.score is not None, "an answer without a score among scored ones"
    return answer.score


def _length_ratio(one: Answer, other: Answer) -> float:
    shorter, longer = sorted((len(one.text), len(other.text)))
    return longer / shorter


def _far_in_length(rule: PairRule) -> str:
    return f"answers that differ in length by more than a factor of {rule.max_length_ratio:g}"


def _small_margin(rule: PairRule) -> str:
    return f"a margin below {rule.min_margin:g}"
