"""The prompts that feedback is given on, and answers that are there already."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from zephyr_local.chat_types import Message
from zephyr_local.errors import InvalidInputError
from zephyr_local.train.data.normal_text import normal_text
from zephyr_local.train.data.preference_records import (
    UnusablePreferenceError,
    checked_prompt,
    first_given,
    is_list,
    read_messages,
    read_prompt,
    record_id,
    record_source,
)
from zephyr_local.train.data.records import Damage, Record, read_records
from zephyr_local.train.data.report import DataReport

_OUTPUT_KEYS: Final = ("output", "response", "completion", "answer")
_ID_BYTES: Final = 12


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the candidates are asked."""

    messages: tuple[Message, ...]
    """An optional system turn, then user and assistant by turns, a user's last."""
    id: str
    source: str

    @property
    def instruction(self) -> str:
        """As one text: the one turn, or the chat with who says what."""
        if len(self.messages) == 1:
            return self.messages[0].content
        names = {"system": "System", "user": "User", "assistant": "Assistant"}
        return "\n\n".join(f"{names[turn.role]}: {turn.content}" for turn in self.messages)


def read_prompts(records: Iterable[Record | Damage], report: DataReport) -> Iterator[Prompt]:
    """Prompts from records with ``prompt``, ``question`` or ``instruction`` (text or messages), or dialogues, whose
    last answer is left out. What is no prompt, or the same as an earlier one, is counted as dropped.
    """
    seen = set[str]()
    for record in records:
        if isinstance(record, Damage):
            report.drop_damaged(record)
            continue
        report.n_read += 1
        try:
            messages = _messages(record.value)
        except UnusablePreferenceError as error:
            report.drop(error.reason, record.where)
            continue
        key = "\0".join(f"{turn.role}\0{normal_text(turn.content)}" for turn in messages)
        if key in seen:
            report.drop("a prompt that came before", messages[-1].content)
            continue
        seen.add(key)
        report.n_kept += 1
        yield Prompt(messages, record_id(record, messages, ()), record_source(record))


def _messages(value: Mapping[str, Any]) -> tuple[Message, ...]:
    turns = value.get("messages")
    if not is_list(turns):
        return read_prompt(value)
    messages = read_messages(turns)
    if messages and messages[-1].role == "assistant":
        messages = messages[:-1]
    return checked_prompt(messages)


def read_ready_answers(path: Path) -> dict[str, str]:
    """Answers in a file: the prompt's key (:func:`prompt_key`) → the answer.

    A record has its prompt as in :func:`read_prompts` and its answer in ``output``, ``response``, ``completion`` or
    ``answer``; or it is a dialogue that ends with the answer. Raises InvalidInputError, naming the record.
    """
    found = {}
    for record in read_records(path):
        turns = record.value.get("messages")
        answer = first_given(record.value, _OUTPUT_KEYS)
        if answer is None and is_list(turns) and turns and isinstance(turns[-1], Mapping):
            answer = turns[-1].get("content") if turns[-1].get("role") == "assistant" else None
        try:
            if not isinstance(answer, str):
                raise UnusablePreferenceError(f"without an answer in {', '.join(_OUTPUT_KEYS)} or messages")
            found[prompt_key(_messages(record.value))] = answer
        except UnusablePreferenceError as error:
            raise InvalidInputError(f"{record.where} is {error.reason}", "Mend or remove that record") from None
    return found


def prompt_key(messages: Iterable[Message]) -> str:
    """What tells prompts apart, system turn and all."""
    text = "\0".join(f"{turn.role}\0{turn.content.strip()}" for turn in messages)
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=_ID_BYTES).hexdigest()
