"""Prompts whose right answer is known: what the answerers are asked and the judge marks."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from zephyr_local.chat_types import Message
from zephyr_local.train.tiny.dialogues import TOPIC_WEIGHTS, Style, draw_system_prompt, draw_turn, styled
from zephyr_local.train.tiny.questions import Fact

# Where a model of this size errs: what it cannot know, and sums. Small talk keeps its share, or refusing spreads to
# greetings.
FEEDBACK_TOPIC_WEIGHTS: Mapping[str, int] = {**TOPIC_WEIGHTS, "unknown": 45, "sums": 40}
STYLE_WEIGHTS: Mapping[Style, int] = {"plain": 70, "brief": 18, "pirate": 12}
LONGEST_HISTORY = 2
"""Earlier turns of a chat, answered rightly."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A chat that ends with a question, and the truth."""

    messages: tuple[Message, ...]
    fact: Fact
    style: Style

    @property
    def question(self) -> str:
        """The last turn."""
        return self.messages[-1].content

    @property
    def right(self) -> str:
        """The answer as the system prompt wants it."""
        return styled(self.fact, self.style)


def draw_asked(rng: random.Random) -> Asked:
    """A prompt from the dialogues' own wordings, so never one of the exam's."""
    style: Style = rng.choices(tuple(STYLE_WEIGHTS), tuple(STYLE_WEIGHTS.values()))[0]
    messages: list[Message] = []
    if style != "plain" or rng.random() < 0.15:
        messages.append(Message("system", draw_system_prompt(rng, style)))
    previous: Fact | None = None
    for _ in range(rng.choices(range(LONGEST_HISTORY + 1), (70, 22, 8))[0]):
        previous, question = draw_turn(rng, previous)
        messages += [Message("user", question), Message("assistant", styled(previous, style))]
    fact, question = draw_turn(rng, previous, FEEDBACK_TOPIC_WEIGHTS)
    return Asked((*messages, Message("user", question)), fact, style)


def all_asked(seed: int) -> Iterator[Asked]:
    """Prompts without end, each once, the same ones for the same seed."""
    rng = random.Random(f"zephyr-tiny feedback {seed}")
    seen: set[tuple[Message, ...]] = set()
    while True:
        asked = draw_asked(rng)
        if asked.messages not in seen:
            seen.add(asked.messages)
            yield asked
