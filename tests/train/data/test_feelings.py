"""Disclaimers that nobody asked for are found, and answers to questions about feelings are not."""

from __future__ import annotations

import time

import pytest

from zephyr_local.train.data.dialogue_formats import Turn
from zephyr_local.train.data.feelings import unasked_claim


def claim(user: str, answer: str) -> str | None:
    return unasked_claim([Turn("user", user), Turn("assistant", answer)])


@pytest.mark.parametrize(
    "answer",
    [
        "As an AI language model, I don't have personal opinions, but many like it.",
        "As an AI language model, I don’t have personal beliefs or opinions.",
        "AS AN AI, I DO NOT HAVE FEELINGS.",
        "Cats rub to mark. As an AI, I do not have emotions.",
        "I dont have emotions, but here goes.",
        "I'm sorry, but I'm not capable of having beliefs, opinions, or personal experiences.",
        "I cannot provide a personal opinion on that.",
        "While I can't personally feel emotions or hatred, here is why.",
        "I am a language model, so I lack feelings and emotions.",
        "I do not have the ability to feel emotions.",
        "I have no personal opinions on it.",
        "Hello!\n\nI do not have personal experience with this book.",
    ],
)
def test_finds_claims_that_nobody_asked_for(answer: str):
    assert claim("Why do cats rub against legs?", answer)


@pytest.mark.parametrize(
    "question",
    [
        "Do you have feelings?",
        "How do you feel today?",
        "how are you",
        "What do you think about ChatGPT?",
        "In your opinion, which is better?",
        "What's your favourite film?",
        "Have you ever been to Paris?",
        "Can an AI be conscious?",
        "Would you rather fly or swim? Do you like water?",
        "Tell me about your personal experience with cats.",
    ],
)
def test_keeps_answers_to_questions(question: str):
    assert claim(question, "As an AI language model, I don't have feelings, emotions or personal opinions.") is None


@pytest.mark.parametrize(
    "answer",
    [
        'She said: "I don\'t have feelings for anybody."',
        "“I do not have emotions,” said the robot.",
        "Robot: I don't have feelings.\nMan: Oh.",
        "I don't have feelings for you.",
        "Dear Sir,\n\nI saw your advertisement. I do not have personal experience in sales.",
        "People have emotions and opinions.",
        "You don't have feelings.",
        "I don't have a car, in my opinion a good thing.",
        "I do not feel comfortable with that.",
        "```\nI don't have emotions\n```",
        "",
    ],
)
def test_leaves_other_texts(answer: str):
    assert claim("Write something.", answer) is None


def test_a_question_asks_for_what_follows_it_alone():
    answer = Turn("assistant", "I don't have emotions.")
    plain = [Turn("user", "What is 2 + 2?"), Turn("assistant", "4."), Turn("user", "And 3 + 3?"), answer]
    asked = [Turn("user", "How are you?"), Turn("assistant", "Well."), Turn("user", "And 3 + 3?"), answer]
    late = [Turn("user", "What is 2 + 2?"), answer, Turn("user", "How are you?"), Turn("assistant", "Well.")]
    assert unasked_claim(plain) == "I don't have emotions."
    assert unasked_claim(asked) is None
    assert unasked_claim(late) is not None


@pytest.mark.parametrize(
    "text", ["I do not have any " * 10_000, "." * 100_000, "do you " * 20_000, "ai " * 40_000 + "feel", '"' * 100_000]
)
def test_hostile_text_costs_little(text: str):
    start = time.monotonic()
    claim(text, text + " feeling")
    assert time.monotonic() - start < 10
