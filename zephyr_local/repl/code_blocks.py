"""The code in an answer."""

from __future__ import annotations

import re
from typing import Final

_FENCE: Final = re.compile(r"(?P<indent>[ \t]*)(?P<fence>`{3,}(?=[^`]*$)|~{3,})(?P<info>.*)")


def code_blocks(text: str) -> list[str]:
    """What stands between fences, without their indentation; the last block may lack its end, as in a cut answer."""
    blocks: list[list[str]] = []
    open_fence: re.Match[str] | None = None
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):
        found = _FENCE.fullmatch(line.rstrip("\r\n"))
        if open_fence is None:
            if found is not None:
                open_fence = found
                blocks.append([])
        elif found is not None and _closes(found, open_fence["fence"]):
            open_fence = None
        else:
            indent = len(open_fence["indent"])
            blocks[-1].append(line[:indent].lstrip(" \t") + line[indent:])
    return ["".join(lines) for lines in blocks]


def _closes(found: re.Match[str], fence: str) -> bool:
    return found["fence"].startswith(fence) and not found["info"].strip()
