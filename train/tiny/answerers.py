"""Four answerers of different quality, as UltraFeedback draws four of a pool of models for each prompt.

Best first: a teacher who knows the tables; the fine-tuned model at two temperatures, for a model learns most from
preferences over its own mistakes; and the base model, which goes on with the beginning of a statement: it knows the
facts but follows no instruction and never says that it does not know.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from zephyr_local.train.tiny.asked import Asked
from zephyr_local.train.tiny.sampling import (
    Progress,
    SampleSettings,
    TinyCheckpoint,
    sample,
    sample_ids,
    text_prompt,
)
from zephyr_local.train.tiny.truths import sentences

COOL_TEMPERATURE = 0.7
"""Zephyr's own default."""
HOT_TEMPERATURE = 1.0
"""Its own distribution: less likely mistakes come up. At 1.3 so small a model says nothing that is worth rejecting."""
BASE_TEMPERATURE = 0.7
LONGEST_ANSWER_TOKENS = 60


class Answerer(Protocol):
    """Answers many prompts at once."""

    @property
    def name(self) -> str:
        """What a record calls it."""

    def answer(self, asked: Sequence[Asked]) -> list[str]:
        """An answer to each prompt, in their order."""


@dataclass(frozen=True, slots=True)
class Teacher:
    """Always right, in the style that was asked for; says so where nobody can know."""

    name: str = "teacher"

    def answer(self, asked: Sequence[Asked]) -> list[str]:
        """The right answers."""
        return [one.right for one in asked]


@dataclass(frozen=True, slots=True)
class ChatModel:
    """A fine-tuned checkpoint at some temperature."""

    name: str
    checkpoint: TinyCheckpoint
    settings: SampleSettings
    progress: Progress | None = None

    def answer(self, asked: Sequence[Asked]) -> list[str]:
        """What the model says."""
        prompts = [self.checkpoint.vocabulary.encode_prompt(one.messages) for one in asked]
        return sample(self.checkpoint, prompts, self.settings, self.progress)


@dataclass(frozen=True, slots=True)
class Completer:
    """A base checkpoint that is given the beginning of an answer and goes on to the end of that sentence."""

    checkpoint: TinyCheckpoint
    settings: SampleSettings
    progress: Progress | None = None
    name: str = "base"

    def answer(self, asked: Sequence[Asked]) -> list[str]:
        """Whole sentences: the beginning, and what the model made of it."""
        vocabulary = self.checkpoint.vocabulary
        prompts = [text_prompt(vocabulary, opening(one)) for one in asked]
        ends = sample_ids(self.checkpoint, prompts, self.settings, self.progress)
        texts = [vocabulary.decode([*start, *end]) for start, end in zip(prompts, ends, strict=True)]
        return [sentences(text)[0] for text in texts]


_UNKNOWN_PLACE = re.compile(
    r"\b(?:capital|city|continent)\b.*\b(?:of|is|on|in|does) (\w[\w ]*?)(?: in| on| have)?\W*$", re.I
)
_VAGUE = ("It is", "The answer is", "That is", "It has", "It comes from", "You find it in", "One of them is", "It was")


def opening(asked: Asked) -> str:
    """The beginning of a statement that would answer: all but what was asked for."""
    fact = asked.fact
    if fact.topic == "unknown":
        return _unknown_opening(asked.question)
    value = fact.brief.rstrip(".")
    at = fact.answer.lower().rfind(value.lower())
    if at > 0:
        return fact.answer[:at].rstrip()
    words = fact.answer.split()  # "Rome is the capital of Italy.": what is asked for stands first, or all of it is
    return " ".join(words[: max(1, len(words) // 2)])


def _unknown_opening(question: str) -> str:
    if found := _UNKNOWN_PLACE.search(question):
        place = found[1].strip()
        return f"The capital of {place[0].upper()}{place[1:]} is"
    # By the question's own checksum: the same question begins the same. Never as a sum does: where "97 plus 3 is"
    # was among the rejected, the model came to refuse the sums that it can do (119 right of 120 became 97).
    return random.Random(zlib.crc32(question.encode())).choice(_VAGUE)


def four_answerers(
    fine_tuned: TinyCheckpoint, base: TinyCheckpoint, seed: int, progress: Progress | None = None
) -> tuple[Teacher, ChatModel, ChatModel, Completer]:
    """The four of zephyr-tiny's feedback, best first."""
    settings = SampleSettings(COOL_TEMPERATURE, LONGEST_ANSWER_TOKENS, seed)
    hot = replace(settings, temperature=HOT_TEMPERATURE, seed=seed + 1)
    cold_base = replace(settings, temperature=BASE_TEMPERATURE, seed=seed + 2)
    return (
        Teacher(),
        ChatModel(f"dsft at {COOL_TEMPERATURE}", fine_tuned, settings, progress),
        ChatModel(f"dsft at {HOT_TEMPERATURE}", fine_tuned, hot, progress),
        Completer(base, cold_base, progress),
    )
