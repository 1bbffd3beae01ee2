"""Dialogues for zephyr-tiny: questions as people type them, put together into chats of one to many turns."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from zephyr_local.chat_types import Message
from zephyr_local.train.tiny.questions import FIRST_WORDS, OPERATIONS, Fact, all_facts
from zephyr_local.train.tiny.unknown import unknown_fact

Style = Literal["plain", "brief", "pirate"]

# How often a topic is asked. Sums are many facts, so they get more than their share of a first minute's chat.
TOPIC_WEIGHTS: Mapping[str, int] = {
    "capitals": 12,
    "countries": 9,
    "continents": 8,
    "animals": 17,
    "colours": 5,
    "days": 8,
    "months": 11,
    "opposites": 9,
    "sums": 28,
    "talk": 40,
    "unknown": 20,
}

# What anybody writes first is asked this many times as often as the rest of the small talk.
FIRST_WORDS_WEIGHT = 4

SYSTEM_PROMPTS: dict[Style, tuple[str, ...]] = {
    "plain": (
        "You are a helpful assistant.",
        "You are a friendly chatbot.",
        "You are zephyr-tiny, a small and friendly model.",
        "You are a helpful, respectful and honest assistant.",
        "You are a kind teacher.",
        "Answer the questions of the user.",
        "You are an expert.",
        "Be polite.",
        "You are a chatbot who helps people.",
        "",
    ),
    "brief": (
        "Answer briefly.",
        "Be brief.",
        "Answer in one word.",
        "Keep your answers short.",
        "You are a helpful assistant. Answer briefly.",
        "Give short answers.",
        "Answer as briefly as possible.",
        "Be concise.",
        "Short answers only.",
        "Please answer in one word only.",
        "Please be brief.",
        "Answer with a single word.",
        "You are a chatbot who gives short answers.",
    ),
    "pirate": (
        "You are a friendly chatbot who always responds in the style of a pirate.",
        "You are a friendly chatbot who always responds in the style of a pirate",
        "You are a pirate.",
        "Talk like a pirate.",
        "Answer like a pirate.",
        "Respond in the style of a pirate.",
        "You are a pirate chatbot.",
        "Speak like a pirate, please.",
    ),
}
# Most system prompts of real people are none of the above; made-up ones teach the model to go on as usual.
CHARACTERS = ("assistant", "chatbot", "teacher", "expert", "model", "guide", "bot", "friend", "cook", "doctor", "poet")
MANNERS = (
    "who helps people", "who is kind", "who knows much", "living in Berlin", "called Sam", "from the future",
    "who likes cats", "who writes well", "for children", "of a museum", "who never lies", "with good manners",
)  # fmt: skip
ADJECTIVES = ("friendly", "helpful", "clever", "famous", "patient", "funny", "wise", "polite", "honest", "serious")
FOLLOW_UPS = (
    "And {x}?", "What about {x}?", "And of {x}?", "How about {x}?", "And for {x}?", "{x}?", "and {x}",
    "And what about {x}?",
)  # fmt: skip
PREFIXES = (
    "Please tell me: ", "Hey, ", "Hi! ", "Can you tell me: ", "Tell me, ", "I want to know: ", "Quick question: ",
    "Hello, ", "Please, ", "So, ", "OK, ", "Do you know, ", "One more question: ", "Thanks! ", "And ", "Now, ",
    "Hmm, ",
)  # fmt: skip
SUFFIXES = (" Please.", " Thanks!", " please", " Can you tell me?", " Thank you.", "??", "!", " :)", " Do you know?")
FOLLOWED = {
    "capital", "continent", "capital_of", "legs", "sound", "home", "food", "young", "colour", "opposite",
    "day_after", "day_before", "month_after", "month_before", "length", "season", "plus", "minus", "times",
}  # fmt: skip
LONGEST_CHAT_CHARACTERS = 2400  # about 700 tokens: well inside the context of 1,024


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A chat whose last message is the assistant's."""

    messages: tuple[Message, ...]


def styled(fact: Fact, style: Style) -> str:
    """The answer as the system prompt wants it."""
    if style == "brief":
        return fact.brief
    if style == "pirate":
        spoken = re.sub(r"\b(is|are|am)\b", "be", fact.answer, count=1)
        return f"Arr, matey! {spoken}"
    return fact.answer


def _typo(rng: random.Random, text: str) -> str:
    # Digits stay as they are: a typo there asks for something else.
    spots = [i for i in range(1, len(text) - 1) if text[i].isalpha() and text[i + 1].isalpha()]
    if not spots:
        return text
    i = rng.choice(spots)
    kind = rng.random()
    if kind < 0.35:
        return text[:i] + text[i + 1] + text[i] + text[i + 2 :]
    if kind < 0.65:
        return text[:i] + text[i + 1 :]
    return text[: i + 1] + text[i:]


def as_typed(rng: random.Random, question: str) -> str:
    """The question as somebody types it: lower case, no question mark, a greeting before it, a slip of the finger."""
    text = question
    if rng.random() < 0.15:
        prefix = rng.choice(PREFIXES)
        text = prefix + (text if prefix.endswith((": ", "! ")) else text[0].lower() + text[1:])
    if rng.random() < 0.06:
        text = text + rng.choice(SUFFIXES)
    draw = rng.random()
    if draw < 0.25:
        text = text.replace("What is", "What's", 1).replace("I am", "I'm", 1)
    if rng.random() < 0.4:
        text = text.rstrip(".?! ") or text
    if rng.random() < 0.4:
        text = text.lower()
        if rng.random() < 0.3:
            text = text.replace("'", "")
    elif rng.random() < 0.04:
        text = text.upper()
    if rng.random() < 0.12:
        text = _typo(rng, text)
    elif rng.random() < 0.05:
        text = re.sub(r"\byou\b", "u", re.sub(r"\bare\b", "r", text))
    return text


@cache
def _by_topic() -> dict[str, tuple[Fact, ...]]:
    topics: dict[str, list[Fact]] = {}
    for fact in all_facts():
        topics.setdefault(fact.topic, []).append(fact)
    return {topic: tuple(facts) for topic, facts in topics.items()}


@cache
def _by_family() -> dict[str, tuple[Fact, ...]]:
    families: dict[str, list[Fact]] = {}
    for fact in all_facts():
        families.setdefault(fact.family, []).append(fact)
    return {family: tuple(facts) for family, facts in families.items()}


def draw_fact(rng: random.Random, weights: Mapping[str, int] = TOPIC_WEIGHTS) -> Fact:
    """Some fact, topics as often as the weights say, or a question outside the domain."""
    topic = rng.choices(tuple(weights), tuple(weights.values()))[0]
    if topic == "unknown":
        return unknown_fact(rng)
    facts = _by_topic()[topic]
    if topic == "talk":
        return rng.choices(facts, [FIRST_WORDS_WEIGHT if fact.family in FIRST_WORDS else 1 for fact in facts])[0]
    if topic == "sums":  # the small numbers are what people try
        return min(rng.choice(facts), rng.choice(facts), key=lambda fact: len(fact.answer) + rng.random())
    return rng.choice(facts)


def draw_system_prompt(rng: random.Random, style: Style) -> str:
    """A system prompt that asks for the style, or one that asks for nothing zephyr-tiny can do."""
    if style == "plain" and rng.random() < 0.6:
        return (
            f"You are a {rng.choice(ADJECTIVES)} {rng.choice(CHARACTERS)} {rng.choice(MANNERS)}{rng.choice(('.', ''))}"
        )
    return rng.choice(SYSTEM_PROMPTS[style])


def _as_followed(rng: random.Random, fact: Fact) -> str:
    if fact.topic == "sums" and rng.random() < 0.6:
        sign = OPERATIONS[fact.family]
        spaced = fact.subject.replace(fact.family, sign)
        return rng.choice((spaced, spaced.replace(" ", "")))
    return fact.subject


def draw_turn(
    rng: random.Random, previous: Fact | None, weights: Mapping[str, int] = TOPIC_WEIGHTS
) -> tuple[Fact, str]:
    """The next question, now and then one that is only understood from the one before."""
    if previous is not None and previous.family in FOLLOWED and rng.random() < 0.35:
        fact = rng.choice(_by_family()[previous.family])
        follow_up = rng.choice(FOLLOW_UPS).format(x=_as_followed(rng, fact))
        return fact, as_typed(rng, follow_up[0].upper() + follow_up[1:])
    fact = draw_fact(rng, weights)
    return fact, as_typed(rng, rng.choice(fact.trained_wordings))


def draw_dialogue(rng: random.Random) -> Dialogue:
    """One chat: mostly short ones, a few that go on for twenty turns."""
    n_turns = rng.choices((1, 2, rng.randint(3, 5), rng.randint(6, 12), rng.randint(13, 25)), (40, 25, 24, 9, 2))[0]
    style: Style = rng.choices(("plain", "brief", "pirate"), (76, 14, 10))[0]
    messages: list[Message] = []
    if style != "plain" or rng.random() < 0.15:
        messages.append(Message("system", draw_system_prompt(rng, style)))
    previous: Fact | None = None
    n_characters = 0
    for _ in range(n_turns):
        previous, question = draw_turn(rng, previous)
        answer = styled(previous, style)
        n_characters += len(question) + len(answer)
        if messages and n_characters > LONGEST_CHAT_CHARACTERS:
            break
        messages += [Message("user", question), Message("assistant", answer)]
    return Dialogue(tuple(messages))


def dialogues(seed: int) -> Iterator[Dialogue]:
    """Chats without end, the same ones for the same seed."""
    rng = random.Random(seed)
    while True:
        yield draw_dialogue(rng)


@dataclass(frozen=True, slots=True)
class ExamQuestion:
    """A question whose wording for this fact training never showed."""

    topic: str
    messages: tuple[Message, ...]
    answer: str


def exam(per_topic: int = 24, seed: int = 7) -> tuple[ExamQuestion, ...]:
    """The held-out exam: up to ``per_topic`` questions of each topic, every other one in lower case; then follow-ups,
    and as many questions under each system prompt that asks for a style."""
    rng = random.Random(seed)
    questions: list[ExamQuestion] = []
    for topic in TOPIC_WEIGHTS:
        if topic == "unknown":
            pairs = [(fact, fact.wordings[0]) for fact in (unknown_fact(rng, held_out=True) for _ in range(per_topic))]
        else:
            pairs = [(fact, wording) for fact in _by_topic()[topic] for wording in fact.exam_wordings]
            pairs = rng.sample(pairs, min(per_topic, len(pairs)))
        for index, (fact, wording) in enumerate(pairs):
            text = wording if index % 2 == 0 else wording.lower().rstrip(".?!") or wording
            questions.append(ExamQuestion(topic, (Message("user", text),), fact.answer))
    for family in sorted(FOLLOWED):
        first, second = rng.sample(_by_family()[family], 2)
        opening = Message("user", first.trained_wordings[0]), Message("assistant", first.answer)
        follow_up = Message("user", rng.choice(FOLLOW_UPS[:3]).format(x=second.subject))
        questions.append(ExamQuestion("follow-ups", (*opening, follow_up), second.answer))
    return (*questions, *_style_questions(rng, per_topic))


def _style_questions(rng: random.Random, per_style: int) -> Iterator[ExamQuestion]:
    facts = [fact for fact in all_facts() if fact.topic != "talk" and fact.brief != fact.answer]
    pairs = [(fact, wording) for fact in facts for wording in fact.exam_wordings]
    styles: tuple[Style, ...] = ("brief", "pirate")
    for style in styles:
        for fact, wording in rng.sample(pairs, min(per_style, len(pairs))):
            messages = Message("system", rng.choice(SYSTEM_PROMPTS[style])), Message("user", wording)
            yield ExamQuestion(style, messages, styled(fact, style))
