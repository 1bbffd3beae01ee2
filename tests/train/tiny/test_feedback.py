"""The answerers, and feedback as a whole with untrained models."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest

from zephyr_local.chat_types import Message
from zephyr_local.train.data.binarise import PairRule, binarise
from zephyr_local.train.data.preference_formats import read_preference, recognised_format
from zephyr_local.train.data.records import Record
from zephyr_local.train.tiny import facts as table
from zephyr_local.train.tiny.answerers import Completer, Teacher, opening
from zephyr_local.train.tiny.asked import Asked, all_asked
from zephyr_local.train.tiny.dialogues import exam
from zephyr_local.train.tiny.feedback import feedback, feedback_record
from zephyr_local.train.tiny.judge import judge
from zephyr_local.train.tiny.made import tiny_dialogues, tiny_text
from zephyr_local.train.tiny.questions import Fact, all_facts, bare
from zephyr_local.train.tiny.sampling import SampleSettings, TinyCheckpoint


def some(n: int, seed: int = 1) -> list[Asked]:
    return list(itertools.islice(all_asked(seed), n))


def unknown(question: str) -> Asked:
    fact = Fact("unknown", "unknown", "", (question,), table.DO_NOT_KNOW, table.DO_NOT_KNOW)
    return Asked((Message("user", question),), fact, "plain")


def known(family: str, subject: str) -> Asked:
    (fact,) = (one for one in all_facts() if (one.family, one.subject) == (family, subject))
    return Asked((Message("user", fact.trained_wordings[0]),), fact, "plain")


def test_prompts_end_with_a_question_and_come_once():
    asked = some(3000)
    assert asked == some(3000)
    assert asked != some(3000, seed=2)
    assert len({one.messages for one in asked}) == 3000
    for one in asked:
        roles = [message.role for message in one.messages if message.role != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
        assert (one.style == "plain") or one.messages[0].role == "system"
    assert 500 < sum(one.fact.topic == "unknown" for one in asked) < 1500


def test_no_prompt_is_one_of_the_exams():
    held = {
        bare(one.messages[-1].content) for one in exam(per_topic=10_000) if one.topic not in ("unknown", "follow-ups")
    }
    wordings = {bare(wording) for fact in all_facts() for wording in fact.exam_wordings}
    asked = {bare(one.question) for one in some(5000) if one.fact.topic != "unknown" and len(one.messages) == 1}
    typed_by_chance = asked & (held | wordings)
    assert not typed_by_chance


def test_the_teacher_is_right():
    asked = some(500)
    for one, said in zip(asked, Teacher().answer(asked), strict=True):
        assert judge(one.fact, one.style, said).mean == 5


@pytest.mark.parametrize(
    ("asked", "begins"),
    [
        (known("capital", "Spain"), "The capital of Spain is"),
        (known("plus", "7 plus 8"), "7 plus 8 is"),
        (known("opposite", "hot"), "The opposite of hot is"),
        (known("legs", "a dog"), "A dog has"),
        (known("length", "May"), "May has"),
        (unknown("What is the capital of Bavaria?"), "The capital of Bavaria is"),
        (unknown("which city is fiji's capital?"), None),
    ],
)
def test_openings_leave_out_what_was_asked_for(asked, begins):
    text = opening(asked)
    assert begins is None or text == begins
    assert text == opening(asked)


def test_a_sum_that_is_too_difficult_does_not_begin_as_one_that_is_not():
    for question in ("What is 97 times 3?", "12/5", "11 minus 4"):
        assert not any(character.isdigit() for character in opening(unknown(question)))


def test_every_prompt_has_an_opening():
    for one in some(3000):
        text = opening(one)
        assert text.strip() == text != ""
        assert judge(one.fact, one.style, text).mean < 5


def test_a_completer_says_one_sentence_that_begins_with_the_opening(small: TinyCheckpoint):
    asked = some(40)
    for one, said in zip(asked, Completer(small, SampleSettings(0.7, 12)).answer(asked), strict=True):
        assert said.startswith(opening(one).split(". ")[0][:3])
        assert said


def test_feedback_is_ultrafeedback_that_makes_pairs(small_folder: Path):
    records = list(feedback(8, 1, small_folder, small_folder))
    assert len(records) == 8
    assert records == list(feedback(8, 1, small_folder, small_folder))
    assert len({record["id"] for record in records}) == 8
    for record in records:
        assert json.loads(json.dumps(record)) == record
        assert [completion["model"] for completion in record["completions"]] == record["models"]
        assert len(record["completions"]) == 4
        assert record["prompt"][-1] == {"role": "user", "content": record["instruction"]}
        assert recognised_format(record) == "ultrafeedback"
        for completion in record["completions"]:  # an untrained model says NUL, which is no text
            completion["response"] = completion["response"].replace("\0", "")
        scored = read_preference(Record("here", record), "ultrafeedback", "mean")
        (pair,) = binarise(scored, PairRule()).pairs
        assert [message.content for message in pair.prompt] == [message["content"] for message in record["prompt"]]
        assert pair.chosen.score == 5  # the teacher's: these models know nothing
        assert pair.chosen.score > pair.rejected.score


def test_a_record_carries_the_judges_ratings():
    asked = known("capital", "Spain")
    record = feedback_record("x", asked, {"a": "The capital of Spain is Madrid.", "b": "The capital of Spain is Rome."})
    right, wrong = record["completions"]
    assert right["annotations"]["truthfulness"]["Rating"] == "5"
    assert wrong["annotations"]["truthfulness"]["Rating"] == "1"
    assert right["overall_score"] == 10
    assert wrong["overall_score"] < 4


def test_made_records():
    assert list(tiny_text(3, 1)) == list(tiny_text(5, 1))[:3]
    assert set(next(iter(tiny_text(1, 1)))) == {"text"}
    chats = list(tiny_dialogues(200, 1))
    assert chats[:50] == list(tiny_dialogues(50, 1))
    assert len({chat["id"] for chat in chats}) == 200
    assert all(chat["messages"][-1]["role"] == "assistant" for chat in chats)


def test_draws_of_styles_are_seeded_by_the_seed_alone():
    random.seed(1)
    first = some(50)
    random.seed(2)
    assert some(50) == first
