"""Runs `zephyr-local` as a user does: a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def isolated(home: Path) -> dict[str, str]:
    """An environment whose chats, history and configuration are in ``home`` alone."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("ZEPHYR_LOCAL_", "XDG_"))}
    folders = {f"XDG_{kind}_HOME": str(home / kind.lower()) for kind in ("DATA", "STATE", "CONFIG")}
    return kept | folders | {"PYTHONPATH": str(ROOT)}


def zephyr_local(
    *arguments: str | Path,
    stdin: str | bytes | None = None,
    cwd: Path | None = None,
    timeout_s: float = 120,
    home: Path | None = None,
    environment: Mapping[str, str] = {},
) -> subprocess.CompletedProcess[str]:
    """Run the command with ``stdin`` piped in (None: an empty pipe) and both outputs captured as text.

    Chats, history and configuration are those in ``home``.
    """
    data = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run(
        [sys.executable, "-m", "zephyr_local", *map(str, arguments)],
        input=data if data is not None else b"",
        cwd=cwd or ROOT,
        env=(dict(os.environ) if home is None else isolated(home)) | {"PYTHONPATH": str(ROOT)} | dict(environment),
        capture_output=True,
        timeout=timeout_s,
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode("utf-8"), done.stderr.decode("utf-8")
    )
