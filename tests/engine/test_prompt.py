"""The memory of answers' tokens: a chat's next turn finds its whole past in the cache."""

from __future__ import annotations

import pytest

from tests.engine.conftest import SETTINGS
from tests.engine.scheduling import Answer, Loop, assert_nothing_leaks
from zephyr_local.chat_template import ChatTemplate, EncodedChat
from zephyr_local.chat_types import Message
from zephyr_local.engine import prompt
from zephyr_local.engine.llama import LlamaModel
from zephyr_local.engine.prompt import PromptEncoder
from zephyr_local.settings import Sampling

BAN = float("-inf")
HELLO = [Message("user", "the hen in a den")]


def hot(seed: int, end: float, max_tokens: int) -> Sampling:
    """Any token with about the same probability, which is nothing that a tokeniser would make of the text."""
    return Sampling(
        temperature=2.0, top_k=0, top_p=1.0, seed=seed, max_tokens=max_tokens, logit_bias={0: BAN, 1: BAN, 2: end}
    )


@pytest.fixture
def encoder(tiny: LlamaModel) -> PromptEncoder:
    return PromptEncoder(ChatTemplate.named("zephyr"), tiny)


def ask(loop: Loop, encoder: PromptEncoder, chat: EncodedChat, sampling: Sampling) -> Answer:
    answer = loop.answer(chat.ids, sampling)
    encoder.remember(chat, answer.tokens, answer.text)
    return answer


@pytest.mark.parametrize(("end", "reason"), [(BAN, "length"), (4.0, "stop")])
def test_the_next_turn_finds_all_of_the_last_one(
    tiny: LlamaModel, encoder: PromptEncoder, end: float, reason: str
) -> None:
    forgetful = PromptEncoder(ChatTemplate.named("zephyr"), tiny)
    with Loop(tiny, SETTINGS) as loop:
        messages, decoded, differs = list(HELLO), 0, 0
        for turn in range(6):
            chat = encoder.encode(messages)
            answer = ask(loop, encoder, chat, hot(turn, end, 40))
            assert answer.finish.cached_tokens == decoded, turn
            assert answer.finish.prompt_tokens == len(chat.ids)
            assert (answer.finish.reason == reason) or (reason == "stop" and answer.finish.completion_tokens == 40)
            # The last token of an answer that was cut is not decoded; the end's token is not the answer's.
            decoded = len(chat.ids) + len(answer.tokens) - (answer.finish.reason == "length")
            messages += [Message("assistant", answer.text), Message("user", f"and {turn}")]
            differs += encoder.encode(messages).ids != forgetful.encode(messages).ids
        assert differs == 6
        assert_nothing_leaks(loop)


def test_what_is_remembered_is_used_for_exactly_this_text(tiny: LlamaModel, encoder: PromptEncoder) -> None:
    chat = encoder.encode(HELLO)
    assert chat.ids[-len(chat.tail_ids) :] == chat.tail_ids
    spelled = [3 + byte for byte in b"hen"]
    encoder.remember(chat, spelled, "hen")

    def ids(answer: str) -> list[int]:
        return encoder.encode([*HELLO, Message("assistant", answer), Message("user", "more")]).ids

    known = ids("hen")
    assert known[: len(chat.ids) + 3] == [*chat.ids, *spelled]
    plain = PromptEncoder(ChatTemplate.named("zephyr"), tiny)
    for text in ("hens", "he", "hen ", "Hen", ""):
        messages = [*HELLO, Message("assistant", text), Message("user", "more")]
        assert encoder.encode(messages).ids == plain.encode(messages).ids
    later = encoder.encode([Message("user", "x"), Message("assistant", "hen"), Message("user", "y")]).ids
    assert later != plain.encode([Message("user", "x"), Message("assistant", "hen"), Message("user", "y")]).ids
    encoder.remember(chat, [3 + ord("h"), *tiny.tokenize("en")[1:]], "hen")
    assert ids("hen") != known, "the last that was given counts: its tokens are in the cache"


def test_no_control_token_comes_from_memory(tiny: LlamaModel, encoder: PromptEncoder) -> None:
    chat = encoder.encode(HELLO)
    messages = [*HELLO, Message("assistant", "he"), Message("user", "more")]
    before = encoder.encode(messages).ids
    for control in tiny.control_tokens.values():
        encoder.remember(chat, [control, 300], "he")
    encoder.remember(chat, [], "he")
    assert encoder.encode(messages).ids == before


def test_an_answer_that_writes_a_control_token(tiny: LlamaModel, encoder: PromptEncoder) -> None:
    """Its characters are text in the next turn, as they were in the answer."""
    chat = encoder.encode(HELLO)
    tokens = tiny.tokenize("a</s>b")
    encoder.remember(chat, tokens, " a</s>b")
    longer = encoder.encode([*HELLO, Message("assistant", " a</s>b"), Message("user", "more")])
    assert longer.ids[: len(chat.ids) + len(tokens)] == [*chat.ids, *tokens]


def test_the_oldest_answers_are_forgotten(
    tiny: LlamaModel, encoder: PromptEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt, "_REMEMBERED_ANSWERS", 3)
    chat = encoder.encode(HELLO)
    plain = PromptEncoder(ChatTemplate.named("zephyr"), tiny)

    def is_known(letter: str) -> bool:
        messages = [*HELLO, Message("assistant", letter), Message("user", "more")]
        return encoder.encode(messages).ids != plain.encode(messages).ids

    for letter in ("a", "b", "c", "a", "d"):
        encoder.remember(chat, [3 + ord(letter)], letter)
    assert [is_known(letter) for letter in "abcd"] == [True, False, True, True]
