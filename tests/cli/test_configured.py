"""Flag, environment, profile, file, default: each goes before what follows it, for each kind of parameter."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, get_args

import click
import pytest
from click.testing import CliRunner, Result

from zephyr_local.cli.configured import ConfiguredCommand, origin_of
from zephyr_local.cli.options import engine_options, sampling_options
from zephyr_local.configuration import Overflow, Theme, known_keys
from zephyr_local.errors import InvalidInputError
from zephyr_local.settings import EngineSettings, Sampling


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ZEPHYR_LOCAL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("zephyr_local.configuration.config_folder", lambda: tmp_path)


@click.command("chat", cls=ConfiguredCommand)
@click.argument("model", type=click.Path(path_type=Path), required=False)
@click.option("--prompt", "-p")
@click.option("--system")
@click.option("--template")
@click.option("--overflow", type=click.Choice(get_args(Overflow)), default="stop")
@click.option("--theme", type=click.Choice(get_args(Theme)), default="auto")
@click.option("--plain", is_flag=True)
@click.option("--save/--no-save", default=None)
@click.option("--history/--no-history", default=None)
@sampling_options
@engine_options
@click.pass_context
def chat(ctx: click.Context, sampling: Sampling, settings: EngineSettings, **given: Any) -> None:
    for name in known_keys():
        part = next((part for part in (sampling, settings) if hasattr(part, name)), None)
        ctx.obj[name] = (given[name] if part is None else getattr(part, name), origin_of(ctx, name))


def call(*arguments: str) -> dict[str, tuple[object, str]]:
    seen: dict[str, tuple[object, str]] = {}
    done = CliRunner().invoke(chat, arguments, obj=seen, standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return seen


def shown(*arguments: str) -> Result:
    return CliRunner().invoke(chat, arguments, obj={})


def write(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.toml").write_text(text, encoding="utf-8")


# Name; TOML and value of the file, of the profile; text and value of the environment; arguments and value of the flag.
LEVELS: list[tuple[str, str, object, str, object, str, object, tuple[str, ...], object]] = [
    ("model", "'/f'", Path("/f"), "'/p'", Path("/p"), "e", Path("e"), ("g",), Path("g")),
    ("system", "'f f'", "f f", "'p p'", "p p", "e e", "e e", ("--system", ""), ""),
    ("template", "'zephyr'", "zephyr", "'/p'", "/p", "e", "e", ("--template", "g"), "g"),
    ("temperature", "1", 1.0, "0.5", 0.5, "0", 0.0, ("--temperature", "2"), 2.0),
    ("seed", "1", 1, "2", 2, "0", 0, ("--seed", "3"), 3),
    ("n_ctx", "512", 512, "1024", 1024, "64", 64, ("--n-ctx", "32"), 32),
    ("n_threads", "1", 1, "2", 2, "3", 3, ("--threads", "4"), 4),
    ("n_gpu_layers", "0", 0, "1", 1, "2", 2, ("--n-gpu-layers", "-1"), -1),
    ("kv_type", "'f32'", "f32", "'q8_0'", "q8_0", "f16", "f16", ("--kv-type", "q8_0"), "q8_0"),
    ("overflow", "'stop'", "stop", "'summarise'", "summarise", "stop", "stop", ("--overflow", "stop"), "stop"),
    ("theme", "'none'", "none", "'dark'", "dark", "light", "light", ("--theme", "auto"), "auto"),
    ("plain", "true", True, "false", False, "0", False, ("--plain",), True),
    ("save", "true", True, "false", False, "true", True, ("--no-save",), False),
    ("history", "false", False, "true", True, "FALSE", False, ("--history",), True),
    (
        "stop",
        "['f f']",
        ("f f",),
        "['p', '\\t']",
        ("p", "\\t"),
        "e e",
        ("e e",),
        ("--stop", "g", "--stop", "h"),
        ("g", "h"),
    ),
    (
        "dry_sequence_breakers",
        "['f']",
        ("f",),
        "['p']",
        ("p",),
        '["e", "e e"]',
        ("e", "e e"),
        ("--dry-sequence-breaker", "g"),
        ("g",),
    ),
]


@pytest.mark.parametrize("levels", LEVELS, ids=lambda levels: levels[0])
def test_each_level_goes_before_the_next(levels: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    name, toml, in_file, profile_toml, in_profile, text, in_environment, flag, in_flag = levels
    key = known_keys()[name]
    expected = {
        other: (False if other == "plain" else known_keys()[other].default, "default") for other in known_keys()
    }
    assert call() == expected
    table, section = ("", "") if not key.section else (f"[{key.section}]\n", f".{key.section}")
    write(tmp_path, f"{table}{name} = {toml}\n[profiles.'a b'{section}]\n{name} = {profile_toml}\n")
    assert call() == expected | {name: (in_file, "file")}
    assert call("--profile", "a b") == expected | {name: (in_profile, "profile a b")}
    monkeypatch.setenv(key.variable, "")
    assert call() == expected | {name: (in_file, "file")}
    monkeypatch.setenv(key.variable, text)
    environment = expected | {name: (in_environment, f"environment {key.variable}")}
    assert call() == environment
    assert call("--profile", "a b") == environment
    assert call("--profile", "a b", *flag) == expected | {name: (in_flag, "flag")}
    (tmp_path / "config.toml").unlink()
    assert call() == environment


def test_the_profile_is_the_flags_or_the_environments_or_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path, "system = 'f'\nprofile = 'a'\n" + "".join(f"[profiles.{x}]\nsystem = '{x}'\n" for x in "abc"))
    assert call()["system"] == ("a", "profile a")
    monkeypatch.setenv("ZEPHYR_LOCAL_PROFILE", "b")
    assert call()["system"] == ("b", "profile b")
    assert call("--profile", "c")["system"] == ("c", "profile c")
    assert call("--profile", "")["system"] == ("f", "file")
    monkeypatch.setenv("ZEPHYR_LOCAL_PROFILE", "")
    assert call()["system"] == ("a", "profile a")
    monkeypatch.setenv("ZEPHYR_LOCAL_PROFILE", "x")
    with pytest.raises(
        InvalidInputError, match=r"^ZEPHYR_LOCAL_PROFILE: there is no profile 'x'.*There are: a, b, c\.$"
    ):
        call()
    with pytest.raises(InvalidInputError, match=r"^there is no profile 'y'"):
        call("--profile", "y")


def test_a_wrong_variable_is_named_where_it_is_used(monkeypatch: pytest.MonkeyPatch):
    for name, text, flag in (("TEMPERATURE", "200", "1"), ("N_CTX", "x", "64"), ("OVERFLOW", "x", "stop")):
        monkeypatch.setenv(f"ZEPHYR_LOCAL_{name}", text)
        with pytest.raises(InvalidInputError, match=f"^ZEPHYR_LOCAL_{name}: {name.lower()} is "):
            call()
        assert call(f"--{name.lower().replace('_', '-')}", flag)[name.lower()][1] == "flag"
        monkeypatch.delenv(f"ZEPHYR_LOCAL_{name}")


def test_a_broken_file_is_told_but_does_not_keep_help_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path, "temperature")
    with pytest.raises(InvalidInputError, match="is not TOML"):
        call()
    with pytest.raises(InvalidInputError, match="is not TOML"):
        call("--profile", "x", "--temperature", "1")
    monkeypatch.setenv("ZEPHYR_LOCAL_TEMPERATURE", "x")
    for arguments in (("--help",), ("--profile", "x", "--help"), ("--help", "--profile", "x"), ("-p", "x", "--help")):
        done = shown(*arguments)
        assert done.exit_code == 0, done.output
        assert "--profile NAME" in done.output


def test_help_shows_the_built_in_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before = shown("--help").output
    assert "[default: 0.7]" in " ".join(before.split())
    write(tmp_path, "[profiles.x.sampling]\ntemperature = 0.125")
    monkeypatch.setenv("ZEPHYR_LOCAL_TOP_P", "0.25")
    assert shown("--profile", "x", "--help").output == before


def test_wrong_usage_is_told_as_ever(tmp_path: Path):
    write(tmp_path, "temperature")
    done = shown("--temperatur", "1")
    assert done.exit_code == 2
    assert "--temperature" in done.output


def test_a_command_takes_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path, "system = 'x'\nprofile = 'p'\n[sampling]\nseed = 3\n[profiles.p]")
    monkeypatch.setenv("ZEPHYR_LOCAL_N_CTX", "not asked for")
    seen: list[int | None] = []

    @click.command("small", cls=ConfiguredCommand)
    @click.option("--seed", type=int)
    @click.option("--prompt")
    def small(seed: int | None, prompt: str | None) -> None:
        seen.append(seed)

    assert CliRunner().invoke(small, [], standalone_mode=False).exception is None
    assert seen == [3]


def test_completing_a_command_line_reads_nothing(tmp_path: Path):
    write(tmp_path, "temperature")
    with chat.make_context("chat", ["--profile", "x"], resilient_parsing=True) as ctx:
        assert origin_of(ctx, "temperature") == "default"
