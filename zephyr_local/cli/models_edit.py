"""`zephyr-local models alias` and `add`: the user's names, models and folders, in models.toml with its layout kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zephyr_local.cli.models_told import on_a_line
from zephyr_local.cli.notice import show_notice
from zephyr_local.cli.toml_file import TomlFile
from zephyr_local.errors import InvalidInputError

if TYPE_CHECKING:
    from zephyr_local.model_store.catalogue import Catalogue


@click.command("alias", short_help="Give a model another name.")
@click.argument("name", required=False)
@click.argument("target", required=False)
@click.option("--remove", is_flag=True, help="Forget NAME.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def alias(name: str | None, target: str | None, remove: bool, as_json: bool) -> None:
    """Call TARGET, a path or the name of a model, NAME from now on; without both, list the aliases.

    The JSON object has aliases, and what each stands for: as they are afterwards.
    """
    from zephyr_local.model_store.catalogue import read_catalogue

    catalogue = read_catalogue()
    if name is None:
        if remove:
            raise click.UsageError("Give the NAME that is to be forgotten.")
        if not as_json:
            for own, means in sorted(catalogue.aliases.values()):
                click.echo(f"{own}  {on_a_line(means)}")
    elif remove:
        if target is not None:
            raise click.UsageError("--remove takes a NAME alone.")
        catalogue = _forget_alias(name, catalogue)
    else:
        if target is None:
            raise click.UsageError("Give the model that NAME is to stand for.")
        catalogue = _set_alias(name, target, catalogue)
    if as_json:
        click.echo(json.dumps({"aliases": dict(sorted(catalogue.aliases.values()))}))


def _forget_alias(name: str, catalogue: Catalogue) -> Catalogue:
    from zephyr_local.model_store.names import folded

    known = catalogue.aliases.get(folded(name))
    if known is None:
        raise InvalidInputError(f"there is no alias {name}", "zephyr-local models alias lists them")
    file = TomlFile(catalogue.path)
    file.remove(("aliases", known[0]))
    catalogue = _save(file)
    click.echo(f"{known[0]} is no alias any more.", err=True)
    return catalogue


def _set_alias(name: str, target: str, catalogue: Catalogue) -> Catalogue:
    from zephyr_local.model_store.catalogue import expanded, read_catalogue, require_free_name
    from zephyr_local.model_store.library import existing_file, without_aliases
    from zephyr_local.model_store.names import folded, is_bundled_name, looks_like_path, shown_name, split_type

    require_free_name(name)
    if is_bundled_name(target):
        raise InvalidInputError(f"{target} is the bundled model, which has no other name", "Leave out the alias")
    if folded(target) == folded(name):
        raise InvalidInputError(f"{name} cannot stand for itself", "Give another name, or the model's path")
    # A model's own name may be an alias for one of its types, which is what it means from then on.
    if catalogue.entry(name) is not None and folded(split_type(target)[0]) != folded(name):
        raise InvalidInputError(f"{name} is a model of the catalogue", "Choose another name")
    if existing_file(target) is not None or looks_like_path(target):
        path = expanded(target).absolute()
        if existing_file(str(path)) is None:
            raise InvalidInputError(f"there is no file {shown_name(str(path))}", "Check the path")
        target = str(path)
    file = TomlFile(catalogue.path)
    known = catalogue.aliases.get(folded(name))
    if known is not None and known[0] != name:
        file.remove(("aliases", known[0]))
    file.set(("aliases", name), target)

    def check(path: Path) -> Catalogue:
        changed = read_catalogue(path)
        without_aliases(name, changed)  # which raises where they lead in a circle
        return changed

    catalogue = file.save(check)
    click.echo(f"{name} is {on_a_line(target)}.", err=True)
    if not _is_known(target, catalogue):
        show_notice(f"nothing here has the name {on_a_line(target)} yet")
    for path in _shadowed(name, target, catalogue):
        show_notice(f"{on_a_line(path)} is called {name}, too; from now on {name} is the alias, and that is its path")
    return catalogue


def _shadowed(name: str, target: str, catalogue: Catalogue) -> tuple[Path, ...]:
    """The models here that an alias takes their name from, but those that it stands for."""
    from zephyr_local.model_store.library import matching, models_here, what_is_wanted, without_aliases
    from zephyr_local.model_store.names import folded, looks_like_path, split_type

    final = without_aliases(target, catalogue)
    if folded(split_type(final)[0]) == folded(name):
        return ()
    found = models_here(catalogue).models
    meant = () if looks_like_path(final) else matching(what_is_wanted(final, catalogue), found)
    own = {model.path for model in meant} | {catalogue.path.parent / final}
    called_so = matching(what_is_wanted(name, catalogue), found)
    return tuple(model.path for model in called_so if model.path not in own)


def _is_known(target: str, catalogue: Catalogue) -> bool:
    """Whether a name means a file, a repository, or a model that is known or here."""
    from zephyr_local.cli.models_named import models_named
    from zephyr_local.errors import ModelNotFoundError
    from zephyr_local.model_store.library import models_here, what_is_wanted, without_aliases
    from zephyr_local.model_store.names import is_hub_name

    final = without_aliases(target, catalogue)
    if is_hub_name(final) or what_is_wanted(final, catalogue).entry is not None:
        return True
    try:
        models_named(final, catalogue, models_here(catalogue).models)
    except ModelNotFoundError:
        return False
    return True


@click.command("add", short_help="Make a model known by name, or a folder of models.")
@click.argument("name", required=False)
@click.argument("repository", required=False)
@click.option("--checkpoint", metavar="OWNER/REPO", help="Where its unquantized weights are.")
@click.option("--licence", metavar="TEXT", help="Under which it may be used.")
@click.option("--title", metavar="TEXT", help="What it is.")
@click.option("--template", type=click.Choice(["zephyr"]), help="Its chat template, where that is a built-in one.")
@click.option("--folder", metavar="PATH", help="Look for models in this folder, too; goes without NAME.")
@click.option("--remove", is_flag=True, help="Forget NAME, or the folder.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def add(
    name: str | None,
    repository: str | None,
    folder: str | None,
    remove: bool,
    as_json: bool,
    **texts: str | None,
) -> None:
    """Let NAME stand for the GGUFs of REPOSITORY (OWNER/REPO), as the names of the catalogue do.

    The JSON object has models (the names of those that were added) and folders: as they are afterwards.
    """
    if (folder is None) == (name is None):
        raise click.UsageError("Give a NAME and its REPOSITORY, or --folder.")
    given = {key: text for key, text in texts.items() if text is not None}
    if (folder is not None or remove) and (repository is not None or given):
        raise click.UsageError("--folder and --remove go without REPOSITORY and what is told of it.")
    if folder is not None:
        catalogue = _edit_folders(folder, remove=remove)
    elif remove:
        catalogue = _forget_model(name or "")
    elif repository is None:
        raise click.UsageError("Give the REPOSITORY that holds its GGUFs.")
    else:
        catalogue = _add_model(name or "", repository, given)
    if as_json:
        own = sorted(entry.name for entry in catalogue.entries.values() if entry.is_own)
        click.echo(json.dumps({"models": own, "folders": [str(path) for path in catalogue.folders]}))


def _add_model(name: str, repository: str, texts: dict[str, str]) -> Catalogue:
    from zephyr_local.model_store.catalogue import read_catalogue, require_free_name

    require_free_name(name)
    catalogue = read_catalogue()
    if catalogue.alias(name) is not None:
        raise InvalidInputError(f"{name} is an alias", f"Remove it first: zephyr-local models alias --remove {name}")
    known = catalogue.entry(name)
    if known is not None and not known.is_own:
        raise InvalidInputError(f"{known.name} is a model of the catalogue", "Choose another name")
    values: dict[str, object] = {"gguf": [_repository(repository)], **texts}
    if "checkpoint" in texts:
        values["checkpoint"] = _repository(texts["checkpoint"])
    file = TomlFile(catalogue.path)
    own_name = name if known is None else known.name
    for key, value in values.items():
        file.set(("models", own_name, key), value)
    catalogue = _save(file)
    what = "is known" if known is None else f"was known, and is replaced by {on_a_line(repository)}"
    click.echo(f"{own_name} {what}: zephyr-local pull {own_name}", err=True)
    return catalogue


def _repository(text: str) -> str:
    """OWNER/REPO, of which ``text`` may be the address on the hub, too."""
    from zephyr_local.model_store.hub import parse_repository
    from zephyr_local.model_store.names import HUB_PREFIX, is_hub_name, parse_hub_name

    bare = text.removeprefix(HUB_PREFIX)
    return parse_repository(parse_hub_name(text).repository if bare == text and is_hub_name(text) else bare)


def _forget_model(name: str) -> Catalogue:
    from zephyr_local.model_store.catalogue import read_catalogue

    catalogue = read_catalogue()
    entry = catalogue.entry(name)
    if entry is None or not entry.is_own:
        raise InvalidInputError(f"{name} is not among the models that you added", "zephyr-local models list")
    file = TomlFile(catalogue.path)
    file.remove(("models", entry.name))
    catalogue = _save(file)
    click.echo(f"{entry.name} is no longer known; its files stay.", err=True)
    return catalogue


def _edit_folders(text: str, *, remove: bool) -> Catalogue:
    from zephyr_local.model_store.catalogue import expanded, read_catalogue

    if not text.strip():
        raise InvalidInputError("the folder is empty", "Give the path of a folder of models")
    catalogue = read_catalogue()
    folder = expanded(text).absolute()
    places = [i for i, known in enumerate(catalogue.folders) if known.absolute() == folder]
    file = TomlFile(catalogue.path)
    if remove:
        if not places:
            remedy = "zephyr-local models find tells where it looks"
            raise InvalidInputError(f"{folder} is not among the folders", remedy)
        for i in reversed(places):
            file.take_out("folders", i)
    elif not _is_folder(folder):
        raise InvalidInputError(f"{folder} is not a folder", "Check the path")
    elif not places:
        file.append("folders", str(folder))
    catalogue = _save(file)
    looks = "no longer looked" if remove else "looked"
    click.echo(f"Models are {looks} for in {on_a_line(folder)}.", err=True)
    return catalogue


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _save(file: TomlFile) -> Catalogue:
    from zephyr_local.model_store.catalogue import read_catalogue

    return file.save(read_catalogue)
