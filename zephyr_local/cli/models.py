"""`zephyr-local models`: what is on this machine and what is known by name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zephyr_local.cli.models_edit import add, alias
from zephyr_local.cli.models_fit import fit
from zephyr_local.cli.models_remove import prune, remove
from zephyr_local.cli.models_show import show
from zephyr_local.cli.models_verify import verify
from zephyr_local.cli.notice import show_notice
from zephyr_local.repl.screen import visible

if TYPE_CHECKING:
    from zephyr_local.model_store.catalogue import Catalogue
    from zephyr_local.model_store.places import FoundModel


@click.group("models", short_help="List, find, name, check and remove models; see which fit.")
def command() -> None:
    """Models on this machine, wherever they lie: those that were pulled, and those of other tools, used in place.

    A NAME is a path, hf:OWNER/REPO[/FILE or :TYPE], an alias, a model of the catalogue (zephyr-7b-beta, or
    zephyr-7b-beta:q4_k_m), or what a model is called where it lies.
    """


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def list_models(as_json: bool) -> None:
    """List the models on this machine, and those of the catalogue that are not here."""
    from zephyr_local.model_store.catalogue import read_catalogue
    from zephyr_local.model_store.library import entry_of, models_here

    catalogue = read_catalogue()
    found = models_here(catalogue)
    here = {entry.name for model in found.models if (entry := entry_of(model, catalogue)) is not None}
    if as_json:
        click.echo(json.dumps(_listed(catalogue, found.models, here)))
        return
    _show_table(found.models)
    for name, target in sorted(catalogue.aliases.values()):
        click.echo(f"{name} is an alias of {visible(target)}")
    for entry in catalogue.entries.values():
        if entry.name not in here:
            click.echo(f"{entry.name} is not here: zephyr-local pull {entry.name}", err=True)
    for partial in _partials():
        click.echo(partial, err=True)
    if found.notices:
        many = len(found.notices)
        show_notice(f"{many} thing{'s' if many > 1 else ''} could not be used; zephyr-local models find tells what")


@command.command("find")
@click.argument("text", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def find(text: str | None, as_json: bool) -> None:
    """Find the models whose name, repository or path has TEXT in it; tell where was looked and what was left out."""
    from zephyr_local.model_store.catalogue import read_catalogue
    from zephyr_local.model_store.library import places
    from zephyr_local.model_store.places import find_models

    looked = places(read_catalogue())
    found = find_models(looked)
    models = [model for model in found.models if text is None or _mentions(model, text)]
    if as_json:
        click.echo(
            json.dumps(
                {
                    "models": [model_as_json(model) for model in models],
                    "places": [{"owner": place.owner, "folder": str(place.folder)} for place in looked],
                    "notices": list(found.notices),
                }
            )
        )
    else:
        for model in models:
            click.echo(f"{model.owner:12}  {visible(str(model.path))}")
        for place in looked:
            state = "" if place.folder.is_dir() else ", which is not there"
            click.echo(f"looked in {visible(str(place.folder))} ({place.owner}){state}", err=True)
        for notice in found.notices:
            show_notice(notice)
    if not models:
        raise click.exceptions.Exit(1)  # as grep does


def _partials() -> list[str]:
    """Lines about downloads that did not come to their end."""
    from zephyr_local.memory.plan import readable
    from zephyr_local.model_store.library import store_folder
    from zephyr_local.model_store.partials import list_partials
    from zephyr_local.model_store.pull import PARTIAL_FOLDER

    lines = []
    for partial in list_partials(store_folder() / PARTIAL_FOLDER):
        what = f"{partial.repository}/{partial.path}" if partial.repository else partial.digest
        of = f" of {readable(partial.size_bytes)}" if partial.size_bytes else ""
        lines.append(
            f"partial download: {readable(partial.there_bytes)}{of} of {visible(what)}; the same pull goes on, "
            "zephyr-local models prune removes it"
        )
    return lines


def model_as_json(model: FoundModel) -> dict[str, object]:
    """A model as every verb's JSON has it."""
    from zephyr_local.model_store.library import base_and_type

    return {
        "name": model.name,
        "type": base_and_type(model)[1],
        "path": str(model.path),
        "owner": model.owner,
        "repository": model.repository,
        "revision": model.revision,
        "sha256": model.sha256,
        "size_bytes": model.size_bytes,
        "files": [str(path) for path in model.files],
    }


def _listed(catalogue: Catalogue, models: Sequence[FoundModel], here: set[str]) -> dict[str, object]:
    return {
        "models": [model_as_json(model) for model in models],
        "aliases": dict(sorted(catalogue.aliases.values())),
        "catalogue": [
            {"name": entry.name, "title": entry.title, "licence": entry.licence, "here": entry.name in here}
            for entry in catalogue.entries.values()
        ],
    }


def _show_table(models: Sequence[FoundModel]) -> None:
    from zephyr_local.memory.plan import readable
    from zephyr_local.model_store.library import base_and_type

    if not models:
        click.echo("There are no models on this machine but the bundled zephyr-tiny.", err=True)
        return
    rows = [("NAME", "TYPE", "SIZE", "WHOSE", "WHERE")]
    for model in models:
        file_type = base_and_type(model)[1] or ""
        where = model.repository or _short(model.path.parent)
        rows.append((visible(model.name), file_type, readable(model.size_bytes), model.owner, visible(where)))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for name, file_type, size, owner, where in rows:
        cells = (name.ljust(widths[0]), file_type.ljust(widths[1]), size.rjust(widths[2]), owner.ljust(widths[3]))
        click.echo("  ".join((*cells, where)).rstrip())


def _short(folder: Path) -> str:
    try:
        return str(Path("~") / folder.relative_to(Path.home()))
    except (ValueError, RuntimeError):
        return str(folder)


def _mentions(model: FoundModel, text: str) -> bool:
    from zephyr_local.model_store.names import folded

    return any(folded(text) in folded(where) for where in (model.name, model.repository or "", str(model.path)))


for verb in (show, alias, add, remove, verify, prune, fit):
    command.add_command(verb)
