"""A turn of the chat: a bubble, to the right where it is the user's, and below an answer what can be done with it."""

from __future__ import annotations

from typing import Final

from chat_text import ChatText
from look import Look
from PySide6.QtCore import QRectF, Qt, Signal
from PySide6.QtGui import QGuiApplication, QPainter, QPaintEvent
from PySide6.QtWidgets import QHBoxLayout, QToolButton, QWidget

_PADDING: Final = 14
_TOP_PADDING: Final = 10
_BUTTONS_HEIGHT: Final = 28
_RADIUS: Final = 12.0
_MOST_WIDTH: Final = 780  # longer lines are hard to read
_SHORT: Final = 200  # characters of an answer, up to which its bubble is as wide as its text


class TurnView(QWidget):
    """Its height is what :meth:`fit` says for a width; nothing is laid out anew without it."""

    regenerate = Signal()
    continue_answer = Signal()

    def __init__(self, role: str, look: Look, parent: QWidget) -> None:
        super().__init__(parent)
        self.role = role
        self.text = ""
        self.is_shown = False  # false: show_turn is wanted
        self.fitted_width = 0  # another than the column's: fit is wanted
        self._look = look
        self._state = "whole"
        self._bubble = QRectF()
        self._view = ChatText(look, self)
        self._view.setAccessibleName("Question" if role == "user" else "Answer")
        self._buttons = QWidget(self)
        self._copy = self._button("Copy", "Copy this answer")
        self._regenerate = self._button("Regenerate", "Answer the last question again")
        self._continue = self._button("Continue", "Go on with this answer, which was cut short")
        layout = QHBoxLayout(self._buttons)
        layout.setContentsMargins(_PADDING - 8, 2, 0, 2)
        layout.setSpacing(2)
        for button in (self._copy, self._regenerate, self._continue):
            layout.addWidget(button)
        layout.addStretch()
        self._copy.clicked.connect(lambda: QGuiApplication.clipboard().setText(self.text))
        self._regenerate.clicked.connect(self.regenerate)
        self._continue.clicked.connect(self.continue_answer)
        self.set_last(is_last=False, is_ready=False)

    def show_turn(self, text: str, state: str) -> None:
        """Show a text, which is whole, being written or cut short; :meth:`fit` has to follow."""
        self.text, self._state = text, state
        self.is_shown, self.fitted_width = True, 0
        if self.role == "user":
            self._view.setPlainText(text)
        else:
            self._view.show_markdown(text or ("…" if state == "writing" else ""), is_whole=state != "writing")

    def set_last(self, *, is_last: bool, is_ready: bool) -> None:
        """Tell whether it is the chat's last turn, and whether the model can be asked."""
        is_answer = self.role == "assistant"
        self._copy.setVisible(is_answer and self._state != "writing")
        self._regenerate.setVisible(is_answer and is_last and is_ready)
        self._continue.setVisible(is_answer and is_last and is_ready and self._state == "cut")

    def set_look(self, look: Look) -> None:
        """Take other colours; :meth:`show_turn` has to follow."""
        self._look = look
        self._view.set_look(look)
        self.is_shown = False

    def fit(self, width: int) -> int:
        """Lay the turn out for a width; its height."""
        is_user = self.role == "user"
        most = min(width, _MOST_WIDTH) - 2 * _PADDING
        shrinks = is_user or len(self.text) < _SHORT
        text_width, text_height = self._view.fit(round(most * 0.8) if is_user else most, shrinks=shrinks)
        left = width - text_width - 2 * _PADDING if is_user else 0
        bubble_height = text_height + 2 * _TOP_PADDING
        self._bubble = QRectF(left, 0, text_width + 2 * _PADDING, bubble_height)
        self._view.setGeometry(left + _PADDING, _TOP_PADDING, text_width, text_height)
        self._buttons.setGeometry(0, bubble_height, width, _BUTTONS_HEIGHT)
        self._buttons.setVisible(not is_user)
        self.fitted_width = width
        self.update()
        return bubble_height + (6 if is_user else _BUTTONS_HEIGHT)

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        """Paint the bubble."""
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(self._look.question if self.role == "user" else self._look.answer)
        painter.drawRoundedRect(self._bubble, _RADIUS, _RADIUS)
        painter.end()

    def _button(self, text: str, tip: str) -> QToolButton:
        button = QToolButton(self._buttons)
        button.setObjectName("turnButton")
        button.setText(text)
        button.setToolTip(tip)
        button.setAccessibleName(tip)
        return button
