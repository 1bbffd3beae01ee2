"""Command-line options that several verbs share; their defaults are those of the dataclasses in `settings`."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from zephyr_local.settings import DEFAULT_N_CTX, EngineSettings, Sampling

Command = Callable[..., None]
Option = Callable[[Command], Command]


def sampling_options(command: Command) -> Command:
    """Add --temperature … --stop; the verb's function gets them as one ``sampling``."""
    return _gather(command, "sampling", Sampling, (*_CHOICE_OPTIONS, *_REPETITION_OPTIONS, *_ANSWER_OPTIONS))


def engine_options(command: Command) -> Command:
    """Add --n-ctx, --threads, --n-gpu-layers, --n-batch, --kv-type; the verb's function gets them as ``settings``."""
    return _gather(command, "settings", EngineSettings, _ENGINE_OPTIONS)


def _gather(command: Command, parameter: str, settings: Callable[..., Any], options: tuple[Option, ...]) -> Command:
    """Add options named as the fields of ``settings``, with its defaults; they reach the command as one of these."""
    names: list[str] = []

    @wraps(command)
    def gathered(**given: Any) -> None:  # noqa: ANN401  (click's own call)
        made = settings(**{name: given.pop(name) for name in names})
        command(**given, **{parameter: made})

    decorated: Command = gathered
    for option in reversed(options):
        decorated = option(decorated)
        added: click.Option = decorated.__click_params__[-1]  # type: ignore[attr-defined]
        assert added.name is not None
        names.append(added.name)
        default = settings.__dataclass_fields__[added.name].default  # type: ignore[attr-defined]
        if default is not None:
            added.default = default
            added.show_default = not added.multiple
    return decorated


_CHOICE_OPTIONS: tuple[Option, ...] = (
    click.option(
        "--temperature",
        type=float,
        metavar="T",
        help="0 takes the likeliest token each time, as the bundled model does unless told.",
    ),
    click.option("--top-k", type=int, metavar="K", help="Keep the K likeliest tokens; 0 keeps all."),
    click.option("--typical-p", type=float, metavar="P", help="Keep the most typical tokens that add up to P."),
    click.option("--top-p", type=float, metavar="P", help="Keep the likeliest tokens that add up to P."),
    click.option("--min-p", type=float, metavar="P", help="Drop tokens less likely than P times the likeliest."),
    click.option("--xtc-probability", type=float, metavar="P", help="How often XTC drops the likeliest; 0: never."),
    click.option("--xtc-threshold", type=float, metavar="P", help="XTC spares one of the tokens likelier than P."),
    click.option(
        "--mirostat", type=int, metavar="0|1|2", help="Mirostat's version, in place of top-k … xtc; 0: without."
    ),
    click.option("--mirostat-tau", type=float, metavar="BITS", help="The surprise that Mirostat aims at."),
    click.option("--mirostat-eta", type=float, metavar="RATE", help="How fast Mirostat adapts."),
    click.option("--seed", type=int, metavar="N", help="Sample the same way each time."),
)

_REPETITION_OPTIONS: tuple[Option, ...] = (
    click.option("--repeat-penalty", type=float, metavar="R", help="Discourage recent tokens; 1 does not."),
    click.option("--frequency-penalty", type=float, metavar="R", help="Discourage them for each time they occurred."),
    click.option("--presence-penalty", type=float, metavar="R", help="Discourage them however often they occurred."),
    click.option("--repeat-last-n", type=int, metavar="N", help="How many tokens these three look back; 0: none."),
    click.option("--dry-multiplier", type=float, metavar="R", help="Discourage longer repetitions (DRY); 0 does not."),
    click.option("--dry-base", type=float, metavar="R", help="How fast that grows with their length."),
    click.option("--dry-allowed-length", type=int, metavar="N", help="Shorter repetitions cost nothing."),
    click.option("--dry-penalty-last-n", type=int, metavar="N", help="How many tokens DRY looks back; 0: none."),
    click.option(
        "--dry-sequence-breaker",
        "dry_sequence_breakers",
        multiple=True,
        metavar="TEXT",
        help='Repetitions end at TEXT; may be repeated; else at a line break, :, " and *.',
    ),
)

_ANSWER_OPTIONS: tuple[Option, ...] = (
    click.option("--max-tokens", type=int, metavar="N", help="Longest answer, in tokens."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before TEXT; may be repeated."),
)

_ENGINE_OPTIONS: tuple[Option, ...] = (
    click.option(
        "--n-ctx",
        type=int,
        metavar="N",
        help=f"Context in tokens; else {DEFAULT_N_CTX}, or what the model was trained for if that is less.",
    ),
    click.option("--threads", "n_threads", type=int, metavar="N", help="CPU threads; else the physical cores."),
    click.option("--n-gpu-layers", type=int, metavar="N", help="Layers on the GPU: -1 all, 0 none; else all that fit."),
    click.option("--n-batch", type=int, metavar="N", help="Tokens in one prefill step."),
    click.option("--kv-type", type=click.Choice(["f16", "f32", "q8_0"]), help="Type of the KV cache."),
    click.option(
        "--check-memory/--no-check-memory",
        help="Refuse a model that does not fit the memory, before it is loaded.",
    ),
)
