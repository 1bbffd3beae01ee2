"""What the ledger keeps, and how it counts money."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from zephyr_local.chat_types import Message
from zephyr_local.errors import OutputError
from zephyr_local.train.asking.ledger import BudgetReachedError, Ledger
from zephyr_local.train.asking.request import Answer, Price, Request

ASKED = Request((Message("user", "x" * 728),), max_tokens=1000)  # 1,000 tokens of prompt at most
PRICE = Price(1000, 2000)  # so the request costs $3 at most
KEY = ASKED.key("model")


def test_the_same_question_has_the_same_key_and_another_has_another():
    again = Request((Message("user", "x" * 728),), max_tokens=1000)
    assert again.key("model") == KEY
    others = [
        ASKED.key("other"),
        ASKED.again().key("model"),
        Request(ASKED.messages, max_tokens=999).key("model"),
        Request(ASKED.messages, max_tokens=1000, sample=1).key("model"),
        Request(ASKED.messages, max_tokens=1000, temperature=0.1).key("model"),
        Request((Message("system", "x" * 728),), max_tokens=1000).key("model"),
    ]
    assert len({KEY, *others}) == len(others) + 1


def test_an_answer_is_there_after_the_file_was_closed(tmp_path: Path):
    with Ledger(tmp_path / "asked.sqlite") as ledger:
        assert ledger.answer(KEY) is None
        number = ledger.begin(ASKED, KEY, "model", PRICE)
        ledger.keep(number, KEY, "model", Answer("naïve \x00 😀", "stop", 10, 20), PRICE)
    with Ledger(tmp_path / "asked.sqlite") as ledger:
        assert ledger.answer(KEY) == Answer("naïve \x00 😀", "stop", 10, 20)
        assert ledger.cost() == pytest.approx(10 * 0.001 + 20 * 0.002)
        assert ledger.cut_off() == (0, 0)


def test_the_budget_counts_what_is_under_way_at_its_highest_price(tmp_path: Path):
    with Ledger(tmp_path / "asked.sqlite", budget=7.0) as ledger:
        first = ledger.begin(ASKED, KEY, "model", PRICE)
        ledger.begin(ASKED, "another", "model", PRICE)
        with pytest.raises(BudgetReachedError, match=r"the budget of \$7 is reached: \$6.0000"):
            ledger.begin(ASKED, "a third", "model", PRICE)
        ledger.keep(first, KEY, "model", Answer("cheap", "stop", 10, 20), PRICE)  # 5 cents instead of $3
        ledger.begin(ASKED, "a third", "model", PRICE)


def test_the_budget_counts_earlier_runs_and_what_was_cut_off(tmp_path: Path):
    ledger = Ledger(tmp_path / "asked.sqlite", budget=5.0)
    ledger.begin(ASKED, KEY, "model", PRICE)  # and the process is killed here
    with Ledger(tmp_path / "asked.sqlite", budget=5.0) as again:
        assert again.cut_off() == (1, pytest.approx(3.0))
        with pytest.raises(BudgetReachedError):
            again.begin(ASKED, KEY, "model", PRICE)
    ledger.__exit__(None, None, None)


@pytest.mark.parametrize(("may_be_billed", "left"), [(True, 1), (False, 2)])
def test_a_try_without_an_answer_counts_where_it_may_be_billed(tmp_path: Path, may_be_billed: bool, left: int):
    with Ledger(tmp_path / "asked.sqlite", budget=6.5) as ledger:
        ledger.give_up(ledger.begin(ASKED, KEY, "model", PRICE), may_be_billed=may_be_billed)
        for number in range(left):
            ledger.begin(ASKED, f"{number}", "model", PRICE)
        with pytest.raises(BudgetReachedError):
            ledger.begin(ASKED, "more", "model", PRICE)


def test_what_is_free_passes_any_budget(tmp_path: Path):
    with Ledger(tmp_path / "asked.sqlite", budget=0.0) as ledger:
        ledger.begin(ASKED, KEY, "model", Price())
        assert ledger.n_under_way == 1


def test_a_file_that_is_no_ledger_is_left_alone(tmp_path: Path):
    path = tmp_path / "asked.sqlite"
    path.write_bytes(b"not a database, but something that somebody wrote\n" * 100)
    with pytest.raises(OutputError, match="cannot be used"):
        Ledger(path)
    assert path.read_bytes().startswith(b"not a database")


def test_a_ledger_of_a_newer_version_is_left_alone(tmp_path: Path):
    with sqlite3.connect(tmp_path / "asked.sqlite") as file:
        file.execute("pragma user_version=99")
    with pytest.raises(OutputError, match="newer zephyr-local"):
        Ledger(tmp_path / "asked.sqlite")


def test_on_a_full_disk_a_request_still_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with Ledger(tmp_path / "asked.sqlite", budget=5.0) as ledger:
        number = ledger.begin(ASKED, KEY, "model", PRICE)
        ledger._file.execute("pragma max_page_count = 1")  # SQLite's own way to say that nothing more fits
        with pytest.raises(OutputError, match="cannot be used"):
            ledger.keep(number, KEY, "model", Answer("x" * 100_000, "stop", 1, 1), PRICE)
        assert ledger.n_under_way == 1
        ledger.give_up(number, may_be_billed=True)
        with pytest.raises(BudgetReachedError):
            ledger.begin(ASKED, KEY, "model", PRICE)
