"""What is told of a name that no model on this machine has: how to get it, what may have been meant, what is here."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from zephyr_local.errors import InvalidInputError, ModelNotFoundError
from zephyr_local.model_store.catalogue import Catalogue, read_catalogue, require_repository
from zephyr_local.model_store.library import Wanted, base_and_type, matching
from zephyr_local.model_store.names import (
    BUNDLED_NAME,
    folded,
    is_bundled_name,
    shown_name,
    split_type,
    without_hub_host,
)
from zephyr_local.model_store.places import Found, FoundModel

_MAX_SHOWN: Final = 6
_MAX_COMPARED: Final = 100
_NEAR: Final = 0.75  # of 1; a letter that is wrong in a short name, two in a long one


def not_here(name: str, target: str, wanted: Wanted, found: Found) -> ModelNotFoundError:
    """What is told of a name that no model here has; ``target`` is what it is an alias of, or itself."""
    if is_bundled_name(target):
        problem = f"{shown_name(name)} is the bundled model, and is not taken by name here"
        return ModelNotFoundError(problem, "Leave out the model, or give the path of a .gguf file")
    shown = shown_name(name) if name == target else f"{shown_name(name)}, which is {shown_name(target)},"
    what = f"{shown} is not on this machine"
    if (known := _pull_name(wanted)) is not None:
        is_certain = wanted.hub is not None or wanted.entry is not None
        get_it = "Get it" if is_certain else "If it is a repository of the hub"
        hub = None if wanted.hub is None else replace(wanted.hub, file_type=None)
        of_any_type = matching(replace(wanted, file_type=None, hub=hub), found.models) if wanted.file_type else ()
        other_types = sorted({base_and_type(model)[1] or model.name for model in of_any_type})
        here = f"; here it is as {', '.join(other_types)}" if other_types else ""
        return ModelNotFoundError(what, f"{get_it}: zephyr-local pull {shown_name(known)}{here}")
    if wanted.entry is not None:
        remedy = f"models.toml names no repository of it: zephyr-local models add {wanted.entry.name} OWNER/REPO"
        return ModelNotFoundError(what, remedy)
    if wanted.file_type is None and (mistaken := mistaken_type(name)) is not None:
        return ModelNotFoundError(*mistaken)
    names = list(dict.fromkeys(shown_name(model.name) for model in found.models))
    more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
    none_yet = "There are no models on this machine yet: zephyr-local pull zephyr-7b-beta"
    there_is = f"Here are: {', '.join(names[:_MAX_SHOWN])}{more}" if names else none_yet
    near = nearest_name(target, read_catalogue(), found.models)
    meant = f"Did you mean {shown_name(near)}? " if near is not None else ""
    return ModelNotFoundError(f"{what}, and no model of that name is known", f"{meant}{there_is}")


def nearest_name(name: str, catalogue: Catalogue, models: Sequence[FoundModel]) -> str | None:
    """The name of a model, an alias or the catalogue that is spelled most like ``name``; None where none is near."""
    known = [BUNDLED_NAME, *(entry.name for entry in catalogue.entries.values())]
    known += [alias for alias, _ in catalogue.aliases.values()]
    for model in models:
        known += [base_and_type(model)[0], model.name]
    spelled = {folded(text): text for text in reversed(known) if text and len(text) <= _MAX_COMPARED}
    base = split_type(name)[0]
    if len(base) > _MAX_COMPARED:  # the comparison takes long, and none is of that length
        return None
    near = difflib.get_close_matches(folded(base), spelled, n=1, cutoff=_NEAR)
    return spelled[near[0]] if near else None


def mistaken_type(name: str) -> tuple[str, str] | None:
    """What is wrong with a catalogue's name that has something else than a type behind its colon, and the remedy."""
    base, colon, last = name.rpartition(":")
    entry = read_catalogue().entry(base) if colon and last else None
    if entry is None:
        return None
    examples = " or ".join(f"{entry.name}:{file_type}" for file_type in ("q4_k_m", "q8_0"))
    problem = f"{shown_name(last)!r} in {shown_name(name)!r} is not a type that is known"
    return problem, f"Write one that is, such as {examples}"


def _pull_name(wanted: Wanted) -> str | None:
    """What to pull for a name; None where it can be no repository's, or the catalogue names none."""
    if wanted.hub is not None:
        return str(wanted.hub)
    file_type = f":{wanted.file_type.lower()}" if wanted.file_type else ""
    if wanted.entry is not None and folded(wanted.base) == folded(wanted.entry.name):
        return f"{wanted.entry.name}{file_type}" if wanted.entry.gguf or wanted.entry.checkpoint else None
    repository = without_hub_host(wanted.base) or wanted.base
    try:
        return f"hf:{require_repository(repository)}{file_type}"
    except InvalidInputError:
        return None
