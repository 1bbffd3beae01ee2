"""Puts a model where each tool keeps it, in the layout that the tool writes; each returns the path that is found.

Sources of the layouts: those that zephyr_local/model_store/places.py, ollama.py and hub_cache.py name.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef" * 2 + "01234567"
OTHER_COMMIT = "fedcba9876543210" * 2 + "fedcba98"
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
MANIFEST_LIST = "application/vnd.ollama.manifest.list.v2+json"
IMAGE = "application/vnd.ollama.image."


def put(path: Path, data: bytes) -> Path:
    """A file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def link(path: Path, target: Path) -> Path:
    """A relative link to ``target``, as Ollama and the Hugging Face cache make them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(os.path.relpath(target, path.parent))
    return path


def put_in_store(store: Path, model: bytes, repository: str = "org/zephyr-GGUF", file: str = "zephyr.gguf") -> Path:
    return put(store / repository / file, model)


def put_in_hub_cache(
    cache: Path,
    model: bytes,
    repository: str = "org/zephyr-GGUF",
    file: str = "zephyr.gguf",
    *,
    commit: str = COMMIT,
    ref: str | None = "main",
    links: bool = True,
) -> Path:
    """``links=False`` is the cache of a system where none can be made: the file lies in the snapshot itself."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    if ref is not None:
        put(folder / "refs" / ref, commit.encode())
    path = folder / "snapshots" / commit / file
    if not links:
        return put(path, model)
    return link(path, put(folder / "blobs" / hashlib.sha256(model).hexdigest(), model))


def put_in_lm_studio(models: Path, model: bytes, repository: str = "org/zephyr-GGUF", file: str = "z.gguf") -> Path:
    return put(models / repository / file, model)


def put_in_gpt4all(folder: Path, model: bytes, file: str = "zephyr-7b-beta.Q4_0.gguf") -> Path:
    return put(folder / file, model)


def put_in_llama_cpp(folder: Path, model: bytes, file: str = "org_zephyr-GGUF_zephyr.gguf") -> Path:
    """As llama.cpp's cache was before it took the Hugging Face cache's layout, for which use put_in_hub_cache."""
    put(folder / f"{file}.etag", b'"etag"')
    return put(folder / file, model)


def put_in_ollama(
    models: Path,
    model: bytes,
    name: str = "zephyr",
    tag: str = "7b",
    *,
    namespace: str = "library",
    host: str = "registry.ollama.ai",
    layers: Sequence[tuple[str, bytes]] = (("template", b"{{ .Prompt }}"),),
) -> Path:
    """A pulled or created model, and its other ``layers`` (the type's last word, the contents); the blob's path."""
    manifest = ollama_manifest(models, [("model", model), *layers])
    put(models / "manifests" / host / namespace / name / tag, json.dumps(manifest).encode())
    return models / "blobs" / f"sha256-{hashlib.sha256(model).hexdigest()}"


def put_in_ollama_v2(
    models: Path, model: bytes, name: str = "zephyr", tag: str = "7b", *, inline: bool = False, links: bool = True
) -> Path:
    """As newer versions have it: a list with a manifest for mlx and one for llama.cpp, itself a blob; the GGUF's path.

    The manifests in the list are blobs of their own, or ``inline``.
    """
    children: list[dict[str, Any]] = []
    for runner, of_runner in (("mlx", [("tensor", b"a tensor")]), ("llamacpp", [("model", model)])):
        child = {**ollama_manifest(models, of_runner), "runner": runner}
        if not inline:
            digest = _ollama_blob(models, json.dumps(child).encode())
            child = {"mediaType": MANIFEST, "digest": digest, "runner": runner}
        children.append(child)
    data = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST_LIST, "manifests": children}).encode()
    digest = _ollama_blob(models, data)
    path = models / "manifests-v2" / "ollama.com" / "library" / name / tag
    if links:
        link(path, models / "blobs" / digest.replace(":", "-"))
    else:
        put(path, data)
    return models / "blobs" / f"sha256-{hashlib.sha256(model).hexdigest()}"


def ollama_manifest(models: Path, layers: Sequence[tuple[str, bytes]]) -> dict[str, Any]:
    """A manifest of these layers, whose blobs it writes."""
    config = {"mediaType": "application/vnd.docker.container.image.v1+json", "digest": _ollama_blob(models, b"{}")}
    listed = [
        {"mediaType": IMAGE + kind, "digest": _ollama_blob(models, data), "size": len(data)} for kind, data in layers
    ]
    return {"schemaVersion": 2, "mediaType": MANIFEST, "config": {**config, "size": 2}, "layers": listed}


def _ollama_blob(models: Path, data: bytes) -> str:
    sha256 = hashlib.sha256(data).hexdigest()
    put(models / "blobs" / f"sha256-{sha256}", data)
    return f"sha256:{sha256}"


def put_everywhere(home: Path, models: Mapping[str, bytes]) -> dict[str, Path]:
    """A model of each owner in ``models``, in a Linux user's home; paths by owner."""
    puts = {
        "zephyr-local": lambda data: put_in_store(home / ".local/share/zephyr-local/models", data),
        "huggingface": lambda data: put_in_hub_cache(home / ".cache/huggingface/hub", data),
        "lm-studio": lambda data: put_in_lm_studio(home / ".lmstudio/models", data),
        "gpt4all": lambda data: put_in_gpt4all(home / ".local/share/nomic.ai/GPT4All", data),
        "ollama": lambda data: put_in_ollama(home / ".ollama/models", data),
        "llama.cpp": lambda data: put_in_llama_cpp(home / ".cache/llama.cpp", data),
        "folder": lambda data: put(home / "models" / "mine.gguf", data),
    }
    return {owner: puts[owner](data) for owner, data in models.items()}
