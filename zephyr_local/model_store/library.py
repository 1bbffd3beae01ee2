"""From a name to a file on this machine, without asking the network."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, get_args

from zephyr_local.errors import InvalidInputError, ModelFileError, ModelNotFoundError, OutputError
from zephyr_local.model_store.also_known import AlsoKnownModel, also_known_models
from zephyr_local.model_store.catalogue import (
    Catalogue,
    CatalogueEntry,
    expanded,
    read_catalogue,
)
from zephyr_local.model_store.names import (
    HubName,
    canonical_type,
    folded,
    is_hub_name,
    is_type,
    looks_like_path,
    parse_hub_name,
    shown_name,
    split_type,
    type_in_name,
)
from zephyr_local.model_store.places import Found, FoundModel, Owner, Place, find_models, known_places
from zephyr_local.settings import EngineSettings
from zephyr_local.user_folders import data_folder

if TYPE_CHECKING:
    from zephyr_local.model_store.registry import FileRecord

STORE_VARIABLE: Final = "ZEPHYR_LOCAL_STORE_FOLDER"
SEARCH_VARIABLE: Final = "ZEPHYR_LOCAL_SEARCH_FOLDERS"
_OWNERS: Final = get_args(Owner)
_SAME_AS_NONE: Final = "main"  # the revision that is pulled where none is asked for
_COMMIT_PREFIX: Final = re.compile(r"[0-9a-f]{7,40}", re.ASCII)  # git itself shows no fewer


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
    """All models on this machine, wherever they lie, with what the registry knows of those whose places tell less."""
    found = find_models(places(read_catalogue() if catalogue is None else catalogue))
    from zephyr_local.model_store.registry import all_also_known, all_recorded

    try:
        records, names = all_recorded(), all_also_known()
    except OutputError as error:  # it is a memory: the files are there without it
        return replace(found, notices=(*found.notices, error.problem))
    models = tuple(_as_recorded(model, records.get(model.path.absolute())) for model in found.models)
    return replace(found, models=(*models, *also_known_models(models, records, names)))


def resolve(name: str, settings: EngineSettings | None = None) -> Resolved:
    """The file that ``name`` stands for: a path, ``hf:…``, an alias, the catalogue's, or a model found on this machine.

    Of several types the largest that fits the memory with ``settings`` is taken. Raises ModelNotFoundError that says
    what was looked for and how to get it, InvalidInputError for a name that cannot be one. A path to a folder, or to a
    part of a split model that is not the first, is left to who reads it.
    """
    if not name.strip() or "\0" in name:
        raise InvalidInputError("the model's name is empty or has a NUL", "Give a path or a name")
    if (path := existing_file(name)) is not None:
        return Resolved(path)
    if looks_like_path(name):
        return Resolved(_require_there(expanded(name), shown_name(name)))
    catalogue = read_catalogue()
    target = without_aliases(name, catalogue)
    if target != name and looks_like_path(target):
        path = catalogue.path.parent / expanded(target)
        return Resolved(_require_there(path, f"{target}, which {name} stands for"))
    found = models_here(catalogue)
    wanted = what_is_wanted(target, catalogue)
    matches = list(matching(wanted, found.models))
    if not matches:
        if _is_folder(Path(name)):
            return Resolved(Path(name))
        raise _not_here(name, target, wanted, found)
    chosen, notices = _choose(matches, wanted, settings or EngineSettings())
    return Resolved(chosen.path, chosen, wanted.entry or entry_of(chosen, catalogue), notices)


def without_aliases(name: str, catalogue: Catalogue) -> str:
    """What a name stands for when the user's aliases are followed to the end: a name, ``hf:…`` or a path.

    A type behind an alias goes before the one that the alias gives. An alias for its own name with a type says which
    type is meant. Raises InvalidInputError for aliases that lead in a circle, and for a type of what is one file.
    """
    followed: set[str] = set()
    left = name
    while not is_hub_name(left) and not looks_like_path(left):
        base, file_type = left, None
        if catalogue.alias(base) is None:
            base, file_type = split_type(left)
        target = catalogue.alias(base)
        if target is None:
            break
        if folded(base) in followed:
            problem = f"the alias {shown_name(name)} leads in a circle"
            raise InvalidInputError(problem, "Remove one: zephyr-local models alias --remove NAME")
        followed.add(folded(base))
        left = target if file_type is None else _with_type(target, file_type, base)
        if folded(split_type(target)[0]) == folded(base):
            break
    return left


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
    plain, _, revision = name.partition("@")
    if revision and (entry := catalogue.entry(split_type(plain)[0])) is not None and entry.gguf:
        return what_is_wanted(str(HubName(entry.gguf[0], None, split_type(plain)[1], revision)), catalogue)
    name = name.replace(os.sep, "/")  # a path on Windows has turned the slash of OWNER/REPO round
    base, file_type = split_type(name)
    if file_type is None and catalogue.entry(base) is None:
        stem, in_stem = type_in_name(base)  # the catalogue's name as it begins its files' names
        if catalogue.entry(stem) is not None:
            base, file_type = stem, in_stem
    return Wanted(name, base, file_type, None, catalogue.entry(base) or catalogue.entry_of_repository(base))


def matching(wanted: Wanted, models: Sequence[FoundModel]) -> Iterator[FoundModel]:
    """The models that a name may mean, each once, however many names it has."""
    seen: set[Path] = set()
    for model in models:
        if model.path in seen:
            continue
        if _is_of_hub(model, wanted.hub) if wanted.hub is not None else _is_called(model, wanted):
            seen.add(model.path)
            yield model


def base_and_type(model: FoundModel) -> tuple[str, str | None]:
    """A found model's name without its type, and the type, as far as its name tells; Ollama's ``latest`` is none."""
    if model.owner == "ollama":
        name, _, tag = model.name.rpartition(":")
        if is_type(tag):  # hf.co/OWNER/REPO:Q4_K_M
            return name, canonical_type(tag)
        if tag == "latest":  # what Ollama takes where no tag is given
            return name, None
        base, file_type = type_in_name(tag)
        return f"{name}:{base}", file_type
    return type_in_name(model.name)


def entry_of(model: FoundModel, catalogue: Catalogue) -> CatalogueEntry | None:
    """The catalogue's entry for a model that was found, by its repository or its name."""
    if model.repository is not None and (entry := catalogue.entry_of_repository(model.repository)) is not None:
        return entry
    return catalogue.entry(base_and_type(model)[0])


def existing_file(name: str) -> Path | None:
    """The file at a path; None where there is none, where there is a folder, and where the name cannot be a path."""
    try:
        path = Path(name).expanduser()
        return path if path.exists() and not path.is_dir() else None
    except (OSError, ValueError, RuntimeError):
        return None


def _require_there(path: Path, what: str) -> Path:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        remedy = "Check the path; zephyr-local models list tells what is on this machine"
        raise ModelNotFoundError(f"there is no file {what}", remedy) from None
    except OSError as error:
        remedy = "Check the path and the permissions of its folders"
        raise ModelNotFoundError(f"{what} cannot be reached: {error.strerror or error}", remedy) from None
    return path


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _as_recorded(model: FoundModel, record: FileRecord | None) -> FoundModel:
    if record is None or not record.counts_for(model.path):
        return model
    is_same = (model.repository or record.repository or "").casefold() == (record.repository or "").casefold()
    return replace(
        model,
        repository=model.repository or record.repository,
        revision=model.revision or (record.revision if is_same else None),
        sha256=model.sha256 or (record.sha256 if len(model.files) == 1 else None),
    )


def _with_type(target: str, file_type: str, alias: str) -> str:
    hub = parse_hub_name(target) if is_hub_name(target) else None
    if looks_like_path(target) or (hub is not None and hub.file is not None):
        raise InvalidInputError(
            f"the alias {alias} stands for the file {target}, which is of one type", f"Leave out :{file_type.lower()}"
        )
    return f"{split_type(target)[0]}:{file_type.lower()}" if hub is None else str(replace(hub, file_type=file_type))


def _is_called(model: FoundModel, wanted: Wanted) -> bool:
    base, file_type = base_and_type(model)
    repository = model.repository or ""
    if folded(wanted.text) and folded(wanted.text) in (folded(model.name), folded(repository)):
        return True
    names = {folded(base), folded(repository)}
    if wanted.entry is not None and repository.casefold() in (known.casefold() for known in wanted.entry.gguf):
        names.add(folded(wanted.entry.name))
    return folded(wanted.base) in names - {""} and wanted.file_type in (None, file_type)


def _is_of_hub(model: FoundModel, hub: HubName) -> bool:
    if model.repository is None or model.repository.casefold() != hub.repository.casefold():
        return False
    if hub.revision not in (None, _SAME_AS_NONE) and not _is_of_revision(model, hub.revision):
        return False
    if hub.file is not None:
        if isinstance(model, AlsoKnownModel):
            return hub.file.casefold() in (model.name.casefold(), *map(str.casefold, model.hub_files))
        # Below a folder of the repository's name, or the Hugging Face cache's of the commit.
        folders = (model.repository.rpartition("/")[2], model.revision)
        endings = tuple(f"/{folder}/{hub.file}".casefold() for folder in folders if folder)
        is_stem = hub.file.casefold() == model.name.casefold()
        return is_stem or any(path.as_posix().casefold().endswith(endings) for path in model.files)
    return hub.file_type in (None, base_and_type(model)[1])


def _is_of_revision(model: FoundModel, revision: str) -> bool:
    """A commit may be given by its beginning; which commit a branch is at cannot be told without the network."""
    commit = revision.lower()
    return _COMMIT_PREFIX.fullmatch(commit) is not None and (model.revision or "").startswith(commit)


def _choose(
    matches: Sequence[FoundModel], wanted: Wanted, settings: EngineSettings
) -> tuple[FoundModel, tuple[str, ...]]:
    """The largest that fits the memory with these settings, the most telling owner's first, and what to say about it.

    Where none fits, the smallest; where a file is named, the first; what cannot be loaded only if nothing else can.
    """
    if len(matches) == 1:
        return matches[0], ()
    from zephyr_local.hardware import read_cpu, read_memory

    available, features = read_memory().available_bytes, read_cpu().features
    is_one_file = wanted.hub is not None and wanted.hub.file is not None
    ordered = list(matches)
    if not is_one_file:
        ordered.sort(key=lambda model: (-model.size_bytes, _OWNERS.index(model.owner)))
    smallest: FoundModel | None = None
    unusable: list[FoundModel] = []
    notices: list[str] = []
    for model in ordered:
        try:
            needed = _needed_bytes(model, settings, features)
        except (ModelFileError, ModelNotFoundError) as error:
            unusable.append(model)
            notices.append(f"{model.path} is passed over: {error.problem}")
            continue
        if is_one_file or not available or needed <= available:
            why = "the largest that fits the memory"
            return model, (*notices, *_types_notice(matches, unusable, model, wanted, why))
        if smallest is None or model.size_bytes < smallest.size_bytes:
            smallest = model
    if smallest is None:
        return ordered[0], ()  # whose error the reader tells
    why = "the smallest, as none fits the memory"
    return smallest, (*notices, *_types_notice(matches, unusable, smallest, wanted, why))


def _needed_bytes(model: FoundModel, settings: EngineSettings, features: Set[str]) -> int:
    """The memory that a model takes with these settings, all of it on the CPU. Raises where it cannot be loaded."""
    from zephyr_local.gguf_check import check_runnable
    from zephyr_local.gguf_split import read_model
    from zephyr_local.memory.estimate import estimate_memory
    from zephyr_local.memory.shape import shape_of

    gguf = read_model(model.path)
    check_runnable(gguf)
    return estimate_memory(shape_of(gguf), settings, features).needed_bytes


def assumed_template(resolved: Resolved) -> str | None:
    """``zephyr`` where the file brings no chat template and only what the model is called where it lies says Zephyr.

    Ollama's files are named by their digests. Where the file's own name or its header says so, the engine sees it.
    """
    from zephyr_local.gguf_split import read_model

    model = resolved.model
    if model is None or "zephyr" not in model.name.casefold() or "zephyr" in resolved.path.name.casefold():
        return None
    try:
        brings_one = read_model(resolved.path).text("tokenizer.chat_template").strip()
    except (ModelFileError, ModelNotFoundError):  # which the load will tell
        return None
    return None if brings_one else "zephyr"


def _types_notice(
    matches: Sequence[FoundModel], unusable: Sequence[FoundModel], chosen: FoundModel, wanted: Wanted, why: str
) -> tuple[str, ...]:
    took = _label(chosen)
    others = sorted({_label(model) for model in matches if model not in unusable} - {took})
    if not others:
        return ()
    return (f"{wanted.text} is here as {', '.join(others)} too; took {took}, {why}",)


def _label(model: FoundModel) -> str:
    return base_and_type(model)[1] or model.name


def _not_here(name: str, target: str, wanted: Wanted, found: Found) -> ModelNotFoundError:
    from zephyr_local.model_store.not_here import not_here  # which needs what stands above

    return not_here(name, target, wanted, found)
