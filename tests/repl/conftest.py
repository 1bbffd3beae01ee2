"""A chat on a pseudo-terminal for each test that asks for one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.gguf_builder import write_counting_model
from tests.repl.terminal_driver import Terminal

OpenChat = Callable[..., Terminal]


@pytest.fixture(scope="session")
def counting(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a model that answers `w00 w01 …`, some hundred words a second, for half a minute."""
    return str(write_counting_model(tmp_path_factory.mktemp("counting")))


@pytest.fixture
def open_chat(tmp_path: Path) -> Iterator[OpenChat]:
    """Starts `zephyr-local chat` with the arguments and waits for its prompt; all share one home."""
    opened: list[Terminal] = []

    def start(*arguments: str, verb: str = "chat", wait: bool = True, **more: object) -> Terminal:
        if sys.platform == "win32":
            pytest.skip("pexpect has no pseudo-terminals on Windows")
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        terminal = Terminal(verb, *arguments, **({"home": home} | more))  # type: ignore[arg-type]
        opened.append(terminal)
        if wait:
            terminal.prompt()
        return terminal

    yield start
    for terminal in opened:
        terminal.close()
