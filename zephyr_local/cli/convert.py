"""`zephyr-local convert SOURCE`: a model in a plain type; `convert --lora ADAPTER`: an adapter as a GGUF adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from zephyr_local.cli.conversion import output_folder, run_conversion, targets, told_when_interrupted
from zephyr_local.cli.conversion_options import ConversionFlags, conversion_options
from zephyr_local.cli.notice import show_notice
from zephyr_local.cli.quantize import TYPE_FLAGS as ALL_TYPES
from zephyr_local.errors import InvalidInputError
from zephyr_local.repl.screen import visible

if TYPE_CHECKING:
    from zephyr_local.quantize.types import FileType

TYPE_FLAGS = {name: ALL_TYPES[name] for name in ("f32", "f16", "bf16", "q8_0")}
_LORA = click.option(
    "--lora",
    type=click.Path(path_type=Path),
    metavar="ADAPTER",
    help="Instead of SOURCE: write a PEFT adapter's folder as a GGUF adapter, in F32 unless told.",
)


@click.command("convert", short_help="Write a model as a plain GGUF, or an adapter as a GGUF adapter.")
@click.argument("source", type=click.Path(path_type=Path), required=False)
@conversion_options(TYPE_FLAGS, _LORA)
def command(source: Path | None, flags: ConversionFlags) -> None:
    """Turn SOURCE into a GGUF in F32, F16, BF16 or Q8_0; without a type, in the one that it is stored in.

    SOURCE is what `quantize` takes: a checkpoint's folder, a PEFT adapter's folder (merged into its base), or a GGUF.
    """
    from zephyr_local.convert.hf_to_gguf import stored_file_type
    from zephyr_local.quantize.types import FileType

    if (source is None) == (flags.lora is None):
        raise InvalidInputError(
            "no source is given" if source is None else "both a source and --lora are given",
            "Give a checkpoint, an adapter or a GGUF, or --lora with an adapter",
        )
    file_types = [FileType.parse(name) for name in flags.types]
    if flags.lora is not None:
        _convert_adapter(flags.lora, flags, file_types or [FileType.F32])
        return
    assert source is not None
    run_conversion(source, flags, file_types or [stored_file_type(source, flags.options())])


def _convert_adapter(adapter: Path, flags: ConversionFlags, file_types: list[FileType]) -> None:
    from zephyr_local.convert.adapter_config import is_adapter
    from zephyr_local.convert.hf_to_gguf import adapter_base
    from zephyr_local.convert.lora_gguf import convert_adapter

    if unused := flags.for_models_alone():
        raise InvalidInputError(f"{', '.join(unused)} cannot be used with --lora", "Leave it out")
    if len(file_types) > 1:
        raise InvalidInputError(f"{len(file_types)} types are given for one adapter", "Give one of them")
    if not is_adapter(adapter):
        raise InvalidInputError(
            f"{adapter} is not an adapter's folder (adapter_config.json, adapter_model.safetensors)",
            "Give the folder that save_pretrained of peft wrote, or a model as SOURCE without --lora",
        )
    (target,) = targets(adapter, flags.output, file_types, ending="-LoRA")
    with told_when_interrupted([target]), output_folder(flags.output, several=False):
        result = convert_adapter(
            adapter, adapter_base(adapter, flags.base), target, file_types[0], overwrite=flags.overwrite
        )
    for notice in result.notices:
        show_notice(notice)
    click.echo(
        f"{visible(str(target))}: {result.size_bytes / 1e6:,.1f} MB, {result.n_tensors} tensors. "
        "It is an adapter: give it to llama.cpp (--lora) beside its base model.",
        err=True,
    )
