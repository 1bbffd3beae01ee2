"""From the MODEL of a command line to a file, with what its user should see before it is used for the first time."""

from __future__ import annotations

import contextlib
import hashlib
import time
from pathlib import Path

import click

from zephyr_local.cli.models_told import on_a_line
from zephyr_local.cli.notice import show_notice
from zephyr_local.errors import ModelNotFoundError, OutputError, ZephyrError
from zephyr_local.model_store.catalogue import CatalogueEntry
from zephyr_local.model_store.library import assumed_template, resolve
from zephyr_local.repl.screen import visible
from zephyr_local.settings import EngineSettings

_MAX_SHOWN_CHARS = 4000


def find_model(
    name: Path, settings: EngineSettings, *, template: str | None, is_one_word: bool = False
) -> tuple[Path, str | None]:
    """The file that a path or a name stands for, and the template to be used: ``template``, or one that the name tells
    where the file brings none. Raises ModelNotFoundError, where it was one word as for a question.

    Where the catalogue knows the model's chat template and the file brings another, that one is shown, once; not where
    the user has chosen ``template``.
    """
    try:
        resolved = resolve(str(name), settings)
    except ModelNotFoundError as error:
        if not is_one_word:
            raise
        raise ModelNotFoundError(error.problem, f"{error.remedy}; a question of one word goes after --prompt") from None
    for notice in resolved.notices:
        show_notice(on_a_line(notice))
    if resolved.entry is not None and template is None:
        _show_other_template(resolved.path, resolved.entry)
    if template is None and (assumed := assumed_template(resolved)) is not None:
        show_notice(f"{on_a_line(str(name))} has no chat template; Zephyr's is used")
        return resolved.path, assumed
    return resolved.path, template


def _show_other_template(path: Path, entry: CatalogueEntry) -> None:
    source = _other_template(path, entry)
    if source is None:
        return
    digest = hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()
    if _was_shown(digest):
        return
    shown = visible(source[:_MAX_SHOWN_CHARS]) + ("…" if len(source) > _MAX_SHOWN_CHARS else "")
    show_notice(
        f"{on_a_line(path.name)} brings a chat template that is not {entry.name}'s ({entry.template}); it is run in a "
        f"guarded process. To use {entry.name}'s: --template {entry.template}. This is it, shown once:"
    )
    click.echo(shown, err=True)
    _remember(digest)


def _other_template(path: Path, entry: CatalogueEntry) -> str | None:
    """The template that a file brings, where it is another than the catalogue's."""
    from zephyr_local.chat_template import ChatTemplate
    from zephyr_local.gguf_split import read_model

    try:
        gguf = read_model(path)
        source = gguf.text("tokenizer.chat_template")
        if not source.strip() or not entry.template:
            return None
        is_known = ChatTemplate.from_gguf_metadata(gguf.metadata, path.name)[0].name == entry.template
    except ZephyrError:  # which the load will tell
        return None
    return None if is_known else source


def _was_shown(digest: str) -> bool:
    from zephyr_local.model_store.registry import Registry

    try:
        with Registry() as registry:
            return registry.was_shown(digest)
    except OutputError:  # it is a memory
        return False


def _remember(digest: str) -> None:
    from zephyr_local.model_store.registry import Registry

    with contextlib.suppress(OutputError), Registry() as registry:
        registry.mark_shown(digest, time.time())
