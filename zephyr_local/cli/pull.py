"""`zephyr-local pull`: a model from a hub, the file that fits this machine, whole or not at all."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zephyr_local.cli.conversion_options import parse_size
from zephyr_local.cli.models_told import command_line, on_a_line
from zephyr_local.cli.notice import show_notice
from zephyr_local.cli.options import engine_options
from zephyr_local.errors import ModelFileError, OutputError, ZephyrError
from zephyr_local.memory.plan import readable
from zephyr_local.settings import EngineSettings

if TYPE_CHECKING:
    from zephyr_local.cli.pull_choice import Choice
    from zephyr_local.cli.verdict import Verdict
    from zephyr_local.model_store.hub import HubSnapshot
    from zephyr_local.model_store.pull import Offer, Pulled
    from zephyr_local.model_store.registry import FileRecord
    from zephyr_local.model_store.wish import Wish


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a pull came to, or would come to."""

    wish: Wish
    snapshot: HubSnapshot
    offer: Offer
    why: str | None
    paths: tuple[Path, ...]
    """Where its files are, or would be."""
    is_here: bool
    """Whether they are."""
    missing_bytes: int
    """Of them, what is still to come."""
    pulled: Pulled | None = None


@click.command("pull", short_help="Get a model from a hub: the file that fits this machine.")
@click.argument("name")
@click.option(
    "--quantize",
    "types",
    metavar="TYPES",
    help="Make these types (q4_k_m,q8_0) of a checkpoint repository, shard by shard: the disk holds the outputs and at "
    "most two shards. After a kill, what was read comes again.",
)
@click.option("--max-disk", metavar="SIZE", help="Refuse where the store would hold more than this, such as 20G.")
@click.option("--dry-run", is_flag=True, help="Tell what would be fetched; fetch no weights.")
@engine_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout when it is done.")
def command(
    name: str,
    types: str | None,
    max_disk: str | None,
    dry_run: bool,
    settings: EngineSettings,
    as_json: bool,
) -> None:
    """Get NAME: zephyr-7b-beta, zephyr-7b-beta:q4_k_m, hf:OWNER/REPO, hf:OWNER/REPO/FILE; each may end in @REVISION.

    Without a type it takes the largest quantized one that fits the memory at the context asked for, and the disk. A
    download that was stopped, or killed, goes on with the same command. Every byte is checked against the hub's
    digest. What is on this machine already is not fetched again.

    The JSON object has repository, revision (the commit), licence, type, size_bytes, files (path, size_bytes, sha256),
    why (the choice, where there was one), paths, missing_bytes, was_here, fetched_bytes, resumed_bytes, chat (whether
    chat loads it) and dry_run.
    """
    from zephyr_local.model_store.library import store_folder
    from zephyr_local.model_store.wish import understand
    from zephyr_local.offline import is_offline, require_online

    if types is not None or not is_offline():
        require_online(f"pull {on_a_line(name)}")
    max_bytes = None if max_disk is None else parse_size(max_disk)
    wish = understand(name, is_checkpoint=types is not None)
    store = store_folder()
    if types is not None:
        from zephyr_local.cli.pull_checkpoint import pull_checkpoint

        pull_checkpoint(wish.hub, types, store, max_bytes=max_bytes, dry_run=dry_run, as_json=as_json)
        return
    if is_offline():
        from zephyr_local.cli.pull_offline import tell_what_is_here

        tell_what_is_here(name, wish.hub, wish.entry, dry_run=dry_run, as_json=as_json)
        return
    outcome = _plan(wish, settings, store, max_bytes)
    if outcome.is_here and not dry_run:
        _remember(outcome, store)
    if dry_run or outcome.is_here:
        _tell(outcome, dry_run=dry_run, as_json=as_json)
    else:
        _tell(_fetch(outcome, store), dry_run=False, as_json=as_json)


def _plan(wish: Wish, settings: EngineSettings, store: Path, max_bytes: int | None) -> _Outcome:
    """What is to be fetched, decided before any of it is; raises where it has no room."""
    from zephyr_local.cli.pull_choice import Choice, disk_room
    from zephyr_local.model_store.hub import read_snapshot
    from zephyr_local.model_store.pull import (
        chosen_offers,
        missing_bytes,
        offers,
        require_one_model,
        targets,
        wrong_files,
    )

    snapshot = read_snapshot(wish.hub.repository, wish.hub.revision)
    if snapshot.left_out:
        show_notice(
            f"{len(snapshot.left_out)} of {snapshot.repository}'s files have names that no file may get here; they are "
            "left out"
        )
    found = chosen_offers(snapshot, wish.hub)
    everything = tuple(dict.fromkeys((*offers(snapshot), *found)))
    records = _records()
    here, wrong = _here(everything, records), wrong_files(records)
    missing = {offer: 0 if offer in here else missing_bytes(store, snapshot, offer, wrong) for offer in everything}
    choice = Choice(wish.name, wish.entry, settings, missing, disk_room(store, max_bytes))
    is_open = wish.hub.file is None and wish.hub.file_type is None
    why: str | None = None
    if is_open or len(found) > 1:
        require_one_model(found, snapshot)
        offer, why = choice.best(found)
    else:
        (offer,) = found
    if offer not in here:
        _show_plan(choice, offer, everything, why)
    paths = here.get(offer) or targets(store, snapshot, offer)
    return _Outcome(wish, snapshot, offer, why, paths, offer in here, missing[offer])


def _show_plan(choice: Choice, offer: Offer, everything: tuple[Offer, ...], why: str | None) -> None:
    if why is None:
        choice.require_disk(offer, everything)
        if (notice := choice.memory_notice(offer)) is not None:
            show_notice(notice)
    show_notice(why or f"{offer.label}, {readable(offer.size_bytes)}")


def _records() -> list[FileRecord]:
    from zephyr_local.model_store.registry import all_recorded

    try:
        return list(all_recorded().values())
    except ZephyrError:  # it is a memory; the models tell, too
        return []


def _here(found: tuple[Offer, ...], records: list[FileRecord]) -> dict[Offer, tuple[Path, ...]]:
    """Where offers lie on this machine already."""
    from zephyr_local.model_store.library import models_here
    from zephyr_local.model_store.pull import here_already, known_files

    known = known_files(models_here().models, records)
    return {offer: paths for offer in found if (paths := here_already(offer, known)) is not None}


def _remember(outcome: _Outcome, store: Path) -> None:
    """That what lies under another name is what was asked for, so that its own name finds it, too."""
    from zephyr_local.model_store.pull import record_also, targets

    if outcome.paths == targets(store, outcome.snapshot, outcome.offer):
        return
    try:
        record_also(outcome.snapshot, outcome.offer, outcome.paths)
    except OutputError as error:  # it is a memory
        show_notice(f"that {on_a_line(outcome.paths[0])} is {on_a_line(outcome.wish.name)} is not remembered: {error}")


def _fetch(outcome: _Outcome, store: Path) -> _Outcome:
    from zephyr_local.cli.pull_bar import pull_bar
    from zephyr_local.model_store.pull import missing_bytes, pull_offer
    from zephyr_local.user_folders import make_private_folder

    snapshot, offer = outcome.snapshot, outcome.offer
    make_private_folder(store)  # or it says that no home folder is known
    try:
        with pull_bar() as update:
            pulled = pull_offer(snapshot, offer, store, command=command_line(), on_progress=update)
    except KeyboardInterrupt:
        there = readable(offer.size_bytes - missing_bytes(store, snapshot, offer))
        click.echo(
            f"Interrupted; {there} of {readable(offer.size_bytes)} are here, and the same command goes on from there.",
            err=True,
        )
        raise
    for notice in pulled.notices:
        show_notice(notice)
    return replace(outcome, pulled=pulled, paths=pulled.paths, is_here=True, missing_bytes=0)


def _tell(outcome: _Outcome, *, dry_run: bool, as_json: bool) -> None:
    """Where it is, whether `chat` loads it, and how to talk with it."""
    where, pulled = on_a_line(outcome.paths[0]), outcome.pulled
    verdict, chat = chat_verdict(outcome.paths[0]) if outcome.is_here else (None, None)
    if as_json:
        click.echo(json.dumps(_as_json(outcome, chat, dry_run=dry_run)))
        return
    if not outcome.is_here:
        click.echo(f"{where}: {readable(outcome.missing_bytes)} would be fetched.")
        return
    if pulled is None or pulled.was_here:
        click.echo(f"{where} is here already; nothing was fetched.")
    else:
        kept = f"; {readable(pulled.resumed_bytes)} of it were here from before" if pulled.resumed_bytes else ""
        click.echo(f"{where}: {readable(outcome.offer.size_bytes)}, its digest is the hub's{kept}.")
    if verdict is None or verdict.refusal is not None:
        show_notice(chat or "")
        return
    tell_how_to_talk(_spoken_name(outcome), verdict)


def tell_how_to_talk(name: str, verdict: Verdict) -> None:
    """The command for what chat loads."""
    template = " --template zephyr" if verdict.template_refusal is not None else ""
    click.echo(f"Talk with it: zephyr-local chat {on_a_line(shlex.quote(name))}{template}")


def chat_verdict(path: Path) -> tuple[Verdict | None, str]:
    """What chat would do with it, and that in words; the words alone where it cannot even be read."""
    from zephyr_local.cli.verdict import read_with_verdict

    try:
        verdict = read_with_verdict(path)[1]
        return verdict, str(verdict)
    except ModelFileError as error:
        return None, f"chat does not load it: {error}"


def _spoken_name(outcome: _Outcome) -> str:
    """The shortest name that `chat` takes for what was pulled."""
    from zephyr_local.model_store.library import resolve

    entry, offer, hub = outcome.wish.entry, outcome.offer, outcome.wish.hub
    names = [str(hub)]
    if offer.file_type is not None:
        names.insert(0, str(replace(hub, file=None, file_type=offer.file_type)))
        if entry is not None:
            names.insert(0, f"{entry.name}:{offer.file_type.lower()}")
    for name in names:
        try:
            found = resolve(name).path
        except ZephyrError:
            continue
        if found in outcome.paths:
            return name
    return str(outcome.paths[0])


def _as_json(outcome: _Outcome, chat: str | None, *, dry_run: bool) -> dict[str, object]:
    snapshot, offer, pulled = outcome.snapshot, outcome.offer, outcome.pulled
    return {
        "repository": snapshot.repository,
        "revision": snapshot.commit,
        "licence": snapshot.licence,
        "type": offer.file_type,
        "size_bytes": offer.size_bytes,
        "files": [{"path": file.path, "size_bytes": file.size_bytes, "sha256": file.sha256} for file in offer.files],
        "why": outcome.why,
        "paths": [str(path) for path in outcome.paths],
        "missing_bytes": outcome.missing_bytes,
        "was_here": outcome.is_here and (pulled is None or pulled.was_here),
        "fetched_bytes": pulled.fetched_bytes if pulled else 0,
        "resumed_bytes": pulled.resumed_bytes if pulled else 0,
        "chat": chat,
        "dry_run": dry_run,
    }
