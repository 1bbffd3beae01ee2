"""What the tests of the store share: a user who has nothing yet, and a hub on loopback."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import skip_or_fail
from tests.model_store.download_fixtures import Place
from tests.stand_in_hub import StandInHub
from zephyr_local.model_store import ollama, places

_ELSEWHERE = ("HF_", "HUGGINGFACE_", "OLLAMA_", "LLAMA_", "LMSTUDIO_", "ZEPHYR_LOCAL_")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of a user without models and settings; what the developer has is not found from this process.

    A process that a test starts inherits the variables, and still sees ``models/`` of the checkout and Ollama's folders
    of the system, which have no variable.
    """
    folder = tmp_path / "home"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith(_ELSEWHERE)]:
        if name != "HF_HUB_OFFLINE":  # a test that asks a hub takes it away itself
            monkeypatch.delenv(name)
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(folder))
    for kind, path in (("DATA", ".local/share"), ("STATE", ".local/state"), ("CONFIG", ".config"), ("CACHE", ".cache")):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(folder / path))
    for name in ("APPDATA", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(folder / name))
    monkeypatch.setattr(places, "_checkout_models", lambda: folder / "checkout" / "models")
    monkeypatch.setattr(ollama, "_LINUX_FOLDERS", ())
    return folder


@pytest.fixture
def empty_current_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One in the home of a user who has nothing."""
    folder = home / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is asked here, no socket is opened."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)


@pytest.fixture
def hub() -> Iterator[StandInHub]:
    """A hub that has nothing and that this process does not ask: a module whose tests need more gives it more."""
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        skip_or_fail("huggingface_hub", 'pip install "zephyr-local[hub]"')
    with StandInHub() as stand_in:
        yield stand_in


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Where a download goes."""
    return Place(tmp_path)
