"""`zephyr-local models rm`: never what another tool owns, unless told twice."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from zephyr_local.cli.models_named import models_named
from zephyr_local.cli.models_told import on_a_line
from zephyr_local.cli.notice import show_notice
from zephyr_local.errors import InvalidInputError, OutputError

if TYPE_CHECKING:
    from zephyr_local.model_store.catalogue import Catalogue
    from zephyr_local.model_store.places import FoundModel, Owner

_OURS = "zephyr-local"


@click.command("rm", short_help="Remove a model.")
@click.argument("name")
@click.option(
    "--also-from", metavar="OWNER", help="The model is another tool's (lm-studio, gpt4all, …): remove it there."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def remove(name: str, also_from: str | None, yes: bool, as_json: bool) -> None:
    """Remove the model NAME, which was pulled; on a terminal it asks before. What another tool keeps needs --also-from
    OWNER, and a yes.

    The JSON object has removed (paths) and size_bytes.
    """
    from zephyr_local.memory.plan import readable
    from zephyr_local.model_store.catalogue import read_catalogue

    catalogue = read_catalogue()
    model = _the_one(name, also_from, catalogue)
    owner = _owner(model, catalogue)
    size = readable(model.size_bytes)
    if owner != _OURS:
        _require_told(model, owner, also_from)
        if not yes and not (sys.stdin is not None and sys.stdin.isatty()):
            raise InvalidInputError(f"{model.name} is {owner}'s", "Add --yes to remove it without being asked")
        if not yes:
            click.confirm(f"Remove {on_a_line(model.path)} ({size}), which is {owner}'s?", abort=True, err=True)
    elif also_from not in (None, _OURS):
        raise InvalidInputError(f"{model.name} is zephyr-local's own", "Leave --also-from out")
    elif not yes and sys.stdin is not None and sys.stdin.isatty():
        if (alias := _alias_in(name, catalogue)) is not None:
            click.echo(
                f"{alias} is an alias of it; zephyr-local models alias --remove {alias} removes the alias alone.",
                err=True,
            )
        click.confirm(f"Remove {on_a_line(model.path)} ({size})?", abort=True, err=True)
    _remove_files(model)
    if as_json:
        click.echo(json.dumps({"removed": [str(path) for path in model.files], "size_bytes": model.size_bytes}))
    else:
        click.echo(f"Removed {on_a_line(model.path)}, {size}.", err=True)


def _the_one(name: str, also_from: str | None, catalogue: Catalogue) -> FoundModel:
    """The model that a name means, which must be one alone; of several the one that is ours, or the named owner's."""
    from zephyr_local.model_store.library import models_here
    from zephyr_local.model_store.places import Owner

    if also_from is not None and also_from not in get_args(Owner):
        raise InvalidInputError(f"{also_from!r} is no owner", f"Owners are: {', '.join(get_args(Owner))}")
    named = models_named(name, catalogue, models_here(catalogue).models)
    if not named.models:
        raise InvalidInputError(f"{named.file} is in no place of models", "Remove it as any file")
    of_owner = [model for model in named.models if model.owner == (also_from or _OURS)]
    found = list({model.path: model for model in of_owner or named.models}.values())
    if len(found) > 1:
        where = ", ".join(str(model.path) for model in found)
        raise InvalidInputError(f"{name} is {len(found)} models: {where}", "Give the path of one, or its type")
    return found[0]


def _alias_in(name: str, catalogue: Catalogue) -> str | None:
    """The alias that a name is, with or without a type."""
    from zephyr_local.model_store.library import existing_file
    from zephyr_local.model_store.names import split_type

    if existing_file(name) is not None:
        return None
    return next((alias for alias in (name, split_type(name)[0]) if catalogue.alias(alias) is not None), None)


def _owner(model: FoundModel, catalogue: Catalogue) -> Owner:
    """Whose it is: what lies in the store and in another tool's folder as well is only ours where we put it there."""
    from zephyr_local.model_store.library import places
    from zephyr_local.model_store.registry import recorded

    if model.owner != _OURS:
        return model.owner
    with contextlib.suppress(OutputError):  # without the registry it cannot be told
        if all((record := recorded(path)) is not None and record.source != "verify" for path in model.files):
            return model.owner
    folder = Path(os.path.realpath(model.path.parent))
    for place in places(catalogue):
        if place.owner != _OURS and Path(os.path.realpath(place.folder)) in (folder, *folder.parents):
            return place.owner
    return model.owner


def _require_told(model: FoundModel, owner: Owner, also_from: str | None) -> None:
    if (command := _their_command(model, owner)) is not None:
        raise InvalidInputError(
            f"{model.name} is in {owner}'s store, whose files may be shared between models",
            f"Let it remove its own: {command}",
        )
    if also_from is None:
        raise InvalidInputError(
            f"{model.path} is {owner}'s and not zephyr-local's", f"To remove it there: --also-from {owner}"
        )
    if also_from != owner:
        raise InvalidInputError(f"{model.name} is {owner}'s, not {also_from}'s", f"To remove it: --also-from {owner}")


def _their_command(model: FoundModel, owner: Owner) -> str | None:
    """What removes a model from a store whose files are shared, so that the tool alone knows what is still needed."""
    if owner == "ollama":
        return f"ollama rm {shlex.quote(model.name)}"
    if owner == "huggingface":
        return f"hf cache rm model/{model.repository or 'OWNER/REPO'}"
    if owner == "llama.cpp" and model.revision is not None:  # laid out as the Hugging Face cache
        cache = next(folder.parent for folder in model.path.parents if folder.name.startswith("models--"))
        return f"hf cache rm model/{model.repository} --cache-dir {shlex.quote(str(cache))}"
    return None


def _remove_files(model: FoundModel) -> None:
    from zephyr_local.model_store.library import store_folder
    from zephyr_local.model_store.registry import Registry, registry_path

    for path in model.files:
        try:
            path.unlink()
        except OSError as error:
            raise OutputError(f"{path} cannot be removed: {error.strerror}", "Check its permissions") from None
    try:
        if os.path.exists(registry_path()):  # noqa: PTH110 — Path.exists raises in a folder that is closed
            with Registry() as registry:
                for path in model.files:
                    registry.forget(path)
    except OutputError as error:  # it is a memory
        show_notice(error.problem)
    store, folder = store_folder(), model.path.parent
    while store in folder.parents:
        with contextlib.suppress(OSError):  # not empty
            folder.rmdir()
        folder = folder.parent
