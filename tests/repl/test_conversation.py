"""Turns are kept, partial answers too, and a question that got nothing is taken back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from zephyr_local.chat_types import Finish, Message, Piece
from zephyr_local.errors import ContextExceededError
from zephyr_local.repl.conversation import Conversation, timing_line
from zephyr_local.settings import Sampling

FINISH = Finish("stop", prompt_tokens=10, cached_tokens=4, completion_tokens=3, prompt_s=0.5, completion_s=0.2)


class ScriptedModel:
    """Stands where a Zephyr stands, and answers from a list; records what it was asked."""

    def __init__(self, *answers: Sequence[str] | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[Message, ...]] = []
        self.closed = 0

    def stream(self, messages: tuple[Message, ...], _sampling: Sampling) -> Iterator[Piece]:
        self.asked.append(messages)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        try:
            for text in answer:
                yield Piece(text)
            yield Piece("", FINISH)
        finally:
            self.closed += 1


def conversation(model: ScriptedModel, system: str | None = None) -> Conversation:
    return Conversation(model, Sampling(), system=system)  # type: ignore[arg-type]


def test_turns_follow_each_other():
    model = ScriptedModel(["Hel", "lo."], ["Fine."])
    chat = conversation(model, system="Be brief.")
    list(chat.ask("Hi"))
    list(chat.ask("How are you?"))
    assert model.asked[1] == (
        Message("system", "Be brief."),
        Message("user", "Hi"),
        Message("assistant", "Hello."),
        Message("user", "How are you?"),
    )
    chat.clear()
    assert chat.messages == (Message("system", "Be brief."),)


def test_an_answer_cut_short_keeps_what_came():
    model = ScriptedModel(["One ", "two ", "three"])
    chat = conversation(model)
    pieces = chat.ask("Count")
    next(pieces)
    next(pieces)
    pieces.close()
    assert chat.messages[-1] == Message("assistant", "One two ")
    assert model.closed == 1


def test_a_question_without_an_answer_is_taken_back():
    model = ScriptedModel(ContextExceededError("too long", "Shorten it"), ["Yes."])
    chat = conversation(model)
    with pytest.raises(ContextExceededError):
        list(chat.ask("A very long question"))
    assert chat.messages == ()
    list(chat.ask("Short?"))
    assert [message.content for message in chat.messages] == ["Short?", "Yes."]


def test_timing_line_has_counts_and_rates():
    line = timing_line(FINISH)
    assert "prompt 10 tokens, 4 cached" in line
    assert "(12/s)" in line  # 6 new tokens in 0.5 s
    assert "10.0/s" in line  # 2 steps in 0.2 s
