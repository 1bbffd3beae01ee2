"""What a training run of zephyr-tiny writes down about itself: the model card and the results in full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zephyr_local.chat_types import Message
from zephyr_local.train.tiny.exam import Answerer, Mistake, Score

FRONT_MATTER = """---
model_name: zephyr-tiny
license: mit
language:
- en
tags:
- chat
---
"""

_CARD = """# zephyr-tiny

A very small chat model that comes with zephyr-local, so that the first chat needs no download. It shows that
everything works; it is no assistant. For real use get Zephyr-7B as a GGUF file and run `zephyr-local chat MODEL`.

- **Kind**: Mistral architecture, {parameters} parameters, a vocabulary of 2,048 pieces, a context of 1,024 tokens,
  quantized to Q4_K_M ({size_mb:.1f} MB).
- **Licence**: MIT, like the project.
- **Language**: simple English. It answers every other language with one sentence, at best.

## What it knows

The capitals and continents of about fifty countries, both ways; thirty animals (legs, sound, home, food, young);
the colours of some things; days, months and seasons in order; common opposites; sums, differences and products of
two numbers up to ten; who it is, and small talk. It understands many wordings, lower case, missing question marks,
small slips of the finger, and a short question after another, such as "And of Italy?". The system prompts "Answer
briefly." and "You are a friendly chatbot who always responds in the style of a pirate" have an effect; others are
politely ignored.

## What it does not know

Everything else. It was trained to say so, but a question that looks like one of its own may get a wrong answer,
given as surely as a right one. It has no sense of truth and no memory beyond the chat, does no reasoning, and
cannot write text, code or translations. Do not rely on any answer.

## How well

Questions that training never showed in these words, marked word for word (the refusals: any honest one), at
temperature 0. It is no blind test: the data was mended after looking at it. The usual first words (greetings,
thanks, "Who are you?", "What can you do?") are trained in all their wordings and left out. At the default
temperature of 0.7 (Zephyr's default) more goes wrong; it is asked at 0 unless told otherwise.

{exam}

## How it was made

From random weights, on two CPU cores in {minutes:.0f} minutes, by `python -m zephyr_local.train.tiny_model` in the
project's repository: {n_dialogues:,} chats ({n_tokens:,} tokens) that the script makes up itself from hand-written
tables and wordings, no text copied from anywhere and no other model's output; loss on the assistant's words alone
(at the end {loss:.3f}). Chats are in Zephyr's format. It has not been aligned with preferences, and no safety
training was done.
"""

_SAMPLES: tuple[tuple[str | None, str], ...] = (  # system prompt, question
    (None, "hi"),
    (None, "Who are you?"),
    (None, "what can u do"),
    (None, "What's the capital of France?"),
    (None, "Athens is the capital of which country"),
    (None, "which continent is kenya in?"),
    (None, "How many legs does a spider have?"),
    (None, "what does the cow say"),
    (None, "what is a baby sheep called?"),
    (None, "What color is a banana?"),
    (None, "waht day comes after friday"),
    (None, "How many days does February have?"),
    (None, "opposite of hot"),
    (None, "what is 7 times 8?"),
    (None, "2+2"),
    (None, "How do I get a better model?"),
    (None, "Who wrote Hamlet?"),
    (None, "Can you write a poem about the sea?"),
    ("You are a friendly chatbot who always responds in the style of a pirate", "What is the capital of Spain?"),
    ("Answer briefly.", "What do horses eat?"),
)


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What a run cost and where it ended."""

    n_parameters: int
    n_tokens: int
    """Padding included: what was computed."""
    n_said_tokens: int
    """The assistant's, which the loss is taken on."""
    n_dialogues: int
    final_loss: float
    """Mean of the last fifty steps."""
    elapsed_s: float


def exam_table(columns: Sequence[tuple[str, Sequence[Score]]]) -> str:
    """Scores by topic as a Markdown table, one column a model."""
    titles = [title for title, _ in columns]
    lines = [f"| topic | {' | '.join(titles)} |", f"|---|{'---|' * len(titles)}"]
    for rows in zip(*(scores for _, scores in columns), strict=True):
        lines.append(f"| {rows[0].topic} | {' | '.join(f'{row.right} of {row.asked}' for row in rows)} |")
    totals = [f"{sum(s.right for s in scores)} of {sum(s.asked for s in scores)}" for _, scores in columns]
    lines.append(f"| **all** | {' | '.join(totals)} |")
    return "\n".join(lines)


def model_card(report: TrainingReport, scores: Sequence[Score], size_bytes: int) -> str:
    """The card of the GGUF that is shipped."""
    return _CARD.format(
        parameters=f"{report.n_parameters / 1e6:.1f} million",
        size_mb=size_bytes / 1e6,
        exam=exam_table([("right", scores)]),
        minutes=report.elapsed_s / 60,
        n_dialogues=report.n_dialogues,
        n_tokens=report.n_tokens,
        loss=report.final_loss,
    )


def samples(answer: Answerer) -> str:
    """Twenty questions and what was said, to be read by a person."""
    lines: list[str] = []
    for system, question in _SAMPLES:
        messages = [Message("system", system)] if system else []
        said = answer([*messages, Message("user", question)])
        asked = f"(system: {system}) {question}" if system else question
        lines.append(f"- {asked}\n  **{said}**")
    return "\n".join(lines)


def mistakes_text(mistakes: Sequence[Mistake]) -> str:
    """Every wrong answer of an exam."""
    return "\n".join(f"- {m.question} → {m.said!r}, right: {m.right!r}" for m in mistakes)
