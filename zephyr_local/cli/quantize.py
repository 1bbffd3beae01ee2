"""`zephyr-local quantize SOURCE --q4_k_m`: a checkpoint, an adapter or a GGUF becomes quantized GGUFs in one pass."""

from __future__ import annotations

from pathlib import Path

import click

from zephyr_local.cli.conversion import run_conversion
from zephyr_local.cli.conversion_options import ConversionFlags, conversion_options
from zephyr_local.errors import InvalidInputError

# One flag each, named as ggml names the type; the help says what people choose by.
TYPE_FLAGS = {
    "q2_k": "2 bits: the smallest, much worse",
    "q3_k_s": "3 bits, small",
    "q3_k_m": "3 bits, medium",
    "q3_k_l": "3 bits, large",
    "q4_0": "4 bits, an older format that some accelerators run faster",
    "q4_1": "4 bits, an older format with a minimum a block",
    "q4_k_s": "4 bits, a little smaller than Q4_K_M",
    "q4_k_m": "4 bits: what most people run",
    "q5_0": "5 bits, an older format",
    "q5_1": "5 bits, an older format with a minimum a block",
    "q5_k_s": "5 bits, a little smaller than Q5_K_M",
    "q5_k_m": "5 bits: closer to the original",
    "q6_k": "6 bits",
    "q8_0": "8 bits: nearly the original",
    "f16": "half precision",
    "bf16": "bfloat16, as most checkpoints are stored",
    "f32": "single precision",
}


@click.command("quantize", short_help="Turn a checkpoint, an adapter or a GGUF into quantized GGUFs.")
@click.argument("source", type=click.Path(path_type=Path))
@conversion_options(TYPE_FLAGS)
def command(source: Path | None, flags: ConversionFlags) -> None:
    """Turn SOURCE into a GGUF of each given type, reading it once.

    SOURCE is a checkpoint's folder as transformers saves it (config.json, *.safetensors, tokenizer.model or
    tokenizer.json; Mistral and Llama models in BF16, F16 or F32), a PEFT adapter's folder, which is merged into its
    base on the way, or a GGUF. No intermediate file; each output appears under its name when it is complete and
    checked, or not at all.
    """
    from zephyr_local.quantize.types import FileType

    assert source is not None
    if not flags.types:
        raise InvalidInputError(
            "no type is given", "Add one of " + " ".join(f"--{name}" for name in TYPE_FLAGS) + "; most use --q4_k_m"
        )
    run_conversion(source, flags, [FileType.parse(name) for name in flags.types])
