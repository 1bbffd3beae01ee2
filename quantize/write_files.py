"""One pass over a source, and every output file is written, read back and given its name; or none is."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from zephyr_local.errors import CheckpointError, ModelFileError, OutputError
from zephyr_local.quantize.early_sync import EarlySync
from zephyr_local.quantize.encode import Destination, WrittenRange
from zephyr_local.quantize.encoders import Encoder
from zephyr_local.quantize.gguf_output import (
    OutputFile,
    commit_together,
    require_free_space,
    require_loadable,
    require_writable_target,
)
from zephyr_local.quantize.leftovers import settle_leftovers
from zephyr_local.quantize.output_plan import OutputPlan, PlannedFile, disk_bytes
from zephyr_local.quantize.pipeline import PipelineSize, encode_blocks
from zephyr_local.quantize.progress import Reporter
from zephyr_local.quantize.provenance import Provenance
from zephyr_local.quantize.read_back import verify_all
from zephyr_local.quantize.source import Source
from zephyr_local.quantize.timings import TimedHashes, Timings

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ConvertResult:
    """What was written for one request."""

    path: Path
    """The file, or the first of its parts: the one that programs are given."""
    paths: tuple[Path, ...]
    """All of its files."""
    size_bytes: int
    n_tensors: int
    bits_per_weight: float
    source_sha256: str
    elapsed_s: float
    """Of the whole run, until the files had their names."""
    notices: tuple[str, ...] = ()
    """Lines for the user: what of the source was left out, and which encoders served instead of others."""
    timings: Timings | None = None
    """Where the time went, the same for all files of a run; None where nothing went through the encoders' threads."""


@dataclass(frozen=True, slots=True)
class _Written:
    """What :func:`_stream` knows when all tensors are on the disk."""

    provenance: Provenance
    ranges: list[WrittenRange]
    timings: Timings  # without the read-back


def write_files(
    source: Source,
    plans: Sequence[OutputPlan],
    encoder: Encoder,
    size: PipelineSize,
    reporter: Reporter,
    *,
    overwrite: bool,
) -> list[ConvertResult]:
    """Writes every file of the plans; in any failure nothing of them is left and what stood there is there again.

    :func:`require_outputs` comes first. The files get their names one after the other when all are complete and
    checked, of parts the first one last.
    """
    files = [file for plan in plans for file in plan.files]
    with ExitStack() as stack:
        outputs = [stack.enter_context(OutputFile(file.path, file.size_bytes, overwrite=overwrite)) for file in files]
        _write_headers(files, outputs, Provenance.unknown(source.hashed))
        for output in outputs:
            output.reserve()
        _require_loadable(source, plans, [output.path for output in outputs])
        written = _stream(source, plans, outputs, encoder, size, reporter)
        verify_began = time.perf_counter()
        _verify(files, outputs, written, reporter)
        _check_headers(plans, [output.path for output in outputs])
        verify_s = time.perf_counter() - verify_began
        commit_together(_by_plan(plans, outputs))
    return [
        ConvertResult(
            path=plan.files[0].path,
            paths=tuple(file.path for file in plan.files),
            size_bytes=plan.size_bytes,
            n_tensors=len(plan.tensors),
            bits_per_weight=plan.bits_per_weight,
            source_sha256=written.provenance.sha256,
            elapsed_s=reporter.elapsed_s,
            notices=(*source.notices, *encoder.notices),
            timings=replace(written.timings, verify_s=verify_s),
        )
        for plan in plans
    ]


def require_outputs(source: Source, plans: Sequence[OutputPlan], *, overwrite: bool) -> None:
    """Refuses targets that cannot be written, and too little disk; settles what killed runs left at the targets."""
    _require_targets(source, plans, overwrite=overwrite)
    _require_room(disk_bytes(plans))


def _require_targets(source: Source, plans: Sequence[OutputPlan], *, overwrite: bool) -> None:
    for plan in plans:
        for file in plan.files:
            require_no_input(file.path, source.files)
    for plan in plans:
        settle_leftovers(plan.request.target)  # those of all its parts, too
    for plan in plans:
        for file in plan.files:
            require_writable_target(file.path, overwrite=overwrite)


def _require_room(needed: Mapping[Path, int]) -> None:
    """Folders on one disk share its space."""
    together: dict[int, int] = {}
    for folder, size_bytes in needed.items():
        device = folder.stat().st_dev
        together[device] = together.get(device, 0) + size_bytes
        require_free_space(folder, together[device])


def require_no_input(target: Path, inputs: Sequence[Path]) -> None:
    """Refuses a target that is one of the source's own files, by whatever name."""
    if not target.exists():
        return
    for path in inputs:
        if path.exists() and path.samefile(target):
            raise OutputError(f"{target} is the input {path}", "Give the output another name or folder")


def _write_headers(files: Sequence[PlannedFile], outputs: Sequence[OutputFile], provenance: Provenance) -> None:
    for file, output in zip(files, outputs, strict=True):
        output.write_at(0, file.header(provenance))


def require_loadable_plans(source: Source, plans: Sequence[OutputPlan]) -> None:
    """Shows the planned headers to the runtime as :func:`write_files` does, in temporary files that are all hole."""
    with tempfile.TemporaryDirectory(prefix="zephyr-local-") as folder:
        paths = []
        for number, file in enumerate(file for plan in plans for file in plan.files):
            paths.append(Path(folder) / f"{number}.gguf")
            paths[-1].write_bytes(file.header(Provenance.unknown(source.hashed)))
            os.truncate(paths[-1], file.size_bytes)
        _require_loadable(source, plans, paths)


def _require_loadable(source: Source, plans: Sequence[OutputPlan], paths: Sequence[Path]) -> None:
    """Shows the headers to the runtime before the work: what it would refuse to load is better known now."""
    try:
        _check_headers(plans, paths)
    except ModelFileError as error:
        problem = f"the converted model could not be loaded here: {error.problem.split(': ', 1)[-1]}"
        if any(path.name == "config.json" for path in source.files):
            raise CheckpointError(problem, "Check config.json and the tokenizer's files") from error
        remedy = f"Look at the keys of {source.files[0].name} with zephyr-local inspect"
        raise ModelFileError(problem, remedy) from error


def _check_headers(plans: Sequence[OutputPlan], paths: Sequence[Path]) -> None:
    for plan, of_plan in zip(plans, _by_plan(plans, paths), strict=True):
        require_loadable(of_plan, [file.places for file in plan.files])


def _by_plan(plans: Sequence[OutputPlan], of_files: Sequence[_T]) -> list[list[_T]]:
    remaining = iter(of_files)
    return [[next(remaining) for _ in plan.files] for plan in plans]


def _stream(
    source: Source,
    plans: Sequence[OutputPlan],
    outputs: Sequence[OutputFile],
    encoder: Encoder,
    size: PipelineSize,
    reporter: Reporter,
) -> _Written:
    """Converts every tensor, until all is on the disk."""
    began, cpu_began = time.perf_counter(), time.process_time()
    destinations = _destinations(plans)
    reporter.begin("convert", sum(tensor.stored_bytes for tensor in source.tensors), len(source.tensors))

    def write(file: int, offset: int, data: memoryview) -> None:
        outputs[file].write_at(offset, data)
        sync.written(file, data.nbytes)

    with ExitStack() as stack:  # closes both even where Ctrl+C comes again meanwhile
        sync = EarlySync(outputs)
        stack.callback(sync.close)
        hashes = TimedHashes()
        stack.callback(hashes.close)
        blocks = source.read_blocks(size.block_weights, hashes)
        streamed = encode_blocks(blocks, destinations, encoder.encode, write, size.threads, reporter.advance)
        sync.finish()
    assert sum(written.size_bytes for written in streamed.ranges) == sum(
        place.size_bytes for plan in plans for file in plan.files for place in file.places
    ), "the source left something out"
    timings = Timings(
        encoder=encoder.name,
        threads=size.threads,
        prepare_s=encoder.prepared_s,
        elapsed_s=time.perf_counter() - began,
        read_bytes=streamed.read_bytes,
        read_s=max(0.0, streamed.read_s - hashes.waited.seconds),
        hash_s=hashes.hashing.seconds,
        encode_s=streamed.encode_s,
        written_bytes=sum(written.size_bytes for written in streamed.ranges),
        write_s=streamed.write_s - sync.waited.seconds,
        sync_s=sync.syncing.seconds,
        verify_s=0.0,
        cpu_s=time.process_time() - cpu_began,
    )
    provenance = Provenance(source.hashed, tuple(hashes.digests[name] for name in source.hashed))
    return _Written(provenance, streamed.ranges, timings)


def _destinations(plans: Sequence[OutputPlan]) -> dict[str, list[Destination]]:
    found: dict[str, list[Destination]] = {}
    number = 0
    for plan in plans:
        for file in plan.files:
            begin = file.data_begin
            for place in file.places:
                importance = plan.request.importance.get(place.name)
                destination = Destination(number, place.kind, begin + place.offset, importance)
                found.setdefault(place.name, []).append(destination)
            number += 1
    return found


def _verify(files: Sequence[PlannedFile], outputs: Sequence[OutputFile], written: _Written, reporter: Reporter) -> None:
    """Writes the headers anew, with the digests, and reads back everything that was written."""
    reporter.begin("verify", written.timings.written_bytes, sum(len(file.places) for file in files))
    _write_headers(files, outputs, written.provenance)
    verify_all(
        outputs, written.ranges, written.timings.threads, lambda done: reporter.advance(done.tensor, done.size_bytes)
    )
