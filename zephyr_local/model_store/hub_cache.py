"""The Hugging Face cache: where it is, and which snapshots of which repositories it holds.

A repository is a folder ``models--OWNER--REPO``. Its ``snapshots/COMMIT/`` has the files under their names, each a link
into ``blobs/``, where a large file's name is its SHA-256; where links cannot be made, the files themselves lie in the
snapshot. ``refs/main`` has the commit that main was at. Source: huggingface_hub 2.4, ``constants.py`` and
``file_download.py`` (``hf_hub_download``); https://huggingface.co/docs/huggingface_hub/guides/manage-cache.
"""

from __future__ import annotations

import os
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from zephyr_local.model_store.places import Look

_PREFIX: Final = "models--"
_NAME: Final = re.compile(r"[\w-][\w.-]*", re.ASCII)
_COMMIT: Final = re.compile(r"[0-9a-f]{40}", re.ASCII)
_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_MAX_REF_BYTES: Final = 1024


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A repository's files as they were at one commit; those that were asked for."""

    repository: str
    """OWNER/REPO; of the oldest repositories REPO alone."""
    revision: str
    """The commit."""
    folder: Path


def cache_folder(environment: Mapping[str, str] | None = None, home: Path | None = None) -> Path:
    """The Hugging Face cache's folder of repositories, as huggingface_hub derives it from the environment.

    ``environment`` and ``home`` are this process's unless given. Raises RuntimeError where a home folder is asked for
    that is not known.
    """
    values = os.environ if environment is None else environment
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if value := values.get(variable):
            return _expanded(value, environment, home)
    if value := values.get("HF_HOME"):
        return _expanded(value, environment, home) / "hub"
    return _expanded(values.get("XDG_CACHE_HOME") or "~/.cache", environment, home) / "huggingface" / "hub"


def _expanded(value: str, environment: Mapping[str, str] | None, home: Path | None) -> Path:
    if environment is None:
        path = Path(os.path.expandvars(value))
    else:
        path = Path(string.Template(value).safe_substitute(environment))
    if home is not None and path.parts[:1] == ("~",):
        return home.joinpath(*path.parts[1:])
    return path.expanduser()


def llama_cpp_folder(environment: Mapping[str, str], home: Path, platform: str) -> Path:
    """llama.cpp's own cache: GGUF files, and in newer versions, where LLAMA_CACHE is set, the layout of this cache.

    Without that variable newer versions use the Hugging Face cache itself. Source: llama.cpp 0c1e57098,
    common/common.cpp (fs_get_cache_directory), common/hf-cache.cpp (get_cache_directory).
    """
    if value := environment.get("LLAMA_CACHE"):
        return Path(value)
    if platform == "win32":
        caches = Path(environment.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif platform == "darwin":
        caches = home / "Library" / "Caches"
    else:
        caches = Path(environment.get("XDG_CACHE_HOME") or home / ".cache")
    return caches / "llama.cpp"


def cached_snapshots(cache: Path, look: Look) -> list[Snapshot]:
    """Every snapshot of a model repository: of each repository main's first, then the newest."""
    found: list[Snapshot] = []
    for entry in look.entries(cache):
        repository = _repository(entry.name)
        if repository is None:
            continue
        snapshots = cache / entry.name / "snapshots"
        main = _main(cache / entry.name, look)
        commits = [commit for commit in look.entries(snapshots) if _COMMIT.fullmatch(commit.name)]
        commits.sort(key=lambda commit: (commit.name != main, -_modified(commit)))
        found += (Snapshot(repository, commit.name, snapshots / commit.name) for commit in commits)
    return found


def blob_sha256(path: Path) -> str | None:
    """The SHA-256 of a snapshot's file as its blob's name tells it; None where it does not."""
    try:
        blob = Path(os.readlink(path))  # noqa: PTH115 — Path.readlink is the same and slower
    except (OSError, ValueError):  # no link: the file itself
        return None
    return blob.name if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name) else None


def _repository(folder_name: str) -> str | None:
    """``OWNER/REPO`` of ``models--OWNER--REPO``; no repository's name has two hyphens in a row."""
    names = folder_name.removeprefix(_PREFIX).split("--")
    if not folder_name.startswith(_PREFIX) or len(names) > 2 or not all(map(_NAME.fullmatch, names)):
        return None
    return "/".join(names)


def _main(repository: Path, look: Look) -> str | None:
    try:
        return look.small_file(repository / "refs" / "main", _MAX_REF_BYTES).decode("ascii").strip()
    except (OSError, ValueError):
        return None  # it was fetched by its commit or by another branch


def _modified(entry: os.DirEntry[str]) -> float:
    try:
        return entry.stat().st_mtime
    except OSError:
        return 0.0
