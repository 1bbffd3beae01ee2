"""How long a server asks to be left alone: the header Retry-After (RFC 9110, section 10.2.3)."""

from __future__ import annotations

import email.utils
import time
from typing import Final

_MOST_SECONDS: Final = 1e7


def retry_after_s(value: str | None) -> float | None:
    """Seconds from now, of a number or a date; None where it is neither."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(0.0, seconds) if seconds < _MOST_SECONDS else None
