"""AlpacaEval's numbers: how often one model's output was preferred to another's, and how much of it is length."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Final

from zephyr_local.errors import InvalidInputError
from zephyr_local.train.data.preference_formats import alpaca_eval_verdict
from zephyr_local.train.data.preference_records import number
from zephyr_local.train.data.records import Record

_NEWTON_STEPS: Final = 50
_LEAST_OF_EACH: Final = 10
"""Wins and losses below which nothing is said of length."""
_PULL: Final = 1e-3
"""Of the coefficients towards 0, so that they stay finite where every longer answer won."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's preference between the reference's output (1) and the model's (2)."""

    share: float
    """What the model gets of a win: 1, 0, a half for a tie, or between them a judge's probability."""
    length: int
    """Characters of the model's output."""
    reference_length: int


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """The win rate, in percent, had both outputs been of one length, by a logistic regression on the difference.

    After Dubois et al. 2024 (arXiv 2404.04475), without their term for how hard an instruction is, which is fitted on
    many models' annotations: it compares runs of one judge, and is not the leaderboard's number.
    """

    win_rate: float
    standard_error: float
    slope: float
    """How much a longer answer adds to the logit; above 0 where the judge prefers length."""

    def as_json(self) -> dict[str, float]:
        return {"win_rate": self.win_rate, "standard_error": self.standard_error, "slope": self.slope}


@dataclass(frozen=True, slots=True)
class WinRate:
    """What annotations come to; rates and errors in percent."""

    n_wins: int
    n_losses: int
    n_ties: int
    n_without: int
    """Annotations without a verdict; they count nowhere."""
    win_rate: float
    standard_error: float
    """Of the mean, over instructions."""
    mean_length: float
    """Characters of the model's outputs."""
    mean_reference_length: float
    longer_share: float
    """How often the model's output is the longer, in percent."""
    length_controlled: LengthControlled | None
    """None where outputs do not differ in length, or wins or losses are fewer than ten."""

    @property
    def n_judged(self) -> int:
        return self.n_wins + self.n_losses + self.n_ties

    def as_json(self) -> dict[str, Any]:
        """JSON values, with AlpacaEval's names where it has one."""
        return {
            "win_rate": self.win_rate,
            "standard_error": self.standard_error,
            "n_wins": self.n_wins,
            "n_wins_base": self.n_losses,
            "n_draws": self.n_ties,
            "n_total": self.n_judged,
            "n_without_verdict": self.n_without,
            "avg_length": self.mean_length,
            "avg_length_reference": self.mean_reference_length,
            "longer_share": self.longer_share,
            "length_controlled": self.length_controlled.as_json() if self.length_controlled is not None else None,
        }


def verdict(value: Mapping[str, Any]) -> Verdict | None:
    """An annotation's verdict; None without one, which is null.

    ``preference`` is 1 for output_1, 2 for output_2 and anything between a probability, as AlpacaEval's second version
    writes it; what is neither (0 in the first version) is a tie.
    """
    if number(value.get("preference")) is None:
        return None
    preference = alpaca_eval_verdict(value)
    share = 0.5 if preference is None else preference - 1
    return Verdict(share, len(str(value.get("output_2", ""))), len(str(value.get("output_1", ""))))


def win_rate(annotations: Iterable[Record]) -> WinRate:
    """Raises InvalidInputError where no annotation has a verdict."""
    verdicts: list[Verdict] = []
    n_without = 0
    for record in annotations:
        if "preference" not in record.value:
            raise InvalidInputError(
                f"{record.where} has no preference",
                "Give AlpacaEval's annotations, with output_1, output_2, preference",
            )
        found = verdict(record.value)
        if found is None:
            n_without += 1
        else:
            verdicts.append(found)
    if not verdicts:
        raise InvalidInputError("no annotation has a preference", "Give a file that a judge has gone through")
    return _win_rate(verdicts, n_without)


def _win_rate(verdicts: Sequence[Verdict], n_without: int) -> WinRate:
    shares = [one.share for one in verdicts]
    return WinRate(
        n_wins=sum(share > 0.5 for share in shares),
        n_losses=sum(share < 0.5 for share in shares),
        n_ties=sum(share == 0.5 for share in shares),
        n_without=n_without,
        win_rate=100 * fmean(shares),
        standard_error=100 * stdev(shares) / math.sqrt(len(shares)) if len(shares) > 1 else 0.0,
        mean_length=fmean(one.length for one in verdicts),
        mean_reference_length=fmean(one.reference_length for one in verdicts),
        longer_share=100 * fmean(one.length > one.reference_length for one in verdicts),
        length_controlled=length_controlled(verdicts),
    )


def length_controlled(verdicts: Sequence[Verdict]) -> LengthControlled | None:
    """Fit ``logit P(win) = a + b tanh(difference / its deviation)`` and read it at a difference of 0.

    None where there are too few verdicts of either kind to fit two numbers to.
    """
    if min(sum(one.share > 0.5 for one in verdicts), sum(one.share < 0.5 for one in verdicts)) < _LEAST_OF_EACH:
        return None
    differences = [one.length - one.reference_length for one in verdicts]
    if (deviation := stdev(differences)) == 0:
        return None
    lengths = [math.tanh(difference / deviation) for difference in differences]
    shares = [one.share for one in verdicts]
    a, b = 0.0, 0.0
    for _ in range(_NEWTON_STEPS):
        fitted = [_logistic(a + b * x) for x in lengths]
        gradient_a = sum(y - p for y, p in zip(shares, fitted, strict=True)) - _PULL * a
        gradient_b = sum((y - p) * x for y, p, x in zip(shares, fitted, lengths, strict=True)) - _PULL * b
        weights = [p * (1 - p) for p in fitted]
        aa = sum(weights) + _PULL
        ab = sum(w * x for w, x in zip(weights, lengths, strict=True))
        bb = sum(w * x * x for w, x in zip(weights, lengths, strict=True)) + _PULL
        determinant = aa * bb - ab * ab
        step_a = (bb * gradient_a - ab * gradient_b) / determinant
        step_b = (aa * gradient_b - ab * gradient_a) / determinant
        a, b = a + max(-2.0, min(2.0, step_a)), b + max(-2.0, min(2.0, step_b))
        if abs(step_a) + abs(step_b) < 1e-10:
            break
    # The sandwich estimate of a's variance (White 1982): ties and probabilities vary less than 0 and 1 do.
    residuals = [y - _logistic(a + b * x) for y, x in zip(shares, lengths, strict=True)]
    variance = sum((e * (bb - ab * x)) ** 2 for e, x in zip(residuals, lengths, strict=True)) / determinant**2
    rate = _logistic(a)
    error = rate * (1 - rate) * math.sqrt(variance)  # the delta method
    return LengthControlled(100 * rate, 100 * error, b)


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
