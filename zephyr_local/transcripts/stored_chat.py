"""A chat of the store that is open: its journal."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from sqlite3 import Connection
from typing import Any, Final

from zephyr_local.chat_file import ChatRecord
from zephyr_local.chat_fit import Policy
from zephyr_local.chat_types import Finish, Message
from zephyr_local.transcripts.store import ChatStore, StoredTurn, TurnState

MAX_TITLE_CHARS: Final = 60


@dataclass(frozen=True, slots=True)
class ChatOrigin:
    """With what a chat is held."""

    model: str | None = None
    """The file's path; None: the bundled one."""
    template: str | None = None
    """``zephyr`` or a file's path; None: the model's own."""
    sampling: tuple[tuple[str, Any], ...] = ()
    """Fields of ``Sampling`` that were set in the chat."""


class StoredChat:
    """The journal of a chat (:class:`zephyr_local.chat_journal.Journal`), which it has for itself until ``close``.

    A chat is in the store from its first question on. Calls raise ChatStoreError.
    """

    def __init__(self, store: ChatStore, origin: ChatOrigin, title: str = "") -> None:
        """Use :meth:`new` or :meth:`resume`."""
        self._store = store
        self._origin, self._title, self._given_title = origin, title, title
        self._settings: tuple[str | None, Policy, int | None] = (None, "stop", None)
        self._next = 0  # the next node's number
        self._node, self._number = 0, 0  # the answer that is being written, and its next piece's number
        self.id: int | None = None
        """The chat's number; None: nothing was asked yet."""
        self.unanswered: str | None = None
        """A question that no piece of an answer came to before its process ended; the store has it no more."""
        self.model_name: str | None = None
        """What the model that answers now calls itself."""

    @classmethod
    def new(
        cls,
        store: ChatStore,
        record: ChatRecord,
        origin: ChatOrigin = ChatOrigin(),
        title: str = "",
        turns: Sequence[StoredTurn] = (),
    ) -> StoredChat:
        """A chat of its own, which may have turns already; of ``turns`` it has what a record does not tell of them."""
        chat = cls(store, origin, title)
        chat._settings = (record.system, record.policy, record.reserve_tokens)
        if record.tree.nodes:
            chat.sync(record, turns)
        return chat

    @classmethod
    def resume(cls, store: ChatStore, chat: int) -> tuple[StoredChat, ChatRecord]:
        """Go on with a chat: what a process that was killed left half written becomes an interrupted answer.

        Raises InvalidInputError where there is no such chat or another process has it open.
        """
        title = store.require(chat).title
        store.claim(chat)
        try:
            unanswered = _recover(store, chat)
            record = store.record(chat)
            ((model, template, sampling),) = store.rows(
                "SELECT model, template, sampling FROM chats WHERE id = ?", chat
            )
            origin = ChatOrigin(_path_of(model), _path_of(template), tuple(json.loads(sampling).items()))
            stored = cls(store, origin, title)
        except BaseException:
            store.let_go(chat)
            raise
        stored.id, stored.unanswered = chat, unanswered
        stored._settings = (record.system, record.policy, record.reserve_tokens)
        stored._next = len(record.tree.nodes)
        return stored, record

    @property
    def title(self) -> str:
        """What the person called it, else how its first question begins; empty before that."""
        return self._title

    @title.setter
    def title(self, title: str) -> None:
        self._title = self._given_title = title
        if self.id is not None:
            self._store.rename(self.id, title)

    @property
    def origin(self) -> ChatOrigin:
        return self._origin

    @origin.setter
    def origin(self, origin: ChatOrigin) -> None:
        self._origin = origin
        self._update("model = ?, template = ?, sampling = ?", *_origin_values(origin))

    def close(self) -> None:
        """Let other processes have the chat."""
        if self.id is not None:
            self._store.let_go(self.id)

    # --- the journal ---

    def begin(self, parent: int | None, question: Message | None, answer_start: str) -> None:
        now_s = time.time()
        node = self._next
        with self._writing(question.content if question is not None else "", now_s) as (connection, chat):
            if question is not None:
                _add_turn(connection, (chat, node, parent, "user", question.content, "whole", None, now_s))
                parent, node = node, node + 1
            answer = (chat, node, parent, "assistant", answer_start, "writing", self.model_name, now_s)
            _add_turn(connection, answer)
        self._node, self._number = node, 0

    def add(self, text: str) -> None:
        with self._store.writing() as connection:
            connection.execute("INSERT INTO pieces VALUES (?, ?, ?, ?)", (self.id, self._node, self._number, text))
            if self._number == 0:  # before, a kill leaves the branch on that was on
                connection.execute("UPDATE chats SET leaf = ? WHERE id = ?", (self._node, self.id))
        self._number += 1

    def end(self, kept: bool, finish: Finish | None) -> None:
        with self._store.writing() as connection:
            if kept:
                state: TurnState = "interrupted"
                if finish is not None and finish.reason != "cancelled":
                    state = "length" if finish.reason == "length" else "whole"
                _join_pieces(connection, self.id, self._node, state)
            else:
                _take_back(connection, self.id, self._node)
            is_empty = not connection.execute("SELECT count(*) FROM turns WHERE chat = ?", (self.id,)).fetchone()[0]
            if is_empty:
                connection.execute("DELETE FROM chats WHERE id = ?", (self.id,))
            connection.execute("UPDATE chats SET changed_s = ? WHERE id = ?", (time.time(), self.id))
        if kept:
            self._next = self._node + 1
        elif is_empty:
            self._forget()

    def select(self, leaf: int | None) -> None:
        self._update("leaf = ?, changed_s = ?", leaf, time.time())

    def drop(self, after: int, summary: str | None) -> None:
        if self.id is not None:
            with self._store.writing() as connection:
                _set_dropped(connection, self.id, after, summary)

    def configure(self, system: str | None, policy: Policy, reserve_tokens: int | None) -> None:
        self._settings = (system, policy, reserve_tokens)
        self._update("system = ?, policy = ?, reserve_tokens = ?", system, policy, reserve_tokens)

    def clear(self) -> None:
        if self.id is not None:
            with self._store.writing() as connection:
                connection.execute("UPDATE chats SET leaf = NULL WHERE id = ?", (self.id,))
                connection.execute("DELETE FROM turns WHERE chat = ?", (self.id,))
                connection.execute("DELETE FROM pieces WHERE chat = ?", (self.id,))
        self._next = 0

    def sync(self, record: ChatRecord, turns: Sequence[StoredTurn] = ()) -> None:
        """Write all of a chat that no answer is given in, as after calls that failed."""
        now_s, tree = time.time(), record.tree
        first = next((node.message.content for node in tree.nodes), "")
        self._settings = (record.system, record.policy, record.reserve_tokens)
        with self._writing(first, now_s) as (connection, chat):
            rows = connection.execute(
                "SELECT node, parent, content FROM turns WHERE chat = ? AND state != 'writing'", (chat,)
            )
            there = {node: (parent, content) for node, parent, content in rows}
            connection.execute("DELETE FROM pieces WHERE chat = ?", (chat,))
            connection.execute("DELETE FROM turns WHERE chat = ? AND node >= ?", (chat, len(tree.nodes)))
            for number, node in enumerate(tree.nodes):
                if there.get(number) != (node.parent, node.message.content):
                    connection.execute("DELETE FROM turns WHERE chat = ? AND node = ?", (chat, number))
                    message = node.message
                    model = self.model_name if message.role == "assistant" else None
                    how = ("whole", model, now_s)
                    if number < len(turns) and turns[number].message == message:
                        how = (turns[number].state, turns[number].model, turns[number].created_s)
                    _add_turn(connection, (chat, number, node.parent, message.role, message.content, *how))
            for after, summary in tree.cuts.items():
                _set_dropped(connection, chat, after, summary)
            connection.execute(
                "UPDATE chats SET leaf = ?, system = ?, policy = ?, reserve_tokens = ? WHERE id = ?",
                (tree.leaf, *self._settings, chat),
            )
        self._next = len(tree.nodes)

    @contextlib.contextmanager
    def _writing(self, first_question: str, now_s: float) -> Iterator[tuple[Connection, int]]:
        """A transaction, and the chat's number; the chat is put into the store where it is not there yet."""
        known = self.id
        try:
            with self._store.writing() as connection:
                if self.id is None:
                    self._insert(connection, self._title or title_of(first_question), now_s)
                assert self.id is not None
                yield connection, self.id
        except BaseException:
            if known is None:
                self._forget()
            raise

    def _insert(self, connection: Connection, title: str, now_s: float) -> None:
        row = connection.execute(
            "INSERT INTO chats (title, created_s, changed_s, system, policy, reserve_tokens, model, template, sampling)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (title, now_s, now_s, *self._settings, *_origin_values(self._origin)),
        )
        assert row.lastrowid is not None
        self._store.claim(row.lastrowid)
        self.id = row.lastrowid
        self._title = title

    def _forget(self) -> None:
        """The chat is in the store no more."""
        if self.id is not None:
            self._store.let_go(self.id)
            self.id, self._title, self._next = None, self._given_title, 0

    def _update(self, assignments: str, *values: object) -> None:
        if self.id is not None:
            with self._store.writing() as connection:
                connection.execute(f"UPDATE chats SET {assignments} WHERE id = ?", (*values, self.id))


def title_of(question: str) -> str:
    """How a question begins, on one line."""
    line = " ".join(question.split())
    if len(line) <= MAX_TITLE_CHARS:
        return line or "(empty)"
    return line[: MAX_TITLE_CHARS - 1].rstrip() + "…"


def _path_value(path: str | None) -> str | bytes | None:
    """A path as SQLite takes it: bytes where it is no UTF-8."""
    try:
        return None if path is None else path.encode() and path
    except UnicodeEncodeError:
        return os.fsencode(path or "")


def _path_of(value: str | bytes | None) -> str | None:
    return os.fsdecode(value) if value is not None else None


def _origin_values(origin: ChatOrigin) -> tuple[str | bytes | None, str | bytes | None, str]:
    return _path_value(origin.model), _path_value(origin.template), json.dumps(dict(origin.sampling))


def _add_turn(connection: Connection, turn: tuple[object, ...]) -> None:
    connection.execute(
        "INSERT INTO turns (chat, node, parent, role, content, state, model, created_s)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        turn,
    )


def _set_dropped(connection: Connection, chat: int, after: int, summary: str | None) -> None:
    connection.execute("UPDATE turns SET dropped = 1, summary = ? WHERE chat = ? AND node = ?", (summary, chat, after))


def _join_pieces(connection: Connection, chat: int | None, node: int, state: TurnState) -> None:
    rows = connection.execute("SELECT text FROM pieces WHERE chat = ? AND node = ? ORDER BY number", (chat, node))
    text = "".join(text for (text,) in rows)
    connection.execute(
        "UPDATE turns SET content = content || ?, state = ? WHERE chat = ? AND node = ?", (text, state, chat, node)
    )
    connection.execute("DELETE FROM pieces WHERE chat = ? AND node = ?", (chat, node))


def _take_back(connection: Connection, chat: int | None, node: int) -> str | None:
    """Remove an answer that nothing came of, and its question where it has no other; returns that."""
    where = "WHERE chat = ? AND node = ?"
    ((parent,),) = connection.execute(f"SELECT parent FROM turns {where}", (chat, node)).fetchall()
    connection.execute(f"DELETE FROM turns {where}", (chat, node))
    others = connection.execute("SELECT count(*) FROM turns WHERE chat = ? AND parent = ?", (chat, parent)).fetchone()
    if others[0]:
        return None
    ((question,),) = connection.execute(f"SELECT content FROM turns {where}", (chat, parent)).fetchall()
    connection.execute(f"DELETE FROM turns {where}", (chat, parent))
    return str(question)


def _recover(store: ChatStore, chat: int) -> str | None:
    """End the answer that a process left half written; returns its question where nothing came of it."""
    unanswered = None
    with store.writing() as connection:
        rows = connection.execute(
            "SELECT node FROM turns WHERE chat = ? AND state = 'writing' ORDER BY node DESC", (chat,)
        )
        for (node,) in rows.fetchall():
            came = connection.execute(
                "SELECT count(*) FROM pieces WHERE chat = ? AND node = ?", (chat, node)
            ).fetchone()
            if came[0]:
                _join_pieces(connection, chat, node, "interrupted")
            else:
                unanswered = _take_back(connection, chat, node)
    return unanswered
