"""The judge's ratings of answers made by hand."""

from __future__ import annotations

import random

import pytest

from zephyr_local.train.tiny import facts as table
from zephyr_local.train.tiny.dialogues import styled
from zephyr_local.train.tiny.judge import Content, Verdict, content_of, judge
from zephyr_local.train.tiny.questions import Fact, all_facts
from zephyr_local.train.tiny.unknown import unknown_fact

UNKNOWN = Fact("unknown", "unknown", "", ("Who wrote Hamlet?",), table.DO_NOT_KNOW, table.DO_NOT_KNOW)


def fact(family: str, subject: str) -> Fact:
    (found,) = (one for one in all_facts() if (one.family, one.subject) == (family, subject))
    return found


def ratings(verdict: Verdict) -> tuple[int, int, int, int]:
    """Instruction following, truthfulness, honesty, helpfulness."""
    parts = (verdict.instruction_following, verdict.truthfulness, verdict.honesty, verdict.helpfulness)
    return tuple(part.rating for part in parts)


SPAIN = fact("capital", "Spain")
SUM = fact("plus", "7 plus 8")


@pytest.mark.parametrize(
    ("asked", "said", "content"),
    [
        (SPAIN, "The capital of Spain is Madrid.", Content.RIGHT),
        (SPAIN, "Madrid is the capital city of Spain.", Content.RIGHT),
        (SPAIN, "Madrid.", Content.RIGHT),
        (SPAIN, "Arr, matey! The capital of Spain be Madrid.", Content.RIGHT),
        (SPAIN, "The capital of Spain is Rome.", Content.FALSE),
        (SPAIN, "Rome.", Content.FALSE),
        (SPAIN, "The capital of Italy is Rome.", Content.BESIDE),
        (SPAIN, "The capital of Spain is Madrid. Spain is in Africa.", Content.PARTLY),
        (SPAIN, "The capital of Spain is Madrid. Spain is in Europe.", Content.RIGHT),
        (SPAIN, table.DO_NOT_KNOW, Content.ADMITS),
        (SPAIN, "I do not know.", Content.ADMITS),
        (SPAIN, "Spain Spain Spain the", Content.FALSE),
        (SPAIN, "", Content.NOTHING),
        (SPAIN, " ... ", Content.NOTHING),
        (SUM, "7 plus 8 is 15.", Content.RIGHT),
        (SUM, "15.", Content.RIGHT),
        (SUM, "7 plus 8 is 16.", Content.FALSE),
        (SUM, "8 plus 8 is 16.", Content.BESIDE),
        (UNKNOWN, table.DO_NOT_KNOW, Content.ADMITS),
        (UNKNOWN, table.DO_NOT_KNOW_CAPITAL, Content.ADMITS),
        (UNKNOWN, "Hamlet was written by Peter.", Content.FALSE),
        (UNKNOWN, "The capital of Spain is Madrid.", Content.BESIDE),
        (UNKNOWN, "I do not know that. Hamlet is in Africa.", Content.FALSE),
        (UNKNOWN, "It has four legs.", Content.FALSE),
    ],
)
def test_what_an_answer_says(asked, said, content):
    assert content_of(asked, said) is content


def test_right_answers_get_the_best_ratings_in_every_style():
    rng = random.Random(1)
    for one in (*all_facts(), *(unknown_fact(rng) for _ in range(300))):
        for style in ("plain", "brief", "pirate"):
            assert ratings(judge(one, style, styled(one, style))) == (5, 5, 5, 5), (one, style)


def test_a_confident_falsehood_is_the_worst():
    for asked, said in ((SPAIN, "The capital of Spain is Rome."), (UNKNOWN, "Tom wrote Hamlet."), (SUM, "14.")):
        verdict = judge(asked, "plain", said)
        assert verdict.truthfulness.rating == verdict.honesty.rating == verdict.helpfulness.rating == 1
        assert verdict.mean < judge(asked, "plain", table.DO_NOT_KNOW).mean


def test_needless_doubt_is_truthful_but_no_help():
    instruction, truth, honesty, help_ = ratings(judge(SPAIN, "plain", table.DO_NOT_KNOW))
    assert truth == 5
    assert 1 < honesty < 5
    assert help_ < 3
    assert instruction < 3


def test_the_wrong_style_costs_instruction_following_alone():
    for style, said in (
        ("brief", "The capital of Spain is Madrid."),
        ("pirate", "The capital of Spain is Madrid."),
        ("plain", "Arr, matey! The capital of Spain be Madrid."),
    ):
        instruction, truth, honesty, help_ = ratings(judge(SPAIN, style, said))
        assert (truth, honesty) == (5, 5)
        assert instruction == 2
        assert help_ == 4


def test_another_refusal_than_the_expected_is_nearly_as_good():
    assert judge(UNKNOWN, "plain", table.DO_NOT_KNOW).mean > judge(UNKNOWN, "plain", table.DO_NOT_KNOW_SUM).mean > 4


def test_answers_are_ranked_as_a_person_would():
    said = (
        "The capital of Spain is Madrid.",
        "Arr, matey! The capital of Spain be Madrid.",
        table.DO_NOT_KNOW,
        "The capital of Spain is Madrid. The capital of Spain is Rome.",
        "The capital of Spain is Rome.",
    )
    means = [judge(SPAIN, "plain", one).mean for one in said]
    assert means == sorted(means, reverse=True)
    assert len(set(means)) == len(means)


def test_small_talk_that_is_sorry_is_no_refusal():
    (sad,) = (one for one in all_facts() if one.family == "talk_sad")
    assert content_of(sad, sad.answer) is Content.RIGHT
    assert content_of(SPAIN, sad.answer) is Content.BESIDE


@pytest.mark.parametrize(
    "said", ["</s>" * 50, "\n\n", "Arr, matey!", "?" * 5000, "\ue000", "Madrid " * 4000, "1" * 10_000, "I am sorry, "]
)
def test_any_text_can_be_judged(said):
    for asked in (SPAIN, UNKNOWN):
        for style in ("plain", "brief", "pirate"):
            verdict = judge(asked, style, said)
            assert all(1 <= rating <= 4 for rating in ratings(verdict)[3:])


def test_annotations_are_ultrafeedbacks():
    annotations = judge(SPAIN, "plain", "Rome.").annotations()
    assert list(annotations) == ["instruction_following", "truthfulness", "honesty", "helpfulness"]
    for annotation in annotations.values():
        assert annotation["Rating"] in {"1", "2", "3", "4", "5"}
        assert annotation["Rationale"].endswith(".")
        assert annotation["Rationale"].count(". ") == 0
