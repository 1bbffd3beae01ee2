"""MT-Bench's numbers: mean ratings by model, turn and category, and win rates of pairs, by FastChat's rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from zephyr_local.train.evaluate.mt_files import Question

NO_RATING = -1
"""The score of a judgment without a rating; means leave it out."""


@dataclass(frozen=True, slots=True)
class ModelScore:
    """One model's ratings, 1 to 10. None where nothing was rated."""

    model: str
    n_rated: int
    n_without: int
    """Judgments without a rating."""
    mean: float | None
    by_turn: Mapping[int, float]
    by_category: Mapping[str, float]

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "model": self.model,
            "rated": self.n_rated,
            "without_rating": self.n_without,
            "mean": self.mean,
            "by_turn": {str(turn): score for turn, score in self.by_turn.items()},
            "by_category": dict(self.by_category),
        }


@dataclass(frozen=True, slots=True)
class PairScore:
    """How one model did in its pairs. A game that the two orders judge differently is a tie."""

    model: str
    wins: int
    losses: int
    ties: int

    @property
    def win_rate(self) -> float:
        """In percent; ties count as losses."""
        return 100 * self.wins / (self.wins + self.losses + self.ties)

    @property
    def adjusted_win_rate(self) -> float:
        """In percent; a tie is half a win."""
        return 100 * (self.wins + self.ties / 2) / (self.wins + self.losses + self.ties)

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "model": self.model,
            "wins": self.wins,
            "losses": self.losses,
            "ties": self.ties,
            "win_rate": self.win_rate,
            "adjusted_win_rate": self.adjusted_win_rate,
        }


def single_scores(judgments: Iterable[Mapping[str, Any]], questions: Sequence[Question]) -> list[ModelScore]:
    """The models' scores, best first."""
    categories = {question.id: question.category for question in questions}
    by_model: dict[str, list[Mapping[str, Any]]] = {}
    for judgment in judgments:
        by_model.setdefault(str(judgment["model"]), []).append(judgment)
    scores = [_model_score(model, found, categories) for model, found in by_model.items()]
    return sorted(scores, key=lambda score: (-(score.mean or 0), score.model))


def _model_score(model: str, judgments: Sequence[Mapping[str, Any]], categories: Mapping[int | str, str]) -> ModelScore:
    rated = [judgment for judgment in judgments if judgment["score"] != NO_RATING]
    by_turn: dict[int, list[float]] = {}
    by_category: dict[str, list[float]] = {name: [] for name in dict.fromkeys(categories.values())}
    for judgment in rated:
        by_turn.setdefault(int(judgment["turn"]), []).append(float(judgment["score"]))
        category = categories.get(judgment["question_id"])
        if category is not None:
            by_category[category].append(float(judgment["score"]))
    return ModelScore(
        model=model,
        n_rated=len(rated),
        n_without=len(judgments) - len(rated),
        mean=fmean(float(judgment["score"]) for judgment in rated) if rated else None,
        by_turn={turn: fmean(scores) for turn, scores in sorted(by_turn.items())},
        by_category={name: fmean(scores) for name, scores in by_category.items() if scores},
    )


def pair_scores(judgments: Iterable[Mapping[str, Any]], baseline: str | None) -> list[PairScore]:
    """The models' results against each other, or against a baseline, which is not listed; best first."""
    counts: dict[str, dict[str, int]] = {}
    for judgment in judgments:
        first, second = str(judgment["model_1"]), str(judgment["model_2"])
        verdicts = (judgment["g1_winner"], judgment["g2_winner"])
        if "error" in verdicts or (baseline is not None and baseline not in (first, second)):
            continue
        for model in (first, second):
            counts.setdefault(model, {"wins": 0, "losses": 0, "ties": 0})
        if verdicts[0] == "tie" or verdicts[0] != verdicts[1]:
            counts[first]["ties"] += 1
            counts[second]["ties"] += 1
        else:
            winner, loser = (first, second) if verdicts[0] == "model_1" else (second, first)
            counts[winner]["wins"] += 1
            counts[loser]["losses"] += 1
    scores = [PairScore(model, **found) for model, found in counts.items() if model != baseline]
    return sorted(scores, key=lambda score: (-score.adjusted_win_rate, score.model))


def single_table(scores: Sequence[ModelScore], questions: Sequence[Question]) -> list[str]:
    """Lines of text: the mean, each turn, each category."""
    turns = sorted({turn for score in scores for turn in score.by_turn})
    categories = [
        name for name in dict.fromkeys(q.category for q in questions) if any(name in s.by_category for s in scores)
    ]
    head = ["model", "mean", *(f"turn {turn}" for turn in turns), *categories, "rated"]
    rows = [head]
    for score in scores:
        values = [score.mean, *(score.by_turn.get(t) for t in turns), *(score.by_category.get(c) for c in categories)]
        shown = ["–" if value is None else f"{value:.2f}" for value in values]
        without = f" (+{score.n_without} without)" if score.n_without else ""
        rows.append([score.model, *shown, f"{score.n_rated}{without}"])
    return aligned(rows)


def pair_table(scores: Sequence[PairScore]) -> list[str]:
    """Lines of text."""
    rows = [["model", "win rate", "ties half", "wins", "losses", "ties"]]
    for score in scores:
        rates = [f"{score.win_rate:.1f} %", f"{score.adjusted_win_rate:.1f} %"]
        rows.append([score.model, *rates, str(score.wins), str(score.losses), str(score.ties)])
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
