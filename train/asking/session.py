"""One command's questions to any number of models, kept in one folder."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from zephyr_local.errors import InvalidInputError, ZephyrError
from zephyr_local.gguf_file import read_gguf
from zephyr_local.train.asking.asker import Asker, Model, Refused, UnansweredError
from zephyr_local.train.asking.endpoint import Endpoint
from zephyr_local.train.asking.ledger import BudgetReachedError, Ledger
from zephyr_local.train.asking.local import LocalModel
from zephyr_local.train.asking.models import ModelSpec
from zephyr_local.train.asking.pace import Pace
from zephyr_local.train.asking.request import Request
from zephyr_local.train.asking.tally import Tally
from zephyr_local.train.asking.workers import Workers
from zephyr_local.train.folder_lock import folder_lock

T = TypeVar("T")

LEDGER_NAME: Final = "asked.sqlite"
Tell = Callable[[Tally], object]


class NotAsked(Enum):
    """Stands for the outcome of a question that the run's end came before."""

    NOT_ASKED = "not asked"


NOT_ASKED: Final = NotAsked.NOT_ASKED


@dataclass(frozen=True, slots=True)
class Questions:
    """What one model is asked for one purpose."""

    spec: ModelSpec
    requests: Sequence[Request]
    name: str
    """Of the purpose, for progress and counts."""


class Session:
    """Holds the folder, its ledger and the models that have been asked; a context manager."""

    def __init__(
        self,
        folder: Path,
        budget: float | None = None,
        tell: Tell = lambda _tally: None,
        *,
        skip_failed: bool = False,
        on_interrupt: Callable[[int], object] = lambda _n_under_way: None,
    ) -> None:
        """`budget` is in dollars, for everything that was ever asked in the folder; `tell` takes each step, and
        `on_interrupt` at Ctrl+C how many requests are waited for. With `skip_failed` a question whose every try failed
        counts as turned down, instead of ending the run.
        """
        if budget is not None and not 0 <= budget < float("inf"):
            raise InvalidInputError(f"the budget is {budget}", "Give it in dollars, such as 5")
        self.folder, self._budget, self._tell, self._skip_failed = folder, budget, tell, skip_failed
        self._on_interrupt = on_interrupt
        self.tallies: list[Tally] = []
        self._active: list[Asker] = []
        self._stopped = threading.Event()
        self._paces: dict[str, Pace] = {}
        self._local: LocalModel | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(folder_lock(self.folder))
            self.ledger = stack.enter_context(Ledger(self.folder / LEDGER_NAME, self._budget))
            stack.callback(self._close_local)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def require_ready(self, specs: Sequence[ModelSpec]) -> None:
        """Find what can be found before anybody is asked: files that are missing or no models, packages, keys, and,
        with a budget, prices. Raises InvalidInputError, ModelNotFoundError and ModelFileError.
        """
        for spec in specs:
            if spec.kind == "endpoint":
                Endpoint(spec)
            elif spec.kind == "gguf":
                read_gguf(LocalModel(spec).path)
            elif not Path(spec.file).is_file():
                raise InvalidInputError(f"there is no file {spec.file}", "Check the path")
            if self._budget is not None and spec.kind == "endpoint" and spec.price is None:
                raise InvalidInputError(
                    f"there is a budget, and the price of {spec.name} is not known",
                    "Give it in a --models file, in dollars for a million tokens: price = {input = 2.5, output = 10}; "
                    "two zeros where it is free",
                )

    def ask(self, questions: Questions, read: Callable[[str], T]) -> list[T | Refused]:
        """The outcome of each question to one model, in their order. Raises what Asker.ask raises."""
        outcomes, ended = self.ask_some(questions, read)
        if ended is not None:
            raise ended
        return [outcome for outcome in outcomes if outcome is not NOT_ASKED]  # all of them

    def ask_some(
        self, questions: Questions, read: Callable[[str], T]
    ) -> tuple[list[T | Refused | NotAsked], ZephyrError | None]:
        """As ask; where the budget or the endpoint ends it, what came until then, and why it ended."""
        unique = list(dict.fromkeys(questions.requests))  # the same question twice is one question
        tally = self._tally(questions.name, len(unique))
        found: dict[Request, T | Refused] = {}
        ended: ZephyrError | None = None
        asker = self._asker(questions.spec)
        self._active.append(asker)
        if self._stopped.is_set():  # while this one was made ready
            asker.stop()
        try:
            for asked in asker.ask(unique, read, tally):
                found[unique[asked.index]] = asked.value
        except (BudgetReachedError, UnansweredError) as error:
            ended = error
        finally:
            self._active.remove(asker)
            self._tell(tally)
        return [found.get(request, NOT_ASKED) for request in questions.requests], ended

    def ask_each(self, asked: Sequence[Questions], read: Callable[[str], T]) -> list[list[T | Refused]]:
        """The outcomes of several models: endpoints side by side (what is the same model under two names, one after the
        other), then local models one after the other, each of which fills the machine.
        """
        outcomes: dict[int, list[T | Refused]] = {}
        remote: dict[tuple[str, str], list[int]] = {}
        for index, questions in enumerate(asked):
            if questions.spec.kind == "endpoint":
                remote.setdefault((questions.spec.url, questions.spec.model), []).append(index)

        def ask_some(indices: Sequence[int], _stop: threading.Event) -> None:
            for index in indices:
                outcomes[index] = self.ask(asked[index], read)

        workers: Workers[Sequence[int], None] = Workers(ask_some, max(1, len(remote)))
        failed: BaseException | None = None
        try:
            for _, result in workers.results(remote.values()):
                if isinstance(result, BaseException):
                    failed = failed or result
                    self._stop_all()
        except BaseException as error:
            self._stop_all()
            if isinstance(error, KeyboardInterrupt):
                self._on_interrupt(self.ledger.n_under_way)
            raise
        finally:
            workers.end()
        if failed is not None:
            raise failed
        for index, questions in enumerate(asked):
            if index not in outcomes:
                outcomes[index] = self.ask(questions, read)
        return [outcomes[index] for index in range(len(asked))]

    def _asker(self, spec: ModelSpec) -> Asker:
        """A local model stays loaded until another is asked; an endpoint's limits hold for all who ask it."""
        if spec.kind == "endpoint":
            pace = self._paces.setdefault(spec.url, Pace(spec.requests_per_minute, spec.tokens_per_minute))
            model: Model = Endpoint(spec)
            return self._asker_of(model, pace)
        if self._local is None or self._local.spec != spec:
            self._close_local()
            self._local = LocalModel(spec)
        return self._asker_of(self._local, None)

    def _asker_of(self, model: Model, pace: Pace | None) -> Asker:
        return Asker(
            model,
            self.ledger,
            pace,
            skip_failed=self._skip_failed,
            tell=self._tell,
            on_interrupt=self._on_interrupt,
        )

    def _close_local(self) -> None:
        if self._local is not None:
            self._local.close()
            self._local = None

    def _stop_all(self) -> None:
        self._stopped.set()
        for asker in list(self._active):
            asker.stop()

    def _tally(self, name: str, more: int) -> Tally:
        """The purpose's counts, which go on where it comes again."""
        tally = next((tally for tally in self.tallies if tally.name == name), None)
        if tally is None:
            tally = Tally(name)
            self.tallies.append(tally)
        tally.total += more
        return tally

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
