"""A text file that goes with the next message."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zephyr_local.errors import InvalidInputError

_MOST_BYTES_A_TOKEN: Final = 64  # of spaces or dashes; text has four
_FENCE: Final = re.compile("`{3,}")


@dataclass(frozen=True, slots=True)
class Attachment:
    """What a file adds to a message."""

    name: str
    text: str


def read_attachment(path: Path, n_ctx: int) -> Attachment:
    """The file as a fenced block under its name. Raises InvalidInputError for what is no text or surely too long."""
    limit = _MOST_BYTES_A_TOKEN * n_ctx
    try:
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise InvalidInputError(f"{path} cannot be read: {reason}", "Check the path") from None
    if len(data) > limit:
        raise InvalidInputError(
            f"{path} is over {limit} bytes, and the context holds {n_ctx} tokens", "Give a part of it"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path} is not UTF-8 text (byte {error.start})", "Convert it first") from None
    if "\0" in text:
        raise InvalidInputError(f"{path} is not text", "Give a text file")
    if not text.strip():
        raise InvalidInputError(f"{path} is empty", "Give a file with text in it")
    text = text.replace("\r\n", "\n")
    fence = "`" * max([3, *(len(found) + 1 for found in _FENCE.findall(text))])
    newline = "" if text.endswith("\n") else "\n"
    return Attachment(path.name, f"{path.name}:\n{fence}\n{text}{newline}{fence}")
