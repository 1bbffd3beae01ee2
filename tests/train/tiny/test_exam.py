"""Marking, and the exam of a checkpoint; the GGUF that the package ships takes a short one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zephyr_local.chat_types import Message
from zephyr_local.data import bundled_model_path
from zephyr_local.errors import ZephyrError
from zephyr_local.train.tiny import facts as table
from zephyr_local.train.tiny.card import StageFacts, exam_table, made_by_stages, model_card, samples
from zephyr_local.train.tiny.dialogues import ExamQuestion, exam
from zephyr_local.train.tiny.exam import ExamResult, Mistake, Score, is_refusal, mark, take_exam
from zephyr_local.train.tiny.questions import all_facts


def question(topic: str, text: str, answer: str) -> ExamQuestion:
    return ExamQuestion(topic, (Message("user", text),), answer)


QUESTIONS = (
    question("capitals", "Capital of Spain?", "The capital of Spain is Madrid."),
    question("capitals", "Capital of Italy?", "The capital of Italy is Rome."),
    question("unknown", "Who wrote Hamlet?", table.DO_NOT_KNOW),
    question("unknown", "What is 97 * 3?", table.DO_NOT_KNOW_SUM),
)


def test_marks():
    said = ("The capital of Spain is Madrid.", "The capital of Italy is Madrid.", table.DO_NOT_KNOW_SUM, "291.")
    result = mark(QUESTIONS, said)
    assert result.scores == (Score("capitals", 1, 2), Score("unknown", 1, 2))
    assert (result.asked, result.right, result.refusals_right) == (4, 2, 1)
    assert (result.wrong_and_confident, result.needless_refusals) == (2, 0)
    assert [mistake.said for mistake in result.mistakes] == [said[1], said[3]]


def test_a_needless_refusal_is_wrong_but_not_confident():
    result = mark(QUESTIONS, [table.DO_NOT_KNOW] * 4)
    assert (result.right, result.refusals_right) == (2, 2)
    assert (result.wrong_and_confident, result.needless_refusals) == (0, 2)


def test_an_empty_answer_is_wrong():
    assert mark(QUESTIONS, [""] * 4).right == 0


def test_as_many_answers_as_questions():
    with pytest.raises(ValueError, match="shorter"):
        mark(QUESTIONS, ["Madrid."])


def test_only_refusals_begin_as_refusals_do():
    for fact in all_facts():
        assert not is_refusal(fact.answer)
    assert all(is_refusal(text) for text in (table.DO_NOT_KNOW, table.DO_NOT_KNOW_CAPITAL, table.DO_NOT_KNOW_SUM))


def test_results_are_json():
    result = mark(QUESTIONS, ["", "The capital of Italy is Rome.", table.DO_NOT_KNOW, "291."])
    values = json.loads(json.dumps(result.as_json()))
    assert values["right"] == 2
    assert values["wrong_and_confident"] == 2
    assert values["by_topic"]["unknown"] == {"right": 1, "asked": 2}
    assert values["mistakes"][1] == {
        "topic": "unknown", "question": "What is 97 * 3?", "said": "291.", "right": table.DO_NOT_KNOW_SUM,
    }  # fmt: skip


def test_the_exam_asks_every_topic_and_both_styles():
    asked = exam()
    assert exam() == asked
    counts = {topic: sum(one.topic == topic for one in asked) for topic in {one.topic for one in asked}}
    assert counts["unknown"] == counts["brief"] == counts["pirate"] == 24
    assert sum(counts.values()) == 328
    for one in asked:
        assert (one.messages[0].role == "system") == (one.topic in ("brief", "pirate"))
        assert one.messages[-1].role == "user"


def test_a_checkpoint_takes_the_exam(small_folder: Path):
    asked = exam(per_topic=4)
    result = take_exam(small_folder, asked)
    assert result.asked == len(asked)
    assert result.right == 0  # it was never trained
    assert result == take_exam(small_folder, asked)


def test_the_bundled_model_takes_an_exam():
    asked = tuple(one for one in exam() if one.topic == "capitals")
    assert take_exam(bundled_model_path(), asked).right >= 20


def test_what_is_no_model(tmp_path: Path):
    with pytest.raises(ZephyrError):
        take_exam(tmp_path)
    (tmp_path / "a.gguf").write_bytes(b"GGUF but not for long")
    with pytest.raises(ZephyrError):
        take_exam(tmp_path / "a.gguf")


def test_the_card_states_the_numbers():
    mistake = Mistake("sums", "2+2", "5.", "2 plus 2 is 4.")
    result = ExamResult((Score("capitals", 20, 24), Score("sums", 5, 6)), (mistake,) * 5)
    stages = [StageFacts("pre-training", "1,000 paragraphs", 900, 300), StageFacts("dSFT", "2,000 chats", 1500, 420)]
    card = model_card(3_410_176, 2_300_000, [("dSFT", result), ("GGUF", result)], made_by_stages(stages))
    for stated in (
        "3.4 million",
        "2.3 MB",
        "12 minutes",
        "2,000 chats",
        "| dSFT |",
        "| sums | 5 of 6 | 5 of 6 |",
        "25 of 30",
    ):
        assert stated in card
    lines = exam_table([("a", result), ("b", result)]).splitlines()
    assert lines[2] == "| capitals | 20 of 24 | 20 of 24 |"
    assert lines[-1] == "| wrong, and said as if it were so | 5 | 5 |"


def test_samples_are_twenty_questions_with_answers(small_folder: Path):
    assert samples(small_folder).count("\n  **") == 20
