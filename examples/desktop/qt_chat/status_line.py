"""The line below the chat: what goes on, how far it is, and what the last answer cost."""

from __future__ import annotations

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QHBoxLayout, QLabel, QProgressBar, QToolButton, QWidget

from zephyr_local import Finish


class StatusLine(QWidget):
    """Always as high as with a progress bar, so that the chat does not move when one comes."""

    stop = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._text = QLabel()
        self._text.setObjectName("status")
        self._bar = QProgressBar()
        self._bar.setRange(0, 1000)
        self._bar.setTextVisible(False)
        self._bar.setFixedWidth(180)
        self._bar.setAccessibleName("Progress")
        self.stop_button = QToolButton()
        self.stop_button.setObjectName("turnButton")
        self.stop_button.setText("Stop loading")
        self.stop_button.setAccessibleName("Stop loading the model")
        self.stop_button.clicked.connect(self.stop)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(4, 0, 4, 0)
        layout.addWidget(self._text, 1)
        layout.addWidget(self.stop_button)
        layout.addWidget(self._bar)
        self.setFixedHeight(26)
        self.say("")

    @property
    def text(self) -> str:
        """What it says."""
        return self._text.text()

    @property
    def is_in_progress(self) -> bool:
        """Whether a progress bar is shown."""
        return not self._bar.isHidden()

    def say(self, text: str) -> None:
        """Show a text, and no bar."""
        self._text.setText(text)
        self._bar.hide()
        self.stop_button.hide()

    def progress(self, text: str, share: float, *, can_stop: bool = False) -> None:
        """Show a text and how much is done, 0 to 1."""
        self._text.setText(text)
        self._bar.setValue(round(1000 * share))
        self._bar.show()
        self.stop_button.setVisible(can_stop)


def said_of_end(reason: str, finish: Finish | None) -> str:
    """What is said when an answer is over."""
    if reason == "cancelled":
        return "Stopped"
    parts = ["The answer reached its greatest length"] if reason == "length" else []
    if finish is not None:
        parts.append(f"{finish.completion_tokens:,} tokens")
        if finish.completion_s > 0 and finish.completion_tokens > 1:
            parts.append(f"{(finish.completion_tokens - 1) / finish.completion_s:,.0f} tokens a second")
    return ", ".join(parts)
