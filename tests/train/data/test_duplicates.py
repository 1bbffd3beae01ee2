"""Texts that were there before are found, and only these, by hashes that are the same in every process."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest

from zephyr_local.train.data.dialogue_formats import Dialogue, Turn
from zephyr_local.train.data.duplicates import ExactIndex, NearIndex, comparable_text
from zephyr_local.train.data.normal_text import normal_text, normal_words, stable_hash


def dialogue(*texts: str) -> Dialogue:
    turns = tuple(Turn("assistant" if index % 2 else "user", text) for index, text in enumerate(texts))
    return Dialogue(turns, "", "", "")


def words(seed: int, count: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices("abcdefghij", k=6)) for _ in range(count)]


def test_compares_in_normal_form():
    same = [dialogue("Hello  World", "Ｆｉｎｅ"), dialogue(" hello\nworld", "fine"), dialogue("HELLO WORLD", "FINE")]
    assert len({comparable_text(one, "dialogue") for one in same}) == 1
    assert comparable_text(dialogue("a", "b"), "dialogue") != comparable_text(dialogue("a b", "c"), "dialogue")
    assert comparable_text(dialogue("a", "b"), "prompt") == comparable_text(dialogue("A", "c", "d", "e"), "prompt")


@pytest.mark.parametrize("text", ["Straße ﬁn", "İ ı ſ", "Ǆ ǆ ΐ \u1fd3", "e\u0301 É", "\u00a0a\u2003b", "ͅα ᾳ"])
def test_normal_form_is_its_own(text: str):
    assert normal_text(normal_text(text)) == normal_text(text)


def test_words_have_no_punctuation():
    assert normal_words("Don’t stop, «Élan»! x_y 3.5") == ["don't", "stop", "élan", "x", "y", "3", "5"]


def test_exact_index_knows_what_it_saw():
    index = ExactIndex()
    assert [index.is_new(text) for text in ("a", "b", "a", "", "")] == [True, True, False, True, False]


def test_estimates_jaccard_similarity():
    index = NearIndex(0.8)
    base = words(1, 400)
    for changed in (0, 5, 15, 40, 100):
        other = base[:-changed] + words(2 + changed, changed) if changed else base
        one, two = (set(zip(*(text[k:] for k in range(5)), strict=False)) for text in (base, other))
        true = len(one & two) / len(one | two)
        equal = (index.signature(" ".join(base)) == index.signature(" ".join(other))).mean()
        assert abs(equal - true) < 0.12  # three standard errors and more


def test_near_index_finds_near_texts_and_no_others():
    index = NearIndex(0.8)
    texts = [words(seed, 200) for seed in range(300)]
    assert all(index.is_new(" ".join(text)) for text in texts)
    near = [" ".join(text[:-5]) for text in texts]  # 191 of 196 shingles
    assert not any(index.is_new(text) for text in near)
    half = [" ".join(text[:100] + words(1000 + seed, 100)) for seed, text in enumerate(texts)]
    assert all(index.is_new(text) for text in half)


def test_grows_and_meets_crowded_bands():
    index = NearIndex(0.8)
    pattern = words(5, 60)  # all texts share most of their words, below the threshold
    texts = [" ".join(pattern + words(100 + seed, 20)) for seed in range(1200)]
    kept = [index.is_new(text) for text in texts]
    assert sum(kept) > 1000
    again = [index.is_new(text) for text in texts[:100]]
    assert not any(fresh for fresh, was_kept in zip(again, kept, strict=False) if was_kept)


@pytest.mark.parametrize("text", ["", "?!", "one", "one two three four", "日本語のテキスト"])
def test_short_texts(text: str):
    index = NearIndex(0.8)
    assert index.is_new(text)
    assert not index.is_new(text)
    assert index.is_new("something else entirely, you see")


def test_another_seed_is_another_hash():
    assert stable_hash("a", 1) != stable_hash("a", 2)
    assert not np.array_equal(NearIndex(0.8, 1).signature("a b c d e f"), NearIndex(0.8, 2).signature("a b c d e f"))


def test_hashes_are_the_same_in_every_process():
    code = (
        "from zephyr_local.train.data.duplicates import NearIndex\n"
        "from zephyr_local.train.data.normal_text import stable_hash\n"
        "print(stable_hash('a', 3), *NearIndex(0.8, 3).signature('one two three four five six seven'))"
    )
    said = [
        subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True)
        for seed in ("1", "2")
    ]
    assert said[0].stdout == said[1].stdout
    expected = [stable_hash("a", 3), *NearIndex(0.8, 3).signature("one two three four five six seven").tolist()]
    assert said[0].stdout.split() == [str(number) for number in expected]
