"""A stand-in hub that has a checkpoint: with ranges that end, faults of single files, and an eye on the disk."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.stand_in_hub import Fault, Kind, Served, StandInHub, _Handler, _StorageHandler, sha256

_CLOSED = re.compile(r"bytes=(\d+)-(\d+)")


class CheckpointHub(StandInHub):
    """Its storage knows ``bytes=A-B`` too."""

    def __enter__(self) -> CheckpointHub:
        self.faults_of: dict[str, list[Fault | None]] = {}
        """By SHA-256, of the requests for a whole file, one after the other."""
        self.faults_of_begins: list[Fault | None] = []
        """Of the requests for the first bytes of any file."""
        self.on_piece: Callable[[], object] = lambda: None
        """Called with each piece that the storage has sent."""
        super().__enter__()
        return self

    def _start(self, handler: type[_Handler]) -> Any:
        return super()._start(_RangesHandler if handler is _StorageHandler else handler)

    def begin(self, request: Served) -> None:
        super().begin(request)
        if request.kind is Kind.STORAGE:
            is_begin = _CLOSED.fullmatch(request.headers.get("range", "")) is not None
            faults = self.faults_of_begins if is_begin else self.faults_of.get(digest_of(request), [])
            if faults:
                request.fault = faults.pop(0)

    def whole(self, data: bytes) -> list[Served]:
        """The requests for a file, or for the rest of it."""
        requests = [one for one in self.of_kind(Kind.STORAGE) if digest_of(one) == sha256(data)]
        return [one for one in requests if not _CLOSED.fullmatch(one.headers.get("range", ""))]


class _RangesHandler(_StorageHandler):
    def answer(self) -> None:
        closed = _CLOSED.fullmatch(self.served.headers.get("range", ""))
        if closed is None or self.fault.ignores_range:
            self.served.headers = {k: v for k, v in self.served.headers.items() if closed is None or k != "range"}
            super().answer()
            return
        digest = urlsplit(self.path).path.removeprefix("/lfs/")
        trees = itertools.chain.from_iterable(one.commits.values() for one in self.owner.repositories.values())
        data = next(data for tree in trees for data in tree.values() if sha256(data) == digest)
        begin, end = int(closed[1]), min(int(closed[2]) + 1, len(data))
        self.reply(206, {"Content-Range": f"bytes {begin}-{end - 1}/{len(data)}"}, data[begin:end])

    def send_paced(self, body: memoryview) -> None:
        owner = self.owner
        assert isinstance(owner, CheckpointHub)
        size = owner.chunk_bytes
        for first in range(0, len(body), size):
            super().send_paced(body[first : first + size])
            owner.on_piece()


def digest_of(request: Served) -> str:
    """Of the file that the storage is asked for."""
    return urlsplit(request.path).path.removeprefix("/lfs/")


def files_of(folder: Path) -> dict[str, bytes]:
    """A folder as a repository has it."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def shards_of(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The weights among a repository's files."""
    return {path: data for path, data in files.items() if path.endswith(".safetensors")}


def shard_bytes(store: Path, files: Mapping[str, bytes]) -> int:
    """What lies on the disk of the shards, whole or in part, whatever it is called."""
    names = {*shards_of(files), *(sha256(data) for data in shards_of(files).values())}
    found: dict[int, int] = {}  # by inode: a file may get its name while this looks
    for path in store.rglob("*"):
        if path.name in names:
            with contextlib.suppress(FileNotFoundError):  # gone in between
                status = path.stat()
                found[status.st_ino] = status.st_size
    return sum(found.values())
