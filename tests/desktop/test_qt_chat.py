"""ChatModel: the turns as rows, by the smallest changes, while Qt's own tester watches that it keeps Qt's rules."""
# ruff: noqa: F811 — fixtures are imported, and named as parameters

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.desktop.qt_watching import (
    BABBLE,
    FRANCE,
    PARIS,
    Heard,
    QtCore,
    application,  # noqa: F401 — a fixture
    at_once,
    destroy,
    engine_of,
    heard,  # noqa: F401 — a fixture
    loaded,  # noqa: F401 — a fixture
    ready,  # noqa: F401 — a fixture
)
from tests.engine.conftest import slow_path  # noqa: F401 — a fixture
from zephyr_local import EngineSettings, Message, Sampling
from zephyr_local.desktop.qt import ChatModel, ZephyrModel
from zephyr_local.desktop.qt_binding import BINDING
from zephyr_local.desktop.qt_chat import ChatRow, ChatRows

LONG = "x " * 3000
QtTest: Any = importlib.import_module(f"{BINDING}.QtTest")


class Watched:
    """A ChatModel under Qt's tester, with the changes that it told."""

    def __init__(self, model: ZephyrModel | None) -> None:
        self.chat = ChatModel(model)
        self.tester = QtTest.QAbstractItemModelTester(
            self.chat, QtTest.QAbstractItemModelTester.FailureReportingMode.Warning
        )
        self.changes: list[tuple[Any, ...]] = []
        self.chat.rowsInserted.connect(lambda _, first, last: self.changes.append(("inserted", first, last)))
        self.chat.rowsRemoved.connect(lambda _, first, last: self.changes.append(("removed", first, last)))
        self.chat.modelReset.connect(lambda: self.changes.append(("reset",)))
        self.chat.dataChanged.connect(
            lambda first, last, roles: self.changes.append(("changed", first.row(), last.row(), set(roles)))
        )

    def rows(self) -> list[tuple[str, str, str]]:
        roles = (ChatModel.Role.RoleRole, ChatModel.Role.TextRole, ChatModel.Role.StateRole)
        return [
            tuple(self.chat.data(self.chat.index(row), role) for role in roles)  # type: ignore[misc]
            for row in range(self.chat.rowCount())
        ]

    def take(self) -> list[tuple[Any, ...]]:
        """What has changed since, text that grows apart."""
        changes, self.changes = self.changes, []
        return [change[:3] for change in changes if change[:1] != ("changed",) or change[3] != TEXT_ROLES]


TEXT_ROLES = {int(QtCore.Qt.ItemDataRole.DisplayRole), int(ChatModel.Role.TextRole)}


@pytest.fixture(autouse=True)
def complaints() -> Iterator[list[str]]:
    """What Qt has said, which must be nothing."""
    said: list[str] = []
    before = QtCore.qInstallMessageHandler(lambda kind, context, text: said.append(text))
    yield said
    QtCore.qInstallMessageHandler(before)
    assert said == []


@pytest.fixture
def watched(ready: Heard) -> Watched:
    return Watched(ready.model)


def stop_after_text(heard: Heard) -> None:
    """Until the end of an answer that was begun."""
    heard.until("piece")
    heard.model.stop()
    heard.until("finished")


def test_rows_are_there_from_the_question_on(watched: Watched, ready: Heard) -> None:
    assert watched.rows() == []
    ready.model.ask(FRANCE)
    assert watched.rows() == [("user", FRANCE, "whole"), ("assistant", "", "writing")]
    assert watched.changes == [("inserted", 0, 1)]
    ready.until("piece")
    text = watched.rows()[1][1]
    assert text
    assert PARIS.startswith(text)
    ready.until("finished")
    assert watched.rows() == [("user", FRANCE, "whole"), ("assistant", PARIS, "whole")]
    texts = [change for change in watched.changes if change[0] == "changed"]
    assert {change[1:3] for change in texts} == {(1, 1)}
    assert watched.take() == [("inserted", 0, 1), ("changed", 1, 1)]
    ready.model.ask("and of Japan?")
    ready.answer()
    assert watched.take() == [("inserted", 2, 3), ("changed", 3, 3)]
    assert [row[:2] for row in watched.rows()] == [(turn.role, turn.content) for turn in ready.model.turns]


def test_an_answer_that_is_cut_and_given_again(watched: Watched, ready: Heard) -> None:
    ready.model.ask("hello", BABBLE)
    stop_after_text(ready)
    first = watched.rows()
    assert first[1] == ("assistant", ready.model.turns[1].content, "cut")
    ready.model.ask(FRANCE)
    ready.answer()
    assert [row[2] for row in watched.rows()] == ["whole", "cut", "whole", "whole"]
    watched.take()
    ready.model.regenerate()
    assert watched.rows()[3] == ("assistant", "", "writing")
    ready.answer()
    assert watched.take() == [("changed", 3, 3)] * 2
    assert watched.rows()[:2] == first
    assert watched.rows()[3][2] == "whole"


def test_an_answer_that_reached_a_limit_goes_on(watched: Watched, ready: Heard) -> None:
    ready.model.ask(FRANCE, Sampling(temperature=0, max_tokens=2))
    begun, _ = ready.answer()
    assert watched.rows()[1] == ("assistant", begun, "cut")
    with at_once(ready.model):
        ready.model.continue_answer()
        assert watched.rows()[1] == ("assistant", begun, "writing")
        ready.model.stop()  # before anything comes
    ready.answer()
    assert watched.rows()[1][2] == "cut"
    ready.model.continue_answer()
    rest, _ = ready.answer()
    assert watched.rows()[1] == ("assistant", begun + rest, "whole")
    assert not {"inserted", "removed"} & {change[0] for change in watched.take()[1:]}


def test_a_question_that_is_edited_takes_what_followed_away(watched: Watched, ready: Heard) -> None:
    for question in (FRANCE, "and of Japan?"):
        ready.model.ask(question)
        ready.answer()
    watched.take()
    ready.model.edit(0, "What is the capital of Italy?")
    assert watched.rows() == [("user", "What is the capital of Italy?", "whole"), ("assistant", "", "writing")]
    assert watched.take() == [("removed", 2, 3), ("changed", 0, 1)]
    ready.answer()
    assert watched.rows()[1] == ("assistant", ready.model.turns[1].content, "whole")


def test_an_edit_that_is_stopped_at_once_brings_all_back(watched: Watched, ready: Heard) -> None:
    ready.model.ask(FRANCE, Sampling(temperature=0, max_tokens=2))
    ready.answer()
    ready.model.ask("and of Japan?")
    ready.answer()
    before = watched.rows()
    assert before[1][2] == "cut"
    with at_once(ready.model):
        ready.model.edit(0, "What is the capital of Italy?")
        ready.model.stop()
    ready.answer()
    assert watched.rows() == before


def test_a_question_that_nothing_came_of_goes_again(heard: Heard, slow_path: Path) -> None:
    watched = Watched(heard.model)
    heard.model.load(slow_path, EngineSettings(n_ctx=8192, n_threads=1))
    heard.model.ask(LONG)
    assert len(watched.rows()) == 2
    heard.until("prefill_progress")
    heard.model.stop()
    heard.until("finished")
    assert watched.rows() == []
    assert watched.take() == [("inserted", 0, 1), ("removed", 0, 1)]


def test_failures(heard: Heard, tmp_path: Path) -> None:
    watched = Watched(heard.model)
    heard.model.load(tmp_path / "no-such.gguf")
    heard.model.ask(FRANCE)
    heard.until("question_returned")
    heard.until("failed")
    assert watched.rows() == []
    heard.model.regenerate()  # of nothing
    heard.until("failed")
    heard.model.load()
    heard.model.continue_answer()
    heard.until("loaded")
    heard.until("failed")
    heard.model.ask(FRANCE)
    heard.answer()
    heard.model.edit(1, "an answer, not a question")
    heard.until("failed")
    heard.model.edit(7, "nothing")
    heard.until("failed")
    assert watched.rows() == [("user", FRANCE, "whole"), ("assistant", PARIS, "whole")]


def test_a_crash_leaves_what_came(watched: Watched, ready: Heard) -> None:
    ready.model.ask("hello", BABBLE)
    ready.until("piece")
    os.kill(engine_of(ready.model), signal.SIGKILL)
    ready.until("failed")
    assert watched.rows()[1] == ("assistant", ready.model.turns[1].content, "cut")
    ready.model.ask(FRANCE)
    ready.answer()
    assert [row[2] for row in watched.rows()] == ["whole", "cut", "whole", "whole"]


def test_other_chats(watched: Watched, ready: Heard, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    ready.model.ask(FRANCE, Sampling(temperature=0, max_tokens=2))
    ready.answer()
    ready.model.save(path)
    ready.until("saved")
    cut = watched.rows()
    watched.take()
    ready.model.new_chat()
    ready.model.ask("and of Japan?")  # in the new one, which is not told of yet
    ready.answer()
    assert watched.rows() == [(turn.role, turn.content, "whole") for turn in ready.model.turns]
    assert len(watched.rows()) == 2
    ready.model.resume(path)
    ready.until("chat_changed")
    assert watched.rows() == [(role, text, "whole") for role, text, _ in cut]


def test_a_close_in_an_answer(heard: Heard) -> None:
    watched = Watched(heard.model)
    heard.model.load()
    heard.model.ask("hello", BABBLE)
    heard.until("piece")
    heard.model.close()
    heard.until("closed")
    assert watched.rows()[1] == ("assistant", heard.model.turns[1].content, "cut")


def test_a_model_is_given_later_and_taken_away(ready: Heard) -> None:
    ready.model.ask("hello", BABBLE)
    stop_after_text(ready)
    ready.model.ask("hello", BABBLE)
    ready.until("piece")
    watched = Watched(None)
    assert watched.rows() == []
    watched.chat.model = ready.model
    assert watched.chat.model is ready.model
    assert [row[2] for row in watched.rows()] == ["whole", "cut", "whole", "writing"]
    another = Watched(ready.model)
    assert another.rows() == watched.rows()
    watched.chat.model = None
    assert watched.take() == [("inserted", 0, 3), ("removed", 0, 3)]
    destroy(another.chat)
    ready.until("piece")
    ready.model.stop()
    ready.until("finished")
    assert watched.rows() == []


def test_a_model_that_is_destroyed_leaves_the_rows(ready: Heard) -> None:
    model = ZephyrModel()
    watched = Watched(model)
    model.ask(FRANCE)
    destroy(model)
    assert len(watched.rows()) == 2
    watched.chat.model = ready.model
    assert watched.rows() == []


@pytest.mark.usefixtures("application")
def test_roles() -> None:
    chat = ChatModel()
    names = {int(role): bytes(name).decode() for role, name in chat.roleNames().items()}
    assert names == {int(role): role.name.removesuffix("Role").lower() for role in ChatModel.Role}
    assert chat.data(chat.index(0)) is None
    assert chat.rowCount() == 0


def test_text_is_displayed(heard: Heard) -> None:
    watched = Watched(heard.model)
    heard.model.ask(FRANCE)
    index = watched.chat.index(0)
    assert watched.chat.data(index) == watched.chat.data(index, ChatModel.Role.TextRole) == FRANCE
    assert watched.chat.data(index, int(QtCore.Qt.ItemDataRole.DecorationRole)) is None
    assert watched.chat.rowCount(index) == 0
    heard.until("failed")


def test_an_answer_that_ends_as_the_one_before() -> None:
    """The same words do not make it the same answer."""
    rows = ChatRows()
    turns = (Message("user", "a"), Message("assistant", "b"))
    rows.ask("a")
    rows.add("b")
    rows.end(turns, is_cut=True)
    assert rows.rows[1] == ChatRow("assistant", "b", "cut")
    rows.regenerate()
    rows.add("b")
    rows.end(turns, is_cut=False)
    assert rows.rows[1] == ChatRow("assistant", "b", "whole")
    rows.continue_answer()
    rows.end(turns, is_cut=True)  # stopped before anything came
    assert rows.rows[1] == ChatRow("assistant", "b", "whole")
