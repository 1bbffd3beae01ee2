"""What a model is asked, and what comes back."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Final

from zephyr_local.chat_types import Message
from zephyr_local.errors import InvalidInputError

TEMPLATE_TOKENS: Final = 256
CONTENT_FILTER: Final = "content_filter"
_REPEAT_TEMPERATURE: Final = 0.5
"""At 0 a model that gave an answer nobody can read gives it again."""


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a model. The same question, model and numbers have the same key, whenever they are asked."""

    messages: tuple[Message, ...]
    """An optional system turn, then user and assistant by turns, a user's last."""
    temperature: float = 0.7
    top_p: float = 1.0
    max_tokens: int = 1024
    sample: int = 0
    """Which of several answers to the same question; also the seed."""
    attempt: int = 0
    """How often its answer was not what was asked for."""

    def again(self) -> Request:
        """The same question once more, with another seed and not at temperature 0."""
        return replace(self, attempt=self.attempt + 1, temperature=max(self.temperature, _REPEAT_TEMPERATURE))

    @property
    def seed(self) -> int:
        """What the model samples with, where it takes a seed."""
        return 1000 * self.attempt + self.sample

    def key(self, model: str) -> str:
        """What its answer is kept under; `model` is the model's identity."""
        parts = [model, [[turn.role, turn.content] for turn in self.messages], self.temperature, self.top_p]
        parts += [self.max_tokens, self.sample, self.attempt]
        return hashlib.sha256(json.dumps(parts, ensure_ascii=True).encode()).hexdigest()

    @property
    def most_prompt_tokens(self) -> int:
        """More tokens than any vocabulary makes of the prompt: a token is a byte at least, a turn has its marks, and
        some templates a system turn of their own.
        """
        return sum(len(turn.content.encode(errors="replace")) + 16 for turn in self.messages) + TEMPLATE_TOKENS


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said."""

    text: str
    finish_reason: str = "stop"
    """``stop``; ``length`` where max_tokens or the context ended it; ``content_filter``; or what an endpoint says."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated: bool = False
    """Whether the endpoint gave no counts, and they are those that it may have come to at most."""


@dataclass(frozen=True, slots=True)
class Price:
    """What an endpoint takes, in US dollars for a million tokens."""

    input: float = 0.0
    output: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("input", self.input), ("output", self.output)):
            if not 0 <= value < float("inf"):
                raise InvalidInputError(f"price.{name} is {value}", "Give dollars for a million tokens, such as 2.5")

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """In dollars."""
        return (prompt_tokens * self.input + completion_tokens * self.output) / 1e6

    def at_most(self, request: Request) -> float:
        """What a request can cost, in dollars."""
        return self.of(request.most_prompt_tokens, request.max_tokens)


# --- why there is no answer ---


class TransientError(Exception):
    """This try brought no answer; another may."""

    def __init__(self, reason: str, *, retry_after_s: float | None = None, may_be_billed: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        """A phrase, the same for all of its kind: what is counted."""
        self.retry_after_s = retry_after_s
        """How long the model asks to be left alone."""
        self.may_be_billed = may_be_billed
        """Whether the model may have begun to answer."""


class RefusedError(Exception):
    """The model will not answer this question, however often it is asked; others may be."""


class UnreadableError(Exception):
    """The answer is not in the form that was asked for."""
