"""What a child process is given."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from zephyr_local import child_process


def test_threads_that_wait_spin_briefly_unless_the_user_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    def spin_count() -> str | None:
        return child_process._environment("engine").get("GOMP_SPINCOUNT")

    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert spin_count() == "1000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert spin_count() == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert spin_count() is None


def program_of(monkeypatch: pytest.MonkeyPatch, **more: object) -> str | None:
    """What an application would start, which Nuitka compiled and about which it says ``more``."""
    main = ModuleType("__main__")
    main.__compiled__ = SimpleNamespace(**more)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "__main__", main)
    return child_process._frozen_program()


def test_what_an_application_of_nuitka_starts_as_its_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/apps/chat.bin", "a question"])
    unpacked = program_of(monkeypatch, standalone=True, process_exe="/tmp/onefile_1/chat.bin")
    assert unpacked == "/tmp/onefile_1/chat.bin"
    assert program_of(monkeypatch, standalone=True) == "/apps/chat.bin"  # before Nuitka said it
    assert program_of(monkeypatch, standalone=False, process_exe="/apps/chat.bin") is None  # has an interpreter


LAUNCHED = """
import os, sys
sys.executable = {application!r}
sys.path.insert(0, {root!r})
import zephyr_local
if "FORGETFUL" not in os.environ:
    zephyr_local.freeze_support()
print("the application", flush=True)
with zephyr_local.Zephyr() as zephyr:
    print(zephyr.complete([zephyr_local.Message("user", "What is the capital of France?")]).text)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the launcher is a shell script")
def test_a_launcher_that_runs_the_application_whatever_it_is_given(tmp_path: Path) -> None:
    """As Briefcase's, which takes the place of the interpreter without being one, and does not say so."""
    application, script = tmp_path / "application", tmp_path / "main.py"
    script.write_text(LAUNCHED.format(application=str(application), root=str(Path(__file__).parents[1])))
    application.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
    application.chmod(0o755)
    done = subprocess.run([application], capture_output=True, text=True, timeout=60)
    answer = "The capital of France is Paris."
    assert (done.returncode, done.stdout, done.stderr) == (0, f"the application\n{answer}\n", "")
    # One that forgets the first line must not start itself over and over.
    forgot = os.environ | {"FORGETFUL": "1"}
    done = subprocess.run([application], capture_output=True, text=True, timeout=60, env=forgot)
    assert done.returncode != 0
    assert done.stdout == "the application\n"
    assert "freeze_support" in done.stderr
