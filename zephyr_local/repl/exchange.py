"""The /commands that take something out of the terminal chat or bring it in: files, the clipboard, other chats."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zephyr_local.chat_file import read_chat, write_chat
from zephyr_local.errors import InvalidInputError, ZephyrError
from zephyr_local.repl import clipboard
from zephyr_local.repl.code_blocks import code_blocks
from zephyr_local.repl.transcript_view import chat_lines, show_last

if TYPE_CHECKING:
    from zephyr_local.repl.session import Session

MOST_DIGITS: Final = 18  # SQLite has no larger numbers, and Python reads none of thousands of digits


def copy_answer(session: Session, argument: str) -> None:
    """The last answer, or its last code block, to the clipboard."""
    turns = session.conversation.chat.turns
    if not turns:
        raise InvalidInputError("there is no answer to copy", "Ask something first")
    text = turns[-1].content
    if argument.strip() == "code":
        blocks = code_blocks(text)
        if not blocks:
            raise InvalidInputError("the answer has no code block", "/copy copies all of it")
        text = blocks[-1]
    elif argument.strip():
        raise InvalidInputError(f"/copy {argument} is not known", "Use /copy, or /copy code for the last code block")
    tool = clipboard.copy_with_tool(text)
    if tool is not None:
        session.view.note(f"Copied {len(text)} characters with {tool}.")
        return
    sequence = clipboard.terminal_sequence(text)
    if sequence is None:
        raise InvalidInputError("the answer is too long for the terminal's clipboard", "Install xclip or wl-copy")
    session.view.write(sequence)
    session.view.note(f"Handed {len(text)} characters to the terminal, which may or may not put them on the clipboard.")


def attach_file(session: Session, argument: str) -> None:
    """A file goes with the next message."""
    conversation = session.conversation
    if not argument.strip():
        names = ", ".join(attachment.name for attachment in conversation.attachments)
        session.view.note(f"With the next message: {names}." if names else "No file goes with the next message.")
        return
    if argument.strip() == "none":
        conversation.attachments = []
        session.view.note("No file goes with the next message.")
        return
    path = path_of(argument)
    tokens = conversation.attach(path)
    session.view.note(f"{path.name}, {tokens} tokens, goes with your next message.")


def save_chat(session: Session, argument: str) -> None:
    """A copy of the chat as a file."""
    conversation = session.conversation
    if argument.strip():
        path = path_of(argument)
        if path.exists() and not _is_chat(path):
            raise InvalidInputError(f"{path} exists and is no chat", "Give another name")
        write_chat(path, conversation.chat.to_json())
        session.view.note(f"Wrote {path}; /load {path} reads it.")
    elif not session.is_saving:
        session.view.note("Nothing is saved (--no-save); /save FILE writes this chat to a file.")
    elif conversation.stored.id is None:
        session.view.note("The chat is saved by itself from its first question on.")
    else:
        session.view.note(f"This is chat {conversation.stored.id}, and saved by itself; /save FILE writes a copy.")


def load_chat(session: Session, argument: str) -> None:
    """Go over to a chat of the store, or to a copy of one in a file."""
    conversation = session.conversation
    argument = argument.strip()
    if not argument:
        raise InvalidInputError("/load needs a chat's number or a file", "/chats lists the numbers")
    if argument.isdecimal() and len(argument) <= MOST_DIGITS and not Path(argument).exists():
        conversation.resume(int(argument))
        session.take_up()
    else:
        conversation.take(read_chat(path_of(argument)))
    session.view.note(
        f"{len(conversation.chat.turns)} turns. The last:" if conversation.chat.turns else "No turns yet."
    )
    show_last(session.view, conversation.chat.turns, conversation.last_state())


def list_chats(session: Session, argument: str) -> None:
    """The newest chats of the store."""
    store = session.conversation.store
    summaries = store.summaries()
    if argument.strip():
        found = {hit.chat for hit in store.search(argument.strip())}
        summaries = [summary for summary in summaries if summary.id in found]
    shown = summaries[:20]
    for line in chat_lines(shown, current=session.conversation.stored.id, columns=session.view.columns()):
        session.view.text(line)
    rest = len(summaries) - len(shown)
    if rest:
        session.view.note(f"and {rest} older ones: zephyr-local chats list")
    if not summaries:
        session.view.note("There are no chats." if not argument.strip() else "No chat has that in it.")


def name_chat(session: Session, argument: str) -> None:
    """What the chat is called."""
    stored = session.conversation.stored
    if argument.strip():
        stored.title = argument.strip()
    session.view.note(f"The chat is called {stored.title!r}." if stored.title else "The chat has no title yet.")


def path_of(argument: str) -> Path:
    """The path that a person typed or a terminal wrote: in quotes, with blanks escaped, from the home folder."""
    text = argument.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]
    elif "\\ " in text and not os.path.exists(text):  # noqa: PTH110 — as terminals write a name that is dropped in
        text = text.replace("\\ ", " ")
    try:
        return Path(text).expanduser()
    except RuntimeError:  # a home folder that is not known
        return Path(text)


def _is_chat(path: Path) -> bool:
    try:
        read_chat(path)
    except ZephyrError:
        return False
    return True
