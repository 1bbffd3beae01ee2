"""Distributions, the share of longer answers, and the report as Markdown."""

from __future__ import annotations

import json

import pytest

from zephyr_local.chat_types import Message
from zephyr_local.train.data.pair_report import markdown
from zephyr_local.train.data.pair_statistics import (
    OTHER_SOURCES,
    SOURCES_SHOWN,
    PairStatistics,
    PairTokens,
    Verdicts,
)
from zephyr_local.train.data.preference_records import Answer, Preference
from zephyr_local.train.data.report import DataReport


def pair(chosen, rejected, scores=(None, None), source="one"):
    return Preference(
        (Message("user", "Why?"),), "id", source, Answer("c" * chosen, scores[0]), Answer("r" * rejected, scores[1])
    )


def statistics(*pairs):
    found = PairStatistics()
    for one in pairs:
        found.add(one)
    return found.as_json()


def test_how_often_the_longer_was_chosen_by_source():
    found = statistics(
        pair(9, 1), pair(9, 1), pair(9, 1), pair(1, 9), pair(3, 3, source="two"), pair(1, 9, source="two")
    )

    longer = found["longer_chosen_characters"]
    assert (longer["longer"], longer["shorter"], longer["equal"], longer["longer_share"]) == (3, 2, 1, 0.5)
    assert found["sources"]["one"]["longer_chosen_characters"]["longer_share"] == 0.75
    assert found["sources"]["two"]["longer_chosen_characters"]["longer_share"] == 0.0
    assert "longer_chosen_tokens" not in found


def test_tokens_may_tell_otherwise_than_characters():
    found = PairStatistics()
    found.add(pair(9, 1), PairTokens(4, 2, 5))
    as_json = found.as_json()

    assert as_json["longer_chosen_characters"]["longer"] == 1
    assert as_json["longer_chosen_tokens"]["shorter"] == 1
    assert as_json["tokens"]["rejected"]["mean"] == 5.0


def test_scores_and_margins():
    found = statistics(pair(1, 2, (5.0, 1.0)), pair(1, 2, (4.0, 3.0)), pair(1, 2))

    assert found["scores"]["margin"]["n"] == 2
    assert (found["scores"]["margin"]["mean"], found["scores"]["chosen"]["p50"]) == (2.5, 4.5)
    assert found["sources"]["one"]["mean_margin"] == 2.5
    assert found["pairs"] == 3


def test_histograms_hold_every_pair_once():
    found = statistics(*(pair(n, 5000 - n, (n / 7, n / 9)) for n in range(1, 200)))

    for unit in ("scores", "characters"):
        for measure in found[unit].values():
            bins = measure["histogram"]
            assert sum(count for _, _, count in bins) == 199
            assert all(low < high for low, high, _ in bins)
            assert bins[0][0] <= measure["min"]
            assert bins[-1][1] >= measure["max"]
            assert len(bins) <= 21


@pytest.mark.parametrize(
    "scores",
    [(0.0, 0.0), (1e9, -1e9), (1e-300, 0.0), (-5.0, -5.0), (0.3, 0.1), (1e9, 1e9 - 1e-7), (5e-324, 0.0)],
)
def test_scores_of_any_size_have_a_histogram(scores):
    found = statistics(pair(1, 2, scores), pair(2, 1, scores[::-1]))

    assert all(sum(count for *_, count in found["scores"][name]["histogram"]) == 2 for name in found["scores"])
    json.dumps(found, allow_nan=False)


def test_rare_sources_are_told_together():
    many = [pair(2, 1, source=f"rare {n}") for n in range(SOURCES_SHOWN + 9)]
    found = statistics(*many, pair(2, 1, source="rare 7"))

    assert len(found["sources"]) == SOURCES_SHOWN + 1
    assert next(iter(found["sources"])) == "rare 7"
    assert found["sources"][OTHER_SOURCES]["pairs"] == 9


def test_win_rates_as_alpaca_eval_counts_them():
    verdicts = Verdicts()
    models = {"generator_1": "baseline", "generator_2": "ours"}
    for verdict in (2.0, 2.0, 1.0, 1.5, None):
        verdicts.add(models, verdict)
    verdicts.add({}, 1.75)
    other, ours = verdicts.as_json()

    assert ours == {
        "model": "ours",
        "against": "baseline",
        "win_rate": 62.5,
        "wins": 2,
        "losses": 1,
        "ties": 1,
        "without_verdict": 1,
    }
    assert other["win_rate"] == 75.0


def test_verdicts_of_names_that_are_no_names():
    verdicts = Verdicts()
    verdicts.add({"generator_1": "\ud800", "generator_2": ["x"]}, None)

    json.dumps(verdicts.as_json(), ensure_ascii=False).encode()
    assert verdicts.as_json()[0]["win_rate"] is None


def test_markdown_shows_the_counts_and_stays_a_table_whatever_the_names():
    collected = PairStatistics()
    collected.add(pair(9, 1, (5.0, 1.0), source="a|b\n# <script>"), PairTokens(3, 4, 5))
    report = DataReport("preferences", n_read=12, n_kept=11, dropped={"a tie": 1})
    report.facts = {
        "settings": {"seed": 0},
        "answers_left_out": {"answers without a score left out": 2},
        "verdicts": [
            {"model": "m", "against": "n", "win_rate": None, "wins": 0, "losses": 0, "ties": 0, "without_verdict": 1}
        ],
        "splits": {"train": {"prompts": 1, **collected.as_json()}},
    }
    text = markdown(report)

    assert text.startswith("# Preferences: 11 of 12 records kept\n")
    assert "| a tie | 1 |" in text
    assert "| answers without a score left out | 2 |" in text
    assert "| characters | 1 (100.0%) | 0 (0.0%) | 0 (0.0%) |" in text
    assert "| tokens | 0 (0.0%) | 1 (100.0%) | 0 (0.0%) |" in text
    assert "a\\|b # &lt;script>" in text
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# Preferences: 11 of 12 records kept",
        "## train: 1 pairs",
    ]
