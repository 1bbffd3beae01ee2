"""A `zephyr-local` that a test watches, interrupts or deprives of its engine while it runs."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tests.cli.command import ROOT, isolated

_WATCHDOG_S = 60
_Found = TypeVar("_Found")


@contextlib.contextmanager
def running(
    *arguments: str | Path, home: Path, stdin: int = subprocess.DEVNULL, stdout: int = subprocess.PIPE
) -> Iterator[subprocess.Popen[bytes]]:
    """The process, its outputs piped; it is killed where it has not ended."""
    process = subprocess.Popen(
        [sys.executable, "-m", "zephyr_local", *map(str, arguments)],
        cwd=ROOT,
        env=isolated(home),
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def first(process: subprocess.Popen[bytes], event: str) -> tuple[bytes, dict[str, Any]]:
    """Reads events up to the first of a name, which is returned behind all that was read."""
    assert process.stdout is not None
    read = b""
    for line in process.stdout:
        read += line
        values: dict[str, Any] = json.loads(line)
        if values["event"] == event:
            return read, values
    raise AssertionError(f"no {event} in {read!r}")


def engine_of(process: subprocess.Popen[bytes]) -> int:
    """The id of the engine's process, once there is one (Linux)."""

    def children() -> list[int]:
        found = []
        for path in Path(f"/proc/{process.pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):  # a thread that has ended
                found += [int(child) for child in path.read_text().split()]
        return found

    return _wait(children)[0]


def answer_begun(home: Path) -> None:
    """Waits for pieces of an answer in the store, each of which comes there before it is shown."""
    (path,) = _wait(lambda: list((home / "data").glob("*/chats.db")))

    def pieces() -> bool:
        with contextlib.closing(sqlite3.connect(path)) as connection, contextlib.suppress(sqlite3.OperationalError):
            return bool(connection.execute("SELECT count(*) > 2 FROM pieces").fetchone()[0])
        return False

    _wait(pieces)


def _wait(found: Callable[[], _Found]) -> _Found:
    """What is found, once something is."""
    deadline = time.monotonic() + _WATCHDOG_S
    while time.monotonic() < deadline:
        if what := found():
            return what
        time.sleep(0.01)
    raise AssertionError("it never came")
