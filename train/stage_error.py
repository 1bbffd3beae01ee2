"""How a stage's process tells its error to the command that started it: as JSON, in a file."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from zephyr_local import errors
from zephyr_local.errors import ZephyrError

ERROR_FILE: Final = "ZEPHYR_LOCAL_TRAIN_ERROR"
"""Environment variable: the file's path. Without it, the error goes to stderr."""


class TrainingError(ZephyrError):
    """A stage ended before it was complete; what it had written is kept."""


@contextlib.contextmanager
def reporting(exit_codes: list[int]) -> Iterator[None]:
    """Write a ZephyrError where whoever started this process looks for it, and note its exit code."""
    try:
        yield
    except ZephyrError as error:
        path = os.environ.get(ERROR_FILE)
        if path and os.environ.get("RANK", "0") == "0":
            entry = {"kind": type(error).__name__, "problem": error.problem, "remedy": error.remedy}
            Path(path).write_text(json.dumps(entry), encoding="utf-8")
        else:
            sys.stderr.write(f"{error}\n")
        exit_codes.append(error.exit_code)


def read_error(path: Path, name: str, code: int) -> ZephyrError:
    """The error of a process that ended with `code`, or what can be said where it left none."""
    try:
        entry: dict[str, Any] = json.loads(path.read_bytes())
        kind = getattr(errors, entry["kind"], TrainingError)
        error: ZephyrError = kind(entry["problem"], entry["remedy"])
        return error
    except (OSError, ValueError, KeyError):
        ended = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        return TrainingError(
            f"{name} {ended}", "What it wrote is kept: see its last lines above, then run it again; it goes on"
        )
