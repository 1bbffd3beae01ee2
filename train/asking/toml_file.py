"""A TOML file of the user's."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from zephyr_local.errors import InvalidInputError


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Raises InvalidInputError where there is no such file (`what` it is, for the message), or it is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidInputError(f"there is no {what} {path}", "Check the path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path} is not TOML: {error}", "Mend the file") from None
