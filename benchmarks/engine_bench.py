"""What the measures of benchmarks/engine.py share: where they run, and a line of the table."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.reference.build import ReferenceTools
from zephyr_local import Message, Sampling

ROOT = Path(__file__).resolve().parent.parent
CHILD_TIMEOUT_S = 600
N_CTX = 2048


@dataclass(frozen=True, slots=True)
class Bench:
    """What is measured, and how often."""

    model: Path
    threads: int
    runs: int
    times: int
    """Of kills, and of cancels."""
    tools: ReferenceTools


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table."""

    what: str
    ours: str
    peer: str = ""
    ratio: str = ""
    aim: str = ""
    met: bool | None = None


def at_least(what: str, unit: str, ours: Sequence[float], peer: Sequence[float], aim: float) -> Line:
    """Rates beside a peer's: the more the better."""
    ratio = pairs_ratio(ours, peer)
    return _beside(what, unit, ours, peer, ratio, f">= {aim:g}", ratio >= aim)


def at_most(what: str, unit: str, ours: Sequence[float], peer: Sequence[float], aim: float) -> Line:
    """Times beside a peer's: the less the better."""
    ratio = pairs_ratio(ours, peer)
    return _beside(what, unit, ours, peer, ratio, f"<= {aim:g}", ratio <= aim)


def pairs_ratio(ours: Sequence[float], peer: Sequence[float]) -> float:
    """The median ratio of runs that followed each other (see ``by_turns``).

    A machine that is shared has faster and slower minutes, a sixth apart here: they cancel in a pair, and not in the
    medians of two columns.
    """
    return middle([one / other for one, other in zip(ours, peer, strict=True)])


def _beside(
    what: str, unit: str, ours: Sequence[float], peer: Sequence[float], ratio: float, aim: str, met: bool
) -> Line:
    return Line(what, f"{middle(ours):.2f} {unit}", f"{middle(peer):.2f} {unit}", f"{ratio:.3f}", aim, met)


def print_table(lines: Sequence[Line]) -> None:
    """All of it, as wide as it has to be."""
    head = Line("", "zephyr-local", "llama.cpp", "ratio", "aim")
    rows = [(line.what, line.ours, line.peer, line.ratio, line.aim, _verdict(line)) for line in (head, *lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    print()
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _verdict(line: Line) -> str:
    return "" if line.met is None else "met" if line.met else "MISSED"


def by_turns(runs: int, *sides: Callable[[], None]) -> None:
    """Each side once a run; the order turns round from run to run."""
    for run in range(runs):
        for side in sides if run % 2 == 0 else reversed(sides):
            side()


def middle(numbers: Sequence[float]) -> float:
    return statistics.median(numbers)


def spread(numbers: Sequence[float]) -> str:
    return f"{middle(numbers):.2f} ({min(numbers):.2f} to {max(numbers):.2f})"


def run_tool(command: Sequence[object]) -> str:
    """A peer's stdout; SystemExit with what it said where it fails."""
    done = subprocess.run(list(map(str, command)), stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return done.stdout


def run_python(code: str, *arguments: object) -> str:
    """The stdout of a Python that runs ``code`` in the repository's folder."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=CHILD_TIMEOUT_S)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    return done.stdout


def user(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


def greedy(max_tokens: int) -> Sampling:
    """The likeliest tokens, and exactly so many: 2 ends an answer in Llama's and Mistral's vocabularies."""
    return Sampling(temperature=0, max_tokens=max_tokens, logit_bias={2: float("-inf")})
