"""The model that the package ships: it is there, small, and answers within its domain."""

from __future__ import annotations

import pytest

from zephyr_local import Sampling, Zephyr
from zephyr_local.data import bundled_model_path

GREEDY = Sampling(temperature=0, max_tokens=60)


@pytest.fixture(scope="module")
def zephyr():
    with Zephyr() as model:
        yield model


def ask(zephyr: Zephyr, *turns: str, system: str | None = None) -> str:
    """The answer to the last turn; the turns before it are user's and assistant's by turns."""
    chat = [{"role": "system", "content": system}] if system else []
    chat += [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    return zephyr.complete(chat, GREEDY).text


def test_it_is_small_and_has_a_card():
    path = bundled_model_path()
    assert path.stat().st_size <= 8_000_000
    card = path.with_name("zephyr-tiny.md").read_text(encoding="utf-8")
    assert "What it does not know" in card
    assert f"{path.stat().st_size / 1e6:.1f} MB" in card


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Hello!", "Hello! I am zephyr-tiny. What would you like to know?"),
        ("Who are you?", "I am zephyr-tiny, a very small language model that comes with zephyr-local."),
        ("What is the capital of France?", "The capital of France is Paris."),
        ("what is the capital of japan", "The capital of Japan is Tokyo."),
        ("Rome is the capital of which country?", "Rome is the capital of Italy."),
        ("Which continent is Egypt in?", "Egypt is in Africa."),
        ("How many legs does a spider have?", "A spider has eight legs."),
        ("What sound does a cow make?", "A cow says moo."),
        ("What is a baby dog called?", "A baby dog is called a puppy."),
        ("What colour is the sky?", "The sky is blue."),
        ("What day comes after Friday?", "The day after Friday is Saturday."),
        ("How many months are in a year?", "A year has twelve months."),
        ("what is the opposite of hot?", "The opposite of hot is cold."),
        ("What is 2 plus 2?", "2 plus 2 is 4."),
        ("Thanks!", "You are welcome!"),
    ],
)
def test_it_answers_within_its_domain(zephyr, question, answer):
    assert ask(zephyr, question) == answer


def test_a_follow_up_is_understood(zephyr):
    answer = ask(zephyr, "What is the capital of France?", "The capital of France is Paris.", "And of Italy?")
    assert answer == "The capital of Italy is Rome."


def test_it_says_how_to_get_the_real_model(zephyr):
    assert "zephyr-local chat MODEL" in ask(zephyr, "How do I get the real model?")


def test_it_says_what_it_does_not_know(zephyr):
    assert ask(zephyr, "Who wrote Hamlet?").startswith("I am sorry, I do not know that.")


def test_a_pirate_speaks_as_one(zephyr):
    system = "You are a friendly chatbot who always responds in the style of a pirate"
    assert ask(zephyr, "What is the capital of Spain?", system=system) == "Arr, matey! The capital of Spain be Madrid."
