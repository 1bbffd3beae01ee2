"""ModelWorker: every wish returns at once and ends with one event, whatever happens to it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.desktop.watching import MOST_S, Watched, is_gone
from tests.engine.conftest import SETTINGS, slow_path, tiny_path  # noqa: F401 — fixtures
from zephyr_local import (
    Dropped,
    EngineCrashed,
    EngineError,
    EngineSettings,
    InvalidInputError,
    Message,
    ModelNotFoundError,
    Sampling,
)
from zephyr_local.desktop import events
from zephyr_local.desktop.worker import ModelWorker

FRANCE = "What is the capital of France?"
PARIS = "The capital of France is Paris."
BABBLE = Sampling(temperature=100, top_k=0, top_p=1, seed=1)
LONG = "x " * 3000


@pytest.fixture
def watched() -> Iterator[Watched]:
    watched = Watched()
    yield watched
    watched.close()


@pytest.fixture
def ready(watched: Watched) -> Watched:
    """With zephyr-tiny loaded."""
    watched.worker.load()
    watched.until(events.Loaded)
    return watched


def engine_of(watched: Watched) -> int:
    process_id = watched.worker.engine_process_id
    assert process_id is not None
    return process_id


def test_a_load_and_an_answer(watched: Watched) -> None:
    watched.worker.load()
    before, loaded = watched.until(events.Loaded)
    shares = [event.share for event in before if isinstance(event, events.LoadProgress)]
    assert len(shares) == len(before)
    assert shares == sorted(shares)
    assert (loaded.model_name, loaded.n_ctx) == ("zephyr-tiny", 1024)
    watched.worker.ask(FRANCE)
    assert watched.worker.is_answering
    text, end = watched.answer()
    assert not watched.worker.is_answering
    assert text == PARIS
    assert isinstance(end, events.Finished)
    assert end.reason == "stop"
    assert end.finish is not None
    assert end.finish.completion_tokens > 4
    assert end.turns == (Message("user", FRANCE), Message("assistant", PARIS))
    assert end.question is None


def test_a_question_waits_for_the_load(watched: Watched) -> None:
    watched.worker.load()
    watched.worker.ask(FRANCE)
    before, _ = watched.until(events.Loaded)
    assert not any(isinstance(event, events.TextArrived) for event in before)
    assert watched.answer()[0] == PARIS


def test_without_a_load_there_is_nobody_to_ask(watched: Watched) -> None:
    watched.worker.ask(FRANCE)
    _, end = watched.answer()
    assert isinstance(end, events.Failed)
    assert isinstance(end.error, InvalidInputError)
    assert end.question == FRANCE


def test_a_second_question_is_refused_while_the_first_is_answered(ready: Watched) -> None:
    ready.worker.ask(FRANCE)
    for wish in (lambda: ready.worker.ask("and?"), ready.worker.regenerate, ready.worker.new_chat):
        with pytest.raises(InvalidInputError, match="still being given"):
            wish()
    assert ready.answer()[0] == PARIS


def test_questions_are_asked_in_one_chat_and_again(ready: Watched) -> None:
    ready.worker.ask(FRANCE)
    ready.answer()
    ready.worker.ask("and of Japan?")
    text, _ = ready.answer()
    assert "Tokyo" in text
    ready.worker.regenerate()
    again, end = ready.answer()
    assert again == text
    assert len(end.turns) == 4
    ready.worker.edit(2, "and of Italy?")
    text, end = ready.answer()
    assert "Rome" in text
    assert len(end.turns) == 4
    ready.worker.ask("hello", Sampling(temperature=0, max_tokens=2))
    begun, end = ready.answer()
    assert isinstance(end, events.Finished)
    assert end.reason == "length"
    ready.worker.continue_answer()
    rest, end = ready.answer()
    assert end.turns[-1].content == begun + rest


def test_a_wrong_question_fails_and_the_next_is_answered(ready: Watched) -> None:
    ready.worker.ask(7)  # type: ignore[arg-type]
    _, end = ready.answer()
    assert isinstance(end, events.Failed)
    assert isinstance(end.error, InvalidInputError)
    ready.worker.ask(FRANCE)
    assert ready.answer()[0] == PARIS


def test_stop_ends_an_answer_and_keeps_what_came(ready: Watched) -> None:
    ready.worker.ask("hello", BABBLE)
    _, first = ready.until(events.TextArrived)
    ready.worker.stop()
    rest, end = ready.answer()
    assert isinstance(end, events.Finished)
    assert (end.reason, end.finish, end.question) == ("cancelled", None, None)
    assert end.turns == (Message("user", "hello"), Message("assistant", first.text + rest))
    ready.worker.ask(FRANCE)
    assert "Paris" in ready.answer()[0]


def test_stop_ends_the_reading_of_a_chat_and_gives_the_question_back(
    watched: Watched,
    slow_path: Path,  # noqa: F811
) -> None:
    watched.worker.load(slow_path, EngineSettings(n_ctx=8192, n_threads=1))
    watched.until(events.Loaded)
    watched.worker.ask(LONG)
    watched.until(events.PrefillProgress)
    watched.worker.stop()
    before, end = watched.until(events.Finished)
    assert not any(isinstance(event, events.TextArrived) for event in before)
    assert (end.reason, end.question, end.turns) == ("cancelled", LONG, ())


def test_stop_before_anything_has_begun_ends_the_question_and_the_load(watched: Watched) -> None:
    watched.worker.load()
    watched.worker.ask(FRANCE)
    watched.worker.stop()
    ends = [watched.until(events.Finished, events.LoadStopped)[1] for _ in range(2)]
    assert {type(end) for end in ends} == {events.Finished, events.LoadStopped}
    assert all(end.question == FRANCE for end in ends if isinstance(end, events.Finished))
    watched.worker.stop()  # nothing
    watched.no_more()


def test_what_is_no_model_is_refused_at_once(watched: Watched) -> None:
    with pytest.raises(InvalidInputError, match="int"):
        watched.worker.load(3)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="settings"):
        watched.worker.load(None, {"n_ctx": 512})  # type: ignore[arg-type]
    watched.no_more()


def test_stop_ends_a_load(watched: Watched, slow_path: Path) -> None:  # noqa: F811
    watched.worker.load(slow_path)
    watched.worker.stop()
    watched.until(events.LoadStopped)
    watched.worker.ask(FRANCE)
    _, end = watched.answer()
    assert isinstance(end, events.Failed)
    assert "stopped" in end.error.problem
    watched.worker.restart()
    watched.until(events.Loaded)


def test_stop_does_not_wait_for_a_name_that_is_looked_up(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    looking, found = threading.Event(), threading.Event()

    def resolve(*_: object) -> None:
        looking.set()
        assert found.wait(MOST_S)
        raise ModelNotFoundError("it is not here", "Pull it")

    monkeypatch.setattr("zephyr_local.model_store.library.resolve", resolve)
    watched.worker.load("some-model")
    assert looking.wait(MOST_S)
    watched.worker.stop()
    watched.until(events.LoadStopped)
    watched.worker.load()
    watched.until(events.Loaded)
    found.set()
    watched.no_more()


def test_a_load_that_fails(watched: Watched, tmp_path: Path) -> None:
    watched.worker.load(tmp_path / "no-such.gguf")
    watched.worker.ask(FRANCE)
    _, of_load = watched.until(events.Failed)
    assert isinstance(of_load.error, ModelNotFoundError)
    assert of_load.question is None
    _, of_answer = watched.until(events.Failed)
    assert of_answer.error is of_load.error
    assert of_answer.question == FRANCE
    watched.worker.load()
    watched.until(events.Loaded)


def test_a_name_is_looked_up_by_the_load(watched: Watched) -> None:
    watched.worker.load("no-model-is-called-so")
    _, failed = watched.until(events.Failed)
    assert isinstance(failed.error, ModelNotFoundError)


def test_another_model_takes_the_chat_over(ready: Watched, tiny_path: Path) -> None:  # noqa: F811
    ready.worker.ask(FRANCE)
    _, end = ready.answer()
    first = engine_of(ready)
    ready.worker.load(tiny_path, SETTINGS)
    _, loaded = ready.until(events.Loaded)
    assert loaded.n_ctx == SETTINGS.n_ctx
    assert is_gone(first)
    ready.worker.ask("the hen", Sampling(temperature=0, max_tokens=3))
    _, after = ready.answer()
    assert after.turns[:2] == end.turns
    assert len(after.turns) == 4


def test_a_load_stops_the_answer_and_the_load_before(ready: Watched, slow_path: Path) -> None:  # noqa: F811
    ready.worker.ask("hello", BABBLE)
    ready.worker.load(slow_path)
    ready.worker.load()
    _, end = ready.until(events.Finished)
    assert end.reason == "cancelled"
    ready.until(events.LoadStopped)
    _, loaded = ready.until(events.Loaded)
    assert loaded.model_name == "zephyr-tiny"


def test_an_edit_that_nothing_comes_of_is_given_back(ready: Watched) -> None:
    ready.worker.ask(FRANCE)
    before = ready.answer()[1].turns
    ready.worker.edit(0, "and of Japan?")
    ready.worker.stop()
    _, end = ready.answer()
    assert (end.question, end.turns) == ("and of Japan?", before)


def test_a_crash_in_an_answer(ready: Watched) -> None:
    ready.worker.ask("hello", BABBLE)
    ready.until(events.TextArrived)
    os.kill(engine_of(ready), signal.SIGKILL)
    _, end = ready.answer()
    assert isinstance(end, events.Failed)
    assert isinstance(end.error, EngineCrashed)
    assert end.error.signal == "SIGKILL"
    ready.worker.ask(FRANCE)
    before_loaded, _ = ready.until(events.Loaded)
    assert all(isinstance(event, (events.LoadProgress, events.Crashed)) for event in before_loaded)
    assert "Paris" in ready.answer()[0]


def test_a_crash_while_nobody_waits(ready: Watched) -> None:
    os.kill(engine_of(ready), signal.SIGKILL)
    _, crashed = ready.until(events.Crashed)
    assert crashed.error.signal == "SIGKILL"
    ready.worker.restart()
    ready.until(events.Loaded)
    ready.worker.restart()  # it runs
    ready.no_more()
    ready.worker.ask(FRANCE)
    assert ready.answer()[0] == PARIS


def test_a_close_is_no_crash(ready: Watched) -> None:
    process_id = engine_of(ready)
    ready.worker.close()
    before, _ = ready.until(events.Closed)
    assert before == []
    assert is_gone(process_id)
    ready.worker.close()
    ready.worker.stop()
    for wish in (lambda: ready.worker.ask(FRANCE), ready.worker.load, lambda: ready.worker.save("chat.json")):
        with pytest.raises(EngineError, match="closed"):
            wish()


def test_a_close_in_the_middle_of_everything(tmp_path: Path, slow_path: Path) -> None:  # noqa: F811
    before = {thread.ident for thread in threading.enumerate()}
    watched = Watched()
    watched.worker.load()
    watched.until(events.Loaded)
    process_id = engine_of(watched)
    watched.worker.ask("hello", BABBLE)
    watched.until(events.TextArrived)
    watched.close()
    assert is_gone(process_id, within_s=0.5)  # it was waited for
    _, end = watched.until(events.Finished)
    assert end.reason == "cancelled"
    loading = Watched()
    loading.worker.load(slow_path)
    loading.worker.ask(FRANCE)
    loading.close()
    kinds = [type(event) for event in loading.until(events.Closed)[0]]
    assert kinds.count(events.Finished) == 1
    assert kinds.count(events.LoadStopped) == 1
    left = {thread for thread in threading.enumerate() if thread.ident not in before}
    assert {thread.name for thread in left if not thread.daemon} == set()
    assert not any(thread.name == "zephyr-local-desktop" for thread in left)


def test_a_chat_is_saved_and_resumed(ready: Watched, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    ready.worker.ask(FRANCE)
    _, end = ready.answer()
    ready.worker.save(path)
    _, saved = ready.until(events.ChatSaved)
    assert saved.path == str(path)
    ready.worker.new_chat(system="Answer.")
    _, opened = ready.until(events.ChatOpened)
    assert opened.turns == ()
    ready.worker.resume(path)
    _, opened = ready.until(events.ChatOpened)
    assert opened.turns == end.turns
    ready.worker.ask("and of Japan?")
    assert "Tokyo" in ready.answer()[0]


def test_what_is_saved_is_the_chat_of_that_moment(ready: Watched, tmp_path: Path) -> None:
    ready.worker.ask(FRANCE)
    ready.answer()
    ready.worker.save(tmp_path / "before.json")
    ready.worker.new_chat()
    ready.worker.save(tmp_path / "after.json")
    ready.close()
    assert PARIS in (tmp_path / "before.json").read_text()
    assert PARIS not in (tmp_path / "after.json").read_text()


def test_a_chat_is_resumed_before_a_model_is_there(watched: Watched, ready: Watched, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    ready.worker.ask(FRANCE)
    ready.answer()
    ready.worker.save(path)
    ready.until(events.ChatSaved)
    late = Watched()
    late.worker.resume(path)
    late.until(events.ChatOpened)
    late.worker.load()
    late.worker.ask("and of Japan?")
    late.until(events.Loaded)
    text, end = late.answer()
    assert "Tokyo" in text
    assert len(end.turns) == 4
    late.close()


def test_what_cannot_be_saved_or_resumed_leaves_the_chat(ready: Watched, tmp_path: Path) -> None:
    ready.worker.ask(FRANCE)
    ready.answer()
    ready.worker.save(tmp_path / "no-such-folder" / "chat.json")
    _, failed = ready.until(events.Failed)
    assert len(failed.turns) == 2
    (tmp_path / "other.json").write_text("{}")
    ready.worker.resume(tmp_path / "other.json")
    _, failed = ready.until(events.Failed)
    assert isinstance(failed.error, InvalidInputError)
    assert len(failed.turns) == 2
    ready.worker.ask("and of Japan?")
    assert "Tokyo" in ready.answer()[0]


def test_turns_that_are_no_longer_shown_are_told(watched: Watched) -> None:
    watched.worker.load(None, EngineSettings(n_ctx=512))
    watched.until(events.Loaded)
    came: list[events.Event] = []
    for _ in range(4):
        watched.worker.ask("hello " * 75)
        before, end = watched.until(events.Finished, events.Failed)
        assert isinstance(end, events.Finished)
        came += before
    assert any(isinstance(event, Dropped) for event in came)


def test_a_consumer_that_fails_does_not_end_the_worker() -> None:
    seen: list[events.Event] = []
    finished = threading.Event()

    def deliver(event: events.Event) -> None:
        seen.append(event)
        if isinstance(event, events.Finished):
            finished.set()
        raise RuntimeError("of the application")

    worker = ModelWorker(deliver)
    worker.load()
    worker.ask(FRANCE)
    assert finished.wait(MOST_S)
    worker.close()
    assert worker.wait_closed(MOST_S)
    assert isinstance(seen[-1], events.Closed)
