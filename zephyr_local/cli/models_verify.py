"""`zephyr-local models verify`: reads every byte of models again and compares digests."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import click

from zephyr_local.cli.byte_bar import byte_bar
from zephyr_local.errors import ModelNotFoundError
from zephyr_local.repl.screen import visible

if TYPE_CHECKING:
    from zephyr_local.model_store.places import FoundModel
    from zephyr_local.model_store.registry import Registry

_READ_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one file."""

    path: Path
    result: Literal["right", "differs", "recorded", "unreadable"]
    """``recorded``: nobody had told a digest, so this one is what the next verification compares with."""
    sha256: str | None
    expected: str | None
    problem: str = ""


@click.command("verify", short_help="Read models again and compare their digests.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def verify(names: tuple[str, ...], as_json: bool) -> None:
    """Hash the models NAME, or all on this machine, and compare with the digests of the hub, of their store, or of the
    last time. Any bit that flipped is found. Exit code 1 where a file differs."""
    from zephyr_local.model_store.registry import Registry

    files = _files(names)
    total = sum(path.stat().st_size for path, _ in files if path.exists())
    verdicts = []
    with Registry() as registry, byte_bar("verify", total) as advance:
        for path, told in files:
            verdicts.append(_verify(path, told, registry, advance))
    wrong = [verdict for verdict in verdicts if verdict.result in ("differs", "unreadable")]
    if as_json:
        click.echo(json.dumps({"files": [_as_json(verdict) for verdict in verdicts], "wrong": len(wrong)}))
    else:
        for verdict in verdicts:
            click.echo(_line(verdict))
        if not verdicts:
            click.echo("There are no models to verify.", err=True)
    if wrong:
        raise click.exceptions.Exit(1)


def _files(names: tuple[str, ...]) -> list[tuple[Path, str | None]]:
    """Files and the digests that their places tell."""
    from zephyr_local.model_store.catalogue import read_catalogue
    from zephyr_local.model_store.library import existing_file, matching, models_here, what_is_wanted

    catalogue = read_catalogue()
    models = models_here(catalogue).models
    chosen: list[FoundModel] = []
    found: list[tuple[Path, str | None]] = []
    for name in names:
        if (path := existing_file(name)) is not None and path.is_file():
            whole = [model for model in models if any(file.samefile(path) for file in model.files if file.exists())]
            chosen += whole
            if not whole:
                found.append((path.absolute(), None))
            continue
        matches = list(matching(what_is_wanted(catalogue.alias(name) or name, catalogue), models))
        if not matches:
            raise ModelNotFoundError(f"there is no model {name}", "zephyr-local models list tells what is here")
        chosen += matches
    for model in chosen if names else models:
        found += [(path, model.sha256 if len(model.files) == 1 else None) for path in model.files]
    return list(dict.fromkeys(found))


def _verify(path: Path, told: str | None, registry: Registry, advance: Callable[[int], object]) -> Verdict:
    from zephyr_local.model_store.registry import FileRecord

    record = registry.of(path.absolute())
    expected = record.sha256 if record is not None else told
    try:
        status = path.stat()
        found = _sha256(path, advance)
    except OSError as error:
        return Verdict(path, "unreadable", None, expected, error.strerror or str(error))
    if expected is not None:
        return Verdict(path, "right" if found == expected else "differs", found, expected)
    command = shlex.join(["zephyr-local", *sys.argv[1:]])
    registry.record(
        FileRecord(
            *(path.absolute(), status.st_size, status.st_mtime_ns, found, "verify"),
            *(None, None, None, time.time(), command),
        )
    )
    return Verdict(path, "recorded", found, None)


def _sha256(path: Path, advance: Callable[[int], object]) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while data := file.read(_READ_BYTES):
            digest.update(data)
            advance(len(data))
    return digest.hexdigest()


def _line(verdict: Verdict) -> str:
    where = visible(str(verdict.path))
    if verdict.result == "right":
        return f"right     {where}"
    if verdict.result == "recorded":
        return f"recorded  {where}: no digest was known; the next verification compares with this one"
    if verdict.result == "unreadable":
        return f"WRONG     {where}: {verdict.problem}"
    return f"WRONG     {where}: its SHA-256 is {verdict.sha256}, and it must be {verdict.expected}"


def _as_json(verdict: Verdict) -> dict[str, object]:
    return {
        "path": str(verdict.path),
        "result": verdict.result,
        "sha256": verdict.sha256,
        "expected_sha256": verdict.expected,
        "problem": verdict.problem or None,
    }
