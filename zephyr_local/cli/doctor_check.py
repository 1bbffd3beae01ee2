"""What one check of `zephyr-local doctor` comes to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Status = Literal["ok", "note", "problem"]


@dataclass(frozen=True, slots=True)
class Check:
    """What one check found."""

    status: Status
    text: str
    """One line, or several."""
    facts: Mapping[str, object] = field(default_factory=dict)
    remedies: tuple[str, ...] = ()
