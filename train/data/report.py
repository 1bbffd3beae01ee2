"""What a data step read, kept, changed and dropped, and why: kept as JSON beside its output and shown as a table."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zephyr_local.train.data.records import Damage

EXAMPLES_KEPT = 3
EXAMPLE_CHARACTERS = 200


@dataclass(slots=True)
class DataReport:
    """Counts of one data step. A record is counted once: kept, or dropped for the first reason that applied."""

    step: str
    """The command, such as ``dialogues``."""
    n_read: int = 0
    n_kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    """Reason, as a phrase (``no assistant turn``) → records."""
    changed: dict[str, int] = field(default_factory=dict)
    """Change, as a phrase (``truecased``) → records."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Reason or change → the first few, each ``where: text``, cut."""
    facts: dict[str, object] = field(default_factory=dict)
    """Settings and statistics of the step: JSON values."""

    def drop(self, reason: str, where: str, text: str = "") -> None:
        """Count a dropped record; `where` is its file and line or row, from 1."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        self._example(reason, where, text)

    def drop_damaged(self, damage: Damage) -> None:
        """Count what stood in a record's place."""
        self.n_read += 1
        self.drop(damage.reason, damage.where, damage.detail.removeprefix(": "))

    def change(self, what: str, where: str, text: str = "") -> None:
        """Count a record that is kept with a change."""
        self.changed[what] = self.changed.get(what, 0) + 1
        self._example(what, where, text)

    def _example(self, key: str, where: str, text: str) -> None:
        kept = self.examples.setdefault(key, [])
        if len(kept) < EXAMPLES_KEPT:
            kept.append(f"{where}: {text}"[:EXAMPLE_CHARACTERS])

    def as_json(self) -> dict[str, object]:
        """JSON values, the same for the same run."""
        return {
            "step": self.step,
            "read": self.n_read,
            "kept": self.n_kept,
            "dropped": dict(sorted(self.dropped.items())),
            "changed": dict(sorted(self.changed.items())),
            "examples": dict(sorted(self.examples.items())),
            **self.facts,
        }

    def write(self, path: Path) -> None:
        """As JSON; the file is whole or absent."""
        from zephyr_local.train.data.records import write_whole

        write_whole(path, json.dumps(self.as_json(), indent=2, ensure_ascii=False).encode(errors="replace") + b"\n")

    def lines(self) -> list[str]:
        """For the terminal: one line a count."""
        lines = [f"read {self.n_read:,}, kept {self.n_kept:,}"]
        lines += [f"dropped {count:,}: {reason}" for reason, count in _most_first(self.dropped)]
        lines += [f"changed {count:,}: {what}" for what, count in _most_first(self.changed)]
        return lines


def _most_first(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
