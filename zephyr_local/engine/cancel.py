"""How an answer is cancelled: one byte that Python writes and native code reads."""

from __future__ import annotations

import ctypes


class Cancelled(Exception):  # noqa: N818 — it is not an error: the caller asked for it
    """A decode ended because its :class:`CancelFlag` was set; never leaves the engine."""


class CancelFlag:
    """Asks one answer to stop; may be set from any thread, and stays set.

    ``address`` is that of a C string which is empty until the flag is set and one byte long afterwards, so that a
    native ``strlen`` gives 0 or 1; see ``engine/llama.py`` for what that is good for.
    """

    __slots__ = ("_bytes",)

    def __init__(self) -> None:
        self._bytes = ctypes.create_string_buffer(2)

    def set(self) -> None:
        self._bytes[0] = b"\x01"

    def is_set(self) -> bool:
        return self._bytes[0] != b"\0"

    @property
    def address(self) -> int:
        return ctypes.addressof(self._bytes)
