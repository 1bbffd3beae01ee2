"""The terminal chat: reads lines, gives answers, obeys /commands, and ends only when it is told to."""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path
from types import FrameType

from zephyr_local.errors import InvalidInputError, ZephyrError
from zephyr_local.repl.answer import MakeAnswer, give_answer
from zephyr_local.repl.commands import obey
from zephyr_local.repl.conversation import Conversation, timing_line
from zephyr_local.repl.late_model import LoadFailed
from zephyr_local.repl.prompt import MULTILINE_MARK, Prompt
from zephyr_local.repl.screen import sound
from zephyr_local.repl.terminal_mode import usual_input
from zephyr_local.repl.view import View


class Session:
    """A person, a conversation and a screen."""

    def __init__(
        self,
        conversation: Conversation,
        view: View,
        *,
        history_path: Path | None,
        is_saving: bool,
        show_timings: bool = False,
    ) -> None:
        """``history_path`` None: typed lines are forgotten."""
        self.conversation, self.view = conversation, view
        self.is_saving, self.show_timings = is_saving, show_timings
        self.is_leaving = False
        self.editing: int | None = None
        """The turn of the question that the next line takes the place of."""
        self._draft = ""
        self._is_obeying = False
        self.was_interrupted = False
        """Whether Ctrl+C came between a prompt and what follows, which is to take it."""
        self._prompt = Prompt(self, view.theme, history_path)

    def run(self) -> None:
        """Talk until /exit, Ctrl+D, or Ctrl+C twice at an empty prompt. Raises LoadFailed.

        From then on the process ignores Ctrl+C: what is left to do takes a moment, and nobody waits for it.
        """
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._interrupted)
        try:
            self._talk()
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        if self._is_obeying:  # else it comes between a prompt and what follows, where there is nothing to end
            self._is_obeying = False  # once: what is told of it is not to be ended, too
            raise KeyboardInterrupt
        self.was_interrupted = True
        self._prompt.interrupted()

    def _talk(self) -> None:
        warned = False
        self.take_up()
        while not self.is_leaving:
            draft, self._draft = self._draft, ""
            try:
                line = self._prompt.read(draft)
            except EOFError:
                return
            except KeyboardInterrupt:
                if self.editing is not None:
                    self.stop_editing()
                elif warned:
                    return
                else:
                    warned = True
                    self.view.note("Ctrl+C again, Ctrl+D or /exit leaves.")
                continue
            warned = False
            self._handle(line)
            self.was_interrupted = False

    def _handle(self, line: str) -> None:
        text = message_of(line)
        try:
            if text is not None and not text.strip():
                return
            if self.editing is not None and text is not None:
                index, self.editing = self.editing, None
                self.answer(lambda on_prefill: self.conversation.edit(index, text, on_prefill), text)
            elif text is not None:
                self.answer(lambda on_prefill: self.conversation.ask(text, on_prefill), text)
            else:
                self._obey(line.strip())
        except ZephyrError as error:
            self.view.error(error)
        except LoadFailed:
            raise
        except OSError as error:  # where it is the terminal that is gone, to tell of it raises the next one
            where = f"{error.filename}: " if error.filename else ""
            self.view.error(ZephyrError(f"{where}{error.strerror or error}", "The chat goes on"))
        except KeyboardInterrupt:
            self.view.note("[stopped]")
        except Exception as error:
            logging.getLogger(__name__).debug("in %r", line, exc_info=True)
            self.view.error(
                ZephyrError(f"{type(error).__name__}: {error}", "This is a mistake of ours; the chat goes on")
            )

    def _obey(self, line: str) -> None:
        self._is_obeying = True
        try:
            if self.was_interrupted:
                raise KeyboardInterrupt
            if self.editing is not None:  # the command may change what is a turn's number
                self.stop_editing()
            obey(self, line)
        finally:
            self._is_obeying = False

    def answer(self, make: MakeAnswer, draft: str = "", *, nothing: str = "[the model said nothing]") -> None:
        """Show an answer; where nothing comes of it, ``draft`` stands at the prompt again."""
        came = give_answer(
            self.conversation,
            self.view,
            make,
            nothing=nothing,
            show_timings=self.show_timings,
            is_stopped=lambda: self.was_interrupted,
        )
        if not came:
            self._draft = line_of(draft)

    def take_up(self) -> None:
        """A question that was never answered stands at the prompt again."""
        stored = self.conversation.stored
        if stored.unanswered is not None:
            self._draft, stored.unanswered = line_of(stored.unanswered), None
            self.view.note("Your last question was not answered; it stands at the prompt again.")

    def begin_edit(self, index: int, question: str) -> None:
        """Have the next line be the question at turn ``index`` in other words."""
        self.editing, self._draft = index, line_of(question)

    def stop_editing(self) -> None:
        self.editing = None
        self.view.note("The question stays as it was.")

    def edit_outside(self, text: str) -> None:
        """Have the person write in their editor; what they wrote stands at the prompt."""
        import click

        try:
            with usual_input():
                written = click.edit(text, extension=".md")
        except click.ClickException as error:
            raise InvalidInputError(
                f"the editor: {error.format_message()}", "Set EDITOR to one that is there"
            ) from None
        except UnicodeDecodeError as error:
            raise InvalidInputError(f"the editor left no UTF-8 (byte {error.start})", "Save it as UTF-8") from None
        if written is None:
            self.view.note("Nothing was saved in the editor.")
        else:
            self._draft = sound(written.rstrip("\n"))

    def questions(self) -> list[tuple[int, str]]:
        """The questions of the current branch: the turn of each, and its text."""
        turns = self.conversation.chat.turns
        return [(index, turn.content) for index, turn in enumerate(turns) if turn.role == "user"]

    def stats(self) -> list[str]:
        """What /stats shows."""
        conversation = self.conversation
        model, totals, chat = conversation.model, conversation.totals, conversation.chat
        lines = [f"model    {model.label} ({model.path or 'bundled'})"]
        loaded = model.loaded
        if loaded is not None:
            used = "?" if conversation.used is None else str(conversation.used)
            policy = chat.policy.replace("_", "-")
            lines.append(f"context  {used} of {loaded.n_ctx} tokens; when it is full: {policy}")
            dropped = len(chat.messages) - len(chat.sent)
            if dropped > 0:
                lines.append(f"dropped  {dropped} of {len(chat.turns)} turns are not shown to the model")
        number = conversation.stored.id
        saved = f"saved as chat {number}" if self.is_saving and number is not None else "not saved"
        branches = len(chat.branches())
        lines.append(f"chat     {len(chat.turns)} turns, {branches} branch{'' if branches == 1 else 'es'}, {saved}")
        rate = f", {totals.tokens / totals.seconds:.1f} a second" if totals.seconds > 0 else ""
        lines.append(f"answers  {totals.answers} since the start, {totals.tokens} tokens{rate}")
        if conversation.last_finish is not None:
            lines.append(f"last     {timing_line(conversation.last_finish)}")
        return lines

    # --- the model, which loads on a thread ---

    def model_changed(self) -> None:
        """What is told of the load; from its thread."""
        if self.conversation.model.is_done:
            self.conversation.count()
            self._prompt.changed()
        else:
            self._prompt.progressed()

    def load_failure(self) -> LoadFailed | None:
        """Why the chat cannot begin, where it cannot."""
        model = self.conversation.model
        if model.is_done and model.error is not None and not self.conversation.has_loaded:
            return LoadFailed(model.error)
        return None


def message_of(line: str) -> str | None:
    """The message that a line is; None for a command."""
    text = line.strip()
    if text.startswith(MULTILINE_MARK):
        return text.removeprefix(MULTILINE_MARK).removesuffix(MULTILINE_MARK).strip("\n")
    if text.startswith("//"):
        return text[1:]
    return None if text.startswith("/") else text


def line_of(message: str) -> str:
    """What is typed for a message: the line that ``message_of`` makes it of, but for blanks around it."""
    if message.lstrip().startswith(MULTILINE_MARK):
        return f"{MULTILINE_MARK}{message}{MULTILINE_MARK}"
    return f"/{message.lstrip()}" if message.lstrip().startswith("/") else message
