"""Checks that the settings of both data steps share: known names, numbers within limits."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from zephyr_local.errors import InvalidInputError


def require_known(values: Mapping[str, Any], settings: type, step: str) -> None:
    """Refuse a recipe's key that is no field of `settings`, a dataclass; `step` is its name, such as ``dialogue``."""
    known = [field.name for field in fields(settings)]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            remedy = f"Did you mean {near[0]}" if near else f"Settings are {', '.join(known)}"
            raise InvalidInputError(f"there is no {step} setting {name!r}", remedy)


def require_number(name: str, value: object, least: float, most: float = float("inf")) -> None:
    """Refuse what is no number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        limit = f"of {least:g} or more" if most == float("inf") else f"from {least:g} to {most:g}"
        raise InvalidInputError(f"{name} is {value!r}", f"Give a number {limit}")


def require_whole(name: str, value: object, least: int | None = None) -> None:
    """Refuse what is no whole number, or is below `least`."""
    if type(value) is not int or (least is not None and value < least):
        raise InvalidInputError(
            f"{name} is {value!r}", "Give a whole number" + ("" if least is None else f" from {least}")
        )


def require_one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Refuse what is none of the allowed words."""
    if value not in allowed:
        raise InvalidInputError(f"{name} is {value!r}", f"Use one of {', '.join(allowed)}")
