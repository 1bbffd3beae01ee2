"""Fetches one file of a hub, so that neither a kill, a cut connection nor a full disk costs what has come.

Bytes go to a partial file as they come and are hashed on the way. A next attempt, of this process or a later one, asks
for the range from where they end (RFC 9110, section 14). The file gets its name when its digest is the hub's.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zephyr_local.errors import HubError, OutputError
from zephyr_local.model_store.hub import HubFile, HubSnapshot, check_file_path
from zephyr_local.model_store.hub_client import FileFacts, HubClient
from zephyr_local.model_store.hub_problems import Asked, PassingError, Patience, shown_address
from zephyr_local.model_store.partials import READ_BYTES, PartialFile, amount, forget_partial, open_partial

if TYPE_CHECKING:
    import httpx2

_TOLD_EVERY_S: Final = 0.1
_RATE_OVER_S: Final = 5.0
_RATE_FROM_S: Final = 0.5
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_DIGEST: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_PATIENCE: Final = Patience()


@dataclass(frozen=True, slots=True)
class DownloadProgress:
    """How far one download is."""

    done_bytes: int
    """From the beginning of the file; while a partial file from before is read again, as far as that is."""
    total_bytes: int
    fetched_bytes: int
    """Over the network, by this call; more than the file has where some had to come twice."""
    rate_bytes_s: float | None
    """Over the last seconds; None at first."""
    left_s: float | None
    trouble: str | None = None
    """Why it waits before it tries again; None while it does not."""


@dataclass(frozen=True, slots=True)
class Downloaded:
    """A file that is whole and has its name."""

    path: Path
    sha256: str
    """Computed from its bytes, whatever the hub gives."""
    size_bytes: int
    fetched_bytes: int
    resumed_bytes: int
    """What lay in the partial file from before and was used."""


def download(
    snapshot: HubSnapshot,
    file: HubFile,
    target: Path,
    *,
    partial_folder: Path,
    on_progress: Callable[[DownloadProgress], object] | None = None,
    patience: Patience = _PATIENCE,
) -> Downloaded:
    """Fetch ``file`` to ``target``, which is whole or as it was before; its folders are made.

    Nothing is fetched where the target is already what the hub has, and nothing is asked where all of it has come.
    Interrupted or killed at any moment, the next call with the same ``partial_folder`` goes on, whatever repository or
    revision it names. Raises OutputError where the disk is full or refuses, or another process downloads the same
    file; HubError, ModelNotFoundError and OfflineError as the hub answers, or does not.
    """
    check_file_path(file.path, from_hub=True)
    meter = _Meter(file.size_bytes, on_progress)
    was_there = os.path.lexists(target)
    if found := _already_there(file, target, meter):
        forget_partial(partial_folder, file.digest)
        return found
    _require_place(target)
    with open_partial(partial_folder, snapshot, file) as partial:
        # Another process may have finished it just now.
        if not was_there and (found := _already_there(file, target, meter)):
            partial.discard()
            return found
        return _Transfer(snapshot, file, partial, meter, patience).run(target)


class _Digests:
    """Of the bytes so far: SHA-256, and git's SHA-1 where the hub gives that alone."""

    def __init__(self, file: HubFile) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        # Git hashes a header before the blob (gitformat-loose: "blob", a space, the size, NUL).
        self._git = hashlib.sha1(b"blob %d\0" % file.size_bytes, usedforsecurity=False)

    def update(self, data: bytes) -> None:
        self.sha256.update(data)
        if self._file.sha256 is None:
            self._git.update(data)

    def agree(self) -> bool:
        """Whether they are what the hub promised, all bytes being there."""
        found = self._git if self._file.sha256 is None else self.sha256
        return found.hexdigest() == self._file.digest


class _Meter:
    """Tells how far a download is, some times a second."""

    def __init__(self, total_bytes: int, on_progress: Callable[[DownloadProgress], object] | None) -> None:
        self.fetched_bytes = 0
        self._total_bytes = total_bytes
        self._on_progress = on_progress
        self._told_at = float("-inf")
        self._points: deque[tuple[float, int]] = deque()  # when, and how much had been fetched

    def tell(self, done_bytes: int, *, at_once: bool = False, trouble: str | None = None) -> None:
        now = time.monotonic()
        if self._on_progress is None or not (at_once or now - self._told_at >= _TOLD_EVERY_S):
            return
        self._told_at = now
        if self.fetched_bytes:
            self._points.append((now, self.fetched_bytes))
        while len(self._points) > 2 and now - self._points[0][0] > _RATE_OVER_S:
            self._points.popleft()
        rate = self._rate_bytes_s()
        left_s = (self._total_bytes - done_bytes) / rate if rate else None
        self._on_progress(DownloadProgress(done_bytes, self._total_bytes, self.fetched_bytes, rate, left_s, trouble))

    def _rate_bytes_s(self) -> float | None:
        if len(self._points) < 2:
            return None
        (began, first), (now, last) = self._points[0], self._points[-1]
        return (last - first) / (now - began) if now - began >= _RATE_FROM_S else None


class _Transfer:
    """One file on its way into its partial file."""

    def __init__(
        self, snapshot: HubSnapshot, file: HubFile, partial: PartialFile, meter: _Meter, patience: Patience
    ) -> None:
        self._snapshot, self._file, self._partial = snapshot, file, partial
        self._meter, self._patience = meter, patience
        self._digests = _Digests(file)
        self._resumed_bytes = 0
        self._client: HubClient | None = None

    def run(self, target: Path) -> Downloaded:
        self._take_up()
        for _ in range(2):  # one that is wrong may be a disk's or a proxy's fault; of it, nothing is kept
            self._partial.require_room(self._missing_bytes())
            self._fetch_rest()
            self._meter.tell(self._partial.size_bytes, at_once=True)
            if self._digests.agree():
                self._partial.finish(target)
                return Downloaded(
                    target,
                    self._digests.sha256.hexdigest(),
                    self._file.size_bytes,
                    self._meter.fetched_bytes,
                    self._resumed_bytes,
                )
            self._start_over()
        self._partial.discard()
        kind = "SHA-256" if self._file.sha256 else "git digest"
        raise HubError(
            f"{self._file.path} of {self._snapshot.repository} came twice with another {kind} than the hub promises; "
            "nothing of it is kept",
            "Try again later, over another network if there is one: something on the way changes it",
        )

    def _missing_bytes(self) -> int:
        return self._file.size_bytes - self._partial.size_bytes

    def _take_up(self) -> None:
        """Hash what is there from before."""
        if self._missing_bytes() < 0:
            self._partial.cut(0)
        done_bytes = 0
        for piece in self._partial.pieces():
            self._digests.update(piece)
            done_bytes += len(piece)
            self._meter.tell(done_bytes)
        self._resumed_bytes = done_bytes

    def _start_over(self) -> None:
        self._partial.cut(0)
        self._digests = _Digests(self._file)
        self._resumed_bytes = 0

    def _fetch_rest(self) -> None:
        """Attempt by attempt, as long as some of them win bytes."""
        failures, most_bytes = 0, self._partial.size_bytes
        while self._missing_bytes():
            try:
                self._fetch_some()
                continue
            except PassingError as error:
                trouble = error
            # Won is what was never there before: a server without ranges, cut each time, would never end else.
            if self._partial.size_bytes > most_bytes:
                failures, most_bytes = 0, self._partial.size_bytes
            failures += 1
            pause_s = self._patience.pause_s(failures, trouble)
            if pause_s is None:
                raise self._given_up(trouble)
            self._meter.tell(self._partial.size_bytes, at_once=True, trouble=trouble.problem)
            self._patience.wait(pause_s)

    def _given_up(self, trouble: PassingError) -> HubError:
        there_bytes = self._partial.size_bytes
        if not there_bytes:
            return HubError(f"{self._file.path} cannot be fetched: {trouble.problem}", trouble.remedy)
        return HubError(
            f"{self._file.path} cannot be fetched whole: {trouble.problem}; {amount(there_bytes)} of "
            f"{amount(self._file.size_bytes)} are here",
            f"{trouble.remedy}; the same command goes on from there",
        )

    def _fetch_some(self) -> None:
        """One attempt. Raises PassingError where it ends before the file does."""
        if self._client is None:
            self._client = HubClient(f"fetching {self._file.path} of {self._snapshot.repository}")
        asked = Asked(self._client.endpoint, self._snapshot.repository, self._snapshot.commit, self._file.path)
        facts = self._client.facts(asked)
        self._require_same(facts, asked)
        begin = self._partial.size_bytes
        headers = {"Range": f"bytes={begin}-"} if begin else {}
        with self._client.get(facts.address, headers, asked) as response:
            self._require_right(response, asked)
            self._take(response)
        if self._missing_bytes():
            raise PassingError(f"{shown_address(facts.address)} sent less than the file")

    def _require_same(self, facts: FileFacts, asked: Asked) -> None:
        """What a mirror leaves out is not missed: the digest is compared at the end."""
        etag = facts.etag if facts.etag is not None and _DIGEST.fullmatch(facts.etag) else None
        for what, found, promised in (
            ("commit", facts.commit, self._snapshot.commit),
            ("size", facts.size_bytes, self._file.size_bytes),
            ("digest", etag, self._file.digest),
        ):
            if found not in (None, "", promised):
                raise HubError(
                    f"{asked.endpoint} offers {asked} with the {what} {found!s:.64}, and listed it with {promised}",
                    "Try again later; if it stays so, check HF_ENDPOINT",
                )

    def _require_right(self, response: httpx2.Response, asked: Asked) -> None:
        """Leave the partial file where the reply's bytes go on. Raises PassingError where it brings other ones."""
        assert self._client is not None
        size_bytes, begin, status = self._file.size_bytes, self._partial.size_bytes, response.status_code
        host = shown_address(str(response.url))
        if response.headers.get("content-encoding", "identity").lower() != "identity" and status < 300:
            raise PassingError(f"{host} compresses what has to come as it is")
        if status == 206:
            found = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
            if found is None or int(found[1]) != begin or found[3] not in ("*", str(size_bytes)):
                raise PassingError(f"{host} sends another range than the one that was asked for")
        elif status == 200:
            length = response.headers.get("content-length")
            if length is not None and length != str(size_bytes):
                raise PassingError(f"{host} sends another file: {length:.20} bytes instead of {size_bytes}")
            if begin:  # it does not do ranges
                self._start_over()
        elif status == 416 and begin:
            self._start_over()
            raise PassingError(f"{host} has no such range")
        elif self._client.is_own(str(response.url)):
            raise self._client.refusal(response, asked)
        else:  # storage; the next attempt gets a fresh signature for it
            raise PassingError(f"{host} answers HTTP {status}")

    def _take(self, response: httpx2.Response) -> None:
        begin = self._partial.size_bytes
        for piece in response.iter_raw():
            self._meter.fetched_bytes += len(piece)
            if len(piece) > self._missing_bytes():
                self._partial.cut(begin)
                raise HubError(
                    f"{shown_address(str(response.url))} sends more of {self._file.path} than its "
                    f"{self._file.size_bytes} bytes; nothing of that is kept",
                    "Try again later, over another network if there is one",
                )
            self._partial.append(piece)
            self._digests.update(piece)
            self._meter.tell(self._partial.size_bytes)


def _already_there(file: HubFile, target: Path, meter: _Meter) -> Downloaded | None:
    """The target, where it is what the hub has."""
    digests, done_bytes = _Digests(file), 0
    try:
        if target.stat().st_size != file.size_bytes:
            return None
        with target.open("rb", buffering=0) as stream:
            while piece := stream.read(READ_BYTES):
                digests.update(piece)
                done_bytes += len(piece)
                meter.tell(done_bytes)
    except OSError:  # it is not there, or not to be read: then it is fetched
        return None
    if not digests.agree():
        return None
    return Downloaded(target, digests.sha256.hexdigest(), file.size_bytes, 0, 0)


def _require_place(target: Path) -> None:
    """Find out before gigabytes have come that the target cannot get its name."""
    nearest = next(folder for folder in target.absolute().parents if os.path.lexists(folder))
    if not nearest.is_dir():
        raise OutputError(f"{nearest} is not a folder", "Move it, or choose another name")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputError(f"{nearest} cannot be written", "Check its permissions, or choose another folder")
    if target.is_dir():
        raise OutputError(f"{target} is a folder", "Move it, or choose another name")
