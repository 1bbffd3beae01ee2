"""The paper's ablation: what is trained from what, that it goes on, and how its numbers are made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.command import zephyr_local
from zephyr_local.errors import InvalidInputError
from zephyr_local.train.tiny.ablation import VARIANTS, AblationFolder, AblationSettings, run_ablation
from zephyr_local.train.tiny.ablation_report import Estimate, win_shares

FEW = ("--seeds", "1", "--epochs", "2", "--start-steps", "3", "--second-steps", "2", "--pretrain-steps", "3")
FEW += ("--teacher-steps", "3", "--prompts", "36", "--judged", "6", "--threads", "1")


@pytest.mark.slow
def test_it_trains_every_variant_with_the_same_budget_and_goes_on(tmp_path: Path):
    done = zephyr_local("train", "ablation", "-o", tmp_path / "out", *FEW, home=tmp_path, timeout_s=900)
    assert done.returncode == 0, done.stderr
    for name in VARIANTS.values():
        assert f"| {name} | 5 |" in done.stdout
    folder = AblationFolder(tmp_path / "out")
    values = json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert [row["name"] for row in values["epochs"]] == ["0", "1", "2"]
    assert {"train", "test"} == values["epochs"][1]["accuracy"].keys()
    rated = (tmp_path / "out" / "rated.jsonl").read_text()
    assert len(rated.splitlines()) == 36
    chosen = [json.loads(line) for line in (tmp_path / "out" / "chosen.jsonl").read_text().splitlines()]
    assert all(chat["messages"][-1]["role"] == "assistant" for chat in chosen)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("done.json")}
    assert len(before) == 1 + 2 + 6  # the new model, what all share, a seed's six
    folder.marks(1, "dsft-ddpo").unlink()
    again = zephyr_local("train", "ablation", "-o", tmp_path / "out", *FEW, home=tmp_path, timeout_s=900)
    assert again.stdout == done.stdout
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("done.json")} == before


def test_an_ablation_of_other_settings_is_not_mixed_in(tmp_path: Path):
    (tmp_path / "settings.json").write_text(json.dumps({"pretrain_steps": 7}))
    with pytest.raises(InvalidInputError, match="pretrain_steps was 7 and is 600"):
        run_ablation(tmp_path, AblationSettings(), None, print)


def test_more_seeds_may_come_later(tmp_path: Path):
    from zephyr_local.train.tiny.ablation import _require_same

    folder = AblationFolder(tmp_path)
    _require_same(folder, AblationSettings(seeds=1))
    _require_same(folder, AblationSettings(seeds=3))
    with pytest.raises(InvalidInputError, match="epochs was 5 and is 4"):
        _require_same(folder, AblationSettings(epochs=4))


def test_a_setting_below_one_is_told():
    with pytest.raises(InvalidInputError, match="seeds is 0"):
        AblationSettings(seeds=0)


def test_a_tie_is_half_a_win():
    assert win_shares([5.0, 3.0, 4.0], [4.0, 3.5, 4.0]) == [1.0, 0.0, 0.5]


def test_an_interval_holds_its_mean_and_narrows_with_questions():
    few = Estimate.of([[1.0, 0.0] * 10, [1.0, 1.0, 0.0, 0.0] * 5])
    many = Estimate.of([[1.0, 0.0] * 1000, [1.0, 1.0, 0.0, 0.0] * 500])
    assert few.mean == many.mean == 50
    assert few.low < 50 < few.high
    assert many.high - many.low < (few.high - few.low) / 5
    assert Estimate.of([[1.0] * 9]) == Estimate(100.0, 100.0, 100.0)


def test_seeds_that_disagree_widen_it():
    alike = Estimate.of([[1.0, 0.0] * 200] * 3)
    apart = Estimate.of([[1.0] * 400, [0.0] * 400, [1.0, 0.0] * 200])
    assert apart.mean == alike.mean == 50
    assert apart.high - apart.low > 3 * (alike.high - alike.low)
