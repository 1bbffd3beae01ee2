"""Records the session of docs/chat.md: runs the commands on a pseudo-terminal and writes down what the screens show.

    python docs/record_chat.py           # writes the page's block anew
    python docs/record_chat.py --check   # says whether it is as it stands

The tests run the check. Not on Windows.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.cli.command import ROOT, isolated
from tests.repl.terminal_driver import Terminal

PAGE = ROOT / "docs" / "chat.md"
BEGIN, END = "<!-- recorded by docs/record_chat.py -->\n```\n", "```\n<!-- end of the recording -->"
NOTES = "Oslo is the capital of Norway.\nMadrid is the capital of Spain.\n"

SESSIONS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("chat",),
        (
            "What is the capital of France?",
            "and of Japan?",
            "/edit 2 and of Italy?",
            "/branches",
            "/branches 1",
            "/undo",
            "/redo",
            "/set temperature",
            "/set temperature 200",
            "/file notes.txt",
            "What does a cow say?",
            "/title Capitals",
            "/exit",
        ),
    ),
    (("chat", "--continue"), ("/branch 1", "and of Spain?", "/load 1", "/exit")),
)
PIPES = (
    "zephyr-local chats search tokyo",
    "zephyr-local chats export 2",
    'echo "What is the capital of Norway?" | zephyr-local chat 2>/dev/null',
)


def record() -> str:
    """What the screens show."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "notes.txt").write_text(NOTES, encoding="utf-8")
        parts = [_session(home, command, lines) for command, lines in SESSIONS]
        parts += [f"$ {command}\n{_shell(home, command)}" for command in PIPES]
    return "\n".join(parts)


def _session(home: Path, command: tuple[str, ...], lines: tuple[str, ...]) -> str:
    terminal = Terminal(*command, home=home, cwd=home, columns=100)
    try:
        terminal.wait(lambda text: "/1024 >" in terminal.last_line)  # which shows the context once the model is loaded
        for line in lines[:-1]:
            terminal.ask(line)
        terminal.say(lines[-1])
        assert terminal.ended() == 0, terminal.text
        return f"$ zephyr-local {' '.join(command)}\n{terminal.text}\n"
    finally:
        terminal.close()


def _shell(home: Path, command: str) -> str:
    ours = f'zephyr-local() {{ "{sys.executable}" -m zephyr_local "$@"; }}\n{command}'
    done = subprocess.run(
        ["bash", "-c", ours], cwd=home, env=isolated(home), capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    old, _, after = rest.partition(END)
    new = record()
    if arguments.check:
        raise SystemExit(0 if new == old else f"{PAGE} has another recording:\n{new}")
    PAGE.write_text(f"{before}{BEGIN}{new}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    os.environ.pop("NO_COLOR", None)
    main()
