"""JSON on stdout: its text is one line to every reader, and a terminal shows it and does nothing else."""

from __future__ import annotations

import json
import re
from typing import Any, Final

# What json leaves as it is: DEL and the C1 controls, what ends lines, reorders or hides text, and lone surrogates.
_UNSAFE: Final = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def json_text(value: Any, *, indent: int | None = None) -> str:  # noqa: ANN401  (what json takes)
    """``value`` as JSON that UTF-8 can hold; without ``indent`` on one line."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return _UNSAFE.sub(lambda match: f"\\u{ord(match.group()):04x}", text)
