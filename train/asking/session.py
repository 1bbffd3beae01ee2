"""One command's questions to any number of models, kept in one folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from zephyr_local.errors import InvalidInputError
from zephyr_local.train.asking.asker import Asker, Refused, open_model
from zephyr_local.train.asking.ledger import Ledger
from zephyr_local.train.asking.models import ModelSpec
from zephyr_local.train.asking.request import Request
from zephyr_local.train.asking.tally import Tally
from zephyr_local.train.asking.workers import Workers
from zephyr_local.train.folder_lock import folder_lock

T = TypeVar("T")

LEDGER_NAME: Final = "asked.sqlite"
Tell = Callable[[Tally], object]


@dataclass(frozen=True, slots=True)
class Questions:
    """What one model is asked for one purpose."""

    spec: ModelSpec
    requests: Sequence[Request]
    name: str
    """Of the purpose, for progress and counts."""


class Session:
    """Holds the folder, its ledger and the models that have been asked; a context manager."""

    def __init__(self, folder: Path, budget: float | None = None, tell: Tell = lambda _tally: None) -> None:
        """`budget` is in dollars, for everything that was ever asked in the folder; `tell` takes each step."""
        if budget is not None and not 0 <= budget < float("inf"):
            raise InvalidInputError(f"the budget is {budget}", "Give it in dollars, such as 5")
        self.folder, self._budget, self._tell = folder, budget, tell
        self.tallies: list[Tally] = []
        self._active: list[Asker] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(folder_lock(self.folder))
            self.ledger = stack.enter_context(Ledger(self.folder / LEDGER_NAME, self._budget))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def require_priced(self, specs: Sequence[ModelSpec]) -> None:
        """Raises InvalidInputError where a budget is to be kept and an endpoint's price is not known."""
        for spec in specs:
            if self._budget is not None and spec.kind == "endpoint" and spec.price.free:
                raise InvalidInputError(
                    f"there is a budget, and the price of {spec.name} is not known",
                    "Give it in a --models file: price = {input = 2.5, output = 10}, in dollars for a million tokens",
                )

    def ask(self, questions: Questions, read: Callable[[str], T]) -> list[T | Refused]:
        """The outcome of each question to one model, in their order. Raises what Asker.ask raises."""
        unique = list(dict.fromkeys(questions.requests))  # the same question twice is one question
        tally = self._tally(questions.name, len(unique))
        found: dict[Request, T | Refused] = {}
        asker = Asker(open_model(questions.spec), self.ledger, self._tell)
        self._active.append(asker)
        try:
            for asked in asker.ask(unique, read, tally):
                found[unique[asked.index]] = asked.value
        finally:
            self._active.remove(asker)
            asker.close()
            self._tell(tally)
        return [found[request] for request in questions.requests]

    def ask_each(self, asked: Sequence[Questions], read: Callable[[str], T]) -> list[list[T | Refused]]:
        """The outcomes of several models: endpoints side by side, then local models one after the other, each of which
        fills the machine.
        """
        outcomes: dict[int, list[T | Refused]] = {}
        remote = [index for index, questions in enumerate(asked) if questions.spec.kind == "endpoint"]
        workers: Workers[int, list[T | Refused]] = Workers(
            lambda index, _stop: self.ask(asked[index], read), max(1, len(remote))
        )
        failed: BaseException | None = None
        try:
            for number, result in workers.results(remote):
                if isinstance(result, BaseException):
                    failed = failed or result
                    self._stop_all()
                else:
                    outcomes[remote[number]] = result
        finally:
            self._stop_all()  # after Ctrl+C; else nothing is left to stop
            workers.end()
        if failed is not None:
            raise failed
        for index, questions in enumerate(asked):
            if index not in outcomes:
                outcomes[index] = self.ask(questions, read)
        return [outcomes[index] for index in range(len(asked))]

    def _tally(self, name: str, more: int) -> Tally:
        """The purpose's counts, which go on where it comes again."""
        tally = next((tally for tally in self.tallies if tally.name == name), None)
        if tally is None:
            tally = Tally(name)
            self.tallies.append(tally)
        tally.total += more
        return tally

    def _stop_all(self) -> None:
        for asker in list(self._active):
            asker.stop()

    def summary(self) -> list[str]:
        """What was asked and what it cost, in lines."""
        lines = [line for tally in self.tallies for line in (tally.line(), *tally.details())]
        cost, (n_cut, at_most) = self.ledger.cost(), self.ledger.cut_off()
        if cost or at_most:
            lines.append(f"in this folder so far: ${cost:.4f}")
        if n_cut:
            more = f", which cost at most ${at_most:.4f} more" if at_most else ""
            lines.append(f"requests cut off before their answer came: {n_cut:,}{more}")
        return lines

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        n_cut, at_most = self.ledger.cut_off()
        return {
            "asked": [tally.as_json() for tally in self.tallies],
            "cost_dollars": self.ledger.cost(),
            "cut_off": {"requests": n_cut, "cost_at_most_dollars": at_most},
        }
