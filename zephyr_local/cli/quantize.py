"""`zephyr-local quantize CHECKPOINT --q4_k_m`: a Hugging Face checkpoint becomes a GGUF in one pass."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zephyr_local.cli.verdict import verdict_on
from zephyr_local.errors import InvalidInputError
from zephyr_local.gguf_file import read_gguf
from zephyr_local.repl.screen import visible

if TYPE_CHECKING:
    from zephyr_local.convert.hf_to_gguf import ConvertResult, Progress

# One flag each, named as ggml names the type; the help says what people choose by.
TYPE_FLAGS = {
    "q4_k_s": "4 bits, a little smaller than Q4_K_M",
    "q4_k_m": "4 bits: what most people run",
    "q5_k_s": "5 bits, a little smaller than Q5_K_M",
    "q5_k_m": "5 bits: closer to the original",
    "q6_k": "6 bits",
    "q8_0": "8 bits: nearly the original",
    "f16": "half precision",
    "bf16": "bfloat16, as most checkpoints are stored",
    "f32": "single precision",
}


def _type_flags(command: Callable[..., None]) -> Callable[..., None]:
    for name, text in reversed(TYPE_FLAGS.items()):
        command = click.option(f"--{name}", "types", flag_value=name, multiple=True, help=f"{text}.")(command)
    return command


@contextmanager
def progress_display() -> Iterator[Callable[[Progress], None]]:
    """On a terminal a bar with bytes, rate and time left on stderr; else a line a step."""
    if sys.stderr.isatty():
        with _bar() as update:
            yield update
    else:
        yield _line_a_step()


@contextmanager
def _bar() -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description:7}"),  # the stage: tensors' names would move the bar
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, visible=False)

        def update(progress: Progress) -> None:
            bar.update(
                task,
                description=progress.stage,
                completed=progress.done_bytes,
                total=progress.total_bytes,
                visible=progress.total_bytes > 0,
            )

        yield update


def _line_a_step() -> Callable[[Progress], None]:
    told: tuple[str, int] | None = None

    def update(progress: Progress) -> None:
        nonlocal told
        if not progress.total_bytes:
            return  # nothing is known yet: what is wrong with the input shall stand alone
        tenths = 10 * progress.done_bytes // progress.total_bytes
        if (progress.stage, tenths) != told:
            told = (progress.stage, tenths)
            click.echo(f"{progress.stage} {10 * tenths:3}% {progress.tensor}".rstrip(), err=True)

    return update


def _summary(target: Path, result: ConvertResult) -> str:
    name = shlex.quote(str(target))
    lines = [
        f"{target}: {result.size_bytes / 1e6:,.1f} MB, {result.n_tensors} tensors, "
        f"{result.bits_per_weight:.2f} bits a weight, {result.elapsed_s:.1f} s.",
        f"Talk with it: zephyr-local chat {name}",
    ]
    verdict = verdict_on(read_gguf(target))
    if verdict.template is None:
        lines[-1] += " --template zephyr"
        lines.append("(or --template FILE: it brings no chat template that is known here)")
    return "\n".join(lines)


@click.command("quantize", short_help="Turn a Hugging Face checkpoint into a quantized GGUF.")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@_type_flags
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where to write; else <name>-<TYPE>.gguf in the current folder.",
)
@click.option("--threads", type=int, metavar="N", help="CPU threads; else all cores.")
@click.option("--overwrite", is_flag=True, help="Replace FILE where it exists, once the new one is complete.")
def command(
    checkpoint: Path, types: tuple[str, ...], output: Path | None, threads: int | None, overwrite: bool
) -> None:
    """Turn CHECKPOINT, a folder as transformers saves it (config.json, *.safetensors, tokenizer.model), into a GGUF.

    Mistral and Llama models in BF16, F16 or F32. One pass, no intermediate file; the output appears under its name
    when it is complete and checked, or not at all.
    """
    if len(types) != 1:
        raise InvalidInputError(
            "no type is given" if not types else f"{len(types)} types are given, and one is made at a time",
            "Add one of " + " ".join(f"--{name}" for name in TYPE_FLAGS) + "; most people use --q4_k_m",
        )
    from zephyr_local.convert.hf_to_gguf import ConvertOptions, convert_checkpoint, default_target_name
    from zephyr_local.quantize.types import FileType

    file_type = FileType.parse(types[0])
    target = output if output is not None else Path(default_target_name(checkpoint, file_type))
    if str(target) == "-":
        raise InvalidInputError("a GGUF cannot be written to stdout", "Give -o the name of a file")
    try:
        with progress_display() as update:
            result = convert_checkpoint(
                checkpoint, target, file_type, ConvertOptions(threads=threads, overwrite=overwrite), update
            )
    except KeyboardInterrupt:
        click.echo("Interrupted; nothing was written.", err=True)
        raise
    for notice in result.notices:
        click.echo(f"note: {visible(notice)}", err=True)
    click.echo(_summary(target, result), err=True)
