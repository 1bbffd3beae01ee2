"""Reward accuracy, by numbers that were worked out by hand."""

from __future__ import annotations

import json
import math

import pytest

from zephyr_local.errors import InvalidInputError
from zephyr_local.train.pair_accuracy import PairScore, Share, pair_accuracy


def score(chosen, rejected, lengths, reference=(0.0, 0.0)):
    return PairScore(chosen, rejected, *reference, *lengths)


# Margins with beta 0.5: +1 (longer), -2 (longer), +3 (shorter), 0 (shorter: a tie), +0.5 (equally long).
PAIRS = [
    score(-10.0, -12.0, (9, 5)),
    score(-10.0, -6.0, (8, 5)),
    score(-7.0, -20.0, (2, 5), reference=(-4.0, -11.0)),
    score(-7.0, -20.0, (2, 5), reference=(-4.0, -17.0)),
    score(-3.0, -4.0, (4, 4)),
]


def test_each_pair_counts_once_and_a_tie_is_wrong():
    found = pair_accuracy(PAIRS, beta=0.5)

    assert (found.every.right.n, found.every.right.n_right, found.n_ties) == (5, 3, 1)
    assert found.every.right.value == 0.6
    margins = found.every.margins
    assert (margins.mean, margins.median, margins.lowest, margins.highest) == (0.5, 0.5, -2.0, 3.0)
    # Rewards of the chosen: -5, -5, -1.5, -1.5, -1.5; of the rejected: -6, -3, -4.5, -1.5, -2.
    assert found.mean_reward_chosen == pytest.approx(-2.9)
    assert found.mean_reward_rejected == pytest.approx(-3.4)


def test_accuracy_by_which_answer_is_longer():
    found = pair_accuracy(PAIRS, beta=0.5)

    assert found.chosen_longer.right == Share(2, 1)
    assert found.chosen_shorter.right == Share(2, 1)
    assert found.equal_length.right == Share(1, 1)
    assert found.chosen_longer.margins.mean == -0.5
    assert found.pick_the_longer == Share(5, 2)
    assert found.length_balanced == 0.5


def test_a_model_that_prefers_length_alone_is_seen():
    longer = [score(-1.0, -2.0, (9, 5))] * 76
    shorter = [score(-2.0, -1.0, (5, 9))] * 24

    found = pair_accuracy(longer + shorter)

    assert found.every.right.value == found.pick_the_longer.value == 0.76
    assert found.length_balanced == 0.5


def test_beta_scales_margins_and_changes_no_verdict():
    few, many = pair_accuracy(PAIRS, beta=0.01), pair_accuracy(PAIRS, beta=10.0)

    assert few.every.right == many.every.right
    assert few.n_ties == many.n_ties
    assert many.every.margins.mean == pytest.approx(1000 * few.every.margins.mean)


def test_wilson_interval():
    # Worked out from the formula for 8 of 10 with z = 1.96: centre (0.8 + 0.19208) / 1.38416, half 0.2266.
    low, high = Share(10, 8).interval
    assert (low, high) == (pytest.approx(0.4902, abs=2e-4), pytest.approx(0.9433, abs=2e-4))
    assert Share(10, 0).interval == (0.0, pytest.approx(0.2775, abs=2e-4))
    assert Share(10, 10).interval == (pytest.approx(0.7225, abs=2e-4), 1.0)
    assert Share(0, 0).interval == (0.0, 1.0)


def test_groups_without_pairs():
    found = pair_accuracy([score(-1.0, -2.0, (3, 3))])

    assert found.length_balanced is None
    assert found.chosen_longer.margins is None
    assert found.chosen_longer.right.value is None
    assert any("no pairs" in line for line in found.lines())
    json.dumps(found.as_json(), allow_nan=False)


def test_as_json_and_markdown():
    found = pair_accuracy(PAIRS, beta=0.5)
    as_json = json.loads(json.dumps(found.as_json(), allow_nan=False))

    assert as_json["accuracy"]["share"] == 0.6
    assert as_json["chosen_shorter"]["pairs"] == 2
    assert as_json["pick_the_longer"]["share"] == 0.4
    lines = found.lines()
    assert lines[2].startswith("| all | 60.0% (23.1% to 88.2%) of 5 |")
    assert {line.count("|") for line in lines[:7]} == {5}
    assert "Ties, which count as wrong: 1." in lines[-1]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_by_its_place(bad):
    with pytest.raises(InvalidInputError, match="pair 2"):
        pair_accuracy([PAIRS[0], score(-1.0, bad, (1, 1))])


def test_no_pairs_and_no_beta_are_refused():
    with pytest.raises(InvalidInputError, match="no pairs"):
        pair_accuracy([])
    for beta in (0.0, -1.0, math.nan):
        with pytest.raises(InvalidInputError, match="beta"):
            pair_accuracy(PAIRS, beta=beta)
