"""A llama.cpp model and its vocabulary; it knows nothing of chats.

The only file that imports llama_cpp, and only its C functions: the high-level class redirects file descriptors, hides
why a load failed, and overruns ``max_tokens``. Semantics are those of ``llama.h`` in llama.cpp 0c1e57098.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import llama_cpp

from zephyr_local.chat_template import MAX_CHARACTER_BYTES
from zephyr_local.engine.huge_pages import HugePages
from zephyr_local.engine.load_watcher import LoadWatcher, Progress
from zephyr_local.engine.native_log import NativeLog
from zephyr_local.errors import ContextExceededError, EngineError
from zephyr_local.hardware import Device, DeviceKind
from zephyr_local.hardware.features import of_build
from zephyr_local.settings import EngineSettings

if TYPE_CHECKING:
    from zephyr_local.engine.context import Context

Native = Any  # a pointer or struct of llama.cpp
C: Native = llama_cpp  # its functions carry ctypes' types, which say nothing to a type checker
_CONTROL_ATTRIBUTES: Final = (1 << 0) | (1 << 3)  # LLAMA_TOKEN_ATTR_UNKNOWN, LLAMA_TOKEN_ATTR_CONTROL
_BYTE_ATTRIBUTE: Final = 1 << 5  # LLAMA_TOKEN_ATTR_BYTE; such a token is written <0x0A>
# ggml_backend_dev_type of ggml-backend.h
_DEVICE_KINDS: Final[dict[int, DeviceKind]] = {0: "cpu", 1: "gpu", 2: "integrated-gpu", 3: "accelerator"}

native_log = NativeLog()


@C.llama_log_callback  # type: ignore[untyped-decorator]
def _log_callback(level: int, text: bytes, _data: object) -> None:
    with contextlib.suppress(Exception):  # none may cross into C, and ctypes would print it
        native_log.write(level, text.decode("utf-8", "replace"))


def _quick(name: str) -> Native:
    """A function of llama.cpp that is called without letting go of the GIL.

    For what takes microseconds and is called for each token: another thread that runs Python would take the GIL, and
    the decode loop would wait for it, 5 ms each time.
    """
    library = llama_cpp.llama_cpp._lib
    function = ctypes.PyDLL(library._name, handle=library._handle)[name]
    declared = getattr(C, name)
    function.argtypes, function.restype = declared.argtypes, declared.restype
    return function


quick_get_logits_ith = _quick("llama_get_logits_ith")
quick_get_logits_ith.restype = ctypes.c_void_p  # an address costs less than a ctypes pointer
quick_sampler_sample = _quick("llama_sampler_sample")
_token_to_piece = _quick("llama_token_to_piece")
_get_attribute, _is_end = _quick("llama_vocab_get_attr"), _quick("llama_vocab_is_eog")

# Importing llama_cpp installs a callback that prints to stderr; this replaces it.
C.llama_log_set(_log_callback, ctypes.c_void_p(0))
C.llama_backend_init()


def native_version() -> str:
    """The version of llama-cpp-python and of llama.cpp inside it."""
    return f"llama-cpp-python {llama_cpp.__version__}, llama.cpp {C.llama_version().decode()}"


def devices() -> tuple[str, ...]:
    """What llama.cpp can compute on in this process, the CPU among them: name and description of each."""
    from llama_cpp._ggml import libggml

    found = []
    for name in ("ggml_backend_dev_get", "ggml_backend_dev_name", "ggml_backend_dev_description"):
        function = getattr(libggml, name)
        function.restype = ctypes.c_void_p if name.endswith("get") else ctypes.c_char_p
        function.argtypes = [ctypes.c_size_t if name.endswith("get") else ctypes.c_void_p]
    for index in range(libggml.ggml_backend_dev_count()):
        device = libggml.ggml_backend_dev_get(index)
        name, description = libggml.ggml_backend_dev_name(device), libggml.ggml_backend_dev_description(device)
        found.append(f"{name.decode('utf-8', 'replace')}: {description.decode('utf-8', 'replace')}")
    return tuple(found)


def device_facts() -> tuple[Device, ...]:
    """The same devices with what each is and its memory, which starts the driver of a GPU and takes memory there."""
    from llama_cpp._ggml import libggml

    declared = {
        "dev_get": (ctypes.c_void_p, ctypes.c_size_t),
        "dev_name": (ctypes.c_char_p, ctypes.c_void_p),
        "dev_description": (ctypes.c_char_p, ctypes.c_void_p),
        "dev_type": (ctypes.c_int, ctypes.c_void_p),
        "dev_memory": (None, ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_size_t)),
        "dev_backend_reg": (ctypes.c_void_p, ctypes.c_void_p),
        "reg_name": (ctypes.c_char_p, ctypes.c_void_p),
    }
    ask: dict[str, Native] = {name: getattr(libggml, f"ggml_backend_{name}") for name in declared}
    for name, (result, *arguments) in declared.items():
        ask[name].restype, ask[name].argtypes = result, arguments
    found = []
    for index in range(libggml.ggml_backend_dev_count()):
        device = ask["dev_get"](index)
        free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
        ask["dev_memory"](device, ctypes.byref(free), ctypes.byref(total))
        texts = ask["dev_name"](device), ask["dev_description"](device), ask["reg_name"](ask["dev_backend_reg"](device))
        name, description, backend = (text.decode("utf-8", "replace").strip() for text in texts)
        kind = _DEVICE_KINDS.get(ask["dev_type"](device), "accelerator")
        found.append(Device(name, description, kind, total.value, free.value, backend))
    return tuple(found)


def kernel_features() -> frozenset[str]:
    """The CPU's instructions that the kernels were built with, in the words of ``hardware.CPU``."""
    return of_build(C.llama_print_system_info().decode("utf-8", "replace"))


def offloads_to_gpus() -> bool:
    """Whether it was built with a backend for GPUs; ``devices`` tells whether there is one."""
    return bool(C.llama_supports_gpu_offload())


class LlamaModel:
    """A loaded model, its vocabulary and its context. Any thread may ask the vocabulary; calls wait for each other."""

    def __init__(self, model: Native, context: Context | None, path: Path, pages: HugePages) -> None:
        """Use :meth:`load`."""
        self.pages = pages
        self._model, self._context, self._path = model, context, path
        self._vocab = C.llama_model_get_vocab(model)
        self._vocab_lock = threading.RLock()  # held to close
        self._process_id = os.getpid()
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
        parameters = C.llama_model_default_params()
        parameters.n_gpu_layers = -1 if settings.n_gpu_layers is None else settings.n_gpu_layers
        parameters.check_tensors = settings.check_tensors
        parameters.vocab_only = vocab_only
        parameters.progress_callback = C.llama_progress_callback(watcher.called)  # which the struct keeps alive
        native_log.clear()
        pages = HugePages()
        model = C.llama_model_load_from_file(os.fsencode(path), parameters)
        if watcher.error is not None:
            if model:
                C.llama_model_free(model)
            raise watcher.error
        if not model:
            raise native_log.error(
                f"llama.cpp could not load {path}", "Check that the file is whole and that there is memory for it"
            )
        pages.find()
        try:
            from zephyr_local.engine.context import Context  # which needs this module

            context = None if vocab_only else Context(model, settings, path.name)
        except BaseException:
            C.llama_model_free(model)
            raise
        return cls(model, context, path, pages)

    def _read_facts(self) -> None:
        vocab = self._vocab
        self.n_vocab: int = C.llama_vocab_n_tokens(vocab)
        self.bos_id: int = C.llama_vocab_bos(vocab)
        self.eos_id: int = C.llama_vocab_eos(vocab)
        self.add_bos: bool = C.llama_vocab_get_add_bos(vocab)
        self.n_ctx_train: int = C.llama_model_n_ctx_train(self._model)
        self.n_ctx: int = self._context.n_ctx if self._context is not None else 0
        self.control_tokens: dict[str, int] = {}
        """The tokens that steer the model, text → id: control tokens, the unknown token, ends of generation."""
        self.byte_tokens: dict[int, int] = {}
        """Byte → id of the token that stands for it."""
        self._ends = frozenset(token for token in range(self.n_vocab) if _is_end(vocab, token))
        steering = {self.bos_id, self.eos_id, *self._ends}
        self._pieces: dict[int, bytes] = {}  # those that were asked for
        self._piece_buffer = ctypes.create_string_buffer(64)
        for token in range(self.n_vocab):
            attributes = _get_attribute(vocab, token)
            if attributes & _CONTROL_ATTRIBUTES or token in steering:  # the latter whatever type the file gave them
                self.control_tokens[self.token_text(token)] = token
            elif attributes & _BYTE_ATTRIBUTE:
                self.byte_tokens[int(self.token_text(token)[3:5], 16)] = token

    @cached_property
    def _longest_and_known(self) -> tuple[int, set[str]]:
        """The bytes of the longest token that is plain text, and the characters of all of them."""
        longest, known = 1, set[str]()
        special = {*self.control_tokens.values(), *self.byte_tokens.values()}
        for token in range(self.n_vocab):
            if token not in special:
                text = self.token_text(token)
                longest = max(longest, len(text.encode("utf-8", "replace")))
                known.update(text)
        return longest, known

    # --- text and tokens ---

    def tokenize(self, text: str) -> list[int]:
        """The tokens of plain text: no start token, and no control token is ever parsed from it.

        Raises ContextExceededError, before the work is done, where the text cannot fit the context: what falls back to
        bytes tokenises in quadratic time.
        """
        if self.n_ctx and MAX_CHARACTER_BYTES * len(text) > self.n_ctx < (least := self.least_tokens(text)):
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
            count = C.llama_tokenize(self._vocab, data, len(data), tokens, capacity, False, False)
        if count < 0:
            raise EngineError(f"llama.cpp could not tokenise {len(data)} bytes", "Report this with the text")
        return tokens[:count]

    def least_tokens(self, text: str) -> int:
        """A number of tokens that ``text`` cannot have fewer of, found in linear time.

        A character that is in no token costs a token for each of its bytes, the others share the longest token.
        """
        longest, known = self._longest_and_known
        n_known_bytes = n_unknown_bytes = 0
        for character, count in Counter(text).items():
            n_bytes = count * len(character.encode("utf-8", "replace"))
            if character == " " or character in known:
                n_known_bytes += n_bytes
            else:
                n_unknown_bytes += n_bytes
        return n_unknown_bytes + n_known_bytes // longest

    def token_to_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for; none for control tokens. May be a part of a UTF-8 character."""
        self._require_open()
        if (piece := self._pieces.get(token)) is not None:
            return piece
        if not 0 <= token < self.n_vocab:
            raise EngineError(f"the token {token} is outside 0 to {self.n_vocab - 1}", "Use a token of this model")
        with self._vocab_lock:
            self._require_open()
            written = self._write_piece(token)
            if written < 0:
                self._piece_buffer = ctypes.create_string_buffer(-written)
                written = self._write_piece(token)
            piece = self._pieces[token] = self._piece_buffer.raw[:written]
            return piece

    def _write_piece(self, token: int) -> int:
        buffer = self._piece_buffer
        return _token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)  # type: ignore[no-any-return]

    def token_text(self, token: int) -> str:
        """How the vocabulary writes a token, a control token included."""
        if not 0 <= token < self.n_vocab:
            return ""
        with self._vocab_lock:
            self._require_open()
            text: bytes = C.llama_vocab_get_text(self._vocab, token)
            return text.decode("utf-8", "replace")

    def is_end_of_generation(self, token: int) -> bool:
        self._require_open()
        return token in self._ends

    # --- its parts and its end ---

    @property
    def context(self) -> Context:
        """The sequences that it computes. Raises EngineError where only the vocabulary was loaded."""
        self._require_open()
        if self._context is None:
            raise EngineError(f"only the vocabulary of {self._path.name} was loaded", "Load the whole model")
        return self._context

    @property
    def vocab(self) -> Native:
        """llama.cpp's own pointer, for samplers."""
        self._require_open()
        return self._vocab

    def close(self) -> None:
        """Free the model; waits for a call that is running. Closing twice is fine."""
        if self._context is not None:
            self._context.close()
        with self._vocab_lock:
            model, self._model = self._model, None
            if model is not None and self._process_id == os.getpid():
                C.llama_model_free(model)

    def __del__(self) -> None:
        if getattr(self, "_process_id", None) is not None and C is not None and not sys.is_finalizing():
            self.close()

    def _require_open(self) -> None:
        if self._model is None:
            raise EngineError(f"the model {self._path.name} was closed", "Load it again")
        if self._process_id != os.getpid():
            raise forked_error()


def forked_error() -> EngineError:
    """For a use in a forked process, where ggml's threads did not come along: a decode would wait for ever."""
    return EngineError("the model was loaded before this process was forked", "Load it after the fork, or use spawn")
