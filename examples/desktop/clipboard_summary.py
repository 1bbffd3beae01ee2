"""Summarises the clipboard, from an icon in the menu bar: python clipboard_summary.py [MODEL] [--self-test].

The model is loaded when it is first needed. A text that does not fit its context is summarised in parts, and then the
summaries of the parts are. On a desktop without a place for such icons there is the small window alone.
"""

from __future__ import annotations

import argparse
import sys

from PySide6.QtCore import Qt
from PySide6.QtGui import QAction, QGuiApplication, QMouseEvent
from PySide6.QtWidgets import (
    QApplication,
    QFrame,
    QHBoxLayout,
    QLabel,
    QMenu,
    QPlainTextEdit,
    QPushButton,
    QStyle,
    QSystemTrayIcon,
    QVBoxLayout,
)

from zephyr_local import ContextExceededError, freeze_support
from zephyr_local.desktop.qt import ZephyrModel

SYSTEM = "Summarise the text that the user gives in a few short sentences. Write the summary and nothing else."
MOST_CHARACTERS = 200_000  # some 50,000 tokens, which take long to read
FEWEST_CHARACTERS = 200  # a part that is shorter and does not fit is not cut again
SELF_TEST_TEXT = "A letter from Rome. Rome is the capital of Italy. What is the capital of Italy?"


class SummaryWindow(QFrame):
    """A small window without a frame, which shows a summary while it is written."""

    def __init__(self, model_path: str | None) -> None:
        super().__init__(None, Qt.WindowType.FramelessWindowHint | Qt.WindowType.WindowStaysOnTopHint)
        self.setWindowTitle("Clipboard summary")
        self.setFrameShape(QFrame.Shape.StyledPanel)
        self.resize(460, 240)
        self._model_path = model_path
        self._parts: list[str] = []  # still to be summarised
        self._summaries: list[str] = []  # of the parts before
        self._is_last_round = False  # it is summaries that are summarised
        self._build()
        self.model = model = ZephyrModel(self)
        model.load_progress.connect(lambda share: self.status.setText(f"Loading the model: {share:.0%}"))
        model.prefill_progress.connect(lambda done, total: self.status.setText(f"Reading: {done} of {total} tokens"))
        model.piece.connect(self.view.insertPlainText)
        model.finished.connect(self._take_summary)
        model.failed.connect(self._take_failure)
        model.crashed.connect(lambda problem: self.status.setText(f"{problem}. The next summary starts it again."))
        model.state_changed.connect(self._show_state)
        self._show_state(model.state)

    def _build(self) -> None:
        self.summarise, self.stop = QAction("Summarise the clipboard", self), QAction("Stop", self)
        self.copy, self.leave = QAction("Copy", self), QAction("Close", self)
        self.summarise.triggered.connect(self.summarise_clipboard)
        self.stop.triggered.connect(lambda: self.model.stop())
        self.copy.triggered.connect(self.copy_summary)
        self.leave.triggered.connect(self.close)
        self.view, self.status = QPlainTextEdit(), QLabel()
        self.view.setReadOnly(True)
        self.status.setWordWrap(True)
        row = QHBoxLayout()
        for action in (self.summarise, self.stop, self.copy, self.leave):
            button = QPushButton(action.text())
            button.clicked.connect(action.trigger)
            action.enabledChanged.connect(button.setEnabled)
            row.addWidget(button)
        whole = QVBoxLayout(self)
        whole.addWidget(self.view)
        whole.addWidget(self.status)
        whole.addLayout(row)

    def mousePressEvent(self, event: QMouseEvent) -> None:  # noqa: N802 — Qt's name
        self.windowHandle().startSystemMove()  # there is no title to move it by

    # --- what the user does ---

    def summarise_clipboard(self) -> None:
        self.show_in_the_corner()
        text = QGuiApplication.clipboard().text().strip()
        if not text:
            self.status.setText("There is no text on the clipboard")
        elif len(text) > MOST_CHARACTERS:
            self.status.setText(f"The text has {len(text)} characters, and {MOST_CHARACTERS} are the most")
        else:
            if self.model.state in ("empty", "crashed"):
                self.model.load(self._model_path)
            self._parts, self._summaries, self._is_last_round = [text], [], False
            self.view.clear()
            self._summarise_next()

    def copy_summary(self) -> None:
        QGuiApplication.clipboard().setText(self.view.toPlainText())
        self.status.setText("Copied")

    def show_in_the_corner(self) -> None:
        place = self.screen().availableGeometry()
        self.move(place.right() - self.width() - 16, place.top() + 16)
        self.show()

    # --- what the model does ---

    def _summarise_next(self) -> None:
        n_parts = len(self._summaries) + len(self._parts)
        self.status.setText(f"Part {len(self._summaries) + 1} of {n_parts}" if n_parts > 1 else "Summarising")
        self.model.new_chat(SYSTEM)
        self.model.ask(self._parts[0])

    def _take_summary(self, reason: str) -> None:
        if reason == "cancelled":
            self.status.setText("Stopped")
            return
        self._summaries.append(self.model.turns[-1].content)
        del self._parts[0]
        if not self._parts and len(self._summaries) > 1:  # of all parts: now one of these
            self._parts, self._summaries, self._is_last_round = ["\n\n".join(self._summaries)], [], True
            self.view.clear()
        elif self._parts:
            self.view.insertPlainText("\n\n")
        if self._parts:
            self._summarise_next()
        else:
            self.status.setText("Done, by way of its parts" if self._is_last_round else "Done")

    def _take_failure(self, problem: str, remedy: str) -> None:
        is_too_long = isinstance(self.model.last_error, ContextExceededError)
        if is_too_long and self._is_last_round:
            self.view.setPlainText(self._parts[0])
            self.status.setText("Done, part by part; the summaries together are too long to be summarised again")
        elif is_too_long and len(self._parts[0]) > FEWEST_CHARACTERS:
            self._parts[:1] = halves(self._parts[0])
            self._summarise_next()
        else:
            self.status.setText(f"{problem}. {remedy}.")

    def _show_state(self, state: str) -> None:
        self.summarise.setEnabled(state != "answering")
        self.stop.setEnabled(state in ("answering", "loading"))
        self.copy.setEnabled(state != "answering")


def halves(text: str) -> list[str]:
    """A text in two, cut at the end of a paragraph or of a word near its middle."""
    middle = len(text) // 2
    for end in ("\n\n", "\n", ". ", " "):
        if (cut := text.rfind(end, middle // 2, middle)) > 0:
            return [text[: cut + len(end)], text[cut + len(end) :]]
    return [text[:middle], text[middle:]]


def show_icon(window: SummaryWindow, application: QApplication) -> QSystemTrayIcon:
    """The icon in the menu bar, with its menu; closing the window then leaves the application running."""
    application.setQuitOnLastWindowClosed(False)
    menu = QMenu(window)
    menu.addActions([window.summarise, window.stop])
    menu.addSeparator()
    menu.addAction("Quit", application.quit)
    icon = QSystemTrayIcon(application.style().standardIcon(QStyle.StandardPixmap.SP_FileDialogDetailedView), window)
    icon.setContextMenu(menu)
    icon.show()
    return icon


def self_test(window: SummaryWindow) -> None:
    """Summarise a text as a user would; print the summary and end."""
    QGuiApplication.clipboard().setText(SELF_TEST_TEXT)
    window.model.finished.connect(lambda _reason: print(window.view.toPlainText()))
    for signal in (window.model.finished, window.model.failed):
        signal.connect(QApplication.quit)
    window.summarise.trigger()


def main() -> int:
    parser = argparse.ArgumentParser(description="Summarise the clipboard")
    parser.add_argument("model", nargs="?", help="the path of a GGUF or the name of a model; else the bundled one")
    parser.add_argument("--self-test", action="store_true", help="summarise a text, print it and end")
    arguments = parser.parse_args()
    application = QApplication(sys.argv[:1])
    window = SummaryWindow(arguments.model)
    if QSystemTrayIcon.isSystemTrayAvailable():
        show_icon(window, application)
    else:
        window.show_in_the_corner()
    if arguments.self_test:
        self_test(window)
    status = application.exec()
    return status if window.model.last_error is None else 1


if __name__ == "__main__":
    freeze_support()  # for an application that is frozen
    sys.exit(main())
