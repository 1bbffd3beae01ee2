"""Asking needs no torch; an endpoint needs requests and tenacity, and the message says so."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.cli.command import ROOT, zephyr_local
from tests.stand_in_endpoint import Messages, StandIn
from tests.train.evaluate.mt_data import drawn, write_bench


def without(folder: Path, *packages: str) -> dict[str, str]:
    """An environment in which importing any of the packages fails as if it were not installed."""
    blocked = folder / "blocked"
    blocked.mkdir()
    for package in packages:
        (blocked / f"{package}.py").write_text(f"raise ModuleNotFoundError('no {package} here')")
    return {"PYTHONPATH": f"{blocked}:{ROOT}"}


def run(folder: Path, environment: dict[str, str], arguments: Iterable[str | Path]) -> subprocess.CompletedProcess[str]:
    return zephyr_local(*arguments, home=folder, environment=environment)


def judging(messages: Messages) -> str:
    return "\n\n".join(f"Answer {n}\nRating: {n}\nReason: so." for n in (1, 2))


def test_models_are_asked_and_judged_without_torch(tmp_path: Path):
    environment = without(tmp_path, "torch", "transformers", "trl", "datasets", "pyarrow", "yaml", "pandas")
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "Hello?"}))
    with StandIn(judging) as stand_in:
        arguments = ["data", "feedback", tmp_path / "p.jsonl", "--candidate", "bundled", "--samples", "2", "--judge"]
        done = run(tmp_path, environment, [*arguments, f"{stand_in.url}#j", "-o", tmp_path / "rated.jsonl"])
        assert done.returncode == 0, done.stderr
    with StandIn(drawn) as stand_in:
        bench = [*write_bench(tmp_path), "--limit", "1", "--judge", f"{stand_in.url}#j", "--out", tmp_path / "mt"]
        done = run(tmp_path, environment, ["evaluate", "mt-bench", "bundled", *bench])
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", ["requests", "tenacity"])
def test_what_an_endpoint_needs_is_named(tmp_path: Path, package: str):
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "Hello?"}))
    arguments = ["data", "feedback", tmp_path / "p.jsonl", "--candidate", "http://127.0.0.1:9/v1#m", "--samples", "2"]
    arguments += ["--judge", "http://127.0.0.1:9/v1#j", "-o", tmp_path / "rated.jsonl"]
    done = run(tmp_path, without(tmp_path, package), arguments)
    assert done.returncode == 2
    assert f"needs {package}, which is not installed" in done.stderr
    assert 'pip install "zephyr-local[judge]"' in done.stderr
