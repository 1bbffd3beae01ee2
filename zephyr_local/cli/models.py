"""`zephyr-local models`: what is on this machine and what is known by name."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zephyr_local.cli.models_edit import add, alias
from zephyr_local.cli.models_fit import fit
from zephyr_local.cli.models_prune import prune
from zephyr_local.cli.models_remove import remove
from zephyr_local.cli.models_show import show
from zephyr_local.cli.models_told import (
    model_as_json,
    on_a_line,
    partial_as_json,
    partial_told,
    partials_here,
    size_of,
    unfinished_here,
    unfinished_told,
    what_becomes_of,
)
from zephyr_local.cli.models_verify import verify
from zephyr_local.cli.notice import show_notice

if TYPE_CHECKING:
    from zephyr_local.model_store.catalogue import Catalogue
    from zephyr_local.model_store.places import Found, FoundModel


@click.group("models", short_help="List, find, name, check and remove models; see which fit.")
def command() -> None:
    """Models on this machine, wherever they lie: those that were pulled, and those of other tools, used in place.

    A NAME is a path, hf:OWNER/REPO[/FILE or :TYPE], an alias, a model of the catalogue (zephyr-7b-beta, or
    zephyr-7b-beta:q4_k_m), or what a model is called where it lies.

    A model in a JSON object has name, type, path, owner, repository, revision, sha256, size_bytes and files; null is
    what nobody tells.
    """


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def list_models(as_json: bool) -> None:
    """List the models on this machine, and those of the catalogue that are not here.

    The JSON object has models, aliases (what each stands for), catalogue (name, title, licence, here),
    partial_downloads (repository, revision, file, sha256, size_bytes, there_bytes, is_downloading), unfinished (path,
    there_bytes) and notices. A model that a pull found under another name is there with both, and the same path.
    """
    from zephyr_local.model_store.catalogue import read_catalogue
    from zephyr_local.model_store.library import entry_of, models_here
    from zephyr_local.quantize.leftovers import is_being_written

    catalogue = read_catalogue()
    found = models_here(catalogue)
    here = {entry.name for model in found.models if (entry := entry_of(model, catalogue)) is not None}
    if as_json:
        click.echo(json.dumps(_listed(catalogue, found, here)))
        return
    _show_table(found.models)
    for name, target in sorted(catalogue.aliases.values()):
        click.echo(f"{name} is an alias of {on_a_line(target)}")
    for entry in catalogue.entries.values():
        if entry.name not in here:
            click.echo(f"{entry.name} is not here: zephyr-local pull {entry.name}", err=True)
    for partial in partials_here():
        click.echo(f"partial download: {partial_told(partial)}; {what_becomes_of(partial)}", err=True)
    for path in unfinished_here():
        state = "a process writes it now" if is_being_written(path) else "zephyr-local models prune removes it"
        click.echo(f"not finished: {unfinished_told(path)}; {state}", err=True)
    if found.notices:
        many = len(found.notices)
        show_notice(f"{many} thing{'s' if many > 1 else ''} could not be used; zephyr-local models find tells what")


@command.command("find")
@click.argument("text", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def find(text: str | None, as_json: bool) -> None:
    """Find the models whose name, repository or path has TEXT in it; without TEXT, or where there is none, tell where
    was looked. What could not be used is told as well.

    Exit code 1 where there are none. The JSON object has models, places (owner, folder, there) and notices.
    """
    from zephyr_local.model_store.catalogue import read_catalogue
    from zephyr_local.model_store.library import models_here, places

    catalogue = read_catalogue()
    looked = [(place, os.path.isdir(place.folder)) for place in places(catalogue)]  # noqa: PTH112 — is_dir may raise
    found = models_here(catalogue)
    models = [model for model in found.models if text is None or _mentions(model, text)]
    if as_json:
        click.echo(
            json.dumps(
                {
                    "models": [model_as_json(model) for model in models],
                    "places": [
                        {"owner": place.owner, "folder": str(place.folder), "there": is_there}
                        for place, is_there in looked
                    ],
                    "notices": list(found.notices),
                }
            )
        )
    else:
        if models:
            _show_rows("PATH", [(model, model.path) for model in models])
        elif text is not None:
            click.echo(f"No model has {on_a_line(text)!r} in its name, repository or path.", err=True)
        for place, is_there in looked if text is None or not models else ():
            state = "" if is_there else ", which is not there"
            click.echo(f"looked in {on_a_line(place.folder)} ({place.owner}){state}", err=True)
        for notice in found.notices:
            show_notice(on_a_line(notice))
    if not models:
        raise click.exceptions.Exit(1)  # as grep does


def _listed(catalogue: Catalogue, found: Found, here: set[str]) -> dict[str, object]:
    return {
        "models": [model_as_json(model) for model in found.models],
        "aliases": dict(sorted(catalogue.aliases.values())),
        "catalogue": [
            {"name": entry.name, "title": entry.title, "licence": entry.licence, "here": entry.name in here}
            for entry in catalogue.entries.values()
        ],
        "partial_downloads": [partial_as_json(partial) for partial in partials_here()],
        "unfinished": [{"path": str(path), "there_bytes": size_of(path)} for path in unfinished_here()],
        "notices": list(found.notices),
    }


def _show_table(models: Sequence[FoundModel]) -> None:
    if not models:
        click.echo("There are no models on this machine but the bundled zephyr-tiny.", err=True)
        return
    _show_rows("WHERE", [(model, model.repository or _short(model.path.parent)) for model in models])


def _show_rows(last: str, models: Sequence[tuple[FoundModel, str | Path]]) -> None:
    """Models, each with what stands in the ``last`` column."""
    from zephyr_local.memory.plan import readable
    from zephyr_local.model_store.also_known import AlsoKnownModel
    from zephyr_local.model_store.library import base_and_type

    rows = [("NAME", "TYPE", "SIZE", "WHOSE", last)]
    for model, where in models:
        file_type = base_and_type(model)[1] or ""
        size = "same file" if isinstance(model, AlsoKnownModel) and model.is_second else readable(model.size_bytes)
        rows.append((on_a_line(model.name), file_type, size, model.owner, on_a_line(where)))
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

    wanted = folded(text)
    return any(wanted in folded(where) for where in (model.name, model.repository or "", str(model.path)))


for verb in (show, alias, add, remove, verify, prune, fit):
    command.add_command(verb)
