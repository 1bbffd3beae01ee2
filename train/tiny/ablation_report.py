"""The ablation's tables, with intervals, from what its models were found to be worth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from zephyr_local.train.data.records import write_whole
from zephyr_local.train.tiny.ablation import DSFT, EPOCHS, START, VARIANTS, AblationFolder, AblationSettings

if TYPE_CHECKING:
    import numpy as np

RESAMPLES: Final = 4000
_OPPONENT: Final = next(folder for folder, name in VARIANTS.items() if name == DSFT)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds and questions, in percent, with its interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[Sequence[float]]) -> Estimate:
        """Of shares, a row a seed and a column a question, the same questions in each row.

        The interval of 95 % is a percentile bootstrap (Efron 1979) that draws seeds and questions anew: with three
        seeds it says little of other seeds, much of other questions.
        """
        import numpy as np

        shares = np.asarray(values, dtype=float) * 100  # (n_seeds, n_questions)
        dice = np.random.default_rng(0)
        means = [_resampled_mean(shares, dice) for _ in range(RESAMPLES)]
        low, high = np.percentile(means, [2.5, 97.5])
        return cls(float(shares.mean()), float(low), float(high))

    def as_json(self) -> dict[str, float]:
        return {"mean": self.mean, "low": self.low, "high": self.high}

    def __str__(self) -> str:
        return f"{self.mean:.1f} ({self.low:.1f} to {self.high:.1f})"


def _resampled_mean(shares: np.ndarray[Any, Any], dice: np.random.Generator) -> float:
    n_seeds, n_questions = shares.shape
    seeds, questions = dice.integers(n_seeds, size=n_seeds), dice.integers(n_questions, size=n_questions)
    return float(shares[seeds][:, questions].mean())


@dataclass(frozen=True, slots=True)
class Row:
    """One variant of table 3, or one epoch of figure 3."""

    name: str
    exam: Estimate
    confident_errors: Estimate
    win_rate: Estimate
    """Of its answers over plain dSFT's (an epoch's: over those of the model that dDPO began with); a tie is a half."""
    exam_by_seed: tuple[float, ...]
    accuracy: tuple[Estimate, Estimate] | None = None
    """An epoch's: share of the training and of the held-out pairs whose chosen answer has the higher reward."""
    steps: int = 0
    minutes: tuple[float, ...] = ()
    """Of training, a seed each, all stages together."""

    def as_json(self) -> dict[str, Any]:
        """JSON values, in percent."""
        values: dict[str, Any] = {
            "name": self.name,
            "exam": self.exam.as_json(),
            "exam_by_seed": list(self.exam_by_seed),
            "confident_errors": self.confident_errors.as_json(),
            "win_rate": self.win_rate.as_json(),
        }
        if self.accuracy is not None:
            values["accuracy"] = {"train": self.accuracy[0].as_json(), "test": self.accuracy[1].as_json()}
        return values | {"steps": self.steps, "minutes": list(self.minutes)}


def win_shares(ratings: Sequence[float], opponents: Sequence[float]) -> list[float]:
    """1 where the rating is higher than the opponent's on the same prompt, 0 where lower, a half where alike."""
    return [(mine > theirs) + (mine == theirs) / 2 for mine, theirs in zip(ratings, opponents, strict=True)]


def variant_rows(folder: AblationFolder, settings: AblationSettings) -> list[Row]:
    """The rows of the paper's table 3."""
    seeds = range(1, settings.seeds + 1)
    opponents = [_read(folder.marks(seed, _OPPONENT))["ratings"] for seed in seeds]
    rows = []
    for variant, name in VARIANTS.items():
        marks = [_read(folder.marks(seed, variant)) for seed in seeds]
        steps, minutes = 0, []
        for seed in seeds:
            results = [_results(folder.model(seed, variant))]
            if "-" in variant:
                results.append(_results(folder.run(seed, START).stage("dsft").folder))
            steps = sum(result["n_steps"] for result in results)
            minutes.append(sum(result["elapsed_s"] for result in results) / 60)
        rows.append(_row(name, marks, opponents, steps, tuple(minutes)))
    return rows


def epoch_rows(folder: AblationFolder, settings: AblationSettings) -> list[Row]:
    """The rows of the paper's figure 3, with the model that dDPO began with as epoch 0."""
    seeds = range(1, settings.seeds + 1)
    opponents = [_read(folder.marks(seed, "epoch-0"))["ratings"] for seed in seeds]
    whole = [_results(folder.run(seed, EPOCHS).stage("ddpo").folder) for seed in seeds]
    rows = []
    for epoch in range(settings.epochs + 1):
        marks = [_read(folder.marks(seed, f"epoch-{epoch}")) for seed in seeds]
        share = epoch / settings.epochs
        minutes = tuple(result["elapsed_s"] / 60 * share for result in whole)
        rows.append(_row(str(epoch), marks, opponents, round(whole[0]["n_steps"] * share), minutes))
    return rows


def _row(
    name: str,
    marks: Sequence[dict[str, Any]],
    opponents: Sequence[Sequence[float]],
    steps: int,
    minutes: tuple[float, ...],
) -> Row:
    wins = [win_shares(one["ratings"], theirs) for one, theirs in zip(marks, opponents, strict=True)]
    accuracy = None
    if "accuracy" in marks[0]:
        train, test = ([one["accuracy"][split] for one in marks] for split in ("train", "test"))
        accuracy = (Estimate.of(train), Estimate.of(test))
    return Row(
        name=name,
        exam=Estimate.of([one["exam_right"] for one in marks]),
        confident_errors=Estimate.of([one["confident_errors"] for one in marks]),
        win_rate=Estimate.of(wins),
        exam_by_seed=tuple(100 * sum(one["exam_right"]) / len(one["exam_right"]) for one in marks),
        accuracy=accuracy,
        steps=steps,
        minutes=minutes,
    )


def variant_table(rows: Sequence[Row]) -> str:
    """As Markdown."""
    lines = [
        "| trained by | steps | minutes | exam, % right | by seed | wrong and confident, % | win rate over dSFT, % |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        by_seed = ", ".join(f"{value:.1f}" for value in row.exam_by_seed)
        win = "50, itself" if row.name == DSFT else str(row.win_rate)
        lines.append(
            f"| {row.name} | {row.steps} | {_span(row.minutes)} | {row.exam} | {by_seed} "
            f"| {row.confident_errors} | {win} |"
        )
    return "\n".join(lines)


def epoch_table(rows: Sequence[Row]) -> str:
    """As Markdown."""
    lines = [
        "| epochs of dDPO | minutes | chosen preferred, training pairs, % | held-out pairs, % | exam, % right "
        "| by seed | wrong and confident, % | win rate over epoch 0, % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        by_seed = ", ".join(f"{value:.1f}" for value in row.exam_by_seed)
        first = row.name == "0" or row.accuracy is None
        train, test = ("–", "–") if first or row.accuracy is None else (str(row.accuracy[0]), str(row.accuracy[1]))
        win = "50, itself" if first else str(row.win_rate)
        lines.append(
            f"| {row.name} | {_span(row.minutes)} | {train} | {test} | {row.exam} | {by_seed} "
            f"| {row.confident_errors} | {win} |"
        )
    return "\n".join(lines)


def _span(minutes: Sequence[float]) -> str:
    low, high = min(minutes), max(minutes)
    return f"{low:.1f}" if f"{low:.1f}" == f"{high:.1f}" else f"{low:.1f} to {high:.1f}"


def write_report(folder: AblationFolder, settings: AblationSettings) -> str:
    """Write ablation.json and ablation.md beside the runs; returns the tables."""
    variants, epochs = variant_rows(folder, settings), epoch_rows(folder, settings)
    values = {"variants": [row.as_json() for row in variants], "epochs": [row.as_json() for row in epochs]}
    text = f"{variant_table(variants)}\n\n{epoch_table(epochs)}\n"
    write_whole(folder.folder / "ablation.json", json.dumps(values, indent=2).encode() + b"\n")
    write_whole(folder.folder / "ablation.md", text.encode())
    return text


def _read(path: Path) -> Any:  # noqa: ANN401 — JSON values
    return json.loads(path.read_bytes())


def _results(folder: Path) -> Any:  # noqa: ANN401 — JSON values
    return _read(folder / "results.json")
