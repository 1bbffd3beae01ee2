"""`zephyr-local chat`: a conversation on a terminal, one answer in a pipe."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast, get_args

import click
from click.core import ParameterSource

from zephyr_local.chat_fit import Policy
from zephyr_local.cli.configured import ConfiguredCommand, origin_of
from zephyr_local.cli.options import engine_options, sampling_options
from zephyr_local.cli.utf8_text import require_utf8
from zephyr_local.errors import ContextExceededError, InvalidInputError, ModelNotFoundError
from zephyr_local.settings import BUNDLED_MODEL_SAMPLING, MAX_N_CTX, EngineSettings, Sampling

if TYPE_CHECKING:
    from zephyr_local.chat_file import ChatRecord
    from zephyr_local.repl.conversation import Conversation
    from zephyr_local.repl.late_model import LateModel
    from zephyr_local.repl.once import OutputForm
    from zephyr_local.repl.view import View
    from zephyr_local.transcripts.store import ChatStore
    from zephyr_local.transcripts.stored_chat import StoredChat

REAL_MODEL_HINT = (
    "This is zephyr-tiny, 2 MB to try things with. The real one: zephyr-local pull zephyr-7b-beta, then "
    "zephyr-local chat zephyr-7b-beta; zephyr-local models list tells what is on this machine"
)
MAX_STDIN_BYTES = 64 * MAX_N_CTX  # more than any context holds
POLICIES = [policy.replace("_", "-") for policy in get_args(Policy)]


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for, by flags, environment and configuration."""

    model: Path | None
    """A file or a name, the bundled model's among them; None where none was asked for."""
    is_one_word: bool
    """Whether the model is all that was said: it may have been meant as a question."""
    question: str | None
    system: str | None
    template: str | None
    policy: Policy | None
    continues: bool
    chat: int | None
    save: bool | None
    history: bool
    form: OutputForm
    verbose: bool
    given_sampling: frozenset[str]
    """The fields of ``Sampling`` that a flag or the environment gave: these win over what a saved chat says."""


@click.command("chat", cls=ConfiguredCommand, short_help="Talk with a model in the terminal, or answer once in a pipe.")
@click.argument("model", required=False)
@click.argument("question", required=False)
@click.option("--prompt", "-p", metavar="TEXT", help="Answer TEXT once and leave; the same as QUESTION.")
@click.option("--system", metavar="TEXT", help="System prompt: what the model is told before the conversation.")
@click.option(
    "--template", metavar="zephyr|FILE", help="Chat template, where the model has none or in place of its own."
)
@click.option("--continue", "-c", "continues", is_flag=True, help="Go on with the chat that was changed last.")
@click.option("--chat", type=int, metavar="N", help="Go on with chat N; zephyr-local chats list has the numbers.")
@click.option(
    "--overflow",
    type=click.Choice(POLICIES),
    default="stop",
    show_default=True,
    help="When the context is full: stop, no longer show the model the oldest turns, or a summary of them.",
)
@click.option("--save/--no-save", default=None, help="Keep the chat; else conversations are kept, single answers not.")
@click.option("--history/--no-history", default=None, help="Remember typed lines for the next time; else as --save.")
@click.option("--plain/--no-plain", help="Show answers as they come, without rendering their Markdown.")
@click.option(
    "--theme",
    type=click.Choice(["auto", "light", "dark", "none"]),
    default="auto",
    show_default=True,
    help="Colours for a light or dark background.",
)
@click.option("--json", "as_json", is_flag=True, help="Answer once, as one JSON object.")
@click.option("--jsonl", "as_jsonl", is_flag=True, help="Answer once, as JSON events, one a line.")
@sampling_options
@engine_options
@click.option("--verbose", is_flag=True, help="Timings after each answer, and what llama.cpp warns of.")
@click.pass_context
def command(
    ctx: click.Context,
    model: str | None,
    question: str | None,
    prompt: str | None,
    system: str | None,
    template: str | None,
    continues: bool,
    chat: int | None,
    overflow: str,
    save: bool | None,
    history: bool | None,
    plain: bool,
    theme: str,
    as_json: bool,
    as_jsonl: bool,
    verbose: bool,
    sampling: Sampling,
    settings: EngineSettings,
) -> None:
    """Talk with MODEL, a GGUF file or the name of a model on this machine; without it, with the bundled tiny model.

    On a terminal this is a conversation, which is saved as it happens: /help lists its commands, Ctrl+C stops an
    answer. With a QUESTION, or where stdin or stdout is not a terminal, one answer goes to stdout, and everything else
    to stderr; what stands on stdin follows the question. A single word is a MODEL, words are a QUESTION.
    """
    if sys.stdout is None:
        raise InvalidInputError("stdout is closed", "Send it to a terminal, a file or a pipe")
    if continues and chat is not None:
        raise click.UsageError("--continue is for the chat that was changed last, --chat for another; choose one.")
    if as_json and as_jsonl:
        raise click.UsageError("--json and --jsonl are two forms of one answer; choose one.")
    model, question = _model_and_question(ctx, model, question, prompt)
    given = {name for name in ctx.params if origin_of(ctx, name).startswith(("flag", "environment"))}
    # A saved chat has its own of these, which what is configured for all chats does not change.
    counts = given if continues or chat is not None else set(ctx.params)
    request = Request(
        Path(model) if model is not None and "model" in counts else None,
        question is None and ctx.get_parameter_source("model") is ParameterSource.COMMANDLINE,
        require_utf8(question, "the question"),
        require_utf8(system or None, "the system prompt") if "system" in counts else None,
        template if "template" in counts else None,
        cast("Policy", overflow.replace("-", "_")) if "overflow" in counts else None,
        continues,
        chat,
        save,
        history if history is not None else save is not False,
        "json" if as_json else "jsonl" if as_jsonl else "text",
        verbose,
        frozenset(given & {field.name for field in dataclasses.fields(Sampling)}),
    )
    if verbose:
        logging.basicConfig(format="%(message)s", stream=sys.stderr)
        logging.getLogger("zephyr_local").setLevel(logging.INFO)
    is_default = ctx.get_parameter_source("temperature") is ParameterSource.DEFAULT

    def base_sampling(is_bundled: bool) -> Sampling:
        if is_bundled and is_default:
            return dataclasses.replace(sampling, temperature=BUNDLED_MODEL_SAMPLING.temperature)
        return sampling

    _chat(request, settings, base_sampling, plain=plain, theme=theme)


def _chat(
    request: Request, settings: EngineSettings, base_sampling: Callable[[bool], Sampling], *, plain: bool, theme: str
) -> None:
    once = request.question is not None or not (_is_terminal(sys.stdin) and _is_terminal(sys.stdout))
    if request.form != "text" and not once:
        raise click.UsageError("--json and --jsonl are for one answer: give a QUESTION, or pipe one in.")
    if isinstance(sys.stdout, io.TextIOWrapper):
        if request.form == "text":
            sys.stdout.reconfigure(errors="replace")  # a terminal that is not UTF-8 shows ? for what it lacks
        else:
            sys.stdout.reconfigure(encoding="utf-8")  # as JSON is
    with contextlib.ExitStack() as stack:
        if request.form == "jsonl":
            from zephyr_local.repl.once import errors_as_events

            stack.enter_context(errors_as_events(sys.stdout))
        if not once:
            from zephyr_local.repl.terminal_mode import quiet_input

            stack.enter_context(quiet_input())  # before anything that takes time: what is typed now is kept, too
        store, opened, model = _open(request, settings, is_saving=_is_saving(request, once=once))
        stack.callback(store.close)
        stack.callback(model.close)

        from zephyr_local.repl.conversation import Conversation
        from zephyr_local.repl.theme import choose_theme
        from zephyr_local.repl.view import View

        view = View(choose_theme(theme, os.environ), plain=plain)  # type: ignore[arg-type]  # click checked it
        if opened is None and request.model is None and model.path is None:
            view.note(REAL_MODEL_HINT)
        conversation = Conversation(
            model, store, base_sampling, system=request.system, policy=request.policy or "stop", tell=view.note
        )
        if opened is not None:
            _go_on(conversation, opened, request)
        stack.callback(lambda: conversation.close())
        if once:
            _once(conversation, view, request)
        else:
            _converse(conversation, view, request)


def _open(
    request: Request, settings: EngineSettings, *, is_saving: bool
) -> tuple[ChatStore, tuple[StoredChat, ChatRecord] | None, LateModel]:
    """The store, the chat in it that is gone on with, and the model, which does not load yet."""
    from zephyr_local.repl.late_model import LateModel

    file, template = (None, request.template) if request.model is None else _find(request.model, request, settings)
    goes_on = request.continues or request.chat is not None
    model = None if goes_on else LateModel(file, settings, template)
    try:
        from zephyr_local.transcripts.store import ChatStore
        from zephyr_local.transcripts.stored_chat import StoredChat

        store = ChatStore(ChatStore.default_path() if is_saving else None)
        if model is not None:
            return store, None, model
        try:
            number = request.chat if request.chat is not None else store.newest()
            last = store.newest(even_open=True)
            if number is None and last is not None:
                raise InvalidInputError(
                    f"chat {last} is open in another terminal", "Leave it there first, or begin another chat"
                )
            if request.continues and number != last:
                click.echo(f"Chat {last} is open in another terminal; this is the one before.", err=True)
            if number is None:
                raise InvalidInputError("there is no chat to go on with", "Begin one: zephyr-local chat")
            stored, record = StoredChat.resume(store, number)
            path = file
            if template is None and request.model is None:  # a template that was given for a model is that model's
                template = stored.origin.template
            if request.model is None and stored.origin.model is not None:
                path = Path(stored.origin.model)
                if not _exists(stored.origin.model):
                    raise ModelNotFoundError(
                        f"there is no file {path}, with which chat {number} was held",
                        "Put it back, or give another MODEL",
                    )
            return store, (stored, record), LateModel(path, settings, template)
        except BaseException:
            store.close()
            raise
    except BaseException:
        if model is not None:
            model.close()
        raise


def _go_on(conversation: Conversation, opened: tuple[StoredChat, ChatRecord], request: Request) -> None:
    conversation.take_over(*opened)
    conversation.override(request.given_sampling)
    if request.model is not None or request.template is not None:
        conversation.remember_model()
    if request.system is not None:
        conversation.chat.system = request.system
    if request.policy is not None:
        conversation.set_policy(request.policy)


def _once(conversation: Conversation, view: View, request: Request) -> None:
    from zephyr_local.repl.late_model import LoadFailed
    from zephyr_local.repl.once import answer_once

    def ask() -> str:
        # Only now, so that a wrong MODEL is told before stdin is waited for.
        piped = "" if _is_terminal(sys.stdin) else _read_stdin()
        if request.question is None and not piped:
            raise InvalidInputError("stdin holds no question", 'Pipe one in, or use --prompt "…"')
        return "\n\n".join(part for part in (request.question, piped) if part)

    try:
        answer_once(conversation, view, ask, request.form, show_timings=request.verbose)
    except LoadFailed as failed:
        raise failed.error from None


def _converse(conversation: Conversation, view: View, request: Request) -> None:
    from zephyr_local.repl.late_model import LoadFailed
    from zephyr_local.repl.session import Session
    from zephyr_local.repl.transcript_view import show_last
    from zephyr_local.user_folders import state_folder

    is_saving = conversation.store.path is not None
    session = Session(
        conversation,
        view,
        history_path=state_folder() / "history" if request.history else None,
        is_saving=is_saving,
        show_timings=request.verbose,
    )
    conversation.model.on_change = session.model_changed
    kept = "" if is_saving else " Nothing is saved."
    view.note(f"{conversation.model.label}. Type a message; /help lists the commands, /exit leaves.{kept}")
    if conversation.chat.turns:
        turns = conversation.chat.turns
        view.note(f"Chat {conversation.stored.id}, {conversation.stored.title!r}, {len(turns)} turns. The last:")
        show_last(view, turns, conversation.last_state())
    try:
        session.run()
    except LoadFailed as failed:
        raise failed.error from None


def _model_and_question(
    ctx: click.Context, model: str | None, question: str | None, prompt: str | None
) -> tuple[str | None, str | None]:
    """What the words on the command line mean: one that has blanks and names no file is a question."""
    if question is not None and prompt is not None:
        raise click.UsageError("QUESTION and --prompt are the same; give one of them.")
    is_ours = ctx.get_parameter_source("model") is ParameterSource.COMMANDLINE
    if model == "" and (question is not None or prompt is not None):
        raise click.UsageError("MODEL is empty.")
    if model is not None and question is None and is_ours and _is_question(model):
        if prompt is not None:
            raise click.UsageError(f"{model!r} is no model, and QUESTION and --prompt are the same; give one of them.")
        question = model
        configured: Any = ctx.lookup_default("model")
        model = None if configured is None else str(configured)
        ctx.set_parameter_source("model", ParameterSource.DEFAULT if model is None else ParameterSource.DEFAULT_MAP)
    return model, question if question is not None else prompt


def _is_question(word: str) -> bool:
    return not word or (any(map(str.isspace, word)) and not word.lower().endswith(".gguf") and not _exists(word))


def _exists(word: str) -> bool:
    with contextlib.suppress(OSError, ValueError):  # too long for a name, or with a NUL
        return Path(word).exists()
    return False


def _find(name: Path, request: Request, settings: EngineSettings) -> tuple[Path | None, str | None]:
    """The file of a path or a name, None for the bundled model's, and its template; tells what the load would later."""
    if _exists(str(name)):
        return name, request.template
    from zephyr_local.model_store.names import is_bundled_name

    if is_bundled_name(str(name)):
        return None, request.template
    from zephyr_local.cli.first_use import find_model  # which a path need not wait for

    return find_model(name, settings, template=request.template, is_one_word=request.is_one_word)


def _is_saving(request: Request, *, once: bool) -> bool:
    if request.continues or request.chat is not None:
        if request.save is False:
            raise click.UsageError("--continue and --chat go on with a saved chat, and so do not go with --no-save.")
        return True
    return not once if request.save is None else request.save


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()  # Python has None for a stream that was closed before it began


def _read_stdin() -> str:
    data = sys.stdin.buffer.read(MAX_STDIN_BYTES + 1) if sys.stdin is not None else b""
    if len(data) > MAX_STDIN_BYTES:
        raise ContextExceededError(
            f"stdin is over {MAX_STDIN_BYTES} bytes, more than any context holds", "Pipe a part of it in"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"stdin is not UTF-8 (byte {error.start})", "Convert it first, for example with iconv"
        ) from None
    return text.removesuffix("\n").removesuffix("\r") if text.strip() else ""
