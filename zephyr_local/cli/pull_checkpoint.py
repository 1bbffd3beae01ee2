"""`zephyr-local pull REPO --quantize TYPES`: a checkpoint repository, shard by shard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from zephyr_local.errors import InvalidInputError

if TYPE_CHECKING:
    from zephyr_local.model_store.names import HubName


def pull_checkpoint(name: HubName, types: str, store: Path, *, dry_run: bool, as_json: bool) -> None:
    raise InvalidInputError("--quantize is not there yet", "Pull a GGUF")
