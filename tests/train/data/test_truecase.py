"""Turns with the wrong case as a whole are mended; everything else comes back byte for byte."""

from __future__ import annotations

import random
import time

import pytest

from zephyr_local.train.data.dialogue_formats import Turn
from zephyr_local.train.data.truecase import truecase, truecase_turns


@pytest.mark.parametrize(
    ("wrong", "mended"),
    [
        ("Hello. how are you?", "Hello. How are you?"),
        ("i think i'm fine. do you know what i mean?", "I think I'm fine. Do you know what I mean?"),
        ("so i’ve read that. and i", "So I’ve read that. And I"),
        ('what is this?! "no idea," he said. then he', 'What is this?! "No idea," he said. Then he'),
        ("one paragraph here.\n\nand another one", "One paragraph here.\n\nAnd another one"),
        ("HOW DO I BUILD A WEBSITE? I NEED HTML", "How do I build a website? I need HTML"),
        ("TELL ME ABOUT COVID-19 AND THE USA", "Tell me about COVID-19 and the USA"),
        ("привет всем. как дела?", "Привет всем. Как дела?"),
        ("ich weiß es nicht. und du?", "Ich weiß es nicht. Und du?"),
        ("i have 3 cats. they sleep, e.g. here", "I have 3 cats. They sleep, e.g. here"),
        ("i like my iphone", "I like my iPhone"),
    ],
)
def test_mends_what_is_wrong_as_a_whole(wrong: str, mended: str):
    assert truecase(wrong) == mended


@pytest.mark.parametrize(
    "text",
    [
        "How are you? Fine, thanks.",
        "iPhone prices. eBay prices",
        "npm install",
        "HELP ME",
        "for i in range(3): print(i)",
        "```\nfor i in x:\n    pass\n```",
        "`i think. so it is`",
        "https://example.com/a.b. what",
        "SELECT NAME FROM USERS WHERE ID = 3;",
        "სად არის თბილისი. აქ არის ის",  # Georgian has capitals, but no sentence begins with one
        "你好。今天天气怎么样？",
        "مرحبا كيف حالك. أنا بخير",
        "istanbul'da yaşıyorum. ılık bir gün",  # a Turkish i has another capital
        "Fix the grammar of this: hello. i is here. what now",
        "write this in lower case. hello there. all right",
        "- milk\n- eggs\n- bread",
        "1. milk\n2. eggs and bread",
        "Give antonyms of the word.\n\nlaureating",
        "",
        "   ",
        ".",
        "?!. ,",
    ],
)
def test_leaves_alone(text: str):
    assert truecase(text) == text


def test_protects_parts_of_a_turn_that_it_mends():
    text = "i wrote `let x = i` in foo_bar.py, see http://a.b/i. then $x_i. y$ and i@example.com. is it ok? i hope"
    mended = truecase(text)
    assert mended.startswith("I wrote `let x = i` in foo_bar.py, see http://a.b/i.")
    assert "$x_i. y$ and i@example.com. Is it ok? I hope" in mended


def test_the_letter_i_is_a_word_in_english_alone():
    assert truecase("sono qui con i ragazzi. che bello") == "Sono qui con i ragazzi. Che bello"
    assert truecase("let i be three and sum over i. give me the sum for i").endswith("over i. Give me the sum for i")


def test_names_are_written_as_the_dialogue_writes_them():
    turns = [
        Turn("user", "what is the capital of france? is it south of new york, and is a movement there? use javascript"),
        Turn("assistant", "The capital of France is Paris, near New York. The Civil Rights Movement used JavaScript."),
    ]
    mended = truecase_turns(turns)
    assert mended[0].content == (
        "What is the capital of France? Is it south of New York, and is a movement there? Use JavaScript"
    )
    assert mended[1] == turns[1]


def test_a_word_that_is_also_written_small_is_no_name():
    turns = [
        Turn("user", "how do i cook turkey or apple pie"),
        Turn("assistant", "You see, Apple is one; an apple pie..."),
    ]
    assert truecase_turns(turns)[0].content == "How do I cook turkey or apple pie"


def test_titles_say_nothing():
    turns = [Turn("user", "how to bake bread at home"), Turn("assistant", "How To Bake Bread\n\nMix it. Wait.")]
    assert truecase_turns(turns)[0].content == "How to bake bread at home"


def test_short_answers_and_system_turns_stay():
    turns = [
        Turn("system", "you are a pirate. speak so"),
        Turn("user", "Is it good or bad?"),
        Turn("assistant", "very bad indeed"),
        Turn("user", "Say more."),
        Turn("assistant", "it is bad because it rains here. we do not like that."),
    ]
    mended = truecase_turns(turns)
    assert mended[:4] == tuple(turns[:4])
    assert mended[4].content == "It is bad because it rains here. We do not like that."


_PARTS = [
    "hello", "Hello", "i", "I", "i'm", "NASA", "USA", "france", "France", "FRANCE", "iPhone", "`x.y`", "```", "$a$",
    "foo_bar", "the", "THE", "is", "IS", "what", "http://a.b", "é", "É", "ß", "ა", "ΟΔΟΣ", "ﬁ", "İ", "...", "x",
    "A", "who", "WHO", ";", "-", "(", ")", "`", "New York", "new york", ". ", "? ", "! ", ", ", "\n\n", "\n", " ",
    " ", "e.g. ", "3. ", "i. ", "`x. y`",
]  # fmt: skip


def test_mending_twice_is_mending_once():
    draw = random.Random(7)
    changed = 0
    for _ in range(3000):
        turns = []
        for turn in range(draw.randrange(1, 5)):
            glue = draw.choice(["", " "])
            text = glue.join(draw.choice(_PARTS) for _ in range(draw.randrange(1, 16)))
            case = draw.choice([str, str, str.lower, str.upper])
            turns.append(Turn("assistant" if turn % 2 else "user", case(text)))
        once = truecase_turns(turns)
        changed += once != tuple(turns)
        assert truecase_turns(once) == once
        for before, after in zip(turns, once, strict=True):
            assert after.content.casefold() == before.content.casefold()  # nothing but case changes
    assert changed > 300


@pytest.mark.parametrize(
    "text",
    [
        ". " * 40_000,
        "\\(" * 40_000,
        "a-" * 40_000,
        "a." * 40_000,
        "\n" * 80_000,
        "a(" * 40_000,
        "!" * 80_000,
        "<a " * 30_000,
    ],
)
def test_hostile_text_costs_little(text: str):
    start = time.monotonic()
    truecase("hello " + text + " there you. are")
    assert time.monotonic() - start < 10
