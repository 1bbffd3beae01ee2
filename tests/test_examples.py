"""Each example runs as it stands, and type-checks against the package as its users' code does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXPECTED = {
    "async_answers.py": ["France? The capital of France is Paris.", "7 times 8? 7 times 8 is 56."],
    "desktop_app.py": [
        "zephyr-tiny is ready",
        "The capital of France is Paris. [stop]",
        " [stopped]",
        "Tokyo. [stop]",
    ],
    "stream_answer.py": ["Paris"],
}


def test_every_example_is_tried():
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_example_runs(name: str, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / name],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for expected in EXPECTED[name]:
        assert expected in done.stdout


def test_examples_have_sound_types(tmp_path: Path):
    pytest.importorskip("mypy")
    assert (ROOT / "zephyr_local" / "py.typed").exists()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path}"),
            "--follow-imports=silent",  # make check looks at the package itself
            *sorted((ROOT / "examples").glob("*.py")),
        ],
        cwd=tmp_path,
        env=os.environ | {"MYPYPATH": str(ROOT)},  # an editable installation is not found by a type checker
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
