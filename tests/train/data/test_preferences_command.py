"""`data preferences` as people call it."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from tests.checkpoint_builder import ModelShape, build_checkpoint, mistral_sentencepiece_model
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


def test_lengths_by_a_checkpoints_tokenizer(tmp_path):
    shape = ModelShape(hidden_size=32, ffn_size=32, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=32000)
    folder = build_checkpoint(tmp_path / "model", shape, tokenizer=mistral_sentencepiece_model(), dtype="F32")
    rows = [{"prompt": f"{n}?", "chosen": "yes " * words, "rejected": "no"} for n, words in enumerate((1, 30, 300))]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = tmp_path / "r.json"
    result = call(source, "-o", tmp_path / "o.jsonl", "--tokenizer", folder, "--max-length", "100", "--report", report)

    assert result.exit_code == 0
    assert [len(json.loads(line)["chosen"][0]["content"]) for line in (tmp_path / "o.jsonl").open()] == [4, 120]
    told = json.loads(report.read_text())
    assert told["dropped"] == {"prompt and answer of more than 100 tokens": 1}
    assert 32 <= told["splits"]["train"]["tokens"]["chosen"]["max"] <= 36  # 30 words, the end token, what follows it


def test_wrong_values_are_refused_before_anything_is_written(source, tmp_path):
    out = tmp_path / "o.jsonl"
    for wrong in (["--report", "report.txt"], ["--held-out", "2"], ["--max-length", "9"], ["--format", "xml"]):
        with pytest.raises(InvalidInputError):
            call(source, "-o", out, *wrong)
    assert call(source, "-o", out, "--ties", "maybe").exit_code == 2
    assert call("-o", out).exit_code == 2
    assert not out.exists()
