"""ModelStatus: the state that an adapter shows, event by event."""

from __future__ import annotations

from collections import deque

import pytest

from zephyr_local import EngineCrashed, InvalidInputError, Message
from zephyr_local.desktop import events
from zephyr_local.desktop.status import ModelStatus, next_event

LOADED = events.Loaded("zephyr-tiny", 1024, ("a notice",))
CRASHED = events.Crashed(EngineCrashed("it ended", "Ask again", signal="SIGKILL"))
TURNS = (Message("user", "a"), Message("assistant", "b"))
ERROR = InvalidInputError("no", "Do")


def test_a_load_and_an_answer() -> None:
    status = ModelStatus()
    assert status.state == "empty"
    status.load_asked()
    assert status.state == "loading"
    status.take(events.LoadProgress(0.5))
    assert status.load_share == 0.5
    status.take(LOADED)
    assert (status.state, status.model_name, status.n_ctx, status.notices) == (
        *("ready", "zephyr-tiny", 1024),
        ("a notice",),
    )
    status.answer_asked()
    assert status.state == "answering"
    with pytest.raises(InvalidInputError):
        status.require_idle()
    status.take(events.Finished("stop", None, TURNS, None))
    assert (status.state, status.turns) == ("ready", TURNS)
    status.require_idle()
    status.close_asked()
    assert status.state == "closed"


def test_a_question_that_waits_for_the_load_is_being_answered() -> None:
    status = ModelStatus()
    status.load_asked()
    status.answer_asked()
    status.take(LOADED)
    assert status.state == "answering"


def test_a_load_that_takes_the_place_of_another() -> None:
    status = ModelStatus()
    status.load_asked()
    status.load_asked()
    status.take(events.LoadStopped(False))
    assert status.state == "loading"
    status.take(LOADED)
    assert status.state == "ready"


def test_a_load_that_fails_leaves_no_model() -> None:
    status = ModelStatus()
    status.load_asked()
    status.take(LOADED)
    status.load_asked()
    status.take(events.Failed("load", ERROR, TURNS, None))
    assert (status.state, status.last_error) == ("empty", ERROR)


def test_what_fails_beside_an_answer_does_not_end_it() -> None:
    status = ModelStatus()
    status.load_asked()
    status.take(LOADED)
    status.answer_asked()
    status.take(events.Failed("chat", ERROR, TURNS[:1], None))
    assert (status.state, status.turns) == ("answering", ())
    status.take(events.Failed("answer", ERROR, (), "a"))
    assert status.state == "ready"


def test_a_crash_lasts_until_a_load() -> None:
    status = ModelStatus()
    status.load_asked()
    status.take(LOADED)
    status.restart_asked()  # it runs
    assert status.state == "ready"
    status.take(CRASHED)
    assert (status.state, status.last_error) == ("crashed", CRASHED.error)
    status.restart_asked()
    assert status.state == "loading"
    status.take(LOADED)
    assert status.state == "ready"


def test_a_question_after_a_crash_loads_without_being_asked_to() -> None:
    status = ModelStatus()
    status.load_asked()
    status.take(LOADED)
    status.answer_asked()
    status.take(CRASHED)
    assert status.state == "answering"
    status.take(events.Failed("answer", CRASHED.error, (), "a"))
    assert status.state == "crashed"
    status.answer_asked()
    status.take(events.LoadProgress(0.1))
    status.take(LOADED)
    status.take(events.Finished("stop", None, TURNS, None))
    assert status.state == "ready"


def test_what_has_gathered_is_joined_where_nothing_stands_between() -> None:
    a, b, c = map(events.TextArrived, "abc")
    arrived: deque[events.Event] = deque([events.LoadProgress(0.1), events.LoadProgress(0.2), a, b, LOADED, c])
    came = []
    while arrived:
        came.append(next_event(arrived))
    assert came == [events.LoadProgress(0.2), events.TextArrived("ab"), LOADED, c]
