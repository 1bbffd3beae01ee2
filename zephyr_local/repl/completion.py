"""What Tab completes: commands, settings and their values, files, chats, questions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, get_args

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from zephyr_local.chat_fit import Policy
from zephyr_local.errors import ZephyrError
from zephyr_local.repl.commands import COMMANDS
from zephyr_local.repl.sampling_values import NAMES, UNSET, range_text, value_text
from zephyr_local.repl.transcript_view import branch_line, one_line

if TYPE_CHECKING:
    from zephyr_local.repl.session import Session

_BY_NAME = {command.name: command for command in COMMANDS}


class CommandCompleter(Completer):
    """Completes lines that begin with a slash, and no others."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        if not text.startswith("/") or text.startswith("//") or "\n" in text:
            return
        name, blank, argument = text.partition(" ")
        if not blank:
            for command in COMMANDS:
                if command.name.startswith(name):
                    yield Completion(command.name, -len(name), display=command.usage, display_meta=command.help)
        elif (known := _BY_NAME.get(name)) is not None:
            yield from self._argument(known.argument, argument, complete_event)

    def _argument(self, kind: str, argument: str, event: CompleteEvent) -> Iterator[Completion]:
        if kind == "setting" and " " in argument:
            name, _, value = argument.partition(" ")
            if name in NAMES:
                yield from _matching(value, self._values(name))
            return
        yield from _matching(argument, self._choices(kind))
        if kind in ("path", "chat"):
            wants_hidden = argument.rpartition("/")[2].startswith(".")
            for path in self._paths.get_completions(Document(argument), event):
                if wants_hidden or not path.display_text.startswith("."):
                    yield path

    def _choices(self, kind: str) -> list[tuple[str, str]]:
        """Words and what they stand for."""
        session = self._session
        if kind == "setting":
            sampling = session.conversation.sampling
            return [(name, f"{value_text(getattr(sampling, name))}; {range_text(name)}") for name in NAMES]
        if kind == "policy":
            return [(policy.replace("_", "-"), "") for policy in get_args(Policy)]
        if kind == "question":
            return [(str(number), one_line(text)) for number, (_, text) in enumerate(session.questions(), 1)]
        if kind == "branch":
            branches = session.conversation.chat.branches()
            return [(str(number), branch_line(branch.turns)) for number, branch in enumerate(branches, 1)]
        if kind == "chat":
            try:
                return [(str(chat.id), one_line(chat.title)) for chat in session.conversation.store.summaries()[:50]]
            except ZephyrError:
                return []
        return []

    def _values(self, name: str) -> list[tuple[str, str]]:
        sampling = self._session.conversation.sampling
        return [(value_text(getattr(sampling, name)), f"now; {range_text(name)}"), (UNSET, "as at the beginning")]


def _matching(begun: str, choices: Iterable[tuple[str, str]]) -> Iterator[Completion]:
    for word, meaning in choices:
        if word.startswith(begun):
            yield Completion(word, -len(begun), display_meta=meaning)
