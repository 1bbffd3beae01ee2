"""A chat as JSON, read as what anyone may have written, and written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn, cast, get_args

from zephyr_local.chat_fit import Policy
from zephyr_local.chat_tree import ChatTree
from zephyr_local.chat_types import Message, Role
from zephyr_local.errors import InvalidInputError, OutputError
from zephyr_local.folder_sync import sync_folder

FORMAT: Final = "zephyr-local chat"
VERSION: Final = 1
MAX_BYTES: Final = 64 << 20

_GIVE_A_CHAT: Final = "Give a file that the save of a chat has written"
_KEYS: Final = ("format", "version", "system", "policy", "reserve_tokens", "turns", "current", "dropped")


@dataclass(frozen=True, slots=True)
class ChatRecord:
    """What is kept of a chat: all but the model and its sampling."""

    system: str | None
    policy: Policy
    reserve_tokens: int | None
    tree: ChatTree


def dump_chat(record: ChatRecord) -> str:
    tree = record.tree
    leaf, cuts = tree.leaf, dict(tree.cuts)  # before the turns, to which an answer may be added meanwhile
    turns = [{"parent": node.parent, "role": node.message.role, "content": node.message.content} for node in tree.nodes]
    dropped = [{"after": node, "summary": summary} for node, summary in cuts.items()]
    values = (FORMAT, VERSION, record.system, record.policy, record.reserve_tokens, turns, leaf, dropped)
    return json.dumps(dict(zip(_KEYS, values, strict=True)), ensure_ascii=False, indent=1) + "\n"


def parse_chat(text: str | bytes) -> ChatRecord:
    """The chat in ``text``; raises InvalidInputError for anything that :func:`dump_chat` does not write."""
    top = _object(_json(text), "the chat", ())
    if top.get("format") != FORMAT:
        _refuse(f"the format is not {FORMAT!r}")
    version = top.get("version")
    if type(version) is not int or version != VERSION:
        raise InvalidInputError(
            f"the chat is of version {version!r:.40}, and this release reads version {VERSION}",
            "Use the release that wrote it",
        )
    _object(top, "the chat", _KEYS)
    if top["policy"] not in get_args(Policy):
        _refuse(f"the policy is not one of {', '.join(get_args(Policy))}")
    reserve = top["reserve_tokens"]
    if reserve is not None and (type(reserve) is not int or reserve < 1):
        _refuse("reserve_tokens is not a whole number above 0")
    tree = ChatTree()
    for index, turn in enumerate(_list(top["turns"], "turns")):
        _add_turn(tree, _object(turn, f"turn {index}", ("parent", "role", "content")), index)
    parents = {node.parent for node in tree.nodes}
    for index, node in enumerate(tree.nodes):
        if node.message.role == "user" and index not in parents:
            _refuse(f"turn {index} is a question without an answer")
    tree.leaf = None if top["current"] is None else _answer(top["current"], tree, "current")
    for index, item in enumerate(_list(top["dropped"], "dropped")):
        cut = _object(item, f"dropped {index}", ("after", "summary"))
        after = _answer(cut["after"], tree, f"dropped {index}")
        if after in tree.cuts:
            _refuse(f"dropped {index} names a turn that another one names")
        tree.cuts[after] = _text_or_none(cut["summary"], f"the summary of dropped {index}")
    return ChatRecord(_text_or_none(top["system"], "system"), cast("Policy", top["policy"]), reserve, tree)


def read_chat(path: Path) -> ChatRecord:
    """The chat in a file; raises InvalidInputError where there is none."""
    try:
        if path.exists() and not path.is_file():
            raise InvalidInputError(f"{path} is not a file", _GIVE_A_CHAT)
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise InvalidInputError(f"{path} cannot be read: {reason}", _GIVE_A_CHAT) from None
    try:
        return parse_chat(data)
    except InvalidInputError as error:
        raise InvalidInputError(f"{path}: {error.problem}", error.remedy) from None


def write_chat(path: Path, text: str) -> None:
    """Write ``text`` under a temporary name beside ``path`` and rename it; a new file is its owner's alone to read."""
    # A lone surrogate has no UTF-8; between the quotes of JSON, Python's escape of it is JSON's too.
    data = text.encode("utf-8", "backslashreplace")
    if len(data) > MAX_BYTES:
        raise OutputError(
            f"the chat is {len(data)} bytes as JSON, more than the {MAX_BYTES} that are read again",
            "Save branch() of it, which leaves all other branches out",
        )
    temporary: Path | None = None
    try:
        target = Path(os.path.realpath(path))  # a link goes on pointing where it points
        temporary = target.with_name(f".zephyr-local-{secrets.token_hex(8)}.tmp")
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:  # noqa: PTH123
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        temporary.replace(target)
        temporary = None
        sync_folder(target.parent)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise OutputError(
            f"{path} cannot be written: {reason}", "Check the folder, its permissions and the disk"
        ) from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError, ValueError):
                temporary.unlink()


def _refuse(problem: str) -> NoReturn:
    raise InvalidInputError(f"this is not a chat: {problem}", _GIVE_A_CHAT)


def _json(text: str | bytes) -> object:
    if len(text) > MAX_BYTES:
        _refuse(f"it is over the limit of {MAX_BYTES} bytes")
    try:
        loaded: object = json.loads(text if isinstance(text, str) else text.decode())
    except UnicodeDecodeError as error:
        _refuse(f"it is not UTF-8 at byte {error.start}")
    except json.JSONDecodeError as error:
        _refuse(f"it is not JSON, line {error.lineno}: {error.msg}")
    except ValueError:  # Python's limit on the digits of a number
        _refuse("it has a number of thousands of digits")
    except RecursionError:
        _refuse("its JSON is nested too deep")
    return loaded


def _object(value: object, what: str, keys: tuple[str, ...]) -> Mapping[str, object]:
    """``value`` as a mapping, with exactly these keys where there are any."""
    if not isinstance(value, dict):
        _refuse(f"{what} is not a JSON object")
    if keys and (missing := [key for key in keys if key not in value]):
        _refuse(f"{what} has no {missing[0]}")
    if keys and (more := [key for key in value if key not in keys]):
        _refuse(f"{what} has {more[0]!r:.40}, which is not known")
    return value


def _list(value: object, what: str) -> list[object]:
    if not isinstance(value, list):
        _refuse(f"{what} is not a JSON array")
    return value


def _text_or_none(value: object, what: str) -> str | None:
    if value is not None and not isinstance(value, str):
        _refuse(f"{what} is neither text nor null")
    return value


def _add_turn(tree: ChatTree, turn: Mapping[str, object], index: int) -> None:
    parent, content = turn["parent"], turn["content"]
    if parent is not None and (type(parent) is not int or not 0 <= parent < index):
        _refuse(f"the parent of turn {index} is not a turn before it")
    role: Role = "user" if parent is None or tree.nodes[parent].message.role == "assistant" else "assistant"
    if turn["role"] != role:
        _refuse(f"turn {index} must have the role {role}, because questions and answers alternate")
    if not isinstance(content, str):
        _refuse(f"the content of turn {index} is not text")
    tree.add(parent, Message(role, content))


def _answer(value: object, tree: ChatTree, what: str) -> int:
    if type(value) is not int or not 0 <= value < len(tree.nodes) or tree.nodes[value].message.role != "assistant":
        _refuse(f"{what} does not name an answer")
    return value
