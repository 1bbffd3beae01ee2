"""The terminal's chat may use the whole context, and tells what an answer cost."""

from __future__ import annotations

import pytest

from tests.scripted_model import FINISH, ScriptedModel
from zephyr_local.chat_types import Message
from zephyr_local.errors import ContextExceededError
from zephyr_local.repl.conversation import Conversation, timing_line
from zephyr_local.settings import Sampling


def test_a_chat_is_refused_only_where_no_token_is_left():
    model = ScriptedModel(["Yes."], n_ctx=8)
    conversation = Conversation(model, Sampling(max_tokens=100), system="Be brief.")  # type: ignore[arg-type]
    with pytest.raises(ContextExceededError, match="needs 8 tokens and its answer 1, and the context holds 8"):
        list(conversation.chat.stream("one two three four"))
    list(conversation.chat.stream("one two three"))
    assert conversation.chat.messages[-1] == Message("assistant", "Yes.")
    conversation.chat.clear()
    assert conversation.chat.messages == (Message("system", "Be brief."),)


def test_timing_line_has_counts_and_rates():
    line = timing_line(FINISH)
    assert "prompt 10 tokens, 4 cached" in line
    assert "(12/s)" in line  # 6 new tokens in 0.5 s
    assert "10.0/s" in line  # 2 steps in 0.2 s
