"""Published formats become one, and what is damaged is refused with its reason."""

from __future__ import annotations

from typing import Any

import pytest

from zephyr_local.errors import InvalidInputError
from zephyr_local.train.data.dialogue_formats import (
    LEADING_CUT,
    TRAILING_CUT,
    Dialogue,
    Turn,
    UnusableDialogueError,
    parse_dialogue,
    recognised_format,
)
from zephyr_local.train.data.records import Record

TWO = (Turn("user", "Hi"), Turn("assistant", "Hello"))


def parse(value: dict[str, Any], format_name: str = "auto", **more: Any) -> Dialogue:
    return parse_dialogue(Record("chats.jsonl:3", value), format_name, **more)


def messages(*pairs: tuple[Any, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


@pytest.mark.parametrize(
    ("value", "name", "turns"),
    [
        ({"id": "7", "data": ["Hi", "Hello", "Bye", "Goodbye"]}, "ultrachat",
         (*TWO, Turn("user", "Bye"), Turn("assistant", "Goodbye"))),
        ({"prompt": "Hi", "prompt_id": "x", **messages(("user", "Hi"), ("assistant", "Hello"))}, "ultrachat_200k", TWO),
        (messages(("system", "Be kind"), ("user", "Hi"), ("assistant", "Hello")), "messages",
         (Turn("system", "Be kind"), *TWO)),
        (messages(("developer", "Be kind"), ("user", " Hi\n"), ("assistant", "Hello")), "messages",
         (Turn("system", "Be kind"), *TWO)),
        (messages(("user", [{"type": "text", "text": "Hi"}]), ("assistant", "Hello")), "messages", TWO),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}, "sharegpt", TWO),
        ({"items": [{"from": "user", "value": "Hi"}, {"from": "bard", "value": "Hello"}]}, "sharegpt", TWO),
        ({"system": "Be kind", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
         "sharegpt", (Turn("system", "Be kind"), *TWO)),
        ({"instruction": "Hi", "input": "", "output": "Hello"}, "alpaca", TWO),
        ({"instruction": "Add", "input": "1, 2", "output": "3"}, "alpaca",
         (Turn("user", "Add\n\n1, 2"), Turn("assistant", "3"))),
        ({"instruction": "Bye", "output": "Goodbye", "history": [["Hi", "Hello"]], "system": "Be kind"}, "alpaca",
         (Turn("system", "Be kind"), *TWO, Turn("user", "Bye"), Turn("assistant", "Goodbye"))),
    ],
)  # fmt: skip
def test_recognises_formats_by_their_keys(value: dict[str, Any], name: str, turns: tuple[Turn, ...]):
    assert recognised_format(value) == name
    for asked in ("auto", name):
        dialogue = parse(value, asked)
        assert dialogue.turns == turns
        assert dialogue.format == name


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"text": "Hi"}, "not recognised"),
        ({}, "not recognised"),
        ({"messages": "Hi"}, "not recognised"),
        ({"messages": None}, "not recognised"),
        ({"data": b"Hi"}, "not recognised"),
        ({"messages": []}, "no assistant turn"),
        ({"messages": ["Hi", "Hello"]}, "not an object"),
        (messages(("user", "Hi")), "no assistant turn"),
        (messages(("assistant", "Hello")), "no user turn"),
        (messages(("assistant", "Hello"), ("user", "Hi")), "no user turn"),
        (messages(("user", "Hi"), ("user", "Hi"), ("assistant", "Hello")), "not by turns"),
        (messages(("user", "Hi"), ("system", "Be kind"), ("assistant", "Hello")), "not the first"),
        (messages(("user", "Hi"), ("assistant", "  \n")), "an empty turn"),
        (messages(("user", ""), ("assistant", "Hello")), "an empty turn"),
        (messages(("user", "Hi"), ("tool", "42"), ("assistant", "Hello")), "tool"),
        (messages(("user", "Hi"), ("function", "42"), ("assistant", "Hello")), "tool"),
        (messages(("user", "Hi"), ("alien", "42")), "unknown role"),
        (messages(("user", "Hi"), (None, "42")), "unknown role"),
        (messages(("user", "Hi"), (["user"], "42")), "unknown role"),
        (messages(("user", "Hi"), ("assistant", None)), "not text"),
        (messages(("user", "Hi"), ("assistant", 42)), "not text"),
        (messages(("user", [{"type": "image_url", "image_url": {}}]), ("assistant", "Hello")), "not text"),
        (messages(("user", [None]), ("assistant", "Hello")), "not text"),
        (messages(("user", "Hi \ud800"), ("assistant", "Hello")), "surrogate"),
        (messages(("user", "Hi \0 there"), ("assistant", "Hello")), "NUL"),
        ({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "", "tool_calls": [{}]}]},
         "tool"),
        ({"data": ["Hi", {"a": 1}]}, "not text"),
        ({"instruction": "Hi", "output": None}, "not text"),
        ({"instruction": "Hi", "output": "Hello", "history": [["Hi"]]}, "history"),
        ({"instruction": "Hi", "output": "Hello", "history": 3}, "history"),
    ],
)  # fmt: skip
def test_refuses_what_is_damaged_with_its_reason(value: dict[str, Any], reason: str):
    with pytest.raises(UnusableDialogueError, match=reason):
        parse(value)


def test_cuts_what_does_not_belong_to_an_answered_prompt():
    cut = parse(messages(("assistant", "..."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("user", "?")))
    assert cut.turns == TWO
    assert cut.changes == (LEADING_CUT, TRAILING_CUT)
    assert parse(messages(("system", " "), ("user", "Hi"), ("assistant", "Hello"))).turns == TWO


def test_limits_length():
    value = messages(("user", "a" * 60), ("assistant", "b" * 40))
    assert parse(value, max_characters=100).n_characters == 100
    with pytest.raises(UnusableDialogueError, match="longer than 99 characters"):
        parse(value, max_characters=99)


def test_a_named_format_takes_no_other():
    with pytest.raises(UnusableDialogueError, match="not recognised"):
        parse({"data": ["Hi", "Hello"]}, "sharegpt")
    with pytest.raises(InvalidInputError, match="oasst"):
        parse({"data": ["Hi", "Hello"]}, "oasst")


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ({"id": "a"}, "a"),
        ({"id": 7}, "7"),
        ({"prompt_id": "p"}, "p"),
        ({}, "chats.jsonl:3"),
        ({"id": "\ud800"}, "chats.jsonl:3"),
    ],
)
def test_has_an_id(more: dict[str, Any], name: str):
    assert parse({**messages(("user", "Hi"), ("assistant", "Hello")), **more}).id == name


def test_source_is_the_records_or_the_formats():
    value = messages(("user", "Hi"), ("assistant", "Hello"))
    assert parse(value).as_record() == {**value, "id": "chats.jsonl:3", "source": "messages"}
    assert parse({**value, "source": "flan"}).source == "flan"
