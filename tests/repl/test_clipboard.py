"""Text to the clipboard: which tool takes it, and what the terminal is sent without one."""

from __future__ import annotations

import base64
import sys
import time
from pathlib import Path

import pytest

from zephyr_local.repl import clipboard

pytestmark = pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="the tools are those of Linux")

TEXT = "Zürich 日本 \U0001f600\nand a line\n"


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH but for the shell's own."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("COPIED", str(tmp_path / "copied"))
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    return tmp_path


def put(folder: Path, name: str, script: str) -> None:
    path = folder / "bin" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_without_a_display_no_tool_is_asked(tools: Path) -> None:
    put(tools, "xclip", "echo $0 > $COPIED")
    assert clipboard.copy_with_tool(TEXT) is None
    assert not (tools / "copied").exists()


@pytest.mark.parametrize(
    ("name", "display", "arguments"),
    [
        ("wl-copy", "WAYLAND_DISPLAY", ""),
        ("xclip", "DISPLAY", "-selection clipboard"),
        ("xsel", "DISPLAY", "--clipboard --input"),
    ],
)
def test_the_tool_of_the_display_gets_the_text(
    tools: Path, monkeypatch: pytest.MonkeyPatch, name: str, display: str, arguments: str
) -> None:
    monkeypatch.setenv(display, ":0")
    put(tools, "xclip" if name == "xsel" else "none", "exit 1")  # one that fails is passed over
    put(tools, name, 'echo "$*" > "$COPIED"; cat >> "$COPIED"')
    assert clipboard.copy_with_tool(TEXT) == name
    assert (tools / "copied").read_text() == f"{arguments}\n{TEXT}"


def test_a_tool_that_stays_behind_or_hangs_is_not_waited_for(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":0")
    put(tools, "xclip", 'cat > "$COPIED"; sleep 3 &')  # as xclip does, to serve the text
    start_s = time.monotonic()
    assert clipboard.copy_with_tool(TEXT) == "xclip"
    assert time.monotonic() - start_s < 2
    monkeypatch.setattr(clipboard, "_WAIT_S", 0.2)
    put(tools, "xclip", "exec sleep 20")
    put(tools, "xsel", "exit 1")
    assert clipboard.copy_with_tool("text" * 100_000) is None
    assert time.monotonic() - start_s < 10


def test_what_asks_the_terminal() -> None:
    sequence = clipboard.terminal_sequence(TEXT)
    assert sequence is not None
    assert sequence.startswith("\x1b]52;c;")
    assert sequence.endswith("\x07")
    assert base64.b64decode(sequence[7:-1]).decode() == TEXT
    assert clipboard.terminal_sequence("lone \ud800") is not None
    assert clipboard.terminal_sequence("x" * clipboard.MAX_TERMINAL_BYTES) is not None
    assert clipboard.terminal_sequence("x" * (clipboard.MAX_TERMINAL_BYTES + 1)) is None
    assert len(clipboard.terminal_sequence("x" * clipboard.MAX_TERMINAL_BYTES) or "") <= 100_000
