"""Models that are known by name: the package's few, the user's own, the user's aliases and folders."""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from zephyr_local.configuration import parse_toml, read_text
from zephyr_local.errors import InvalidInputError
from zephyr_local.model_store.names import (
    BUNDLED_NAME,
    folded,
    is_bundled_name,
    is_hub_name,
    looks_like_path,
    parse_hub_name,
)
from zephyr_local.user_folders import config_folder

FILE_NAME: Final = "models.toml"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}", re.ASCII)
_REPOSITORY: Final = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_FIX_IT: Final = "Correct the file"
_TEXTS: Final = ("title", "licence", "checkpoint", "template", "prompt")
_MAX_OF_SHAPE: Final[Mapping[str, int]] = {  # what gguf_check allows
    "n_layer": 512,
    "n_embd": 1 << 16,
    "n_head": 1024,
    "n_head_kv": 1024,
    "n_ff": 1 << 20,
    "n_vocab": 1 << 20,
    "n_ctx_train": 1 << 20,
}
SHAPE_KEYS: Final = tuple(_MAX_OF_SHAPE)
_MAX_SHOWN: Final = 60
_MAX_TARGET: Final = 4096


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
    """Folded name → the alias as it was written, and its target; a relative path counts from the file's folder."""
    folders: tuple[Path, ...] = ()
    """The user's own folders of models."""

    def entry(self, name: str) -> CatalogueEntry | None:
        return self.entries.get(folded(name))

    def entry_of_repository(self, repository: str) -> CatalogueEntry | None:
        """The entry that names a repository."""
        wanted = repository.casefold()
        for entry in self.entries.values():
            if any(wanted == known.casefold() for known in (*entry.gguf, entry.checkpoint) if known):
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
    try:
        top = parse_toml(text, path)
    except InvalidInputError as error:
        raise InvalidInputError(error.problem, _FIX_IT) from None
    if strange := set(top) - {"models", "aliases", "folders"}:
        problem = f"{path}: {_cut(min(strange))} is not known; models, aliases and folders are"
        raise InvalidInputError(problem, _FIX_IT)
    own = _entries(top, path, is_own=True)
    return Catalogue(
        path,
        own | {name: entry for name, entry in entries.items() if name not in own},
        _aliases(top, path),
        _folders(top, path),
    )


def require_name(name: str) -> str:
    """``name``, which is to be a model's or an alias; raises InvalidInputError."""
    if not _NAME.fullmatch(name) or looks_like_path(name):
        raise InvalidInputError(
            f"{_cut(name)!r} cannot be a model's name",
            "Use letters, digits, '.', '_' and '-', at most 96 of them, none of these first, and no .gguf last",
        )
    return name


def require_free_name(name: str) -> str:
    """``name``, which a user gives to a model or an alias; raises InvalidInputError, also for the bundled model's."""
    if is_bundled_name(name):
        raise InvalidInputError(f"{BUNDLED_NAME} is the bundled model's name", "Choose another name")
    return require_name(name)


def require_repository(repository: str) -> str:
    """``repository``, which is to be OWNER/REPO; raises InvalidInputError."""
    if not _REPOSITORY.fullmatch(repository):
        raise InvalidInputError(f"{_cut(repository)!r} is not a repository", "Write OWNER/REPO")
    return repository


def _entries(top: Mapping[str, Any], path: Path, *, is_own: bool) -> dict[str, CatalogueEntry]:
    found: dict[str, CatalogueEntry] = {}
    for name, table in _table(top.get("models", {}), f"{path}: models").items():
        _checked(require_name, name, f"{path}: models")
        if (known := found.get(folded(name))) is not None:
            raise InvalidInputError(f"{path}: models.{name} and models.{known.name} are the same name", _FIX_IT)
        found[folded(name)] = _entry(name, table, f"{path}: models.{name}", is_own=is_own)
    return found


def _entry(name: str, table: object, where: str, *, is_own: bool) -> CatalogueEntry:
    values = _table(table, where)
    if strange := set(values) - {*_TEXTS, "gguf", "shape"}:
        known = ", ".join((*_TEXTS, "gguf", "shape"))
        raise InvalidInputError(f"{where}.{_cut(min(strange))} is not known; {known} are", _FIX_IT)
    texts = {key: values[key] for key in _TEXTS if key in values}
    for key, value in texts.items():
        if not isinstance(value, str):
            raise InvalidInputError(f"{where}.{key} is no text", _FIX_IT)
    repositories = values.get("gguf", [])
    if not isinstance(repositories, list) or not all(isinstance(text, str) for text in repositories):
        raise InvalidInputError(f"{where}.gguf is no list of repositories", _FIX_IT)
    for repository in repositories:
        _checked(require_repository, repository, f"{where}.gguf")
    if "checkpoint" in texts:
        _checked(require_repository, texts["checkpoint"], f"{where}.checkpoint")
    shape = _shape(values["shape"], f"{where}.shape") if "shape" in values else None
    return CatalogueEntry(name, **texts, gguf=tuple(repositories), shape=shape, is_own=is_own)


def _shape(value: object, where: str) -> Mapping[str, int]:
    shape = _table(value, where)
    if strange := set(shape) - set(SHAPE_KEYS):
        raise InvalidInputError(f"{where}.{_cut(min(strange))} is not known; {', '.join(SHAPE_KEYS)} are", _FIX_IT)
    for key, limit in _MAX_OF_SHAPE.items():
        if key not in shape:
            raise InvalidInputError(f"{where}.{key} is missing", _FIX_IT)
        number = shape[key]
        if type(number) is not int or not 0 < number <= limit:
            raise InvalidInputError(f"{where}.{key} is no whole number from 1 to {limit}", _FIX_IT)
    for key, whole in (("n_head", "n_embd"), ("n_head_kv", "n_head")):
        if shape[whole] % shape[key]:
            raise InvalidInputError(f"{where}.{key} does not divide {whole}", _FIX_IT)
    return shape


def _aliases(top: Mapping[str, Any], path: Path) -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    for name, target in _table(top.get("aliases", {}), f"{path}: aliases").items():
        _checked(require_name, name, f"{path}: aliases")
        where = f"{path}: aliases.{name}"
        if not isinstance(target, str) or not folded(target) or "\0" in target or len(target) > _MAX_TARGET:
            raise InvalidInputError(f"{where} is not the name of a model", _FIX_IT)
        if is_hub_name(target):
            _checked(parse_hub_name, target, where)
        if folded(name) in found:
            raise InvalidInputError(f"{where} and aliases.{found[folded(name)][0]} are the same name", _FIX_IT)
        found[folded(name)] = (name, target)
    return found


def _checked(check: Callable[[str], object], text: str, where: str) -> None:
    """Raise what ``check`` raises, with the place where the text stands."""
    try:
        check(text)
    except InvalidInputError as error:
        raise InvalidInputError(f"{where}: {error.problem}", error.remedy) from None


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


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
