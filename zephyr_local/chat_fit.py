"""What to do with a chat that no longer fits the context: refuse, drop its oldest turns, or have them summarised.

Nothing here waits. What has to be asked of a model is yielded (:class:`CountTokens`, :class:`Complete`) and its answer
sent back; so one text serves the chat that blocks and the one that awaits.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeVar

from zephyr_local.chat_types import Message
from zephyr_local.errors import ContextExceededError
from zephyr_local.settings import Sampling

Policy = Literal["stop", "drop_oldest", "summarise"]

SUMMARY_HEADING: Final = "Summary of the conversation so far: "
SUMMARY_INSTRUCTION: Final = (
    "Summarise our conversation so far, the earlier summary included, in a few sentences: names, facts, decisions, "
    "open questions. Write the summary and nothing else."
)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class CountTokens:
    """Ask for the tokens of ``messages``; None is the answer where they are too many to be counted."""

    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Complete:
    """Ask for the text of an answer; None is the answer where it does not fit."""

    messages: tuple[Message, ...]
    sampling: Sampling


Steps = Generator[CountTokens | Complete, int | str | None, _T]


@dataclass(frozen=True, slots=True)
class Dropped:
    """Turns that the model is not shown any more. The chat still has them."""

    messages: tuple[Message, ...]
    tokens_before: int | None
    """Of the whole chat with the new question; None: so many that they were not counted."""
    tokens_after: int
    summary: str | None = None
    """What the model is shown instead of turns that were dropped; these are in it unless there was a problem."""
    problem: str | None = None
    """Why these turns were not summarised, where the policy asks for it."""


@dataclass(frozen=True, slots=True)
class Room:
    """What the context holds, and how much of it is kept for an answer."""

    n_ctx: int
    reserve: int
    policy: Policy

    @property
    def limit(self) -> int:
        return self.n_ctx - self.reserve

    @property
    def share(self) -> int:
        """What a chat is cut down to: so low that it does not happen again with the next question."""
        return min(self.n_ctx // 2, self.limit)

    @property
    def summary_tokens(self) -> int:
        return max(1, min(256, self.n_ctx // 8))


@dataclass(frozen=True, slots=True)
class Asked:
    """A question after the turns of a chat, of which ``turns[start:]`` are shown."""

    system: str | None
    turns: tuple[Message, ...]
    question: Message
    start: int = 0
    summary: str | None = None
    answer_start: str = ""
    """What the answer begins with already."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """What the model is shown."""
        return (*system_message(self.system, self.summary), *self.turns[self.start :], self.question)

    @property
    def counted(self) -> tuple[Message, ...]:
        """What takes up the context: an answer that was begun counts as a turn, which is a few tokens too many."""
        begun = (Message("assistant", self.answer_start),) if self.answer_start else ()
        return (*self.messages, *begun)


def system_message(system: str | None, summary: str | None) -> tuple[Message, ...]:
    """The system message with the summary in it, if there is anything to say."""
    parts = [part for part in (system, summary and SUMMARY_HEADING + summary) if part is not None]
    return (Message("system", "\n\n".join(parts)),) if parts else ()


def fit(asked: Asked, room: Room) -> Steps[tuple[Asked, Dropped | None]]:
    """``asked`` so that it fits, and what was dropped for it; raises ContextExceededError where that is not allowed."""
    tokens = yield from _count(asked.counted)
    if tokens is not None and tokens <= room.limit:
        return asked, None
    if room.policy == "stop":
        raise _exceeded(asked, room, tokens)
    problem: str | None = None
    if room.policy == "summarise":
        summarised = yield from _summarise(asked, room)
        if not isinstance(summarised, str):
            return summarised[0], _report(asked, *summarised, tokens)
        problem = summarised
    shorter = yield from _drop(asked, (room.share, room.limit))
    if shorter is None:
        alone = replace(asked, turns=(), start=0)
        raise _exceeded(alone, room, (yield from _count(alone.counted)))
    return shorter[0], replace(_report(asked, *shorter, tokens), problem=problem)


def _count(messages: tuple[Message, ...]) -> Steps[int | None]:
    tokens = yield CountTokens(messages)
    assert not isinstance(tokens, str)
    return tokens


def _drop(asked: Asked, limits: Iterable[int]) -> Steps[tuple[Asked, int] | None]:
    """Drop as few of the oldest questions and answers as will do for the first of the limits that can be kept."""
    starts = range(asked.start + 2, len(asked.turns) + 1, 2)
    counts: dict[int, int | None] = {}
    for limit in limits:
        low, high = 0, len(starts)  # from starts[high] on it fits, before starts[low] it does not
        while low < high:
            middle = (low + high) // 2
            start = starts[middle]
            if start not in counts:
                counts[start] = yield from _count(replace(asked, start=start).counted)
            tokens = counts[start]
            if tokens is not None and tokens <= limit:
                high = middle
            else:
                low = middle + 1
        if high < len(starts):
            tokens = counts[starts[high]]
            assert tokens is not None
            return replace(asked, start=starts[high]), tokens
    return None


def _summarise(asked: Asked, room: Room) -> Steps[tuple[Asked, int] | str]:
    """Drop turns and put the model's summary in their place; or what is in the way.

    The request goes on where the chat was, so that the model still has all of it in its cache.
    """
    budget = room.summary_tokens
    shorter = yield from _drop(asked, (room.share - budget, room.limit - budget))
    if shorter is None:
        return "there is no room for a summary beside the question"
    begun = (*system_message(asked.system, asked.summary), *asked.turns[asked.start : shorter[0].start])
    request = (*begun, Message("user", SUMMARY_INSTRUCTION))
    tokens = yield from _count(request)
    if tokens is None or tokens + budget > room.n_ctx:
        return "the turns that a summary would be made of do not fit the context"
    text = yield Complete(request, Sampling(temperature=0.0, max_tokens=budget))
    if not isinstance(text, str) or not text.strip():
        return "the model wrote no summary"
    summarised = replace(shorter[0], summary=text.strip())
    tokens = yield from _count(summarised.counted)
    if tokens is None or tokens > room.limit:
        return "the summary does not fit the context"
    return summarised, tokens


def _report(asked: Asked, shorter: Asked, tokens: int, tokens_before: int | None) -> Dropped:
    return Dropped(asked.turns[asked.start : shorter.start], tokens_before, tokens, shorter.summary)


def _exceeded(asked: Asked, room: Room, tokens: int | None) -> ContextExceededError:
    needs = f"{tokens} tokens" if tokens is not None else f"more than {room.n_ctx} tokens"
    return ContextExceededError(
        f"the chat needs {needs} and its answer {room.reserve}, and the context holds {room.n_ctx}",
        "Begin a new chat, let this one drop or summarise its oldest turns, or load the model with a larger n_ctx"
        if asked.turns
        else "Shorten the question or the system prompt, or load the model with a larger n_ctx",
    )
