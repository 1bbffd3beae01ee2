"""The dialogues that zephyr-tiny learns from."""

from __future__ import annotations

import itertools
import random
import re

from zephyr_local.train.tiny.dialogues import TOPIC_WEIGHTS, Dialogue, as_typed, dialogues, exam, styled
from zephyr_local.train.tiny.questions import Fact, all_facts, bare
from zephyr_local.train.tiny.tokenizer import chat_parts

CONTROL_STRINGS = ("<s>", "</s>", "<unk>", "<|user|>", "<|assistant|>", "<|system|>", "<0x0A>")


def some(n: int, seed: int = 3) -> list[Dialogue]:
    return list(itertools.islice(dialogues(seed), n))


def test_the_same_seed_gives_the_same_chats():
    assert some(300) == some(300)
    assert some(300) != some(300, seed=4)


def test_a_chat_is_an_optional_system_turn_and_pairs_of_user_and_assistant():
    for dialogue in some(500):
        roles = "".join(message.role[0] for message in dialogue.messages)
        assert re.fullmatch("s?(ua)+", roles)


def test_no_message_holds_a_control_string_a_newline_or_nothing_to_say():
    for dialogue in some(1000):
        for message in dialogue.messages:
            assert not any(text in message.content for text in CONTROL_STRINGS)
            assert "\n" not in message.content
            assert message.content or message.role == "system"


def test_answers_are_whole_sentences():
    for fact in all_facts():
        for text in (fact.answer, fact.brief):
            assert text[-1] in ".!?" or "MODEL" in text
            assert text[0].isupper() or text[0].isdigit() or text.startswith("zephyr-")
            assert "{" not in text


def test_every_topic_is_asked_and_every_fact_can_be():
    assert {fact.topic for fact in all_facts()} | {"unknown"} == set(TOPIC_WEIGHTS)
    for fact in all_facts():
        assert fact.trained_wordings
        assert set(fact.trained_wordings) | set(fact.exam_wordings) == set(fact.wordings)


def test_a_question_has_one_answer():
    answers: dict[str, str] = {}
    for fact in all_facts():
        for wording in fact.wordings:
            assert answers.setdefault(bare(wording), fact.answer) == fact.answer, wording


def test_the_exam_asks_what_training_never_does():
    trained = {bare(wording) for fact in all_facts() for wording in fact.trained_wordings}
    asked = {
        bare(question.messages[-1].content) for question in exam() if question.topic not in ("unknown", "follow-ups")
    }
    assert len(asked) > 150
    assert not asked & trained


def test_styles():
    fact = Fact("capitals", "capital", "Italy", ("?",), "The capital of Italy is Rome.", "Rome.")
    assert styled(fact, "plain") == fact.answer
    assert styled(fact, "brief") == "Rome."
    assert styled(fact, "pirate") == "Arr, matey! The capital of Italy be Rome."


def test_typing_keeps_the_numbers_of_a_sum():
    rng = random.Random(0)
    for _ in range(500):
        assert re.findall(r"\d+", as_typed(rng, "What is 10 plus 7?")) == ["10", "7"]


def test_a_rendered_chat_is_zephyrs_format():
    dialogue = next(d for d in some(500) if d.messages[0].role == "system")
    system, user, assistant = dialogue.messages[:3]
    assert chat_parts(dialogue.messages)[:3] == [
        f"<|system|>\n{system.content}",
        f"\n<|user|>\n{user.content}",
        f"\n<|assistant|>\n{assistant.content}",
    ]
