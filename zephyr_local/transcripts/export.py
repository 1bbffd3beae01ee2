"""A stored chat for others: as Markdown to read, as JSON to load again, as ShareGPT to train on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from zephyr_local.chat_file import ChatRecord, dump_chat
from zephyr_local.chat_types import Message
from zephyr_local.transcripts.store import StoredTurn

_FROM: Final = {"system": "system", "user": "human", "assistant": "gpt"}
_MARKS: Final = {"interrupted": "interrupted", "writing": "being written", "length": "cut at a limit"}


def to_markdown(title: str, system: str | None, turns: Sequence[StoredTurn]) -> str:
    """The current branch under headings; an answer that is not whole says so."""
    lines = [f"# {' '.join(title.split())}", ""]
    if system is not None:
        lines += ["## System", "", system.strip(), ""]
    for turn in turns:
        if turn.message.role == "user":
            heading = "You"
        else:
            heading = turn.model or "Assistant"
            heading += f" ({_MARKS[turn.state]})" if turn.state in _MARKS else ""
        lines += [f"## {heading}", "", turn.message.content.strip(), ""]
    return "\n".join(lines)


def to_json(record: ChatRecord) -> str:
    """All branches, as ``Chat.save`` writes them and ``Chat.load`` and /load read them."""
    return dump_chat(record)


def to_sharegpt(chat: int, system: str | None, turns: Sequence[StoredTurn]) -> dict[str, Any]:
    """The current branch as a conversation of ShareGPT's form, without answers that are not whole and their questions.

    What is trained on it would learn to stop in the middle.
    """
    pairs = zip(turns[::2], turns[1::2], strict=True)
    messages = [turn.message for pair in pairs if pair[1].state == "whole" for turn in pair]
    if system is not None:
        messages.insert(0, Message("system", system))
    return {
        "id": f"zephyr-local-{chat}",
        "conversations": [{"from": _FROM[message.role], "value": message.content} for message in messages],
    }


def dump_sharegpt(conversations: Sequence[dict[str, Any]]) -> str:
    """Conversations as the JSON array that ShareGPT's files are."""
    return json.dumps(list(conversations), ensure_ascii=False, indent=1) + "\n"
