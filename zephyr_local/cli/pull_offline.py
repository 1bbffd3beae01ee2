"""`zephyr-local --offline pull`: what is here already by its name is told, and nobody is asked."""

from __future__ import annotations

import json
from pathlib import PurePath
from typing import TYPE_CHECKING

import click

from zephyr_local.cli.models_told import on_a_line
from zephyr_local.cli.notice import show_notice
from zephyr_local.errors import ZephyrError
from zephyr_local.offline import require_online

if TYPE_CHECKING:
    from zephyr_local.model_store.catalogue import CatalogueEntry
    from zephyr_local.model_store.names import HubName
    from zephyr_local.model_store.places import FoundModel


def tell_what_is_here(name: str, hub: HubName, entry: CatalogueEntry | None, *, dry_run: bool, as_json: bool) -> None:
    """Say where it lies; raises OfflineError where it does not, or is not as it was when it came."""
    from zephyr_local.cli.pull import chat_verdict, tell_how_to_talk

    model = _model_here(hub)
    if model is None:
        require_online(f"pull {on_a_line(name)}")
    assert model is not None
    verdict, chat = chat_verdict(model.path)
    if as_json:
        click.echo(json.dumps(_as_json(model, hub, entry, chat, dry_run=dry_run)))
        return
    click.echo(f"{on_a_line(model.path)} is here already; nothing was fetched.")
    if verdict is None or verdict.refusal is not None:
        show_notice(chat)
    else:
        tell_how_to_talk(name, verdict)


def _model_here(hub: HubName) -> FoundModel | None:
    """The model that the name stands for, none of whose files was changed since it was recorded, or found wrong."""
    from zephyr_local.model_store.library import resolve
    from zephyr_local.model_store.registry import all_recorded

    try:
        model, records = resolve(str(hub)).model, all_recorded()
    except ZephyrError:
        return None
    if model is None:
        return None
    known = [(path, records.get(path.absolute())) for path in model.files]
    return model if all(record is None or record.counts_for(path) for path, record in known) else None


def _as_json(
    model: FoundModel, hub: HubName, entry: CatalogueEntry | None, chat: str, *, dry_run: bool
) -> dict[str, object]:
    """The keys of every pull; of a model in several files no digests, which nobody tells by file here."""
    from zephyr_local.model_store.library import base_and_type

    below = PurePath(*hub.repository.split("/")).as_posix()
    files = [
        {
            "path": path.as_posix().rpartition(f"/{below}/")[2] if f"/{below}/" in path.as_posix() else path.name,
            "size_bytes": path.stat().st_size,
            "sha256": model.sha256,
        }
        for path in model.files
    ]
    return {
        "repository": model.repository,
        "revision": model.revision,
        "licence": entry.licence or None if entry is not None else None,
        "type": base_and_type(model)[1],
        "size_bytes": model.size_bytes,
        "files": files,
        "why": None,
        "paths": [str(path) for path in model.files],
        "missing_bytes": 0,
        "was_here": True,
        "fetched_bytes": 0,
        "resumed_bytes": 0,
        "chat": chat,
        "dry_run": dry_run,
    }
