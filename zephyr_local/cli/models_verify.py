"""`zephyr-local models verify`: reads every byte of models again and compares digests."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from zephyr_local.cli.byte_bar import byte_bar
from zephyr_local.cli.models_told import command_line, on_a_line
from zephyr_local.cli.notice import show_notice
from zephyr_local.errors import OutputError
from zephyr_local.model_store.digest import sha256_of

if TYPE_CHECKING:
    from zephyr_local.model_store.registry import FileRecord


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one file."""

    path: Path
    result: Literal["right", "differs", "changed", "recorded", "unreadable"]
    """``recorded``: nobody had told a digest, so this one is what the next verification compares with. ``changed``: it
    is not what it was then, and was written since."""
    sha256: str | None
    expected: str | None
    problem: str = ""
    remedy: str = ""
    """Of one that differs."""

    @property
    def is_wrong(self) -> bool:
        return self.result not in ("right", "recorded")


@click.command("verify", short_help="Read models again and compare their digests.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--accept", is_flag=True, help="Take files that were changed on purpose as they are now.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def verify(names: tuple[str, ...], accept: bool, as_json: bool) -> None:
    """Hash the models NAME, or all on this machine, and compare with the digests of the hub, of their store, or of the
    last time. Any bit that flipped is found. Exit code 1 where a file differs, was changed or cannot be read.

    The JSON object has files (path, result, sha256, expected_sha256, problem) and wrong (how many). A result is right,
    differs, changed, recorded (for the next time) or unreadable.
    """
    files = _files(names)
    verifier = _Verifier(_records(), accept=accept)
    try:
        with byte_bar("verify", sum(map(_size_of, files))) as advance:
            verdicts = [verifier.verdict(path, told, advance) for path, told in files.items()]
    finally:
        verifier.remember()  # also what was read before Ctrl+C
    wrong = sum(verdict.is_wrong for verdict in verdicts)
    if as_json:
        click.echo(json.dumps({"files": [_as_json(verdict) for verdict in verdicts], "wrong": wrong}))
    else:
        for verdict in verdicts:
            click.echo(_line(verdict))
        if not verdicts:
            click.echo("There are no models to verify.", err=True)
    if wrong:
        raise click.exceptions.Exit(1)


def _files(names: tuple[str, ...]) -> dict[Path, str | None]:
    """Files, and the digests that their places tell."""
    from zephyr_local.cli.models_named import models_named
    from zephyr_local.model_store.catalogue import read_catalogue
    from zephyr_local.model_store.library import models_here

    catalogue = read_catalogue()
    models = models_here(catalogue).models
    files: dict[Path, str | None] = {}
    chosen = [] if names else list(models)
    for name in names:
        named = models_named(name, catalogue, models)
        chosen += named.models
        if named.file is not None and not named.models:
            files[named.file.absolute()] = None
    for model in chosen:
        for path in model.files:
            files[path.absolute()] = model.sha256 if len(model.files) == 1 else None
    return files


def _records() -> dict[Path, FileRecord]:
    from zephyr_local.model_store.registry import all_recorded

    try:
        return all_recorded()
    except OutputError as error:  # places tell digests, too
        show_notice(error.problem)
        return {}


class _Verifier:
    """Compares files with what is known of them, and keeps what is to be known from now on."""

    def __init__(self, records: Mapping[Path, FileRecord], *, accept: bool) -> None:
        self._records = records
        self._accept = accept
        self._new: list[FileRecord] = []

    def verdict(self, path: Path, told: str | None, advance: Callable[[int], object]) -> Verdict:
        record = self._records.get(path)
        expected = told or (record.sha256 if record is not None else None)
        try:
            status = path.stat()
            found = sha256_of(path, advance)
        except OSError as error:
            return Verdict(path, "unreadable", None, expected, error.strerror or str(error))
        is_as_it_was = record is not None and record.is_as_it_was(path)
        if expected is None:
            self._new.append(_record(path, status, found, None))
            return Verdict(path, "recorded", found, None)
        if found == expected:
            # It has another time and no more, or was wrong and is no longer.
            if record is not None and (record.is_wrong or (record.sha256 == found and not is_as_it_was)):
                self._new.append(_record(path, status, found, record))
            return Verdict(path, "right", found, expected)
        if is_as_it_was or told is not None or record is None or record.source == "hub":
            wrong = _record(path, status, expected, record)
            self._new.append(replace(wrong, is_wrong=True))  # so that a pull does not take it as being here
            return Verdict(path, "differs", found, expected, remedy=_remedy(wrong))
        if not self._accept:
            return Verdict(path, "changed", found, expected)
        self._new.append(_record(path, status, found, None))
        return Verdict(path, "recorded", found, expected)

    def remember(self) -> None:
        """Write what is to be compared with the next time."""
        from zephyr_local.model_store.registry import Registry

        if not self._new:
            return
        try:
            with Registry() as registry:
                for record in self._new:
                    registry.record(record)
        except OutputError as error:
            show_notice(f"digests are not remembered: {error.problem}")


def _record(path: Path, status: os.stat_result, sha256: str, before: FileRecord | None) -> FileRecord:
    """What is known of a file from now on; where it is from, if it is still that one."""
    from zephyr_local.model_store.registry import FileRecord

    facts = (path, status.st_size, status.st_mtime_ns, sha256)
    if before is not None:
        origin = (before.source, before.repository, before.revision, before.licence)
        return FileRecord(*facts, *origin, before.recorded_s, before.command)
    return FileRecord(*facts, "verify", None, None, None, time.time(), command_line())


def _remedy(record: FileRecord) -> str:
    """How to get a file again that is not what it must be."""
    if record.repository is not None and record.source == "hub":
        _, _, file = record.path.as_posix().rpartition(f"/{record.repository}/")
        name = f"hf:{record.repository}/{file}@{record.revision}"
        return f"zephyr-local pull {on_a_line(shlex.quote(name))} fetches it again"
    if record.repository is not None and record.source == "quantize":
        there = on_a_line(shlex.quote(str(record.path)))
        return f"zephyr-local models rm {there} removes it, and pull {record.repository} --quantize makes it again"
    return "get it again from where it came"


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _line(verdict: Verdict) -> str:
    where = on_a_line(verdict.path)
    if verdict.result == "right":
        return f"right     {where}"
    if verdict.result == "recorded":
        return f"recorded  {where}: the next verification compares with what it is now"
    if verdict.result == "unreadable":
        return f"WRONG     {where}: {verdict.problem}"
    if verdict.result == "changed":
        return f"CHANGED   {where}: it was written since its digest was taken; if that was you, verify it with --accept"
    return f"WRONG     {where}: its SHA-256 is {verdict.sha256}, and it must be {verdict.expected}; {verdict.remedy}"


def _as_json(verdict: Verdict) -> dict[str, object]:
    return {
        "path": str(verdict.path),
        "result": verdict.result,
        "sha256": verdict.sha256,
        "expected_sha256": verdict.expected,
        "problem": verdict.problem or None,
    }
