"""`zephyr-local models alias` and `add`: the user's names, models and folders, in models.toml with its layout kept."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from zephyr_local.errors import InvalidInputError, OutputError
from zephyr_local.repl.screen import visible


@click.command("alias", short_help="Give a model another name.")
@click.argument("name", required=False)
@click.argument("target", required=False)
@click.option("--remove", is_flag=True, help="Forget NAME.")
def alias(name: str | None, target: str | None, remove: bool) -> None:
    """Call TARGET, a path or the name of a model, NAME from now on; without both, list the aliases."""
    from zephyr_local.model_store.catalogue import read_catalogue, require_name
    from zephyr_local.model_store.names import folded, looks_like_path

    catalogue = read_catalogue()
    if name is None:
        for own, means in sorted(catalogue.aliases.values()):
            click.echo(f"{own}  {visible(means)}")
        return
    known = catalogue.aliases.get(folded(name))
    if remove:
        if target is not None:
            raise click.UsageError("--remove takes a NAME alone.")
        if known is None:
            raise InvalidInputError(f"there is no alias {name}", "zephyr-local models alias lists them")
        _edit(lambda document: document["aliases"].pop(known[0]))
        return
    if target is None:
        raise click.UsageError("Give the model that NAME is to stand for.")
    require_name(name)
    if catalogue.entry(name) is not None:
        raise InvalidInputError(f"{name} is a model of the catalogue", "Choose another name")
    if looks_like_path(target) or Path(target).exists():
        target = str(Path(target).expanduser().absolute())
        if not Path(target).exists():
            raise InvalidInputError(f"there is no file {target}", "Check the path")
    means = target

    def change(document: Any) -> None:  # noqa: ANN401
        table = _table(document, "aliases")
        if known is not None:
            table.pop(known[0])
        table[name] = means

    _edit(change)
    click.echo(f"{name} is {visible(means)}.", err=True)


@click.command("add", short_help="Make a model known by name, or a folder of models.")
@click.argument("name", required=False)
@click.argument("repository", required=False)
@click.option("--checkpoint", metavar="OWNER/REPO", help="Where its unquantized weights are.")
@click.option("--licence", metavar="TEXT", help="Under which it may be used.")
@click.option("--title", metavar="TEXT", help="What it is.")
@click.option("--template", type=click.Choice(["zephyr"]), help="Its chat template, where that is a built-in one.")
@click.option("--folder", metavar="PATH", help="Look for models in this folder, too; goes without NAME.")
@click.option("--remove", is_flag=True, help="Forget NAME, or the folder.")
def add(
    name: str | None,
    repository: str | None,
    checkpoint: str | None,
    licence: str | None,
    title: str | None,
    template: str | None,
    folder: str | None,
    remove: bool,
) -> None:
    """Let NAME stand for the GGUFs of REPOSITORY (OWNER/REPO), as the names of the catalogue do."""
    if (folder is None) == (name is None):
        raise click.UsageError("Give a NAME and its REPOSITORY, or --folder.")
    if folder is not None:
        _edit_folders(folder, remove=remove)
        return
    from zephyr_local.model_store.catalogue import read_catalogue, require_name, require_repository
    from zephyr_local.model_store.names import HUB_PREFIX

    assert name is not None
    require_name(name)
    entry = read_catalogue().entry(name)
    if remove:
        if entry is None or not entry.is_own:
            raise InvalidInputError(f"{name} is not among the models that you added", "zephyr-local models list")
        _edit(lambda document: document["models"].pop(entry.name))
        return
    if repository is None:
        raise click.UsageError("Give the REPOSITORY that holds its GGUFs.")
    texts = {"title": title, "licence": licence, "checkpoint": checkpoint, "template": template}
    values: dict[str, object] = {key: value for key, value in texts.items() if value is not None}
    values["gguf"] = [require_repository(repository.removeprefix(HUB_PREFIX))]
    if checkpoint is not None:
        values["checkpoint"] = require_repository(checkpoint.removeprefix(HUB_PREFIX))
    own_name = name

    def change(document: Any) -> None:  # noqa: ANN401
        table = _table(document, "models")
        if entry is not None and entry.is_own:
            table.pop(entry.name)
        table[own_name] = values

    _edit(change)
    click.echo(f"{name} is known: zephyr-local pull {name}", err=True)


def _edit_folders(text: str, *, remove: bool) -> None:
    from zephyr_local.model_store.catalogue import expanded, read_catalogue

    folder = expanded(text).absolute()
    known = {path.absolute() for path in read_catalogue().folders}
    if remove and folder not in known:
        raise InvalidInputError(f"{folder} is not among the folders", "zephyr-local models find tells where it looks")
    if not remove and not folder.is_dir():
        raise InvalidInputError(f"{folder} is not a folder", "Check the path")
    kept = [str(path) for path in sorted(known - {folder} if remove else known | {folder})]

    def change(document: Any) -> None:  # noqa: ANN401
        document["folders"] = kept

    _edit(change)


def _table(document: Any, name: str) -> Any:  # noqa: ANN401
    import tomlkit

    if name not in document:
        document[name] = tomlkit.table()
    return document[name]


def _edit(change: Callable[[Any], object]) -> None:
    """Change the user's file: whole or as it was; what others would not understand is not written."""
    import tomlkit

    from zephyr_local.configuration import read_text
    from zephyr_local.folder_sync import sync_folder
    from zephyr_local.model_store.catalogue import catalogue_path, read_catalogue
    from zephyr_local.user_folders import make_private_folder

    path = Path(os.path.realpath(catalogue_path()))
    document = tomlkit.parse(read_text(path) or "")
    change(document)
    make_private_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("x", encoding="utf-8", newline="") as file:
            file.write(tomlkit.dumps(document))
            file.flush()
            os.fsync(file.fileno())
        read_catalogue(temporary)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}", "Check the disk and its permissions") from None
    finally:
        temporary.unlink(missing_ok=True)
