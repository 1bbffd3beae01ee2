"""The chat on a real pseudo-terminal, its screen read through a terminal emulator."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.command import ROOT
from tests.conftest import skip_or_fail
from tests.gguf_builder import write_endless_model

try:
    import pexpect
    import pyte
except ImportError:
    pexpect = None


class Terminal:
    """A zephyr-local process on a pseudo-terminal of 100 × 40, and what its screen shows."""

    def __init__(self, *arguments: str) -> None:
        self.screen = pyte.HistoryScreen(100, 40)
        self._stream = pyte.ByteStream(self.screen)
        env = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"}
        self.process = pexpect.spawn(
            sys.executable, ["-m", "zephyr_local", *arguments], cwd=str(ROOT), env=env, dimensions=(40, 100), timeout=60
        )

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    def wait(self, condition: Callable[[str], bool], timeout_s: float = 60) -> str:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                self._stream.feed(self.process.read_nonblocking(65536, timeout=0.05))
            except pexpect.TIMEOUT:
                pass
            except pexpect.EOF:
                self.process.wait()
                assert condition(self.text), f"the process ended with:\n{self.text}"
                return self.text
            if condition(self.text):
                return self.text
        raise AssertionError(f"the screen never showed it:\n{self.text}")

    def prompt(self) -> str:
        return self.wait(lambda text: text.splitlines()[-1:] == [">"])

    def say(self, line: str) -> None:
        self.process.send(f"{line}\r")

    def ended(self) -> int:
        deadline = time.monotonic() + 30
        while self.process.isalive() and time.monotonic() < deadline:
            with contextlib.suppress(pexpect.TIMEOUT, pexpect.EOF):
                self._stream.feed(self.process.read_nonblocking(65536, timeout=0.05))
        self.process.close()
        return int(self.process.exitstatus if self.process.exitstatus is not None else -1)


@pytest.fixture
def open_chat() -> Iterator[Callable[..., Terminal]]:
    if pexpect is None:
        skip_or_fail("pexpect or pyte", "pip install pexpect pyte (there is no pexpect.spawn on Windows)")
    opened: list[Terminal] = []

    def start(*arguments: str) -> Terminal:
        terminal = Terminal("chat", *arguments)
        opened.append(terminal)
        terminal.prompt()
        return terminal

    yield start
    for terminal in opened:
        terminal.process.close(force=True)


def test_a_conversation_from_greeting_to_exit(open_chat: Callable[..., Terminal]):
    chat = open_chat()
    assert "zephyr-tiny" in chat.text
    assert "/help" in chat.text
    chat.say("What is the capital of France?")
    chat.wait(lambda text: "Paris" in text)
    chat.prompt()
    chat.say("/help")
    chat.wait(lambda text: "/clear   forget" in text)
    chat.say("/nonsense")
    chat.wait(lambda text: "/nonsense is not a command" in text)
    chat.say("/clear")
    chat.wait(lambda text: "conversation is cleared" in text)
    chat.prompt()
    chat.say("/exit")
    assert chat.ended() == 0
    assert "Traceback" not in chat.text


def test_ctrl_d_leaves_and_ctrl_c_at_the_prompt_asks_twice(open_chat: Callable[..., Terminal]):
    chat = open_chat()
    chat.process.sendcontrol("c")
    chat.wait(lambda text: "Ctrl+C again" in text)
    chat.process.sendcontrol("d")
    assert chat.ended() == 0
    again = open_chat()
    again.process.sendcontrol("c")
    again.wait(lambda text: "Ctrl+C again" in text)
    again.process.sendcontrol("c")
    assert again.ended() == 0


def test_ctrl_c_stops_an_answer_and_keeps_what_came(open_chat: Callable[..., Terminal], tmp_path: Path):
    chat = open_chat(str(write_endless_model(tmp_path)), "--temperature", "0", "--n-ctx", "65536")
    for _ in range(2):
        chat.say("Tell me something")
        chat.wait(lambda text: not text.splitlines()[-1].startswith(">"))
        chat.process.sendcontrol("c")
        chat.wait(lambda text: text.splitlines()[-2:] == ["[stopped]", ">"])
    chat.process.sendcontrol("d")
    assert chat.ended() == 0


def test_timings_and_errors_leave_the_chat_alive(open_chat: Callable[..., Terminal]):
    chat = open_chat("--verbose", "--n-ctx", "256")
    chat.say("word " * 500)
    chat.wait(lambda text: "error:" in text and "256" in text)
    chat.prompt()
    chat.say("Hello")
    chat.wait(lambda text: "first token after" in text)
    chat.prompt()
    chat.process.sendcontrol("d")
    assert chat.ended() == 0
