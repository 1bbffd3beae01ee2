"""One llama.cpp model with one context of one sequence: tokens in, logits out; it knows nothing of chats.

The only file that imports llama_cpp, and only its C functions: the high-level class redirects file descriptors, hides
why a load failed, and overruns ``max_tokens``. Semantics are those of ``llama.h`` in llama.cpp 0c1e57098.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import llama_cpp
import numpy as np
import numpy.typing as npt

from zephyr_local.engine.cancel import CancelFlag, Cancelled, native_check_address
from zephyr_local.engine.load_watcher import LoadWatcher, Progress
from zephyr_local.engine.native_log import NativeLog
from zephyr_local.errors import ContextExceededError, EngineError
from zephyr_local.hardware import usable_cores
from zephyr_local.settings import DEFAULT_N_CTX, EngineSettings, Sampling

_Native = Any  # a pointer or struct of llama.cpp
_C: _Native = llama_cpp  # its functions carry ctypes' types, which say nothing to a type checker
_KV_TYPES: Final = {"f16": llama_cpp.GGML_TYPE_F16, "f32": llama_cpp.GGML_TYPE_F32, "q8_0": llama_cpp.GGML_TYPE_Q8_0}
_MAX_UBATCH: Final = 512
_PENALTY_LAST_N: Final = 64
_GREEDY_BELOW: Final = 1e-6  # logits divided by less overflow, and the chain would choose the last token of all
_CONTROL_ATTRIBUTES: Final = (1 << 0) | (1 << 3)  # LLAMA_TOKEN_ATTR_UNKNOWN, LLAMA_TOKEN_ATTR_CONTROL
_BYTE_ATTRIBUTE: Final = 1 << 5  # LLAMA_TOKEN_ATTR_BYTE; such a token is written <0x0A>
_DECODE_NO_ROOM, _DECODE_ABORTED = 1, 2  # what llama_decode returns

_native_log = NativeLog()


@_C.llama_log_callback  # type: ignore[untyped-decorator]
def _log_callback(level: int, text: bytes, _data: object) -> None:
    with contextlib.suppress(Exception):  # none may cross into C, and ctypes would print it
        _native_log.write(level, text.decode("utf-8", "replace"))


# Importing llama_cpp installs a callback that prints to stderr; this replaces it.
_C.llama_log_set(_log_callback, ctypes.c_void_p(0))
_C.llama_backend_init()


def _make_abort_callback() -> _Native:
    address = native_check_address()
    if address is not None:
        return _C.ggml_abort_callback(address)
    return _C.ggml_abort_callback(lambda flag: ctypes.string_at(flag, 1) != b"\0")


_abort_callback = _make_abort_callback()


def native_version() -> str:
    """The version of llama-cpp-python and of llama.cpp inside it."""
    return f"llama-cpp-python {llama_cpp.__version__}, llama.cpp {_C.llama_version().decode()}"


class Sampler:
    """A chain of llama.cpp's samplers; belongs to one answer of one model."""

    def __init__(self, chain: _Native) -> None:
        self._chain = chain

    @property
    def chain(self) -> _Native:
        if self._chain is None:
            raise EngineError("the sampler was closed", "Make a new one")
        return self._chain

    def close(self) -> None:
        chain, self._chain = self._chain, None
        if chain is not None:
            _C.llama_sampler_free(chain)

    def __del__(self) -> None:
        if _C is not None:  # the module may be gone when the interpreter ends
            self.close()


class LlamaModel:
    """A loaded model and its context. Any thread may call any method; calls wait for each other."""

    def __init__(self, model: _Native, context: _Native, path: Path) -> None:
        """Use :meth:`load`."""
        self._model, self._context, self._path = model, context, path
        self._vocab = _C.llama_model_get_vocab(model)
        # Two threads on one context end the process. The vocabulary is read-only and has a lock of its own, so that
        # counting tokens need not wait for a prefill; both are held to close.
        self._context_lock = threading.RLock()
        self._vocab_lock = threading.RLock()
        self._process_id = os.getpid()
        self._cached: list[int] = []  # the tokens whose keys and values the cache holds, in order
        self._armed: CancelFlag | None = None  # whose address the context reads; kept alive by this
        self._read_facts()

    @classmethod
    def load(
        cls,
        path: Path,
        settings: EngineSettings,
        *,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
        vocab_only: bool = False,
    ) -> LlamaModel:
        """Load a file that ``gguf_check`` has accepted.

        ``progress`` and ``cancelled`` are called on this thread while weights are read; an exception of theirs ends
        the load and comes out of here. ``vocab_only`` gives a model that only tokenises. Raises EngineError with
        llama.cpp's reason, and Cancelled.
        """
        watcher = LoadWatcher(progress, cancelled)
        parameters = _C.llama_model_default_params()
        parameters.n_gpu_layers = settings.n_gpu_layers
        parameters.check_tensors = settings.check_tensors
        parameters.vocab_only = vocab_only
        parameters.progress_callback = _C.llama_progress_callback(watcher.called)  # which the struct keeps alive
        _native_log.clear()
        model = _C.llama_model_load_from_file(os.fsencode(path), parameters)
        if watcher.error is not None:
            if model:
                _C.llama_model_free(model)
            raise watcher.error
        if not model:
            raise EngineError(
                f"llama.cpp could not load {path}: {_native_log.explanation()}",
                "Check that the file is whole and that there is memory for it",
            )
        try:
            context = None if vocab_only else _open_context(model, settings)
        except BaseException:
            _C.llama_model_free(model)
            raise
        return cls(model, context, path)

    def _read_facts(self) -> None:
        vocab = self._vocab
        self.n_vocab: int = _C.llama_vocab_n_tokens(vocab)
        self.bos_id: int = _C.llama_vocab_bos(vocab)
        self.eos_id: int = _C.llama_vocab_eos(vocab)
        self.add_bos: bool = _C.llama_vocab_get_add_bos(vocab)
        self.n_ctx_train: int = _C.llama_model_n_ctx_train(self._model)
        self.n_ctx: int = _C.llama_n_ctx(self._context) if self._context else 0
        self.n_batch: int = _C.llama_n_batch(self._context) if self._context else 0
        self.n_threads: int = _C.llama_n_threads(self._context) if self._context else 0
        self.control_tokens: dict[str, int] = {}
        """The tokens that steer the model, text → id: control tokens, the unknown token, ends of generation."""
        self.byte_tokens: dict[int, int] = {}
        """Byte → id of the token that stands for it."""
        self._max_token_bytes = 1
        self._known_characters: set[str] = set()
        for token in range(self.n_vocab):
            text: bytes = _C.llama_vocab_get_text(vocab, token)
            attributes = _C.llama_vocab_get_attr(vocab, token)
            steers = token in (self.bos_id, self.eos_id) or _C.llama_vocab_is_eog(vocab, token)
            if attributes & _CONTROL_ATTRIBUTES or steers:  # the latter whatever type the file gave them
                self.control_tokens[text.decode("utf-8", "replace")] = token
            elif attributes & _BYTE_ATTRIBUTE:
                self.byte_tokens[int(text[3:5], 16)] = token
            else:
                self._max_token_bytes = max(self._max_token_bytes, len(text))
                self._known_characters.update(text.decode("utf-8", "replace"))

    # --- text and tokens ---

    def tokenize(self, text: str) -> list[int]:
        """The tokens of plain text: no start token, and no control token is ever parsed from it.

        Raises ContextExceededError, before the work is done, where the text cannot fit the context: what falls back to
        bytes tokenises in quadratic time.
        """
        least = self.least_tokens(text)
        if self.n_ctx and least > self.n_ctx:
            raise ContextExceededError(
                f"the text needs {least} tokens or more and the context holds {self.n_ctx}",
                "Shorten it, or load the model with a larger n_ctx",
            )
        data = text.encode("utf-8", "replace")  # a lone surrogate has no UTF-8
        with self._vocab_lock:
            self._require_open()
            # A token a byte at most, but for spaces: one is put in front, and where there is no ▁ each is three.
            capacity = len(data) + 2 * data.count(b" ") + 8
            tokens = (llama_cpp.llama_token * capacity)()
            count = _C.llama_tokenize(self._vocab, data, len(data), tokens, capacity, False, False)
        if count < 0:
            raise EngineError(f"llama.cpp could not tokenise {len(data)} bytes", "Report this with the text")
        return tokens[:count]

    def least_tokens(self, text: str) -> int:
        """A number of tokens that ``text`` cannot have fewer of, found in linear time.

        A character that is in no token costs a token for each of its bytes, the others share the longest token.
        """
        n_known_bytes = n_unknown_bytes = 0
        for character, count in Counter(text).items():
            n_bytes = count * len(character.encode("utf-8", "replace"))
            if character == " " or character in self._known_characters:
                n_known_bytes += n_bytes
            else:
                n_unknown_bytes += n_bytes
        return n_unknown_bytes + n_known_bytes // self._max_token_bytes

    def token_to_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for; none for control tokens. May be a part of a UTF-8 character."""
        if not 0 <= token < self.n_vocab:
            raise EngineError(f"the token {token} is outside 0 to {self.n_vocab - 1}", "Use a token of this model")
        with self._vocab_lock:
            self._require_open()
            size = 64
            while True:
                buffer = ctypes.create_string_buffer(size)
                written = _C.llama_token_to_piece(self._vocab, token, buffer, size, 0, False)
                if written >= 0:
                    return buffer.raw[:written]
                size = -written

    def token_text(self, token: int) -> str:
        """How the vocabulary writes a token, a control token included."""
        if not 0 <= token < self.n_vocab:
            return ""
        with self._vocab_lock:
            self._require_open()
            text: bytes = _C.llama_vocab_get_text(self._vocab, token)
            return text.decode("utf-8", "replace")

    def is_end_of_generation(self, token: int) -> bool:
        with self._vocab_lock:
            self._require_open()
            ends: bool = _C.llama_vocab_is_eog(self._vocab, token)
            return ends

    # --- the cache and its logits ---

    @property
    def cached_tokens(self) -> tuple[int, ...]:
        """The tokens that the KV cache holds."""
        with self._context_lock:
            return tuple(self._cached)

    def evaluate(self, tokens: Sequence[int], cancel: CancelFlag | None = None) -> int:
        """Make the cache hold exactly ``tokens`` and the logits those after the last; return how many were cached.

        The longest common prefix with what the cache holds is kept, but at least one token is decoded, so that there
        are logits. Raises Cancelled when ``cancel`` is set; what was decoded until then stays cached.
        """
        with self._context_lock:
            self._require_context()
            if not tokens:
                raise EngineError("there are no tokens to evaluate", "Give at least one")
            if len(tokens) > self.n_ctx:
                raise ContextExceededError(
                    f"{len(tokens)} tokens do not fit the context of {self.n_ctx}",
                    "Shorten the chat, or load the model with a larger n_ctx",
                )
            kept = min(_common_prefix(self._cached, tokens), len(tokens) - 1)
            self._truncate(kept)
            kept = len(self._cached)
            for start in range(kept, len(tokens), self.n_batch):
                self._decode(list(tokens[start : start + self.n_batch]), cancel)
            return kept

    def append(self, token: int, cancel: CancelFlag | None = None) -> None:
        """Decode one more token. Raises Cancelled, with the cache as it was before."""
        with self._context_lock:
            self._require_context()
            if len(self._cached) >= self.n_ctx:
                raise ContextExceededError(f"the context of {self.n_ctx} tokens is full", "Load with a larger n_ctx")
            self._decode([token], cancel)

    def logits(self) -> npt.NDArray[np.float32]:
        """A copy of the logits after the last token, float32 of shape (n_vocab,)."""
        with self._context_lock:
            self._require_context()
            return self._logits_view().copy()

    def sampler(self, sampling: Sampling, recent: Sequence[int] = ()) -> Sampler:
        """A sampler for one answer; ``recent`` are the tokens before it, for the repetition penalty.

        The order is that of llama.cpp's own tools: penalty, top_k, top_p, min_p, temperature, choice.
        """
        chain_parameters = _C.llama_sampler_chain_default_params()
        chain_parameters.no_perf = True
        sampler = Sampler(_C.llama_sampler_chain_init(chain_parameters))

        def add(stage: _Native) -> None:
            _C.llama_sampler_chain_add(sampler.chain, stage)  # which now owns it

        if sampling.repeat_penalty != 1.0:
            add(_C.llama_sampler_init_penalties(self.n_vocab, _PENALTY_LAST_N, sampling.repeat_penalty, 0.0, 0.0))
        if sampling.temperature < _GREEDY_BELOW:
            add(_C.llama_sampler_init_greedy())
        else:
            add(_C.llama_sampler_init_top_k(sampling.top_k))
            add(_C.llama_sampler_init_top_p(sampling.top_p, 1))
            add(_C.llama_sampler_init_min_p(sampling.min_p, 1))
            add(_C.llama_sampler_init_temp(sampling.temperature))
            seed = secrets.randbelow(0xFFFFFFFF) if sampling.seed is None else sampling.seed
            add(_C.llama_sampler_init_dist(seed))
        if sampling.repeat_penalty != 1.0:
            for token in recent[-_PENALTY_LAST_N:]:
                _C.llama_sampler_accept(sampler.chain, token)
        return sampler

    def sample(self, sampler: Sampler) -> int:
        """Choose the token after the last one. Raises EngineError where the model computed NaN or infinity."""
        with self._context_lock:
            self._require_context()
            # Native samplers end the process on NaN.
            if not np.isfinite(self._logits_view()).all():
                raise EngineError(
                    f"{self._path.name} computes numbers that are not finite", "Its weights are damaged; get it again"
                )
            token: int = _C.llama_sampler_sample(sampler.chain, self._context, -1)
            return token

    def _logits_view(self) -> npt.NDArray[np.float32]:
        pointer = _C.llama_get_logits_ith(self._context, -1) if self._cached else None
        if not pointer:
            raise EngineError("there are no logits", "Evaluate some tokens first")
        return np.ctypeslib.as_array(pointer, shape=(self.n_vocab,))

    def _decode(self, tokens: list[int], cancel: CancelFlag | None) -> None:
        """Decode at most n_batch tokens behind those that the cache holds, and keep count of it whatever happens."""
        if not all(0 <= token < self.n_vocab for token in tokens):
            raise EngineError(f"a token is outside 0 to {self.n_vocab - 1}", "Use tokens of this model")
        if cancel is not None and cancel.is_set():  # on GPUs the callback is not asked: this is what cancels
            raise Cancelled
        if cancel is not self._armed:
            callback = _C.ggml_abort_callback() if cancel is None else _abort_callback  # () is NULL
            _C.llama_set_abort_callback(self._context, callback, None if cancel is None else cancel.address)
            self._armed = cancel
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        _native_log.clear()
        _native_log.failure_is_asked_for = None if cancel is None else cancel.is_set
        status = _C.llama_decode(self._context, _C.llama_batch_get_one(array, len(tokens)))
        _native_log.failure_is_asked_for = None
        if status == 0:
            self._cached += tokens
            return
        # Some micro-batches may have gone through: keep what the cache really holds.
        held = _C.llama_memory_seq_pos_max(_C.llama_get_memory(self._context), 0) + 1
        self._cached = (self._cached + tokens)[:held]
        self._truncate(len(self._cached))
        if status == _DECODE_ABORTED and cancel is not None and cancel.is_set():
            raise Cancelled
        if status == _DECODE_NO_ROOM:
            raise ContextExceededError(f"the context of {self.n_ctx} tokens is full", "Load with a larger n_ctx")
        raise EngineError(
            f"llama.cpp could not decode (status {status}): {_native_log.explanation()}",
            "Use a smaller n_ctx or n_batch",
        )

    def _truncate(self, length: int) -> None:
        """Forget what the cache holds from position ``length`` on; everything, where it cannot forget a part."""
        memory = _C.llama_get_memory(self._context)
        if not _C.llama_memory_seq_rm(memory, 0, length, -1):
            _C.llama_memory_clear(memory, True)
            length = 0
        del self._cached[length:]

    # --- its end ---

    def close(self) -> None:
        """Free the model; waits for a call that is running. Closing twice is fine."""
        with self._context_lock, self._vocab_lock:
            model, context, self._model, self._context = self._model, self._context, None, None
            self._cached = []
            if model is None or self._process_id != os.getpid():
                return
            if context is not None:
                _C.llama_free(context)
            _C.llama_model_free(model)

    def __del__(self) -> None:
        if getattr(self, "_process_id", None) is not None and _C is not None and not sys.is_finalizing():
            self.close()

    def _require_open(self) -> None:
        if self._model is None:
            raise EngineError(f"the model {self._path.name} was closed", "Load it again")
        if self._process_id != os.getpid():  # ggml's threads did not come along: a decode would wait for them for ever
            raise EngineError(
                "the model was loaded before this process was forked", "Load it after the fork, or use spawn"
            )

    def _require_context(self) -> None:
        self._require_open()
        if self._context is None:
            raise EngineError(f"only the vocabulary of {self._path.name} was loaded", "Load the whole model")


def _open_context(model: _Native, settings: EngineSettings) -> _Native:
    n_ctx = settings.n_ctx or min(DEFAULT_N_CTX, _C.llama_model_n_ctx_train(model))
    n_threads = min(settings.n_threads or usable_cores(), os.cpu_count() or 1)
    parameters = _C.llama_context_default_params()
    parameters.n_ctx = n_ctx  # llama.cpp rounds it up to a multiple of 256
    parameters.n_batch = settings.n_batch
    parameters.n_ubatch = min(settings.n_batch, _MAX_UBATCH)
    parameters.n_seq_max = 1
    parameters.n_threads = parameters.n_threads_batch = n_threads
    parameters.type_k = parameters.type_v = _KV_TYPES[settings.kv_type]
    if settings.kv_type == "f32":
        # The CPU's flash attention rounds to half precision inside for whatever cache: on a model of random weights
        # logits were off by 0.02, without it by 2e-6. Who asks for f32 asks for that. Elsewhere llama.cpp chooses.
        parameters.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.offload_kqv = settings.n_gpu_layers != 0
    parameters.no_perf = True
    _native_log.clear()
    context = _C.llama_init_from_model(model, parameters)
    if not context:
        raise EngineError(
            f"llama.cpp could not make a context of {n_ctx} tokens: {_native_log.explanation()}",
            "Use a smaller n_ctx, or kv_type q8_0",
        )
    return context


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    length = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        length += 1
    return length
