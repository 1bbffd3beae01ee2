"""The base text of zephyr-tiny: plain paragraphs about its world, without end and without a single question."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

from zephyr_local.train.tiny import facts as table
from zephyr_local.train.tiny import statements as said

LARGEST_NUMBER = 10


def paragraphs(seed: int) -> Iterator[str]:
    """Paragraphs without end, the same ones for the same seed: descriptions, lists, sums and small stories.

    Statements only: what the exam keeps for itself are questions, and no sentence here is one of them.
    """
    rng = random.Random(f"zephyr-tiny text {seed}")
    kinds = tuple(_KINDS)
    weights = tuple(_KINDS.values())
    while True:
        sentences = rng.choices(kinds, weights)[0](rng)
        yield " ".join(_sentence(sentence) for sentence in sentences)


def _sentence(text: str) -> str:
    if text.startswith("zephyr-"):  # a name that is written small
        return text
    first = 1 if text[0] == '"' else 0
    return text[:first] + text[first].upper() + text[first + 1 :]


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _say(rng: random.Random, wordings: Sequence[str], **words: str) -> str:
    return rng.choice(wordings).format(**words)


def _number(rng: random.Random, value: int) -> str:
    return table.NUMBER_WORDS[value] if value <= LARGEST_NUMBER and rng.random() < 0.25 else str(value)


# --- one fact ---


def _capital(rng: random.Random, row: tuple[str, str, str]) -> str:
    return _say(rng, said.CAPITAL, x=row[0], y=row[1])


def _continent(rng: random.Random, row: tuple[str, str, str]) -> str:
    return _say(rng, said.CONTINENT, x=row[0], y=row[2])


def _animal_sentences(rng: random.Random, row: tuple[str, str, str, str, str, str, str]) -> list[str]:
    animal, plural, legs, sound, home, food, young = row
    names = {"a": _article(animal), "x": animal, "p": plural}
    sentences = [
        _say(rng, said.LEGS, y=legs, **names),
        _say(rng, said.HOME, y=home, **names),
        _say(rng, said.FOOD, y=food, **names),
        _say(rng, said.YOUNG, y=_article(young), **names),
    ]
    if sound:
        sentences.append(_say(rng, said.SOUND, y=sound, **names))
    return sentences


def _colour(rng: random.Random) -> str:
    if rng.random() < 0.2:
        one, two, mixed = rng.choice(table.MIXES)
        return _say(rng, said.MIX, a=one, b=two, y=mixed)
    thing, colour = rng.choice(table.COLOURS)
    return _say(rng, said.COLOUR, x=thing, y=colour)


def _opposite(rng: random.Random) -> str:
    one, two = rng.sample(rng.choice(table.OPPOSITES), 2)
    return _say(rng, said.OPPOSITE, x=one, y=two)


def _ordered(rng: random.Random, kind: str, names: Sequence[str]) -> str:
    index = rng.randrange(len(names))
    draw = rng.random()
    if draw < 0.45:
        return _say(rng, said.AFTER, k=kind, x=names[index], y=names[(index + 1) % len(names)])
    if draw < 0.9 or kind == "month":
        return _say(rng, said.BEFORE, k=kind, x=names[index], y=names[index - 1])
    return _say(rng, said.TOMORROW, x=names[index], y=names[(index + 1) % len(names)])


def _month(rng: random.Random) -> str:
    index = rng.randrange(12)
    name = table.MONTHS[index]
    draw = rng.random()
    if draw < 0.35:
        return _say(rng, said.MONTH_LENGTH, x=name, y=str(table.MONTH_DAYS[index]))
    if draw < 0.6:
        return _say(rng, said.SEASON, x=name, y=table.SEASONS[index])
    return _say(rng, said.NTH, x=table.ORDINALS[index], y=name)


def _sum(rng: random.Random, numbers: tuple[int, int] | None = None, operation: str | None = None) -> str:
    a, b = numbers or (rng.randint(0, LARGEST_NUMBER), rng.randint(0, LARGEST_NUMBER))
    name = operation or rng.choice(("plus", "minus", "times", "times"))
    if name == "minus" and b > a:
        a, b = b, a
    value = {"plus": a + b, "minus": a - b, "times": a * b}[name]
    if rng.random() < 0.2:
        words = {"n": rng.choice(said.NAMES)[0], "t": rng.choice(said.THINGS)}
        return _say(rng, said.SUM_IN_WORDS[name], a=_number(rng, a), b=_number(rng, b), y=str(value), **words)
    wording = rng.choice(said.SUM)
    first, second = str(a), str(b)
    if "{o}" in wording:
        first, second = _number(rng, a), _number(rng, b)
    sign = {"plus": "+", "minus": "-", "times": "*"}[name]
    return wording.format(a=first, b=second, o=name, s=sign, y=value)


# --- a paragraph ---


def _one_country(rng: random.Random) -> list[str]:
    row = rng.choice(table.COUNTRIES)
    sentences = [_capital(rng, row), _continent(rng, row), _capital(rng, row)]
    rng.shuffle(sentences)
    return sentences[: rng.randint(2, 3)]


def _countries(rng: random.Random) -> list[str]:
    say = rng.choice((_capital, _continent))
    rows = rng.sample(table.COUNTRIES, rng.randint(2, 5))
    if rng.random() < 0.3:  # the same words each time: a list
        wording = rng.choice(said.CAPITAL if say is _capital else said.CONTINENT)
        return [wording.format(x=row[0], y=row[1 if say is _capital else 2]) for row in rows]
    return [say(rng, row) for row in rows]


def _one_animal(rng: random.Random) -> list[str]:
    row = rng.choice(table.ANIMALS)
    sentences = _animal_sentences(rng, row)
    rng.shuffle(sentences)
    opening = f"{_article(row[0])} is an animal."
    return [opening, *sentences[: rng.randint(2, 5)]] if rng.random() < 0.4 else sentences[: rng.randint(2, 5)]


def _animals(rng: random.Random) -> list[str]:
    return [rng.choice(_animal_sentences(rng, rng.choice(table.ANIMALS))) for _ in range(rng.randint(2, 5))]


def _colours(rng: random.Random) -> list[str]:
    return [_colour(rng) for _ in range(rng.randint(2, 5))]


def _opposites(rng: random.Random) -> list[str]:
    return [_opposite(rng) for _ in range(rng.randint(2, 5))]


def _calendar(rng: random.Random) -> list[str]:
    draw = rng.random()
    if draw < 0.1:
        kind, names = rng.choice((("days of the week", table.DAYS), ("months", tuple(table.MONTHS))))
        return [f"The {kind} are {', '.join(names[:-1])} and {names[-1]}."]
    if draw < 0.4:
        return [_ordered(rng, "day", table.DAYS) for _ in range(rng.randint(2, 4))]
    if draw < 0.7:
        return [_ordered(rng, "month", table.MONTHS) for _ in range(rng.randint(2, 4))]
    return [_month(rng) for _ in range(rng.randint(2, 5))]


def _sums(rng: random.Random) -> list[str]:
    if rng.random() < 0.25:  # a row of a table
        a, operation = rng.randint(0, LARGEST_NUMBER), rng.choice(("plus", "times"))
        first = rng.randint(0, LARGEST_NUMBER - 3)
        wording = rng.choice(said.SUM[:3])
        sign = "+" if operation == "plus" else "*"
        rows = ((b, a + b if operation == "plus" else a * b) for b in range(first, first + 4))
        return [wording.format(a=a, b=b, o=operation, s=sign, y=value) for b, value in rows]
    return [_sum(rng) for _ in range(rng.randint(3, 8))]


def _single(rng: random.Random) -> list[str]:
    return rng.sample(said.SINGLE, rng.randint(2, 4))


def _itself(rng: random.Random) -> list[str]:
    return rng.sample(said.ITSELF, rng.randint(2, 4))


def _mixed(rng: random.Random) -> list[str]:
    one: tuple[Callable[[random.Random], list[str]], ...] = (
        _countries, _animals, _colours, _opposites, _calendar, _sums, _single,
    )  # fmt: skip
    return [rng.choice(rng.choice(one)(rng)) for _ in range(rng.randint(3, 6))]


def _story(rng: random.Random) -> list[str]:
    (name, he, his), (other, _, _) = rng.sample(said.NAMES, 2)
    day = rng.randrange(7)
    country, capital, _ = rng.choice(table.COUNTRIES)
    one, two = rng.sample(rng.choice(_FELT), 2)
    words = {
        "n": name, "m": other, "he": he, "his": his, "day": table.DAYS[day], "next_day": table.DAYS[(day + 1) % 7],
        "month": rng.choice(table.MONTHS), "place": rng.choice(said.PLACES), "k": rng.choice(table.NUMBER_WORDS[2:]),
        "t": rng.choice(said.THINGS), "a": _article(rng.choice(table.ANIMALS)[0]), "capital": capital,
        "country": country, "one": one, "two": two, "coloured": _article(rng.choice(table.COLOURS)[1]),
    }  # fmt: skip
    words |= {"hello": _first_words(rng, "hello"), "hello_again": _first_words(rng, "hello")}
    words |= {"thanks": _first_words(rng, "thanks"), "bye": _first_words(rng, "bye")}
    sentences = [rng.choice(said.OPENINGS), *rng.sample(said.MIDDLES, rng.randint(2, 4)), rng.choice(said.ENDINGS)]
    if rng.random() < 0.4:
        sentences.insert(1, rng.choice(said.WEATHER))
    told = [sentence.format(**words) for sentence in sentences]
    if rng.random() < 0.3:
        told.insert(-1, _sum(rng))
    return told


def _first_words(rng: random.Random, intent: str) -> str:
    """What people say when they meet and part; the exam asks none of it. Inside a sentence it ends with no mark."""
    (wordings,) = (wordings for name, wordings, _ in table.TALK if name == intent)
    words = rng.choice([wording for wording in wordings if "?" not in wording and "zephyr" not in wording])
    words = words.rstrip(".!") + ","
    return words if rng.random() < 0.5 else words.lower()


_FELT = (("happy", "sad"), ("fast", "slow"), ("old", "young"), ("rich", "poor"), ("strong", "weak"), ("loud", "quiet"))

# Sums are many facts, and nothing else in the text helps to guess them.
_KINDS: dict[Callable[[random.Random], list[str]], int] = {
    _one_country: 12,
    _countries: 13,
    _one_animal: 12,
    _animals: 5,
    _colours: 5,
    _opposites: 9,
    _calendar: 12,
    _sums: 20,
    _single: 3,
    _itself: 3,
    _mixed: 8,
    _story: 9,
}
