"""Who has a chat open: locks of the system, which end with their process however it ends."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Final

_IN_THIS_PROCESS: Final[set[tuple[str, int]]] = set()  # the system's locks are a process's, and bar only others
_guard: Final = threading.Lock()


class ChatLocks:
    """One byte of a file for each chat; the file stays empty."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._name = str(path)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        self._held: set[int] = set()

    def acquire(self, chat: int) -> bool:
        """Whether the chat is ours now: no other process has it, and nobody else in this one."""
        with _guard:
            if (self._name, chat) in _IN_THIS_PROCESS or not self._lock(chat):
                return False
            _IN_THIS_PROCESS.add((self._name, chat))
            self._held.add(chat)
            return True

    def release(self, chat: int) -> None:
        with _guard:
            if chat in self._held:
                self._held.discard(chat)
                _IN_THIS_PROCESS.discard((self._name, chat))
                self._unlock(chat)

    def is_held(self, chat: int) -> bool:
        """Whether anyone has the chat open, we included."""
        if self.acquire(chat):
            self.release(chat)
            return False
        return True

    def close(self) -> None:
        for chat in list(self._held):
            self.release(chat)
        # Closing any descriptor of the file would let go of all locks that this process has on it by another one.
        if not any(name == self._name for name, _ in _IN_THIS_PROCESS):
            os.close(self._file)

    if sys.platform == "win32":

        def _lock(self, chat: int) -> bool:
            import msvcrt

            os.lseek(self._file, chat, os.SEEK_SET)
            try:
                msvcrt.locking(self._file, msvcrt.LK_NBLCK, 1)
            except OSError:
                return False
            return True

        def _unlock(self, chat: int) -> None:
            import msvcrt

            os.lseek(self._file, chat, os.SEEK_SET)
            msvcrt.locking(self._file, msvcrt.LK_UNLCK, 1)

    else:

        def _lock(self, chat: int) -> bool:
            import fcntl

            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, chat)
            except OSError:
                return False
            return True

        def _unlock(self, chat: int) -> None:
            import fcntl

            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, chat)
