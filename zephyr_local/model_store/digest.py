"""The SHA-256 of a file, read from end to end."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

_READ_BYTES: Final = 1 << 20


def sha256_of(path: Path, advance: Callable[[int], object]) -> str:
    """Its hexadecimal digits; ``advance`` takes how many more bytes were read. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while data := file.read(_READ_BYTES):
            digest.update(data)
            advance(len(data))
    return digest.hexdigest()
