"""The options of `quantize` and `convert`: what to make of a model, and where to."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zephyr_local.errors import InvalidInputError

if TYPE_CHECKING:
    from zephyr_local.convert.hf_to_gguf import ConvertOptions
    from zephyr_local.quantize.mixes import MixOptions
    from zephyr_local.quantize.types import TensorType

_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)\s*([KMGT]?)B?\Z", re.IGNORECASE | re.ASCII)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}  # decimal, as in llama-gguf-split


@dataclass(frozen=True, slots=True)
class ConversionFlags:
    """The options as they were given."""

    types: tuple[str, ...]
    output: str | None  # as it was written: what ends in a slash is a folder
    base: Path | None
    tensor_type: tuple[str, ...]
    output_tensor_type: str | None
    token_embedding_type: str | None
    pure: bool
    leave_output_tensor: bool
    allow_requantize: bool
    split_max_size: str | None
    threads: int | None
    search: str | None
    device: str | None
    verbose: bool
    overwrite: bool
    dry_run: bool
    as_json: bool
    lora: Path | None = None  # of `convert` alone

    def mix(self) -> MixOptions:
        """What is wanted otherwise than the mix has it."""
        from zephyr_local.quantize.mixes import MixOptions

        return MixOptions(
            tensor_types=tuple(_pattern_and_type(given) for given in self.tensor_type),
            output_tensor_type=_tensor_type(self.output_tensor_type),
            token_embedding_type=_tensor_type(self.token_embedding_type),
            pure=self.pure,
            leave_output_tensor=self.leave_output_tensor,
        )

    def options(self) -> ConvertOptions:
        """How to run."""
        from zephyr_local.convert.hf_to_gguf import ConvertOptions, EncoderOptions, Search

        encoders = EncoderOptions(Search(self.search or Search.GGML), self.device or "cpu")
        return ConvertOptions(self.threads, self.overwrite, self.base, self.allow_requantize, encoders)

    def for_models_alone(self) -> list[str]:
        """Those of the given options that mean nothing for an adapter's own file."""
        given = {
            "--tensor-type": self.tensor_type,
            "--output-tensor-type": self.output_tensor_type,
            "--token-embedding-type": self.token_embedding_type,
            "--pure": self.pure,
            "--leave-output-tensor": self.leave_output_tensor,
            "--allow-requantize": self.allow_requantize,
            "--split-max-size": self.split_max_size,
            "--threads": self.threads,
            "--search": self.search,
            "--device": self.device,
            "--verbose": self.verbose,
            "--dry-run": self.dry_run,
            "--json": self.as_json,
        }
        return [name for name, value in given.items() if value is not None and value is not False and value != ()]

    def split_max_bytes(self) -> int | None:
        """The size given as text, such as 2G."""
        return None if self.split_max_size is None else parse_size(self.split_max_size)


def parse_size(text: str) -> int:
    """Bytes of a size such as ``500M`` or ``2G``: decimal units, as in llama-gguf-split."""
    match = _SIZE.match(text.strip())
    if match is None:
        raise InvalidInputError(f"{text!r} is not a size", "Write it as 500M or 2G")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _tensor_type(text: str | None) -> TensorType | None:
    from zephyr_local.quantize.types import TensorType

    return None if text is None else TensorType.parse(text)


def _pattern_and_type(given: str) -> tuple[str, TensorType]:
    from zephyr_local.quantize.types import TensorType

    pattern, equals, name = given.rpartition("=")
    if not equals:
        raise InvalidInputError(
            f"--tensor-type {given!r} has no =", "Write REGEX=TYPE, such as attn_v=q6_k or 'blk.[0-3].ffn_down=q8_0'"
        )
    return pattern, TensorType.parse(name)


Verb = Callable[[Path | None, ConversionFlags], None]


Option = Callable[[Callable[..., None]], Callable[..., None]]


def conversion_options(type_flags: Mapping[str, str], *more: Option) -> Callable[[Verb], Callable[..., None]]:
    """Add the options; the verb's function gets them as one :class:`ConversionFlags`."""

    def decorate(verb: Verb) -> Callable[..., None]:
        @wraps(verb)
        def command(source: Path | None, **given: Any) -> None:  # noqa: ANN401  (click's own call)
            verb(source, ConversionFlags(**given))

        decorated: Callable[..., None] = command
        for option in reversed((*_type_options(type_flags), *more, *_OPTIONS)):
            decorated = option(decorated)
        return decorated

    return decorate


def _type_options(type_flags: Mapping[str, str]) -> list[Option]:
    return [
        click.option(f"--{name}", "types", flag_value=name, multiple=True, help=f"{text}.")
        for name, text in type_flags.items()
    ]


_OPTIONS: tuple[Option, ...] = (
    click.option(
        "--output",
        "-o",
        type=click.Path(),
        metavar="PATH",
        help="The .gguf file to write, or a folder; else <name>-<TYPE>.gguf in the current folder.",
    ),
    click.option(
        "--base",
        type=click.Path(path_type=Path),
        metavar="FOLDER",
        help="An adapter's base checkpoint; else what the adapter names: a folder, or a model in the local hub cache.",
    ),
    click.option(
        "--tensor-type",
        multiple=True,
        metavar="REGEX=TYPE",
        help="Store tensors with such GGUF names as TYPE, as in attn_v=q6_k; may be repeated, the first match wins.",
    ),
    click.option("--output-tensor-type", metavar="TYPE", help="Store the output matrix as TYPE."),
    click.option("--token-embedding-type", metavar="TYPE", help="Store the token embedding as TYPE."),
    click.option("--pure", is_flag=True, help="The same type for all tensors, without the mix."),
    click.option("--leave-output-tensor", is_flag=True, help="Keep the output matrix as the source stores it."),
    click.option("--allow-requantize", is_flag=True, help="Take a GGUF that is quantized already; it loses quality."),
    click.option(
        "--split-max-size",
        metavar="SIZE",
        help="Cut the output into parts with at most SIZE of tensors, such as 2G (10^9 bytes).",
    ),
    click.option("--threads", type=int, metavar="N", help="CPU threads; else all cores."),
    click.option(
        "--search",
        type=click.Choice(["ggml", "thorough"]),
        help="How scales are searched: as ggml does (default), or thorough: a smaller error at the same size for "
        "Q4_K, Q5_K and Q6_K, but slower.",
    ),
    click.option(
        "--device",
        metavar="NAME",
        help="What encodes: cpu (default), or by torch, with the same bytes: cuda, cuda:1, mps.",
    ),
    click.option("--verbose", is_flag=True, help="Say at the end where the time went and what bounded the conversion."),
    click.option("--overwrite", is_flag=True, help="Replace what exists, once the new file is complete."),
    click.option("--dry-run", is_flag=True, help="Show what would be written and what it takes; write nothing."),
    click.option("--json", "as_json", is_flag=True, help="With --dry-run: one JSON object on stdout."),
)
