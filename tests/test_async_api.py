"""AsyncZephyr: the event loop is never blocked, and a cancelled task cancels its request."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.engine.conftest import SETTINGS, slow_path, tiny_path  # noqa: F401 — fixtures
from zephyr_local import (
    AsyncZephyr,
    ContextExceededError,
    EngineCrashed,
    EngineError,
    EngineSettings,
    InvalidInputError,
    Sampling,
    Zephyr,
)
from zephyr_local.engine.client import EngineClient
from zephyr_local.model_store.library import Resolved

HELLO = [{"role": "user", "content": "the hen in a den"}]
GREEDY = Sampling(temperature=0, max_tokens=24)
LONG = [{"role": "user", "content": "x " * 3000}]
T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(coroutine, 60))


@pytest.fixture(params=[True, False], ids=["isolated", "in-process"])
def isolated(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_everything_that_zephyr_does(tiny_path: Path, isolated: bool) -> None:  # noqa: F811
    with Zephyr(tiny_path, SETTINGS) as zephyr:
        expected = zephyr.complete(HELLO, GREEDY).text
        facts = (zephyr.count_tokens(HELLO), zephyr.tokenize("the hen"), zephyr.devices(), zephyr.n_ctx)

    async def use() -> None:
        seen: list[float] = []
        async with AsyncZephyr(tiny_path, SETTINGS, isolated=isolated, on_progress=seen.append) as model:
            pieces = [piece async for piece in model.stream(HELLO, GREEDY)]
            assert "".join(piece.text for piece in pieces) == expected
            assert pieces[-1].finish is not None
            texts = [(await asyncio.gather(*(model.complete(HELLO, GREEDY) for _ in range(8))))[n].text for n in (0, 7)]
            assert texts == [expected] * 2
            counted = (await model.count_tokens(HELLO), await model.tokenize("the hen"), await model.devices())
            assert (*counted, model.n_ctx) == facts
            assert len(await model.embed("the hen")) == 32
            reply = await model.complete(HELLO, Sampling(temperature=0, max_tokens=3, logprobs=1))
            assert len(reply.logprobs) == 3
            with pytest.raises(InvalidInputError):
                await model.complete("Hello")  # type: ignore[arg-type]
            with pytest.raises(ContextExceededError, match="512"):
                await model.complete([{"role": "user", "content": "x " * 400}])
        with pytest.raises(EngineError, match="closed"):
            await model.complete(HELLO)
        await asyncio.sleep(0)
        assert seen[-1] == 1.0

    run(use())


def test_the_loop_runs_on_and_a_cancelled_task_cancels_its_prefill(slow_path: Path, isolated: bool) -> None:  # noqa: F811
    async def use() -> None:
        settings = EngineSettings(n_ctx=8192, n_threads=1)
        async with AsyncZephyr(slow_path, settings, isolated=isolated) as model:
            task = asyncio.create_task(model.complete(LONG))
            ticks = 0
            for _ in range(20):
                await asyncio.sleep(0.01)
                ticks += 1
            assert not task.done()
            task.cancel()
            started = time.perf_counter()
            with pytest.raises(asyncio.CancelledError):
                await task
            reply = await model.complete(HELLO, Sampling(temperature=0, max_tokens=1))
            assert reply.finish.completion_tokens == 1
            assert time.perf_counter() - started < 5  # a watchdog: the whole prefill takes longer
            assert ticks == 20

    run(use())


def test_closing_the_generator_cancels_the_answer(tiny_path: Path) -> None:  # noqa: F811
    async def use() -> None:
        async with AsyncZephyr(tiny_path, SETTINGS) as model:
            for _ in range(3):
                async with aclosing(model.stream(HELLO, Sampling(temperature=0))) as pieces:
                    async for _piece in pieces:
                        break
            assert (await model.complete(HELLO, GREEDY)).finish.completion_tokens > 0

    run(use())


def test_loading_can_be_cancelled_and_its_callback_may_fail(slow_path: Path, isolated: bool) -> None:  # noqa: F811
    class Stop(Exception):
        pass

    def fail(_share: float) -> None:
        raise Stop

    async def use() -> None:
        with pytest.raises(Stop):
            await AsyncZephyr(slow_path, isolated=isolated, on_progress=fail).load()
        model = AsyncZephyr(slow_path, isolated=isolated)
        task = asyncio.create_task(model.load())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        unloaded = AsyncZephyr(slow_path)
        with pytest.raises(InvalidInputError, match="not loaded"):
            await unloaded.complete(HELLO)

    run(use())


@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
def test_a_crash_and_the_call_after_it(tiny_path: Path) -> None:  # noqa: F811
    async def use() -> None:
        async with AsyncZephyr(tiny_path, SETTINGS) as model:
            expected = (await model.complete(HELLO, GREEDY)).text
            process_id = model.engine_process_id
            assert process_id is not None
            os.kill(process_id, signal.SIGSTOP)
            task = asyncio.create_task(model.complete(HELLO, GREEDY))
            await asyncio.sleep(0.1)
            os.kill(process_id, signal.SIGKILL)
            with pytest.raises(EngineCrashed):
                await task
            assert (await model.complete(HELLO, GREEDY)).text == expected

    run(use())


@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
def test_a_task_that_is_cancelled_while_the_engine_starts_again_leaves_nothing(tiny_path: Path) -> None:  # noqa: F811
    async def use() -> None:
        async with AsyncZephyr(tiny_path, SETTINGS) as model:
            assert model.engine_process_id is not None
            os.kill(model.engine_process_id, signal.SIGKILL)
            while model.engine_process_id is not None:
                await asyncio.sleep(0.01)
            task = asyncio.create_task(model.complete(HELLO, Sampling(temperature=0)))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while model.engine_process_id is None:
                await asyncio.sleep(0.01)
            assert (await model.complete(HELLO, GREEDY)).finish.completion_tokens > 0
            await asyncio.sleep(0.1)
            assert model._client._waiters == {}

    run(use())


def test_two_loads_are_one(tiny_path: Path, isolated: bool) -> None:  # noqa: F811
    async def use() -> None:
        model = AsyncZephyr(tiny_path, SETTINGS, isolated=isolated)
        await asyncio.gather(model.load(), model.load())
        assert model._client._waiters == {}
        process_id = model.engine_process_id
        await model.close()
        if process_id is not None and os.name == "posix":
            with pytest.raises(ProcessLookupError):
                os.kill(process_id, 0)

    starts: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        start = EngineClient._start
        patch.setattr(EngineClient, "_start", lambda client: starts.append(client) or start(client))
        run(use())
    assert len(starts) == 1


def test_a_loop_that_is_closed_under_an_answer_harms_no_other(tiny_path: Path, isolated: bool) -> None:  # noqa: F811
    model = AsyncZephyr(tiny_path, SETTINGS, isolated=isolated)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(model.load())
    pieces = model.stream(HELLO, Sampling(temperature=0))
    loop.run_until_complete(anext(pieces))
    loop.close()  # without ending its generators
    assert run(model.tokenize("the hen"))
    assert run(model.complete(HELLO, GREEDY)).finish.completion_tokens > 0
    run(model.close())
    del pieces


def test_a_chat(tiny_path: Path) -> None:  # noqa: F811
    async def use() -> None:
        async with AsyncZephyr() as bundled:
            chat = bundled.chat()
            assert (await chat.ask("What is the capital of France?")).text == "The capital of France is Paris."
            assert "Tokyo" in "".join([piece.text async for piece in chat.stream("and of Japan?")])
            assert len(chat.turns) == 4

    run(use())


def test_a_name_is_looked_up_by_the_load_and_beside_the_loop(
    tiny_path: Path,  # noqa: F811
    isolated: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked_up: list[tuple[str, threading.Thread]] = []
    may_end = threading.Event()

    def resolve(name: str, _settings: EngineSettings) -> Resolved:
        looked_up.append((name, threading.current_thread()))
        assert may_end.wait(30), "the loop stood still"
        return Resolved(tiny_path)

    monkeypatch.setattr("zephyr_local.model_store.library.resolve", resolve)

    async def use() -> None:
        model = AsyncZephyr("a-model", SETTINGS, isolated=isolated)
        assert looked_up == []
        loading = asyncio.create_task(model.load())
        while not looked_up:
            await asyncio.sleep(0.01)
        assert not loading.done()
        may_end.set()
        await loading
        ((name, thread),) = looked_up
        assert name == "a-model"
        assert thread is not threading.main_thread()
        assert (await model.complete(HELLO, GREEDY)).text
        await model.close()

    run(use())


@pytest.mark.parametrize("kind", [str, Path])
def test_a_relative_path_is_of_the_folder_where_it_was_given(
    tiny_path: Path,  # noqa: F811
    tmp_path: Path,
    kind: Callable[[str], str | Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tiny_path.parent)
    model = AsyncZephyr(kind(tiny_path.name), SETTINGS)
    monkeypatch.chdir(tmp_path)

    async def use() -> None:
        async with model:
            assert (await model.complete(HELLO, GREEDY)).text

    run(use())


@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
def test_a_load_after_a_crash_loads_again(tiny_path: Path) -> None:  # noqa: F811
    async def use() -> None:
        shares: list[float] = []
        crashes: list[EngineCrashed] = []
        model = AsyncZephyr(tiny_path, SETTINGS, on_progress=shares.append)
        assert not model.is_running
        async with model:
            model.on_crash = crashes.append
            assert model.is_running
            first = model.engine_process_id
            assert first is not None
            os.kill(first, signal.SIGKILL)
            while not crashes:
                await asyncio.sleep(0.01)
            assert (model.is_running, model.engine_process_id) == (False, None)
            shares.clear()
            await model.load()
            await asyncio.sleep(0)
            assert shares
            assert shares[-1] == 1.0
            second = model.engine_process_id
            assert second not in (None, first)
            shares.clear()
            await model.load()  # it runs
            assert (model.engine_process_id, shares) == (second, [])
            assert (await model.complete(HELLO, GREEDY)).text
        assert not model.is_running
        assert [crash.signal for crash in crashes] == ["SIGKILL"]

    run(use())


def test_what_a_cancel_raises_on_the_thread_of_a_load_is_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    """A BaseException would end the threads of qasync's executor, and nobody would hear of the load's end."""
    raised: list[BaseException] = []

    def load(_client: EngineClient, on_progress: Callable[[float], object]) -> None:
        try:
            while True:
                on_progress(0.5)
                time.sleep(0.01)
        except BaseException as error:
            raised.append(error)
            raise

    async def use() -> None:
        shares: list[float] = []
        loading = asyncio.create_task(AsyncZephyr(on_progress=shares.append).load())
        while not shares:
            await asyncio.sleep(0.01)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading

    monkeypatch.setattr(EngineClient, "load", load)
    run(use())
    assert len(raised) == 1
    assert isinstance(raised[0], Exception)
