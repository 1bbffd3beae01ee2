"""What a pull is asked for: from a name to a repository of the hub."""

from __future__ import annotations

from dataclasses import dataclass, replace

from zephyr_local.errors import InvalidInputError
from zephyr_local.model_store.catalogue import Catalogue, CatalogueEntry, read_catalogue
from zephyr_local.model_store.hub import check_file_path, check_revision, parse_repository
from zephyr_local.model_store.library import what_is_wanted, without_aliases
from zephyr_local.model_store.names import (
    HubName,
    folded,
    is_hub_name,
    looks_like_path,
    parse_hub_name,
    shown_name,
    without_hub_host,
)
from zephyr_local.model_store.not_here import mistaken_type


@dataclass(frozen=True, slots=True)
class Wish:
    """What is pulled, and from where."""

    name: str
    hub: HubName
    entry: CatalogueEntry | None


def understand(name: str, *, is_checkpoint: bool = False) -> Wish:
    """From a name to a repository; raises InvalidInputError where it names none."""
    catalogue = read_catalogue()
    hub, entry = _repository_of(name, catalogue, is_checkpoint=is_checkpoint)
    if hub is None:
        if (mistaken := mistaken_type(name)) is not None:
            raise InvalidInputError(*mistaken)
        known = ", ".join(found.name for found in catalogue.entries.values())
        raise InvalidInputError(f"{shown_name(name)!r} is not known", f"Give hf:OWNER/REPO, or one of: {known}")
    parse_repository(hub.repository)
    if hub.file is not None:
        check_file_path(hub.file)
    if hub.revision is not None:
        check_revision(hub.revision)
    return Wish(name, hub, entry)


def _repository_of(
    name: str, catalogue: Catalogue, *, is_checkpoint: bool
) -> tuple[HubName | None, CatalogueEntry | None]:
    plain, at, revision = name.partition("@")
    target = without_aliases(plain, catalogue)
    if target != plain and looks_like_path(target):
        raise InvalidInputError(
            f"{shown_name(name)} stands for the file {target}", "A file is not pulled; chat with it"
        )
    wanted = None if is_hub_name(target) else what_is_wanted(target, catalogue)
    entry = None if wanted is None else wanted.entry
    if wanted is not None and entry is not None and folded(wanted.base) == folded(entry.name):
        repository = (entry.checkpoint if is_checkpoint else None) or next(iter(entry.gguf), None)
        if repository is None:
            raise InvalidInputError(f"the catalogue names no repository of {entry.name}'s GGUFs", "Give hf:OWNER/REPO")
        hub = HubName(repository, None, wanted.file_type)
    elif is_hub_name(target) or "/" in target:
        hub = parse_hub_name(without_hub_host(target) or target)
        entry = catalogue.entry_of_repository(hub.repository)
    else:
        return None, None
    return (replace(hub, revision=revision) if at else hub), entry
