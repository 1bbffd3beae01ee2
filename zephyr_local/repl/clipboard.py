"""Text to the clipboard: by the system's own tool, else by asking the terminal."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
from typing import Final

_WAIT_S: Final = 3.0
MAX_TERMINAL_BYTES: Final = 74_994  # of base64 the terminals in use take 100,000 characters at most


def tools() -> list[list[str]]:
    """The commands that may be there, the likeliest first."""
    if sys.platform == "darwin":
        return [["pbcopy"]]
    if sys.platform == "win32":
        return [["clip"]]
    found = []
    if os.environ.get("WAYLAND_DISPLAY"):
        found.append(["wl-copy"])
    if os.environ.get("DISPLAY"):
        found += [["xclip", "-selection", "clipboard"], ["xsel", "--clipboard", "--input"]]
    return found


def copy_with_tool(text: str) -> str | None:
    """The name of the tool that took the text; None where there is none that did."""
    for command in tools():
        program = shutil.which(command[0])
        if program is None:
            continue
        encoding = "utf-16-le" if sys.platform == "win32" else "utf-8"
        try:
            # Its outputs are not ours: xclip stays behind to serve the text, and would keep a pipe open.
            subprocess.run(
                [program, *command[1:]],
                input=text.encode(encoding, "replace"),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=_WAIT_S,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            continue
        return command[0]
    return None


def terminal_sequence(text: str) -> str | None:
    """What asks a terminal (OSC 52) to take the text; None where it is too long for that."""
    data = text.encode("utf-8", "replace")
    return None if len(data) > MAX_TERMINAL_BYTES else f"\x1b]52;c;{base64.b64encode(data).decode()}\x07"
