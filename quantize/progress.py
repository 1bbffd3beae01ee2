"""How far a conversion is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

Stage = Literal["check", "compile", "convert", "verify"]
"""In this order; "compile" only where the encoders are not compiled yet, which happens once on a machine."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a conversion is; the callback runs on the thread that called."""

    stage: Stage
    tensor: str
    """The tensor that a block was just finished of, by its name in the source; empty at the start of a stage."""
    done_bytes: int
    """Of the source's tensors in the stage "convert", of the outputs' in "verify"."""
    total_bytes: int
    tensor_index: int
    """Tensors begun in this stage, counting the current one."""
    n_tensors: int
    elapsed_s: float
    """Since the stage began."""

    @property
    def bytes_per_s(self) -> float:
        """Rate of this stage so far; 0 where nothing can be said yet."""
        return self.done_bytes / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def remaining_s(self) -> float | None:
        """Time left in this stage at its rate so far; None where nothing can be said yet."""
        return (self.total_bytes - self.done_bytes) / self.bytes_per_s if self.bytes_per_s > 0 else None


OnProgress = Callable[[Progress], None]


class Reporter:
    """Counts what is done and tells the callback, if there is one."""

    def __init__(self, on_progress: OnProgress | None) -> None:
        self._tell = on_progress
        self._started = self._began = time.monotonic()
        self._now = Progress("check", "", 0, 0, 0, 0, 0.0)

    @property
    def elapsed_s(self) -> float:
        """Since the first stage began."""
        return time.monotonic() - self._started

    def begin(self, stage: Stage, total_bytes: int = 0, n_tensors: int = 0) -> None:
        """A new stage, of so many bytes and tensors."""
        self._began = time.monotonic()
        self._update(Progress(stage, "", 0, total_bytes, 0, n_tensors, 0.0))

    def advance(self, tensor: str, size_bytes: int) -> None:
        """So many bytes more of that tensor are done."""
        now = self._now
        begun = now.tensor_index + (tensor != now.tensor)
        elapsed = time.monotonic() - self._began
        done = now.done_bytes + size_bytes
        self._update(replace(now, tensor=tensor, done_bytes=done, tensor_index=begun, elapsed_s=elapsed))

    def _update(self, progress: Progress) -> None:
        self._now = progress
        if self._tell is not None:
            self._tell(progress)
