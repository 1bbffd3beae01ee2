"""examples/desktop/qt_chat: its real window on a virtual screen, driven by mouse and keyboard."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import skip_or_fail
from tests.desktop.watching import is_gone
from tests.engine.conftest import slow_path  # noqa: F401 — a fixture

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "examples" / "desktop" / "qt_chat"
WATCHDOG_MS = 500.0
"""Ten times what a user may feel; the aim is 50 ms."""


@pytest.fixture(autouse=True)
def pyside6() -> None:
    if find_spec("PySide6") is None:
        skip_or_fail("PySide6", 'pip install -e ".[qt]"')


def run(display: str, script: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, script, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"DISPLAY": display, "QT_QPA_PLATFORM": "xcb", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=150,
    )


def told_by(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The lines ``name value`` of a driver that found all as it should be."""
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    told = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    sys.stdout.write(done.stdout)  # the figures, for whoever asks pytest for them
    for name, value in told.items():
        if name.startswith("stall_"):
            assert float(value) < WATCHDOG_MS, name
    return told


def drive(display: str, scenario: str, *arguments: object) -> dict[str, str]:
    return told_by(run(display, Path(__file__).with_name("drive_qt_chat.py"), scenario, *arguments))


def draw(display: str, scenario: str, *arguments: object) -> dict[str, str]:
    return told_by(run(display, Path(__file__).with_name("drive_qt_chat_text.py"), scenario, *arguments))


def saved_turns(folder: Path) -> list[str]:
    return [turn["content"] for turn in json.loads((folder / "last-chat.json").read_text())["turns"]]


def test_a_question_is_typed_sent_and_answered(display: str, tmp_path: Path) -> None:
    drive(display, "asking", tmp_path)
    assert saved_turns(tmp_path)[-1] == "The capital of Japan is Tokyo."


def test_a_chat_is_saved_and_opened(display: str, tmp_path: Path) -> None:
    drive(display, "saving_and_opening", tmp_path)
    assert (tmp_path / "mine.json").exists()
    assert (tmp_path / "previous-chat.json").exists()  # the one that New chat put aside


def test_a_model_is_chosen_by_a_double_click(display: str, tmp_path: Path) -> None:
    drive(display, "choosing", tmp_path)


def test_a_load_is_stopped(display: str, tmp_path: Path, slow_path: Path) -> None:  # noqa: F811
    drive(display, "stopping_a_load", tmp_path, slow_path)


def test_a_load_that_fails_is_told_and_another_model_taken(display: str, tmp_path: Path) -> None:
    drive(display, "failing", tmp_path, "no-such-model")


def test_stop_while_the_chat_is_read_gives_the_question_back(
    display: str,
    tmp_path: Path,
    slow_path: Path,  # noqa: F811
) -> None:
    drive(display, "stopping", tmp_path, slow_path)
    assert list(tmp_path.iterdir()) == []  # nothing was said


def test_closed_in_the_middle_of_an_answer(display: str, tmp_path: Path, slow_path: Path) -> None:  # noqa: F811
    told = drive(display, "closing", tmp_path, slow_path)
    assert is_gone(int(told["engine"]), within_s=0.5)  # the application's own process has ended
    question, answer = saved_turns(tmp_path)
    assert question == "hello"
    assert answer != ""
    resumed = drive(display, "resuming", tmp_path)
    assert resumed["resumed"] == f"{len(question)} {len(answer)}"


def test_a_chat_that_cannot_be_read_is_put_aside(display: str, tmp_path: Path) -> None:
    (tmp_path / "last-chat.json").write_text("damaged")
    drive(display, "resuming_damaged", tmp_path)
    assert (tmp_path / "previous-chat.json").read_text() == "damaged"
    assert len(saved_turns(tmp_path)) == 2


def test_a_crash_while_nobody_waits(display: str, tmp_path: Path) -> None:
    drive(display, "crashing", tmp_path)


def test_a_crash_in_an_answer(display: str, tmp_path: Path, slow_path: Path) -> None:  # noqa: F811
    drive(display, "crashing_in_an_answer", tmp_path, slow_path)


def test_an_answer_looks_the_same_however_it_arrives(display: str) -> None:
    draw(display, "growing")


def test_an_answer_does_no_harm(display: str, tmp_path: Path) -> None:
    draw(display, "harmless", tmp_path)


def test_long_answers_leave_the_window_usable(display: str) -> None:
    assert set(draw(display, "stalls")) == {"stall_idle_ms", "stall_writing_ms", "stall_opening_ms"}


def test_self_test(display: str, tmp_path: Path) -> None:
    picture = tmp_path / "window.png"
    done = run(display, APP, "--self-test", "What is the capital of France?", "--screenshot", picture)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "The capital of France is Paris.\n"
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["no-such-model", "--self-test", "hello"], 1, "no-such-model is not on this machine"),
        (["--n-ctx", "1", "--self-test", "hello"], 2, "n_ctx is 1, outside"),
    ],
)
def test_self_test_that_fails(display: str, arguments: list[str], status: int, said: str) -> None:
    done = run(display, APP, *arguments)
    assert done.returncode == status
    assert said in done.stderr
    assert done.stdout == ""
