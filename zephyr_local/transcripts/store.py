"""The store of all chats: one SQLite file, in which every turn is kept as it happens."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self, cast, get_args

from zephyr_local.chat_file import ChatRecord
from zephyr_local.chat_fit import Policy
from zephyr_local.chat_tree import ChatTree
from zephyr_local.chat_types import Message, Role
from zephyr_local.errors import ChatStoreError, InvalidInputError
from zephyr_local.transcripts.locks import ChatLocks
from zephyr_local.transcripts.schema import prepare, require_ours
from zephyr_local.user_folders import data_folder, make_private_file, make_private_folder

TurnState = Literal["whole", "writing", "interrupted", "length"]
"""``writing``: by a process that lives; ``interrupted``: cancelled or killed; ``length``: cut at a limit."""

_BUSY_MS: Final = 5000
_MOST_INTEGER: Final = (1 << 63) - 1  # of SQLite
_SNIPPET_CHARS: Final = 36  # on each side of what was found


@dataclass(frozen=True, slots=True)
class ChatSummary:
    """A chat in a list."""

    id: int
    title: str
    created_s: float
    """Seconds since 1970."""
    changed_s: float
    turns: int
    """Of the current branch."""
    branches: int
    """How many answers nothing follows; 1 where nothing was regenerated, edited or undone."""
    models: tuple[str, ...]
    """Names of those that answered, in order of appearance."""


@dataclass(frozen=True, slots=True)
class StoredTurn:
    """A turn as it stands in the store."""

    node: int
    parent: int | None
    message: Message
    state: TurnState
    model: str | None
    created_s: float


@dataclass(frozen=True, slots=True)
class Found:
    """Where a text was found."""

    chat: int
    title: str
    role: Role | Literal["title"]
    snippet: str


class ChatStore:
    """Chats in a file that several processes may use at once. Any thread may use it; a context manager.

    In WAL mode with synchronous FULL: what a call has written is there after a kill and after a loss of power. Calls
    raise ChatStoreError where the file cannot be used.
    """

    def __init__(self, path: Path | None) -> None:
        """Open the store at ``path``, made where it is missing, for its owner alone; None: one in memory.

        Raises ChatStoreError, and OutputError where the folder or file cannot be made.
        """
        self.path = path
        self.lock = threading.RLock()
        self._locks: ChatLocks | None = None
        if path is not None:
            make_private_folder(path.parent)
            make_private_file(path)
        with self._told():
            self._connection = sqlite3.connect(
                ":memory:" if path is None else path,
                timeout=_BUSY_MS / 1000,
                isolation_level=None,
                check_same_thread=False,
            )
        try:
            with self._told():
                require_ours(self._connection, path)  # before anything is written
                for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"):
                    self._connection.execute(f"PRAGMA {pragma}")
                prepare(self._connection, path)
                if path is not None:
                    self._locks = ChatLocks(path.with_name(path.name + "-open"))
        except BaseException:
            self._connection.close()
            raise
        self._connection.create_function("folded", 1, lambda text: str(text).casefold(), deterministic=True)

    @classmethod
    def default_path(cls) -> Path:
        """``chats.db`` in the user's data folder."""
        return data_folder() / "chats.db"

    # --- what there is ---

    def summaries(self, chat: int | None = None) -> list[ChatSummary]:
        """All chats, the one that was changed last first; or the one."""
        where, values = ("WHERE id = ?", [chat]) if chat is not None else ("", [])
        rows = self.rows(
            f"SELECT id, title, created_s, changed_s, leaf FROM chats {where} ORDER BY changed_s DESC, id DESC", *values
        )
        found = []
        for number, title, created_s, changed_s, leaf in rows:
            turns = self.rows("SELECT node, parent, role, model FROM turns WHERE chat = ? ORDER BY node", number)
            parents = {node: parent for node, parent, _, _ in turns}
            inner = set(parents.values())
            length, node = 0, leaf
            while node is not None:
                length, node = length + 1, parents.get(node)
            leaves = sum(1 for node, _, role, _ in turns if role == "assistant" and node not in inner)
            models = tuple(dict.fromkeys(model for *_, model in turns if model is not None))
            found.append(ChatSummary(number, title, created_s, changed_s, length, leaves, models))
        return found

    def require(self, chat: int) -> ChatSummary:
        """The chat's summary. Raises InvalidInputError where there is none of that number."""
        found = self.summaries(chat) if abs(chat) <= _MOST_INTEGER else []
        if not found:
            raise InvalidInputError(f"there is no chat {chat}", "zephyr-local chats list shows those that there are")
        return found[0]

    def turns(self, chat: int, *, all_branches: bool = False) -> list[StoredTurn]:
        """The turns of the current branch, or of all; those that are being written as far as they are."""
        with self.lock:
            rows = self.rows(
                "SELECT node, parent, role, content, state, model, created_s FROM turns WHERE chat = ? ORDER BY node",
                chat,
            )
            pieces = self._pieces(chat)
            leaf = self._leaf(chat)
        turns = [
            StoredTurn(node, parent, Message(role, content + pieces.get(node, "")), state, model, created_s)
            for node, parent, role, content, state, model, created_s in rows
        ]
        if all_branches:
            return turns
        by_node = {turn.node: turn for turn in turns}
        branch = []
        while leaf is not None and leaf in by_node:
            branch.append(by_node[leaf])
            leaf = by_node[leaf].parent
        return branch[::-1]

    def record(self, chat: int) -> ChatRecord:
        """The chat with all its branches, as far as it is answered."""
        with self.lock:
            rows = self.rows("SELECT system, policy, reserve_tokens, leaf FROM chats WHERE id = ?", chat)
            turns = self.turns(chat, all_branches=True)
            cuts = dict(self.rows("SELECT node, summary FROM turns WHERE chat = ? AND dropped ORDER BY node", chat))
        if not rows:
            raise InvalidInputError(f"there is no chat {chat}", "zephyr-local chats list shows those that there are")
        system, policy, reserve_tokens, leaf = rows[0]
        tree = self._tree(chat, turns)
        tree.leaf, tree.cuts = leaf, cuts
        for node in [*cuts, *([] if leaf is None else [leaf])]:
            if not 0 <= node < len(tree.nodes) or tree.nodes[node].message.role != "assistant":
                raise self._damaged(f"chat {chat} names the answer {node}, which is none")
        if policy not in get_args(Policy):
            raise self._damaged(f"chat {chat} has the policy {policy!r}")
        return ChatRecord(system, cast("Policy", policy), reserve_tokens, tree)

    def search(self, text: str) -> list[Found]:
        """Where ``text`` stands in titles and turns of all branches, upper and lower case alike, newest chat first."""
        wanted = text.casefold()
        rows = self.rows(
            """SELECT id, title, 'title', title, changed_s, -1 FROM chats WHERE instr(folded(title), ?1)
               UNION ALL
               SELECT id, title, role, content, changed_s, node FROM turns JOIN chats ON chats.id = turns.chat
               WHERE instr(folded(content), ?1)
               ORDER BY 5 DESC, 1 DESC, 6""",
            wanted,
        )
        return [Found(chat, title, role, _snippet(content, wanted)) for chat, title, role, content, _, _ in rows]

    def newest(self, *, even_open: bool = False) -> int | None:
        """The chat that was changed last, of those that nobody has open, or of all."""
        for (chat,) in self.rows("SELECT id FROM chats ORDER BY changed_s DESC, id DESC"):
            if even_open or not self.is_open(chat):
                return int(chat)
        return None

    def is_open(self, chat: int) -> bool:
        """Whether a process has the chat open, this one included."""
        return self._locks is not None and self._locks.is_held(chat)

    # --- changes ---

    def rename(self, chat: int, title: str) -> None:
        self.require(chat)
        with self.writing() as connection:
            connection.execute("UPDATE chats SET title = ? WHERE id = ?", (title, chat))

    def remove(self, chats: Sequence[int]) -> None:
        """Forget chats, all of them or none; their text is overwritten in the file."""
        for chat in chats:
            self.require(chat)
            if self.is_open(chat):
                raise InvalidInputError(f"chat {chat} is open in another terminal", "Leave it there first")
        with self.writing() as connection:
            connection.executemany("DELETE FROM chats WHERE id = ?", [(chat,) for chat in chats])
        with contextlib.suppress(sqlite3.Error):  # where another process reads, that is done later
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def claim(self, chat: int) -> None:
        """Have the chat for this store alone until ``let_go``. Raises InvalidInputError where it is open already."""
        if self._locks is not None and not self._locks.acquire(chat):
            raise InvalidInputError(
                f"chat {chat} is open in another terminal", "Leave it there first, or begin another"
            )

    def let_go(self, chat: int) -> None:
        if self._locks is not None:
            self._locks.release(chat)

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: what is executed in it happens wholly or not at all."""
        with self.lock, self._told():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self.lock, self._told():
            return self._connection.execute(query, values).fetchall()

    def close(self) -> None:
        with self.lock:
            self._connection.close()
            if self._locks is not None:
                self._locks.close()
                self._locks = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pieces(self, chat: int) -> dict[int, str]:
        joined: dict[int, str] = {}
        for node, text in self.rows("SELECT node, text FROM pieces WHERE chat = ? ORDER BY node, number", chat):
            joined[node] = joined.get(node, "") + text
        return joined

    def _leaf(self, chat: int) -> int | None:
        rows = self.rows("SELECT leaf FROM chats WHERE id = ?", chat)
        return rows[0][0] if rows else None

    def _tree(self, chat: int, turns: list[StoredTurn]) -> ChatTree:
        """The turns that are answered, or begin to be."""
        if turns and turns[-1].state == "writing" and not turns[-1].message.content:
            turns = turns[:-1]  # asked by another process, and nothing came yet
        if turns and turns[-1].message.role == "user" and turns[-1].node not in {turn.parent for turn in turns}:
            turns = turns[:-1]
        tree = ChatTree()
        for turn in turns:
            is_placed = turn.node == len(tree.nodes) and (turn.parent is None or 0 <= turn.parent < turn.node)
            after = "assistant" if turn.parent is None or not is_placed else tree.nodes[turn.parent].message.role
            if not is_placed or turn.message.role != ("user" if after == "assistant" else "assistant"):
                raise self._damaged(f"turn {turn.node} of chat {chat} does not follow those before it")
            tree.add(turn.parent, turn.message)
        return tree

    def _damaged(self, problem: str) -> ChatStoreError:
        return ChatStoreError(
            f"the chats in {self.path} are damaged: {problem}", "Move the file away, or chat with --no-save"
        )

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise ChatStoreError(
                    f"the chats in {self.path} cannot be read or written: {error}",
                    "Check the disk and the file's permissions, or chat with --no-save",
                ) from None
            raise self._damaged(str(error)) from None
        except OSError as error:
            raise ChatStoreError(
                f"the chats in {self.path} cannot be locked: {error.strerror or error}",
                "Check the folder's permissions, or chat with --no-save",
            ) from None


def _snippet(content: str, wanted: str) -> str:
    """What stands around the first place that was found, on one line."""
    at = content.casefold().find(wanted)  # casefolding may move it by a few characters, which does not matter here
    start, end = max(0, at - _SNIPPET_CHARS), at + len(wanted) + _SNIPPET_CHARS
    text = " ".join(content[start:end].split())
    return ("…" if start else "") + text + ("…" if end < len(content) else "")
