"""The flags of sampling and of the engine: their defaults are the dataclasses', and each reaches its field."""

from __future__ import annotations

import dataclasses

import click
import pytest
from click.testing import CliRunner

from zephyr_local.cli.options import engine_options, sampling_options
from zephyr_local.errors import InvalidInputError
from zephyr_local.settings import EngineSettings, Sampling

NO_FLAG = {"logit_bias", "logprobs", "check_tensors", "n_parallel"}


def parse(*arguments: str) -> tuple[Sampling, EngineSettings]:
    seen: list[tuple[Sampling, EngineSettings]] = []

    @click.command()
    @sampling_options
    @engine_options
    @click.option("--other")
    def command(sampling: Sampling, settings: EngineSettings, other: str | None) -> None:
        seen.append((sampling, settings))

    done = CliRunner().invoke(command, arguments, standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return seen[0]


def test_no_flag_gives_the_defaults() -> None:
    assert parse() == (Sampling(), EngineSettings())


def test_each_flag_reaches_its_field() -> None:
    changed: dict[str, str] = {"seed": "7", "max_tokens": "7", "n_ctx": "64", "n_threads": "2", "kv_type": "f32"}
    changed |= {"dry_base": "3.5", "mirostat": "2", "repeat_penalty": "2.5"}
    fields = [*dataclasses.fields(Sampling), *dataclasses.fields(EngineSettings)]
    for name in [field.name for field in fields if field.name not in NO_FLAG]:
        if name in ("stop", "dry_sequence_breakers"):
            flag = "--" + name.removesuffix("s").replace("_", "-")
            sampling, _ = parse(flag, "a", flag, "\n")
            assert getattr(sampling, name) == ("a", "\n")
            continue
        default = next(field.default for field in fields if field.name == name)
        if isinstance(default, bool):
            _, settings = parse("--" + ("no-" if default else "") + name.replace("_", "-"))
            assert settings == dataclasses.replace(EngineSettings(), **{name: not default})
            continue
        value = changed.get(name) or ("0.25" if isinstance(default, float) else "3")
        flag = "--threads" if name == "n_threads" else "--" + name.replace("_", "-")
        both = parse(flag, value)
        found = [getattr(part, name) for part in both if hasattr(part, name)]
        assert found == [type(found[0])(value)]
        assert found != [default]
        others = [dataclasses.replace(part, **{name: default}) if hasattr(part, name) else part for part in both]
        assert others == [Sampling(), EngineSettings()]


def test_what_the_settings_refuse_is_refused() -> None:
    for flag, value in (
        ("--xtc-threshold", "2"),
        ("--mirostat", "3"),
        ("--dry-sequence-breaker", ""),
        ("--n-ctx", "1"),
    ):
        with pytest.raises(InvalidInputError, match=flag.strip("-").replace("-", "_")):
            parse(flag, value)
