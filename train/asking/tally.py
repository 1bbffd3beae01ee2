"""What a run of questions came to, for progress lines and for the end."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from zephyr_local.train.terminal import duration

_SHOWN_REASONS: Final = 5
_LEAST_TO_FORECAST: Final = 10


@dataclass(slots=True)
class Tally:
    """Counts of one purpose, such as one judge's; any thread may add to it."""

    name: str
    total: int = 0
    """How many questions there are, as far as is known."""
    done: int = 0
    """Questions that are answered, or never will be."""
    asked: int = 0
    """Answers that came from the model now."""
    kept: int = 0
    """Questions whose answers were all there from before."""
    unreadable: Counter[str] = field(default_factory=Counter)
    """Answers not in the form that was asked for, by reason; a question is asked three times at most."""
    retried: Counter[str] = field(default_factory=Counter)
    """Tries that brought no answer, by reason; others followed, as long as the model's attempts last."""
    refused: Counter[str] = field(default_factory=Counter)
    """Questions without an answer in the end, by reason."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    """Of the answers that came now, in dollars."""
    estimated: int = 0
    """Answers whose counts the endpoint left to be estimated, high."""
    began_at: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, **counts: float) -> None:
        with self._lock:
            for name, value in counts.items():
                setattr(self, name, getattr(self, name) + value)

    def count(self, what: str, reason: str) -> None:
        """Count one of ``unreadable``, ``retried`` and ``refused``."""
        with self._lock:
            getattr(self, what)[reason] += 1

    def _troubles(self) -> tuple[tuple[str, Counter[str]], ...]:
        return ("unreadable", self.unreadable), ("retried", self.retried), ("no answer", self.refused)

    def line(self) -> str:
        """How far it is, in one line."""
        parts = [f"{self.name}: {self.done:,} of {self.total:,}"]
        if self.kept:
            parts.append(f"{self.kept:,} from before")
        parts += [f"{counts.total():,} {what}" for what, counts in self._troubles() if counts]
        if self.prompt_tokens or self.completion_tokens:
            parts.append(f"{self.prompt_tokens:,} + {self.completion_tokens:,} tokens")
        fresh, left = self.done - self.kept, self.total - self.done
        if fresh >= _LEAST_TO_FORECAST and left > 0:
            parts.append(f"{duration((time.monotonic() - self.began_at) * left / fresh)} left")
        if self.cost:
            parts.append(f"{'at most ' if self.estimated else ''}${self.cost:.4f}")
        return "  ".join(parts)

    def details(self) -> list[str]:
        """Why answers were asked again, retried or never came: a line for each reason."""
        lines = []
        for what, counts in self._troubles():
            shown = counts.most_common(_SHOWN_REASONS)
            lines += [f"  {what}, {count:,} x: {reason}" for reason, count in shown]
            more = counts.total() - sum(count for _, count in shown)
            lines += [f"  {what}, {more:,} x more, for {len(counts) - len(shown):,} other reasons"] if more else []
        return lines

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "name": self.name,
            "done": self.done,
            "asked": self.asked,
            "from_before": self.kept,
            "unreadable": dict(self.unreadable),
            "retried": dict(self.retried),
            "no_answer": dict(self.refused),
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "cost_dollars": self.cost,
            "estimated": self.estimated > 0,
        }
