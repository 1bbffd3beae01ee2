"""The journal of a terminal chat where its store fails: the chat goes on, and catches up."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.scripted_model import Script, ScriptedModel
from zephyr_local.chat import Chat
from zephyr_local.chat_file import ChatRecord
from zephyr_local.chat_tree import ChatTree
from zephyr_local.errors import EngineError
from zephyr_local.repl.kept_journal import KeptJournal
from zephyr_local.transcripts import store as store_module
from zephyr_local.transcripts.store import ChatStore
from zephyr_local.transcripts.stored_chat import ChatOrigin, StoredChat

BROKE = EngineError("the engine ended", "Ask again")


class Kept:
    """A chat with its journal, in a store that can be broken and mended."""

    def __init__(self, path: Path, *answers: Script) -> None:
        self.path = path
        self.store = ChatStore(path)
        record = ChatRecord("Be brief.", "stop", None, ChatTree())
        self.stored = StoredChat.new(self.store, record, ChatOrigin())
        self.chat = Chat.of(ScriptedModel(*answers), record)
        self.told: list[str] = []
        self.journal = KeptJournal(self.stored, lambda: self.chat.record, self.told.append)
        self.chat.journal = self.journal

    def execute(self, statement: str) -> None:
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute(statement)

    def break_store(self) -> None:
        self.execute("ALTER TABLE turns RENAME TO away")

    def mend_store(self) -> None:
        self.execute("ALTER TABLE away RENAME TO turns")

    def require_whole(self, chat: int = 1) -> None:
        """The store has what the chat has."""
        with ChatStore(self.path) as other:
            record = other.record(chat)
        assert record == self.chat.record


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    kept = Kept(tmp_path / "chats.db", ["Pa", "ris."], ["Ro", "me."], ["To", "kyo."], ["Bern."])
    yield kept
    kept.store.close()


def test_where_the_store_works_nothing_is_told(kept: Kept) -> None:
    kept.chat.ask("France?")
    kept.journal.catch_up()
    kept.journal.close()
    assert kept.told == []
    kept.require_whole()


def test_a_failure_is_told_once_and_caught_up_with(kept: Kept) -> None:
    kept.chat.ask("France?")
    kept.break_store()
    kept.chat.ask("Italy?")
    kept.chat.undo()
    kept.chat.system = "Be kind."
    kept.chat.ask("Japan?")
    assert len(kept.told) == 1
    assert kept.told[0].startswith("The chat is not being saved: the chats in ")
    assert kept.journal.is_behind
    kept.mend_store()
    kept.chat.ask("Switzerland?")
    assert kept.told[1:] == ["The chat is saved again, all of it."]
    assert not kept.journal.is_behind
    kept.require_whole()
    kept.chat.go_to(None)
    kept.require_whole()


def test_a_chat_that_never_was_in_the_store_comes_into_it(kept: Kept) -> None:
    kept.break_store()
    kept.chat.ask("France?")
    assert kept.stored.id is None
    kept.journal.hold_with(ChatOrigin("/models/a.gguf", None, (("top_k", 7),)))
    kept.mend_store()
    kept.chat.ask("Italy?")
    assert kept.stored.id == 1
    assert kept.stored.title == "France?"
    kept.require_whole()
    kept.journal.close()
    assert StoredChat.resume(kept.store, 1)[0].origin == ChatOrigin("/models/a.gguf", None, (("top_k", 7),))


@pytest.mark.parametrize("piece", [1, 2])
def test_a_failure_in_the_middle_of_an_answer(kept: Kept, piece: int) -> None:
    kept.chat.ask("France?")
    with closing(kept.chat.stream("Italy?")) as pieces:
        for number, _ in enumerate(pieces, 1):
            if number == piece:
                kept.execute("ALTER TABLE pieces RENAME TO away")
    assert len(kept.told) == 1
    kept.execute("ALTER TABLE away RENAME TO pieces")
    kept.journal.catch_up()
    kept.require_whole()
    assert kept.chat.turns[-1].content == "Rome."


def test_a_store_that_another_process_writes_to_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_BUSY_MS", 50)
    kept = Kept(tmp_path / "chats.db", ["Paris."], ["Rome."])
    with closing(sqlite3.connect(kept.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        kept.chat.ask("France?")
        assert "database is locked" in kept.told[0]
        other.execute("ROLLBACK")
    kept.chat.ask("Italy?")
    kept.require_whole()
    kept.store.close()


def test_a_question_that_nothing_came_of_does_not_stand_before_the_next_answer(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "chats.db", ["Paris."], [BROKE], ["Rome."])
    kept.chat.ask("France?")
    pieces = kept.chat.stream("Japan?")
    kept.execute("CREATE TRIGGER full BEFORE DELETE ON turns BEGIN SELECT RAISE(ABORT, 'full'); END")
    with pytest.raises(EngineError):
        next(pieces)
    assert kept.journal.is_behind
    kept.execute("DROP TRIGGER full")
    kept.chat.ask("Italy?")
    kept.require_whole()
    kept.store.close()


def test_a_first_question_that_nothing_came_of_leaves_no_chat(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "chats.db", [BROKE], ["Rome."])
    kept.execute("CREATE TRIGGER full BEFORE DELETE ON turns BEGIN SELECT RAISE(ABORT, 'full'); END")
    with pytest.raises(EngineError):
        kept.chat.ask("Japan?")
    assert kept.journal.is_behind
    kept.execute("DROP TRIGGER full")
    kept.journal.catch_up()
    assert kept.store.summaries() == []
    kept.chat.ask("Italy?")
    kept.require_whole(2)
    kept.store.close()


def test_what_could_not_be_saved_to_the_end_is_told(kept: Kept) -> None:
    kept.break_store()
    kept.chat.ask("France?")
    kept.journal.close()
    assert kept.told[-1] == "The chat could not be saved to its end."


def test_settings_that_could_not_be_saved_are_saved_later(kept: Kept) -> None:
    kept.chat.ask("France?")
    kept.execute("ALTER TABLE chats RENAME TO away")
    kept.journal.hold_with(ChatOrigin(None, None, (("top_k", 7),)))
    kept.execute("ALTER TABLE away RENAME TO chats")
    assert len(kept.told) == 1
    kept.journal.close()
    assert kept.told[1:] == ["The chat is saved again, all of it."]
    assert StoredChat.resume(kept.store, 1)[0].origin.sampling == (("top_k", 7),)
