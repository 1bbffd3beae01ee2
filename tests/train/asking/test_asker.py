"""Many questions to one model: retried, paced, kept, read, asked again, and stopped."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.stand_in_endpoint import HARMLESS, Fault, Messages, StandIn
from zephyr_local.chat_types import Message
from zephyr_local.errors import InvalidInputError
from zephyr_local.train.asking.asker import Refused, UnansweredError, UselessError
from zephyr_local.train.asking.ledger import BudgetReachedError
from zephyr_local.train.asking.models import ModelSpec
from zephyr_local.train.asking.request import Price, Request, UnreadableError
from zephyr_local.train.asking.session import Questions, Session


def questions(n: int, max_tokens: int = 50) -> list[Request]:
    return [Request((Message("user", f"question {number}"),), max_tokens=max_tokens) for number in range(n)]


def echo(messages: Messages) -> str:
    return f"answer to {messages[-1]['content']}"


def answers(n: int) -> list[str]:
    return [f"answer to question {number}" for number in range(n)]


def spec(stand_in: StandIn, **more: Any) -> ModelSpec:
    given = {"url": stand_in.url, "model": "m", "retry_wait_s": 0.01, "timeout_s": 2.0, **more}
    return ModelSpec(name="model", **given)


def ask(
    folder: Path,
    model: ModelSpec,
    requests: list[Request],
    read: Callable[[str], Any] = str,
    budget: float | None = None,
) -> tuple[list[Any], Session]:
    with Session(folder, budget) as session:
        return session.ask(Questions(model, requests, "asked"), read), session


def test_answers_come_back_in_the_order_of_the_questions(tmp_path: Path):
    with StandIn(echo, delay_s=lambda number: 0.05 if number % 3 == 0 else 0) as stand_in:
        found, session = ask(tmp_path, spec(stand_in, concurrency=5), questions(30))
        assert found == answers(30)
        assert 2 <= stand_in.most_at_once <= 5
    (tally,) = session.tallies
    assert (tally.done, tally.asked, tally.kept) == (30, 30, 0)
    assert (tally.prompt_tokens, tally.completion_tokens) == (60, 120)


def test_a_second_run_asks_nothing(tmp_path: Path):
    with StandIn(echo) as stand_in:
        ask(tmp_path, spec(stand_in), questions(10))
        found, session = ask(tmp_path, spec(stand_in), questions(12))
        assert len(stand_in.served) == 12
    assert found == answers(12)
    assert session.tallies[0].kept == 10


def test_the_same_question_twice_is_asked_once(tmp_path: Path):
    with StandIn(echo) as stand_in:
        found, _ = ask(tmp_path, spec(stand_in), [*questions(3), *questions(3)])
        assert len(stand_in.served) == 3
    assert found == [*answers(3), *answers(3)]


def test_any_storm_of_faults_is_weathered(tmp_path: Path):
    dice = random.Random(7)
    passing = [f for f in Fault if f not in (Fault.BAD_REQUEST, Fault.FORBIDDEN, Fault.QUOTA, Fault.REDIRECT)]
    passing = [
        f for f in passing if f not in (Fault.SLOW, Fault.HUGE, Fault.EMPTY)
    ]  # slow, or another matter: they have their own tests
    drawn = [dice.choice(passing) if dice.random() < 0.4 else None for _ in range(3000)]
    with StandIn(echo, lambda number: drawn[number], retry_after_s=0.05) as stand_in:
        found, session = ask(tmp_path, spec(stand_in, concurrency=8, attempts=30), questions(200))
        assert found == answers(200)
        usable = [one for one in stand_in.served if one.fault is None or one.fault in HARMLESS]
        assert Counter(one.key for one in usable).most_common(1)[0][1] == 1  # answered once, and never asked again
        bad = [one for one in stand_in.served if one.fault is not None and one.fault not in HARMLESS]
        assert sum(session.tallies[0].retried.values()) == len(bad) > 50


def test_a_wish_to_be_left_alone_holds_for_all_threads(tmp_path: Path):
    faults = {4: Fault.BUSY_RETRY_AFTER}
    with StandIn(echo, faults.get, delay_s=lambda _number: 0.02, retry_after_s=1.0) as stand_in:
        found, _ = ask(tmp_path, spec(stand_in, concurrency=4), questions(20))
        served = stand_in.served
    assert found == answers(20)
    told_at = served[4].began_at + 0.02
    after = [one.began_at - told_at for one in served if one.began_at > told_at + 0.2]  # what was under way may arrive
    assert len(after) > 8
    assert min(after) > 0.9


def test_a_very_long_wish_ends_the_run(tmp_path: Path):
    with (
        StandIn(echo, lambda _number: Fault.BUSY_RETRY_AFTER, retry_after_s=5000.0) as stand_in,
        pytest.raises(UnansweredError, match="asks to be left alone for 5,000 s"),
    ):
        ask(tmp_path, spec(stand_in), questions(2))


def test_requests_keep_to_the_minute(tmp_path: Path):
    with StandIn(echo) as stand_in:
        ask(tmp_path, spec(stand_in, requests_per_minute=600, concurrency=8), questions(11))
        began = [one.began_at for one in stand_in.served]
    assert max(began) - min(began) > 0.9  # eleven, a tenth of a second apart


def test_tokens_keep_to_the_minute(tmp_path: Path):
    one = questions(1)[0]
    each = one.most_prompt_tokens + one.max_tokens
    with StandIn(echo) as stand_in:
        ask(tmp_path, spec(stand_in, tokens_per_minute=each * 600, concurrency=8), questions(6))
        began = [served.began_at for served in stand_in.served]
    assert max(began) - min(began) > 0.4


def third_fails(messages: Messages) -> Fault | None:
    return Fault.ERROR if messages[-1]["content"] == "question 3" else None


def test_one_question_without_an_answer_keeps_the_others(tmp_path: Path):
    with StandIn(echo, fault_of=third_fails) as stand_in:
        with pytest.raises(UnansweredError, match=r"model left 1 questions without an answer \(HTTP 500, 4 times\)"):
            ask(tmp_path, spec(stand_in, attempts=4), questions(10))
        assert len(stand_in.served) == 9 + 4
        stand_in.fault_of = lambda _messages: None
        found, session = ask(tmp_path, spec(stand_in, attempts=4), questions(10))
    assert found == answers(10)
    assert (session.tallies[0].kept, session.tallies[0].asked) == (9, 1)


def test_it_can_be_gone_without(tmp_path: Path):
    with StandIn(echo, fault_of=third_fails) as stand_in, Session(tmp_path, skip_failed=True) as session:
        found = session.ask(Questions(spec(stand_in, attempts=4), questions(10), "x"), str)
    assert found.pop(3) == Refused("HTTP 500, 4 times")
    assert found == answers(3) + answers(10)[4:]
    assert session.tallies[0].refused == {"HTTP 500, 4 times": 1}


def test_an_answer_that_is_empty_is_asked_for_again_and_then_gone_without(tmp_path: Path):
    with StandIn(lambda m: "" if "question 3" in m[-1]["content"] else echo(m)) as stand_in:
        found, session = ask(tmp_path, spec(stand_in), questions(10))
        assert len(stand_in.served) == 9 + 3
        again, _ = ask(tmp_path, spec(stand_in), questions(10))
        assert len(stand_in.served) == 9 + 3  # it is an answer all the same: paid for, and kept
    assert isinstance(found[3], Refused)
    assert again == found
    assert session.tallies[0].unreadable == {"an empty answer": 3}


def test_where_the_first_questions_are_all_turned_down_the_others_are_not_asked(tmp_path: Path):
    with StandIn(echo, lambda _number: Fault.BAD_REQUEST) as stand_in:
        with pytest.raises(UselessError, match=r"model turned down the first 3 questions: HTTP 400.*max_tokens_key"):
            ask(tmp_path, spec(stand_in, concurrency=2), questions(500))
        assert len(stand_in.served) < 12
        stand_in.faults = lambda _number: None
        found, _ = ask(tmp_path, spec(stand_in), questions(20))
    assert found == answers(20)


def test_where_no_reply_can_be_read_the_others_are_not_asked_for(tmp_path: Path):
    with StandIn(lambda _messages: "I would rather talk of the weather.") as stand_in:
        with pytest.raises(UselessError, match=r"no number\. The last reply: 'I would rather talk of the weather\.'"):
            ask(tmp_path, spec(stand_in, concurrency=2), questions(500), read_number)
        assert len(stand_in.served) < 40


def test_a_retry_after_of_nothing_still_waits(tmp_path: Path):
    with StandIn(echo, lambda number: Fault.BUSY_RETRY_AFTER if number < 3 else None, retry_after_s=0.0) as stand_in:
        ask(tmp_path, spec(stand_in, retry_wait_s=0.2), questions(1))
        began = [one.began_at for one in stand_in.served]
    assert began[-1] - began[0] > 0.1 + 0.2 + 0.4 - 0.05


def test_half_a_surrogate_pair_is_kept_as_a_mark(tmp_path: Path):
    with StandIn(lambda _messages: "so \ud83d it is") as stand_in:
        found, _ = ask(tmp_path, spec(stand_in), questions(1))
        assert found == ask(tmp_path, spec(stand_in), questions(1))[0] == ["so \ufffd it is"]


def test_two_names_of_one_model_do_not_pay_twice(tmp_path: Path):
    with StandIn(echo, delay_s=lambda _number: 0.02) as stand_in, Session(tmp_path) as session:
        asked = [Questions(spec(stand_in), questions(8), name) for name in ("one", "other")]
        assert session.ask_each(asked, str) == [answers(8), answers(8)]
        assert len(stand_in.served) == 8


def test_an_endpoint_that_is_down_is_not_asked_a_thousand_times(tmp_path: Path):
    with (
        StandIn(echo, lambda _number: Fault.ERROR) as stand_in,
        pytest.raises(UnansweredError, match=r"\(HTTP 500, 2 times\)"),
    ):
        ask(tmp_path, spec(stand_in, attempts=2, concurrency=3), questions(1000))
    assert len(stand_in.served) < 30


def test_a_wrong_key_ends_the_run_and_keeps_what_came(tmp_path: Path):
    with StandIn(echo, lambda number: Fault.FORBIDDEN if number >= 5 else None) as stand_in:
        with pytest.raises(InvalidInputError, match="HTTP 401"):
            ask(tmp_path, spec(stand_in, concurrency=1), questions(50))
        assert len(stand_in.served) <= 7
        stand_in.faults = lambda _number: None
        found, session = ask(tmp_path, spec(stand_in), questions(50))
    assert found == answers(50)
    assert session.tallies[0].kept == 5


def test_a_question_that_is_turned_down_is_left_for_this_run(tmp_path: Path):
    with StandIn(echo, lambda number: Fault.BAD_REQUEST if number == 2 else None) as stand_in:
        first, session = ask(tmp_path, spec(stand_in, concurrency=1), questions(5))
        assert len(stand_in.served) == 5
        assert isinstance(first[2], Refused)
        assert first[2].reason.startswith("HTTP 400")
        assert session.tallies[0].refused.total() == 1
        assert ask(tmp_path, spec(stand_in), questions(5))[0] == answers(5)  # another run, another try
        assert len(stand_in.served) == 6


def read_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UnreadableError("no number") from None


def test_an_answer_that_cannot_be_read_is_counted_and_asked_again(tmp_path: Path):
    asked = Counter[str]()
    lock = threading.Lock()

    def answer(messages: Messages) -> str:
        with lock:
            asked[messages[-1]["content"]] += 1
            return "seven" if asked[messages[-1]["content"]] == 1 else "7"

    with StandIn(answer) as stand_in:
        found, session = ask(tmp_path, spec(stand_in), questions(4), read_number)
        assert found == [7] * 4
        assert session.tallies[0].unreadable == {"no number": 4}
        bodies = [(one.body["seed"], one.body["temperature"]) for one in stand_in.served]
        assert Counter(bodies) == {(0, 0.7): 4, (1000, 0.7): 4}
        again, _ = ask(tmp_path, spec(stand_in), questions(4), read_number)
        assert again == found
        assert len(stand_in.served) == 8  # also the answer that could not be read is kept


def test_at_temperature_0_the_second_attempt_is_warmer(tmp_path: Path):
    cold = [Request((Message("user", "?"),), temperature=0.0, max_tokens=5)]
    with StandIn(lambda _messages: "never a number") as stand_in:
        (found,), session = ask(tmp_path, spec(stand_in), cold, read_number)
        assert [one.body["temperature"] for one in stand_in.served] == [0.0, 0.5, 0.5]
        assert len({one.body["seed"] for one in stand_in.served}) == 3
    assert found == Refused("no readable answer in 3 attempts: no number", "never a number", unreadable=True)
    assert session.tallies[0].unreadable.total() == 3


def test_a_budget_is_never_passed(tmp_path: Path):
    price = Price(input=3000.0, output=3000.0)
    with StandIn(echo) as stand_in:
        with pytest.raises(BudgetReachedError, match="the same command with a higher --budget goes on"):
            ask(tmp_path, spec(stand_in, price=price, concurrency=4), questions(100), budget=1.7)
        used = sum(2 + 4 for _ in stand_in.served) * 0.003
        assert 0.7 < used <= 1.7  # what could still cost a dollar is not asked
        found, session = ask(tmp_path, spec(stand_in, price=price), questions(100), budget=10.0)
        assert found == answers(100)
        assert len(stand_in.served) == 100
    assert session.tallies[0].kept + session.tallies[0].asked == 100


def test_a_budget_wants_a_price(tmp_path: Path):
    with StandIn(echo) as stand_in, Session(tmp_path, 1.0) as session:
        with pytest.raises(InvalidInputError, match="the price of model is not known"):
            session.require_ready([spec(stand_in)])
        session.require_ready([spec(stand_in, price=Price(1, 1)), spec(stand_in, price=Price())])


def test_several_endpoints_are_asked_side_by_side(tmp_path: Path):
    with StandIn(echo, delay_s=lambda _number: 0.05) as one, StandIn(echo, delay_s=lambda _number: 0.05) as other:
        asked = [Questions(spec(stand_in, concurrency=1), questions(12), "x") for stand_in in (one, other)]
        with Session(tmp_path) as session:
            assert session.ask_each(asked, str) == [answers(12), answers(12)]
    assert other.served[0].began_at < one.served[-1].began_at


def test_where_one_of_several_fails_the_others_stop_and_keep_what_came(tmp_path: Path):
    with (
        StandIn(echo, delay_s=lambda _number: 0.02) as good,
        StandIn(echo, lambda number: Fault.FORBIDDEN if number else None) as bad,
    ):
        asked = [Questions(spec(stand_in, concurrency=1), questions(500), "x") for stand_in in (good, bad)]
        with Session(tmp_path) as session, pytest.raises(InvalidInputError, match="401"):
            session.ask_each(asked, str)
        came = len(good.served)
        assert came < 400
        with Session(tmp_path) as session:
            session.ask(Questions(spec(good), questions(came), "x"), str)
        assert len(good.served) == came


def test_one_run_at_a_time_works_in_a_folder(tmp_path: Path):
    from zephyr_local.errors import OutputError

    with Session(tmp_path), pytest.raises(OutputError, match="another run works in"), Session(tmp_path):
        pass
