"""A base model that an adapter names, found on this computer: as a folder, or in the Hugging Face cache.

The cache's layout: https://huggingface.co/docs/huggingface_hub/guides/manage-cache. Nothing is downloaded.
"""

from __future__ import annotations

import re
from pathlib import Path

from zephyr_local.errors import CheckpointError
from zephyr_local.model_store.hub_cache import cache_folder

_REPOSITORY = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)
_MAX_REF_BYTES = 1024
_GIVE_BASE = "Give the base model's folder with --base, or download it first (hf download)"


def find_base(name: str, revision: str | None, adapter_folder: Path) -> Path:
    """The folder of the base model `name`: a path, else the snapshot of a repository in the local cache.

    `revision` is a branch, a tag or a whole commit, and counts for a repository alone; None means main. A
    CheckpointError names every place that was looked at.
    """
    looked: list[str] = []
    try:
        folder = Path(name).expanduser()
        if name and folder.is_dir():
            return folder
        looked.append(f"the folder {folder.absolute()}")
        snapshot = _snapshot(name, revision or "main", looked)
    except (OSError, ValueError, RuntimeError):  # a name too long, a NUL character, an unknown home directory
        snapshot = None
    if snapshot is not None:
        return snapshot
    where = " and ".join(looked) or "this computer's folders"
    raise CheckpointError(
        f"the base model {name[:200]!r} of the adapter {adapter_folder} is not there: looked for {where}", _GIVE_BASE
    )


def _snapshot(name: str, revision: str, looked: list[str]) -> Path | None:
    if not _REPOSITORY.fullmatch(name) or ".." in Path(revision).parts or Path(revision).is_absolute():
        return None
    repository = cache_folder() / f"models--{name.replace('/', '--')}"
    if _COMMIT.fullmatch(revision):
        looked.append(f"the snapshot {repository / 'snapshots' / revision}")
        commit = revision
    else:
        reference = repository / "refs" / revision
        looked.append(f"the reference {reference}")
        if not reference.is_file():
            return None
        with reference.open("rb") as file:
            commit = file.read(_MAX_REF_BYTES).decode("utf-8").strip()
        if not _COMMIT.fullmatch(commit):
            return None
        looked.append(f"the snapshot {repository / 'snapshots' / commit}")
    snapshot = repository / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None
