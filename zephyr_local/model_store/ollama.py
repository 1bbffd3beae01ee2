"""What Ollama has pulled or made: its manifests say which blob is which model.

``manifests/HOST/NAMESPACE/MODEL/TAG`` is JSON in the form of a Docker manifest, whose layers name blobs by their
SHA-256; the layer of the type ``application/vnd.ollama.image.model`` is the GGUF. Since manifest lists came, a manifest
is a blob, too, and ``manifests-v2/…/TAG`` a link to it (or a copy); a list has one for each of several runners.
Sources: github.com/ollama/ollama, ``manifest/paths.go``, ``manifest/manifest.go``, ``server/images.go`` (GetModel),
``envconfig/config.go`` and ``docs/faq.mdx`` ("Where are models stored?").
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from zephyr_local.model_store.places import Look

_MAX_MANIFEST_BYTES: Final = 4 << 20
"""A model in thousands of tensor layers takes one or two MB."""
_MAX_CHILDREN: Final = 32

_LIST: Final = "application/vnd.ollama.manifest.list.v2+json"
_MODEL: Final = "application/vnd.ollama.image.model"
_ADAPTER: Final = "application/vnd.ollama.image.adapter"
_DIGEST: Final = re.compile(r"sha256[:-]([0-9a-fA-F]{64})", re.ASCII)
_BLOB: Final = re.compile(r"sha256-[0-9a-f]{64}", re.ASCII)
_RUNNERS: Final = ("ollama", "llamacpp")
"""In the order that Ollama prefers them; what is for mlx is no GGUF."""

_PUBLIC_HOSTS: Final = ("registry.ollama.ai", "ollama.com")
_HUB_HOSTS: Final = ("hf.co", "huggingface.co")

# The faq's; then those of the packages of NixOS (nixpkgs, nixos/modules/services/misc/ollama.nix) and Arch (its
# ollama.service), that of a service whose home is Arch's without its OLLAMA_MODELS, and the snap's.
_LINUX_FOLDERS: Final = (
    "/usr/share/ollama/.ollama/models",
    "/var/lib/ollama/models",
    "/var/lib/ollama",
    "/var/lib/ollama/.ollama/models",
    "/var/snap/ollama/common/models",
)


@dataclass(frozen=True, slots=True)
class TaggedModel:
    """A name in Ollama, and the blob that it stands for."""

    name: str
    """As ``ollama list`` has it, with its tag."""
    repository: str | None
    """OWNER/REPO on the Hugging Face hub, for what came from there."""
    sha256: str
    blob: Path


class _UnusableError(Exception):
    """Why a manifest gives no model, as a phrase."""


def model_folders(environment: Mapping[str, str], home: Path, platform: str) -> list[Path]:
    """The folders in which Ollama, as this user's own or as a service of the system, keeps its models."""
    folders = [home / ".ollama" / "models"]
    if value := environment.get("OLLAMA_MODELS", "").strip().strip("\"'"):  # as envconfig's Var does
        folders.insert(0, Path(value))
    if platform == "linux":
        folders += map(Path, _LINUX_FOLDERS)
    return folders


def tagged_models(folder: Path, look: Look) -> list[TaggedModel]:
    """Every tag in Ollama's ``folder`` that stands for a GGUF; whether its blob is one, the caller has to see.

    What is not a GGUF (safetensors, a model in the cloud) is left out silently, what is damaged with a notice.
    """
    blobs = folder / "blobs"
    found: dict[str, TaggedModel | None] = {}
    problems: dict[str, str] = {}
    there = {entry.name for entry in look.entries(folder)}
    for manifests in ("manifests-v2", "manifests"):  # a name in both is the first's, unless that cannot be read
        if manifests not in there:
            continue
        for (host, namespace, model, tag), path in _tags(folder / manifests, look):
            name = _name(host, namespace, model, tag)
            if name in found:
                continue
            repository = f"{namespace}/{model}" if host.lower() in _HUB_HOSTS else None
            try:
                digest = _model_digest(_manifest(path, blobs, look), blobs, look)
                found[name] = TaggedModel(name, repository, digest, _blob(blobs, digest)) if digest else None
            except _UnusableError as error:
                problems.setdefault(name, f"Ollama's {name} is left out: {error} ({path})")
    for name, problem in problems.items():
        if name not in found:
            look.notice(problem)
    return [tagged for tagged in found.values() if tagged is not None]


def _tags(manifests: Path, look: Look) -> Iterator[tuple[tuple[str, ...], Path]]:
    """Host, namespace, model and tag of each manifest, and where it lies."""
    level: list[tuple[tuple[str, ...], Path]] = [((), manifests)]
    for depth in range(1, 5):
        level = [
            ((*names, entry.name), folder / entry.name)
            for names, folder in level
            for entry in look.entries(folder)
            # A name with a dot before it is a manifest that is being written, or the file manager's.
            if not entry.name.startswith(".") and look.is_folder(entry) == (depth < 4)
        ]
    yield from level


def _name(host: str, namespace: str, model: str, tag: str) -> str:
    if host.lower() not in _PUBLIC_HOSTS:
        return f"{host}/{namespace}/{model}:{tag}"
    return f"{model}:{tag}" if namespace == "library" else f"{namespace}/{model}:{tag}"


def _manifest(path: Path, blobs: Path, look: Look) -> dict[str, Any]:
    try:
        if path.is_symlink():
            target = Path(os.path.realpath(path))
            if target.parent != Path(os.path.realpath(blobs)) or not _BLOB.fullmatch(target.name):
                raise _UnusableError("its manifest is a link to what is not Ollama's")
        manifest = json.loads(look.small_file(path, _MAX_MANIFEST_BYTES))
    except OSError as error:
        raise _UnusableError(f"its manifest cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise _UnusableError("its manifest is damaged") from None
    if not isinstance(manifest, dict):
        raise _UnusableError("its manifest is damaged")
    return manifest


def _model_digest(manifest: dict[str, Any], blobs: Path, look: Look) -> str | None:
    """The SHA-256 of the GGUF of a manifest, or of the first in a list that has one; None where there is none."""
    if manifest.get("mediaType") != _LIST:
        return _layers_digest(manifest)
    children = manifest.get("manifests")
    if not isinstance(children, list) or not all(isinstance(child, dict) for child in children):
        raise _UnusableError("its list of manifests is damaged")
    for runner in _RUNNERS:
        for child in children[:_MAX_CHILDREN]:
            if str(child.get("runner", "")).lower() != runner:
                continue
            if child.get("digest") and not child.get("layers"):  # a reference: that manifest is a blob
                child = _manifest(_blob(blobs, _sha256(child["digest"])), blobs, look)
            if digest := _layers_digest(child):
                return digest
    return None


def _layers_digest(manifest: dict[str, Any]) -> str | None:
    layers = manifest.get("layers") or []
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        raise _UnusableError("its manifest is damaged")
    models = {_sha256(layer.get("digest")) for layer in layers if layer.get("mediaType") == _MODEL}
    if not models:
        return None
    if len(models) > 1:
        raise _UnusableError(f"it is made of {len(models)} files")
    if any(layer.get("mediaType") == _ADAPTER for layer in layers):
        # Its base alone would answer otherwise than what has this name in Ollama.
        raise _UnusableError("it has an adapter, which is not applied here")
    return models.pop()


def _sha256(digest: object) -> str:
    match = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if match is None:
        raise _UnusableError("its manifest names a blob by something other than a SHA-256")
    return match[1].lower()


def _blob(blobs: Path, sha256: str) -> Path:
    """The blob's path; until March 2024 its name had a colon where it has a hyphen (ollama/ollama#3146)."""
    path = blobs / f"sha256-{sha256}"
    older = blobs / f"sha256:{sha256}"
    return older if os.name != "nt" and not os.path.lexists(path) and os.path.lexists(older) else path
