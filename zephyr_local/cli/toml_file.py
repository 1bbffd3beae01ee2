"""A TOML file of the user's, changed with its comments and layout kept: whole or as it was, and never unreadable."""

from __future__ import annotations

import contextlib
import copy
import os
import secrets
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any, TypeVar

from zephyr_local.configuration import MAX_BYTES, dotted, parse_toml, read_text
from zephyr_local.errors import InvalidInputError, OutputError
from zephyr_local.folder_sync import sync_folder
from zephyr_local.user_folders import make_private_folder

Parts = tuple[str, ...]
_Edit = Callable[[str], str]
_Checked = TypeVar("_Checked")


class TomlFile:
    """The text of a file, which changes are made to one after the other and :meth:`save` writes."""

    def __init__(self, path: Path) -> None:
        """Raises InvalidInputError for a file that cannot be read or is no TOML; one that is missing is empty."""
        self.path = path
        self.text = read_text(path) or ""
        self.values = parse_toml(self.text, path)

    def set(self, parts: Parts, value: object) -> None:
        """Let the key at ``parts`` have a value; tables above it are made."""
        expected = copy.deepcopy(self.values)
        _assign(expected, parts, value)
        self._take(expected, _edits_to_set(parts, value))

    def remove(self, parts: Parts) -> None:
        """Take out the key or the table at ``parts``, which is there."""
        expected = copy.deepcopy(self.values)
        _remove(expected, parts)

        def removed(text: str) -> str:
            import tomlkit

            document = tomlkit.parse(text)
            _remove(document, parts)
            return tomlkit.dumps(document)

        self._take(expected, (removed,))

    def append(self, name: str, value: str) -> None:
        """Add to the list of a name at the top, made where it is missing."""
        if name not in self.values:
            self.set((name,), [value])
            return
        expected = copy.deepcopy(self.values)
        expected[name].append(value)

        def appended(text: str) -> str:
            import tomlkit

            document: Any = tomlkit.parse(text)
            document[name].append(value)
            return tomlkit.dumps(document)

        self._take(expected, (appended,))

    def take_out(self, name: str, i: int) -> None:
        """Remove an item of the list of a name at the top."""
        expected = copy.deepcopy(self.values)
        del expected[name][i]

        def taken(text: str) -> str:
            import tomlkit

            document: Any = tomlkit.parse(text)
            del document[name][i]
            return tomlkit.dumps(document)

        self._take(expected, (taken,))

    def save(self, check: Callable[[Path], _Checked]) -> _Checked:
        """Write the file, unless ``check`` raises InvalidInputError for one with this text; what it returns.

        It is for its owner alone to read; a link goes on pointing where it points.
        """
        try:
            data = self.text.encode()
        except UnicodeEncodeError:  # a path on the command line need not be UTF-8
            raise InvalidInputError(f"{self.path} is UTF-8, and what is to be written is not", "Rename it") from None
        if len(data) > MAX_BYTES:
            raise InvalidInputError(f"{self.path} would be over the limit of {MAX_BYTES} bytes", "Take something out")
        temporary: Path | None = None
        try:
            make_private_folder(self.path.parent)  # or it says that no home folder is known
            target = Path(os.path.realpath(self.path))
            make_private_folder(target.parent)
            temporary = target.with_name(f".{target.name}-{secrets.token_hex(8)}.tmp")
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:  # noqa: PTH123
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            checked = self._checked(check, temporary)
            temporary.replace(target)
            temporary = None
            sync_folder(target.parent)
        except (OSError, ValueError) as error:  # ValueError: a null character in the name
            reason = (error.strerror if isinstance(error, OSError) else None) or error
            remedy = "Check the folder, its permissions and the disk"
            raise OutputError(f"{self.path} cannot be written: {reason}", remedy) from None
        finally:
            if temporary is not None:
                with contextlib.suppress(OSError, ValueError):
                    temporary.unlink()
        return checked

    def _checked(self, check: Callable[[Path], _Checked], temporary: Path) -> _Checked:
        try:
            return check(temporary)
        except InvalidInputError as error:
            raise InvalidInputError(error.problem.replace(str(temporary), str(self.path)), error.remedy) from None

    def _take(self, expected: dict[str, Any], edits: tuple[_Edit, ...]) -> None:
        """The text after the first of these edits that means what is expected.

        tomlkit keeps comments and layout; whether it also did what was asked is seen by reading what it made.
        """
        for edit in edits:
            with contextlib.suppress(Exception):  # its documents raise whatever their structure makes them stumble over
                made = edit(self.text)
                made += "\n" if made and not made.endswith("\n") else ""
                if parse_toml(made, self.path) in (expected, _without_empty(expected)):
                    self.text, self.values = made, parse_toml(made, self.path)
                    return
        raise OutputError(f"{self.path} cannot be changed without losing its layout", "Change it in an editor")


def _edits_to_set(parts: Parts, value: object) -> tuple[_Edit, ...]:
    import tomlkit

    line = f"{dotted(parts[-1:])} = {tomlkit.item(value).as_string()}"

    def beside_others(text: str) -> str:
        # tomlkit appends below the comments that introduce the next table: this stands above them.
        document: Any = tomlkit.parse(text)
        table = document
        for part in parts[:-1]:
            table = table[part]
        if parts[-1] in table:
            raise KeyError(parts[-1])
        body = document.body if table is document else table.value.body
        last = [item for name, item in body if name is not None and not isinstance(item, MutableMapping)][-1]
        last.trivia.trail = f"{last.trivia.trail or chr(10)}{line}\n"
        return tomlkit.dumps(document)

    def assigned(text: str) -> str:
        document = tomlkit.parse(text)
        _assign(document, parts, value)
        return tomlkit.dumps(document)

    def apart(text: str) -> str:  # where a table is written in several places, tomlkit may lose its way
        table = dotted(parts[:-1])
        return f"{text.rstrip()}\n\n[{table}]\n{line}\n" if table else f"{line}\n{text}"

    return beside_others, assigned, apart


def _assign(table: MutableMapping[str, Any], parts: Parts, value: object) -> None:
    for part in parts[:-1]:
        if part not in table:
            table[part] = {}
        table = table[part]
        if not isinstance(table, MutableMapping):
            raise InvalidInputError(f"{part} is no table in the file", "Take it out, in an editor or with its verb")
    table[parts[-1]] = value


def _remove(table: MutableMapping[str, Any], parts: Parts) -> None:
    for part in parts[:-1]:
        table = table[part]
    del table[parts[-1]]


def _without_empty(table: dict[str, Any]) -> dict[str, Any]:
    pruned = {name: _without_empty(value) if isinstance(value, dict) else value for name, value in table.items()}
    return {name: value for name, value in pruned.items() if value != {}}
