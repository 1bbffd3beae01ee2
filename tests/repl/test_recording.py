"""docs/chat.md: the session is what a run gives, its commands are those that there are, and its tests exist."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.cli.command import ROOT
from zephyr_local.repl.commands import COMMANDS, KEYS

PAGE = (ROOT / "docs" / "chat.md").read_text(encoding="utf-8")


@pytest.mark.skipif(sys.platform == "win32", reason="pexpect has no pseudo-terminals on Windows")
def test_the_recorded_session_is_what_a_run_gives() -> None:
    done = subprocess.run(
        [sys.executable, "docs/record_chat.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_the_page_has_every_command_and_no_other() -> None:
    section = PAGE.partition("## Commands")[2].partition("## On the screen")[0]
    named = set(re.findall(r"`(/[a-z]+)", "\n".join(line for line in section.splitlines() if line.startswith("|"))))
    assert named == {command.name for command in COMMANDS}
    for key in ("Ctrl+J", "Alt+Enter", "Ctrl+R", "Ctrl+X Ctrl+E", "Ctrl+C", "Ctrl+D", "//", '"""'):
        assert key in section
        assert key in KEYS


def test_each_line_of_the_comparison_leads_to_a_test_that_exists() -> None:
    table = PAGE.partition("## Beside others")[2].partition("## What was tried")[0]
    numbers = [int(number) for number in re.findall(r"\[(\d+)\]", table.partition("The tests:")[0])]
    assert numbers == list(range(1, len(numbers) + 1))
    tests = table.partition("The tests:")[2]
    for number in numbers:
        found = re.search(rf"^{number}\. (.*?)(?=^\d+\. |\Z)", tests, re.MULTILINE | re.DOTALL)
        assert found, number
        named = re.findall(r"\[(test_\w+)\]\(\.\./(tests/[\w/]+\.py)\)", found.group(1))
        assert named, number
        for test, path in named:
            assert re.search(rf"^def {test}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), test
