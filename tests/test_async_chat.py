"""The chat for asyncio: what it shares is tested in test_chat.py; here, what awaits."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Coroutine
from pathlib import Path

import pytest

from tests.scripted_model import FINISH, AsyncScriptedModel, ScriptedModel
from zephyr_local.async_chat import AsyncChat
from zephyr_local.chat_fit import SUMMARY_HEADING
from zephyr_local.chat_types import Message, Reply
from zephyr_local.errors import ContextExceededError, EngineError, InvalidInputError


def run(steps: Coroutine[object, object, None]) -> None:
    asyncio.run(asyncio.wait_for(steps, 30))  # type: ignore[arg-type]


def contents(chat: AsyncChat) -> list[str]:
    return [message.content for message in chat.turns]


def test_turns_branches_and_files(tmp_path: Path):
    async def steps() -> None:
        model = AsyncScriptedModel(ScriptedModel(["Hel", "lo."], ["a1"], ["a2"], ["b"]))
        chat = AsyncChat(model, system="Be brief.")
        assert await chat.ask("Hi") == Reply("Hello.", FINISH)
        assert [piece.text async for piece in chat.stream("q1")] == ["a1", ""]
        assert [piece.text async for piece in chat.regenerate()] == ["a2", ""]
        assert [piece.text async for piece in chat.edit(0, "Bye")] == ["b", ""]
        assert contents(chat) == ["Bye", "b"]
        assert model.model.asked[-1] == (Message("system", "Be brief."), Message("user", "Bye"))
        await chat.save(tmp_path / "chat.json")
        again = await AsyncChat.load(model, os.fspath(tmp_path / "chat.json"))
        again.select(0, 0)
        assert contents(again) == ["Hi", "Hello.", "q1", "a2"]
        again.select(3, 0)
        assert contents(again.branch()) == ["Hi", "Hello.", "q1", "a1"]

    run(steps())


def test_a_cancelled_task_keeps_what_came():
    async def steps() -> None:
        model = ScriptedModel(["One ", *["more "] * 1000], ["Yes"])
        chat = AsyncChat(AsyncScriptedModel(model))
        begun = asyncio.Event()

        async def read() -> None:
            async for _ in chat.stream("Count"):
                begun.set()

        task = asyncio.create_task(read())
        await begun.wait()
        with pytest.raises(InvalidInputError, match="an answer is still being given"):
            await chat.ask("Meanwhile")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert model.closed == 1
        assert contents(chat)[0] == "Count"
        assert contents(chat)[1].startswith("One ")
        await chat.ask("More")
        assert contents(chat)[2:] == ["More", "Yes"]

    run(steps())


def test_a_closed_iterator_keeps_what_came_and_a_failed_one_takes_the_question_back():
    async def steps() -> None:
        model = ScriptedModel(["One ", "two"], [EngineError("crashed", "Again")], ["a"], ["b"])
        chat = AsyncChat(AsyncScriptedModel(model))
        async with contextlib.aclosing(chat.stream("Count")) as pieces:
            await anext(pieces)
        assert contents(chat) == ["Count", "One "]
        with pytest.raises(EngineError):
            await chat.ask("q")
        assert contents(chat) == ["Count", "One "]
        await asyncio.gather(chat.ask("q"), AsyncChat(chat.zephyr).ask("another chat"))
        assert contents(chat)[2] == "q"

    run(steps())


def test_policies_await_the_model():
    async def steps() -> None:
        model = ScriptedModel(*(["a"] for _ in range(38)), ["Summary."], ["b"])
        chat = AsyncChat(AsyncScriptedModel(model), reserve_tokens=8)
        for _ in range(38):
            await chat.ask("q")
        model.n_ctx = 160
        with pytest.raises(ContextExceededError, match="needs 154 tokens and its answer 8"):
            await chat.ask("new")
        model.counted_up_to = 150
        chat.policy = "summarise"
        await chat.ask("new")
        assert chat.sent[0] == Message("system", f"{SUMMARY_HEADING}Summary.")
        assert chat.drops[0].tokens_before is None
        assert chat.drops[0].messages == chat.turns[:48]

    run(steps())
