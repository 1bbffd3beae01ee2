"""The base text: statements, all of them true, and never a question of the exam."""

from __future__ import annotations

import itertools

from zephyr_local.train.tiny import facts as table
from zephyr_local.train.tiny.dialogues import exam
from zephyr_local.train.tiny.questions import all_facts, bare
from zephyr_local.train.tiny.shape import VocabularySample
from zephyr_local.train.tiny.text import paragraphs
from zephyr_local.train.tiny.tokenizer import ROLE_PIECES
from zephyr_local.train.tiny.truths import claim, claims_by_fact, key_of, sentences, true_claims


def some(n: int, seed: int = 3) -> list[str]:
    return list(itertools.islice(paragraphs(seed), n))


def test_the_same_seed_gives_the_same_text():
    assert some(300) == some(300)
    assert some(300) != some(300, seed=4)


def test_no_sentence_is_a_question_and_none_is_of_the_exam():
    asked = {bare(question.messages[-1].content) for question in exam(per_topic=10_000)}
    asked |= {bare(wording) for fact in all_facts() for wording in fact.exam_wordings}
    assert len(asked) > 1000
    text = some(8_000)
    assert not any("?" in paragraph for paragraph in text)
    for paragraph in text:
        assert bare(paragraph) not in asked
        assert not asked.intersection(bare(sentence) for sentence in sentences(paragraph))


def test_nothing_is_in_a_chats_format():
    for paragraph in some(3000):
        assert not any(mark in paragraph for mark in (*ROLE_PIECES, "<s>", "</s>", "\n", "{", "}"))


def test_sentences_begin_large_and_end_with_a_mark():
    for paragraph in some(3000):
        for sentence in sentences(paragraph):
            assert sentence[0].isupper() or sentence[0].isdigit() or sentence.startswith(('"', "zephyr-"))
            assert sentence[-1] in '.!"'


def test_every_capital_animal_and_sum_comes_in_many_wordings():
    told: dict[tuple[str, str], set[str]] = {}
    facts_of = {}
    for key, claims in claims_by_fact().items():
        for one in claims:
            facts_of.setdefault(one, []).append(key)
    for paragraph in some(15_000):
        for sentence in sentences(paragraph):
            for key in facts_of.get(claim(sentence), ()):
                told.setdefault(key, set()).add(claim(sentence))
    for country, _, _ in table.COUNTRIES:
        assert len(told["capital", country]) >= 6
        assert len(told["continent", country]) >= 6
    for fact in all_facts():
        if fact.family in ("legs", "sound", "home", "food", "young", "opposite", "day_after", "month_before"):
            assert len(told[key_of(fact)]) >= 4, fact
        if fact.topic == "sums":
            assert len(told[key_of(fact)]) >= 3, fact


def test_what_it_says_of_the_world_is_true():
    """Every sentence that speaks of a capital, checked against the table by its own words."""
    capitals = {country: capital for country, capital, _ in table.COUNTRIES}
    n = 0
    for paragraph in some(5000):
        for sentence in sentences(paragraph):
            for country, capital in capitals.items():
                if sentence == f"The capital of {country} is {sentence.rsplit(' is ', 1)[-1]}":
                    n += 1
                    assert sentence.endswith(f" is {capital}.")
    assert n > 50
    assert claim("The capital of Spain is Rome.") not in true_claims()


def test_the_vocabulary_sees_chats_and_text():
    texts = list(VocabularySample(n_dialogues=50, n_paragraphs=50).texts())
    assert sum(text.startswith("\n<|assistant|>\n") for text in texts) >= 50
    assert texts[-50:] == some(50, seed=18)
