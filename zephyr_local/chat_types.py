"""What crosses every border of the runtime: messages in, pieces of text out.

These types are plain and frozen: they are all that crosses the pipe to the engine's process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from zephyr_local.errors import InvalidInputError

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")

FinishReason = Literal["stop", "length", "cancelled"]
"""``stop``: end of turn or a stop string; ``length``: max_tokens or the context's end; ``cancelled``: as asked."""


OnPrefill = Callable[[int, int], object]
"""Takes how many tokens of a chat are computed, and of how many."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Finish:
    """What an answer cost; comes with its last piece."""

    reason: FinishReason
    prompt_tokens: int
    """Tokens of the rendered chat, the cached ones included."""
    cached_tokens: int
    """Of these, how many were still in the KV cache and not computed again."""
    completion_tokens: int
    prompt_s: float
    """Seconds from the request to the first sampled token."""
    completion_s: float
    """Seconds from the first sampled token to the last."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and its natural log probability, before any sampler changed it."""

    token: int
    text: str
    """What it stands for; incomplete characters are U+FFFD."""
    logprob: float
    top: tuple[TokenLogprob, ...] = ()
    """The likeliest tokens at its place, as many as ``Sampling.logprobs`` says, the likeliest first."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text of an answer, of one token or several, never an incomplete character.

    ``finish`` is set on the last piece alone, whose text may be empty.
    """

    text: str
    finish: Finish | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of the tokens that were sampled since the piece before, where ``Sampling.logprobs`` asks for them."""

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the answer ended; None while it has not."""
        return self.finish.reason if self.finish is not None else None


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer."""

    text: str
    finish: Finish
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of all its tokens, where ``Sampling.logprobs`` asks for them."""

    @property
    def finish_reason(self) -> FinishReason:
        """Why the answer ended."""
        return self.finish.reason


class ReplyParts:
    """Joins the pieces of an answer."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._finish: Finish | None = None

    @property
    def text(self) -> str:
        """What has come so far."""
        return "".join(self._texts)

    def add(self, piece: Piece) -> None:
        self._texts.append(piece.text)
        self._logprobs += piece.logprobs
        self._finish = piece.finish or self._finish

    def reply(self) -> Reply:
        """The whole answer, once its last piece has come."""
        assert self._finish is not None, "an answer ended without a finish"
        return Reply(self.text, self._finish, tuple(self._logprobs))


def parse_messages(messages: Iterable[Message | Mapping[str, object]]) -> tuple[Message, ...]:
    """Turn OpenAI-style mappings (``role``, ``content``) into messages, or say which one is not one."""
    if isinstance(messages, (str, bytes, Mapping)):
        raise InvalidInputError(
            f"messages is a {type(messages).__name__}", 'Give a list such as [{"role": "user", "content": "Hello"}]'
        )
    parsed: list[Message] = []
    for index, item in enumerate(messages):
        role: object
        content: object
        if isinstance(item, Message):
            role, content = item.role, item.content
        elif isinstance(item, Mapping):
            role, content = item.get("role"), item.get("content")
        else:
            raise InvalidInputError(
                f"message {index} is of type {type(item).__name__}", 'Give {"role": "user", "content": "Hello"}'
            )
        if role not in ROLES:
            raise InvalidInputError(f"message {index} has the role {role!r}", f"Use one of {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise InvalidInputError(
                f"message {index} has content of type {type(content).__name__}", "Give a string; only text is supported"
            )
        parsed.append(Message(role=role, content=content))
    if not parsed:
        raise InvalidInputError("there are no messages", "Give at least one message with the role user")
    return tuple(parsed)
