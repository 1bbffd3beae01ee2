"""Text of a command line, checked where it is read."""

from __future__ import annotations

from typing import TypeVar

from zephyr_local.errors import InvalidInputError

_Text = TypeVar("_Text", str, str | None)


def require_utf8(text: _Text, name: str) -> _Text:
    """``text`` without bytes that are no UTF-8, of which Python makes lone surrogates. Raises InvalidInputError."""
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"{name} is not UTF-8 (character {error.start})", "Give text in UTF-8") from None
    return text
