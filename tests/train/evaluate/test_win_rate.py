"""AlpacaEval's numbers."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.command import ROOT, zephyr_local
from zephyr_local.errors import InvalidInputError
from zephyr_local.train.data.records import Record
from zephyr_local.train.evaluate.win_rate import Verdict, length_controlled, win_rate


def annotations(*preferences: object, outputs: tuple[str, str] = ("short", "a longer one")) -> list[Record]:
    return [
        Record(f"a.json:{n}", {"output_1": outputs[0], "output_2": outputs[1], "preference": preference})
        for n, preference in enumerate(preferences, start=1)
    ]


def test_a_win_is_2_a_loss_is_1_and_all_else_a_tie():
    rate = win_rate(annotations(2, 2.0, "2", 1, 0, 1.5, 7, -1))
    assert (rate.n_wins, rate.n_losses, rate.n_ties, rate.n_without) == (3, 1, 4, 0)
    assert rate.win_rate == pytest.approx(100 * 5 / 8)


def test_null_is_left_out():
    rate = win_rate(annotations(2, None, 1, None))
    assert (rate.win_rate, rate.n_judged, rate.n_without) == (50.0, 2, 2)


def test_a_probability_is_a_share_of_a_win():
    rate = win_rate(annotations(1.9, 1.2))
    assert rate.win_rate == pytest.approx(55)
    assert (rate.n_wins, rate.n_losses) == (1, 1)


def test_the_error_is_that_of_the_mean():
    shares = [1, 1, 0, 0.5, 1]
    rate = win_rate(annotations(*(share + 1 for share in shares)))
    assert rate.standard_error == pytest.approx(100 * np.std(shares, ddof=1) / math.sqrt(5))


def test_lengths_are_in_characters():
    rate = win_rate(annotations(2, 1))
    assert (rate.mean_length, rate.mean_reference_length, rate.longer_share) == (12, 5, 100)
    assert rate.length_controlled is None  # all differ by the same: nothing can be told apart


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([Record("a.json:1", {"output_1": "x"})], "a.json:1 has no preference"),
        (annotations(None, None), "no annotation has a preference"),
        ([], "no annotation has a preference"),
    ],
)
def test_what_holds_no_verdicts_is_told(records: list[Record], words: str):
    with pytest.raises(InvalidInputError, match=words):
        win_rate(records)


def drawn_verdicts(n: int, intercept: float, slope: float, seed: int) -> list[Verdict]:
    """Verdicts of a judge whose logit is the intercept plus the slope times the squashed difference in length."""
    dice = random.Random(seed)
    differences = [round(dice.gauss(300, 400)) for _ in range(n)]
    deviation = float(np.std(differences, ddof=1))
    found = []
    for difference in differences:
        p = 1 / (1 + math.exp(-(intercept + slope * math.tanh(difference / deviation))))
        found.append(Verdict(float(dice.random() < p), 1000 + difference, 1000))
    return found


def test_the_length_is_taken_out():
    verdicts = drawn_verdicts(20_000, intercept=-0.4, slope=2.0, seed=3)
    controlled = length_controlled(verdicts)
    assert controlled is not None
    plain = 100 * sum(one.share for one in verdicts) / len(verdicts)
    assert plain > 58
    assert controlled.win_rate == pytest.approx(100 / (1 + math.exp(0.4)), abs=3 * controlled.standard_error)
    assert controlled.slope == pytest.approx(2.0, abs=0.15)
    assert 0.3 < controlled.standard_error < 0.7


def test_its_error_is_how_much_it_varies():
    rates = [length_controlled(drawn_verdicts(500, 0.2, 1.0, seed)) for seed in range(150)]
    values = [one.win_rate for one in rates if one is not None]
    errors = [one.standard_error for one in rates if one is not None]
    assert np.mean(errors) == pytest.approx(np.std(values, ddof=1), rel=0.2)


def test_verdicts_that_are_probabilities_vary_less():
    dice = random.Random(5)
    rates, errors = [], []
    for _ in range(150):
        verdicts = []
        for _ in range(400):
            difference = round(dice.gauss(100, 300))
            share = 1 / (1 + math.exp(-(0.3 + difference / 500 + dice.gauss(0, 0.5))))
            verdicts.append(Verdict(share, 1000 + difference, 1000))
        controlled = length_controlled(verdicts)
        assert controlled is not None
        rates.append(controlled.win_rate)
        errors.append(controlled.standard_error)
    assert np.mean(errors) == pytest.approx(np.std(rates, ddof=1), rel=0.25)
    assert np.mean(errors) < 1.0


def test_of_few_wins_or_losses_nothing_is_said():
    verdicts = [Verdict(float(n < 9), 500 + 10 * n, 500) for n in range(40)]
    assert length_controlled(verdicts) is None


def test_a_judge_who_only_counts_characters_leaves_a_finite_number():
    verdicts = [Verdict(float(difference > 0), 500 + difference, 500) for difference in range(-100, 101, 7)]
    controlled = length_controlled(verdicts)
    assert controlled is not None
    assert 0 < controlled.win_rate < 100
    assert controlled.slope > 3


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def test_the_command_scores_files_that_are_there(tmp_path: Path):
    records = [dict(record.value) for record in annotations(2, 2, 2, 1)]
    file = write(tmp_path / "my-model" / "annotations.json", records)
    done = zephyr_local("evaluate", "alpaca-eval", "--annotations", file, "--json", home=tmp_path)
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert (value["model"], value["win_rate"], value["n_total"]) == ("my-model", 75.0, 4)
    other = write(tmp_path / "other" / "annotations.json", records[:1])
    shown = zephyr_local("evaluate", "alpaca-eval", "--annotations", file, "--annotations", other, home=tmp_path)
    lines = shown.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["model", "other", "my-model"]
    assert "75.00 %" in lines[2]


def test_the_command_needs_no_torch(tmp_path: Path):
    file = write(tmp_path / "m" / "annotations.json", [dict(record.value) for record in annotations(2, 1)])
    (tmp_path / "torch.py").write_text("raise ImportError('torch was imported')")
    (tmp_path / "transformers.py").write_text("raise ImportError('transformers was imported')")
    (tmp_path / "requests.py").write_text("raise ImportError('requests was imported')")
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = zephyr_local(
        "evaluate", "alpaca-eval", "--annotations", file, "--json", home=tmp_path, environment=environment
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["win_rate"] == 50.0
