"""A bar above the chat that says what went wrong, and has the button that helps."""

from __future__ import annotations

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QFrame, QHBoxLayout, QLabel, QPushButton, QToolButton, QWidget


class Banner(QFrame):
    """Hidden, but for when something is wrong."""

    restart = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("banner")
        self._text = QLabel()
        self._text.setWordWrap(True)
        self._text.setTextFormat(Qt.TextFormat.PlainText)  # it may name a file, whose name may look like HTML
        self._text.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.restart_button = QPushButton("Restart")
        self.restart_button.setAccessibleName("Start the engine again")
        self.restart_button.clicked.connect(self.restart)
        dismiss = QToolButton()
        dismiss.setText("✕")
        dismiss.setObjectName("turnButton")
        dismiss.setAccessibleName("Dismiss")
        dismiss.clicked.connect(self.hide)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(14, 8, 8, 8)
        layout.addWidget(self._text, 1)
        layout.addWidget(self.restart_button)
        layout.addWidget(dismiss)
        self.hide()

    @property
    def text(self) -> str:
        """What it says."""
        return self._text.text()

    def hide_if_restarted(self) -> None:
        """Hide it where a model that is loaded now was what helps."""
        if not self.restart_button.isHidden():
            self.hide()

    def say(self, text: str, *, can_restart: bool) -> None:
        """Show it."""
        self._text.setText(text)
        self.restart_button.setVisible(can_restart)
        self.show()
