"""Chats of the past on the screen: lists of them, and their turns."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from wcwidth import wcswidth

from zephyr_local.chat_types import Message
from zephyr_local.repl.screen import visible
from zephyr_local.repl.view import View
from zephyr_local.transcripts.store import ChatSummary

_DAY_S = 86400


def one_line(text: str, columns: int = 50) -> str:
    """How a text begins, on one line of at most so many columns."""
    return _cut(" ".join(visible(text).split()), columns)


def branch_line(turns: Sequence[Message]) -> str:
    """How a branch ends: its last question and the answer."""
    question, answer = (one_line(turn.content, 34) for turn in turns[-2:])
    return f"{question} → {answer}"


def chat_lines(summaries: Sequence[ChatSummary], *, current: int | None = None, columns: int = 100) -> list[str]:
    """A line for each chat: number, when it was changed, turns, title, models."""
    width = max([2, *(len(str(summary.id)) for summary in summaries)])
    lines = []
    for summary in summaries:
        mark = "*" if summary.id == current else " "
        branches = f" ({summary.branches} branches)" if summary.branches > 1 else ""
        models = ", ".join(visible(name) for name in summary.models)
        tail = f"  {models}" if models else ""
        head = f"{mark}{summary.id:{width}}  {when(summary.changed_s)}  {summary.turns:3} turns  "
        room = max(12, columns - 1 - len(head) - len(branches) - max(0, wcswidth(tail)))
        lines.append(f"{head}{one_line(summary.title, room)}{branches}{tail}")
    return lines


def when(time_s: float) -> str:
    """A moment in the local time, 16 characters."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(time_s))


def show_turns(view: View, turns: Iterable[Message]) -> None:
    """Questions with their numbers behind a ``>``, answers as they were shown when they came."""
    number = 0
    for turn in turns:
        if turn.role == "user":
            number += 1
            view.text(f"{number} > {turn.content}")
        else:
            _show_answer(view, turn)


UNFINISHED = "[this answer was not finished; /continue goes on]"


def show_last(view: View, turns: Sequence[Message], state: str | None = None) -> None:
    """The last question, if it is long its beginning, and its answer, which is in this state."""
    if turns:
        question, answer = turns[-2:]
        view.text(f"> {one_line(question.content, max(20, 2 * view.columns() - 4))}")
        _show_answer(view, answer)
        if state in ("interrupted", "length"):
            view.note(UNFINISHED)


def _show_answer(view: View, turn: Message) -> None:
    answer = view.answer()
    answer.feed(turn.content)
    answer.close()


def _cut(text: str, columns: int) -> str:
    if wcswidth(text) <= columns:
        return text
    kept = ""
    for character in text:
        if wcswidth(kept + character) > columns - 1:
            break
        kept += character
    return kept.rstrip() + "…"
