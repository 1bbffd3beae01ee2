"""Models' names as names of files."""

from __future__ import annotations

import re
from collections.abc import Sequence

from zephyr_local.errors import InvalidInputError


def file_name(name: str) -> str:
    """A model's name as that of a file or folder: FastChat's scripts find a judge's file by it."""
    safe = re.sub(r"[^\w.()-]", "_", name)
    return safe if safe.strip(".") else f"_{safe}"


def require_different(names: Sequence[str]) -> None:
    """Raises InvalidInputError where two models would be kept in one file."""
    kept: dict[str, str] = {}
    for name in names:
        key = file_name(name).casefold()  # some file systems know no other
        if key in kept:
            also = "" if kept[key] == name else f" (and {kept[key]}, which is kept under the same name)"
            raise InvalidInputError(f"two models are called {name}{also}", "Give them names in a --models file")
        kept[key] = name
