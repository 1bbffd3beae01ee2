"""Everything true that can be said in zephyr-tiny's world, sentence by sentence: what the judge looks claims up in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache

from zephyr_local.train.tiny import facts as table
from zephyr_local.train.tiny import statements as said
from zephyr_local.train.tiny.questions import OPERATIONS, Fact, all_facts

Key = tuple[str, str]
"""A fact's family and subject."""


def claim(sentence: str) -> str:
    """What is left of a sentence when case, marks and a pirate's grammar do not count."""
    one_verb = re.sub(r"\b(is|are|am)\b", "be", sentence.lower())
    return re.sub(r"[^a-z0-9+*=-]", "", one_verb)


def sentences(text: str) -> list[str]:
    """The sentences of a text; a text without an end mark is one."""
    return [sentence for sentence in re.split(r"(?<=[.!?])\s+", text.strip()) if claim(sentence)]


def key_of(fact: Fact) -> Key:
    """What the sentences that answer the fact's question are found under."""
    return fact.family, fact.subject or fact.answer


@cache
def claims_by_fact() -> dict[Key, frozenset[str]]:
    """For each fact the claims that answer its question, however they are worded."""
    found: dict[Key, set[str]] = {}
    for keys, sentence in _statements():
        for key in keys:
            found.setdefault(key, set()).add(claim(sentence))
    for fact in all_facts():
        found.setdefault(key_of(fact), set()).update((claim(fact.answer), claim(fact.brief)))
    return {key: frozenset(claims) for key, claims in found.items()}


@cache
def true_claims() -> frozenset[str]:
    """Every claim that is known to be true by itself: whole sentences, not the one-word answers."""
    whole = {claim(sentence) for _, sentence in _statements()}
    for fact in all_facts():
        # "It has four legs." is true of something, and by itself of nothing.
        parts = [sentence for sentence in sentences(fact.answer) if not sentence.startswith("It ")]
        whole.update(claim(sentence) for sentence in (fact.answer, *parts))
    whole.update(claim(sentence) for sentence in (*said.SINGLE, *said.ITSELF))
    return frozenset(whole)


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _statements() -> Iterator[tuple[tuple[Key, ...], str]]:
    yield from _world()
    yield from _calendar()
    yield from _sums()


def _filled(keys: tuple[Key, ...], wordings: Sequence[str], **words: str) -> Iterator[tuple[tuple[Key, ...], str]]:
    for wording in wordings:
        yield keys, wording.format(**words)


def _world() -> Iterator[tuple[tuple[Key, ...], str]]:
    for country, capital, continent in table.COUNTRIES:
        yield from _filled((("capital", country), ("capital_of", capital)), said.CAPITAL, x=country, y=capital)
        yield from _filled((("continent", country),), said.CONTINENT, x=country, y=continent)
    for animal, plural, legs, sound, home, food, young in table.ANIMALS:
        names = {"a": _article(animal), "x": animal, "p": plural}
        rows = [("legs", said.LEGS, legs), ("home", said.HOME, home), ("food", said.FOOD, food)]
        rows += [("young", said.YOUNG, _article(young)), *([("sound", said.SOUND, sound)] if sound else [])]
        for family, wordings, value in rows:
            yield from _filled(((family, names["a"]),), wordings, y=value, **names)
        yield (("about", names["a"]),), f"{names['a']} is an animal."
    for thing, colour in table.COLOURS:
        yield from _filled((("colour", thing),), said.COLOUR, x=thing, y=colour)
    for one, two, mixed in table.MIXES:
        yield from _filled((("mix", f"{one} and {two}"),), said.MIX, a=one, b=two, y=mixed)
    for pair in table.OPPOSITES:
        for word, opposite in (pair, pair[::-1]):
            keys = (("opposite", word), ("opposite", opposite))
            yield from _filled(keys, said.OPPOSITE, x=word, y=opposite)


def _calendar() -> Iterator[tuple[tuple[Key, ...], str]]:
    for kind, names in (("day", table.DAYS), ("month", tuple(table.MONTHS))):
        for index, name in enumerate(names):
            after = names[(index + 1) % len(names)]
            keys: tuple[Key, ...] = ((f"{kind}_after", name), (f"{kind}_before", after))
            if kind == "day":
                keys = (*keys, ("tomorrow", name))
                yield from _filled(keys, said.TOMORROW, x=name, y=after)
            yield from _filled(keys, said.AFTER, k=kind, x=name, y=after)
            yield from _filled(keys, said.BEFORE, k=kind, x=after, y=name)
    for name, days, season, nth in zip(table.MONTHS, table.MONTH_DAYS, table.SEASONS, table.ORDINALS, strict=True):
        yield from _filled((("length", name),), said.MONTH_LENGTH, x=name, y=str(days))
        yield from _filled((("season", name),), said.SEASON, x=name, y=season)
        yield from _filled((("nth", nth),), said.NTH, x=nth, y=name)


def _sums() -> Iterator[tuple[tuple[Key, ...], str]]:
    numbers = [(number, (str(number), table.NUMBER_WORDS[number])) for number in range(11)]
    for a, a_texts in numbers:
        for b, b_texts in numbers:
            for name, value in (("plus", a + b), ("minus", a - b), ("times", a * b)):
                if value < 0:
                    continue
                keys = ((name, f"{a} {name} {b}"),)
                for first in a_texts:
                    for second in b_texts:
                        words = {"a": first, "b": second, "o": name, "s": OPERATIONS[name], "y": str(value)}
                        yield from _filled(keys, said.SUM, **words)
