"""What an engine does, whichever process it is in: takes requests, emits events.

Two threads: one renders templates and tokenises, one loads the model and runs the decode loop. ``handle`` never waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

from zephyr_local.chat_template import EncodedChat
from zephyr_local.chat_types import Finish, TokenLogprob
from zephyr_local.engine import protocol
from zephyr_local.engine.cancel import Cancelled
from zephyr_local.engine.run import EmbedRun, Run
from zephyr_local.engine.scheduler import Scheduler
from zephyr_local.engine.session import Session
from zephyr_local.errors import EngineError

Emit = Callable[[protocol.Event], None]


class Service:
    """One model and its requests."""

    def __init__(self, emit: Emit) -> None:
        """``emit`` is called on the service's threads and must not wait."""
        self._emit = emit
        self._requests: SimpleQueue[protocol.Request | None] = SimpleQueue()
        self._lock = threading.RLock()  # a signal handler may cancel while its thread asks
        self._runs: dict[int, Run | EmbedRun] = {}
        self._pending: set[int] = set()  # requests that have not ended
        self._cancelled: set[int] = set()  # those of them that are to end as soon as they are runs
        self._session: Session | None = None
        self._scheduler: Scheduler | None = None
        self._loading: threading.Thread | None = None
        self._closing = threading.Event()
        self._preparing = threading.Thread(target=self._prepare_all, name="zephyr-local-prepare", daemon=True)
        self._preparing.start()

    def handle(self, request: protocol.Request) -> None:
        """Take a request; its events come later, but for a cancel, which works at once."""
        if isinstance(request, protocol.Cancel):
            with self._lock:
                run = self._runs.get(request.id)
                if run is None and request.id in self._pending:
                    self._cancelled.add(request.id)
            if run is not None and self._scheduler is not None:
                self._scheduler.cancel(run)
        else:
            with self._lock:
                self._pending.add(request.id)
            self._requests.put(request)

    def close(self) -> None:
        """Cancel everything, free the model, and wait for both."""
        self._closing.set()
        self._requests.put(None)
        if self._scheduler is not None:
            self._scheduler.close()
        _join(self._preparing)
        if self._loading is not None:
            _join(self._loading)

    # --- the thread that prepares ---

    def _prepare_all(self) -> None:
        while (request := self._requests.get()) is not None:
            try:
                self._prepare(request)
            except Exception as error:  # the request's, not ours: the next one is served
                self._end(request.id, protocol.failure(request.id, error))

    def _prepare(self, request: protocol.Request) -> None:
        if isinstance(request, protocol.Load):
            self._loading = threading.Thread(
                target=self._load_and_run, args=(request,), name="zephyr-local-engine", daemon=True
            )
            self._loading.start()
            return
        if isinstance(request, protocol.Devices):
            from zephyr_local.engine.llama import devices

            self._end(request.id, protocol.Result(request.id, texts=devices()))
            return
        session, scheduler = self._session, self._scheduler
        if session is None or scheduler is None:
            raise EngineError("no model is loaded", "Load one first")
        if isinstance(request, protocol.Generate):
            chat = session.prompt.encode(request.messages, request.answer_start)
            sink = _Sink(self, request.id)
            run = Run(chat.ids, request.sampling, sink)
            sink.on_finish = lambda: _remember(session, chat, run)
            self._submit(request.id, run, scheduler)
        elif isinstance(request, protocol.Embed):
            self._submit(request.id, EmbedRun(session.text_ids(request.text), _Sink(self, request.id)), scheduler)
        elif isinstance(request, protocol.CountTokens):
            count = len(session.prompt.encode(request.messages).ids)
            self._end(request.id, protocol.Result(request.id, (count,)))
        elif isinstance(request, protocol.Tokenize):
            self._end(request.id, protocol.Result(request.id, tuple(session.model.tokenize(request.text))))

    def _submit(self, request_id: int, run: Run | EmbedRun, scheduler: Scheduler) -> None:
        with self._lock:
            self._runs[request_id] = run
            run.cancelled = request_id in self._cancelled
        scheduler.submit(run)

    def _end(self, request_id: int, event: protocol.Event) -> None:
        with self._lock:
            self._runs.pop(request_id, None)
            self._cancelled.discard(request_id)
            self._pending.discard(request_id)
        self._emit(event)

    # --- the thread that loads and decodes ---

    def _load_and_run(self, request: protocol.Load) -> None:
        template = Path(request.template) if request.template and request.template_is_file else request.template
        try:
            session = Session.open(
                Path(request.path),
                request.settings,
                template=template,
                progress=lambda share: self._emit(protocol.LoadProgress(request.id, share)),
                cancelled=lambda: self._closing.is_set() or request.id in self._cancelled,
            )
        except Cancelled:
            error = EngineError("the load was cancelled", "Load the model again")
            self._end(request.id, protocol.failure(request.id, error))
            return
        except BaseException as error:  # a load that fails is told, whatever it was
            self._end(request.id, protocol.failure(request.id, error))
            return
        try:
            self._session, self._scheduler = session, Scheduler(session.model, request.settings)
            loaded = protocol.Loaded(
                request.id, session.model_name, session.notices, session.n_ctx, session.model.n_vocab
            )
            self._end(request.id, loaded)
            if self._closing.is_set():
                self._scheduler.close()
            self._scheduler.run()
        except BaseException as error:  # the loop is lost: whoever waits is told, and whoever comes
            if self._scheduler is not None:
                self._scheduler.close()
            with self._lock:
                pending = list(self._pending)
            for request_id in pending:
                self._end(request_id, protocol.failure(request_id, error))
        finally:
            session.close()


def _remember(session: Session, chat: EncodedChat, run: Run) -> None:
    if not run.stopped:  # else the text ends before the tokens do
        session.prompt.remember(chat, run.generated, "".join(run.full_text))


def _join(thread: threading.Thread) -> None:
    if thread is not threading.current_thread():  # where the garbage collector found the model
        thread.join()


class _Sink:
    """A run's events, as the protocol's."""

    def __init__(self, service: Service, request_id: int) -> None:
        self._service, self._id = service, request_id
        self.on_finish: Callable[[], None] | None = None

    def progress(self, done: int, total: int) -> None:
        self._service._emit(protocol.PrefillProgress(self._id, done, total))

    def text(self, text: str, logprobs: tuple[TokenLogprob, ...]) -> None:
        self._service._emit(protocol.TextEvent(self._id, text, logprobs))

    def finished(self, text: str, logprobs: tuple[TokenLogprob, ...], finish: Finish) -> None:
        try:
            if self.on_finish is not None:
                self.on_finish()
        finally:
            self.on_finish = None
            self._service._end(self._id, protocol.Finished(self._id, text, finish, logprobs))

    def embedded(self, embedding: list[float]) -> None:
        self._service._end(self._id, protocol.Result(self._id, tuple(embedding)))

    def failed(self, error: Exception) -> None:
        self.on_finish = None
        self._service._end(self._id, protocol.failure(self._id, error))
