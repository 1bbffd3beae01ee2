"""The line that is typed: its prompt with the state of the context, its keys, its history."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from prompt_toolkit import PromptSession
from prompt_toolkit.application.current import get_app
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition, has_completions, is_searching
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.output.color_depth import ColorDepth
from prompt_toolkit.styles import Style

from zephyr_local.errors import OutputError
from zephyr_local.repl.completion import CommandCompleter
from zephyr_local.repl.screen import sound
from zephyr_local.repl.theme import Theme
from zephyr_local.user_folders import make_private_file

if TYPE_CHECKING:
    from zephyr_local.repl.session import Session

NEARLY_FULL: Final = 0.8
"""From this share of the context on the count is yellow."""
MULTILINE_MARK: Final = '"""'

_SLOW_LOAD_S: Final = 0.5
_REDRAW_S: Final = 0.1
_NARROW_COLUMNS: Final = 30  # where the count would leave little room
_KEPT_HISTORY_BYTES: Final = 1 << 20


class Prompt:
    """Reads what the person types."""

    def __init__(self, session: Session, theme: Theme, history_path: Path | None) -> None:
        self._session = session
        self._start_s = time.monotonic()
        self._drawn_s = 0.0
        self._prompts: PromptSession[str] = PromptSession(
            message=self._message,
            multiline=True,  # so that lines are shown as lines; the keys below decide what Enter does
            prompt_continuation="… ",
            history=_history(history_path),
            completer=CommandCompleter(session),
            complete_while_typing=False,
            tempfile_suffix=".md",
            key_bindings=_keys(session),
            style=Style.from_dict({"full": "ansiyellow bold", "count": "", "over": "ansired bold"}),
            color_depth=None if theme.warning else ColorDepth.DEPTH_1_BIT,
            search_ignore_case=True,
            enable_suspend=True,  # Ctrl+Z
        )
        self._prompts.default_buffer.on_text_insert += _mend

    def read(self, draft: str = "") -> str:
        """What was typed, when it is sent. Raises EOFError (Ctrl+D) and KeyboardInterrupt (Ctrl+C at an empty one)."""
        # Ctrl+C is a key while the line is typed, and a signal just before and just after: the library's own handler
        # would take that for a key, too, and fails where the line has been sent.
        line = self._prompts.prompt(default=draft, pre_run=self._begin, handle_sigint=False)
        self._look_behind()
        return line

    def _look_behind(self) -> None:
        """Find a Ctrl+C that came behind Enter, when it was a key still; like the signal, it takes all keys with it."""
        keyboard = self._prompts.app.input
        keys = [*get_typeahead(keyboard), *keyboard.read_keys()]
        if any(key.key == Keys.ControlC for key in keys):
            self._session.was_interrupted = True
        else:
            store_typeahead(keyboard, keys)

    def interrupted(self) -> None:
        """Ctrl+C came as a signal: let the prompt take it, if it stands."""
        app = self._prompts.app
        if app.is_running and app.loop is not None:
            with contextlib.suppress(RuntimeError):
                app.loop.call_soon_threadsafe(self._take_interrupt)

    def changed(self) -> None:
        """The prompt is not true any more; from any thread."""
        app = self._prompts.app
        loop = app.loop
        if app.is_running and loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has just ended
                loop.call_soon_threadsafe(self._check_load)

    def progressed(self) -> None:
        """The model's load goes on; from any thread. Drawn ten times a second, where it is slow enough to be shown."""
        now_s = time.monotonic()
        if now_s - self._start_s > _SLOW_LOAD_S and now_s - self._drawn_s > _REDRAW_S:
            self._drawn_s = now_s
            self.changed()

    def _begin(self) -> None:
        # A load that begins before the first prompt stands would hold it up: much of its beginning is Python.
        loop = self._prompts.app.loop
        if loop is not None:
            loop.call_soon(self._session.conversation.model.start)
        self._take_interrupt()
        self._check_load()

    def _take_interrupt(self) -> None:
        app = self._prompts.app
        if not self._session.was_interrupted or app.future is None or app.future.done():
            return
        self._session.was_interrupted = False
        if app.current_buffer.text and self._session.editing is None:
            app.current_buffer.reset()
        else:
            app.exit(exception=KeyboardInterrupt())

    def _check_load(self) -> None:
        app = self._prompts.app
        failure = self._session.load_failure()
        if failure is not None and app.future is not None and not app.future.done():
            app.exit(exception=failure)
        app.invalidate()

    def _message(self) -> StyleAndTextTuples:
        conversation = self._session.conversation
        parts: StyleAndTextTuples = []
        if get_app().output.get_size().columns >= _NARROW_COLUMNS:
            loaded, used = conversation.model.loaded, conversation.used
            if loaded is not None and used is not None:
                share = used / loaded.n_ctx
                style = "class:over" if share >= 1 else "class:full" if share >= NEARLY_FULL else "class:count"
                # What ends the last answer and begins the next is counted, and need not fit any more.
                parts.append((style, f"{min(used, loaded.n_ctx)}/{loaded.n_ctx} "))
            elif loaded is None and time.monotonic() - self._start_s > _SLOW_LOAD_S and not conversation.model.is_done:
                parts.append(("class:count", f"loading {conversation.model.progress:.0%} "))
            if conversation.attachments:
                parts.append(("class:count", f"+{len(conversation.attachments)} "))
            if self._session.editing is not None:
                parts.append(("class:count", "edit "))
        parts.append(("", "> "))
        return parts


def _keys(session: Session) -> KeyBindings:
    keys = KeyBindings()
    in_line = ~is_searching  # where Enter, Ctrl+C and the rest are the search's own

    @Condition
    def is_open() -> bool:
        """Whether the text began with the mark of several lines and has no second one yet."""
        text = get_app().current_buffer.document.text
        return text.lstrip().startswith(MULTILINE_MARK) and text.count(MULTILINE_MARK) < 2

    @Condition
    def is_begun() -> bool:
        """Whether Ctrl+C clears the line; in an edit it leaves that."""
        return bool(get_app().current_buffer.text) and session.editing is None

    @keys.add("enter", filter=in_line & ~is_open & ~has_completions)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("enter", filter=in_line & has_completions)
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state is not None and buffer.complete_state.current_completion is not None:
            buffer.complete_state = None  # takes what is chosen, and stays
        else:
            buffer.validate_and_handle()

    @keys.add("c-j", filter=in_line)
    @keys.add("escape", "enter", filter=in_line)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @keys.add("enter", filter=in_line & is_open)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    # The library's own binding sends what the editor leaves, be it only what was begun.
    @keys.add("c-x", "c-e", filter=in_line)
    def _(event: KeyPressEvent) -> None:
        # What it leaves may be no UTF-8, and it may not be there: then the text stays as it is.
        event.current_buffer.open_in_editor().add_done_callback(lambda task: task.cancelled() or task.exception())

    @keys.add("c-c", filter=in_line & is_begun)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.reset()

    return keys


def _mend(buffer: Buffer) -> None:
    """Bytes that are no UTF-8 are the library's lone surrogates, which neither a file nor the store takes."""
    if (text := sound(buffer.text)) != buffer.text:
        buffer.document = Document(text, buffer.cursor_position)


def _history(path: Path | None) -> History:
    if path is None:
        return InMemoryHistory()
    try:
        make_private_file(path)
        _shorten(path)
    except (OutputError, OSError):  # a history is a comfort: without it the chat goes on
        return InMemoryHistory()
    return _CarefulHistory(str(path))


class _CarefulHistory(FileHistory):
    """A history file that may become unreadable or full under us."""

    def load_history_strings(self) -> list[str]:
        try:
            return list(super().load_history_strings())
        except OSError:
            return []

    def store_string(self, string: str) -> None:
        with contextlib.suppress(OSError, UnicodeEncodeError):
            super().store_string(string)


def _shorten(path: Path) -> None:
    """Keep the newest half of a history that has grown large."""
    if path.stat().st_size <= _KEPT_HISTORY_BYTES:
        return
    data = path.read_bytes()[-_KEPT_HISTORY_BYTES // 2 :]
    entry = data.find(b"\n\n# ")  # the library writes a comment with the time above each entry
    path.write_bytes(data[entry + 1 :] if entry >= 0 else b"")
