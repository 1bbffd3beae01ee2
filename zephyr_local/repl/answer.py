"""One answer on the terminal: what comes is shown, Ctrl+C ends it, and whatever fails the prompt returns."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Generator
from types import FrameType, TracebackType
from typing import Self

from zephyr_local.chat_types import Finish, OnPrefill, Piece
from zephyr_local.errors import ContextExceededError, EngineError, ZephyrError
from zephyr_local.repl.conversation import Conversation, timing_line
from zephyr_local.repl.late_model import LoadFailed
from zephyr_local.repl.view import SlowBar, View

MakeAnswer = Callable[[OnPrefill], Generator[Piece, None, None]]


class _Stopped(Exception):  # noqa: N818 — nothing is wrong
    """Ctrl+C while the model loads, which goes on."""


class Interrupts:
    """While an answer is given the first Ctrl+C ends it in good order, the next one at once."""

    def __init__(self, cancel: Callable[[], object]) -> None:
        self._cancel = cancel
        self.came = False

    def __enter__(self) -> Self:
        self._is_main = threading.current_thread() is threading.main_thread()
        if self._is_main:
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._is_main:
            signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.came:
            raise KeyboardInterrupt
        self.came = True
        self._cancel()


def give_answer(
    conversation: Conversation,
    view: View,
    make: MakeAnswer,
    *,
    nothing: str,
    show_timings: bool = False,
    is_stopped: Callable[[], bool] = lambda: False,
) -> bool:
    """Show an answer and what it cost; False where nothing came of it, so that it can be asked again.

    ``nothing`` is what is told where the model ends the answer at once; ``is_stopped`` whether Ctrl+C came before it.

    Raises LoadFailed where the chat's first model cannot be loaded; all else is told, and the chat goes on.
    """
    shown = _Shown(conversation, view)
    with Interrupts(conversation.chat.cancel) as interrupts:
        try:
            if is_stopped():
                raise _Stopped
            shown.stream(make, lambda: interrupts.came)
        except (_Stopped, KeyboardInterrupt):
            interrupts.came = True
        except ContextExceededError as error:
            remedy = "Shorten it, or make room by /undo, /overflow drop-oldest or /clear"
            shown.problem = ZephyrError(error.problem, remedy), ""
        except EngineError as error:
            told = ZephyrError(error.problem, error.remedy.replace("The next call", "Your next question"))
            shown.problem = told, "What came is kept; /continue goes on." if shown.came else "The chat is as it was."
        except ZephyrError as error:
            shown.problem = error, ""
        except (OSError, LoadFailed):
            raise  # the terminal is gone, or the model
        except Exception as error:
            logging.getLogger(__name__).debug("in an answer", exc_info=True)
            mistake = ZephyrError(f"{type(error).__name__}: {error}", "This is a mistake of ours; the chat goes on")
            shown.problem = mistake, ""
    if shown.problem is None and not interrupts.came and not shown.came and shown.finish is not None:
        view.note(nothing)
    else:
        _tell_end(conversation, view, shown, stopped=interrupts.came)
    if show_timings and shown.finish is not None and shown.finish.prompt_tokens:
        view.note(timing_line(shown.finish))
    return shown.came


class _Shown:
    """An answer on its way to the screen."""

    def __init__(self, conversation: Conversation, view: View) -> None:
        self._conversation, self._view = conversation, view
        self.came = False
        self.finish: Finish | None = None
        self.problem: tuple[ZephyrError, str] | None = None
        self.logprobs: list[tuple[str, float]] = []

    def stream(self, make: MakeAnswer, is_stopped: Callable[[], bool]) -> None:
        """Ask, which puts the question into the store; only then is the model awaited, where it is not loaded yet."""
        conversation, model = self._conversation, self._conversation.model
        loading, bar = SlowBar(self._view, f"Loading {model.label}"), SlowBar(self._view, "Reading")

        def on_wait(share: float) -> None:
            if is_stopped():
                raise _Stopped
            loading.update(share, 1)

        model.on_wait = on_wait
        answer = self._view.answer()
        pieces = make(lambda done, total: bar.update(done, total, f"of {total} tokens"))
        try:
            for piece in pieces:
                if not self.came:
                    bar.clear()
                    conversation.wait()  # it is loaded: its notices are told before the answer
                if piece.text:
                    bar.clear()
                    self.came = True
                    answer.feed(piece.text)
                self.logprobs += [(token.text, token.logprob) for token in piece.logprobs]
                self.finish = piece.finish
        except ZephyrError as error:
            if error is model.error and not conversation.has_loaded:
                raise LoadFailed(error) from error
            raise
        finally:
            pieces.close()  # now, so that what came is in the chat and in the store
            bar.clear()
            if self.came:
                answer.close()


def _tell_end(conversation: Conversation, view: View, shown: _Shown, *, stopped: bool) -> None:
    if shown.problem is not None:
        view.error(*shown.problem)
    elif stopped:
        view.note("[stopped; /continue goes on]" if shown.came else "[stopped before the answer began]")
    elif shown.finish is not None and shown.finish.reason == "length":
        where = where_cut(conversation, shown.finish)
        hint = "; /continue goes on" if where.startswith("max_tokens") else ""
        view.note(f"[the answer was cut at {where}{hint}]")
    if shown.logprobs:
        view.note(_surest(shown.logprobs))


def where_cut(conversation: Conversation, finish: Finish) -> str:
    """Which limit ended an answer."""
    limit = conversation.sampling.max_tokens
    cut_by_limit = limit is not None and finish.completion_tokens >= limit
    return f"max_tokens {limit}" if cut_by_limit else "the end of the context"


def _surest(logprobs: list[tuple[str, float]]) -> str:
    mean = sum(value for _, value in logprobs) / len(logprobs)
    least = sorted(logprobs, key=lambda entry: entry[1])[:3]
    return f"[log probability: mean {mean:.2f}; least sure: {', '.join(f'{text!r} {p:.2f}' for text, p in least)}]"
