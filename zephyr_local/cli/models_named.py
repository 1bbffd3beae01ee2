"""The models that a name means where a verb is about their files: all of that name, and not the one that fits best."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zephyr_local.errors import ModelNotFoundError

if TYPE_CHECKING:
    from zephyr_local.model_store.catalogue import Catalogue
    from zephyr_local.model_store.places import FoundModel


@dataclass(frozen=True, slots=True)
class Named:
    """What a name means here."""

    models: tuple[FoundModel, ...]
    file: Path | None = None
    """The file, where the name is a path; with no ``models`` where none was found there."""


def models_named(name: str, catalogue: Catalogue, models: tuple[FoundModel, ...]) -> Named:
    """The models among ``models`` that a path, an alias or a name means; raises ModelNotFoundError where none is."""
    from zephyr_local.model_store.catalogue import expanded
    from zephyr_local.model_store.library import existing_file, matching, what_is_wanted, without_aliases
    from zephyr_local.model_store.names import looks_like_path, shown_name

    path = existing_file(name)
    target = name if path is not None else without_aliases(name, catalogue)
    if target != name and looks_like_path(target):
        path = existing_file(str(catalogue.path.parent / expanded(target)))
    if path is not None:
        return Named(models_with(path, models), path)
    found: tuple[FoundModel, ...] = ()
    if not looks_like_path(target):
        found = tuple(matching(what_is_wanted(target, catalogue), models))
    if not found:
        raise ModelNotFoundError(
            f"there is no model {shown_name(name)}", "zephyr-local models list tells what is on this machine"
        )
    return Named(found)


def models_with(path: Path, models: tuple[FoundModel, ...]) -> tuple[FoundModel, ...]:
    """Those that a file is of, where it lies as they have it or by another way there."""
    return tuple(model for model in models if any(_is_same(file, path) for file in model.files))


def _is_same(file: Path, path: Path) -> bool:
    try:
        return file.samefile(path)
    except OSError:  # gone since
        return False
