"""Parameters of a verb that can be set once: flag, else environment, else profile, else file, else default."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

import click
from click.core import ParameterSource

from zephyr_local.configuration import (
    VARIABLE_PREFIX,
    Configuration,
    Entry,
    Key,
    environment_entry,
    known_keys,
    read_configuration,
)
from zephyr_local.errors import InvalidInputError

PROFILE_VARIABLE: Final = f"{VARIABLE_PREFIX}PROFILE"

_ORIGINS: Final = "zephyr_local.cli.configured.origins"
_PROBLEM: Final = "zephyr_local.cli.configured.problem"


def profile_option(callback: Callable[[click.Context, click.Parameter, str | None], Any] | None = None) -> click.Option:
    """``--profile NAME``; what ``callback`` is called with is :meth:`Configuration.chosen`'s argument."""
    return click.Option(
        ["--profile"],
        metavar="NAME",
        envvar=PROFILE_VARIABLE,
        is_eager=callback is not None,
        expose_value=callback is None,
        callback=callback,
        help="Use this profile of the configuration file; '' for none.",
    )


def require_profile(ctx: click.Context, configuration: Configuration, profile: str | None) -> str | None:
    """The profile that counts, as :meth:`Configuration.chosen`; an error names the variable that asked for it."""
    try:
        return configuration.chosen(profile)
    except InvalidInputError as error:
        if ctx.get_parameter_source("profile") is not ParameterSource.ENVIRONMENT:
            raise
        raise InvalidInputError(f"{PROFILE_VARIABLE}: {error.problem}", error.remedy) from None


class ConfiguredCommand(click.Command):
    """A verb with ``--profile``, whose parameters of the names of :func:`known_keys` can be set beforehand.

    The configuration file is read when the command line has been understood as far as ``--help``, which it cannot make
    fail; a variable only where no flag goes before it.
    """

    def __init__(self, name: str | None, **attributes: Any) -> None:  # noqa: ANN401  (click's own arguments)
        super().__init__(name, **attributes)
        self.params.append(profile_option(self._configure))

    def _configure(self, ctx: click.Context, _option: click.Parameter, profile: str | None) -> None:
        if ctx.resilient_parsing:  # only completing a command line
            return
        entries: dict[str, Entry] = {}
        try:
            configuration = read_configuration()
            entries = configuration.entries(require_profile(ctx, configuration, profile) or "")
        except InvalidInputError as error:
            ctx.meta[_PROBLEM] = error
        values: dict[str, Any] = {}
        origins: dict[str, str] = {}
        for name in known_keys().keys() & {parameter.name for parameter in self.params}:
            key = known_keys()[name]
            if name in entries:
                values[name], origins[name] = entries[name].value, entries[name].origin
            if os.environ.get(key.variable):
                values[name], origins[name] = _when_asked(key), f"environment {key.variable}"
        ctx.default_map, ctx.meta[_ORIGINS] = values, origins

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        if _PROBLEM in ctx.meta:
            raise ctx.meta[_PROBLEM]
        for name, origin in ctx.meta.get(_ORIGINS, {}).items():
            if origin.startswith("environment") and ctx.get_parameter_source(name) is ParameterSource.DEFAULT_MAP:
                ctx.set_parameter_source(name, ParameterSource.ENVIRONMENT)
        return rest

    def get_help(self, ctx: click.Context) -> str:
        ctx.default_map = None  # the built-in defaults, whether --profile stands before --help or after it
        return super().get_help(ctx)


def origin_of(ctx: click.Context, name: str) -> str:
    """Where a parameter's value is from: flag, ``environment VARIABLE``, ``profile NAME``, file or default."""
    source = ctx.get_parameter_source(name)
    if source in (ParameterSource.ENVIRONMENT, ParameterSource.DEFAULT_MAP):
        origin: str = ctx.meta[_ORIGINS][name]
        return origin
    return "flag" if source is ParameterSource.COMMANDLINE else "default"


def _when_asked(key: Key) -> Callable[[], object]:
    def value() -> object:
        entry = environment_entry(key)
        return None if entry is None else entry.value

    return value
