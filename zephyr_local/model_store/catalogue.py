"""Models that are known by name: the package's few, the user's own, the user's aliases and folders."""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from zephyr_local.configuration import parse_toml, read_text
from zephyr_local.errors import InvalidInputError
from zephyr_local.model_store.names import folded, is_hub_name
from zephyr_local.user_folders import config_folder

FILE_NAME: Final = "models.toml"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}", re.ASCII)
_REPOSITORY: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_FIX_IT: Final = "Correct the file, or remove the entry with zephyr-local models"
_TEXTS: Final = ("title", "licence", "checkpoint", "template", "prompt")
SHAPE_KEYS: Final = ("n_layer", "n_embd", "n_head", "n_head_kv", "n_ff", "n_vocab", "n_ctx_train")
_MAX_NUMBER: Final = 1 << 24


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """What is known of a model by its name."""

    name: str
    title: str = ""
    licence: str = ""
    """What its makers say; empty where nobody told."""
    checkpoint: str | None = None
    """The repository of its unquantized weights."""
    template: str | None = None
    """The name of its chat template, where that is one that we know."""
    prompt: str = ""
    gguf: tuple[str, ...] = ()
    """Repositories of GGUFs, the preferred first."""
    shape: Mapping[str, int] | None = None
    """By ``SHAPE_KEYS``; None where it is not known before a file is there."""
    is_own: bool = False
    """The user added it."""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Entries and aliases by their folded names; the user's come before the package's."""

    path: Path
    """The user's file; it need not exist."""
    entries: Mapping[str, CatalogueEntry] = field(default_factory=dict)
    aliases: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Folded name → the alias as it was written, and its target."""
    folders: tuple[Path, ...] = ()
    """The user's own folders of models."""

    def entry(self, name: str) -> CatalogueEntry | None:
        return self.entries.get(folded(name))

    def entry_of_repository(self, repository: str) -> CatalogueEntry | None:
        """The entry that names a repository."""
        wanted = repository.casefold()
        for entry in self.entries.values():
            if wanted in {known.casefold() for known in (*entry.gguf, entry.checkpoint or "")}:
                return entry
        return None

    def alias(self, name: str) -> str | None:
        """What an alias stands for."""
        found = self.aliases.get(folded(name))
        return found[1] if found else None


def catalogue_path() -> Path:
    """The user's own entries and aliases."""
    return config_folder() / FILE_NAME


def read_catalogue(path: Path | None = None) -> Catalogue:
    """The package's catalogue with the user's over it; raises InvalidInputError that names the file and the entry."""
    path = catalogue_path() if path is None else path
    packaged = importlib.resources.files("zephyr_local.model_store").joinpath("catalogue.toml").read_text("utf-8")
    entries = _entries(parse_toml(packaged, Path("catalogue.toml")), Path("catalogue.toml"), is_own=False)
    text = read_text(path)
    if text is None:
        return Catalogue(path, entries)
    top = parse_toml(text, path)
    if strange := set(top) - {"models", "aliases", "folders"}:
        raise InvalidInputError(f"{path}: {sorted(strange)[0]} is not known; models, aliases and folders are", _FIX_IT)
    return Catalogue(path, entries | _entries(top, path, is_own=True), _aliases(top, path), _folders(top, path))


def require_name(name: str) -> str:
    """``name``, which is to be a model's or an alias; raises InvalidInputError."""
    if not _NAME.fullmatch(name):
        raise InvalidInputError(
            f"{name[:100]!r} cannot be a model's name", "Use letters, digits, '.', '_' and '-', at most 96 of them"
        )
    return name


def require_repository(repository: str) -> str:
    """``repository``, which is to be OWNER/REPO; raises InvalidInputError."""
    if not _REPOSITORY.fullmatch(repository):
        raise InvalidInputError(f"{repository[:200]!r} is not a repository", "Write OWNER/REPO")
    return repository


def _entries(top: Mapping[str, Any], path: Path, *, is_own: bool) -> dict[str, CatalogueEntry]:
    found = {}
    for name, table in _table(top.get("models", {}), f"{path}: models").items():
        where = f"{path}: models.{name}"
        require_name(name)
        values = _table(table, where)
        if strange := set(values) - {*_TEXTS, "gguf", "shape"}:
            raise InvalidInputError(f"{where}.{sorted(strange)[0]} is not known", _FIX_IT)
        texts = {key: values[key] for key in _TEXTS if key in values}
        for key, value in texts.items():
            if not isinstance(value, str):
                raise InvalidInputError(f"{where}.{key} is no text", _FIX_IT)
        repositories = values.get("gguf", [])
        if not isinstance(repositories, list) or not all(isinstance(text, str) for text in repositories):
            raise InvalidInputError(f"{where}.gguf is no list of repositories", _FIX_IT)
        for repository in [*repositories, *filter(None, [texts.get("checkpoint")])]:
            require_repository(repository)
        entry = CatalogueEntry(
            name, **texts, gguf=tuple(repositories), shape=_shape(values.get("shape"), where), is_own=is_own
        )
        found[folded(name)] = entry
    return found


def _shape(value: object, where: str) -> Mapping[str, int] | None:
    if value is None:
        return None
    shape = _table(value, f"{where}.shape")
    if set(shape) != set(SHAPE_KEYS) or not all(type(n) is int and 0 < n < _MAX_NUMBER for n in shape.values()):
        raise InvalidInputError(f"{where}.shape is not {', '.join(SHAPE_KEYS)}, each a whole number above 0", _FIX_IT)
    return shape


def _aliases(top: Mapping[str, Any], path: Path) -> dict[str, tuple[str, str]]:
    found = {}
    for name, target in _table(top.get("aliases", {}), f"{path}: aliases").items():
        require_name(name)
        if not isinstance(target, str) or not target or (is_hub_name(name)):
            raise InvalidInputError(f"{path}: aliases.{name} is not the name of a model", _FIX_IT)
        found[folded(name)] = (name, target)
    return found


def _folders(top: Mapping[str, Any], path: Path) -> tuple[Path, ...]:
    folders = top.get("folders", [])
    if not isinstance(folders, list) or not all(
        isinstance(text, str) and text and "\0" not in text for text in folders
    ):
        raise InvalidInputError(f"{path}: folders is no list of folders", _FIX_IT)
    return tuple(path.parent / expanded(text) for text in folders)


def expanded(text: str) -> Path:
    """A path as the user wrote it, with ``~`` resolved where that is possible."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # no home folder is known
        return Path(text)


def _table(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidInputError(f"{where} is no table", _FIX_IT)
    return value
