"""The small applications of examples/desktop/: each as it stands, and used as somebody would use it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import skip_or_fail
from tests.desktop.watching import MOST_S, is_gone
from tests.engine.conftest import slow_path  # noqa: F401 — a fixture

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLES = ROOT / "examples" / "desktop"
FRANCE = "What is the capital of France?"
PARIS = "The capital of France is Paris."
LONG = "x " * 1800


def run(display: str, *command: object) -> list[str]:
    """The lines that a program prints; it must print no others and end well."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env=os.environ | {"DISPLAY": display, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


# --- tk_chat.py ---


class TkUser:
    """Somebody in front of the window of tk_chat.py."""

    def __init__(self, window: Any) -> None:
        self.window = window

    def until(self, condition: Callable[[], object]) -> None:
        end_s = time.monotonic() + MOST_S
        while not condition():
            assert time.monotonic() < end_s, self.status
            self.window.root.update()
            time.sleep(0.002)

    def ask(self, question: str) -> None:
        self.window.entry.insert(0, question)
        self.window.send.invoke()

    @property
    def status(self) -> str:
        return str(self.window.status.cget("text"))

    @property
    def text(self) -> str:
        return str(self.window.text.get("1.0", "end")).strip()


@pytest.fixture
def open_tk_chat(display: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., TkUser]]:
    if importlib.util.find_spec("tkinter") is None:
        skip_or_fail("tkinter", "apt-get install python3-tk")
    monkeypatch.setenv("DISPLAY", display)
    spec = importlib.util.spec_from_file_location("tk_chat", EXAMPLES / "tk_chat.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    users: list[TkUser] = []

    def open_window(model_path: str | None = None) -> TkUser:
        users.append(TkUser(module.ChatWindow(model_path)))
        return users[-1]

    yield open_window
    for user in users:
        process_id = user.window.model.engine_process_id
        user.window.root.destroy()
        assert user.window.model.wait_closed(MOST_S)
        assert process_id is None or is_gone(process_id)


def test_tk_chat_prints_an_answer(display: str) -> None:
    assert run(display, EXAMPLES / "tk_chat.py", "--self-test", FRANCE) == [PARIS]


def test_tk_chat(open_tk_chat: Callable[..., TkUser]) -> None:
    user = open_tk_chat()
    assert user.status == "Loading the model"
    user.ask(FRANCE)  # which waits for the load
    user.until(lambda: user.status.startswith("Ready"))
    assert user.text == f"{FRANCE}\n{PARIS}"
    user.window.again.invoke()
    assert user.text == FRANCE
    user.until(lambda: user.status.startswith("Ready"))
    assert user.text == f"{FRANCE}\n{PARIS}"
    os.kill(user.window.model.engine_process_id, signal.SIGKILL)
    user.until(lambda: "SIGKILL" in user.status)
    user.ask("and of Japan?")
    user.until(lambda: user.status.startswith("Ready"))
    assert user.text.endswith("and of Japan?\nThe capital of Japan is Tokyo.")


def test_tk_chat_is_stopped(open_tk_chat: Callable[..., TkUser], slow_path: Path) -> None:  # noqa: F811
    user = open_tk_chat(str(slow_path))
    user.window.stop.invoke()
    user.until(lambda: "was stopped" in user.status)
    user.ask(LONG)
    user.until(lambda: user.status.startswith("Reading"))
    user.window.stop.invoke()
    user.until(lambda: user.status == "Stopped")
    assert user.text == ""
    assert user.window.entry.get() == LONG.strip()


def test_tk_chat_says_what_is_wrong(open_tk_chat: Callable[..., TkUser]) -> None:
    user = open_tk_chat("no-model-is-called-so")
    user.until(lambda: "no-model-is-called-so is not on this machine" in user.status)


# --- clipboard_summary.py ---


def drive(display: str, *arguments: object) -> list[str]:
    return run(display, ROOT / "tests" / "desktop" / "drive_clipboard_summary.py", *arguments)


def test_clipboard_summary_prints_one(display: str) -> None:
    assert run(display, EXAMPLES / "clipboard_summary.py", "--self-test") == ["The capital of Italy is Rome."]


def test_clipboard_summary(display: str) -> None:
    assert drive(display, "whole") == [
        "There is no text on the clipboard empty",
        "The capital of Italy is Rome.",
        "True Copied",
        "True",
        PARIS,
        "ended",
    ]


def test_a_text_that_does_not_fit_is_summarised_in_parts(display: str) -> None:
    assert drive(display, "parts") == [
        "Done, by way of its parts",
        "True",
        "The text has 200001 characters, and 200000 are the most",
        "ended",
    ]


def test_clipboard_summary_is_stopped(display: str, slow_path: Path) -> None:  # noqa: F811
    assert drive(display, "stop", slow_path) == ["ready ''", "ended"]


def test_clipboard_summary_in_a_tray(display: str) -> None:
    if shutil.which("trayer") is None:
        skip_or_fail("a tray", "apt-get install trayer")
    tray = subprocess.Popen(
        ["trayer", "--edge", "top"],
        env=os.environ | {"DISPLAY": display},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        lines = drive(display, "tray")
    finally:
        tray.terminate()
        tray.wait()
    assert lines == [
        "['Quit', 'Stop', 'Summarise the clipboard'] False",
        "The capital of Italy is Rome. True",
        "it runs on",
        "ended",
    ]


# --- qasync_chat.py ---


def test_qasync_chat_prints_an_answer(display: str) -> None:
    assert run(display, EXAMPLES / "qasync_chat.py", "--self-test", FRANCE) == [f"> {FRANCE}", PARIS]


def test_qasync_chat_is_stopped_and_asked_again(display: str, tmp_path: Path) -> None:
    script = tmp_path / "drive_qasync_chat.py"
    script.write_text(
        f"""
import asyncio, os, signal, sys
sys.path.insert(0, {str(EXAMPLES)!r})
import qasync_chat
from PySide6.QtWidgets import QApplication
from zephyr_local import Sampling

async def ask(window, question):
    window.line.setText(question)
    window.ask()
    await asyncio.wait([window.answering])
    return window.view.toPlainText().rpartition("> ")[2]

async def drive(application):
    application.setQuitOnLastWindowClosed(False)
    window = qasync_chat.ChatWindow()
    window.show()
    window.line.setText("hello")
    window.ask()
    await asyncio.sleep(0)
    window.stop.click()  # in the load
    await asyncio.wait([window.answering])
    print(window.view.toPlainText().splitlines()[-1])
    print(repr(await ask(window, {FRANCE!r})))
    os.kill(window.zephyr.engine_process_id, signal.SIGSTOP)
    window.line.setText("hello")
    window.ask()
    await asyncio.sleep(0.2)
    window.stop.click()
    await asyncio.wait([window.answering])
    print(window.view.toPlainText().splitlines()[-1])
    os.kill(window.zephyr.engine_process_id, signal.SIGKILL)
    while window.zephyr.is_running:
        await asyncio.sleep(0.01)
    print(repr(await ask(window, "What is the capital of Japan?")))
    window.close()
    await window.zephyr.close()

qasync_chat.run(drive(QApplication([])))
"""
    )
    assert run(display, script) == [
        " [stopped]",
        repr(f"{FRANCE}\n{PARIS}"),
        " [stopped]",
        repr("What is the capital of Japan?\nThe capital of Japan is Tokyo."),
    ]
