"""What preference pairs are like: scores, margins, lengths, and how often the longer answer was chosen."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np

from zephyr_local.train.data.preference_records import Preference

QUANTILES: Final = {"p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}
SOURCES_SHOWN: Final = 50
OTHER_SOURCES: Final = "all other sources"
_MOST_BINS: Final = 20
_LENGTH_MEASURES: Final = ("prompt", "chosen", "rejected")


class PairTokens(NamedTuple):
    """Tokens of a pair: the prompt's, with the beginning of an answer, and each answer's, with its end token and what
    the template writes after that."""

    prompt: int
    chosen: int
    rejected: int


@dataclass(slots=True)
class LongerChosen:
    """How often the longer answer was chosen."""

    longer: int = 0
    shorter: int = 0
    equal: int = 0

    def add(self, chosen: int, rejected: int) -> None:
        """Count a pair by the lengths of its answers."""
        if chosen > rejected:
            self.longer += 1
        elif chosen < rejected:
            self.shorter += 1
        else:
            self.equal += 1

    def merge(self, other: LongerChosen) -> None:
        """Add another's counts."""
        self.longer += other.longer
        self.shorter += other.shorter
        self.equal += other.equal

    def as_json(self) -> dict[str, object]:
        """Counts, and the longer ones' share of all pairs."""
        n = self.longer + self.shorter + self.equal
        return {
            "longer": self.longer,
            "shorter": self.shorter,
            "equal": self.equal,
            "longer_share": self.longer / n if n else None,
        }


@dataclass(slots=True)
class _OfSource:
    n_pairs: int = 0
    characters: LongerChosen = field(default_factory=LongerChosen)
    tokens: LongerChosen = field(default_factory=LongerChosen)
    n_margins: int = 0
    sum_margins: float = 0.0

    def merge(self, other: _OfSource) -> None:
        self.n_pairs += other.n_pairs
        self.characters.merge(other.characters)
        self.tokens.merge(other.tokens)
        self.n_margins += other.n_margins
        self.sum_margins += other.sum_margins

    def as_json(self, *, with_tokens: bool) -> dict[str, object]:
        return {
            "pairs": self.n_pairs,
            "mean_margin": self.sum_margins / self.n_margins if self.n_margins else None,
            "longer_chosen_characters": self.characters.as_json(),
            **({"longer_chosen_tokens": self.tokens.as_json()} if with_tokens else {}),
        }


class PairStatistics:
    """Collects the numbers of one split's pairs, a few dozen bytes each."""

    def __init__(self) -> None:
        self.n_pairs = 0
        self._scores = {name: array("d") for name in ("chosen", "rejected", "margin")}
        self._characters = {name: array("q") for name in _LENGTH_MEASURES}
        self._tokens = {name: array("q") for name in _LENGTH_MEASURES}
        self._sources: dict[str, _OfSource] = {}

    def add(self, pair: Preference, tokens: PairTokens | None = None) -> None:
        """Count a pair that is kept."""
        self.n_pairs += 1
        source = self._sources.setdefault(pair.source, _OfSource())
        source.n_pairs += 1
        characters = PairTokens(
            sum(len(turn.content) for turn in pair.prompt), len(pair.chosen.text), len(pair.rejected.text)
        )
        for name, length in zip(_LENGTH_MEASURES, characters, strict=True):
            self._characters[name].append(length)
        source.characters.add(characters.chosen, characters.rejected)
        if tokens is not None:
            for name, length in zip(_LENGTH_MEASURES, tokens, strict=True):
                self._tokens[name].append(length)
            source.tokens.add(tokens.chosen, tokens.rejected)
        for name, score in (("chosen", pair.chosen.score), ("rejected", pair.rejected.score), ("margin", pair.margin)):
            if score is not None:
                self._scores[name].append(score)
        if pair.margin is not None:
            source.n_margins += 1
            source.sum_margins += pair.margin

    def as_json(self) -> dict[str, object]:
        """JSON values; a measure that no pair has is left out."""
        total = _OfSource()
        for source in self._sources.values():
            total.merge(source)
        with_tokens = bool(self._tokens["chosen"])
        scores = {name: distribution(values, _even_edges(values)) for name, values in self._scores.items() if values}
        characters = {name: distribution(values, _doubling_edges(values)) for name, values in self._characters.items()}
        tokens = {
            name: distribution(values, _doubling_edges(values)) for name, values in self._tokens.items() if values
        }
        return {
            **total.as_json(with_tokens=with_tokens),
            "scores": scores,
            "characters": characters,
            "tokens": tokens,
            "sources": {name: s.as_json(with_tokens=with_tokens) for name, s in self._most_frequent().items()},
        }

    def _most_frequent(self) -> dict[str, _OfSource]:
        ordered = sorted(self._sources.items(), key=lambda item: (-item[1].n_pairs, item[0]))
        shown = dict(ordered[:SOURCES_SHOWN])
        if len(ordered) > SOURCES_SHOWN:
            rest = _OfSource()
            for _, source in ordered[SOURCES_SHOWN:]:
                rest.merge(source)
            shown[OTHER_SOURCES] = rest
        return shown


class Verdicts:
    """AlpacaEval's verdicts by the two models compared: what its table calls the win rate."""

    def __init__(self) -> None:
        self._by_models: dict[tuple[str, str], list[float]] = {}
        self._unjudged: dict[tuple[str, str], int] = {}

    def add(self, value: Mapping[str, Any], verdict: float | None) -> None:
        """Count a record's verdict: 1.0 for the first output, 2.0 for the second, between them what is undecided."""
        first, second = (str(value.get(f"generator_{n}")).encode(errors="replace").decode() for n in (1, 2))
        models = (first, second)
        if verdict is None:
            self._unjudged[models] = self._unjudged.get(models, 0) + 1
        else:
            self._by_models.setdefault(models, []).append(verdict)

    def as_json(self) -> list[dict[str, object]]:
        """One entry a pair of models; ``win_rate`` is the second's in per cent, half a win for a tie."""
        return [
            {
                "model": second,
                "against": first,
                "win_rate": 100 * (math.fsum(verdicts) / len(verdicts) - 1) if verdicts else None,
                "wins": sum(verdict > 1.5 for verdict in verdicts),
                "losses": sum(verdict < 1.5 for verdict in verdicts),
                "ties": sum(verdict == 1.5 for verdict in verdicts),
                "without_verdict": self._unjudged.get((first, second), 0),
            }
            for first, second in sorted(self._by_models.keys() | self._unjudged.keys())
            for verdicts in [self._by_models.get((first, second), [])]
        ]


# --- distributions ---


def distribution(values: Sequence[float], edges: Sequence[float]) -> dict[str, object]:
    """Mean, quantiles (linear between neighbours) and a histogram: bins of ``[from, to, count]``, `to` not included
    but in the last."""
    numbers = np.asarray(values, dtype=np.float64)
    counts, _ = np.histogram(numbers, bins=np.asarray(edges, dtype=np.float64))
    return {
        "n": len(numbers),
        "mean": float(numbers.mean()),
        "min": float(numbers.min()),
        **{
            name: float(found)
            for name, found in zip(QUANTILES, np.quantile(numbers, [*QUANTILES.values()]), strict=True)
        },
        "max": float(numbers.max()),
        "histogram": [
            [low, high, int(count)] for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True) if count
        ],
    }


def _even_edges(values: Sequence[float]) -> list[float]:
    """Round edges, at most _MOST_BINS bins apart evenly."""
    low, high = min(values), max(values)
    least = (high - low) / (_MOST_BINS - 1)
    if not math.isfinite(least) or least < abs(high) * 1e-9 or least < 1e-12:  # all but one value, or beyond floats
        return [low, high] if high > low else [low, math.nextafter(low, math.inf)]
    power = 10.0 ** math.floor(math.log10(least))
    width = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= least)
    first = math.floor(low / width)
    n_bins = math.floor(high / width) - first + 1
    return [round(width * (first + index), 12) for index in range(n_bins + 1)]


def _doubling_edges(values: Sequence[float]) -> list[float]:
    """0, 1, 16, 32, 64, … until all are in."""
    edges = [0.0, 1.0, 16.0]
    while edges[-1] <= max(values):
        edges.append(2 * edges[-1])
    return edges
