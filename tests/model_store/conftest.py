"""What the tests of the store share: a user who has nothing yet."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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
