"""What a user sets once: the configuration file, its profiles, the environment; read as what anyone may have typed."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Final, Literal, NamedTuple, get_args, get_origin, get_type_hints

from zephyr_local.errors import InvalidInputError
from zephyr_local.settings import EngineSettings, Sampling
from zephyr_local.user_folders import config_folder

Overflow = Literal["stop", "drop-oldest", "summarise"]
Theme = Literal["auto", "light", "dark", "none"]

FILE_NAME: Final = "config.toml"
MAX_BYTES: Final = 1 << 20
VARIABLE_PREFIX: Final = "ZEPHYR_LOCAL_"
BUILT_IN_TEMPLATES: Final = ("zephyr",)


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """What is set of a terminal chat, beside sampling and the engine."""

    model: Path | None = None
    """A GGUF, or the name of a model on this machine; None: the bundled model."""
    system: str | None = None
    """What the model is told before the conversation."""
    template: str | None = None
    """A built-in template's name, or a file; None: the model's own."""
    overflow: Overflow = "stop"
    """What happens when the context is full."""
    theme: Theme = "auto"
    """Colours for a light or dark background."""
    plain: bool = False
    """Show answers as they come, without rendering their Markdown."""
    save: bool | None = None
    """Keep chats; None: conversations, and not single answers."""
    history: bool | None = None
    """Remember typed lines for the next time; None: as ``save``."""


_SECTIONS: Final[dict[str, type]] = {"": ChatSettings, "sampling": Sampling, "engine": EngineSettings}
_NOT_OF_A_CHAT: Final = ("logit_bias", "logprobs", "check_tensors", "n_parallel")  # they have no flag, either
_PATHS: Final = ("model", "template")

_IN_TOML: Final[dict[type, type]] = {tuple: list, Path: str}
_WANTED: Final[dict[type, str]] = {
    str: "a text in quotes",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    tuple: 'a list of texts, such as ["###"]',
    Path: "the path of a file in quotes",
}
_FOUND: Final[dict[type, str]] = {
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "a table",
}
_TRUE: Final = ("1", "true", "yes", "on")
_FALSE: Final = ("0", "false", "no", "off")

_FIX_IT: Final = "Correct the file; zephyr-local config path tells where it is"
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f]")
_MAX_SHOWN: Final = 60
_MAX_PROBLEM: Final = 300
_INT64: Final = 1 << 63  # the whole numbers of TOML; Python refuses to print far larger ones


class Key(NamedTuple):  # made in a tenth of a dataclass's time, and a chat waits for it
    """One thing that can be set."""

    name: str
    """That of the dataclass's field and of the command line's parameter."""
    section: str
    """The table that it stands in: ``sampling``, ``engine``, or empty for the top."""
    kind: type
    choices: tuple[str, ...]
    default: object

    @property
    def dotted(self) -> str:
        return f"{self.section}.{self.name}" if self.section else self.name

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return VARIABLE_PREFIX + self.name.upper()


class Entry(NamedTuple):
    """A value and where it was set: ``file``, ``profile NAME`` or ``environment VARIABLE``."""

    value: object
    origin: str


@cache
def known_keys() -> Mapping[str, Key]:
    """All that can be set, by name, read off the dataclasses."""
    keys: dict[str, Key] = {}
    for section, settings in _SECTIONS.items():
        hints = get_type_hints(settings)
        for item in fields(settings):
            if item.name in _NOT_OF_A_CHAT:
                continue
            hint: Any = hints[item.name]
            if isinstance(hint, UnionType):
                hint = next(part for part in get_args(hint) if part is not type(None))
            choices = get_args(hint) if get_origin(hint) is Literal else ()
            kind = str if choices else get_origin(hint) or hint
            keys[item.name] = Key(item.name, section, kind, choices, item.default)
    return keys


@dataclass(frozen=True, slots=True)
class Configuration:
    """A configuration file, checked; values are by the names of :func:`known_keys`."""

    path: Path
    values: Mapping[str, object] = field(default_factory=dict)
    profiles: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    profile: str | None = None
    """The profile that is used where none is named."""

    def chosen(self, profile: str | None) -> str | None:
        """The profile that counts where ``profile`` is asked for: None asks for the file's, an empty text for none.

        Raises InvalidInputError where there is none of that name.
        """
        name = self.profile if profile is None else profile
        if name and name not in self.profiles:
            there_are = _cut(f"There are: {', '.join(self.profiles)}", _MAX_PROBLEM)
            remedy = there_are if self.profiles else "zephyr-local config set --profile NAME KEY VALUE makes one"
            raise InvalidInputError(f"there is no profile {_shown(name)} in {self.path}", remedy)
        return name or None

    def entries(self, profile: str | None) -> dict[str, Entry]:
        """What the file sets, and the profile over it; :meth:`chosen` says which profile."""
        name = self.chosen(profile)
        found = {key: Entry(value, "file") for key, value in self.values.items()}
        if name is not None:
            found |= {key: Entry(value, f"profile {name}") for key, value in self.profiles[name].items()}
        return found


def configuration_path() -> Path:
    """Where the user's configuration file is, or would be."""
    return config_folder() / FILE_NAME


def read_configuration(path: Path | None = None) -> Configuration:
    """The configuration in ``path`` (None: the user's); a missing file is an empty one.

    Raises InvalidInputError that names the file and the key where something in it is not as it must be.
    """
    path = configuration_path() if path is None else path
    text = read_text(path)
    return Configuration(path) if text is None else understand(parse_toml(text, path), path)


def read_text(path: Path) -> str | None:
    """The file's text, None where there is no file; raises InvalidInputError where it cannot be read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a named pipe would be waited for
            raise InvalidInputError(f"{path} is not a file", "Put a file there, or nothing")
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise InvalidInputError(f"{path} is over the limit of {MAX_BYTES} bytes", _FIX_IT)
        return data.decode("utf-8-sig")  # some editors of Windows begin with a byte order mark
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path} is not UTF-8 (byte {error.start})", "Save it as UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise InvalidInputError(f"{path} cannot be read: {reason}", "Check its permissions") from None


def parse_toml(text: str, path: Path) -> dict[str, Any]:
    """``text`` as TOML; raises InvalidInputError with line and column where it is none."""
    import tomllib  # some milliseconds, which a chat without a configuration file need not wait for

    try:
        return tomllib.loads(text)
    except RecursionError:
        raise InvalidInputError(f"{path} is nested too deeply", _FIX_IT) from None
    except ValueError as error:  # not only TOMLDecodeError: also int() of thousands of digits
        lines = text.split("\n")
        end = f"at line {len(lines)}, column {len(lines[-1]) + 1}, the end"
        problem = str(error).replace("at end of document", end)
        raise InvalidInputError(f"{path} is not TOML: {_cut(problem, _MAX_PROBLEM)}", _FIX_IT) from None


def understand(top: Mapping[str, Any], path: Path) -> Configuration:
    """What a parsed file means; raises InvalidInputError that names ``path`` and the key."""
    try:
        profiles: dict[str, Mapping[str, object]] = {}
        for name, table in _table(top.get("profiles", {}), ("profiles",)).items():
            require_profile_name(name)
            where = ("profiles", name)
            profiles[name] = _settings(_table(table, where), where, path.parent)
        profile = top.get("profile")
        if not isinstance(profile, str | None):
            raise InvalidInputError(f"profile is {_kind(profile)}", f"Give {_WANTED[str]}")
        made = Configuration(path, _settings(top, (), path.parent), profiles, profile)
    except InvalidInputError as error:
        raise InvalidInputError(f"{path}: {_cut(error.problem, _MAX_PROBLEM)}", error.remedy) from None
    try:
        made.chosen(None)
    except InvalidInputError as error:
        raise InvalidInputError(f"{error.problem}, though its key profile names it", error.remedy) from None
    return made


def require_profile_name(name: str) -> None:
    """Raise InvalidInputError for a name that cannot be told or typed."""
    if not name or _CONTROL.search(name):
        problem = f"the profile's name {_shown(name)} is empty or has control characters"
        raise InvalidInputError(problem, "Give one that can be typed")


def environment_entry(key: Key) -> Entry | None:
    """What the environment sets ``key`` to; None where its variable is missing or empty.

    Raises InvalidInputError that names the variable.
    """
    text = os.environ.get(key.variable)
    if not text:
        return None
    try:
        return Entry(value_of_text(key, text), f"environment {key.variable}")
    except InvalidInputError as error:
        raise InvalidInputError(f"{key.variable}: {error.problem}", error.remedy) from None


def value_of_text(key: Key, text: str, folder: Path = Path()) -> object:
    """The value that ``text`` gives ``key``, checked; several texts are a JSON list, one of them is itself.

    A relative path counts from ``folder``. Raises InvalidInputError, whose problem begins with the key's name.
    """
    value: object = text
    try:
        if key.kind is bool:
            value = _truth(text)
        elif key.kind in (int, float):
            value = key.kind(text)
        elif key.kind is tuple:
            value = _json(text) if text.startswith("[") else [text]
        if key.kind is not Path:  # whose bytes may be any
            text.encode()
    except UnicodeEncodeError:
        raise InvalidInputError(f"{key.name} is not UTF-8", "Give it as UTF-8") from None
    except (ValueError, RecursionError):
        wanted = _WANTED[key.kind]
        raise InvalidInputError(f"{key.name} is {_shown(text)}", f"Give {wanted}") from None
    return checked_value(key, value, folder)


def checked_value(key: Key, value: object, folder: Path) -> object:
    """``value`` as the settings keep it; raises InvalidInputError, whose problem begins with the key's name.

    ``~`` is expanded, and a relative path counts from ``folder``.
    """
    if key.kind is float and type(value) is int and abs(value) < _INT64:
        value = float(value)
    if type(value) is not _IN_TOML.get(key.kind, key.kind):
        raise InvalidInputError(f"{key.name} is {_kind(value)}", f"Give {_WANTED[key.kind]}")
    if isinstance(value, int) and not -_INT64 <= value < _INT64:
        raise InvalidInputError(f"{key.name} is a number of over 64 bits", "Give a smaller one")
    if isinstance(value, list) and not all(isinstance(text, str) for text in value):
        raise InvalidInputError(f"{key.name} is a list of other things than texts", f"Give {_WANTED[tuple]}")
    if key.choices and value not in key.choices:
        raise InvalidInputError(f"{key.name} is {_shown(value)}", f"Use {', '.join(key.choices)}")
    if key.name in _PATHS and not (key.name == "template" and value in BUILT_IN_TEMPLATES):
        return key.kind(_file(key.name, str(value), folder))
    if key.section:  # whose dataclass knows the limits
        value = getattr(_SECTIONS[key.section](**{key.name: value}), key.name)
    return value


def unknown_key(where: tuple[str, ...], section: str, name: str) -> InvalidInputError:
    """The error for a key that a section does not have; ``where`` is the profile that this is in, or empty."""
    import difflib

    known = known_keys()
    problem = f"{dotted((*where, *filter(None, (section,)), name))} is not known"
    full = {key.name: dotted((*where, *key.dotted.split("."))) for key in known.values()}
    if name in known and known[name].section != section:
        return InvalidInputError(problem, f"It is {full[name]}")
    here = [key.name for key in known.values() if key.section == section]
    if not section:
        here += [*filter(None, _SECTIONS), *(() if where else ("profile", "profiles"))]
    near = difflib.get_close_matches(name[:_MAX_SHOWN], [*here, *full], n=1)
    remedy = f"Perhaps {full.get(near[0], near[0])} is meant" if near else f"Known are: {', '.join(here)}"
    return InvalidInputError(problem, remedy)


def dotted(parts: Iterable[str]) -> str:
    """Keys as TOML writes them one below the other, those that need quotes in quotes."""
    return ".".join(part if _BARE_KEY.fullmatch(part) else _quoted(part) for part in parts)


def _settings(table: Mapping[str, Any], where: tuple[str, ...], folder: Path, section: str = "") -> dict[str, object]:
    """The values of a table and of its sections, by name; ``where`` is the profile that this is in, or empty."""
    values: dict[str, object] = {}
    here = (*where, section) if section else where
    for name, value in table.items():
        key = known_keys().get(name)
        if not section and name and name in _SECTIONS:
            values |= _settings(_table(value, (*where, name)), where, folder, name)
        elif key is not None and key.section == section:
            try:
                values[name] = checked_value(key, value, folder)
            except InvalidInputError as error:
                prefix = f"{dotted(here)}." if here else ""
                raise InvalidInputError(prefix + error.problem, error.remedy) from None
        elif here or name not in ("profile", "profiles"):
            raise unknown_key(where, section, name)
    return values


def _table(value: object, where: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidInputError(f"{dotted(where)} is {_kind(value)}", f"Write it as a table, [{dotted(where)}]")
    return value


def _file(name: str, text: str, folder: Path) -> Path:
    if not text or "\0" in text:
        raise InvalidInputError(f"{name} is {_shown(text)}", "Give the path of a file, or leave it out")
    try:
        path = folder / Path(text).expanduser()
        return Path(text) if name == "model" and _is_name(text) and not path.exists() else path
    except OSError:  # a name too long for a file
        return Path(text)
    except RuntimeError:
        raise InvalidInputError(f"{name} is {_shown(text)}, whose home folder is not known", "Write it out") from None


def _is_name(text: str) -> bool:
    """Whether it may be a model's name, which counts from no folder: ``zephyr-7b-beta``, ``hf:OWNER/REPO``."""
    is_plain = not any(separator in text for separator in "/\\") and not text.lower().endswith(".gguf")
    return text.startswith("hf:") or (is_plain and not text.startswith((".", "~")))


def _json(text: str) -> object:
    import json

    made: object = json.loads(text)
    return made


def _quoted(text: str) -> str:
    import json

    return json.dumps(text, ensure_ascii=False)


def _truth(text: str) -> bool:
    told = text.strip().lower()
    if told not in (*_TRUE, *_FALSE):
        raise ValueError(text)
    return told in _TRUE


def _kind(value: object) -> str:
    return _FOUND.get(type(value), "a date or time")


def _shown(value: object) -> str:
    return _cut(repr(value), _MAX_SHOWN)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}…"
