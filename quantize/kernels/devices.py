"""The names of what may encode."""

from __future__ import annotations

import re

from zephyr_local.errors import InvalidInputError


def parse_device(name: str) -> tuple[str, int | None]:
    """The kind of device, `cpu`, `mps` or `cuda`, and its number where one is given; else InvalidInputError."""
    match = re.fullmatch(r"(cpu|mps|cuda)|(cuda):(\d{1,2})", name)
    if match is None:
        raise InvalidInputError(f"{name!r} is no device that can encode", "Use cpu, cuda, cuda:1 and so on, or mps")
    return (match[1], None) if match[1] else (match[2], int(match[3]))
