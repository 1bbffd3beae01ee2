"""`zephyr-local pull`: a model from a hub, the file that fits this machine, whole or not at all."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from zephyr_local.cli.conversion_options import parse_size
from zephyr_local.cli.notice import show_notice
from zephyr_local.cli.options import engine_options
from zephyr_local.errors import InvalidInputError, NotEnoughMemoryError, OutputError
from zephyr_local.memory.plan import Machine, Plan, readable
from zephyr_local.repl.screen import visible
from zephyr_local.settings import EngineSettings

if TYPE_CHECKING:
    from zephyr_local.memory.shape import ModelShape
    from zephyr_local.model_store.catalogue import CatalogueEntry
    from zephyr_local.model_store.hub import HubSnapshot
    from zephyr_local.model_store.names import HubName
    from zephyr_local.model_store.pull import Offer, Pulled

MARGIN_BYTES: Final = 64 << 20
"""Of the disk, left free beside a download."""


@dataclass(frozen=True, slots=True)
class _Wish:
    """What is pulled, from where, under which limits."""

    name: str
    hub: HubName
    entry: CatalogueEntry | None
    settings: EngineSettings
    max_disk_bytes: int | None


@click.command("pull", short_help="Get a model from a hub: the file that fits this machine.")
@click.argument("name")
@click.option("--quantize", "types", metavar="TYPES", help="Make these types (q4_k_m,q8_0) of a checkpoint repository.")
@click.option("--max-disk", metavar="SIZE", help="Refuse where the store would hold more than this, such as 20G.")
@click.option("--dry-run", is_flag=True, help="Tell what would be fetched; fetch nothing.")
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
    """
    from zephyr_local.model_store.library import store_folder
    from zephyr_local.offline import require_online

    require_online(f"pull {name}")
    wish = _understand(name, settings, None if max_disk is None else parse_size(max_disk), is_checkpoint=bool(types))
    if types is not None:
        from zephyr_local.cli.pull_checkpoint import pull_checkpoint

        pull_checkpoint(wish.hub, types, store_folder(), dry_run=dry_run, as_json=as_json)
        return
    from zephyr_local.model_store.hub import read_snapshot
    from zephyr_local.model_store.pull import chosen_offers

    snapshot = read_snapshot(wish.hub.repository, wish.hub.revision)
    found = chosen_offers(snapshot, wish.hub)
    here = _here(found, snapshot)
    offer, why = (found[0], "") if len(found) == 1 else _choose(wish, snapshot, found)
    if offer.stem in here:
        _tell(wish, snapshot, offer, None, here[offer.stem], as_json=as_json)
        return
    _require_room(wish, snapshot, offer, store_folder())
    show_notice(why or f"{offer.label}: {readable(offer.size_bytes)}")
    if dry_run:
        if as_json:
            click.echo(json.dumps(_plan_as_json(snapshot, offer)))
        return
    pulled = _fetch(snapshot, offer, store_folder())
    _tell(wish, snapshot, offer, pulled, pulled.paths, as_json=as_json)


def _understand(name: str, settings: EngineSettings, max_disk_bytes: int | None, *, is_checkpoint: bool) -> _Wish:
    """From a name to a repository; raises InvalidInputError where it names none."""
    from zephyr_local.model_store.catalogue import read_catalogue
    from zephyr_local.model_store.hub import check_file_path, check_revision, parse_repository
    from zephyr_local.model_store.names import HubName, is_hub_name, parse_hub_name, split_type

    catalogue = read_catalogue()
    target = catalogue.alias(name) or name
    plain, at, revision = target.partition("@")
    base, file_type = split_type(plain)
    entry = catalogue.entry(base)
    if entry is not None:
        repository = (entry.checkpoint if is_checkpoint else None) or (entry.gguf[0] if entry.gguf else None)
        if repository is None:
            raise InvalidInputError(f"the catalogue names no repository for {base}", "Give hf:OWNER/REPO")
        hub = HubName(repository, None, file_type, revision if at else None)
    elif is_hub_name(target) or "/" in target:
        hub = parse_hub_name(target)
        entry = catalogue.entry_of_repository(hub.repository)
    else:
        known = ", ".join(found.name for found in catalogue.entries.values())
        raise InvalidInputError(f"{name!r} is not known", f"Give hf:OWNER/REPO, or one of: {known}")
    parse_repository(hub.repository)
    if hub.file is not None:
        check_file_path(hub.file)
    if hub.revision is not None:
        check_revision(hub.revision)
    return _Wish(name, hub, entry, settings, max_disk_bytes)


def _here(found: Sequence[Offer], snapshot: HubSnapshot) -> dict[str, tuple[Path, ...]]:
    from zephyr_local.model_store.library import models_here
    from zephyr_local.model_store.pull import here_already
    from zephyr_local.model_store.registry import Registry

    models = models_here().models
    with Registry() as registry:
        records = registry.records()
    return {offer.stem: paths for offer in found if (paths := here_already(offer, models, records)) is not None}


def _choose(wish: _Wish, snapshot: HubSnapshot, found: Sequence[Offer]) -> tuple[Offer, str]:
    """The best that fits memory and disk, and why in a line; else NotEnoughMemoryError or OutputError."""
    from zephyr_local.cli.type_fits import UNQUANTIZED
    from zephyr_local.engine.machine import probed_machine
    from zephyr_local.model_store.library import store_folder
    from zephyr_local.model_store.pull import require_one_model

    require_one_model(found, snapshot)
    machine = probed_machine()
    quantized = [offer for offer in found if offer.file_type not in UNQUANTIZED] or list(found)
    free = _free_bytes(store_folder())
    refused: list[tuple[Offer, str]] = []
    larger: tuple[Offer, str] | None = None
    for offer in sorted(quantized, key=lambda offer: -offer.size_bytes):
        needed, shortfall = _memory_of(wish, offer, machine)
        if shortfall is None and offer.size_bytes + MARGIN_BYTES > free:
            shortfall = f"{readable(offer.size_bytes)} of disk, and {readable(free)} are free"
        if shortfall is None:
            size = readable(offer.size_bytes)
            why = f"{offer.label}, {size}: needs {needed} of the {readable(machine.available_bytes)} available"
            if larger is not None:
                why += f"; the next larger, {larger[0].label}, needs {larger[1]}"
            return offer, why
        larger = (offer, shortfall)
        refused.append(larger)
    smallest, shortfall = refused[-1]
    raise NotEnoughMemoryError(
        f"no type of {wish.name} fits: the smallest, {smallest.label}, needs {shortfall}",
        _smaller_choice(wish, smallest, machine),
    )


def _memory_of(wish: _Wish, offer: Offer, machine: Machine) -> tuple[str, str | None]:
    """What an offer needs, for people, and what is missing, if anything is."""
    model = _shape_of(wish, offer)
    if model is None:  # its shape is not known before it is here; it needs as much as it has
        too_much = offer.size_bytes > machine.available_bytes + sum(gpu.free_bytes for gpu in machine.gpus)
        size = readable(offer.size_bytes)
        available = readable(machine.available_bytes)
        return f"at least {size}", f"at least {size} of memory, and {available} are available" if too_much else None
    try:
        planned = _plan(model, wish.settings, machine, offer.label)
    except NotEnoughMemoryError as error:
        return "", error.problem.partition(" needs ")[2]
    estimate = planned.estimate
    gpu = sum(device.needed_bytes for device in estimate.devices if device.n_layers)
    on_gpu = f" and {readable(gpu)} of the GPU's" if gpu else ""
    return f"{readable(estimate.needed_bytes)}{on_gpu} with a context of {estimate.n_ctx} tokens", None


def _plan(model: ModelShape, settings: EngineSettings, machine: Machine, name: str) -> Plan:
    """For the usual context where none is asked for: a download is not for a context that was made smaller to fit."""
    from zephyr_local.memory.estimate import padded_n_ctx
    from zephyr_local.memory.plan import plan

    return plan(model, replace(settings, n_ctx=padded_n_ctx(model, settings)), machine, name)


def _shape_of(wish: _Wish, offer: Offer) -> ModelShape | None:
    """The offer's shape, where the catalogue knows the model and we know the type."""
    from zephyr_local.cli.type_fits import shape_in_type
    from zephyr_local.quantize.types import FileType

    file_type = FileType.__members__.get(offer.file_type or "")
    if wish.entry is None or wish.entry.shape is None or file_type is None:
        return None
    return shape_in_type(wish.entry.shape, file_type)


def _smaller_choice(wish: _Wish, smallest: Offer, machine: Machine) -> str:
    """The next smaller thing that would fit, or none."""
    from zephyr_local.memory.plan import nearest_that_fits

    model = _shape_of(wish, smallest)
    near = None if model is None else nearest_that_fits(model, wish.settings, machine)
    if near is None:
        return "Free memory or disk, or take a smaller model"
    changes = [f"--n-ctx {near.n_ctx}"] if near.n_ctx != wish.settings.n_ctx else []
    changes += [f"--kv-type {near.kv_type}"] if near.kv_type != wish.settings.kv_type else []
    return f"{smallest.label} fits with {' '.join(changes)}; or free memory"


def _require_room(wish: _Wish, snapshot: HubSnapshot, offer: Offer, store: Path) -> None:
    """Memory of a type that was asked for, disk, and the limit on the store."""
    from zephyr_local.model_store.pull import require_disk

    require_disk(store, wish.max_disk_bytes, offer)
    if (free := _free_bytes(store)) < offer.size_bytes + MARGIN_BYTES:
        raise OutputError(
            f"{offer.stem} has {readable(offer.size_bytes)}, and {readable(free)} are free on the disk of {store}",
            "Free some, take a smaller type, or put the store elsewhere (ZEPHYR_LOCAL_STORE_FOLDER)",
        )
    if not wish.settings.check_memory or (model := _shape_of(wish, offer)) is None:
        return
    from zephyr_local.engine.machine import probed_machine

    try:
        _plan(model, wish.settings, probed_machine(), offer.stem)
    except NotEnoughMemoryError as error:
        show_notice(f"{error.problem}; it is fetched all the same, as {wish.name} names it")


def _free_bytes(store: Path) -> int:
    """What may be written below the store; a partial download that is there is part of what is needed."""
    from zephyr_local.hardware import disk_of
    from zephyr_local.model_store.partials import list_partials
    from zephyr_local.model_store.pull import PARTIAL_FOLDER

    there = sum(partial.there_bytes for partial in list_partials(store / PARTIAL_FOLDER))
    return disk_of(store).free_bytes + there


def _fetch(snapshot: HubSnapshot, offer: Offer, store: Path) -> Pulled:
    from zephyr_local.cli.pull_bar import pull_bar
    from zephyr_local.model_store.pull import pull_offer

    command_line = shlex.join(["zephyr-local", *sys.argv[1:]])
    try:
        with pull_bar() as update:
            return pull_offer(snapshot, offer, store, command=command_line, on_progress=update)
    except KeyboardInterrupt:
        click.echo("Interrupted; the same command goes on from here.", err=True)
        raise


def _tell(
    wish: _Wish,
    snapshot: HubSnapshot,
    offer: Offer,
    pulled: Pulled | None,
    paths: Sequence[Path],
    *,
    as_json: bool,
) -> None:
    """Where it is, whether `chat` loads it, and how to talk with it."""
    from zephyr_local.cli.verdict import read_with_verdict

    _, verdict = read_with_verdict(paths[0])
    if as_json:
        click.echo(
            json.dumps(
                {
                    **_plan_as_json(snapshot, offer),
                    "paths": [str(path) for path in paths],
                    "was_here": pulled is None or pulled.was_here,
                    "fetched_bytes": pulled.fetched_bytes if pulled else 0,
                    "resumed_bytes": pulled.resumed_bytes if pulled else 0,
                    "chat": str(verdict),
                }
            )
        )
        return
    if pulled is None or pulled.was_here:
        click.echo(f"{visible(str(paths[0]))} is here already; nothing was fetched.")
    else:
        kept = f", {readable(pulled.resumed_bytes)} were here from before" if pulled.resumed_bytes else ""
        click.echo(f"{visible(str(paths[0]))}: {readable(offer.size_bytes)}, its digest is the hub's{kept}.")
    if verdict.refusal is not None:
        show_notice(str(verdict))
        return
    name = wish.entry.name if wish.entry else str(wish.hub)
    typed = f"{wish.entry.name}:{offer.file_type.lower()}" if wish.entry and offer.file_type else name
    template = " --template zephyr" if verdict.template_refusal is not None else ""
    click.echo(f"Talk with it: zephyr-local chat {shlex.quote(typed)}{template}")


def _plan_as_json(snapshot: HubSnapshot, offer: Offer) -> dict[str, object]:
    return {
        "repository": snapshot.repository,
        "revision": snapshot.commit,
        "licence": snapshot.licence,
        "type": offer.file_type,
        "size_bytes": offer.size_bytes,
        "files": [{"path": file.path, "size_bytes": file.size_bytes, "sha256": file.sha256} for file in offer.files],
    }
