"""Every answer that came, and what it cost, in one SQLite file: after a kill nothing is asked, or paid, twice.

A request is written down before it is sent and its answer as soon as it is there, each in a transaction of its own. A
request without an answer was cut off: it may have been billed, so its highest price counts against the budget.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from zephyr_local.errors import OutputError, ZephyrError
from zephyr_local.train.asking.request import Answer, Price, Request

_VERSION: Final = 1
_BUSY_S: Final = 30.0
_SCHEMA: Final = """
create table answers (
    key text primary key,
    model text not null,
    text text not null,
    finish_reason text not null,
    prompt_tokens integer not null,
    completion_tokens integer not null,
    estimated integer not null,
    cost real not null,          -- dollars
    asked_at real not null       -- seconds since 1970
) without rowid;
create table sent (              -- requests without an answer: under way, or cut off
    number integer primary key autoincrement,
    key text not null,
    model text not null,
    at_most real not null        -- dollars
);
"""


class BudgetReachedError(ZephyrError):
    """The next request could cost more than is left of the budget."""

    def __init__(self, problem: str, remedy: str, *, waits: bool) -> None:
        super().__init__(problem, remedy)
        self.waits = waits
        """Whether requests are under way, which may turn out to cost less."""


class Ledger:
    """The file, shared by the threads of this process; a context manager."""

    def __init__(self, path: Path, budget: float | None = None) -> None:
        """Open or make it; `budget` is in dollars, and what earlier runs spent counts.

        Raises OutputError where the file cannot be used.
        """
        self.path, self._budget = path, budget
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
            self._file.execute("pragma journal_mode=wal")
            self._file.execute("pragma synchronous=full")
            self._migrate()
        except (sqlite3.Error, OSError) as error:
            raise OutputError(
                f"{path} cannot be used: {error}", "Choose another place, or move the file away"
            ) from None
        self._spent = self.cost() + self.cut_off()[1]
        self._under_way: dict[int, float] = {}

    def _migrate(self) -> None:
        (version,) = self._file.execute("pragma user_version").fetchone()
        if version == _VERSION:
            return
        if version > _VERSION:
            raise OutputError(f"{self.path} was written by a newer zephyr-local", "Update, or choose another place")
        with self._transaction():
            for statement in _SCHEMA.split(";"):
                self._file.execute(statement)
            self._file.execute(f"pragma user_version={_VERSION}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._file.close()

    def answer(self, key: str) -> Answer | None:
        """The answer that was kept under a request's key."""
        row = self._one(
            "select text, finish_reason, prompt_tokens, completion_tokens, estimated from answers where key = ?", key
        )
        return Answer(row[0], row[1], row[2], row[3], bool(row[4])) if row is not None else None

    def begin(self, request: Request, key: str, model: str, price: Price) -> int:
        """Write down that a request is about to be sent; returns the number to end it by.

        Raises BudgetReachedError where it could cost more than is left.
        """
        at_most = price.at_most(request)
        with self._lock:
            if self._budget is not None and at_most > 0:
                spent = self._spent + sum(self._under_way.values())
                if spent + at_most > self._budget:
                    raise BudgetReachedError(
                        f"the budget of ${self._budget:,g} is reached: ${spent:.4f} are spent or under way, and the "
                        f"next request could cost ${at_most:.4f}",
                        "What was answered is kept: the same command with a higher --budget goes on",
                        waits=bool(self._under_way),
                    )
            with self._transaction():
                row = self._file.execute(
                    "insert into sent (key, model, at_most) values (?, ?, ?)", (key, model, at_most)
                )
            number = int(row.lastrowid or 0)
            self._under_way[number] = at_most
            return number

    def keep(self, number: int, key: str, model: str, answer: Answer, price: Price) -> None:
        """Keep an answer that has come."""
        cost = price.of(answer.prompt_tokens, answer.completion_tokens)
        counts = (answer.prompt_tokens, answer.completion_tokens, answer.estimated, cost, time.time())
        with self._lock:
            with self._transaction():
                self._file.execute("delete from sent where number = ?", (number,))
                self._file.execute(
                    "insert or replace into answers values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (key, model, answer.text, answer.finish_reason, *counts),
                )
            self._spent += cost  # after the commit: on a full disk the request still counts as under way
            self._under_way.pop(number)

    def give_up(self, number: int, *, may_be_billed: bool) -> None:
        """End a try that brought no answer; one that may be billed goes on counting against the budget."""
        with self._lock:
            if not may_be_billed:
                with self._refusals_told():
                    self._file.execute("delete from sent where number = ?", (number,))
            at_most = self._under_way.pop(number)
            self._spent += at_most if may_be_billed else 0.0

    @property
    def n_under_way(self) -> int:
        """Requests that have begun and not ended."""
        with self._lock:
            return len(self._under_way)

    def cost(self) -> float:
        """What all answers that are kept cost, in dollars."""
        row = self._one("select coalesce(sum(cost), 0) from answers")
        assert row is not None
        return float(row[0])

    def cut_off(self) -> tuple[int, float]:
        """Requests without an answer (cut off, or still under way when all ends), and what they cost at most, in
        dollars.
        """
        row = self._one("select count(*), coalesce(sum(at_most), 0) from sent")
        assert row is not None
        return int(row[0]), float(row[1])

    def _one(self, statement: str, *values: object) -> Any:  # noqa: ANN401 — a row of SQLite's
        with self._lock, self._refusals_told(), closing(self._file.execute(statement, values)) as rows:
            return rows.fetchone()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._refusals_told():
            self._file.execute("begin immediate")
            try:
                yield
                self._file.execute("commit")
            except BaseException:
                with suppress(sqlite3.Error):
                    self._file.execute("rollback")
                raise

    @contextmanager
    def _refusals_told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise OutputError(
                f"{self.path} cannot be used: {error}", "Free some space, or move the file away; answers in it are kept"
            ) from None
