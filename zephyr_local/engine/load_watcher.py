"""Stands between llama.cpp's progress callback and Python."""

from __future__ import annotations

from collections.abc import Callable

from zephyr_local.engine.cancel import Cancelled

Progress = Callable[[float], object]
"""Takes the share that is done, from 0 to 1."""


class LoadWatcher:
    """Reports and cancels a load. No exception may cross C, so one is kept in ``error`` and ends the load."""

    def __init__(self, progress: Progress | None, cancelled: Callable[[], bool] | None) -> None:
        self._progress, self._cancelled = progress, cancelled
        self.error: BaseException | None = None

    def called(self, fraction: float, _data: object) -> bool:
        """Whether to go on loading, of which ``fraction`` is done."""
        try:
            if self._progress is not None:
                self._progress(min(max(fraction, 0.0), 1.0))
            if self._cancelled is not None and self._cancelled():
                self.error = Cancelled()
        except BaseException as error:  # Ctrl+C too
            self.error = error
        return self.error is None
