"""An answer on its way: an iterator that any thread can cancel."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from zephyr_local.chat_types import OnPrefill, Piece
from zephyr_local.engine import protocol
from zephyr_local.engine.client import Waiter
from zephyr_local.errors import EngineError
from zephyr_local.model_handle import ModelHandle, piece_of


class PieceStream(Iterator[Piece]):
    """The pieces of one answer; the last one has ``finish``. Nothing is asked before the first is wanted.

    One thread reads it; any thread may ``cancel`` or ``close`` it.
    """

    def __init__(
        self,
        model: ModelHandle,
        make: Callable[[int], protocol.Request],
        on_prefill: OnPrefill | None = None,
    ) -> None:
        """Use ``Zephyr.stream``."""
        self._model = model  # which would be closed if only its answer were kept
        self._client, self._make, self._on_prefill = model._client, make, on_prefill
        self._lock = threading.RLock()  # a signal handler may cancel while its thread asks
        self._waiter: Waiter | None = None
        self._cancelled = self._closed = False

    def __next__(self) -> Piece:
        try:
            waiter = self._asked()
            while not self._closed:
                event = waiter.get()
                if isinstance(event, protocol.PrefillProgress):
                    if self._on_prefill is not None:
                        self._on_prefill(event.done, event.total)
                elif (piece := piece_of(event)) is not None:
                    if piece.finish is not None:
                        self.close()
                    return piece
        except EngineError:
            if not self._closed:
                self.close()
                raise
        except BaseException:
            self.close()
            raise
        raise StopIteration

    def cancel(self) -> None:
        """End the answer soon: its last piece then has the finish reason ``cancelled``. From any thread."""
        with self._lock:
            self._cancelled = True
            waiter = self._waiter
        if waiter is not None:
            self._client.cancel(waiter)

    def close(self) -> None:
        """Cancel the answer and take no more of it, also where another thread waits for a piece. From any thread."""
        with self._lock:
            self._closed = True
            waiter = self._waiter
        if waiter is not None:
            self._client.leave(waiter)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and self._waiter is not None:
            self._client.abandon(self._waiter)

    def _asked(self) -> Waiter:
        if self._closed:
            raise StopIteration
        if self._waiter is None:
            waiter = self._client.submit(self._make)
            with self._lock:
                self._waiter = waiter
                cancelled, closed = self._cancelled, self._closed
            if closed:
                self._client.leave(waiter)
            elif cancelled:
                self._client.cancel(waiter)
        return self._waiter
