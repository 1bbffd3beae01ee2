"""`zephyr-local config`: what is set, from where, and the file changed with its comments and layout kept."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

from zephyr_local.cli.configured import PROFILE_VARIABLE, profile_option, require_profile
from zephyr_local.cli.toml_file import Parts, TomlFile
from zephyr_local.configuration import (
    Configuration,
    Entry,
    Key,
    configuration_path,
    dotted,
    environment_entry,
    known_keys,
    read_configuration,
    require_profile_name,
    understand,
    unknown_key,
    value_of_text,
)
from zephyr_local.errors import InvalidInputError

_PART: Final = re.compile(r'"([^"]+)"|\'([^\']+)\'|([^."\'\s]+)')
_MAX_COLUMNS: Final = 48
_NEGATIVE: Final = {"ignore_unknown_options": True}  # -1 and -0.5 are values

_to_profile: Final = click.option("--profile", metavar="NAME", help="In this profile; the same as profiles.NAME.KEY.")


@click.group("config", short_help="Show or change the configuration.")
def command() -> None:
    """Show and change what is set for all chats. A flag goes before the environment, that before profile and file."""


@command.command("path", short_help="Where the file is.")
def path_command() -> None:
    """Print where the configuration file is, or would be."""
    click.echo(str(configuration_path()))


@command.command("show", short_help="What is set, and where.")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
@click.pass_context
def show_command(ctx: click.Context, profile: str | None, as_json: bool) -> None:
    """Show each key with its value and where that is from: default, file, profile or environment; - where none is set.

    The JSON object has file, exists, profiles (their names), profile (the one in use) and settings (by key); profile
    and each of the settings are an object of value and from.
    """
    configuration = read_configuration()
    chosen = require_profile(ctx, configuration, profile)
    shown = Entry(chosen, _origin_of_profile(ctx, configuration))
    entries = {key.dotted: entry for key, entry in _effective(configuration, chosen)}
    if as_json:
        made = {
            "file": str(configuration.path),
            "exists": configuration.path.exists(),
            "profiles": list(configuration.profiles),
            "profile": _as_json(shown),
            "settings": {name: _as_json(entry) for name, entry in entries.items()},
        }
        click.echo(json.dumps(made, indent=2))
        return
    from zephyr_local.repl.screen import visible

    there = f"profiles: {', '.join(configuration.profiles) or 'none'}" if configuration.path.exists() else "missing"
    click.echo(visible(f"{configuration.path} ({there})"))
    for line in _aligned({"profile": shown, **entries}):
        click.echo(line)


show_command.params.insert(0, profile_option())


@command.command("set", short_help="Set a key.", context_settings=_NEGATIVE)
@click.argument("key")
@click.argument("value")
@_to_profile
def set_command(key: str, value: str, profile: str | None) -> None:
    """Set KEY (system, temperature, engine.n_ctx, profiles.NAME.system) to VALUE in the configuration file.

    Several texts are a JSON list: '["###", "User:"]'. A relative path counts from the current folder. What begins with
    a dash and is no number stands after --.
    """
    parts, known = _parse_key(key, profile)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidInputError(f"{key} is not UTF-8, as the file is", "Give it as UTF-8") from None
    made: object = value
    if known is not None:
        checked = value_of_text(known, value, Path.cwd())
        made = list(checked) if isinstance(checked, tuple) else checked
        if isinstance(made, Path | str):
            made = value if value.startswith("~") else str(made)
    path = configuration_path()
    file = TomlFile(path)
    was_sound = _is_sound(file.values, path)
    file.set(parts, made)
    _save(file, was_sound=was_sound)
    _report(f"{dotted(parts)} = {_text(made)}", path)


@command.command("unset", short_help="Take a key out of the file.")
@click.argument("key")
@_to_profile
def unset_command(key: str, profile: str | None) -> None:
    """Take KEY out of the configuration file; also a table, such as profiles.NAME, and a key that is not known."""
    path = configuration_path()
    file = TomlFile(path)
    parts = next((parts for parts in _ways_to_read(key, profile) if _holds(file.values, parts)), None)
    if parts is None:
        raise InvalidInputError(f"{key} is not set in {path}", "zephyr-local config show tells what is")
    was_sound = _is_sound(file.values, path)
    file.remove(parts)
    _save(file, was_sound=was_sound)
    _report(f"{dotted(parts)} is no longer set", path)


# --- show ---


def _effective(configuration: Configuration, profile: str | None) -> list[tuple[Key, Entry]]:
    entries = configuration.entries(profile or "")
    return [
        (key, environment_entry(key) or entries.get(name) or Entry(key.default, "default"))
        for name, key in known_keys().items()
    ]


def _origin_of_profile(ctx: click.Context, configuration: Configuration) -> str:
    source = ctx.get_parameter_source("profile")
    if source is ParameterSource.COMMANDLINE:
        return "flag"
    if source is ParameterSource.ENVIRONMENT:
        return f"environment {PROFILE_VARIABLE}"
    return "default" if configuration.profile is None else "file"


def _as_json(entry: Entry) -> dict[str, object]:
    value = str(entry.value) if isinstance(entry.value, Path) else entry.value
    return {"value": value, "from": entry.origin}


def _text(value: object) -> str:
    """As TOML would have it, on one line."""
    if value is None:
        return "-"
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)


def _aligned(entries: dict[str, Entry]) -> list[str]:
    from wcwidth import wcswidth

    from zephyr_local.repl.screen import visible

    rows = []
    for name, entry in entries.items():
        text = visible(_text(entry.value))
        rows.append(
            (name, text if len(text) <= _MAX_COLUMNS else f"{text[: _MAX_COLUMNS - 1]}…", visible(entry.origin))
        )
    name_width = max(len(name) for name, _, _ in rows)
    widths = [max(0, wcswidth(text)) for _, text, _ in rows]
    return [
        f"{name:{name_width}}  {text}{' ' * (max(widths) - width)}  {origin}"
        for (name, text, origin), width in zip(rows, widths, strict=True)
    ]


def _report(what: str, path: Path) -> None:
    from zephyr_local.repl.screen import visible

    click.echo(visible(f"{what} in {path}"), err=True)


# --- keys ---


def _split(key: str) -> Parts:
    """``a."b c".d`` in its parts."""
    parts, at = [], 0
    while match := _PART.match(key, at):
        parts.append(next(filter(None, match.groups())))
        at = match.end() + 1
        if match.end() == len(key):
            return tuple(parts)
        if key[match.end()] != ".":
            break
    raise InvalidInputError(f"{key!r} is not a key", "Give names with points between, such as sampling.temperature")


def _parse_key(key: str, profile: str | None) -> tuple[Parts, Key | None]:
    """Where ``key`` stands in the file, and what it is; None for ``profile``. A field's name does without its table."""
    parts: Parts = (("profiles", profile) if profile else ()) + _split(key)
    where, rest = (parts[:2], parts[2:]) if parts[0] == "profiles" else ((), parts)
    if len(where) == 2:
        require_profile_name(where[1])
    if rest == ("profile",) and not where:
        return rest, None
    known = known_keys().get(rest[-1]) if rest else None
    if known is not None and rest in ((known.name,), tuple(known.dotted.split("."))):
        return (*where, *known.dotted.split(".")), known
    if len(rest) == 1 and rest[0] not in ("sampling", "engine"):
        raise unknown_key(where, "", rest[0])
    if len(rest) == 2 and rest[0] in ("sampling", "engine"):
        raise unknown_key(where, *rest)
    raise InvalidInputError(f"{key!r} is not a key", "Give one such as sampling.temperature or profiles.NAME.system")


def _ways_to_read(key: str, profile: str | None) -> list[Parts]:
    ways = []
    with contextlib.suppress(InvalidInputError):
        ways.append(_parse_key(key, profile)[0])
    return [*ways, (("profiles", profile) if profile else ()) + _split(key)]


# --- the file ---


def _holds(table: Any, parts: Parts) -> bool:  # noqa: ANN401  (whatever TOML holds)
    for part in parts:
        if not isinstance(table, dict) or part not in table:
            return False
        table = table[part]
    return True


def _save(file: TomlFile, *, was_sound: bool) -> None:
    """Write the file, unless this would make one that is refused of one that is not."""

    def check(_written: Path) -> None:
        if was_sound:
            understand(file.values, file.path)

    file.save(check)


def _is_sound(top: dict[str, Any], path: Path) -> bool:
    try:
        understand(top, path)
    except InvalidInputError:
        return False
    return True
