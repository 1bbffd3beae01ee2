"""The facts of zephyr-tiny as questions and answers: every fact with all its wordings, and what it does not know."""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from zephyr_local.train.tiny import facts as table

EXAM_SHARE = 8
"""One of so many pairs of a fact and a wording is kept out of training, for the exam."""


FIRST_WORDS = {"talk_hello", "talk_who", "talk_can", "talk_real", "talk_how", "talk_thanks", "talk_bye"}
"""What anybody writes first. Training sees all these wordings: a chat that begins badly ends there."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing to know: the questions that ask for it and the one answer."""

    topic: str
    family: str
    """Facts of one family are asked with the same wordings, so "And of {subject}?" can follow another of the family."""
    subject: str
    wordings: tuple[str, ...]
    answer: str
    brief: str

    @property
    def trained_wordings(self) -> tuple[str, ...]:
        """The wordings that training may use; never empty."""
        if self.family in FIRST_WORDS:
            return self.wordings
        return tuple(w for w in self.wordings if not is_held_out(w, len(self.wordings))) or self.wordings[:1]

    @property
    def exam_wordings(self) -> tuple[str, ...]:
        """The wordings that only the exam uses."""
        trained = set(self.trained_wordings)
        return tuple(w for w in self.wordings if w not in trained)


def bare(question: str) -> str:
    """What is left of a question when case, spaces and marks do not count: two that share it are the same question."""
    return re.sub(r"[^a-z0-9+*-]", "", question.lower().replace("what's", "what is"))


def is_held_out(question: str, n_wordings: int) -> bool:
    """Whether the exam keeps this question for itself; a fact with one or two wordings is never kept."""
    return n_wordings > 2 and zlib.crc32(bare(question).encode()) % EXAM_SHARE == 0


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _fill(wordings: tuple[str, ...], **words: str) -> tuple[str, ...]:
    return tuple(_sentence(wording.format(**words)) for wording in wordings)


CAPITAL = (
    "What is the capital of {x}?", "What is {x}'s capital?", "Which city is the capital of {x}?", "Capital of {x}?",
    "Name the capital of {x}.", "What is the capital city of {x}?", "Tell me the capital of {x}.", "{x} capital?",
    "The capital of {x} is?", "What capital does {x} have?", "What is the name of the capital of {x}?",
    "What's the capital of {x}?", "Which city is {x}'s capital?",
)  # fmt: skip
CAPITAL_OF = (
    "{x} is the capital of which country?", "Which country has the capital {x}?",
    "Of which country is {x} the capital?", "What country is {x} the capital of?", "Where is {x}?",
    "In which country is {x}?", "{x} is in which country?", "What is {x}?", "What country is {x} in?",
    "Which country is {x} in?",
)  # fmt: skip
CONTINENT = (
    "Which continent is {x} in?", "On which continent is {x}?", "Where is {x}?", "What continent is {x} on?",
    "In which part of the world is {x}?", "In which continent is {x}?", "Where can I find {x}?",
    "Where in the world is {x}?", "{x} is on which continent?", "Where is {x} located?",
)  # fmt: skip
IN_CONTINENT = (
    "Name a country in {x}.", "Which country is in {x}?", "Tell me a country in {x}.", "What countries are in {x}?",
    "Give me a country in {x}.", "Do you know a country in {x}?", "Which countries are in {x}?",
    "List countries in {x}.",
)  # fmt: skip
EXAMPLES = {
    "Europe": "France, Italy and Poland",
    "Asia": "Japan, China and India",
    "Africa": "Egypt, Kenya and Ghana",
    "North America": "Canada, Mexico and Cuba",
    "South America": "Brazil, Chile and Peru",
    "Oceania": "Australia and New Zealand",
}


def country_facts() -> Iterator[Fact]:
    """Capitals both ways, continents both ways."""
    seen: set[str] = set()
    for country, capital, continent in table.COUNTRIES:
        yield Fact(
            "capitals",
            "capital",
            country,
            _fill(CAPITAL, x=country),
            f"The capital of {country} is {capital}.",
            f"{capital}.",
        )
        yield Fact(
            "continents",
            "continent",
            country,
            _fill(CONTINENT, x=country),
            f"{_sentence(country)} is in {continent}.",
            f"{continent}.",
        )
        if capital not in seen:
            seen.add(capital)
            yield Fact(
                "countries",
                "capital_of",
                capital,
                _fill(CAPITAL_OF, x=capital),
                f"{capital} is the capital of {country}.",
                f"{_sentence(country)}.",
            )
    for continent, examples in EXAMPLES.items():
        answer = f"Some countries in {continent} are {examples}."
        if continent == "Oceania":
            answer = f"Two countries in {continent} are {examples}."
        yield Fact("continents", "in_continent", continent, _fill(IN_CONTINENT, x=continent), answer, f"{examples}.")


# Wordings for animals: {a} is "a dog", {p} is "dogs", {x} is "dog".
LEGS = (
    "How many legs does {a} have?", "How many legs do {p} have?", "How many legs has {a}?", "Number of legs of {a}?",
    "How many legs are on {a}?", "{a} has how many legs?", "What number of legs does {a} have?",
    "Count the legs of {a}.",
)  # fmt: skip
SOUND = (
    "What sound does {a} make?", "What does {a} say?", "What noise does {a} make?", "How does {a} sound?",
    "What sound do {p} make?", "What do {p} say?", "Which sound does {a} make?", "How do {p} sound?",
    "What noise do {p} make?", "What is the sound of {a}?",
)  # fmt: skip
HOME = (
    "Where does {a} live?", "Where do {p} live?", "Where can I find {p}?", "What is the home of {a}?",
    "Where can I find {a}?", "Where is the home of {p}?", "In what place do {p} live?", "Where do you find {p}?",
)  # fmt: skip
FOOD = (
    "What does {a} eat?", "What do {p} eat?", "What food does {a} like?", "What is the food of {a}?",
    "What do {p} like to eat?", "Which food do {p} eat?", "What does {a} feed on?", "What should I feed {a}?",
)  # fmt: skip
YOUNG = (
    "What is a baby {x} called?", "What do you call a young {x}?", "What is the young of {a} called?",
    "Name of a baby {x}?", "What is a young {x} called?", "What do you call a baby {x}?",
    "How do you call a young {x}?", "What are baby {p} called?", "What is the baby of {a} called?",
    "What are young {p} called?",
)  # fmt: skip
ABOUT = (
    "Tell me about {p}.", "What is {a}?", "What do you know about {p}?", "Tell me about the {x}.", "What are {p}?",
    "Tell me something about {p}.", "Describe {a}.", "Tell me about {a}.",
)  # fmt: skip


def animal_facts() -> Iterator[Fact]:
    """Legs, sounds, homes, food and young."""
    for animal, plural, legs, sound, home, food, young in table.ANIMALS:
        a = _article(animal)
        title, many = _sentence(a), _sentence(plural)
        rows = [
            ("legs", LEGS, f"{title} has {legs} legs.", f"{_sentence(legs)}."),
            ("home", HOME, f"{many} live {home}.", f"{_sentence(home)}."),
            ("food", FOOD, f"{many} eat {food}.", f"{_sentence(food)}."),
            ("young", YOUNG, f"A baby {animal} is called {_article(young)}.", f"{_sentence(_article(young))}."),
            (
                "about",
                ABOUT,
                f"{title} is an animal. It has {legs} legs. {many} live {home}.",
                f"{title} is an animal.",
            ),
        ]
        if sound:
            rows.append(("sound", SOUND, f"{title} says {sound}.", f"{_sentence(sound)}."))
        for family, wordings, answer, brief in rows:
            filled = _fill(wordings, a=a, p=plural, x=animal)
            yield Fact("animals", family, a, filled, answer, brief)


COLOUR = (
    "What colour is {x}?", "What color is {x}?", "Which colour does {x} have?", "What is the colour of {x}?",
    "Colour of {x}?", "Which color is {x}?", "What is the color of {x}?", "What color does {x} have?",
    "{x} has which colour?", "Tell me the colour of {x}.",
)  # fmt: skip
MIX = (
    "What do you get when you mix {a} and {b}?", "What colour do {a} and {b} make?", "Mix {a} and {b}.",
    "{a} and {b} make which colour?", "What is {a} mixed with {b}?", "What color do {b} and {a} make?",
    "What do {b} and {a} make?", "What do you get if you mix {b} and {a}?",
)  # fmt: skip
OPPOSITE = (
    "What is the opposite of {x}?", "Opposite of {x}?", "Tell me the opposite of {x}.", "The opposite of {x} is?",
    "What is the contrary of {x}?", "What word is the opposite of {x}?", "What's the opposite of {x}?",
    "Which word means the opposite of {x}?", "Give me the opposite of {x}.", "{x} is the opposite of what?",
)  # fmt: skip
AFTER = (
    "What {k} comes after {x}?", "Which {k} follows {x}?", "What comes after {x}?", "What is the {k} after {x}?",
    "What is after {x}?", "Which {k} is after {x}?", "{x} is followed by which {k}?", "Which {k} comes after {x}?",
    "What {k} follows {x}?", "What is the next {k} after {x}?",
)  # fmt: skip
BEFORE = (
    "What {k} comes before {x}?", "What comes before {x}?", "What is the {k} before {x}?", "What is before {x}?",
    "Which {k} is before {x}?", "Which {k} comes before {x}?", "What {k} is before {x}?", "Which {k} precedes {x}?",
)  # fmt: skip
TOMORROW = (
    "Today is {x}. What day is tomorrow?", "If today is {x}, what is tomorrow?",
    "It is {x} today. What is tomorrow?", "If today is {x}, what day is tomorrow?",
    "Today is {x}, what day is it tomorrow?",
)  # fmt: skip
MONTH_LENGTH = (
    "How many days does {x} have?", "How many days are in {x}?", "How long is {x}?", "{x} has how many days?",
    "How many days are there in {x}?", "What number of days does {x} have?",
)  # fmt: skip
SEASON = (
    "In which season is {x}?", "Which season is {x} in?", "What season is {x}?", "What season is it in {x}?",
    "What season is {x} in?",
)  # fmt: skip
NTH = (
    "What is the {x} month?", "Which month is the {x}?", "What is the {x} month of the year?",
    "Name the {x} month of the year.", "Which month is the {x} of the year?",
)  # fmt: skip


def word_facts() -> Iterator[Fact]:
    """Colours and opposites."""
    for thing, colour in table.COLOURS:
        answer = f"{_sentence(thing)} is {colour}."
        yield Fact("colours", "colour", thing, _fill(COLOUR, x=thing), answer, f"{_sentence(colour)}.")
    for one, two, mixed in table.MIXES:
        answer = f"{_sentence(one)} and {two} make {mixed}."
        yield Fact("colours", "mix", f"{one} and {two}", _fill(MIX, a=one, b=two), answer, f"{_sentence(mixed)}.")
    for pair in table.OPPOSITES:
        for word, opposite in (pair, pair[::-1]):
            answer = f"The opposite of {word} is {opposite}."
            yield Fact("opposites", "opposite", word, _fill(OPPOSITE, x=word), answer, f"{_sentence(opposite)}.")


def calendar_facts() -> Iterator[Fact]:
    """Days and months in order, lengths, seasons."""
    for kind, names in (("day", table.DAYS), ("month", table.MONTHS)):
        topic = f"{kind}s"
        for index, name in enumerate(names):
            after, before = names[(index + 1) % len(names)], names[index - 1]
            yield Fact(
                topic,
                f"{kind}_after",
                name,
                _fill(AFTER, x=name, k=kind),
                f"The {kind} after {name} is {after}.",
                f"{after}.",
            )
            yield Fact(
                topic,
                f"{kind}_before",
                name,
                _fill(BEFORE, x=name, k=kind),
                f"The {kind} before {name} is {before}.",
                f"{before}.",
            )
            if kind == "day":
                wordings = _fill(TOMORROW, x=name)
                yield Fact(topic, "tomorrow", name, wordings, f"If today is {name}, tomorrow is {after}.", f"{after}.")
    for name, days, season, ordinal in zip(table.MONTHS, table.MONTH_DAYS, table.SEASONS, table.ORDINALS, strict=True):
        yield Fact("months", "length", name, _fill(MONTH_LENGTH, x=name), f"{name} has {days} days.", f"{days}.")
        yield Fact("months", "season", name, _fill(SEASON, x=name), f"{name} is in {season}.", f"{_sentence(season)}.")
        yield Fact("months", "nth", ordinal, _fill(NTH, x=ordinal), f"The {ordinal} month is {name}.", f"{name}.")


SUM = (
    "What is {a} {o} {b}?", "{a} {s} {b}", "{a} {s} {b} =", "How much is {a} {o} {b}?", "{a}{s}{b}", "{a}{s}{b}=?",
    "What is {a} {s} {b}?", "Calculate {a} {s} {b}.", "What does {a} {o} {b} make?", "{a} {o} {b}",
    "{a} {o} {b} is?", "What's {a} {o} {b}?", "What is {a}{s}{b}?", "How much is {a} {s} {b}?", "{a} {s} {b}?",
    "Compute {a} {o} {b}.",
)  # fmt: skip
WORD_SUM = ("What is {v} {o} {w}?", "How much is {v} {o} {w}?", "{v} {o} {w}?", "What does {v} {o} {w} make?")
OPERATIONS = {"plus": "+", "minus": "-", "times": "*"}


def sum_facts() -> Iterator[Fact]:
    """Sums of numbers up to ten."""
    for a in range(11):
        for b in range(11):
            for name, sign in OPERATIONS.items():
                if name == "minus" and b > a:
                    continue
                value = a + b if name == "plus" else a - b if name == "minus" else a * b
                words = table.NUMBER_WORDS[a], table.NUMBER_WORDS[b]
                wordings = _fill(SUM, a=str(a), b=str(b), o=name, s=sign)
                wordings += _fill(WORD_SUM, v=words[0], w=words[1], o=name)
                yield Fact("sums", name, f"{a} {name} {b}", wordings, f"{a} {name} {b} is {value}.", f"{value}.")


def talk_facts() -> Iterator[Fact]:
    """Small talk, and single questions that belong to no family."""
    for intent, wordings, answer in table.TALK:
        yield Fact("talk", f"talk_{intent}", "", wordings, answer, answer)
    for topic, wordings, answer, brief in table.SINGLE:
        yield Fact(topic, "single", "", wordings, answer, brief)


@cache
def all_facts() -> tuple[Fact, ...]:
    """Everything that zephyr-tiny can know, always in the same order."""
    sources = (country_facts, animal_facts, word_facts, calendar_facts, sum_facts, talk_facts)
    return tuple(fact for source in sources for fact in source())


_CONSONANTS, _VOWELS = "bcdfghjklmnprstvwz", "aeiou"


def invented_word(rng: random.Random) -> str:
    """A word that means nothing, so that "I do not know" is learned for whatever is not in the tables."""
    return (
        "".join(rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(rng.randint(2, 3)))
        + rng.choice("nrslt ").strip()
    )
