"""What `quantize` and `convert` have in common: from their options to the files and a summary."""

from __future__ import annotations

import contextlib
import glob
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zephyr_local.cli.conversion_options import ConversionFlags
from zephyr_local.cli.dry_run import show_dry_run
from zephyr_local.cli.progress_bar import progress_display
from zephyr_local.cli.verdict import verdict_on
from zephyr_local.errors import InvalidInputError, OutputError
from zephyr_local.gguf_split import read_model
from zephyr_local.hardware import usable_cores
from zephyr_local.repl.screen import visible

if TYPE_CHECKING:
    from zephyr_local.convert.hf_to_gguf import ConvertResult
    from zephyr_local.quantize.timings import Part, Timings
    from zephyr_local.quantize.types import FileType


def run_conversion(source: Path, flags: ConversionFlags, file_types: Sequence[FileType]) -> None:
    """Writes the model at `source` in each of the types, or shows what that would be."""
    from zephyr_local.convert.hf_to_gguf import OutputRequest, convert_model, dry_run

    if flags.as_json and not flags.dry_run:
        raise InvalidInputError("--json is for --dry-run", "Add --dry-run, or leave out --json")
    file_types = tuple(dict.fromkeys(file_types))
    mix, split_max_bytes = flags.mix(), flags.split_max_bytes()
    requests = [
        OutputRequest(target, file_type, mix, split_max_bytes)
        for target, file_type in zip(targets(source, flags.output, file_types), file_types, strict=True)
    ]
    if flags.dry_run:
        show_dry_run(dry_run(source, requests, flags.options()), as_json=flags.as_json)
        return
    in_folder = output_folder(flags.output, several=len(file_types) > 1)
    with told_when_interrupted([request.target for request in requests]), in_folder, progress_display() as display:
        results = convert_model(source, requests, flags.options(), display.update, display.note)
    paths = [request.target.parent / result.path.name for request, result in zip(requests, results, strict=True)]
    if flags.verbose and results[0].timings is not None:
        click.echo(where_the_time_went(results[0].timings), err=True)
    click.echo(_summary(paths, results), err=True)


def targets(source: Path, output: str | None, file_types: Sequence[FileType], ending: str = "") -> list[Path]:
    """Where each type goes; `ending` comes between type and .gguf in a name of ours."""
    from zephyr_local.convert.hf_to_gguf import default_target_name

    if output == "-":
        raise InvalidInputError("a GGUF cannot be written to stdout", "Give -o the name of a file")
    if output is not None and not _is_folder(output, several=len(file_types) > 1):
        if len(file_types) == 1:
            return [Path(output)]
        raise InvalidInputError(
            f"{len(file_types)} types are given, and -o {output} is the name of one file", "Give -o a folder"
        )
    folder = Path(output or "")
    names = (default_target_name(source, file_type) for file_type in file_types)
    return [folder / f"{name.removesuffix('.gguf')}{ending}.gguf" for name in names]


def _is_folder(output: str, *, several: bool) -> bool:
    path = Path(output)
    if path.exists() or output.endswith(("/", os.sep)):
        return not path.is_file()
    return not path.suffix or (several and path.suffix != ".gguf")


@contextmanager
def output_folder(output: str | None, *, several: bool) -> Iterator[None]:
    """Creates the folder that files go into, and takes it away again if nothing comes into it."""
    if output is None or not _is_folder(output, several=several) or Path(output).exists():
        yield
        return
    folder = Path(output)
    if not folder.parent.is_dir():
        raise OutputError(f"the folder {folder.parent} does not exist", "Create it, or write somewhere else")
    folder.mkdir()
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise


@contextmanager
def told_when_interrupted(outputs: Sequence[Path]) -> Iterator[None]:
    """Says on Ctrl+C that nothing was written, if that is so: it may come when the files just got their names."""
    before = _identities(outputs)
    try:
        yield
    except KeyboardInterrupt:
        unchanged = before == _identities(outputs)
        click.echo("Interrupted; nothing was written." if unchanged else "Interrupted at the very end.", err=True)
        raise


def _identities(outputs: Sequence[Path]) -> dict[Path, tuple[int, int]]:
    """Of those that exist, and of the parts of those that were written in parts."""
    found = {}
    for output in outputs:
        for path in (output, *output.parent.glob(f"{glob.escape(output.stem)}-*-of-*.gguf")):
            with contextlib.suppress(OSError):
                status = path.lstat()
                found[path] = (status.st_ino, status.st_mtime_ns)
    return found


_BOUND_BY = {
    "read": "Bound by reading the source.",
    "hash": "Bound by the source's SHA-256, which one thread computes.",
    "encode": "Bound by the encoders.",
    "write": "Bound by writing.",
}


def where_the_time_went(timings: Timings) -> str:
    """A line for each part of the work, and what bounded the whole."""

    def busy(part: Part) -> str:
        return f"busy {timings.shares[part]:3.0%} of {timings.elapsed_s:.1f} s"

    cores = f"{timings.cpu_s / max(timings.elapsed_s, 1e-9):.1f} of {usable_cores()} cores"
    threads = f"{timings.threads} threads" if timings.threads > 1 else "1 thread"
    return "\n".join(
        [
            f"prepare {timings.prepare_s:.1f} s, before these",
            f"read    {busy('read')}, {timings.read_bytes / 1e9:,.2f} GB of tensors",
            f"hash    {busy('hash')}",
            f"encode  {busy('encode')}, {threads} with {timings.encoder}",
            f"write   {busy('write')}, {timings.written_bytes / 1e9:,.2f} GB of tensors",
            f"verify  {timings.verify_s:.1f} s, after these",
            _BOUND_BY[timings.bound_by] if timings.bound_by else f"Bound by no part alone; together they used {cores}.",
        ]
    )


def _summary(paths: Sequence[Path], results: Sequence[ConvertResult]) -> str:
    """`paths` are the results' as the user would write them."""
    lines = []
    for path, result in zip(paths, results, strict=True):
        parts = f" in {len(result.paths)} parts" if len(result.paths) > 1 else ""
        lines.append(
            f"{visible(str(path))}: {result.size_bytes / 1e6:,.1f} MB{parts}, {result.n_tensors} tensors, "
            f"{result.bits_per_weight:.2f} bits a weight, {result.elapsed_s:.1f} s."
        )
    lines.append(f"Talk with it: zephyr-local chat {visible(shlex.quote(str(paths[0])))}")
    if verdict_on(read_model(paths[0])).template_refusal is not None:
        lines[-1] += " --template zephyr"
        lines.append("(or --template FILE: it brings no chat template)")
    return "\n".join(lines)
