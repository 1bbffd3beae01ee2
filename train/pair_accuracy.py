"""How often a model prefers the chosen answer, pair by pair, and how much of that the answers' lengths explain."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Final, Self

from zephyr_local.errors import InvalidInputError

DEFAULT_BETA: Final = 0.1
_Z_95: Final = 1.959963984540054
"""Quantile of the normal distribution for an interval of 95 %."""


@dataclass(frozen=True, slots=True)
class PairScore:
    """One pair's log probabilities, natural, summed over each answer's tokens."""

    chosen: float
    rejected: float
    reference_chosen: float
    """Under the model that training began with; 0 where there is none."""
    reference_rejected: float
    chosen_tokens: int
    rejected_tokens: int

    @property
    def preference(self) -> float:
        """By how much more training raised the chosen answer's log probability than the rejected one's."""
        return (self.chosen - self.reference_chosen) - (self.rejected - self.reference_rejected)

    def rewards(self, beta: float) -> tuple[float, float]:
        """DPO's implicit rewards of the two (Rafailov et al. 2023, arXiv 2305.18290, section 4)."""
        return beta * (self.chosen - self.reference_chosen), beta * (self.rejected - self.reference_rejected)


@dataclass(frozen=True, slots=True)
class Share:
    """How many of some pairs are right; a tie is not."""

    n: int
    n_right: int

    @property
    def value(self) -> float | None:
        """The share; None of no pairs."""
        return self.n_right / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float]:
        """Of 95 %, by Wilson's score (1927, J. Am. Stat. Assoc. 22, 209): sound for few pairs and near 0 and 1."""
        if not self.n:
            return 0.0, 1.0
        share, per_pair = self.n_right / self.n, _Z_95**2 / self.n
        centre = (share + per_pair / 2) / (1 + per_pair)
        half = _Z_95 / (1 + per_pair) * math.sqrt(share * (1 - share) / self.n + per_pair / (4 * self.n))
        # Rounding must not take an end past what it stands for: 0 of n is 0, n of n is 1.
        low = 0.0 if self.n_right == 0 else max(0.0, centre - half)
        return low, 1.0 if self.n_right == self.n else min(1.0, centre + half)

    def as_json(self) -> dict[str, object]:
        """JSON values."""
        return {"pairs": self.n, "right": self.n_right, "share": self.value, "interval_95": list(self.interval)}

    def __str__(self) -> str:
        if self.value is None:
            return "no pairs"
        low, high = self.interval
        return f"{self.value:.1%} ({low:.1%} to {high:.1%}) of {self.n:,}"


@dataclass(frozen=True, slots=True)
class Margins:
    """By how much the chosen answers' rewards are higher; below 0 where the model prefers the rejected."""

    mean: float
    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, margins: Sequence[float]) -> Self | None:
        """None of no pairs."""
        return cls(fmean(margins), median(margins), min(margins), max(margins)) if margins else None

    def as_json(self) -> dict[str, float]:
        """JSON values."""
        return {"mean": self.mean, "median": self.median, "min": self.lowest, "max": self.highest}


@dataclass(frozen=True, slots=True)
class Group:
    """Some of the pairs."""

    right: Share
    margins: Margins | None
    """None of no pairs."""

    def as_json(self) -> dict[str, object]:
        """JSON values."""
        return {**self.right.as_json(), "margins": self.margins.as_json() if self.margins is not None else None}


@dataclass(frozen=True, slots=True)
class PairAccuracy:
    """Reward accuracy over pairs, each counted once."""

    every: Group
    n_ties: int
    """Pairs whose two rewards are the same; they count as wrong."""
    chosen_longer: Group
    """By tokens; a model that merely prefers length is right here,"""
    chosen_shorter: Group
    """and wrong here."""
    equal_length: Group
    mean_reward_chosen: float
    mean_reward_rejected: float
    beta: float
    right: tuple[bool, ...] = ()
    """Pair by pair, in their order."""

    @property
    def pick_the_longer(self) -> Share:
        """What always preferring the longer answer scores; of two equal ones it knows none."""
        return Share(self.every.right.n, self.chosen_longer.right.n)

    @property
    def length_balanced(self) -> float | None:
        """The mean of the accuracies where the chosen is longer and where it is shorter: whatever the data prefers,
        always picking the longer scores 0.5. None where either has no pairs."""
        longer, shorter = self.chosen_longer.right.value, self.chosen_shorter.right.value
        return None if longer is None or shorter is None else (longer + shorter) / 2

    def as_json(self) -> dict[str, object]:
        """JSON values."""
        return {
            "accuracy": self.every.as_json(),
            "ties": self.n_ties,
            "chosen_longer": self.chosen_longer.as_json(),
            "chosen_shorter": self.chosen_shorter.as_json(),
            "equal_length": self.equal_length.as_json(),
            "pick_the_longer": self.pick_the_longer.as_json(),
            "length_balanced": self.length_balanced,
            "mean_reward_chosen": self.mean_reward_chosen,
            "mean_reward_rejected": self.mean_reward_rejected,
            "beta": self.beta,
        }

    def lines(self) -> list[str]:
        """As Markdown: a table, and what it does not show."""
        rows: list[tuple[str, Share, Margins | None]] = [
            ("all", self.every.right, self.every.margins),
            ("the chosen is longer", self.chosen_longer.right, self.chosen_longer.margins),
            ("the chosen is shorter", self.chosen_shorter.right, self.chosen_shorter.margins),
            ("equally long", self.equal_length.right, self.equal_length.margins),
            ("*always picking the longer*", self.pick_the_longer, None),
        ]
        lines = ["| pairs | the chosen is preferred (95 %) | mean margin | median |", "| --- | --- | --- | --- |"]
        for name, share, margins in rows:
            cells = (f"{margins.mean:+.4g}", f"{margins.median:+.4g}") if margins is not None else ("—", "—")
            lines.append(f"| {name} | {share} | {cells[0]} | {cells[1]} |")
        balanced = ""
        if self.length_balanced is not None:
            balanced = f" Mean of the longer and the shorter: {self.length_balanced:.1%}, by length alone 50%."
        ties = f" Ties, which count as wrong: {self.n_ties:,}." if self.n_ties else ""
        return [*lines, "", f"Lengths in tokens; rewards with beta {self.beta:g}.{ties}{balanced}"]


def pair_accuracy(scores: Iterable[PairScore], *, beta: float = DEFAULT_BETA) -> PairAccuracy:
    """Accuracy and margins of pairs; the chosen is preferred where its reward is higher.

    Raises InvalidInputError for no pairs, or a log probability that is not finite.
    """
    pairs = list(scores)
    if not pairs:
        raise InvalidInputError("there are no pairs to score", "Give some")
    if not (math.isfinite(beta) and beta > 0):
        raise InvalidInputError(f"beta is {beta!r}", "Give a number above 0")
    rewards = [pair.rewards(beta) for pair in pairs]
    for number, (pair, found) in enumerate(zip(pairs, rewards, strict=True), start=1):
        if not all(map(math.isfinite, found)):
            raise InvalidInputError(f"pair {number} has a log probability that is not finite", f"Look at {pair}")
    by_length: dict[int, list[float]] = {1: [], -1: [], 0: []}
    margins = [beta * pair.preference for pair in pairs]  # of the sum, so that beta changes no sign
    for pair, margin in zip(pairs, margins, strict=True):
        difference = pair.chosen_tokens - pair.rejected_tokens
        by_length[(difference > 0) - (difference < 0)].append(margin)
    return PairAccuracy(
        every=_group(margins),
        n_ties=margins.count(0),
        chosen_longer=_group(by_length[1]),
        chosen_shorter=_group(by_length[-1]),
        equal_length=_group(by_length[0]),
        mean_reward_chosen=fmean(chosen for chosen, _ in rewards),
        mean_reward_rejected=fmean(rejected for _, rejected in rewards),
        beta=beta,
        right=tuple(margin > 0 for margin in margins),
    )


def _group(margins: Sequence[float]) -> Group:
    return Group(Share(len(margins), sum(margin > 0 for margin in margins)), Margins.of(margins))
