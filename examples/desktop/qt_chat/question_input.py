"""Where the question is typed: Enter sends it, Shift+Enter begins a line, and it grows with its lines."""

from __future__ import annotations

from typing import Final

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QKeyEvent
from PySide6.QtWidgets import QPlainTextEdit, QSizePolicy, QWidget

_MOST_LINES: Final = 8
_ENTER: Final = (Qt.Key.Key_Return, Qt.Key.Key_Enter)


class QuestionInput(QPlainTextEdit):
    """``sent`` is emitted at Enter, whatever has been typed."""

    sent = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("input")
        self.setAccessibleName("Your question")
        self.setPlaceholderText("Ask something. Enter sends, Shift+Enter begins a new line.")
        self.setTabChangesFocus(True)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.textChanged.connect(self._grow)
        self._grow()

    def give_back(self, question: str) -> None:
        """Show a question again that nothing came of, before what has been typed since."""
        typed = self.toPlainText()
        self.setPlainText(f"{question}\n{typed}" if typed.strip() else question)
        self.moveCursor(self.textCursor().MoveOperation.End)

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        """Send at Enter."""
        if event.key() in _ENTER and not event.modifiers() & Qt.KeyboardModifier.ShiftModifier:
            self.sent.emit()
        else:
            super().keyPressEvent(event)

    def _grow(self) -> None:
        lines = min(_MOST_LINES, max(1, self.document().lineCount()))
        self.setFixedHeight(lines * self.fontMetrics().lineSpacing() + 26)
