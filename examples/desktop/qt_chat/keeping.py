"""Keeps the chat over the application's end, and ends the model without losing what it was saying."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from PySide6.QtCore import QObject, QTimer

from zephyr_local import Message
from zephyr_local.desktop.qt import ZephyrModel

_PATIENCE_MS: Final = 5000  # that a disk may take to save the chat before the model is closed all the same


class ChatKeeper(QObject):
    """Writes ``last-chat.json`` after every answer; the chat before it lies in ``previous-chat.json``."""

    def __init__(self, model: ZephyrModel, folder: Path) -> None:
        super().__init__(model)
        self._model = model
        self.folder = folder
        self.last_chat = folder / "last-chat.json"
        self._is_ours = False  # whether the file is an older state of the chat that is on
        self._awaits_resume = False
        self._is_saving = False
        self._is_closing = False
        self._saved: tuple[Message, ...] = ()
        self._next: Callable[[], None] | None = None  # what waits until the chat is saved
        model.chat_changed.connect(self._chat_changed)
        model.finished.connect(self._ended)
        model.failed.connect(self._ended)
        model.saved.connect(self._save_ended)

    def resume(self) -> None:
        """Go on with the last chat, where there is one."""
        if self.last_chat.exists():
            self._awaits_resume = True
            self._model.resume(self.last_chat)

    def new_chat(self) -> None:
        """Begin another chat."""
        self._when_saved(self._new_chat)

    def open_chat(self, path: Path) -> None:
        """Go on with the chat in a file."""
        self._when_saved(lambda: self._open_chat(path))

    def close(self) -> None:
        """End what runs, save the chat and close the model, whose ``closed`` comes then."""
        if self._is_closing:
            return
        self._is_closing = True
        self._model.stop()
        QTimer.singleShot(_PATIENCE_MS, self._model.close)
        self._go_on()

    def _new_chat(self) -> None:
        self._put_aside()
        self._saved = ()
        self._model.new_chat()

    def _open_chat(self, path: Path) -> None:
        self._is_ours = False  # the file is put aside as soon as the other chat is to be saved
        self._model.resume(path)

    def _put_aside(self) -> None:
        with contextlib.suppress(OSError):  # there was none
            self.last_chat.replace(self.last_chat.with_name("previous-chat.json"))

    def _save(self) -> None:
        turns = self._model.turns
        if not turns or turns == self._saved:
            return
        with contextlib.suppress(OSError):  # which the save will say better
            self.folder.mkdir(parents=True, exist_ok=True)
        if not self._is_ours:
            self._put_aside()
        self._is_ours, self._is_saving, self._saved = True, True, turns
        self._model.save(self.last_chat)

    def _when_saved(self, step: Callable[[], None]) -> None:
        if self._is_saving:
            self._next = step
        else:
            step()

    def _chat_changed(self) -> None:
        if self._awaits_resume:
            self._awaits_resume = False
            self._is_ours, self._saved = True, self._model.turns

    def _ended(self) -> None:
        """An answer is over, or something failed, which may have been the save."""
        self._is_saving = self._awaits_resume = False
        self._save()
        self._go_on()

    def _save_ended(self, path: str) -> None:
        if path == str(self.last_chat.absolute()):
            self._is_saving = False
            self._go_on()

    def _go_on(self) -> None:
        if self._is_saving:
            return
        step, self._next = self._next, None
        if self._is_closing and self._model.state != "answering":
            self._model.close()
        elif step is not None:
            step()
