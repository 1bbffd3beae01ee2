"""What an application holds: a model that answers chats, in pieces or whole."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Final, Self

from zephyr_local.chat_types import Finish, Message, Piece, parse_messages
from zephyr_local.data import bundled_model_path
from zephyr_local.engine.cancel import CancelFlag
from zephyr_local.engine.session import Session
from zephyr_local.errors import EngineError, InvalidInputError
from zephyr_local.settings import EngineSettings, Sampling

_PIECES_AHEAD: Final = 64  # how far the model may run ahead of a slow reader
_WAIT_S: Final = 0.2  # Windows delivers Ctrl+C only between waits

MessageLike = Message | Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer."""

    text: str
    finish: Finish


class Zephyr:
    """A model, loaded; a context manager. Any thread may use it; it gives one answer at a time, the next one waits."""

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        settings: EngineSettings | None = None,
        *,
        template: str | os.PathLike[str] | None = None,
        on_progress: Callable[[float], object] | None = None,
    ) -> None:
        """Load the GGUF at ``path``; without one, the tiny model that is shipped with the package.

        ``template`` is ``zephyr`` or the path of a Jinja file, where the model brings none. ``on_progress`` takes the
        share of the load that is done, 0 to 1; an exception of its ends the load and comes out of here. Raises
        ModelNotFoundError, ModelFileError, TemplateError and EngineError.
        """
        self._session = Session.open(
            bundled_model_path() if path is None else Path(path),
            settings or EngineSettings(),
            template=template if template is None or isinstance(template, str) else Path(template),
            progress=on_progress,
        )
        self._worker = _Worker(self._session)
        self._turn = threading.Lock()  # held from an answer's first piece to its end, maybe by several threads
        self._answering: _Answer | None = None
        self._answering_thread: int | None = None
        self._closed = False
        _open_models.add(self)

    @property
    def model_name(self) -> str:
        """What the model calls itself, else its file's name."""
        return self._session.model_name

    @property
    def notices(self) -> tuple[str, ...]:
        """Lines for the user about what was assumed when the model was loaded."""
        return self._session.notices

    @property
    def n_ctx(self) -> int:
        """Tokens of context: the chat and the answer together."""
        return self._session.n_ctx

    def stream(self, messages: Iterable[MessageLike], sampling: Sampling | None = None) -> Generator[Piece, None, None]:
        """The answer to a chat, piece by piece; the last piece has ``finish``.

        Closing or dropping the iterator cancels the answer, and so does an exception (Ctrl+C) while it waits. Raises
        InvalidInputError at once; EngineError, TemplateError and ContextExceededError from the iterator.
        """
        self._require_open()
        return self._pieces(_Answer(parse_messages(messages), sampling or Sampling()))

    def complete(self, messages: Iterable[MessageLike], sampling: Sampling | None = None) -> Reply:
        """The whole answer to a chat."""
        texts: list[str] = []
        with contextlib.closing(self.stream(messages, sampling)) as pieces:
            for piece in pieces:
                texts.append(piece.text)
                if piece.finish is not None:
                    return Reply("".join(texts), piece.finish)
        raise AssertionError("an answer ended without a finish")

    def count_tokens(self, messages: Iterable[MessageLike]) -> int:
        """Tokens of a chat as the model sees it, the beginning of the answer included."""
        self._require_open()
        return self._session.count_tokens(parse_messages(messages))

    def close(self) -> None:
        """Cancel what runs and free the model. Closing twice is fine."""
        if self._closed:
            return
        self._closed = True
        if (answer := self._answering) is not None:
            answer.abandon()
        self._worker.stop()  # and it frees the model

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_answering"):  # else it never finished loading
            self.close()

    def _pieces(self, answer: _Answer) -> Generator[Piece, None, None]:
        if self._answering_thread == threading.get_ident():
            raise InvalidInputError(
                "another answer of this model is still open in this thread", "Read it to its end or close it first"
            )
        with self._turn:
            self._require_open()
            self._answering, self._answering_thread = answer, threading.get_ident()
            try:
                self._worker.give(answer)
                while (piece := answer.get()) is not None:
                    yield piece
            finally:
                # Ready before the wait, which another Ctrl+C may end: the worker takes one answer after another anyway.
                self._answering = self._answering_thread = None
                answer.abandon()
                if not self._worker.is_current():
                    answer.wait()

    def _require_open(self) -> None:
        if self._closed:
            raise _closed_error()


def _closed_error() -> EngineError:
    return EngineError("the model was closed", "Make a new Zephyr")


class _Answer:
    """One chat on its way to the worker, and the pieces on their way back: a bounded queue that can be let go."""

    def __init__(self, messages: Sequence[Message], sampling: Sampling) -> None:
        self.messages, self.sampling = messages, sampling
        self.cancel = CancelFlag()
        self._pieces: deque[Piece] = deque()
        self._error: BaseException | None = None
        self._ended = False
        self._changed = threading.Condition()

    def get(self) -> Piece | None:
        """The next piece, or None after the last; raises what the worker raised."""
        with self._changed:
            while not self._pieces and not self._ended:
                self._changed.wait(_WAIT_S)
            if self._pieces:
                self._changed.notify_all()
                return self._pieces.popleft()
            if self._error is not None:
                raise self._error
            return None

    def put(self, piece: Piece) -> None:
        """Hand over a piece; waits while the reader is far behind, unless it has gone."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._pieces) < _PIECES_AHEAD or self.cancel.is_set())
            self._pieces.append(piece)
            self._changed.notify_all()

    def end(self, error: BaseException | None) -> None:
        with self._changed:
            self._error, self._ended = error, True
            self._changed.notify_all()

    def abandon(self) -> None:
        """Cancel it; pieces that still come are not waited for."""
        self.cancel.set()
        with self._changed:
            self._changed.notify_all()

    def wait(self) -> None:
        """Until the worker is done with it."""
        with self._changed:
            while not self._ended:
                self._changed.wait(_WAIT_S)


class _Worker:
    """The thread that decodes: Python's signal handlers run on the main thread, which a native call would block."""

    def __init__(self, session: Session) -> None:
        self._jobs: SimpleQueue[_Answer | None] = SimpleQueue()
        self._stopping = False
        self._giving = threading.Lock()
        self._done = threading.Event()
        # A daemon, because a chat that nobody reads to its end must not keep the interpreter; _close_all stops it.
        self._thread = threading.Thread(
            target=_work, args=(session, self._jobs, self._done), name="zephyr-local-engine", daemon=True
        )
        self._thread.start()

    def is_current(self) -> bool:
        """Whether this is the worker's own thread, where the garbage collector may close what it must not wait for."""
        return threading.current_thread() is self._thread

    def give(self, answer: _Answer) -> None:
        """Have a chat answered after those given before; one that comes too late ends with an EngineError."""
        with self._giving:
            if self._stopping:
                answer.end(_closed_error())
            else:
                self._jobs.put(answer)

    def stop(self) -> None:
        """End the thread and free the model, once it has done with what it was given."""
        with self._giving:
            self._stopping = True
            self._jobs.put(None)
        while not self.is_current() and not self._done.wait(_WAIT_S):
            pass


def _work(session: Session, jobs: SimpleQueue[_Answer | None], done: threading.Event) -> None:
    try:
        while (answer := jobs.get()) is not None:
            error: BaseException | None = None
            try:
                with contextlib.closing(_stream(session, answer)) as pieces:
                    for piece in pieces:
                        answer.put(piece)
            except BaseException as raised:  # the reader raises it
                error = raised
            answer.end(error)
            del answer, error
    finally:
        session.close()
        done.set()


def _stream(session: Session, answer: _Answer) -> Generator[Piece, None, None]:
    yield from session.stream(answer.messages, answer.sampling, answer.cancel)


_open_models: weakref.WeakSet[Zephyr] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    # A thread inside native code while the interpreter tears itself down ends in a crash.
    for model in list(_open_models):
        model.close()
