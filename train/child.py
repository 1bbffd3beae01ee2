"""What the processes of a run have in common: quiet libraries, and how an error reaches whoever started them."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from zephyr_local import errors
from zephyr_local.errors import ZephyrError

ERROR_FILE: Final = "ZEPHYR_LOCAL_TRAIN_ERROR"
"""Environment variable: the file's path. Without it, the error goes to stderr."""


class TrainingError(ZephyrError):
    """A stage ended before it was complete; what it had written is kept."""


def run_child(work: Callable[[], object], *, threads: int | None = None, online: bool = False) -> int:
    """Be one of a run's processes: do the work; return the exit code, which is the command line's.

    A ZephyrError is written where the run looks for it, or to stderr. `threads` are torch's.
    """
    report_nothing()
    if not online:
        quiet_libraries()
    try:
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        work()
    except ZephyrError as error:
        path = os.environ.get(ERROR_FILE)
        if path and os.environ.get("RANK", "0") == "0":
            entry = {"kind": type(error).__name__, "problem": error.problem, "remedy": error.remedy}
            Path(path).write_text(json.dumps(entry), encoding="utf-8")
        else:
            sys.stderr.write(f"{error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT  # the command says what is to be said
    return 0


def report_nothing() -> None:
    """Have the libraries tell nobody what is done here; they read it when they are imported."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["HF_UPDATE_DOWNLOAD_COUNTS"] = "0"  # of datasets


def quiet_libraries() -> None:
    """Few progress bars, no reports to anybody, and no network: what a process needs is in its folder."""
    report_nothing()
    os.environ["HF_HUB_OFFLINE"] = "1"  # also where the environment says 0: nothing here may be fetched unasked
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # a bar is for a terminal; a log file would get every stroke of it
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it says at import what it lacks for CPUs
    logging.getLogger("DeepSpeed").addFilter(_says_more_than_that_there_is_no_gpu)
    warnings.filterwarnings("ignore", category=FutureWarning)  # of the libraries, about each other


def _says_more_than_that_there_is_no_gpu(record: logging.LogRecord) -> bool:
    return "Setting accelerator to CPU" not in str(record.msg)


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
