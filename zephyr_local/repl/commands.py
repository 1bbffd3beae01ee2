"""The /commands of the terminal chat."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, get_args

from zephyr_local.chat_fit import Policy
from zephyr_local.errors import InvalidInputError, ZephyrError
from zephyr_local.repl.exchange import (
    MOST_DIGITS,
    attach_file,
    copy_answer,
    list_chats,
    load_chat,
    name_chat,
    path_of,
    save_chat,
)
from zephyr_local.repl.late_model import LoadFailed
from zephyr_local.repl.sampling_values import NAMES, UNSET, parse_value, range_text, value_text
from zephyr_local.repl.transcript_view import UNFINISHED, branch_line, one_line, show_last, show_turns
from zephyr_local.repl.view import SlowBar

if TYPE_CHECKING:
    from pathlib import Path

    from zephyr_local.repl.session import Session

Argument = Literal["", "path", "setting", "chat", "question", "branch", "policy"]
"""What Tab completes after a command."""


@dataclass(frozen=True, slots=True)
class Command:
    """A word that begins with a slash."""

    usage: str
    help: str
    run: Callable[[Session, str], object]
    argument: Argument = ""

    @property
    def name(self) -> str:
        return self.usage.split()[0]


# --- answers ---


def _regenerate(session: Session, _: str) -> None:
    turns = session.conversation.chat.turns
    session.answer(session.conversation.regenerate)
    if turns and session.conversation.chat.turns == turns and session.conversation.sampling.temperature == 0:
        session.view.note("[at temperature 0 it is the same answer; /set temperature 0.7 gives others]")


def _edit(session: Session, argument: str) -> None:
    number, _, text = argument.strip().partition(" ")
    questions = session.questions()
    if not questions:
        raise InvalidInputError("there is no question to edit", "Ask something first")
    which = _number(number, len(questions), "question") if number else len(questions)
    index, question = questions[which - 1]
    if text.strip():
        session.answer(lambda on_prefill: session.conversation.edit(index, text.strip(), on_prefill))
    else:
        session.begin_edit(index, question)


def _continue(session: Session, _: str) -> None:
    session.answer(session.conversation.go_on, nothing="[nothing follows: the answer was whole]")


# --- the past ---


def _undo(session: Session, _: str) -> None:
    question = session.conversation.undo()
    session.view.note(f'Back to before "{one_line(question.content)}"; /redo brings it back.')


def _redo(session: Session, _: str) -> None:
    session.conversation.redo()
    turns = session.conversation.chat.turns
    session.view.note(f'"{one_line(turns[-2].content)}" and its answer are back.')


def _branch(session: Session, argument: str) -> None:
    conversation = session.conversation
    if not conversation.chat.turns:
        raise InvalidInputError("the chat has no turns to branch from", "Ask something first")
    index = None
    if argument.strip():
        questions = session.questions()
        index = questions[_number(argument, len(questions), "question") - 1][0] + 1
    before = conversation.stored.id
    conversation.branch(index)
    where = "" if session.is_saving else ", which is not saved"
    session.view.note(
        f"This is chat {conversation.stored.id} now, a copy with {len(conversation.chat.turns)} turns{where}; "
        f"/load {before} goes back."
    )


def _branches(session: Session, argument: str) -> None:
    chat = session.conversation.chat
    branches = chat.branches()
    if not branches:
        raise InvalidInputError("the chat has no turns yet", "Ask something first")
    if argument.strip():
        which = _number(argument, len(branches), "branch")
        session.conversation.go_to(branches[which - 1].place)
        show_last(session.view, chat.turns, session.conversation.last_state())
        return
    for number, branch in enumerate(branches, 1):
        mark = "*" if branch.place == chat.place else " "
        session.view.text(f"{mark}{number:3}  {len(branch.turns):3} turns  {branch_line(branch.turns)}")
    session.view.note("/branches N goes over to one.")


def _show(session: Session, _: str) -> None:
    chat = session.conversation.chat
    if chat.system is not None:
        session.view.text(f"system: {chat.system}")
    show_turns(session.view, chat.turns)
    if session.conversation.last_state() in ("interrupted", "length"):
        session.view.note(UNFINISHED)
    elif not chat.turns:
        session.view.note("The chat has no turns yet.")


def _clear(session: Session, _: str) -> None:
    before = session.conversation.stored.id
    session.conversation.new()
    kept = f" The one before is chat {before}; /load {before} goes back." if before is not None else ""
    session.view.note(f"A new chat; the system prompt stays.{kept}")


# --- how it answers ---


def _system(session: Session, argument: str) -> None:
    chat = session.conversation.chat
    if argument.strip():
        text = argument.strip()
        session.conversation.set_system(None if text in ('""', "none") else text)
    said = "There is no system prompt." if chat.system is None else f"The system prompt: {chat.system}"
    session.view.note(said)


def _set(session: Session, argument: str) -> None:
    conversation = session.conversation
    name, _, text = argument.strip().partition(" ")
    name = name.replace("-", "_")
    if not name:
        width = max(map(len, NAMES))
        for each in NAMES:
            mark = "*" if each in conversation.changes else " "
            value = value_text(getattr(conversation.sampling, each))
            session.view.text(f"{mark}{each:{width}}  {value:12} {range_text(each)}", indent=width + 3)
        session.view.note(f"* set in this chat; /set NAME {UNSET} takes it back.")
        return
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, 1, 0.4)
        guess = f"Did you mean {near[0]}? " if near else ""
        raise InvalidInputError(f"{name} is not a sampling setting", f"{guess}/set lists them")
    if not text.strip():
        session.view.note(f"{name} is {value_text(getattr(conversation.sampling, name))} ({range_text(name)}).")
        return
    if text.strip() == UNSET:
        conversation.reset_sampling(name)
    else:
        conversation.set_sampling(name, parse_value(name, text))
    session.view.note(f"{name} is {value_text(getattr(conversation.sampling, name))}.")


def _overflow(session: Session, argument: str) -> None:
    chat = session.conversation.chat
    word = argument.strip().replace("-", "_")
    if word:
        if word not in get_args(Policy):
            choices = ", ".join(policy.replace("_", "-") for policy in get_args(Policy))
            raise InvalidInputError(f"/overflow {argument.strip()} is not known", f"Use one of {choices}")
        session.conversation.set_policy(word)  # type: ignore[arg-type]  # it is one of them
    session.view.note(f"When the context is full: {chat.policy.replace('_', '-')}.")


def _model(session: Session, argument: str) -> None:
    conversation = session.conversation
    if not argument.strip():
        session.view.note(f"The model is {conversation.model.label} ({conversation.model.path or 'bundled'}).")
        return
    before = conversation.model
    path: Path | None = None
    assumed: str | None = None
    from zephyr_local.model_store.names import is_bundled_name

    if not is_bundled_name(argument.strip()):
        from zephyr_local.model_store.library import assumed_template, resolve

        try:
            is_empty = not argument.strip("\"' ")  # of which path_of makes the current folder
            resolved = resolve("" if is_empty else str(path_of(argument)), before.settings)
        except ZephyrError as error:
            still = f"the model is still {conversation.model.label}"
            raise InvalidInputError(error.problem, f"{error.remedy}; {still}") from None
        path, assumed = resolved.path, assumed_template(resolved)
        for notice in resolved.notices:
            session.view.note(notice)
    bar = SlowBar(session.view, f"Loading {argument.strip()}")
    # A template that was given for a model is that model's.
    conversation.use_model(path, session.model_changed, before.template if path == before.path else assumed)
    try:
        conversation.wait(lambda share: bar.update(share, 1))
    except (ZephyrError, LoadFailed, KeyboardInterrupt) as error:
        bar.clear()
        problem = error.error if isinstance(error, LoadFailed) else error
        if isinstance(problem, ZephyrError):
            session.view.error(problem)
        conversation.use_model(before.path, session.model_changed, before.template)
        session.view.note(f"The model is still {conversation.model.label}.")
        return
    finally:
        bar.clear()
    conversation.count()
    session.view.note(f"The model is {conversation.model.label}, {conversation.model.n_ctx} tokens of context.")


def _stats(session: Session, _: str) -> None:
    for line in session.stats():
        session.view.text(line)


def _editor(session: Session, argument: str) -> None:
    session.edit_outside(argument)


def _help(session: Session, _: str) -> None:
    width = max(len(command.usage) for command in COMMANDS)
    for command in COMMANDS:
        session.view.text(f"{command.usage:{width}}  {command.help}", indent=width + 2)
    session.view.text(KEYS)


def _exit(session: Session, _: str) -> None:
    session.is_leaving = True


KEYS: Final = '''
Enter sends; Ctrl+J or Alt+Enter begins a new line, and so does Enter after """ until the next """.
Tab completes; Up and Ctrl+R find earlier lines; Ctrl+X Ctrl+E opens $EDITOR.
Ctrl+C stops an answer and keeps what came; at an empty prompt, twice leaves. Ctrl+D leaves.
// at the beginning sends a message that begins with /.'''

COMMANDS: Final[tuple[Command, ...]] = (
    Command("/regen", "another answer to the last question; the one before stays as a branch", _regenerate),
    Command("/edit [N [TEXT]]", "ask question N again in other words (else the last one)", _edit, "question"),
    Command("/continue", "go on with an answer that was cut short", _continue),
    Command("/undo", "go back to before the last question", _undo),
    Command("/redo", "take back the last /undo", _redo),
    Command("/branch [N]", "go on in a copy of this chat, up to the answer to question N", _branch, "question"),
    Command("/branches [N]", "what else was said in this chat; go over to it", _branches, "branch"),
    Command("/show", "the chat so far, its questions numbered", _show),
    Command("/copy [code]", "the last answer, or its last code block, to the clipboard", copy_answer),
    Command("/file PATH", "a text file that goes with the next message; none takes it back", attach_file, "path"),
    Command("/system [TEXT]", 'the system prompt; "" removes it', _system),
    Command("/set [NAME [VALUE]]", "how answers are sampled", _set, "setting"),
    Command("/overflow [WHAT]", "stop, drop-oldest or summarise when the context is full", _overflow, "policy"),
    Command("/model [MODEL]", "go on with another model", _model, "path"),
    Command("/stats", "the model, the context, and what answers cost", _stats),
    Command("/title [TEXT]", "what the chat is called", name_chat),
    Command("/chats [TEXT]", "the saved chats, or those with TEXT in them", list_chats),
    Command("/save [PATH]", "a copy of the chat as a file", save_chat, "path"),
    Command("/load N|PATH", "go over to a saved chat, or to one of a file", load_chat, "chat"),
    Command("/clear", "begin a new chat; the one before stays saved", _clear),
    Command("/editor [TEXT]", "write the message in $EDITOR", _editor),
    Command("/help", "this list", _help),
    Command("/exit", "leave; Ctrl+D does the same", _exit),
)
_BY_NAME: Final = {command.name: command for command in COMMANDS}
_ALIASES: Final = {"/quit": "/exit", "/bye": "/exit", "/?": "/help", "/new": "/clear", "/retry": "/regen"}


def obey(session: Session, line: str) -> None:
    """Carry out a line that begins with a slash. Raises InvalidInputError for what is no command."""
    name, *rest = line.split(maxsplit=1)
    command = _BY_NAME.get(_ALIASES.get(name, name))
    if command is None:
        near = difflib.get_close_matches(name, _BY_NAME, 1)
        guess = f"Did you mean {near[0]}? " if near else ""
        raise InvalidInputError(
            f"{name} is not a command", f"{guess}/help lists them; // at the beginning sends it as a message"
        )
    command.run(session, rest[0] if rest else "")


def _number(text: str, most: int, what: str) -> int:
    text = text.strip()
    if not text.isdecimal() or len(text) > MOST_DIGITS or not 1 <= int(text) <= most:
        raise InvalidInputError(
            f"there is no {what} {text!r}", f"Give a number from 1 to {most}" if most else "Ask first"
        )
    return int(text)
