"""`zephyr-local models prune`: what downloads that did not come to their end have left, and rows about files gone."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, TypeVar

import click

from zephyr_local.cli.models_told import (
    on_a_line,
    partial_as_json,
    partial_told,
    partials_here,
    target_of,
    unfinished_here,
    unfinished_told,
)
from zephyr_local.cli.notice import show_notice
from zephyr_local.errors import OutputError

_Thing = TypeVar("_Thing")
_CHECKPOINT: Final = re.compile(r"checkpoint-[0-9a-f]{40}-[0-9a-f]{16}")
"""A folder of `pull --quantize`, which a kill leaves."""


@click.command("prune", short_help="Remove partial downloads and forget files that are gone.")
@click.option("--dry-run", is_flag=True, help="Only tell what would be removed.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def prune(dry_run: bool, as_json: bool) -> None:
    """Remove downloads that did not come to their end, and forget where files that are gone were from.

    The same pull would go on with a partial download; after this it begins anew. What a process downloads now stays,
    and the exit code is 1. The JSON object has partial_downloads (repository, revision, file, sha256, size_bytes,
    there_bytes, is_downloading), folders (of checkpoints), unfinished (paths of models that a conversion did not end),
    forgotten (paths), kept (as many as could not be removed) and dry_run.
    """
    from zephyr_local.model_store.partials import remove_partial

    is_real = not dry_run
    partials, kept_partials = _remove_each(partials_here(), remove_partial if is_real else None)
    folders, kept_folders = _remove_each(_checkpoint_folders(), _remove_folder if is_real else None)
    unfinished, kept_unfinished = _remove_unfinished(is_real=is_real)
    gone = _gone()
    if is_real and gone:
        _forget(gone)
    kept = kept_partials + kept_folders + kept_unfinished
    if as_json:
        made = {
            "partial_downloads": [partial_as_json(partial) for partial in partials],
            "folders": [str(folder) for folder in folders],
            "unfinished": [str(path) for path, _ in unfinished],
            "forgotten": [str(path) for path in gone],
            "kept": kept,
            "dry_run": dry_run,
        }
        click.echo(json.dumps(made))
    else:
        verb = "Removed" if is_real else "Would remove"
        for partial in partials:
            click.echo(f"{verb} {partial_told(partial)}")
        for folder in folders:
            click.echo(f"{verb} {on_a_line(folder)}")
        for _, told in unfinished:
            click.echo(f"{verb} {told}, which was not finished")
        for path in gone:
            click.echo(f"{'Forgot' if is_real else 'Would forget'} {on_a_line(path)}, which is gone")
        if not (partials or folders or unfinished or gone or kept):
            click.echo("There is nothing to remove.", err=True)
    if kept:
        raise click.exceptions.Exit(1)


def _remove_each(things: Iterable[_Thing], remove: Callable[[_Thing], object] | None) -> tuple[list[_Thing], int]:
    """Those that were removed, or would be, and how many were not: why is told at once."""
    removed: list[_Thing] = []
    kept = 0
    for thing in things:
        try:
            if remove is not None:
                remove(thing)
            removed.append(thing)
        except OutputError as error:
            kept += 1
            show_notice(str(error))
    return removed, kept


def _remove_unfinished(*, is_real: bool) -> tuple[list[tuple[Path, str]], int]:
    """What killed conversions have left in the store, with its size; what a living one writes stays."""
    from zephyr_local.quantize.leftovers import is_being_written, settle_leftovers

    removed: list[tuple[Path, str]] = []
    kept = 0
    for path in unfinished_here():
        told = unfinished_told(path)
        if not is_being_written(path):
            if is_real:
                settle_leftovers(target_of(path))
            if not is_real or not os.path.lexists(path):
                removed.append((path, told))
                continue
        kept += 1
        show_notice(f"{on_a_line(path)} stays: a process writes it now, it cannot be removed, or it is not ours")
    return removed, kept


def _checkpoint_folders() -> list[Path]:
    from zephyr_local.model_store.library import store_folder
    from zephyr_local.model_store.pull import PARTIAL_FOLDER

    folder = store_folder() / PARTIAL_FOLDER
    try:
        return sorted(path for path in folder.iterdir() if _CHECKPOINT.fullmatch(path.name) and not path.is_symlink())
    except OSError:
        return []


def _remove_folder(folder: Path) -> None:
    from zephyr_local.model_store.file_lock import file_lock

    try:
        with file_lock(folder.with_name(f"{folder.name}.lock"), "this checkpoint"):
            shutil.rmtree(folder)
    except OSError as error:
        raise OutputError(f"{folder} cannot be removed: {error.strerror}", "Check its permissions") from None


def _gone() -> list[Path]:
    """Files that the registry knows and that are there no longer; what lies on a disk that is not there is not gone."""
    from zephyr_local.model_store.library import store_folder
    from zephyr_local.model_store.registry import all_recorded

    store = store_folder()
    try:
        paths = list(all_recorded())
    except OutputError as error:  # it is a memory
        show_notice(error.problem)
        return []
    # A folder above it tells that its disk is there: its own, or the store.
    return [path for path in paths if _is_missing(path) and any(map(_is_folder, _above(path, store)))]


def _above(path: Path, store: Path) -> list[Path]:
    return [path.parent, store] if store in path.parents else [path.parent]


def _is_missing(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):  # in a folder that is closed to this user
        return False
    return False


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 — Path.is_dir raises in a folder that is closed


def _forget(paths: Iterable[Path]) -> None:
    from zephyr_local.model_store.registry import Registry

    with Registry() as registry:
        for path in paths:
            registry.forget(path)
