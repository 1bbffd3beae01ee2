"""The report of a preference step as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from zephyr_local.train.data.pair_statistics import QUANTILES
from zephyr_local.train.data.report import DataReport

_BAR_CHARACTERS: Final = 30


def markdown(report: DataReport) -> str:
    """The report for people: what was dropped and why, then each split's distributions."""
    facts: Mapping[str, Any] = report.facts
    lines = [f"# Preferences: {report.n_kept:,} of {report.n_read:,} records kept", ""]
    for title, counts in (("Dropped", report.dropped), ("Kept, with a change", report.changed)):
        if counts:
            lines += _table([title, "records"], [[why, f"{n:,}"] for why, n in _most_first(counts)])
    if facts.get("answers_left_out"):
        rows = [[why, f"{n:,}"] for why, n in _most_first(facts["answers_left_out"])]
        lines += _table(["Of scored answers, in all records read", "times"], rows)
    if facts.get("settings"):
        lines += _table(["Setting", "value"], [[name, f"`{value}`"] for name, value in facts["settings"].items()])
    if facts.get("verdicts"):
        lines += _table(
            ["Model", "against", "win rate", "wins", "losses", "ties", "no verdict"],
            map(_verdict_row, facts["verdicts"]),
        )
    for name, split in facts.get("splits", {}).items():
        lines += _split_lines(name, split)
    return "\n".join(lines).rstrip() + "\n"


def _split_lines(name: str, split: Mapping[str, Any]) -> list[str]:
    lines = [f"## {name}: {split['pairs']:,} pairs", ""]
    if not split["pairs"]:
        return lines
    rows = []
    for unit in ("characters", "tokens"):
        if found := split.get(f"longer_chosen_{unit}"):
            rows.append([unit, *_longer_cells(found)])
    lines += ["How often the longer answer was chosen, which is what always picking the longer would score:", ""]
    lines += _table(["by", "longer chosen", "shorter chosen", "equal"], rows)
    measures = {
        f"{what} ({'score' if unit == 'scores' else unit})": found
        for unit in ("scores", "characters", "tokens")
        for what, found in split[unit].items()
    }
    keys = ["mean", "min", *QUANTILES, "max"]
    lines += _table(["", *keys], [[what, *(_short(found[key]) for key in keys)] for what, found in measures.items()])
    for what, found in measures.items():
        lines += _histogram_lines(what, found["histogram"])
    unit = "tokens" if split["tokens"] else "characters"
    rows = [
        [source, f"{s['pairs']:,}", _or_dash(s["mean_margin"], ".3g"), *_longer_cells(s[f"longer_chosen_{unit}"])]
        for source, s in split["sources"].items()
    ]
    header = ["source", "pairs", "mean margin", f"longer chosen ({unit})", "shorter chosen", "equal"]
    return lines + _table(header, rows)


def _histogram_lines(what: str, bins: Sequence[Sequence[float]]) -> list[str]:
    most = max(count for _, _, count in bins)
    total = sum(count for _, _, count in bins)
    rows = [
        [f"{low:,g} – {high:,g}", f"{count:,}", f"{count / total:.1%}", "█" * round(_BAR_CHARACTERS * count / most)]
        for low, high, count in bins
    ]
    return _table([what, "pairs", "share", ""], rows)


def _longer_cells(found: Mapping[str, Any]) -> list[str]:
    n = found["longer"] + found["shorter"] + found["equal"]
    return [f"{found[key]:,} ({found[key] / n:.1%})" if n else "—" for key in ("longer", "shorter", "equal")]


def _verdict_row(found: Mapping[str, Any]) -> list[str]:
    counts = [f"{found[key]:,}" for key in ("wins", "losses", "ties", "without_verdict")]
    return [found["model"], found["against"], _or_dash(found["win_rate"], ".2f"), *counts]


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _or_dash(value: float | None, how: str) -> str:
    return "—" if value is None else format(value, how)


def _most_first(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [header, ["---"] * len(header), *rows]
    # A source's or model's name comes from the data: it must not end the cell or the line.
    return ["| " + " | ".join(_cell(str(cell)) for cell in row) + " |" for row in cells] + [""]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
