"""What a preference is once it is read, whatever format it came in, and the checks that all formats share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

from zephyr_local.chat_types import ROLES, Message
from zephyr_local.train.data.normal_text import normal_text
from zephyr_local.train.data.records import Record

PROMPT_KEYS: Final = ("prompt", "question", "instruction")
_ID_KEYS: Final = ("id", "prompt_id")
_ID_BYTES: Final = 12
_MOST_SCORE: Final = 1e9


class UnusablePreferenceError(Exception):
    """Why a record is no preference to train on: a phrase that the report counts by. Never leaves the data steps."""

    def __init__(self, reason: str, text: str = "", left_out: Mapping[str, int] = {}) -> None:
        super().__init__(reason)
        self.reason = reason
        self.text = text
        """Of the record, for an example."""
        self.left_out = left_out
        """What of its answers was not used."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, and the score that a judge gave it."""

    text: str
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked, and where it comes from."""

    prompt: tuple[Message, ...]
    """An optional system turn, then user and assistant by turns, a user's last."""
    id: str
    """The record's own, or a hash of the prompt and the answers."""
    source: str
    """What the record says that it came from, or the name of its file."""

    @property
    def key(self) -> str:
        """What tells prompts apart: the spoken turns in normal form. A system turn does not make another question."""
        return "\0".join(normal_text(turn.content) for turn in self.prompt if turn.role != "system")

    @property
    def last(self) -> str:
        """The last thing asked."""
        return self.prompt[-1].content


@dataclass(frozen=True, slots=True)
class ScoredAnswers(Asked):
    """Two answers or more, each with a score; none is chosen yet."""

    answers: tuple[Answer, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    """What of the record was not used: a phrase → how often."""


@dataclass(frozen=True, slots=True)
class Preference(Asked):
    """Two answers, the first better than the second."""

    chosen: Answer = Answer("")
    rejected: Answer = Answer("")

    @property
    def margin(self) -> float | None:
        """By how much the chosen answer scores higher; None where a score is missing."""
        if self.chosen.score is None or self.rejected.score is None:
            return None
        return self.chosen.score - self.rejected.score

    def as_record(self) -> dict[str, object]:
        """The pair that the training stages read, in TRL's explicit form."""
        return {
            "prompt": [{"role": turn.role, "content": turn.content} for turn in self.prompt],
            "chosen": [{"role": "assistant", "content": self.chosen.text}],
            "rejected": [{"role": "assistant", "content": self.rejected.text}],
            "score_chosen": self.chosen.score,
            "score_rejected": self.rejected.score,
            "id": self.id,
            "source": self.source,
        }


def checked_text(value: object, what: str) -> str:
    """A text that can be trained on; `what` names it in the reason."""
    if not isinstance(value, str):
        raise UnusablePreferenceError(f"{what} that is not text")
    if not value.strip():
        raise UnusablePreferenceError(f"{what} that is empty")
    if not is_writable(value):
        raise UnusablePreferenceError(f"{what} with a NUL or half a surrogate pair, which is no text")
    return value


def is_writable(text: str) -> bool:
    """Whether it can be written as UTF-8 and is free of NUL, which some readers end a text at."""
    if "\0" in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def number(value: object) -> float | None:
    """A number that can be a score, also one written as text; None for all else (``N/A``, NaN, true)."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if abs(found) <= _MOST_SCORE else None  # which NaN is not


def first_given(value: Mapping[str, Any], keys: Sequence[str]) -> Any:  # noqa: ANN401 — whatever the record holds
    """The value of the first key that is there and not null."""
    return next((value[key] for key in keys if value.get(key) is not None), None)


def is_list(value: object) -> bool:
    """Whether it is a list; Parquet's readers give other sequences than JSON's."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def read_messages(value: object) -> tuple[Message, ...]:
    """OpenAI's list of ``role`` and ``content``, each turn checked."""
    assert isinstance(value, Sequence)
    messages = []
    for turn in value:
        if not isinstance(turn, Mapping) or turn.get("role") not in ROLES:
            raise UnusablePreferenceError("a turn of another role than system, user and assistant")
        content = turn.get("content")
        if turn["role"] == "system" and content == "":
            messages.append(Message("system", ""))  # as the data has it: the template shows it
        else:
            messages.append(Message(turn["role"], checked_text(content, "a turn")))
    return tuple(messages)


def read_prompt(value: Mapping[str, Any]) -> tuple[Message, ...]:
    """The prompt of a record that has it in a key of its own, as text or as messages.

    ``system`` (Orca's pairs) becomes a system turn, and ``input`` (Alpaca's instructions) follows the instruction.
    """
    asked = first_given(value, PROMPT_KEYS)
    if is_list(asked):
        return checked_prompt(read_messages(asked))
    text = checked_text(asked, "a prompt")
    more = value.get("input")
    if isinstance(more, str) and more.strip():
        text = f"{text}\n\n{checked_text(more, 'a prompt')}"
    system = value.get("system")
    turns = [Message("user", text)]
    if isinstance(system, str) and system.strip():
        turns.insert(0, Message("system", checked_text(system, "a system turn")))
    return tuple(turns)


def checked_prompt(turns: Sequence[Message]) -> tuple[Message, ...]:
    """The turns, which must be an optional system turn and then user and assistant by turns, a user's last."""
    spoken = turns[1:] if turns and turns[0].role == "system" else turns
    if not spoken:
        raise UnusablePreferenceError("a prompt without a user's turn")
    if any(turn.role == "system" for turn in spoken):
        raise UnusablePreferenceError("a system turn that is not the first")
    if spoken[0].role != "user" or any(before.role == after.role for before, after in pairwise(spoken)):
        raise UnusablePreferenceError("user and assistant not by turns")
    if spoken[-1].role != "user":
        raise UnusablePreferenceError("a prompt whose last turn is not the user's")
    return tuple(turns)


def record_id(record: Record, prompt: Sequence[Message], answers: Sequence[Answer]) -> str:
    """The record's own id; without one a hash that is the same wherever the record stands."""
    given = first_given(record.value, _ID_KEYS)
    if isinstance(given, int) and not isinstance(given, bool):
        return str(given)
    if isinstance(given, str) and given.strip() and is_writable(given):
        return given
    texts = [*(f"{turn.role}\0{turn.content}" for turn in prompt), *(answer.text for answer in answers)]
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=_ID_BYTES).hexdigest()


def record_source(record: Record) -> str:
    """What the record came from: ``source``, AlpacaEval's ``dataset``, or its file."""
    given = first_given(record.value, ("source", "dataset"))
    if isinstance(given, str) and given.strip() and is_writable(given):
        return given
    return record.where.rpartition(":")[0].encode(errors="replace").decode() or "unknown"
