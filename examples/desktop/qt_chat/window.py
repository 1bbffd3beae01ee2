"""The window: the chat, the input below it, and what the model says of itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from banner import Banner
from chat_view import ChatView
from chooser import ModelChooser
from keeping import ChatKeeper
from look import current_look, style_sheet
from PySide6.QtCore import QEvent, Qt
from PySide6.QtGui import QAction, QCloseEvent, QKeyEvent, QKeySequence
from PySide6.QtWidgets import QFileDialog, QHBoxLayout, QMainWindow, QPushButton, QToolButton, QVBoxLayout, QWidget
from question_input import QuestionInput
from status_line import StatusLine, said_of_end

from zephyr_local import EngineCrashed, EngineSettings, ZephyrError
from zephyr_local.desktop.qt import ChatModel, ZephyrModel

_CHAT_FILES = "Chats (*.json);;All files (*)"


class ChatWindow(QMainWindow):
    """A window on a model, which it ends when it is closed."""

    def __init__(self, model: ZephyrModel, keeper: ChatKeeper, settings: EngineSettings) -> None:
        super().__init__()
        self.model = model
        self._keeper = keeper
        self._settings = settings
        self._loading = ""  # what is being loaded
        self._note = ""  # said with the end of the answer
        self.banner = Banner()
        self.chat = ChatView(ChatModel(model, self))
        self.status = StatusLine()
        self.input = QuestionInput()
        self.send_button = _button("Send", "Send the question", "send")
        self.stop_button = _button("Stop", "Stop the answer", "stop")
        self.model_button = QToolButton()
        self.model_button.setObjectName("model")
        self._new = self._action("New chat", QKeySequence.StandardKey.New, keeper.new_chat)
        self._open = self._action("Open…", QKeySequence.StandardKey.Open, self.open_chat)
        self._save = self._action("Save…", QKeySequence.StandardKey.Save, self.save_chat)
        self._lay_out()
        self._connect()
        self.resize(900, 640)
        self._state_changed(model.state)
        self.input.setFocus()

    def load(self, path: str | None) -> None:
        """Load a model by its path or name; None: the bundled one."""
        self._loading = "zephyr-tiny" if path is None else Path(path).name
        self._tried(lambda: self.model.load(path, self._settings))

    def ask(self) -> None:
        """Send what has been typed."""
        question = self.input.toPlainText().strip()
        if question and self.send_button.isEnabled() and self.model.state != "answering":
            self.input.clear()
            if not self._tried(lambda: self.model.ask(question)):
                self.input.give_back(question)
            self.chat.follow()

    def choose_model(self) -> None:
        """Show what models there are."""
        dialog = ModelChooser(self._settings, self)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.chosen.connect(self.load)
        dialog.open()

    def save_chat(self) -> None:
        """Ask where to save the chat."""
        dialog = QFileDialog(self, "Save the chat", str(Path.home()), _CHAT_FILES)
        dialog.setAcceptMode(QFileDialog.AcceptMode.AcceptSave)
        dialog.setDefaultSuffix("json")
        self._show_files(dialog, lambda path: self.model.save(path))

    def open_chat(self) -> None:
        """Ask which chat to open; the one that is on was saved after its last answer."""
        dialog = QFileDialog(self, "Open a chat", str(Path.home()), _CHAT_FILES)
        dialog.setFileMode(QFileDialog.FileMode.ExistingFile)
        self._show_files(dialog, lambda path: self._keeper.open_chat(Path(path)))

    # --- what the model says ---

    def _state_changed(self, state: str) -> None:
        is_answering = state == "answering"
        self.stop_button.setVisible(is_answering)
        self.send_button.setVisible(not is_answering)
        self._allow_send()
        self._new.setDisabled(is_answering)
        self._open.setDisabled(is_answering)
        self.chat.set_ready(is_ready=state in ("ready", "crashed"))
        if state == "loading":
            self._load_progressed(0)
        elif is_answering:
            self.status.say("Waiting for the answer…")

    def _load_progressed(self, share: float) -> None:
        self.model_button.setText("Loading…")
        is_waited_for = self.model.state == "answering"  # whose own button stops the question
        self.status.progress(f"Loading {self._loading}, {share:.0%}", share, can_stop=not is_waited_for)

    def _loaded(self, name: str) -> None:
        self.banner.hide_if_restarted()
        self._show_name(name)
        self.status.say(" ".join(self.model.notices) or f"{name} is ready, with {self.model.n_ctx:,} tokens of context")

    def _load_stopped(self) -> None:
        self._show_name("")
        self.status.say("The load was stopped")

    def _prefill_progressed(self, done: int, total: int) -> None:
        self.status.progress(f"Reading {done:,} of {total:,} tokens", done / max(1, total))

    def _piece_came(self) -> None:
        if self.status.is_in_progress:
            self.status.say("Answering…")

    def _dropped(self, n_messages: int) -> None:
        self._note = f"; the model no longer sees the first {n_messages} messages"

    def _finished(self, reason: str) -> None:
        self.banner.hide()
        self.status.say(said_of_end(reason, self.model.last_finish) + self._note)
        self._note = ""

    def _failed(self, problem: str, remedy: str) -> None:
        if self.model.state not in ("loading", "answering"):  # else it was a file, and the model goes on
            self.status.say("")
        if isinstance(self.model.last_error, EngineCrashed):
            self._crashed(problem)
        else:
            self.banner.say(f"{problem}. {remedy}.", can_restart=self.model.state in ("crashed", "empty"))
        if self.model.state == "empty":
            self._show_name("")

    def _crashed(self, problem: str) -> None:
        self.status.say("")
        self.banner.say(f"The engine stopped: {problem}", can_restart=True)

    def _saved(self, path: str) -> None:
        if path != str(self._keeper.last_chat.absolute()):
            self.status.say(f"Saved as {path}")

    # --- its own parts ---

    def _tried(self, wish: Callable[[], object]) -> bool:
        """Whether the model took a wish; what it refuses at once is shown."""
        try:
            wish()
        except ZephyrError as error:
            self.banner.say(str(error), can_restart=False)
            return False
        return True

    def _show_name(self, name: str) -> None:
        self.model_button.setText(f"{name or 'Choose a model'}  ▾")
        self.setWindowTitle(f"{name} — zephyr-local" if name else "zephyr-local")

    def _allow_send(self) -> None:
        has_text = bool(self.input.toPlainText().strip())
        self.send_button.setEnabled(has_text and self.model.state not in ("empty", "closed"))

    def _show_files(self, dialog: QFileDialog, take: Callable[[str], object]) -> None:
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.fileSelected.connect(lambda path: self._tried(lambda: take(path)))
        dialog.open()

    def _action(self, text: str, key: QKeySequence.StandardKey, slot: Callable[[], object]) -> QAction:
        action = QAction(text, self)
        action.setIconText(text)  # which a button would show without its dots
        action.setShortcut(key)
        action.triggered.connect(lambda: self._tried(slot))
        return action

    def _lay_out(self) -> None:
        header = QWidget()
        header.setObjectName("header")
        top = QHBoxLayout(header)
        top.setContentsMargins(14, 8, 14, 8)
        top.addWidget(self.model_button)
        top.addStretch()
        for action in (self._new, self._open, self._save):
            button = QToolButton()
            button.setDefaultAction(action)
            button.setAccessibleName(action.text())
            top.addWidget(button)
        self.model_button.setAccessibleName("Choose a model")
        self._show_name("")
        buttons = QVBoxLayout()
        buttons.addStretch()
        buttons.addWidget(self.send_button)
        buttons.addWidget(self.stop_button)
        typing = QHBoxLayout()
        typing.setSpacing(8)
        typing.addWidget(self.input)
        typing.addLayout(buttons)
        inner = QVBoxLayout()
        inner.setContentsMargins(14, 6, 14, 12)
        inner.setSpacing(6)
        inner.addWidget(self.banner)
        inner.addWidget(self.chat, 1)
        inner.addWidget(self.status)
        inner.addLayout(typing)
        center = QWidget()
        outer = QVBoxLayout(center)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.setSpacing(0)
        outer.addWidget(header)
        outer.addLayout(inner, 1)
        self.setCentralWidget(center)
        self.setStyleSheet(style_sheet(current_look()))

    def _connect(self) -> None:
        model = self.model
        model.state_changed.connect(self._state_changed)
        model.load_progress.connect(self._load_progressed)
        model.loaded.connect(self._loaded)
        model.load_stopped.connect(self._load_stopped)
        model.prefill_progress.connect(self._prefill_progressed)
        model.piece.connect(self._piece_came)
        model.question_returned.connect(self.input.give_back)
        model.dropped.connect(self._dropped)
        model.finished.connect(self._finished)
        model.failed.connect(self._failed)
        model.crashed.connect(self._crashed)
        model.saved.connect(self._saved)
        self.chat.regenerate.connect(lambda: self._tried(model.regenerate))
        self.chat.continue_answer.connect(lambda: self._tried(model.continue_answer))
        self.banner.restart.connect(model.restart)
        self.status.stop.connect(model.stop)
        self.input.sent.connect(self.ask)
        self.input.textChanged.connect(self._allow_send)
        self.send_button.clicked.connect(self.ask)
        self.stop_button.clicked.connect(model.stop)
        self.model_button.clicked.connect(self.choose_model)

    # --- what Qt calls ---

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        """Stop at Escape; what has the focus leaves that key to the window."""
        if event.key() == Qt.Key.Key_Escape:
            self.model.stop()
        else:
            super().keyPressEvent(event)

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802
        """Close at once; the process ends as soon as the engine has."""
        event.accept()
        self._keeper.close()

    def event(self, event: QEvent) -> bool:
        """Take the colours of another palette."""
        is_taken = super().event(event)
        if event.type() == QEvent.Type.ApplicationPaletteChange:
            self.setStyleSheet(style_sheet(current_look()))
            self.chat.set_look(current_look())
        return is_taken


def _button(text: str, says: str, name: str) -> QPushButton:
    button = QPushButton(text)
    button.setObjectName(name)
    button.setAccessibleName(says)
    button.setMinimumWidth(84)
    button.setFocusPolicy(Qt.FocusPolicy.TabFocus)  # a click leaves the cursor in the input
    return button
