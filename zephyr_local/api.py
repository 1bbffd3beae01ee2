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
from zephyr_local.settings import BUNDLED_MODEL_SAMPLING, EngineSettings, Sampling

_PIECES_AHEAD: Final = 64  # how far the model may run ahead of a slow reader
_WAIT_S: Final = 0.2  # Windows delivers Ctrl+C only between waits

MessageLike = Message | Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer."""

    text: str
    finish: Finish


class Zephyr:
    """A model, loaded; a context manager. Any thread may use it; it gives one answer at a time, the next one waits.

    A thread that last read from an unfinished answer cannot ask for another: it would wait for itself. Where a pool's
    threads take turns at an answer, read each answer on a thread of its own.
    """

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
        share of the load that is done, 0 to 1, on another thread; an exception of its ends the load and comes out of
        here, and so does Ctrl+C. Raises ModelNotFoundError, ModelFileError, TemplateError and EngineError.
        """
        file = bundled_model_path() if path is None else Path(path)
        self.default_sampling = BUNDLED_MODEL_SAMPLING if path is None else Sampling()
        """How answers are sampled where ``stream`` and ``complete`` are not told."""
        self._session = _load_on_thread(
            lambda cancelled: Session.open(
                file,
                settings or EngineSettings(),
                template=template if template is None or isinstance(template, str) else Path(template),
                progress=on_progress,
                cancelled=cancelled,
            )
        )
        self._worker = _Worker(self._session)
        self._turn = threading.Lock()  # held from an answer's first piece to its end, maybe by several threads
        self._answering: _Answer | None = None
        self._answering_thread: threading.Thread | None = None  # that last read a piece
        self._process_id = os.getpid()
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
        return self._pieces(_Answer(parse_messages(messages), sampling or self.default_sampling))

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
        # In a forked child there is no worker to stop, and the model is the parent's.
        if self._closed or self._process_id != os.getpid():
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
        if hasattr(self, "_closed"):  # else it never finished loading
            self.close()

    def _pieces(self, answer: _Answer) -> Generator[Piece, None, None]:
        if self._answering_thread is threading.current_thread():
            raise InvalidInputError(
                "another answer of this model is still open in this thread", "Read it to its end or close it first"
            )
        with self._turn:
            self._require_open()
            self._answering = answer
            try:
                self._worker.give(answer)
                if self._closed:  # meanwhile, by a thread that could not see this answer yet
                    answer.abandon()
                while (piece := answer.get()) is not None:
                    self._answering_thread = threading.current_thread()
                    yield piece
            finally:
                # Ready before the wait, which another Ctrl+C may end: the worker takes one answer after another anyway.
                self._answering = self._answering_thread = None
                answer.abandon()
                if not self._worker.is_current():
                    answer.wait()

    def _require_open(self) -> None:
        if self._process_id != os.getpid():
            raise EngineError(
                "the model was loaded before this process was forked", "Load it after the fork, or use spawn"
            )
        if self._closed:
            raise _closed_error()


def _load_on_thread(load: Callable[[Callable[[], bool]], Session]) -> Session:
    """Run ``load(cancelled)`` on a thread of its own, so that Ctrl+C reaches the caller and never native code.

    Python raises KeyboardInterrupt on the main thread, also at the first instruction of a callback from C, before any
    ``try``: there it would be printed, lost, and C given an undefined answer.
    """
    loaded: list[Session] = []
    failed: list[BaseException] = []
    stop, done = threading.Event(), threading.Event()

    def work() -> None:
        try:
            loaded.append(load(stop.is_set))
        except BaseException as error:  # the caller raises it
            failed.append(error)
        finally:
            done.set()

    threading.Thread(target=work, name="zephyr-local-load", daemon=True).start()
    try:
        while not done.wait(_WAIT_S):
            pass
    except BaseException:
        stop.set()
        while not done.wait(_WAIT_S):
            pass
        for session in loaded:
            session.close()
        raise
    if failed:
        raise failed[0]
    return loaded[0]


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
