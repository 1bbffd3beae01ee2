"""A hub that is asked what it has, and how its stand-in is filled: what the tests of hubs share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stand_in_hub import StandInHub
from zephyr_local.model_store.hub import HubSnapshot, read_snapshot
from zephyr_local.model_store.hub_problems import Patience

NAME = "stand/in-GGUF"
BIG = bytes(range(256)) * 16
SMALL = b"{}\n"
TOKEN = "hf_valid"

HOSTILE_PATHS = [
    "",
    "/etc/passwd",
    "..",
    "../a",
    "a/../../b",
    "a/..",
    ".",
    "./a",
    "a/./b",
    "a//b",
    "a/",
    "a\\b",
    "..\\..\\a",
    "C:/a",
    "C:a",
    "a:stream",
    "a\0b",
    "a\nb",
    "a\x1b[2Jb",
    "a\x7f",
    "\x85",
    "a\u202egguf.exe",
    "a\ud800",
    "CON",
    "con.gguf",
    "a/NUL",
    "aux.tar.gz",
    "LPT1",
    "com¹.txt",
    "CONIN$",
    "nul .txt",
    "a.",
    "a ",
    " a",
    "a./b",
    "ä" * 128,
    "/".join(["a" * 200] * 6),
]


def hub_to_list(hub: StandInHub, monkeypatch: pytest.MonkeyPatch, folder: Path) -> StandInHub:
    """A large file and a small one, asked for without a token."""
    hub.add(NAME, {"model.Q4_K_M.gguf": BIG, "folder/config.json": SMALL})
    hub.connect(monkeypatch, folder / "hf")
    return hub


def patience(pauses: list[float] | None = None, attempts: int = 3) -> Patience:
    return Patience(attempts=attempts, wait=(pauses if pauses is not None else []).append)


def read(name: str = NAME, revision: str | None = None) -> HubSnapshot:
    return read_snapshot(name, revision, patience=patience())
