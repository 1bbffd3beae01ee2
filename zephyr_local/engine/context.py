"""One llama_context with several sequences in one unified KV cache: batches of tokens in, logits out.

Semantics are those of ``llama.h`` in llama.cpp 0c1e57098.
"""

from __future__ import annotations

import ctypes
import math
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from zephyr_local.engine.cancel import CancelFlag, Cancelled, native_check_address
from zephyr_local.engine.llama import (
    C,
    Native,
    forked_error,
    native_log,
    quick_get_logits_ith,
    quick_sampler_sample,
)
from zephyr_local.engine.samplers import Sampler
from zephyr_local.errors import ContextExceededError, EngineError
from zephyr_local.hardware import recommended_threads
from zephyr_local.settings import DEFAULT_N_CTX, KEPT_SEQUENCES, MAX_UBATCH, N_CTX_STEP, EngineSettings

_KV_TYPES: Final = {"f16": C.GGML_TYPE_F16, "f32": C.GGML_TYPE_F32, "q8_0": C.GGML_TYPE_Q8_0}
_DECODE_NO_ROOM, _DECODE_ABORTED = 1, 2  # what llama_decode returns


def _make_abort_callback() -> Native:
    address = native_check_address()
    if address is not None:
        return C.ggml_abort_callback(address)
    return C.ggml_abort_callback(lambda flag: ctypes.string_at(flag, 1) != b"\0")


_abort_callback = _make_abort_callback()


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens that one decode appends to a sequence."""

    sequence: int
    start: int
    """Position of the first token: how many the cache holds before."""
    tokens: Sequence[int]
    wants_logits: bool
    """Whether the logits after the last token are computed."""


class Context:
    """Decodes for one thread at a time; calls of several threads wait for each other."""

    def __init__(self, model: Native, settings: EngineSettings, name: str) -> None:
        """Raises EngineError with llama.cpp's reason."""
        self._name = name
        self._lock = threading.RLock()  # two threads on one context end the process
        self._process_id = os.getpid()
        self.n_sequences = settings.n_parallel + KEPT_SEQUENCES
        # llama.cpp ends the process where a batch could not hold a token of every sequence.
        n_batch = max(settings.n_batch + settings.n_parallel, self.n_sequences)
        self._context = _open(model, settings, n_batch, self.n_sequences)
        self.n_batch: int = C.llama_n_batch(self._context)
        """Tokens in one decode at most: a chunk of a prompt and a token of every running answer, or the context."""
        self.n_ctx: int = C.llama_n_ctx(self._context)
        """Cells of the cache, which all sequences share."""
        self.n_threads: int = C.llama_n_threads(self._context)
        self.n_vocab: int = C.llama_vocab_n_tokens(C.llama_model_get_vocab(model))
        self._row_type = ctypes.c_float * self.n_vocab
        self._rows: dict[int, npt.NDArray[np.float32]] = {}
        """Address of logits → a view of them; valid while llama.cpp names the address."""
        self.n_embd: int = C.llama_model_n_embd(model)
        self.aborts = not (C.llama_supports_gpu_offload() and settings.n_gpu_layers != 0)
        """Whether a decode can be ended in its middle: on the CPU."""
        self.abort = CancelFlag()
        """Ends the decode that is running, which then raises Cancelled; ``clear`` it before the next."""
        C.llama_set_abort_callback(self._context, _abort_callback, self.abort.address)
        self._embedding = False
        self._batch = _Batch(self.n_batch)

    def decode(self, segments: Sequence[Segment], *, embeddings: bool = False) -> list[int]:
        """Decode segments of different sequences at once; return for each the index of its logits, -1 for none.

        Raises Cancelled and ContextExceededError (no room in the cache); after either, and after any EngineError,
        :meth:`held` says what each sequence holds.
        """
        with self._lock:
            self._require_open()
            for segment in segments:
                if not all(0 <= token < self.n_vocab for token in segment.tokens):
                    raise EngineError(f"a token is outside 0 to {self.n_vocab - 1}", "Use tokens of this model")
            indices = self._batch.fill(segments, all_outputs=embeddings)
            native_log.clear()
            native_log.failure_is_asked_for = self.abort.is_set
            if embeddings != self._embedding:  # it logs a line each time, and plans its memory anew
                C.llama_set_embeddings(self._context, embeddings)
                self._embedding = embeddings
            status = C.llama_decode(self._context, self._batch.native)
            if not self.aborts:  # a GPU works on, and what would wait for it later does not let go of the GIL
                C.llama_synchronize(self._context)
            native_log.failure_is_asked_for = None
        if status == 0:
            return indices
        if status == _DECODE_ABORTED and self.abort.is_set():
            raise Cancelled
        if status == _DECODE_NO_ROOM:
            raise ContextExceededError(f"the context of {self.n_ctx} tokens is full", "Load with a larger n_ctx")
        raise native_log.error(f"llama.cpp could not decode (status {status})", "Use a smaller n_ctx or n_batch")

    def held(self, sequence: int) -> int:
        """How many positions the cache holds of a sequence."""
        with self._lock:
            self._require_open()
            last: int = C.llama_memory_seq_pos_max(C.llama_get_memory(self._context), sequence)
            return last + 1

    def truncate(self, sequence: int, length: int) -> int:
        """Forget a sequence from position ``length`` on; return what is left, 0 where a part cannot be forgotten."""
        with self._lock:
            self._require_open()
            memory = C.llama_get_memory(self._context)
            if C.llama_memory_seq_rm(memory, sequence, length, -1):
                return length
            C.llama_memory_seq_rm(memory, sequence, -1, -1)
            return 0

    def clear(self) -> None:
        """Forget all sequences, and zero what their cells held."""
        with self._lock:
            self._require_open()
            C.llama_memory_clear(C.llama_get_memory(self._context), True)

    def share(self, source: int, target: int, length: int) -> None:
        """Let the empty sequence ``target`` begin with the first ``length`` cells of ``source``; copies nothing."""
        with self._lock:
            self._require_open()
            C.llama_memory_seq_cp(C.llama_get_memory(self._context), source, target, 0, length)

    def sample(self, sampler: Sampler, index: int) -> int:
        """Choose the token after the logits at ``index``.

        Raises EngineError where one of these is NaN or infinite, or all are minus infinity: native samplers end the
        process on them.
        """
        with self._lock:
            logits = self._logits_view(index)
            best = int(logits.argmax())  # which takes NaN for the greatest
            if not math.isfinite(logits.item(best)):
                raise EngineError(
                    f"{self._name} computes numbers that are not finite", "Its weights are damaged; get it again"
                )
            if sampler.is_plainly_greedy:
                return best
            token: int = quick_sampler_sample(sampler.chain, self._context, index)
            return token

    def logits(self, index: int) -> npt.NDArray[np.float32]:
        """A copy of the logits of the last decode at ``index``, float32 of shape (n_vocab,)."""
        with self._lock:
            return self._logits_view(index).copy()

    def embeddings(self, index: int) -> npt.NDArray[np.float32]:
        """The last layer's output at ``index`` of a decode with embeddings, float32 of shape (n_embd,)."""
        with self._lock:
            self._require_open()
            pointer = C.llama_get_embeddings_ith(self._context, index)
            if not pointer:
                raise EngineError("there are no embeddings", "Decode some tokens first")
            return np.ctypeslib.as_array(pointer, shape=(self.n_embd,)).copy()

    def close(self) -> None:
        """Free it; waits for a call that is running. Closing twice is fine."""
        with self._lock:
            context, self._context = self._context, None
            if context is not None and self._process_id == os.getpid():
                C.llama_free(context)

    def _logits_view(self, index: int) -> npt.NDArray[np.float32]:
        self._require_open()
        address = quick_get_logits_ith(self._context, index)
        if not address:
            raise EngineError("there are no logits", "Evaluate some tokens first")
        view = self._rows.get(address)
        if view is None:
            if len(self._rows) >= self.n_sequences:  # of buffers that are no more
                self._rows.clear()
            view = self._rows[address] = np.frombuffer(self._row_type.from_address(address), np.float32)
        return view

    def _require_open(self) -> None:
        if self._context is None:
            raise EngineError(f"the model {self._name} was closed", "Load it again")
        if self._process_id != os.getpid():
            raise forked_error()


class _Batch:
    """A llama_batch over arrays of ours, filled anew for each decode."""

    def __init__(self, capacity: int) -> None:
        self._tokens = np.zeros(capacity, np.int32)
        self._positions = np.zeros(capacity, np.int32)
        self._sequences = np.zeros(capacity, np.int32)
        self._counts = np.ones(capacity, np.int32)
        self._outputs = np.zeros(capacity, np.int8)
        # The struct wants a pointer for each token's sequences; each has one.
        self._pointers = (self._sequences.ctypes.data + 4 * np.arange(capacity)).astype(np.uintp)
        self.native: Native = C.llama_batch()
        field_types = dict(C.llama_batch._fields_)
        for name, array in (
            ("token", self._tokens),
            ("pos", self._positions),
            ("n_seq_id", self._counts),
            ("seq_id", self._pointers),
            ("logits", self._outputs),
        ):
            setattr(self.native, name, ctypes.cast(array.ctypes.data, field_types[name]))

    def fill(self, segments: Sequence[Segment], *, all_outputs: bool) -> list[int]:
        indices, end = [], 0
        for segment in segments:
            begin, end = end, end + len(segment.tokens)
            if begin + 1 == end:  # the common case, at a tenth of the cost
                self._tokens[begin], self._positions[begin] = segment.tokens[0], segment.start
                self._sequences[begin], self._outputs[begin] = segment.sequence, all_outputs or segment.wants_logits
                indices.append(begin if segment.wants_logits else -1)
                continue
            self._tokens[begin:end] = segment.tokens
            self._positions[begin:end] = np.arange(segment.start, segment.start + len(segment.tokens))
            self._sequences[begin:end] = segment.sequence
            self._outputs[begin:end] = all_outputs
            if segment.wants_logits:
                self._outputs[end - 1] = 1
            indices.append(end - 1 if segment.wants_logits else -1)
        self.native.n_tokens = end
        return indices


def _open(model: Native, settings: EngineSettings, n_batch: int, n_sequences: int) -> Native:
    n_ctx = settings.n_ctx or min(DEFAULT_N_CTX, C.llama_model_n_ctx_train(model))
    n_threads = min(settings.n_threads or recommended_threads(), os.cpu_count() or 1)
    parameters = C.llama_context_default_params()
    # As llama.cpp would, which ends the process where it was given less than there are sequences.
    parameters.n_ctx = n_ctx = -(-n_ctx // N_CTX_STEP) * N_CTX_STEP
    parameters.n_batch = n_batch
    parameters.n_ubatch = min(n_batch, MAX_UBATCH)
    parameters.n_seq_max = n_sequences
    parameters.kv_unified = True  # or each sequence would have a share of its own, and a copied prefix cells of its own
    parameters.n_threads = parameters.n_threads_batch = n_threads
    parameters.type_k = parameters.type_v = _KV_TYPES[settings.kv_type]
    if settings.kv_type == "f32":
        # The CPU's flash attention rounds to half precision inside for whatever cache: on a model of random weights
        # logits were off by 0.02, without it by 2e-6. Who asks for f32 asks for that. Elsewhere llama.cpp chooses.
        parameters.flash_attn_type = C.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.offload_kqv = settings.n_gpu_layers != 0
    parameters.no_perf = True
    native_log.clear()
    context = C.llama_init_from_model(model, parameters)
    if not context:
        raise native_log.error(
            f"llama.cpp could not make a context of {n_ctx} tokens", "Use a smaller n_ctx, or kv_type q8_0"
        )
    return context
