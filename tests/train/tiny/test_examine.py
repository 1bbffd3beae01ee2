"""The exam of a run: what it needs, and what it leaves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from zephyr_local.convert.hf_to_gguf import ConvertOptions, convert_checkpoint
from zephyr_local.errors import InvalidInputError
from zephyr_local.quantize.types import FileType
from zephyr_local.train.tiny.card import FRONT_MATTER
from zephyr_local.train.tiny.dialogues import exam
from zephyr_local.train.tiny.examine import examine


@pytest.fixture
def run(tmp_path: Path, small_folder: Path) -> Path:
    for stage, kept in (("pretrain", 1000), ("dsft", 2000), ("ddpo", 300)):
        folder, data = tmp_path / stage, tmp_path / "data" / stage
        shutil.copytree(small_folder, folder)
        (folder / "README.md").write_text(FRONT_MATTER)
        data.mkdir(parents=True)
        (data / "report.json").write_text(json.dumps({"kept": kept}))
        (folder / "results.json").write_text(json.dumps({"n_steps": 7, "elapsed_s": 60.0, "n_parameters": 123_456}))
        (folder / "done.json").write_text("{}")
    convert_checkpoint(tmp_path / "ddpo", tmp_path / "tiny-F32.gguf", FileType.F32, ConvertOptions())
    return tmp_path


def test_a_run_is_examined(run: Path):
    examination = examine(run, exam(per_topic=1)[:6])
    assert list(examination.results) == ["pretrain", "dsft", "ddpo", "tiny-F32.gguf"]
    examination.write(run / "exam")
    values = json.loads((run / "exam" / "exam.json").read_text())
    assert values["ddpo"]["asked"] == 6
    results = (run / "exam" / "results.md").read_text()
    columns = "| topic | pre-training | dSFT | dDPO | tiny-F32.gguf |"
    assert columns in results
    assert "| dDPO | 300 pairs of answers | 7 | 60 |" in results
    card = (run / "exam" / "zephyr-tiny.md").read_text()
    assert card.startswith("# zephyr-tiny")
    assert columns in card
    assert "0.1 million parameters" in card
    assert "2,000 chats" in card


def test_an_unfinished_run_is_refused(run: Path):
    (run / "ddpo" / "done.json").unlink()
    with pytest.raises(InvalidInputError, match="stage ddpo is not done"):
        examine(run)


def test_a_run_without_its_gguf_is_refused(run: Path):
    (run / "tiny-F32.gguf").unlink()
    with pytest.raises(InvalidInputError, match="0 GGUF files"):
        examine(run)
