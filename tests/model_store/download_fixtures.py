"""A hub that has files, and a place to which one comes: what the tests of downloads share."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.model_store.hub_fixtures import NAME, TOKEN
from tests.stand_in_hub import StandInHub, sha256
from zephyr_local.errors import ZephyrError
from zephyr_local.model_store.download import Downloaded, DownloadProgress, download
from zephyr_local.model_store.hub import HubSnapshot, read_snapshot
from zephyr_local.model_store.hub_problems import Patience

PATH = "model.Q4_K_M.gguf"
DATA = random.Random(7).randbytes(1_000_003)
SMALL = b'{"small": true}\n'
SIGNATURE = "secret-of-the-storage"
AGAIN = "the same command goes on from there"


def hub_to_fetch_from(hub: StandInHub, monkeypatch: pytest.MonkeyPatch, folder: Path) -> StandInHub:
    """A file in LFS, small ones, an empty one and one of an odd name, asked for with a token."""
    hub.add(NAME, {PATH: DATA, "config.json": SMALL, "folder/empty": b"", "ü ber/a+b#c?.txt": SMALL})
    hub.connect(monkeypatch, folder / "hf", TOKEN)
    return hub


class Place:
    """Where one test downloads to, and how."""

    def __init__(self, folder: Path) -> None:
        self.partials = folder / "store" / ".partial"
        self.target = folder / "store" / "stand" / "in-GGUF" / PATH
        self.pauses: list[float] = []
        self.told: list[DownloadProgress] = []
        self.attempts = 3
        self.snapshot: HubSnapshot | None = None

    def fetch(self, path: str = PATH, name: str = NAME) -> Downloaded:
        self.snapshot = self.snapshot or read_snapshot(name)
        patience = Patience(attempts=self.attempts, wait=self.pauses.append)
        return download(
            self.snapshot,
            self.snapshot.file(path),
            self.target,
            partial_folder=self.partials,
            on_progress=self.told.append,
            patience=patience,
        )

    def fails(self, kind: type[ZephyrError], pattern: str) -> str:
        """What the error says, which is whole, shown on one line, and tells no secret."""
        with pytest.raises(kind, match=pattern) as caught:
            self.fetch()
        text = str(caught.value)
        assert text.isprintable()
        assert not any(secret in text for secret in (TOKEN, SIGNATURE, "X-Amz"))
        return text

    def lay(self, data: bytes) -> Path:
        """Bytes that came before."""
        self.partials.mkdir(parents=True, exist_ok=True)
        path = self.partials / sha256(DATA)
        path.write_bytes(data)
        return path

    @property
    def partial(self) -> bytes | None:
        path = self.partials / sha256(DATA)
        return path.read_bytes() if path.exists() else None

    def left(self) -> list[str]:
        return sorted(path.name for path in self.partials.iterdir())

    def is_whole(self) -> bool:
        return self.target.read_bytes() == DATA and self.left() == []
