"""Uses examples/desktop/clipboard_summary.py as somebody would: drive_clipboard_summary.py KIND [MODEL].

Its own process, since Qt takes a display and a binding once. Prints what the tests look at.
"""
# ruff: noqa: T201

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from PySide6.QtCore import QTimer
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QApplication, QPushButton, QSystemTrayIcon

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "examples" / "desktop"))
import clipboard_summary

MOST_S = 60.0


def until(condition: Callable[[], object]) -> None:
    """Let Qt work until something is so."""
    end_s = time.monotonic() + MOST_S
    while not condition():
        assert time.monotonic() < end_s, "it took too long"
        QApplication.processEvents()
        time.sleep(0.002)


class User:
    """Somebody with a clipboard, in front of the window."""

    def __init__(self, window: clipboard_summary.SummaryWindow) -> None:
        self.window = window

    def press(self, text: str) -> None:
        (button,) = (one for one in self.window.findChildren(QPushButton) if one.text() == text)
        assert button.isEnabled(), text
        button.click()

    def summarise(self, text: str) -> None:
        QGuiApplication.clipboard().setText(text)
        self.press("Summarise the clipboard")

    def finish(self) -> str:
        """The summary, once all of it is there."""
        until(lambda: self.window.status.text().startswith("Done"))
        return self.window.view.toPlainText()


def whole(user: User) -> None:
    """A text that fits, a copy of its summary, and another one after the engine was killed."""
    user.summarise("")
    print(user.window.status.text(), user.window.model.state)
    user.summarise(clipboard_summary.SELF_TEST_TEXT)
    print(user.finish())
    user.press("Copy")
    print(QGuiApplication.clipboard().text() == user.window.view.toPlainText(), user.window.status.text())
    process_id = user.window.model.engine_process_id
    assert process_id is not None
    os.kill(process_id, signal.SIGKILL)
    until(lambda: user.window.model.state == "crashed")
    print("SIGKILL" in user.window.status.text())
    user.summarise("Paris is the capital of France. What is the capital of France?")
    print(user.finish())


def parts(user: User) -> None:
    """A text that does not fit the context."""
    user.summarise(f"{'The hen is in the den. ' * 150}\n\n{clipboard_summary.SELF_TEST_TEXT}")
    summary = user.finish()
    print(user.window.status.text())
    print(bool(summary))
    user.summarise("x" * (clipboard_summary.MOST_CHARACTERS + 1))
    print(user.window.status.text())


def stop(user: User) -> None:
    """Stop while a long text is read."""
    user.summarise("x " * 3000)
    until(lambda: user.window.status.text().startswith("Reading"))
    user.press("Stop")
    until(lambda: user.window.status.text() == "Stopped")
    print(user.window.model.state, repr(user.window.view.toPlainText()))


def tray(user: User, application: QApplication) -> None:
    """The icon in a tray, its menu, and a window that is closed without an end of the application."""
    until(QSystemTrayIcon.isSystemTrayAvailable)
    icon = clipboard_summary.show_icon(user.window, application)
    until(lambda: not icon.geometry().isEmpty())
    actions = {action.text(): action for action in icon.contextMenu().actions()}
    print(sorted(filter(None, actions)), user.window.isVisible())
    QGuiApplication.clipboard().setText(clipboard_summary.SELF_TEST_TEXT)
    actions["Summarise the clipboard"].trigger()
    print(user.finish(), user.window.isVisible())
    user.press("Close")
    process_id = user.window.model.engine_process_id
    QTimer.singleShot(200, lambda: (print("it runs on"), actions["Quit"].trigger()))
    application.exec()
    print_end(process_id)


def print_end(process_id: int | None) -> None:
    assert process_id is not None
    print("left" if Path(f"/proc/{process_id}").exists() else "ended")


def main() -> None:
    application = QApplication([])
    window = clipboard_summary.SummaryWindow(sys.argv[2] if len(sys.argv) > 2 else None)
    user = User(window)
    if sys.argv[1] == "tray":
        tray(user, application)
        return
    window.show_in_the_corner()
    {"whole": whole, "parts": parts, "stop": stop}[sys.argv[1]](user)
    process_id = window.model.engine_process_id
    window.model.closed.connect(application.quit)
    window.model.close()
    application.exec()
    print_end(process_id)


if __name__ == "__main__":
    main()
