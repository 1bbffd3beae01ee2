"""`zephyr-local models rm` and `prune`: never what another tool owns, unless told twice."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from zephyr_local.errors import InvalidInputError, ModelNotFoundError, OutputError
from zephyr_local.repl.screen import visible

if TYPE_CHECKING:
    from zephyr_local.model_store.places import FoundModel

_THEIR_COMMANDS = {"ollama": "ollama rm {name}", "huggingface": "hf cache rm model/{repository}"}
"""Tools whose files are shared between models, so that they alone know what is still needed."""


@click.command("rm", short_help="Remove a model.")
@click.argument("name")
@click.option(
    "--also-from", metavar="OWNER", help="The model is another tool's (lm-studio, gpt4all, …): remove it there."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def remove(name: str, also_from: str | None, yes: bool, as_json: bool) -> None:
    """Remove the model NAME, which was pulled. What another tool keeps needs --also-from OWNER, and a yes."""
    from zephyr_local.memory.plan import readable
    from zephyr_local.model_store.registry import Registry, registry_path

    model = _the_one(name)
    size = readable(model.size_bytes)
    if model.owner == "zephyr-local":
        if also_from is not None:
            raise InvalidInputError(f"{model.name} is zephyr-local's own", "Leave --also-from out")
    else:
        _require_told(model, also_from)
        if not yes and not (sys.stdin is not None and sys.stdin.isatty()):
            raise InvalidInputError(f"{model.name} is {model.owner}'s", "Add --yes to remove it without being asked")
        if not yes:
            click.confirm(
                f"Remove {visible(str(model.path))} ({size}), which is {model.owner}'s?", abort=True, err=True
            )
    for path in model.files:
        try:
            path.unlink()
        except OSError as error:
            raise OutputError(f"{path} cannot be removed: {error.strerror}", "Check its permissions") from None
        if registry_path().exists():
            with Registry() as registry:
                registry.forget(path.absolute())
    if model.owner == "zephyr-local":
        _remove_empty_folders(model.path.parent)
    if as_json:
        click.echo(json.dumps({"removed": [str(path) for path in model.files], "size_bytes": model.size_bytes}))
    else:
        click.echo(f"Removed {visible(str(model.path))}, {size}.", err=True)


@click.command("prune", short_help="Remove partial downloads and forget files that are gone.")
@click.option("--dry-run", is_flag=True, help="Only tell what would be removed.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def prune(dry_run: bool, as_json: bool) -> None:
    """Remove downloads that did not come to their end, and forget where files that are gone were from.

    The same pull would go on with a partial download; after this it begins anew.
    """
    from zephyr_local.memory.plan import readable
    from zephyr_local.model_store.library import store_folder
    from zephyr_local.model_store.partials import list_partials, remove_partial
    from zephyr_local.model_store.pull import PARTIAL_FOLDER
    from zephyr_local.model_store.registry import Registry, registry_path

    partials = list_partials(store_folder() / PARTIAL_FOLDER)
    gone: list[Path] = []
    if registry_path().exists():
        with Registry() as registry:
            gone = [record.path for record in registry.records() if not record.path.exists()]
            for path in gone if not dry_run else ():
                registry.forget(path)
    removed = []
    for partial in partials:
        if not dry_run:
            remove_partial(partial)
        removed.append(partial)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "partial_downloads": [
                        {
                            "repository": partial.repository,
                            "file": partial.path,
                            "sha256": partial.digest,
                            "size_bytes": partial.size_bytes,
                            "there_bytes": partial.there_bytes,
                        }
                        for partial in removed
                    ],
                    "forgotten": [str(path) for path in gone],
                    "dry_run": dry_run,
                }
            )
        )
        return
    verb = "Would remove" if dry_run else "Removed"
    for partial in removed:
        of = f" of {readable(partial.size_bytes)}" if partial.size_bytes else ""
        what = f"{partial.repository}/{partial.path}" if partial.repository else partial.digest
        click.echo(f"{verb} {readable(partial.there_bytes)}{of} of {visible(what)}")
    for path in gone:
        click.echo(f"{'Would forget' if dry_run else 'Forgot'} {visible(str(path))}, which is gone")
    if not removed and not gone:
        click.echo("There is nothing to remove.", err=True)


def _the_one(name: str) -> FoundModel:
    """The model that a name means, which must be one alone; a path counts where a model was found there."""
    from zephyr_local.model_store.catalogue import read_catalogue
    from zephyr_local.model_store.library import existing_file, matching, models_here, what_is_wanted

    catalogue = read_catalogue()
    models = models_here(catalogue).models
    if (path := existing_file(name)) is not None:
        found = [model for model in models if any(file.exists() and file.samefile(path) for file in model.files)]
        if not found:
            raise InvalidInputError(f"{path} is in no place of models", "Remove it as any file")
    else:
        found = list(matching(what_is_wanted(catalogue.alias(name) or name, catalogue), models))
    if not found:
        raise ModelNotFoundError(f"there is no model {name}", "zephyr-local models list tells what is here")
    if len(found) > 1:
        where = ", ".join(str(model.path) for model in found)
        raise InvalidInputError(f"{name} is {len(found)} models: {where}", "Give the path of one, or its type")
    return found[0]


def _require_told(model: FoundModel, also_from: str | None) -> None:
    from zephyr_local.model_store.places import Owner

    if model.owner in _THEIR_COMMANDS:
        command = _THEIR_COMMANDS[model.owner].format(name=model.name, repository=model.repository)
        raise InvalidInputError(
            f"{model.name} is in {model.owner}'s store, whose files may be shared between models",
            f"Let it remove its own: {command}",
        )
    if also_from is None:
        raise InvalidInputError(
            f"{model.path} is {model.owner}'s and not zephyr-local's", f"To remove it there: --also-from {model.owner}"
        )
    if also_from != model.owner:
        owners = ", ".join(get_args(Owner))
        raise InvalidInputError(f"{model.name} is {model.owner}'s, not {also_from}'s", f"Owners are: {owners}")


def _remove_empty_folders(folder: Path) -> None:
    from zephyr_local.model_store.library import store_folder

    store = store_folder()
    while store in folder.parents:
        with contextlib.suppress(OSError):  # not empty
            folder.rmdir()
        folder = folder.parent
