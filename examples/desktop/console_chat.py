"""A chat on a console, made to be frozen into one file: ``pyinstaller --onefile console_chat.py``.

Give it a question, or a question a line on stdin. It takes the bundled model unless it is told another one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable

from zephyr_local import Chat, EngineCrashed, Zephyr, ZephyrError, __version__, pull_model


def answer(chat: Chat, question: str) -> None:
    try:
        for piece in chat.stream(question):
            print(piece.text, end="", flush=True)
        print(flush=True)
    except EngineCrashed as error:  # the next question starts the engine again
        print(error, file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description="Chat with a model on this machine.")
    parser.add_argument("question", nargs="*", help="what to ask; without, a question a line is read from stdin")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", metavar="PATH", help="a GGUF, or the name of a model on this machine")
    which.add_argument("--pull", metavar="NAME", help="a model of the hub, fetched where it is not here yet")
    parser.add_argument("--version", action="version", version=f"zephyr-local {__version__}")
    given = parser.parse_args()
    questions: Iterable[str] = [" ".join(given.question)] if given.question else sys.stdin
    try:
        with Zephyr(pull_model(given.pull) if given.pull else given.model) as zephyr:
            chat = zephyr.chat(policy="drop_oldest")
            for question in filter(None, map(str.strip, questions)):
                answer(chat, question)
    except ZephyrError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())  # PyInstaller alone needs no freeze_support(): its hook calls it before this file begins
