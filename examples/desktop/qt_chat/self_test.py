"""What ``--self-test`` does: a question is typed, sent and answered in the real window, and the window is closed."""

from __future__ import annotations

import sys
from typing import Final

from PySide6.QtCore import QObject, QTimer
from window import ChatWindow

_LIMIT_MS: Final = 120_000


class SelfTest(QObject):
    """``exit_code`` is 0 once the answer was printed."""

    def __init__(self, window: ChatWindow, question: str, screenshot: str | None) -> None:
        super().__init__(window)
        self._window = window
        self._question = question
        self._screenshot = screenshot
        self._is_over = False
        self.exit_code = 1
        model = window.model
        model.loaded.connect(self._ask)
        model.finished.connect(self._finished)
        model.failed.connect(lambda problem, remedy: self._end(f"{problem}. {remedy}."))
        model.crashed.connect(self._end)
        QTimer.singleShot(_LIMIT_MS, lambda: self._end(f"there was no answer within {_LIMIT_MS // 1000} seconds"))

    def _ask(self) -> None:
        self._window.input.insertPlainText(self._question)
        self._window.send_button.click()

    def _finished(self, reason: str) -> None:
        if reason == "cancelled":
            self._end("the answer was stopped")
        else:
            QTimer.singleShot(300, self._show_answer)  # what the window shows is painted by then

    def _show_answer(self) -> None:
        if self._screenshot is not None and not self._window.grab().save(self._screenshot):
            self._end(f"the screenshot could not be saved as {self._screenshot}")
            return
        print(self._window.chat.turns[-1].text, flush=True)
        self._end(None)

    def _end(self, problem: str | None) -> None:
        if self._is_over:
            return
        self._is_over = True
        if problem is None:
            self.exit_code = 0
        else:
            print(problem, file=sys.stderr, flush=True)
        self._window.close()
