"""The terminal chat: reads lines, streams answers, obeys /commands."""

from __future__ import annotations

import sys
from contextlib import closing

from zephyr_local.chat_types import Finish
from zephyr_local.errors import ContextExceededError, EngineError, InvalidInputError, ZephyrError
from zephyr_local.repl.conversation import Conversation, timing_line
from zephyr_local.repl.screen import visible

HELP = """\
/help    this list
/clear   forget the conversation (the system prompt stays)
/exit    leave; Ctrl+D does the same
Ctrl+C   stop the answer and keep what came"""

GREETING = "Type a message, /help for the commands, /exit to leave."


def _out(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _err(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - this is the terminal front end


def answer_once(conversation: Conversation, question: str) -> None:
    """Answer ``question`` on stdout, with nothing else there but a final newline; Ctrl+C ends the process with 130."""
    on_terminal = sys.stdout.isatty()
    if not question.strip():
        raise InvalidInputError("the question is empty", 'Pipe one in, or use --prompt "…"')
    last = ""
    finish: Finish | None = None
    try:
        with closing(conversation.chat.stream(question)) as pieces:
            for piece in pieces:
                if piece.text:
                    _out(visible(piece.text) if on_terminal else piece.text)
                    last = piece.text
                finish = piece.finish
    finally:
        if not last.endswith("\n"):
            _out("\n")
    _after_answer(conversation, finish)


def _answer(conversation: Conversation, question: str) -> None:
    finish: Finish | None = None
    try:
        with closing(conversation.chat.stream(question)) as pieces:
            for piece in pieces:
                _out(visible(piece.text))
                finish = piece.finish
        _out("\n")
    except KeyboardInterrupt:
        _out("\n[stopped]\n")
    except EngineError:
        _out("\n")
        raise
    except ContextExceededError as error:
        _out("\n")
        _err(f"error: {visible(error.problem)}. /clear begins a new conversation.")
    except ZephyrError as error:
        # Such as a template that refuses the chat: the conversation goes on.
        _out("\n")
        _err(f"error: {visible(str(error))}")
    _after_answer(conversation, finish)


def _after_answer(conversation: Conversation, finish: Finish | None) -> None:
    if finish is None:
        return
    if finish.reason == "length":
        limit = conversation.sampling.max_tokens
        cut_by_limit = limit is not None and finish.completion_tokens >= limit
        where = f"--max-tokens {limit}" if cut_by_limit else "the end of the context"
        _err(f"[the answer was cut at {where}]")
    if conversation.show_timings:
        _err(timing_line(finish))


def _obey(conversation: Conversation, line: str) -> bool:
    """Carry out a /command; True where the chat ends."""
    match line.split()[0]:
        case "/exit" | "/quit" | "/bye":
            return True
        case "/clear":
            conversation.chat.clear()
            _err("The conversation is cleared.")
        case "/help" | "/?":
            _err(HELP)
        case unknown:
            _err(f"{visible(unknown)} is not a command; /help lists them.")
    return False


def chat_loop(conversation: Conversation) -> None:
    """Talk until /exit, Ctrl+D, or Ctrl+C twice at an empty prompt."""
    from prompt_toolkit import PromptSession

    session: PromptSession[str] = PromptSession()
    zephyr = conversation.zephyr
    _err(f"{visible(zephyr.model_name)}, {zephyr.n_ctx} tokens of context. {GREETING}")
    warned = False
    while True:
        try:
            line = session.prompt("> ").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            if warned:
                return
            warned = True
            _err("Ctrl+C again, Ctrl+D or /exit leaves.")
            continue
        warned = False
        if not line:
            continue
        if line.startswith("/"):
            if _obey(conversation, line):
                return
            continue
        _answer(conversation, line)
