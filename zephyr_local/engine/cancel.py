"""How an answer is cancelled: one byte that Python writes and native code reads."""

from __future__ import annotations

import ctypes
import sys


class Cancelled(Exception):  # noqa: N818 — it is not an error: the caller asked for it
    """A decode ended because its :class:`CancelFlag` was set; never leaves the engine."""


class CancelFlag:
    """Asks a decode to stop; may be set from any thread, and stays set until it is cleared.

    ``address`` is that of a C string which is empty until the flag is set and one byte long afterwards, so that a
    native ``strlen`` gives 0 or 1; :func:`native_check_address` says what that is good for.
    """

    __slots__ = ("_bytes",)

    def __init__(self) -> None:
        self._bytes = ctypes.create_string_buffer(2)

    def set(self) -> None:
        self._bytes[0] = b"\x01"

    def clear(self) -> None:
        self._bytes[0] = b"\0"

    def is_set(self) -> bool:
        return self._bytes[0] != b"\0"

    @property
    def address(self) -> int:
        return ctypes.addressof(self._bytes)


def native_check_address() -> int | None:
    """The address of a native ``bool (*)(void *)`` that, given a flag's address, tells whether it is set.

    ggml asks before every graph node, thousands of times a second, so a Python function would take the GIL each time.
    libc's ``size_t strlen(const char *)`` does it natively: given the flag's address, it returns 0 or 1. Reading a
    size_t as a bool is sound here because both are integers returned in the same register on every ABI that we run on
    (SysV and Windows x86-64, AAPCS64), and 0 and 1 look the same in its lowest byte as in all of it. None where there
    is no libc to be had.
    """
    try:
        libc = ctypes.cdll.msvcrt if sys.platform == "win32" else ctypes.CDLL(None)
        return ctypes.cast(libc.strlen, ctypes.c_void_p).value
    except (AttributeError, OSError):
        return None
