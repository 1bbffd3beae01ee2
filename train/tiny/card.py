"""What a training run of zephyr-tiny writes down about itself: the model card and the results in full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zephyr_local.chat_types import Message
from zephyr_local.train.tiny.exam import ExamResult, Mistake, answers_of

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

{made}
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
class StageFacts:
    """What one stage of training cost."""

    title: str
    data: str
    """What it was trained on, as a phrase."""
    n_steps: int
    elapsed_s: float


def made_by_stages(stages: Sequence[StageFacts]) -> str:
    """How the card says that the model went the paper's road."""
    minutes = sum(stage.elapsed_s for stage in stages) / 60
    lines = [
        f"From random weights, on two CPU cores in {minutes:.0f} minutes of training, by the recipe `tiny` of",
        "zephyr-local, which goes the way of Zephyr-7B (Tunstall et al. 2023, arXiv 2310.16944) and makes its base,",
        "too. All data is made up by the project's own scripts from hand-written tables and wordings: no text copied",
        "from anywhere, no other model's output. Chats are in Zephyr's format. No safety training was done.",
        "",
        "| stage | data | steps | seconds |",
        "|---|---|---|---|",
    ]
    lines += [f"| {stage.title} | {stage.data} | {stage.n_steps:,} | {stage.elapsed_s:.0f} |" for stage in stages]
    return "\n".join(lines)


def exam_table(columns: Sequence[tuple[str, ExamResult]]) -> str:
    """Results by topic as a Markdown table, one column a model."""
    titles = [title for title, _ in columns]
    lines = [f"| topic | {' | '.join(titles)} |", f"|---|{'---|' * len(titles)}"]
    for rows in zip(*(result.scores for _, result in columns), strict=True):
        lines.append(f"| {rows[0].topic} | {' | '.join(f'{row.right} of {row.asked}' for row in rows)} |")
    totals = (f"{result.right} of {result.asked}" for _, result in columns)
    confident = (str(result.wrong_and_confident) for _, result in columns)
    lines.append(f"| **all** | {' | '.join(totals)} |")
    lines.append(f"| wrong, and said as if it were so | {' | '.join(confident)} |")
    return "\n".join(lines)


def model_card(n_parameters: int, size_bytes: int, columns: Sequence[tuple[str, ExamResult]], made: str) -> str:
    """The card of the GGUF that is shipped, with what it got after each stage; the last column is its own."""
    return _CARD.format(
        parameters=f"{n_parameters / 1e6:.1f} million",
        size_mb=size_bytes / 1e6,
        exam=exam_table(columns),
        made=made,
    )


def samples(model: Path) -> str:
    """Twenty questions and what a checkpoint or a GGUF said, to be read by a person."""
    chats = [[*([Message("system", system)] if system else []), Message("user", text)] for system, text in _SAMPLES]
    lines: list[str] = []
    for (system, question), said in zip(_SAMPLES, answers_of(model, chats), strict=True):
        asked = f"(system: {system}) {question}" if system else question
        lines.append(f"- {asked}\n  **{said}**")
    return "\n".join(lines)


def mistakes_text(mistakes: Sequence[Mistake]) -> str:
    """Every wrong answer of an exam."""
    return "\n".join(f"- {m.question} → {m.said!r}, right: {m.right!r}" for m in mistakes)
