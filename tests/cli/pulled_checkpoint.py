"""A checkpoint repository at a stand-in hub, pulled by the real command: what the tests of that share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoint_builder import ModelShape, build_checkpoint
from tests.checkpoint_hub import CheckpointHub, files_of
from tests.cli.command import isolated
from tests.conftest import skip_or_fail
from zephyr_local.cli.main import run
from zephyr_local.convert.hf_to_gguf import OutputRequest, convert_model
from zephyr_local.quantize.types import FileType

NAME = "stand/in-model"
TYPES = {"Q4_K_M": "q4_k_m", "Q8_0": "q8_0"}
BEGIN_BYTES = 64 << 10
"""What is asked for of a shard before it comes."""

Files = dict[str, bytes]


def checkpoint(folder: Path, n_shards: int = 3) -> Path:
    """Named as the repository, with all that a conversion reads."""
    build_checkpoint(folder / "in-model", ModelShape(), n_shards=n_shards)
    (folder / "in-model" / "README.md").write_text("---\nlicense: mit\nlanguage: en\n---\nA model.\n")
    (folder / "in-model" / "generation_config.json").write_text('{"temperature": 0.7}\n')
    (folder / "in-model" / "additional_chat_templates").mkdir()
    (folder / "in-model" / "additional_chat_templates" / "tools.jinja").write_text("{{ messages[0]['content'] }}")
    return folder / "in-model"


def repository_of(folder: Path) -> Files:
    """A checkpoint's files, and some that no conversion reads."""
    not_read = ("original/consolidated.00.pth", "training_args.bin", "old/additional_chat_templates/chat.jinja")
    return {**files_of(folder), **dict.fromkeys(not_read, b"not read")}


def quantized(folder: Path) -> dict[str, bytes]:
    """What `quantize` makes of a folder, by type."""
    requests = [OutputRequest(folder.parent / f"{name}.gguf", FileType[name]) for name in TYPES]
    convert_model(folder, requests)
    return {name: request.target.read_bytes() for name, request in zip(TYPES, requests, strict=True)}


@contextlib.contextmanager
def connected_hub(monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[CheckpointHub]:
    """The hub that this process asks, with the user's folders in ``home``."""
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        skip_or_fail("huggingface_hub", 'pip install "zephyr-local[hub]"')
    with CheckpointHub() as stand_in:
        stand_in.connect(monkeypatch, home / "hf")
        for name, value in isolated(home).items():
            if name.startswith("XDG_"):
                monkeypatch.setenv(name, value)
        yield stand_in


def store_of(home: Path) -> Path:
    return home / "data" / "zephyr-local" / "models"


def pull(*more: str, types: str = "q4_k_m,q8_0", name: str = NAME) -> int:
    return run(["pull", f"hf:{name}", "--quantize", types, *more])


def target(store: Path, name: str) -> Path:
    return store / NAME / f"in-model-{name}.gguf"


def listing(store: Path) -> list[str]:
    """All files in the store."""
    return sorted(path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file())


def outputs(store: Path) -> dict[str, bytes]:
    """What is there of the outputs, by type."""
    return {name: target(store, name).read_bytes() for name in TYPES if target(store, name).exists()}
