"""Many questions to one model: side by side, retried, kept, read, and asked again where nobody can read the answer."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from zephyr_local.errors import InvalidInputError, ZephyrError
from zephyr_local.train.asking.ledger import BudgetReachedError, Ledger
from zephyr_local.train.asking.models import ModelSpec
from zephyr_local.train.asking.pace import Pace
from zephyr_local.train.asking.request import (
    CONTENT_FILTER,
    Answer,
    Price,
    RefusedError,
    Request,
    TransientError,
    UnreadableError,
)
from zephyr_local.train.asking.tally import Tally
from zephyr_local.train.asking.workers import Workers

T = TypeVar("T")

LONGEST_WAIT_S: Final = 60.0
MOST_RETRY_AFTER_S: Final = 900.0
"""An endpoint that wants to be left alone for longer ends the run; it goes on when the command is given again."""
READABLE_ATTEMPTS: Final = 3
_BUDGET_LOOK_S: Final = 0.05
_SHOWN_REPLY: Final = 200
MOST_UNANSWERED_IN_A_ROW: Final = 3
"""After so many questions, each tried as often as the model's `attempts` say, it is down."""


class UselessError(ZephyrError):
    """The first questions all failed in a way that the others would, too."""


class UnansweredError(ZephyrError):
    """Questions were left without an answer for reasons that may pass."""


class Model(Protocol):
    """What can be asked: an endpoint, or a local model."""

    spec: ModelSpec
    identity: str

    def ask(self, request: Request) -> Answer:
        """One try."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a question has no answer, now and whenever it is asked."""

    reason: str
    text: str = ""
    """The last answer, where it could not be read."""
    at_once: bool = False
    """Whether the question itself was turned down."""
    unreadable: bool = False
    """Whether there were answers, and none could be read."""


@dataclass(frozen=True, slots=True)
class Asked(Generic[T]):
    """A question's outcome."""

    index: int
    """Which of the questions, from 0."""
    value: T | Refused
    """The answer as it was read."""


def _nothing_useful(spec: ModelSpec, count: int, last: object) -> UselessError:
    assert isinstance(last, Refused)
    if last.unreadable:
        said = " ".join(last.text.split())
        shown = said[:_SHOWN_REPLY] + ("…" if len(said) > _SHOWN_REPLY else "")
        return UselessError(
            f"the first {count} questions to {spec.name} got {last.reason}. The last reply: {shown!r}",
            "Read what it says: another model or template may do; more max_tokens, where replies are cut",
        )
    return UselessError(
        f"{spec.name} turned down the first {count} questions: {last.reason}",
        "Check what it is sent: a --models file can change max_tokens_key, max_tokens, seed, temperature, n_ctx",
    )


class StoppedError(Exception):
    """The run ends; this question was not asked."""


class Asker:
    """Asks one model, once, and keeps every answer in the ledger."""

    def __init__(
        self,
        model: Model,
        ledger: Ledger,
        pace: Pace | None = None,
        *,
        skip_failed: bool = False,
        tell: Callable[[Tally], object] = lambda _tally: None,
        on_interrupt: Callable[[int], object] = lambda _n_under_way: None,
    ) -> None:
        """`pace` is shared with others that ask the same endpoint; `tell` is called on the caller's thread after each
        outcome, and `on_interrupt` at Ctrl+C, with how many requests are waited for. With `skip_failed` a question
        whose every try failed counts as turned down.
        """
        self.model, self._ledger, self._tell, self._skip_failed = model, ledger, tell, skip_failed
        self._on_interrupt = on_interrupt
        self._pace = pace or Pace(model.spec.requests_per_minute, model.spec.tokens_per_minute)
        self._price = model.spec.price or Price()
        self._stop = threading.Event()

    def stop(self) -> None:
        """Have `ask` end early, from any thread: it waits for what is under way and raises StoppedError."""
        self._stop.set()

    def ask(self, requests: Iterable[Request], read: Callable[[str], T], tally: Tally) -> Iterator[Asked[T]]:
        """The outcomes of questions, in the order in which they come.

        `read` makes of an answer's text what is wanted, or raises UnreadableError: then the question is asked again, up
        to three times in all. Raises UnansweredError at the end where questions are left that another run may bring
        answers to, and at once BudgetReachedError and what makes every question fail (a wrong key, say). Closing the
        iterator, and Ctrl+C, wait for the requests under way, whose answers are paid for; a second Ctrl+C does not.
        """
        spec = self.model.spec
        workers: Workers[Request, T | Refused] = Workers(
            lambda request, stop: self._outcome(request, read, tally, stop), spec.concurrency, self._stop
        )
        unanswered, in_a_row, useless, useful, last_problem = 0, 0, 0, False, ""
        most_in_a_row = max(MOST_UNANSWERED_IN_A_ROW, spec.concurrency)
        fatal: ZephyrError | None = None
        stopped = False
        try:
            for index, result in workers.results(requests):
                if isinstance(result, StoppedError):
                    continue
                if isinstance(result, TransientError):
                    in_a_row, last_problem = in_a_row + 1, result.reason
                    if in_a_row >= most_in_a_row:
                        workers.stop.set()
                    if workers.stop.is_set() or not self._skip_failed:
                        unanswered += 1
                        continue
                    result = Refused(f"{result.reason}, {spec.attempts} times")
                    tally.count("refused", result.reason)
                elif isinstance(result, ZephyrError):
                    fatal = fatal or result
                    workers.stop.set()
                    continue
                elif isinstance(result, BaseException):
                    raise result
                else:
                    in_a_row = 0
                    failed = isinstance(result, Refused) and (result.at_once or result.unreadable)
                    useless, useful = useless + failed, useful or not failed
                    if useless >= most_in_a_row and not useful:
                        # A mistake in what is sent or in who is asked, more likely than one in each question.
                        fatal = fatal or _nothing_useful(spec, useless, result)
                        workers.stop.set()
                tally.add(done=1)
                self._tell(tally)
                yield Asked(index, result)
            stopped = self._stop.is_set()
        except KeyboardInterrupt:
            workers.stop.set()
            self._on_interrupt(self._ledger.n_under_way)
            raise
        finally:
            workers.end()
        if fatal is not None:
            raise fatal
        if unanswered:
            raise UnansweredError(
                f"{spec.name} left {unanswered:,} questions without an answer ({last_problem}, {spec.attempts} times)",
                "The answers that came are kept: the same command asks what is left",
            )
        if stopped:
            raise StoppedError

    # --- on the threads ---

    def _outcome(self, request: Request, read: Callable[[str], T], tally: Tally, stop: threading.Event) -> T | Refused:
        """Ask until there is a readable answer, or none to be had."""
        reason, text, n_kept = "", "", 0
        for attempt in range(READABLE_ATTEMPTS):
            try:
                answer, kept = self._answer(request, tally, stop)
            except RefusedError as error:
                tally.count("refused", str(error))
                return Refused(str(error), at_once=True)
            n_kept += kept
            text = answer.text
            if answer.finish_reason == CONTENT_FILTER:
                tally.count("refused", "the endpoint's content filter")
                return Refused("the endpoint's content filter", text)
            try:
                if not text.strip():
                    raise UnreadableError("an empty answer")
                value = read(text)
                tally.add(kept=n_kept == attempt + 1)
                return value
            except UnreadableError as error:
                reason = str(error)
                tally.count("unreadable", reason)
                request = request.again()
        reason = f"no readable answer in {READABLE_ATTEMPTS} attempts: {reason}"
        tally.count("refused", reason)
        tally.add(kept=n_kept == READABLE_ATTEMPTS)
        return Refused(reason, text, unreadable=True)

    def _answer(self, request: Request, tally: Tally, stop: threading.Event) -> tuple[Answer, bool]:
        """The answer, and whether it was kept from before."""
        key = request.key(self.model.identity)
        kept = self._ledger.answer(key)
        if kept is not None:
            return kept, True
        return self._retrying(request, key, tally, stop), False

    def _retrying(self, request: Request, key: str, tally: Tally, stop: threading.Event) -> Answer:
        try:
            from tenacity import (
                RetryCallState,
                Retrying,
                retry_if_exception_type,
                sleep_using_event,
                stop_after_attempt,
            )
        except ImportError:
            raise InvalidInputError(
                "asking models needs tenacity, which is not installed", 'pip install "zephyr-local[judge]"'
            ) from None

        def pause_s(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome is not None else None
            assert isinstance(error, TransientError)
            tally.count("retried", error.reason)
            doubled = self.model.spec.retry_wait_s * 2.0 ** (state.attempt_number - 1)
            return max(error.retry_after_s or 0.0, min(LONGEST_WAIT_S, doubled) * random.uniform(0.5, 1.0))

        return Retrying(
            retry=retry_if_exception_type(TransientError),
            stop=stop_after_attempt(self.model.spec.attempts),
            wait=pause_s,
            sleep=sleep_using_event(stop),
            reraise=True,
        )(self._one_try, request, key, tally, stop)

    def _one_try(self, request: Request, key: str, tally: Tally, stop: threading.Event) -> Answer:
        spec = self.model.spec
        if not self._pace.wait(request.most_prompt_tokens + request.max_tokens, stop):
            raise StoppedError
        number = self._begin(request, key, stop)
        try:
            answer = self.model.ask(request)
            self._ledger.keep(number, key, spec.name, answer, self._price)
        except (RefusedError, InvalidInputError):  # an endpoint that turns a question away has not begun to answer
            self._ledger.give_up(number, may_be_billed=False)
            raise
        except TransientError as error:
            self._ledger.give_up(number, may_be_billed=error.may_be_billed)
            if error.retry_after_s is not None:
                self._leave_alone(error.retry_after_s)
            raise
        except BaseException:
            self._ledger.give_up(number, may_be_billed=True)
            raise
        tally.add(
            estimated=answer.estimated,
            asked=1,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            cost=self._price.of(answer.prompt_tokens, answer.completion_tokens),
        )
        return answer

    def _begin(self, request: Request, key: str, stop: threading.Event) -> int:
        """As Ledger.begin; where the budget is short, once those under way have told what they really cost."""
        while True:
            try:
                return self._ledger.begin(request, key, self.model.spec.name, self._price)
            except BudgetReachedError as error:
                if not error.waits or stop.is_set():
                    raise
                stop.wait(_BUDGET_LOOK_S)

    def _leave_alone(self, seconds: float) -> None:
        if seconds > MOST_RETRY_AFTER_S:
            raise UnansweredError(
                f"{self.model.spec.name} asks to be left alone for {seconds:,.0f} s; we wait {MOST_RETRY_AFTER_S:,.0f}",
                "Give the same command then: the answers that came are kept",
            )
        self._pace.leave_alone(seconds)
