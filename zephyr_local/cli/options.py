"""Command-line options that several verbs share; their defaults are those of the dataclasses in `settings`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from zephyr_local.settings import DEFAULT_N_CTX, EngineSettings, Sampling

Command = TypeVar("Command", bound=Callable[..., Any])


def sampling_options(command: Command) -> Command:
    """Add --temperature … --stop; the verb's function takes them as keyword arguments of the same names."""
    options = (
        click.option(
            "--temperature",
            type=float,
            metavar="T",
            help="0 takes the likeliest token each time, as the bundled model does unless told.",
        ),
        click.option("--top-k", type=int, metavar="K", help="Keep the K likeliest tokens; 0 keeps all."),
        click.option("--top-p", type=float, metavar="P", help="Keep the likeliest tokens that add up to P."),
        click.option("--min-p", type=float, metavar="P", help="Drop tokens less likely than P times the likeliest."),
        click.option("--repeat-penalty", type=float, metavar="R", help="Discourage recent tokens; 1 does not."),
        click.option("--seed", type=int, metavar="N", help="Sample the same way each time."),
        click.option("--max-tokens", type=int, metavar="N", help="Longest answer, in tokens."),
        click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before TEXT; may be repeated."),
    )
    return _add(command, options, Sampling)


def engine_options(command: Command) -> Command:
    """Add --n-ctx, --threads, --n-gpu-layers, --n-batch, --kv-type, with llama.cpp's names."""
    options = (
        click.option(
            "--n-ctx",
            type=int,
            metavar="N",
            help=f"Context in tokens; else {DEFAULT_N_CTX}, or what the model was trained for if that is less.",
        ),
        click.option("--threads", "n_threads", type=int, metavar="N", help="CPU threads; else all cores."),
        click.option("--n-gpu-layers", type=int, metavar="N", help="Layers on the GPU; -1: all, 0: none."),
        click.option("--n-batch", type=int, metavar="N", help="Tokens in one prefill step."),
        click.option("--kv-type", type=click.Choice(["f16", "f32", "q8_0"]), help="Type of the KV cache."),
    )
    return _add(command, options, EngineSettings)


def _add(command: Command, options: tuple[Callable[[Command], Command], ...], settings: type[Any]) -> Command:
    for option in reversed(options):
        command = option(command)
        parameter: click.Option = command.__click_params__[-1]  # type: ignore[attr-defined]
        assert parameter.name is not None
        default = settings.__dataclass_fields__[parameter.name].default
        if default is not None and not parameter.multiple:
            parameter.default = default
            parameter.show_default = True
    return command
