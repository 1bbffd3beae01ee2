"""What the tests of `pull` and of the models that it brings share."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import ROOT
from tests.gguf_builder import tiny_model
from tests.model_store.store_fixtures import put, put_everywhere
from tests.stand_in_hub import StandInHub, git_blob, sha256

BETA = "TheBloke/zephyr-7B-beta-GGUF"
OWNERS = ["zephyr-local", "huggingface", "lm-studio", "gpt4all", "ollama", "llama.cpp"]
MIB = 1 << 20
GB = 10**9


def beta(file_type: str) -> str:
    return f"zephyr-7b-beta.{file_type}.gguf"


def model(seed: int = 0) -> bytes:
    """The larger the number, the larger the file."""
    return tiny_model(seed=seed).build() + bytes(seed * 1000)


def large(size_bytes: int = 2 * MIB) -> bytes:
    return random.Random(size_bytes).randbytes(size_bytes)


def entry(path: str, size_bytes: int) -> dict[str, object]:
    """A file in a listing that nobody serves."""
    digest = sha256(path.encode())
    lfs = {"oid": digest, "size": size_bytes, "pointerSize": 130}
    return {"type": "file", "oid": git_blob(path.encode()), "size": size_bytes, "path": path, "lfs": lfs}


def store(home: Path, repository: str = BETA) -> Path:
    return store_folder(home) / repository


def store_folder(home: Path) -> Path:
    return home / ".local/share/zephyr-local/models"


def models_toml(home: Path) -> Path:
    return home / ".config/zephyr-local/models.toml"


def write_toml(home: Path, text: str) -> Path:
    return put(models_toml(home), text.encode())


def one_of_each(home: Path) -> dict[str, Path]:
    return put_everywhere(home, {owner: model(seed) for seed, owner in enumerate(OWNERS)})


def names_below(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def run_limited(limit_bytes: int, *words: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """The command where RLIMIT_DATA leaves its process so much; GPUs of the machine are left out of it."""
    import resource

    from zephyr_local.hardware import read_memory

    if read_memory().available_bytes < limit_bytes:
        pytest.skip("the machine itself has less memory than the limit")
    return subprocess.run(
        [sys.executable, "-m", "zephyr_local", *words, "--n-gpu-layers", "0"],
        cwd=ROOT,
        env={**os.environ, **environment, "OPENBLAS_NUM_THREADS": "1"},  # whose threads' stacks count
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes)),
    )


def start(*words: str, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "zephyr_local", *words],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_bytes(hub: StandInHub, n_bytes: int) -> None:
    deadline = time.monotonic() + 30
    while hub.sent_bytes() < n_bytes:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def hub_entries(hub: StandInHub, repository: str) -> list[dict[str, Any]]:
    (files,) = hub.repositories[repository].commits.values()
    return [entry(path, len(data)) | {"lfs": {"oid": sha256(data), "size": len(data)}} for path, data in files.items()]
