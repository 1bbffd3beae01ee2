"""The shards of a checkpoint repository: each comes when it is its turn, and goes when it was read.

While one is being read the next one is downloaded, so at most two lie on the disk, or one where there is no room for
two. It is a ``zephyr_local.convert.shard_supply.ShardSupply``, and knows nothing of what is done with the bytes.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for_futures
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from zephyr_local.errors import HubError, OutputError
from zephyr_local.model_store.download import Downloaded, DownloadProgress, download
from zephyr_local.model_store.hub import HubFile, HubSnapshot
from zephyr_local.model_store.hub_problems import Patience
from zephyr_local.model_store.pull import PullProgress
from zephyr_local.model_store.ranges import read_begin

_BEGIN_BYTES: Final = 64 << 10
"""Asked for at once: a usual header with its length, which stands before it."""
_MOST_BEGINS_BYTES: Final = 256 << 20
_PATIENCE: Final = Patience()


class _StoppedError(Exception):
    """Ends a download that nobody waits for any more."""


class HubShards:
    """The shards among a repository's files; a context manager, within which one thread downloads.

    ``prepare`` and ``begin`` raise what ``download`` does; ``on_progress`` is called by that thread.
    """

    def __init__(
        self,
        snapshot: HubSnapshot,
        files: Sequence[HubFile],
        folder: Path,
        partial_folder: Path,
        on_progress: Callable[[PullProgress], object] | None = None,
        patience: Patience = _PATIENCE,
    ) -> None:
        """``files`` lie in the repository's own folder, and come into ``folder``, which has to be there."""
        self.is_ahead = True
        """Whether the next shard may come while one is being read."""
        self.on_progress = on_progress
        self.fetched_bytes = 0
        """Over the network, of whole shards."""
        self.resumed_bytes = 0
        """That lay here from before, of whole shards."""
        self.consumed_names: list[str] = []
        """Those that were read, and are gone."""
        self._snapshot, self._folder, self._partial_folder = snapshot, folder, partial_folder
        self._files = {file.path: file for file in files}
        self._begins: dict[str, bytes] = {}
        self._order: tuple[str, ...] = ()
        self._coming: dict[str, Future[Downloaded]] = {}
        self._here: dict[str, Downloaded] = {}
        self._stop = threading.Event()
        self._patience = replace(patience, wait=self._wait)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="shards")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End a download that is going on, at its next piece or its connection's end; what has come of it is kept."""
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._files)

    def size_bytes(self, name: str) -> int:
        return self._files[name].size_bytes

    def begin(self, name: str, n_bytes: int) -> bytes:
        """The first bytes; :meth:`prepare` compares them with what then comes as a whole."""
        known = self._begins.get(name, b"")
        if len(known) < min(n_bytes, self.size_bytes(name)):
            known = read_begin(self._snapshot, self._files[name], max(n_bytes, _BEGIN_BYTES), patience=self._patience)
            self._begins[name] = known
            if sum(map(len, self._begins.values())) > _MOST_BEGINS_BYTES:
                raise HubError(
                    f"the headers of {self._snapshot.repository} have more than {_MOST_BEGINS_BYTES >> 20} MiB",
                    "No checkpoint has so many tensors: tell its makers",
                )
        return known[:n_bytes]

    def order(self, names: Sequence[str]) -> tuple[str, ...]:
        """What is here from before comes first, so that it does not lie beside what comes."""
        self._order = tuple(sorted(names, key=lambda name: -self._there_bytes(name) / max(1, self.size_bytes(name))))
        return self._order

    def needed_bytes(self, names: Sequence[str], *, ahead: bool) -> int:
        """What the disk must have free beside what lies there now, to read these in their order."""
        sizes = [self.size_bytes(name) for name in self.order(names)]
        there = [self._there_bytes(name) for name in self._order]
        at_once = 2 if ahead else 1
        most = max(sum(sizes[i : i + at_once]) + sum(there[i + at_once :]) for i in range(len(sizes)))
        return most - sum(there)

    def missing_bytes(self, names: Sequence[str]) -> int:
        """What is to be fetched of these."""
        return sum(self.size_bytes(name) - self._there_bytes(name) for name in names)

    def prepare(self, name: str) -> None:
        """Have the whole shard, checked, and let the next one come meanwhile."""
        coming = self._coming.pop(name) if name in self._coming else self._submit(name)
        self._here[name] = _result(coming)
        self._require_same_begin(name)
        following = self._order[self._order.index(name) + 1 :]
        if self.is_ahead and following:
            self._coming[following[0]] = self._submit(following[0])

    def consumed(self, name: str, sha256: str) -> None:
        """Remove a shard that was read, and see that it was read as it came."""
        if self._here.pop(name).sha256 != sha256:
            raise OutputError(
                f"{self._folder / name} was read otherwise than it was written a moment ago",
                "The disk or the memory is failing: use another disk; no output was written",
            )
        self.consumed_names.append(name)
        with contextlib.suppress(OSError):  # it goes with its folder
            (self._folder / name).unlink()

    def _there_bytes(self, name: str) -> int:
        """What lies here of a shard, whole or in part, as far as sizes tell."""
        file = self._files[name]
        for path in (self._folder / name, self._partial_folder / file.digest):
            with contextlib.suppress(OSError):
                return min(path.stat().st_size, file.size_bytes)
        return 0

    def _require_same_begin(self, name: str) -> None:
        """What was decided by the header has to hold for the shard; its digest is checked, and the header's was not."""
        known = self._begins.get(name, b"")
        try:
            with (self._folder / name).open("rb") as stream:
                begin = stream.read(len(known))
        except OSError as error:
            raise OutputError(
                f"{self._folder / name} cannot be read: {error.strerror}", "Check its permissions and the disk"
            ) from None
        if begin != known:
            raise HubError(
                f"the header of {name} of {self._snapshot.repository} first came otherwise than in the whole file",
                "Try again, over another network if there is one: something on the way changes it",
            )

    def _submit(self, name: str) -> Future[Downloaded]:
        return self._pool.submit(self._download, name)

    def _download(self, name: str) -> Downloaded:
        before = sum(self.size_bytes(one) for one in self._order[: self._order.index(name)])
        total = sum(map(self.size_bytes, self._order))

        def tell(progress: DownloadProgress) -> None:
            if self._stop.is_set():
                raise _StoppedError
            if self.on_progress is not None:
                done, rate = before + progress.done_bytes, progress.rate_bytes_s
                left_s = (total - done) / rate if rate else None
                self.on_progress(PullProgress(name, done, total, rate, left_s, progress.trouble))

        done = download(
            self._snapshot,
            self._files[name],
            self._folder / name,
            partial_folder=self._partial_folder,
            on_progress=tell,
            patience=self._patience,
        )
        self.fetched_bytes += done.fetched_bytes
        self.resumed_bytes += done.resumed_bytes if done.fetched_bytes else done.size_bytes
        return done

    def _wait(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise _StoppedError


def _result(future: Future[Downloaded]) -> Downloaded:
    while not future.done():  # its own waiting could not be interrupted by Ctrl+C on Windows
        wait_for_futures([future], timeout=0.5)
    return future.result()
