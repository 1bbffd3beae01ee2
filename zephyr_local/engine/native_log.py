"""llama.cpp's log lines, into Python's logging and into the message of a failed load."""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Callable
from typing import Final

from zephyr_local.errors import EngineError, NotEnoughMemoryError

LOGGER: Final = logging.getLogger("zephyr_local.native")
# Without a handler somewhere, logging prints warnings to stderr; a library leaves that to the application.
logging.getLogger("zephyr_local").addHandler(logging.NullHandler())

KEPT_LINES: Final = 50
MAX_LINE_CHARS: Final = 2000

_CONTINUED: Final = 5  # GGML_LOG_LEVEL_CONT: more of the line before
# GGML_LOG_LEVEL_WARN and _ERROR of ggml.h (the numbers in the binding's comments are of an older one). All else, "info"
# included, tells every tensor and buffer: what an application calls debug.
_LEVELS: Final = {3: logging.WARNING, 4: logging.ERROR}


# How ggml's allocators and its backends for GPUs say so.
_NO_MEMORY: Final = re.compile(
    r"(failed|unable|not able|cannot) to allocate|allocat\w* failed|failed to (reserve|create) .*(buffer|memory)"
    r"|out of (device |host )?memory|insufficient memory|not enough (memory|space)|bad_alloc|cannot allocate memory"
    r"|resource temporarily unavailable",  # of a thread that could not be made
    re.IGNORECASE,
)


class NativeLog:
    """Joins what llama.cpp logs into lines; keeps the last ones."""

    def __init__(self) -> None:
        self._lines: deque[tuple[int, str]] = deque(maxlen=KEPT_LINES)
        self._unfinished = ""
        self._level = logging.DEBUG
        self.failure_is_asked_for: Callable[[], bool] | None = None
        """Where it says yes, what llama.cpp reports as an error is the cancelling of a decode, and is DEBUG."""

    def write(self, level: int, text: str) -> None:
        """Take one call of llama.cpp's log callback: a line, some of one, or several."""
        if level != _CONTINUED:
            self._flush()
            self._level = _LEVELS.get(level, logging.DEBUG)
        *lines, self._unfinished = (self._unfinished + text).split("\n")
        for line in lines:
            self._emit(line)
        if len(self._unfinished) > MAX_LINE_CHARS:
            self._flush()

    def clear(self) -> None:
        """Forget the lines kept so far, before an operation whose lines are of interest."""
        self._flush()
        self._lines.clear()

    def error(self, what_failed: str, remedy: str) -> EngineError:
        """The error for a call of llama.cpp that failed, with the reason that it logged."""
        reason = self.explanation()
        kind = NotEnoughMemoryError if _NO_MEMORY.search(reason) else EngineError
        return kind(f"{what_failed}: {reason}", remedy)

    def explanation(self) -> str:
        """What the kept lines say about a failure: the errors among them, else the last few lines."""
        self._flush()
        lines = list(self._lines)
        errors = [line for level, line in lines if level >= logging.ERROR]
        return "; ".join(errors[-4:] or [line for _, line in lines[-3:]]) or "llama.cpp gave no reason"

    def _flush(self) -> None:
        line, self._unfinished = self._unfinished, ""
        self._emit(line)

    def _emit(self, line: str) -> None:
        line = line.strip()[:MAX_LINE_CHARS]
        if line.strip("."):  # progress dots are not worth a line
            asked_for = self.failure_is_asked_for is not None and self.failure_is_asked_for()
            self._lines.append((self._level, line))
            LOGGER.log(logging.DEBUG if asked_for else self._level, "%s", line)
