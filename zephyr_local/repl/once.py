"""One answer and no conversation: what `zephyr-local chat` does in a pipe, and with a question on its command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TextIO

from zephyr_local.chat_fit import Dropped
from zephyr_local.chat_types import Finish
from zephyr_local.errors import InvalidInputError, ZephyrError
from zephyr_local.repl.answer import where_cut
from zephyr_local.repl.conversation import Conversation, timing_line
from zephyr_local.repl.json_text import json_text
from zephyr_local.repl.view import SlowBar, View

OutputForm = Literal["text", "json", "jsonl"]


@contextmanager
def errors_as_events(out: TextIO) -> Iterator[None]:
    """Write the ``error`` event of --jsonl for a ZephyrError that leaves by here."""
    try:
        yield
    except ZephyrError as error:
        values = {"event": "error", "exit_code": error.exit_code, "problem": error.problem, "remedy": error.remedy}
        out.write(json_text(values) + "\n")
        out.flush()
        raise


@dataclass(slots=True)
class _Told:
    """What an answer was, so far."""

    text: str = ""
    finish: Finish | None = None
    dropped: list[dict[str, Any]] = field(default_factory=list)


def answer_once(
    conversation: Conversation,
    view: View,
    ask: Callable[[], str],
    form: OutputForm = "text",
    *,
    show_timings: bool = False,
) -> None:
    """Answer the question that ``ask`` gives once the model is loaded, on stdout; all else goes to stderr.

    Ctrl+C comes out of here when what came is written and kept. Raises ZephyrError, and LoadFailed where the model
    cannot be loaded; :func:`errors_as_events` tells of these.
    """
    writer = _Events(view) if form == "jsonl" else _Object(view) if form == "json" else _Text(view)
    told = _Told()
    with _bar(view, f"Loading {conversation.model.label}") as bar:
        zephyr = conversation.wait(lambda share: bar.update(share, 1))
    question = ask()
    if not question.strip():
        raise InvalidInputError("the question is empty", 'Pipe one in, or use --prompt "…"')
    try:
        writer.begin({"model": zephyr.model_name, "n_ctx": zephyr.n_ctx, "notices": list(zephyr.notices)})
        _follow(conversation, view, writer, told, question)
    except KeyboardInterrupt:
        writer.end(_result(conversation, told))
        raise
    except ZephyrError:
        writer.fail()
        raise
    writer.end(_result(conversation, told))
    if form == "text" and told.finish is not None and told.finish.reason == "length":
        view.note(f"[the answer was cut at {where_cut(conversation, told.finish)}]")
    if show_timings and told.finish is not None:
        view.note(timing_line(told.finish))


def _follow(conversation: Conversation, view: View, writer: _Writer, told: _Told, question: str) -> None:
    def on_drop(dropped: Dropped) -> None:
        told.dropped.append(
            {
                "turns": len(dropped.messages),
                "tokens_before": dropped.tokens_before,
                "tokens_after": dropped.tokens_after,
                "summary": dropped.summary,
            }
        )
        writer.event("dropped", told.dropped[-1])
        tell_drop(dropped)

    tell_drop = conversation.chat.on_drop or (lambda dropped: None)
    conversation.chat.on_drop = on_drop
    with _bar(view, "Reading") as bar:

        def on_prefill(done: int, total: int) -> None:
            bar.update(done, total, f"of {total} tokens")
            writer.event("prefill", {"done": done, "total": total})

        with closing(conversation.ask(question, on_prefill)) as pieces:
            for piece in pieces:
                if piece.text:
                    bar.clear()
                    told.text += piece.text
                    writer.piece(piece.text)
                told.finish = piece.finish


def _result(conversation: Conversation, told: _Told) -> dict[str, Any]:
    """The object of --json; docs/chat-output.md has its schema."""
    finish = told.finish
    return {
        "answer": told.text,
        "model": conversation.model.label,
        "finish_reason": "cancelled" if finish is None else finish.reason,
        "prompt_tokens": None if finish is None else finish.prompt_tokens,
        "cached_tokens": None if finish is None else finish.cached_tokens,
        "completion_tokens": None if finish is None else finish.completion_tokens,
        "prompt_s": None if finish is None else finish.prompt_s,
        "completion_s": None if finish is None else finish.completion_s,
        "dropped": told.dropped,
        "chat": conversation.stored.id if conversation.store.path is not None else None,
    }


@contextmanager
def _bar(view: View, label: str) -> Iterator[SlowBar]:
    bar = SlowBar(view, label)
    try:
        yield bar
    finally:
        bar.clear()


class _Writer:
    """One of the forms of an answer on stdout."""

    def __init__(self, view: View) -> None:
        self.view = view

    def begin(self, model: dict[str, Any]) -> None: ...

    def event(self, name: str, values: dict[str, Any]) -> None: ...

    def piece(self, text: str) -> None: ...

    def fail(self) -> None:
        """End what was begun; the error is told elsewhere."""

    def end(self, result: dict[str, Any]) -> None: ...


class _Text(_Writer):
    """The text of the answer, and a newline."""

    def __init__(self, view: View) -> None:
        super().__init__(view)
        self._answer = view.answer()
        self._has_begun = False

    def piece(self, text: str) -> None:
        self._has_begun = True
        self._answer.feed(text)

    def fail(self) -> None:
        if self._has_begun:
            self._answer.close()

    def end(self, result: dict[str, Any]) -> None:
        if self._has_begun or result["finish_reason"] != "cancelled":
            self._answer.close()


class _Object(_Writer):
    """One JSON object."""

    def end(self, result: dict[str, Any]) -> None:
        self.view.write(json_text(result) + "\n")


class _Events(_Writer):
    """A JSON object for everything that happens, each on a line."""

    def event(self, name: str, values: dict[str, Any]) -> None:
        self.view.write(json_text({"event": name, **values}) + "\n")

    def begin(self, model: dict[str, Any]) -> None:
        self.event("model", model)

    def piece(self, text: str) -> None:
        self.event("piece", {"text": text})

    def end(self, result: dict[str, Any]) -> None:
        self.event("finish", result)
