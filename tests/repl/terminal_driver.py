"""A zephyr-local process on a real pseudo-terminal, its screen read through a terminal emulator."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.cli.command import ROOT, isolated
from tests.conftest import skip_or_fail

try:
    import pexpect
    import pyte
except ImportError:
    pexpect = None

BEGUN = re.compile(r"^\d+/\d+ (\+\d+ )?(edit )?>")  # once the model is loaded
PROMPT = re.compile(r"^(\d+/\d+ |loading \d+% )?(\+\d+ )?(edit )?>$")


def _limit_memory(size_bytes: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (size_bytes, size_bytes))


class Terminal:
    """The process, and what its screen shows."""

    def __init__(
        self,
        *arguments: str,
        home: Path,
        columns: int = 100,
        rows: int = 40,
        environment: Mapping[str, str] = {},
        cwd: Path | None = None,
        most_memory_bytes: int | None = None,
    ) -> None:
        """``most_memory_bytes``: of address space, for each of its processes."""
        if pexpect is None:
            skip_or_fail("pexpect or pyte", "pip install pexpect pyte (there is no pexpect.spawn on Windows)")
        self.screen = pyte.HistoryScreen(columns, rows, history=10000)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        env = isolated(home) | {"TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"} | dict(environment)
        self.process = pexpect.spawn(
            sys.executable,
            ["-m", "zephyr_local", *arguments],
            cwd=str(cwd or ROOT),
            env=env,
            dimensions=(rows, columns),
            timeout=60,
            preexec_fn=None if most_memory_bytes is None else lambda: _limit_memory(most_memory_bytes),
        )
        self.process.delaybeforesend = None

    @property
    def text(self) -> str:
        """What the screen shows, and what has left it at the top."""
        history = ["".join(line[x].data for x in range(self.screen.columns)) for line in self.screen.history.top]
        return "\n".join(line.rstrip() for line in [*history, *self.screen.display]).rstrip()

    @property
    def last_line(self) -> str:
        return (self.text.splitlines() or [""])[-1]

    def feed(self, timeout_s: float = 0.05) -> bool:
        """Take what the process has written; False where it has ended."""
        try:
            data = self.process.read_nonblocking(65536, timeout=timeout_s)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.raw += data
        self._stream.feed(data)
        return True

    def wait(self, condition: Callable[[str], bool], timeout_s: float = 60) -> str:
        """The screen once ``condition`` holds of it."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            alive = self.feed()
            if condition(self.text):
                return self.text
            if not alive:
                self.process.wait()
                raise AssertionError(f"the process ended with:\n{self.text}")
        raise AssertionError(f"the screen never showed it:\n{self.text}")

    def shows(self, words: str) -> str:
        """Wait until ``words`` are on the screen and it is still."""
        self.wait(lambda text: words in text)
        return self.text

    def prompt(self, *, answers: str = "") -> str:
        """Wait for an empty prompt at the end, and for ``answers`` somewhere before it."""
        return self.wait(lambda text: bool(PROMPT.match((text.splitlines() or [""])[-1])) and answers in text)

    def empty_prompt(self) -> str:
        """Wait for a prompt, and remove what stands at it already."""
        self.wait(lambda text: bool(BEGUN.match(self.last_line)))
        if not PROMPT.match(self.last_line):
            self.control("c")
        return self.prompt()

    def send(self, keys: str | bytes) -> None:
        self.process.send(keys)

    def say(self, line: str) -> None:
        """Type a line and send it; its echo is awaited first, so that what follows is what came of it."""
        self.send(line)
        tail = line.strip()[-12:]
        if tail:
            self.wait(lambda text: tail in text.replace("\n", ""))
        self.send("\r")

    def ask(self, line: str, expected: str = "") -> str:
        """Say a line and wait for the next prompt, ``expected`` before it; returns what came."""
        before = len(self.raw)
        self.say(line)
        time.sleep(0.05)
        self.wait(lambda text: bool(PROMPT.match(self.last_line)) and len(self.raw) > before and expected in text)
        return self.text

    def control(self, letter: str) -> None:
        self.process.sendcontrol(letter)

    def resize(self, columns: int, rows: int = 40) -> None:
        self.screen.resize(rows, columns)
        self.process.setwinsize(rows, columns)

    def ended(self) -> int:
        """The exit code, once the process has ended."""
        deadline = time.monotonic() + 30
        while self.process.isalive() and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                self.feed()
        while self.feed(0.2):
            if time.monotonic() > deadline:
                break
        self.process.close()
        return int(
            self.process.exitstatus if self.process.exitstatus is not None else -(self.process.signalstatus or 0)
        )

    def close(self) -> None:
        self.process.close(force=True)
