"""`zephyr-local pull REPO --quantize TYPES`: a checkpoint repository becomes GGUFs, shard by shard.

Each shard comes, is read once, and goes, so the disk holds the outputs and at most two shards. All that headers tell is
decided before the first of them comes. The outputs are whole or absent, so after a kill all shards are read again;
those that lie here still are the first, and the others come again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zephyr_local.cli.byte_bar import byte_bar
from zephyr_local.cli.checkpoint_bar import checkpoint_display
from zephyr_local.cli.checkpoint_files import CheckpointFiles, checkpoint_files
from zephyr_local.cli.models_told import command_line
from zephyr_local.cli.notice import show_notice
from zephyr_local.errors import CheckpointError, HubError, InvalidInputError, ModelFileError, OutputError
from zephyr_local.hardware import disk_of
from zephyr_local.memory.plan import readable
from zephyr_local.model_store.digest import sha256_of
from zephyr_local.repl.screen import visible

if TYPE_CHECKING:
    from zephyr_local.convert.hf_to_gguf import DryRun
    from zephyr_local.model_store.hub import HubSnapshot
    from zephyr_local.model_store.hub_shards import HubShards
    from zephyr_local.model_store.names import HubName
    from zephyr_local.quantize.output_plan import OutputPlan
    from zephyr_local.quantize.types import FileType


@dataclass(frozen=True, slots=True)
class _Job:
    """What is made of which commit, and where all of it lies."""

    snapshot: HubSnapshot
    files: CheckpointFiles
    store: Path
    max_bytes: int | None
    """What the store may hold, shards on their way included; None: as much as the disk does."""

    @property
    def outputs(self) -> Path:
        """The folder of the GGUFs."""
        return self.store.joinpath(*self.snapshot.repository.split("/"))

    @property
    def partials(self) -> Path:
        from zephyr_local.model_store.pull import PARTIAL_FOLDER

        return self.store / PARTIAL_FOLDER

    @property
    def work(self) -> Path:
        """A folder of this commit's own."""
        digest = hashlib.sha256(self.snapshot.repository.encode()).hexdigest()[:16]
        return self.partials / f"checkpoint-{self.snapshot.commit}-{digest}"

    @property
    def source(self) -> Path:
        """The checkpoint's folder, named as the repository: the model is named after it."""
        return self.work / self.snapshot.repository.split("/")[1]

    def target(self, file_type: FileType) -> Path:
        from zephyr_local.convert.hf_to_gguf import default_target_name

        return self.outputs / default_target_name(self.source, file_type)

    def __str__(self) -> str:
        return f"{self.snapshot.repository} at {self.snapshot.commit[:12]}"


@dataclass(frozen=True, slots=True)
class _Made:
    """An output that has its name."""

    file_type: FileType
    path: Path
    size_bytes: int
    sha256: str
    was_here: bool


def pull_checkpoint(
    name: HubName, types: str, store: Path, *, max_bytes: int | None = None, dry_run: bool, as_json: bool
) -> None:
    """Make the ``types`` ("q4_k_m,q8_0") of a repository's checkpoint in the store, or tell what that would take."""
    from zephyr_local.model_store.hub import read_snapshot
    from zephyr_local.model_store.hub_shards import HubShards

    file_types = _file_types(name, types)
    snapshot = read_snapshot(name.repository, name.revision)
    job = _Job(snapshot, checkpoint_files(snapshot), store, max_bytes)
    here = {file_type: made for file_type in file_types if (made := _recorded(job, file_type)) is not None}
    fetched_bytes = resumed_bytes = 0
    if missing := [file_type for file_type in file_types if file_type not in here]:
        shards = HubShards(snapshot, job.files.shards, job.source, job.partials)
        with _working_folder(job), shards:
            _fetch_side_files(job)
            if dry_run:
                _show_dry_run(job, missing, shards, as_json=as_json)
                return
            here |= _make(job, missing, shards)
            shutil.rmtree(job.work, ignore_errors=True)
        fetched_bytes, resumed_bytes = shards.fetched_bytes, shards.resumed_bytes
    _tell(job, [here[file_type] for file_type in file_types], fetched_bytes, resumed_bytes, as_json=as_json)


def _file_types(name: HubName, types: str) -> list[FileType]:
    from zephyr_local.quantize.types import FileType

    if name.file is not None or name.file_type is not None:
        raise InvalidInputError(
            f"{name} names a file or a type, and --quantize makes its own of the whole checkpoint",
            f"Write hf:{name.repository}, and the types behind --quantize",
        )
    found = [FileType.parse(word.strip()) for word in types.split(",") if word.strip()]
    if not found:
        raise InvalidInputError("--quantize has no type", "Write one or more, such as q4_k_m,q8_0")
    return list(dict.fromkeys(found))


def _recorded(job: _Job, file_type: FileType) -> _Made | None:
    """What was made of this very commit before, and is as it was."""
    from zephyr_local.model_store.registry import recorded

    record = recorded(job.target(file_type))
    if record is None or record.source != "quantize":
        return None
    if (record.repository, record.revision) != (job.snapshot.repository, job.snapshot.commit):
        return None
    return _Made(file_type, record.path, record.size_bytes, record.sha256, was_here=True)


@contextlib.contextmanager
def _working_folder(job: _Job) -> Iterator[None]:
    """For this process alone; afterwards it stays where a shard lies in it that another run can go on with."""
    from zephyr_local.model_store.file_lock import file_lock

    job.partials.mkdir(parents=True, exist_ok=True)
    with file_lock(job.work.with_name(f"{job.work.name}.lock"), f"the checkpoint of {job.snapshot.repository}"):
        job.source.mkdir(parents=True, exist_ok=True)
        is_hopeless = False
        try:
            yield
        except (CheckpointError, ModelFileError):  # it would be refused again
            is_hopeless = True
            raise
        finally:
            if is_hopeless or not any(job.source.glob("*.safetensors")):
                shutil.rmtree(job.work, ignore_errors=True)


def _fetch_side_files(job: _Job) -> None:
    from zephyr_local.model_store.download import download

    for file in job.files.side:
        target = job.source.joinpath(*file.path.split("/"))
        download(job.snapshot, file, target, partial_folder=job.partials)


def _make(job: _Job, file_types: Sequence[FileType], shards: HubShards) -> dict[FileType, _Made]:
    """Convert, and record what was made; what was made before and not recorded is recorded now."""
    from zephyr_local.convert.hf_to_gguf import ConvertOptions, OutputRequest, convert_model

    options = ConvertOptions(supply=shards)
    found = _plan(job, file_types, shards)
    before = {plan.request.file_type for plan in found.plans if _is_made(job, plan, found.hashed)}
    plans = [plan for plan in found.plans if plan.request.file_type not in before]
    if plans:
        _require_room(job, plans, shards, found.hashed)
        with _told_when_it_ends(job, shards), _output_folder(job), checkpoint_display() as display:
            shards.on_progress = display.fetch
            requests = [OutputRequest(plan.request.target, plan.request.file_type) for plan in plans]
            convert_model(job.source, requests, options, display.convert, display.note)
    return _record(job, found.plans, before)


def _plan(job: _Job, file_types: Sequence[FileType], shards: HubShards) -> DryRun:
    from zephyr_local.convert.hf_to_gguf import ConvertOptions, OutputRequest, dry_run

    requests = [OutputRequest(job.target(file_type), file_type) for file_type in file_types]
    return dry_run(job.source, requests, ConvertOptions(supply=shards))


def _is_made(job: _Job, plan: OutputPlan, hashed: Sequence[str]) -> bool:
    """Whether the target is what this would make, by its whole header: a run was killed before it could record it.

    Raises OutputError where something else has the name, and where it has not the digest that was recorded.
    """
    from zephyr_local.quantize.provenance import Provenance

    (file,) = plan.files
    if not os.path.lexists(file.path):
        return False
    digests = tuple(job.snapshot.file(name).sha256 or "" for name in hashed)
    header = file.header(Provenance(tuple(hashed), digests))
    with contextlib.suppress(OSError), file.path.open("rb") as stream:
        if stream.read(len(header)) == header and os.fstat(stream.fileno()).st_size == file.size_bytes:
            _require_recorded_digest(file.path)
            return True
    raise OutputError(
        f"{file.path} exists already, and is not what comes of {job}",
        "Remove it (zephyr-local models rm), or give it another name",
    )


def _require_recorded_digest(path: Path) -> None:
    """Raise OutputError where a file was recorded with other bytes than it has, whatever its header says."""
    from zephyr_local.model_store.registry import all_recorded

    record = all_recorded().get(path.absolute())
    if record is None or record.counts_for(path):
        return
    with byte_bar("hash", path.stat().st_size) as advance:
        found = sha256_of(path, advance)
    if found != record.sha256:
        raise OutputError(
            f"{path} is not what it was: its SHA-256 is {found}, and {record.sha256} was recorded",
            f"Remove it (zephyr-local models rm {shlex.quote(str(path))}), and the same command makes it anew; or give "
            "it another name",
        )


def _room(job: _Job, plans: Sequence[OutputPlan], shards: HubShards, names: Sequence[str]) -> tuple[int, int]:
    """What the store's disk must have free, and what it has; with one shard at a time where two find no room."""
    from zephyr_local.model_store.partials import DISK_MARGIN_BYTES

    disk, other = disk_of(job.partials), disk_of(job.outputs)
    free, outputs = disk.free_bytes, DISK_MARGIN_BYTES
    if disk.folder.stat().st_dev == other.folder.stat().st_dev:  # else the conversion asks that disk itself
        outputs += sum(plan.size_bytes for plan in plans)
    needed = outputs + shards.needed_bytes(names, ahead=True)
    if needed > free:
        shards.is_ahead = False
        needed = outputs + shards.needed_bytes(names, ahead=False)
    return needed, free


def _require_room(job: _Job, plans: Sequence[OutputPlan], shards: HubShards, names: Sequence[str]) -> None:
    from zephyr_local.quantize.leftovers import settle_leftovers

    for plan in plans:
        if job.outputs.is_dir():
            settle_leftovers(plan.request.target)  # what a killed run had reserved
    needed, free = _room(job, plans, shards, names)
    if needed > free:
        made = ", ".join(f"{plan.request.file_type.name} {readable(plan.size_bytes)}" for plan in plans)
        raise OutputError(
            f"{job.store} has {readable(free)} free, and {readable(needed)} are needed ({made}, a shard at a time, and "
            f"some to stay free): {readable(needed - free)} are missing",
            "Free them, make fewer or smaller types, or put the store elsewhere (ZEPHYR_LOCAL_STORE_FOLDER)",
        )
    outputs = sum(plan.size_bytes for plan in plans)
    _require_within_limit(job, outputs + shards.needed_bytes(names, ahead=shards.is_ahead))
    one = "" if shards.is_ahead else "; the disk has no room for two shards, so each comes when the one before has gone"
    show_notice(
        f"{job}: {readable(shards.missing_bytes(names))} to be fetched of {_amount(shards, names)}; each goes when it "
        f"was read{one}"
    )


def _require_within_limit(job: _Job, missing_bytes: int) -> None:
    from zephyr_local.cli.pull_choice import disk_room

    room = disk_room(job.store, job.max_bytes)
    if job.max_bytes is not None and (shortfall := room.shortfall(missing_bytes)) is not None:
        raise OutputError(
            f"{job} needs {shortfall}", "Make fewer or smaller types, remove something, or raise --max-disk"
        )


def _amount(shards: HubShards, names: Sequence[str]) -> str:
    size = readable(sum(map(shards.size_bytes, names)))
    return f"{len(names)} shards with {size}" if len(names) != 1 else f"one shard with {size}"


def _show_dry_run(job: _Job, file_types: Sequence[FileType], shards: HubShards, *, as_json: bool) -> None:
    from zephyr_local.cli.dry_run import show_dry_run

    found = _plan(job, file_types, shards)
    names = found.hashed
    needed, free = _room(job, found.plans, shards, names)
    fetch = {
        "shards": [{"path": name, "size_bytes": shards.size_bytes(name)} for name in names],
        "missing_bytes": shards.missing_bytes(names),
        "needed_bytes": needed,
        "free_bytes": free,
    }
    more = {"repository": job.snapshot.repository, "revision": job.snapshot.commit, "licence": job.snapshot.licence}
    show_dry_run(found, as_json=as_json, more={**more, "fetch": fetch})
    if not as_json:
        click.echo(f"Fetch: {readable(shards.missing_bytes(names))} of {_amount(shards, names)}, {job}")
        too_little = ": too little" if needed > free else ""
        at_once = "two at once" if shards.is_ahead and len(names) > 1 else "one at a time"
        click.echo(f"Disk with the shards, {at_once}: {readable(needed)} needed, {readable(free)} free{too_little}")


@contextlib.contextmanager
def _output_folder(job: _Job) -> Iterator[None]:
    """Made where it is missing, and gone again where nothing comes into it."""
    job.outputs.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for folder in (job.outputs, job.outputs.parent):
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()


@contextlib.contextmanager
def _told_when_it_ends(job: _Job, shards: HubShards) -> Iterator[None]:
    """Says what of the shards is lost, where the same command can go on."""
    try:
        yield
    except (KeyboardInterrupt, HubError, OutputError) as error:
        if isinstance(error, KeyboardInterrupt):
            click.echo("Interrupted; the same command begins anew with the shards that are here.", err=True)
        if consumed := shards.consumed_names:
            show_notice(f"{_amount(shards, consumed)}, read and removed before, will have to be fetched again")
        raise


def _record(job: _Job, plans: Sequence[OutputPlan], before: Collection[FileType]) -> dict[FileType, _Made]:
    from zephyr_local.model_store.registry import FileRecord, Registry

    made = {}
    with Registry() as registry, byte_bar("hash", sum(plan.size_bytes for plan in plans)) as advance:
        for plan in plans:
            path = plan.request.target
            status = path.stat()
            sha256 = sha256_of(path, advance)
            registry.record(
                FileRecord(
                    *(path.absolute(), status.st_size, status.st_mtime_ns, sha256, "quantize"),
                    *(job.snapshot.repository, job.snapshot.commit, job.snapshot.licence, time.time(), command_line()),
                )
            )
            file_type = plan.request.file_type
            made[file_type] = _Made(file_type, path, status.st_size, sha256, was_here=file_type in before)
    return made


def _tell(job: _Job, made: Sequence[_Made], fetched_bytes: int, resumed_bytes: int, *, as_json: bool) -> None:
    from zephyr_local.cli.verdict import read_with_verdict

    _, verdict = read_with_verdict(made[0].path)
    if as_json:
        outputs = [
            {
                "type": one.file_type.name,
                "path": str(one.path),
                "size_bytes": one.size_bytes,
                "sha256": one.sha256,
                "was_here": one.was_here,
            }
            for one in made
        ]
        facts = {
            "repository": job.snapshot.repository,
            "revision": job.snapshot.commit,
            "licence": job.snapshot.licence,
        }
        counts = {"fetched_bytes": fetched_bytes, "resumed_bytes": resumed_bytes, "chat": str(verdict)}
        click.echo(json.dumps({**facts, "outputs": outputs, **counts}))
        return
    for one in made:
        how = "is here already" if one.was_here else f"{readable(one.size_bytes)}, made of {job}"
        click.echo(f"{visible(str(one.path))}: {how}.")
    if verdict.refusal is not None:
        show_notice(str(verdict))
        return
    template = " --template zephyr" if verdict.template_refusal is not None else ""
    typed = shlex.quote(f"hf:{job.snapshot.repository}:{made[0].file_type.name.lower()}")
    click.echo(f"Talk with it: zephyr-local chat {typed}{template}")
