"""From a name to a file on this machine, without asking the network."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_args

from zephyr_local.errors import InvalidInputError, ModelFileError, ModelNotFoundError
from zephyr_local.model_store.catalogue import Catalogue, CatalogueEntry, expanded, read_catalogue
from zephyr_local.model_store.names import (
    HubName,
    canonical_type,
    folded,
    is_hub_name,
    is_type,
    looks_like_path,
    parse_hub_name,
    split_type,
    type_in_name,
)
from zephyr_local.model_store.places import Found, FoundModel, Owner, Place, find_models, known_places
from zephyr_local.user_folders import data_folder

STORE_VARIABLE: Final = "ZEPHYR_LOCAL_STORE_FOLDER"
SEARCH_VARIABLE: Final = "ZEPHYR_LOCAL_SEARCH_FOLDERS"
_OWNERS: Final = get_args(Owner)
_MAX_SHOWN: Final = 6
_MAX_HOPS: Final = 8  # of aliases that point at aliases


@dataclass(frozen=True, slots=True)
class Resolved:
    """A file that a name stands for."""

    path: Path
    model: FoundModel | None = None
    """Where it was found; None for a path."""
    entry: CatalogueEntry | None = None
    """What the catalogue knows of it."""
    notices: tuple[str, ...] = ()


def store_folder() -> Path:
    """Where pulled models are put: OWNER/REPO/FILE."""
    value = os.environ.get(STORE_VARIABLE)
    return expanded(value) if value else data_folder() / "models"


def search_folders(catalogue: Catalogue) -> tuple[Path, ...]:
    """The user's own folders of models: the variable's, parted as PATH is, then those of ``models.toml``."""
    value = os.environ.get(SEARCH_VARIABLE, "")
    return (*(expanded(folder) for folder in value.split(os.pathsep) if folder), *catalogue.folders)


def places(catalogue: Catalogue) -> tuple[Place, ...]:
    """Where models are looked for."""
    return known_places(store=store_folder(), search_folders=search_folders(catalogue))


def models_here(catalogue: Catalogue | None = None) -> Found:
    """All models on this machine, wherever they lie."""
    return find_models(places(read_catalogue() if catalogue is None else catalogue))


def resolve(name: str) -> Resolved:
    """The file that ``name`` stands for: a path, ``hf:…``, an alias, the catalogue's, or a model found on this machine.

    Raises ModelNotFoundError that says what was looked for and how to get it, InvalidInputError for a name that cannot
    be one. A part of a split model that is not the first is left to who reads it.
    """
    if not name or "\0" in name:
        raise InvalidInputError("the model's name is empty or has a NUL", "Give a path or a name")
    if (path := existing_file(name)) is not None:
        return Resolved(path)
    if looks_like_path(name):
        raise ModelNotFoundError(
            f"there is no file {name}", "Check the path; zephyr-local models list tells what is on this machine"
        )
    catalogue = read_catalogue()
    target = _follow_aliases(name, catalogue)
    if target != name and (path := existing_file(target)) is not None:
        return Resolved(path)
    found = models_here(catalogue)
    wanted = what_is_wanted(target, catalogue)
    matches = list(matching(wanted, found.models))
    if not matches:
        raise _not_here(name, target, wanted, found)
    chosen = _choose(matches, wanted)
    return Resolved(chosen.path, chosen, wanted.entry or entry_of(chosen, catalogue), _notices(matches, chosen, wanted))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a name that is no path asks for."""

    text: str
    base: str
    """The name without a type."""
    file_type: str | None
    hub: HubName | None = None
    entry: CatalogueEntry | None = None


def what_is_wanted(name: str, catalogue: Catalogue) -> Wanted:
    """What a name means; raises InvalidInputError for an ``hf:`` name that is malformed."""
    if is_hub_name(name):
        hub = parse_hub_name(name)
        return Wanted(name, hub.repository, hub.file_type, hub, catalogue.entry_of_repository(hub.repository))
    base, file_type = split_type(name)
    return Wanted(name, base, file_type, None, catalogue.entry(base))


def matching(wanted: Wanted, models: Sequence[FoundModel]) -> Iterator[FoundModel]:
    """The models that a name may mean."""
    for model in models:
        if wanted.hub is not None:
            if _is_of_hub(model, wanted.hub):
                yield model
            continue
        base, file_type = base_and_type(model)
        if folded(wanted.text) in (folded(model.name), folded(model.repository or "")):
            yield model
            continue
        names = {folded(base), folded(model.repository or "")} - {""}
        if wanted.entry is not None:
            names |= {
                folded(wanted.entry.name)
                for repository in wanted.entry.gguf
                if (model.repository or "").casefold() == repository.casefold()
            }
        if folded(wanted.base) in names and wanted.file_type in (None, file_type):
            yield model


def base_and_type(model: FoundModel) -> tuple[str, str | None]:
    """A found model's name without its type, and the type, as far as its name tells."""
    if model.owner == "ollama":
        name, _, tag = model.name.rpartition(":")
        if is_type(tag):  # hf.co/OWNER/REPO:Q4_K_M
            return name, canonical_type(tag)
        base, file_type = type_in_name(tag)
        return f"{name}:{base}", file_type
    return type_in_name(model.name)


def entry_of(model: FoundModel, catalogue: Catalogue) -> CatalogueEntry | None:
    """The catalogue's entry for a model that was found, by its repository or its name."""
    if model.repository is not None and (entry := catalogue.entry_of_repository(model.repository)) is not None:
        return entry
    return catalogue.entry(base_and_type(model)[0])


def existing_file(name: str) -> Path | None:
    """The file at a path, None where there is none or the name cannot be one."""
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, ValueError, RuntimeError):
        return None


def _is_of_hub(model: FoundModel, hub: HubName) -> bool:
    if (model.repository or "").casefold() != hub.repository.casefold():
        return False
    if hub.revision is not None and (model.revision is None or not model.revision.startswith(hub.revision.lower())):
        return False
    if hub.file is not None:
        return model.path.as_posix().casefold().endswith("/" + hub.file.casefold())
    return hub.file_type in (None, base_and_type(model)[1])


def _follow_aliases(name: str, catalogue: Catalogue) -> str:
    for _ in range(_MAX_HOPS):
        if (target := catalogue.alias(name)) is not None:
            name = target
            continue
        base, file_type = split_type(name)
        target = catalogue.alias(base) if file_type else None
        if target is None:
            return name
        name = target if split_type(target)[1] else f"{target}:{file_type}"
    raise InvalidInputError(
        f"the alias {name} leads in a circle", "Remove one: zephyr-local models alias --remove NAME"
    )


def _choose(matches: Sequence[FoundModel], wanted: Wanted) -> FoundModel:
    """The best that fits the memory, the most telling owner first; where none fits, the smallest."""
    if wanted.hub is not None and wanted.hub.file is not None:
        return matches[0]
    ordered = sorted(matches, key=lambda model: (-model.size_bytes, _OWNERS.index(model.owner)))
    if len({model.size_bytes for model in ordered}) == 1:
        return ordered[0]
    return next((model for model in ordered if _fits(model)), ordered[-1])


def _fits(model: FoundModel) -> bool:
    from zephyr_local.gguf_check import check_runnable
    from zephyr_local.gguf_split import read_model
    from zephyr_local.hardware import read_cpu, read_memory
    from zephyr_local.memory.estimate import estimate_memory
    from zephyr_local.memory.shape import shape_of
    from zephyr_local.settings import EngineSettings

    available = read_memory().available_bytes
    try:
        gguf = read_model(model.path)
        check_runnable(gguf)
    except (ModelFileError, ModelNotFoundError):
        return False
    needed = estimate_memory(shape_of(gguf), EngineSettings(), read_cpu().features).needed_bytes
    return not available or needed <= available


def _notices(matches: Sequence[FoundModel], chosen: FoundModel, wanted: Wanted) -> tuple[str, ...]:
    others = sorted({base_and_type(model)[1] or model.name for model in matches if model.path != chosen.path})
    own = base_and_type(chosen)[1]
    if not others or wanted.file_type is not None:
        return ()
    took = own or chosen.name
    return (f"{wanted.text} is here as {', '.join(others)} too; took {took}, the largest that fits the memory",)


def _not_here(name: str, target: str, wanted: Wanted, found: Found) -> ModelNotFoundError:
    what = f"{name} is not on this machine" if name == target else f"{name}, which is {target}, is not on this machine"
    if wanted.hub is not None or wanted.entry is not None:
        return ModelNotFoundError(what, f"Get it: zephyr-local pull {target}")
    here = [model.name for model in found.models]
    shown = ", ".join(here[:_MAX_SHOWN]) + (f" and {len(here) - _MAX_SHOWN} more" if len(here) > _MAX_SHOWN else "")
    none_yet = "There are no models on this machine yet: zephyr-local pull zephyr-7b-beta"
    there_is = f"Here are: {shown}" if here else none_yet
    return ModelNotFoundError(
        f"{what}, and no model of that name is known", f"{there_is}; a question of one word goes after --prompt"
    )
