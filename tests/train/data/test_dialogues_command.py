"""`zephyr-local data dialogues`: its flags reach the settings, its report stands on stderr and beside the output."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from zephyr_local.cli.data_dialogues import command
from zephyr_local.errors import InvalidInputError
from zephyr_local.train.data.dialogue_settings import DialogueSettings


def run(*arguments: object) -> str:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stderr


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.json"
    chats = [{"instruction": f"question {number}. is it?", "output": f"Answer {number}."} for number in range(60)]
    claim = {"instruction": "Why?", "output": "As an AI, I don't have opinions."}
    path.write_text(json.dumps([*chats, claim, chats[0]]))
    return path


def test_cleans_as_the_paper_does(source: Path, tmp_path: Path):
    said = run(source, "-o", tmp_path / "out" / "train.jsonl")
    assert said.splitlines() == [
        "read 62, kept 60",
        "dropped 1: feelings or opinions disclaimed unasked",
        "dropped 1: the same as an earlier one",
        "changed 60: truecased",
        "train: 60 dialogues, 120 turns, 1,720 characters",
    ]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.json", "train.jsonl"]


def test_every_step_can_be_left_out(source: Path, tmp_path: Path):
    off = ("--no-truecase", "--keep-feelings", "--duplicates", "none")
    assert run(source, "-o", tmp_path / "o.parquet", *off).splitlines()[0] == "read 62, kept 62"


def test_splits_and_keeps_prompts_out(source: Path, tmp_path: Path):
    exam = tmp_path / "exam.txt"
    exam.write_text("question 7. is it?\n")
    said = run(source, "-o", tmp_path / "a.jsonl", "--test", tmp_path / "b.jsonl", "--held-out", 10, "--against", exam)
    assert "dropped 1: a prompt to keep out of training" in said
    assert "train: 49 dialogues" in said
    assert "test: 10 dialogues" in said


def test_refuses_what_leads_nowhere(source: Path, tmp_path: Path):
    with pytest.raises(InvalidInputError, match="Name one with --test"):
        run(source, "-o", tmp_path / "a.jsonl", "--held-out", 0.1)
    with pytest.raises(InvalidInputError, match="Give one of the two"):
        run(
            source,
            "-o",
            tmp_path / "a.jsonl",
            "--test",
            tmp_path / "b.jsonl",
            "--test-input",
            source,
            "--held-out",
            0.1,
        )
    with pytest.raises(InvalidInputError, match="no dialogue format"):
        run(source, "-o", tmp_path / "a.jsonl", "--format", "oasst")


def test_flags_are_settings_and_the_help_tells_their_defaults():
    defaults = DialogueSettings()
    settings = {field.name for field in fields(DialogueSettings)}
    others = {"inputs", "output", "test_inputs", "test"}
    options = {parameter.name: parameter for parameter in command.params}
    assert set(options) - others <= settings
    for name, shown in {"held_out": "[0.01]", "near_threshold": "[0.8]", "run_words": "[13]", "seed": "[0]"}.items():
        option = options[name]
        assert isinstance(option, click.Option)
        assert str(option.help).endswith(shown + ".")
        assert float(shown[1:-1]) == getattr(defaults, name)
