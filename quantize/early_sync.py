"""The disk begins with what is written while more is being encoded.

The system by itself keeps written pages for half a minute, or until they are a tenth of the memory: an output could
then wait as a whole until the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from zephyr_local.quantize.gguf_output import OutputFile
from zephyr_local.quantize.mapped_file import wait
from zephyr_local.quantize.timings import Clock

_STEP_BYTES = 64 << 20


class EarlySync:
    """Syncs files step by step on a thread of its own."""

    def __init__(self, files: Sequence[OutputFile]) -> None:
        self.syncing, self.waited = Clock(), Clock()
        self._files = files
        self._unsynced_bytes = [0] * len(files)
        self._latest: list[Future[None] | None] = [None] * len(files)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="sync")

    def written(self, file: int, size_bytes: int) -> None:
        """So many bytes more were handed to the system; waits for a disk that has fallen behind by two steps.

        Raises OutputError where a sync before failed.
        """
        self._unsynced_bytes[file] += size_bytes
        latest = self._latest[file]
        if self._unsynced_bytes[file] < _STEP_BYTES:
            return
        if latest is not None:
            if not latest.done() and self._unsynced_bytes[file] < 2 * _STEP_BYTES:
                return
            with self.waited.running():
                wait(latest)
        self._begin(file)

    def finish(self) -> None:
        """Waits until all that was written is on the disk; raises OutputError where a sync failed."""
        for file, latest in enumerate(self._latest):
            if latest is not None:
                wait(latest)
            wait(self._begin(file))

    def close(self) -> None:
        """Stops the thread."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _begin(self, file: int) -> Future[None]:
        self._unsynced_bytes[file] = 0
        future = self._pool.submit(self._sync, file)
        self._latest[file] = future
        return future

    def _sync(self, file: int) -> None:
        with self.syncing.running():
            self._files[file].sync_data()
