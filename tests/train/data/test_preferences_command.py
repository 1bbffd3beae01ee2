"""`data preferences` as people call it."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from zephyr_local.cli.data_preferences import command
from zephyr_local.errors import InvalidInputError


def call(*args):
    result = CliRunner().invoke(command, [str(arg) for arg in args], catch_exceptions=True)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.jsonl"
    rows = [{"prompt": f"Question {n}?", "chosen": "a" * (n % 3 + 1), "rejected": "bb"} for n in range(300)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_pairs_and_both_reports(source, tmp_path):
    out, test = tmp_path / "pairs.jsonl", tmp_path / "test.jsonl"
    reports = ["--report", tmp_path / "report.md", "--report", tmp_path / "report.json"]
    result = call(source, "-o", out, "--test", test, "--held-out", "0.1", *reports)

    assert result.exit_code == 0
    assert result.stdout == ""
    assert "read 300, kept 300" in result.stderr
    assert "the longer answer (in characters) was chosen in 3" in result.stderr
    assert len(out.read_text().splitlines()) + len(test.read_text().splitlines()) == 300
    assert json.loads((tmp_path / "report.json").read_text())["settings"]["held_out"] == 0.1
    assert (tmp_path / "report.md").read_text().startswith("# Preferences: 300 of 300")


def test_every_option_reaches_its_setting(source, tmp_path):
    report = tmp_path / "report.json"
    options = {
        "--format": "pairs",
        "--score": "overall",
        "--rejected": "length-matched",
        "--ties": "redraw",
        "--max-length-ratio": "3",
        "--drop-source": "elsewhere",
        "--seed": "7",
    }
    flat = [part for option in options.items() for part in option]
    assert call(source, "-o", tmp_path / "o.jsonl", "--report", report, *flat).exit_code == 0

    settings = json.loads(report.read_text())["settings"]
    assert settings == {
        "format": "pairs",
        "score": "overall",
        "rejected": "length-matched",
        "ties": "redraw",
        "min_margin": 0.0,
        "max_length_ratio": 3.0,
        "drop_sources": ["elsewhere"],
        "drop_duplicates": True,
        "max_length": None,
        "max_prompt_length": None,
        "held_out": 0.0,
        "seed": 7,
    }


def test_wrong_values_are_refused_before_anything_is_written(source, tmp_path):
    out = tmp_path / "o.jsonl"
    for wrong in (["--report", "report.txt"], ["--held-out", "2"], ["--max-length", "9"], ["--format", "xml"]):
        with pytest.raises(InvalidInputError):
            call(source, "-o", out, *wrong)
    assert call(source, "-o", out, "--ties", "maybe").exit_code == 2
    assert call("-o", out).exit_code == 2
    assert not out.exists()
