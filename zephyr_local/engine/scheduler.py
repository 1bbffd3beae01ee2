"""The one decode loop: several answers at once over one context; docs/design/engine.md says how."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Final

import numpy as np

from zephyr_local.chat_types import FinishReason
from zephyr_local.engine.cancel import Cancelled
from zephyr_local.engine.cells import CellLedger, Sequence, common_prefix
from zephyr_local.engine.context import Segment
from zephyr_local.engine.llama import LlamaModel
from zephyr_local.engine.run import EmbedRun, Run
from zephyr_local.errors import ContextExceededError, EngineError
from zephyr_local.settings import CPU_CHUNK, EngineSettings

_HEADROOM: Final = 64  # cells that each running answer is left before another starts
_CHUNK_FIRST: Final = 32  # where the rate is not known yet
_CHUNK_S: Final = 0.25  # how long others, or a cancel on a GPU, may wait for a chunk


class Scheduler:
    """Runs requests on a loaded model. ``submit`` and ``cancel`` from any thread; ``run`` on one thread, the loop's."""

    tell_s: float = 1 / 30
    """Text is passed on this long after the last at the soonest, but for an answer's first and its end."""

    def __init__(self, model: LlamaModel, settings: EngineSettings) -> None:
        self._model, self._context = model, model.context
        self._n_batch, self._n_parallel = settings.n_batch, settings.n_parallel
        self._ledger = CellLedger(self._context.n_ctx)
        self._free_ids = list(range(self._context.n_sequences - 1, -1, -1))
        self._kept: list[Sequence] = []  # of finished answers
        self._running: list[Run] = []  # in the order of their admission
        self._waiting: deque[Run | EmbedRun] = deque()
        self._inbox: deque[Run | EmbedRun] = deque()
        self._wake = threading.Condition()
        self._in_decode: tuple[Run | EmbedRun, ...] = ()  # those that may be cancelled in the middle of it
        self._closing = False
        self._clock = 0
        self._told_at = 0.0
        self._rate = 0.0  # tokens of prefill a second

    # --- from any thread ---

    def submit(self, run: Run | EmbedRun) -> None:
        """Have a request served after those before it. Raises ContextExceededError where it never could be."""
        n_ctx = self._context.n_ctx
        if not run.target:
            raise EngineError("there are no tokens to start from", "Give some text, or use another chat template")
        if len(run.target) >= n_ctx:
            raise ContextExceededError(
                f"the chat has {len(run.target)} tokens and the context {n_ctx}, which leaves no room for an answer",
                "Shorten or clear the chat, or load the model with a larger n_ctx",
            )
        with self._wake:
            if self._closing:
                raise EngineError("the model was closed", "Make a new Zephyr")
            self._inbox.append(run)
            self._wake.notify()

    def cancel(self, run: Run | EmbedRun) -> None:
        """End a request as soon as can be; one that has ended stays as it is."""
        with self._wake:
            run.cancelled = True
            if run in self._in_decode:
                self._context.abort.set()
            self._wake.notify()

    def close(self) -> None:
        """End the loop; what runs or waits is cancelled."""
        with self._wake:
            self._closing = True
            for run in (*self._running, *self._waiting, *self._inbox):
                run.cancelled = True
            if self._in_decode:
                self._context.abort.set()
            self._wake.notify()

    # --- the loop ---

    def run(self) -> None:
        """Serve requests until :meth:`close`."""
        while True:
            with self._wake:
                while not (busy := self._has_work()) and self._model.pages.done:
                    self._wake.wait()
                self._waiting.extend(self._inbox)
                self._inbox.clear()
                if self._closing:
                    for run in (*self._running, *self._waiting):  # one that close() saw in neither
                        run.cancelled = True
                    if not self._running and not self._waiting:
                        return
            if not busy:
                self._model.pages.move_one()
                continue
            try:
                self._drop_cancelled()
                self._admit()
                if self._running:
                    self._step()
            except Exception as error:  # of native code or ours: these requests are lost, the loop is not
                self._fail_all(error)

    def _has_work(self) -> bool:
        return bool(self._inbox or self._running or self._waiting or self._closing)

    def _fail_all(self, error: Exception) -> None:
        for run in list(self._running):
            self._leave(run)
            run.fail(error)
        for sequence in list(self._kept):
            self._drop(sequence)

    def _drop_cancelled(self) -> None:
        for waiting in [run for run in self._waiting if run.cancelled]:
            self._waiting.remove(waiting)
            if isinstance(waiting, Run):
                waiting.finish("cancelled")
            else:
                waiting.fail(EngineError("the embedding was cancelled", "Ask again"))
        for run in [run for run in self._running if run.cancelled]:
            self._finish(run, "cancelled")

    # --- admission ---

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._n_parallel:
            run = self._waiting[0]
            try:
                if isinstance(run, EmbedRun):
                    if self._running:
                        return  # it has the context to itself
                    self._waiting.popleft()
                    self._embed(run)
                    continue
                if not self._start(run):
                    return
            except Exception as error:
                if self._waiting and self._waiting[0] is run:
                    self._waiting.popleft()
                run.fail(error)
                continue
            self._waiting.popleft()
            self._running.append(run)

    def _start(self, run: Run) -> bool:
        """Give a request its sequence with the longest prefix that is cached; False where it has to wait."""
        run.sampler(self._model)  # what is wrong with its settings shows here
        sequences = [*self._kept, *(r.sequence for r in self._running if r.sequence is not None)]
        best = max(sequences, key=lambda s: (common_prefix(s.tokens, run.target), s.last_used), default=None)
        common = common_prefix(best.tokens, run.target) if best is not None else 0
        kept = min(common, len(run.target) - 1)
        needed = len(run.target) - kept
        staying = [r.sequence for r in self._running if r.sequence is not None]
        if self._running:
            held = [*staying, _head(best, kept)] if best is not None else staying
            promised = sum(r.pending for r in self._running)  # cells of prompts that are not decoded yet
            if self._ledger.n_free_without(held) < needed + promised + _HEADROOM * len(self._running):
                return False
        if best is not None and kept and best in self._kept and 2 * common >= len(best.tokens):
            self._kept.remove(best)
            self._truncate(best, kept)
            run.sequence = best
        else:
            run.sequence = self._new_sequence(best if kept else None, kept)
        if run.cached_tokens is None:
            run.cached_tokens = len(run.sequence.tokens)
        self._free_cells(len(run.target) - len(run.sequence.tokens))
        return True

    def _new_sequence(self, source: Sequence | None, length: int) -> Sequence:
        if not self._free_ids:
            self._drop(min((s for s in self._kept if s is not source), key=lambda s: s.last_used))
        sequence = Sequence(self._free_ids.pop())
        if source is not None and length:
            self._context.share(source.id, sequence.id, length)
            self._ledger.share(source, sequence, length)
        return sequence

    def _free_cells(self, wanted: int) -> bool:
        """Forget finished sequences, the least recently used first, until ``wanted`` cells are free."""
        while self._ledger.n_free < wanted and self._kept:
            self._drop(min(self._kept, key=lambda s: s.last_used))
        return self._ledger.n_free >= wanted

    # --- a step ---

    def _step(self) -> None:
        """One decode: the next token of each running answer and a chunk of the oldest prompt; then sample."""
        while not self._free_cells(sum(run.pending == 1 for run in self._running)) and len(self._running) > 1:
            self._pause(self._running[-1])
        ready = [run for run in self._running if run.pending == 1]
        filling = next((run for run in self._running if run.pending > 1), None)
        batch = [(run, 1) for run in ready]
        if filling is not None:
            wanted = min(filling.pending, self._chunk(shared=bool(ready)))
            self._free_cells(len(ready) + wanted)
            wanted = min(wanted, self._ledger.n_free - len(ready))
            if wanted > 0:
                batch.append((filling, wanted))
            elif not ready:
                self._pause(self._running[-1] if self._running[-1] is not filling else self._running[0])
                return
        started = time.perf_counter()
        indices = self._decode(batch, filling)
        if indices is None:
            return
        if filling is not None and batch[-1][0] is filling:
            self._measure(batch[-1][1], time.perf_counter() - started)
        for run, _ in batch:
            if run.n_sampled == 0:
                run.sink.progress(run.prompt_tokens - run.pending, run.prompt_tokens)
        sound = [
            self._sample(run, index)
            for (run, _), index in zip(batch, indices, strict=True)
            if index >= 0 and not run.cancelled
        ]
        if not all(sound):
            self._clear_cache()
        self._tell()

    def _tell(self) -> None:
        """Pass on what the answers say: first words at once, then at a rate that is smooth to the eye.

        Each event wakes two threads of the host on cores that compute: told token by token, a fast model is a percent
        slower. Nothing is held back while others fill their prompts, which takes longer than a token.
        """
        now = time.perf_counter()
        due = now - self._told_at >= self.tell_s or bool(self._inbox) or any(run.pending > 1 for run in self._running)
        if due:
            self._told_at = now
        for run in self._running:
            if due or run.n_sampled == 1:
                run.tell()

    def _chunk(self, *, shared: bool) -> int:
        if not shared and self._context.aborts:
            return min(self._n_batch, CPU_CHUNK)
        if not self._rate:
            return min(self._n_batch, _CHUNK_FIRST)
        fits = max(1, int(self._rate * _CHUNK_S))
        return int(max(16, min(self._n_batch, 1 << (fits.bit_length() - 1))))

    def _measure(self, tokens: int, elapsed_s: float) -> None:
        if tokens >= 16 and elapsed_s > 0:
            self._rate = tokens / elapsed_s

    def _decode(self, batch: list[tuple[Run, int]], filling: Run | None) -> list[int] | None:
        segments = []
        for run, count in batch:
            sequence = _sequence(run)
            start = len(sequence.tokens)
            tokens = run.target[start : start + count]
            segments.append(Segment(sequence.id, start, tokens, wants_logits=count == run.pending))
        interruptible = tuple(run for run, _ in batch if run is filling or len(batch) == 1)
        try:
            with self._wake:
                self._context.abort.clear()
                if any(run.cancelled for run in interruptible):
                    return None
                self._in_decode = interruptible
            indices = self._context.decode(segments)
        except Cancelled:
            for (run, _), segment in zip(batch, segments, strict=True):
                self._resume_after_abort(run, segment)
            return None
        finally:
            self._in_decode = ()  # a cancel that saw it sets the flag in vain: the next decode clears it
        self._clock += 1
        for (run, _), segment in zip(batch, segments, strict=True):
            self._ledger.append(_sequence(run), segment.tokens)
            _sequence(run).last_used = self._clock
        return indices

    def _resume_after_abort(self, run: Run, segment: Segment) -> None:
        """Keep what the cache really holds of an aborted batch, but for a last token whose logits are lost."""
        sequence = _sequence(run)
        held = min(self._context.held(sequence.id), len(run.target) - 1)
        if held > len(sequence.tokens):
            self._ledger.append(sequence, segment.tokens[: held - len(sequence.tokens)])
        self._truncate(sequence, min(held, len(sequence.tokens)))

    def _sample(self, run: Run, index: int) -> bool:
        """Choose and take a token; False where the cache may hold numbers that are not finite."""
        try:
            logits = self._context.logits(index) if run.sampling.logprobs is not None else None
            token = self._context.sample(run.sampler(self._model), index)
            if logits is not None:
                run.note_logprobs(logits, token, self._model)
            reason = run.take(token, self._model)
        except Exception as error:
            self._leave(run)
            run.fail(error)
            return not isinstance(error, EngineError)
        if reason is not None:
            self._finish(run, reason)
        return True

    def _clear_cache(self) -> None:
        """Forget every cell's numbers; running answers are prefilled again.

        A number that is not finite makes those of other sequences so, even from a cell that was freed: the attention
        to it is 0, and 0 times infinity is NaN.
        """
        for run in reversed(self._running[:]):
            self._pause(run)
        for sequence in list(self._kept):
            self._drop(sequence)
        self._context.clear()

    # --- ends ---

    def _finish(self, run: Run, reason: FinishReason) -> None:
        self._leave(run)
        run.finish(reason)

    def _leave(self, run: Run) -> None:
        """Take a request out of the running ones; its sequence is kept for its prefix."""
        self._running.remove(run)
        sequence, run.sequence = run.sequence, None
        if sequence is not None:
            self._kept.append(sequence)
            if not sequence.tokens:
                self._drop(sequence)

    def _pause(self, run: Run) -> None:
        """Free a running answer's cells and put it at the head of the line."""
        run.tell()
        self._running.remove(run)
        self._waiting.appendleft(run)
        sequence, run.sequence = run.sequence, None
        if sequence is not None:
            self._kept.append(sequence)
            self._drop(sequence)

    def _drop(self, sequence: Sequence) -> None:
        self._truncate(sequence, 0)
        self._kept.remove(sequence)
        self._free_ids.append(sequence.id)

    def _truncate(self, sequence: Sequence, length: int) -> None:
        self._ledger.truncate(sequence, self._context.truncate(sequence.id, length))

    # --- embeddings ---

    def _embed(self, run: EmbedRun) -> None:
        """The mean of the last layer's outputs over the text, of length 1; cells are free again after it."""
        self._free_cells(len(run.target))
        sequence = self._new_sequence(None, 0)
        self._kept.append(sequence)
        total = np.zeros(self._context.n_embd, np.float64)
        try:
            step = min(self._n_batch, CPU_CHUNK)
            for start in range(0, len(run.target), step):
                tokens = run.target[start : start + step]
                with self._wake:
                    self._context.abort.clear()
                    if run.cancelled:
                        raise Cancelled
                    self._in_decode = (run,)
                self._context.decode([Segment(sequence.id, start, tokens, wants_logits=True)], embeddings=True)
                self._ledger.append(sequence, tokens)
                for index in range(len(tokens)):
                    total += self._context.embeddings(index)
                run.sink.progress(start + len(tokens), len(run.target))
        except Cancelled:
            run.fail(EngineError("the embedding was cancelled", "Ask again"))
            return
        finally:
            with self._wake:
                self._in_decode = ()
            self._drop(sequence)
        length = float(np.linalg.norm(total))
        if not np.isfinite(length):
            self._clear_cache()
            raise EngineError("the model computes numbers that are not finite", "Its weights are damaged; get it again")
        run.sink.embedded([float(value) / (length or 1.0) for value in total])


def _sequence(run: Run) -> Sequence:
    assert run.sequence is not None, "a running request has a sequence"
    return run.sequence


def _head(sequence: Sequence, length: int) -> Sequence:
    """The first cells of a sequence, for counting."""
    head = Sequence(sequence.id)
    head.cells = sequence.cells[:length]
    return head
