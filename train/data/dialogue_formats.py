"""The formats that dialogues are published in, recognised by their keys, checked and made one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from zephyr_local.errors import InvalidInputError
from zephyr_local.train.data.records import Record

AUTO: Final = "auto"

_ROLES: Final = {
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "system": "system",
    "developer": "system",  # OpenAI's newer word for it
}
_TOOL_ROLES: Final = frozenset({"tool", "function", "function_call", "observation", "ipython", "tool_call"})
_ID_KEYS: Final = ("id", "prompt_id", "conversation_id", "question_id")

NOT_RECOGNISED: Final = "not recognised as a dialogue"
LEADING_CUT: Final = "assistant turns before the first user turn cut"
TRAILING_CUT: Final = "user turns after the last answer cut"


class UnusableDialogueError(Exception):
    """Why a record is no dialogue to train on: a phrase that the report counts by. Never leaves the data steps."""


class Turn(NamedTuple):
    """One turn: a role of ``system``, ``user`` or ``assistant``, and its text."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A checked dialogue: an optional system turn, then user and assistant by turns, an assistant's last."""

    turns: tuple[Turn, ...]
    id: str
    source: str
    """What the record says that it came from, or the name of its format."""
    format: str
    """The name of the format that it was read in."""
    changes: tuple[str, ...] = ()
    """What checking it changed, as phrases."""

    @property
    def user_texts(self) -> list[str]:
        """What the user said, in order."""
        return [turn.content for turn in self.turns if turn.role == "user"]

    @property
    def n_characters(self) -> int:
        """Characters of all turns."""
        return sum(len(turn.content) for turn in self.turns)

    def as_record(self) -> dict[str, object]:
        """The `messages` record that the training stages read."""
        messages = [{"role": turn.role, "content": turn.content} for turn in self.turns]
        return {"messages": messages, "id": self.id, "source": self.source}


@dataclass(frozen=True, slots=True)
class _Format:
    recognises: Callable[[Mapping[str, Any]], bool]
    turns: Callable[[Mapping[str, Any]], list[Turn]]


def recognised_format(value: Mapping[str, Any]) -> str | None:
    """The name of the format that a record's keys speak of; None where none does."""
    return next((name for name, known in _FORMATS.items() if known.recognises(value)), None)


def parse_dialogue(record: Record, format_name: str = AUTO, max_characters: int | None = None) -> Dialogue:
    """A record in the named format, or in the one that it is recognised as, as a checked dialogue.

    Turns lose white space at their ends; an empty system turn, assistant turns before the first user turn (ShareGPT's
    exports are cut into pieces that begin so) and user turns after the last answer are cut. Raises
    UnusableDialogueError with the reason, and InvalidInputError where there is no format of that name.
    """
    check_format(format_name)
    name = recognised_format(record.value) if format_name == AUTO else format_name
    if name is None:
        raise UnusableDialogueError(NOT_RECOGNISED)
    known = _FORMATS[name]
    if not known.recognises(record.value):
        raise UnusableDialogueError(NOT_RECOGNISED)
    turns, changes = _in_order(_with_system(record.value, [_clean(turn) for turn in known.turns(record.value)]))
    dialogue = Dialogue(tuple(turns), _id(record), _source(record.value, name), name, tuple(changes))
    if max_characters is not None and dialogue.n_characters > max_characters:
        raise UnusableDialogueError(f"longer than {max_characters:,} characters")
    return dialogue


def check_format(name: str) -> None:
    """Raises InvalidInputError unless it is ``auto`` or one of ``FORMAT_NAMES``."""
    if name != AUTO and name not in _FORMATS:
        raise InvalidInputError(f"there is no dialogue format {name!r}", f"Use {AUTO}, {', '.join(_FORMATS)}")


# --- the formats ---


def _ultrachat_raw(value: Mapping[str, Any]) -> list[Turn]:
    """`{"id", "data": [user, assistant, user, …]}` (thunlp/UltraChat)."""
    return [Turn("assistant" if index % 2 else "user", _text(content)) for index, content in enumerate(value["data"])]


def _message_list(value: Mapping[str, Any]) -> list[Turn]:
    """OpenAI's `messages`, ultrachat_200k's among them."""
    return _turns(value["messages"])


def _sharegpt(value: Mapping[str, Any]) -> list[Turn]:
    """`{"conversations": [{"from", "value"}, …]}`, or `items`."""
    return _turns(value["conversations"] if _is_list(value.get("conversations")) else value["items"])


def _alpaca(value: Mapping[str, Any]) -> list[Turn]:
    """`{"instruction", "input", "output"}`; `history` is a list of earlier (prompt, answer) pairs, as LLaMA-Factory
    writes it."""
    turns = []
    history = value.get("history") or []
    for pair in history if _is_list(history) else [history]:
        if not _is_list(pair) or len(pair) != 2:
            raise UnusableDialogueError("a history that is not made of pairs")
        turns += [Turn("user", _text(pair[0])), Turn("assistant", _text(pair[1]))]
    instruction, more = _text(value["instruction"]), value.get("input")
    if more is not None and _text(more).strip():
        instruction = f"{instruction.rstrip()}\n\n{more}" if instruction.strip() else more
    return [*turns, Turn("user", instruction), Turn("assistant", _text(value["output"]))]


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _has_list(*keys: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda value: any(_is_list(value.get(key)) for key in keys)


_FORMATS: Final[Mapping[str, _Format]] = {
    "ultrachat_200k": _Format(lambda value: "prompt" in value and _is_list(value.get("messages")), _message_list),
    "messages": _Format(_has_list("messages"), _message_list),
    "sharegpt": _Format(_has_list("conversations", "items"), _sharegpt),
    "ultrachat": _Format(_has_list("data"), _ultrachat_raw),
    "alpaca": _Format(lambda value: "instruction" in value and "output" in value, _alpaca),
}
FORMAT_NAMES: Final = tuple(_FORMATS)


# --- the checks ---


def _turns(items: Sequence[object]) -> list[Turn]:
    return [_turn(item) for item in items]


def _turn(item: object) -> Turn:
    if not isinstance(item, Mapping):
        raise UnusableDialogueError("a turn that is not an object")
    said = item.get("from") if item.get("from") is not None else item.get("role")
    role = _ROLES.get(said.strip().lower()) if isinstance(said, str) else None
    if role is None:
        tool = isinstance(said, str) and said.strip().lower() in _TOOL_ROLES
        raise UnusableDialogueError("tool or function turns" if tool else "a turn of unknown role")
    if item.get("tool_calls") or item.get("function_call"):
        raise UnusableDialogueError("tool or function turns")
    content = next((item[key] for key in ("value", "content", "text") if item.get(key) is not None), None)
    return Turn(role, _text(content))


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence) and not isinstance(content, bytes):
        return "\n".join(map(_part_text, content))
    raise UnusableDialogueError("a turn that is not text")


def _part_text(part: object) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise UnusableDialogueError("a turn that is not text")


def _clean(turn: Turn) -> Turn:
    content = turn.content.strip()
    if "\0" in content:
        raise UnusableDialogueError("a NUL character")
    if not _is_unicode(content):
        raise UnusableDialogueError("half a surrogate pair, which is no Unicode text")
    return Turn(turn.role, content)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _with_system(value: Mapping[str, Any], turns: list[Turn]) -> list[Turn]:
    """The turns after the system turn that LLaMA-Factory's formats keep in a key of its own."""
    system = value.get("system")
    if isinstance(system, str) and system.strip() and not any(turn.role == "system" for turn in turns):
        return [_clean(Turn("system", system)), *turns]
    return turns


def _in_order(turns: list[Turn]) -> tuple[list[Turn], list[str]]:
    """The turns in the order that training asks for, and what was cut for it."""
    changes = []
    system = turns[:1] if turns and turns[0].role == "system" else []
    spoken = turns[len(system) :]
    if any(turn.role == "system" for turn in spoken):
        raise UnusableDialogueError("a system turn that is not the first")
    first = next((index for index, turn in enumerate(spoken) if turn.role == "user"), len(spoken))
    last = max((index for index, turn in enumerate(spoken) if turn.role == "assistant"), default=-1)
    if last < 0:
        raise UnusableDialogueError("no assistant turn")
    if first > last:
        raise UnusableDialogueError("no user turn before an answer")
    if first > 0:
        changes.append(LEADING_CUT)
    if last + 1 < len(spoken):
        changes.append(TRAILING_CUT)
    spoken = spoken[first : last + 1]
    for index, turn in enumerate(spoken):
        if turn.role != ("assistant" if index % 2 else "user"):
            raise UnusableDialogueError("user and assistant not by turns")
        if not turn.content:
            raise UnusableDialogueError("an empty turn")
    return [turn for turn in system if turn.content] + spoken, changes


def _id(record: Record) -> str:
    for key in _ID_KEYS:
        value = record.value.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, str) and value.strip() and _is_unicode(value):
            return value
    return record.where.encode(errors="replace").decode()


def _source(value: Mapping[str, Any], format_name: str) -> str:
    source = value.get("source")
    return source if isinstance(source, str) and source.strip() and _is_unicode(source) else format_name
