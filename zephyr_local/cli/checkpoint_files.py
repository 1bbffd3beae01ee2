"""Which files of a repository make its checkpoint; what is none is refused before anything is fetched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

from zephyr_local.errors import CheckpointError

if TYPE_CHECKING:
    from zephyr_local.model_store.hub import HubFile, HubSnapshot

_ADAPTER: Final = "adapter_config.json"
_INDEX: Final = "model.safetensors.index.json"
_PICKLES: Final = (".bin", ".pth", ".pt", ".ckpt")
_NOT_WEIGHTS: Final = ("training_args", "optimizer", "scheduler", "rng_state")
_MAX_NAMED: Final = 3


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """What a conversion may read of a repository."""

    side: tuple[HubFile, ...]
    """All but the weights: small."""
    shards: tuple[HubFile, ...]
    """In the repository's own folder; which of them count, the index says."""


def checkpoint_files(snapshot: HubSnapshot) -> CheckpointFiles:
    """Choose them. Raises CheckpointError that says what the repository has instead."""
    from zephyr_local.convert.model_config import MAX_JSON_BYTES
    from zephyr_local.convert.shard_supply import MORE_TEMPLATES, SIDE_FILES

    top = [file for file in snapshot.files if "/" not in file.path]
    names = {file.path for file in top}
    if _ADAPTER in names:
        raise CheckpointError(
            f"{snapshot.repository} holds an adapter ({_ADAPTER}), which needs its base",
            "Download both (hf download), then: zephyr-local quantize ADAPTER --base BASE",
        )
    shards = tuple(file for file in top if file.path.endswith(".safetensors"))
    if _INDEX not in names and not any(file.path.startswith("model") for file in shards):
        raise _no_checkpoint(snapshot, names)
    if "config.json" not in names:
        raise CheckpointError(
            f"{snapshot.repository} has weights and no config.json", "Take the repository that transformers loads"
        )
    side = tuple(
        file
        for file in snapshot.files
        if file.path in SIDE_FILES or PurePosixPath("/", file.path).match(f"/{MORE_TEMPLATES}")
    )
    for file in side:
        if file.size_bytes > MAX_JSON_BYTES:
            raise CheckpointError(
                f"{file.path} of {snapshot.repository} has {file.size_bytes} bytes, more than the {MAX_JSON_BYTES} "
                "that are read",
                "It is damaged, or not what its name says: tell its makers",
            )
    return CheckpointFiles(side, shards)


def _no_checkpoint(snapshot: HubSnapshot, names: set[str]) -> CheckpointError:
    repository = snapshot.repository
    if any(file.path.lower().endswith(".gguf") for file in snapshot.files):
        return CheckpointError(
            f"{repository} holds GGUFs and no checkpoint in safetensors",
            f"Take one of them as it is: zephyr-local pull hf:{repository}",
        )
    pickles = sorted(name for name in names if name.endswith(_PICKLES) and not name.startswith(_NOT_WEIGHTS))
    if pickles:
        return CheckpointError(
            f"{repository} has its weights as pickles only ({', '.join(pickles[:_MAX_NAMED])}), and loading a pickle "
            "runs its code",
            f"Take a repository with safetensors, or a revision of this one that has them ({repository}@REVISION)",
        )
    return CheckpointError(
        f"{repository} has no model.safetensors and no {_INDEX}", "Take the repository that transformers loads"
    )
