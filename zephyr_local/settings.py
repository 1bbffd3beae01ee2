"""Every default of the engine and of sampling, once; the command line, the API and the server read them from here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from zephyr_local.errors import InvalidInputError

KVType = Literal["f16", "f32", "q8_0"]

DEFAULT_N_CTX = 4096
"""Tokens of context where neither the user nor a smaller model says otherwise."""

MAX_N_CTX = 1 << 20
MAX_THREADS = 512  # llama.cpp aborts the process at some thousands of threads


def _require(condition: bool, problem: str, remedy: str) -> None:
    if not condition:
        raise InvalidInputError(problem, remedy)


def _require_numbers(settings: object, whole: tuple[str, ...], real: tuple[str, ...] = ()) -> None:
    """Refuse text and the like, which would otherwise fail far from here; None is left to each field."""
    for name in (*whole, *real):
        value = getattr(settings, name)
        kinds = (int,) if name in whole else (int, float)
        _require(
            value is None or (isinstance(value, kinds) and not isinstance(value, bool)),
            f"{name} is {value!r}",
            f"Give a {'whole number' if name in whole else 'number'}",
        )


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How a model is loaded. Names are llama.cpp's."""

    n_ctx: int | None = None
    """Context in tokens; None: the smaller of 4096 and what the model was trained for."""
    n_batch: int = 512
    """Tokens in one prefill step: also how long a GPU takes to notice a cancel."""
    n_threads: int | None = None
    """CPU threads; None: the cores that this process may use."""
    n_gpu_layers: int = -1
    """Layers on the GPU, where llama.cpp was built for one; -1: all."""
    kv_type: KVType = "f16"
    """Type of the KV cache; f32 costs twice the memory and agrees with float32 logits to about 1e-5."""
    check_tensors: bool = True
    """Refuse weights that are NaN or infinite; reads the whole file once."""

    def __post_init__(self) -> None:
        _require_numbers(self, ("n_ctx", "n_batch", "n_threads", "n_gpu_layers"))
        _require(
            self.n_ctx is None or 8 <= self.n_ctx <= MAX_N_CTX,
            f"n_ctx is {self.n_ctx}, outside 8 to {MAX_N_CTX}",
            "Give a context length in tokens, such as 4096",
        )
        _require(1 <= self.n_batch <= 65536, f"n_batch is {self.n_batch}, outside 1 to 65536", "Give 512, for example")
        _require(
            self.n_threads is None or 1 <= self.n_threads <= MAX_THREADS,
            f"n_threads is {self.n_threads}, outside 1 to {MAX_THREADS}",
            "Give the number of physical cores, or leave it out",
        )
        _require(
            -1 <= self.n_gpu_layers <= 10_000,
            f"n_gpu_layers is {self.n_gpu_layers}, outside -1 to 10000",
            "Give 0 for the CPU alone, or -1 for all layers",
        )
        _require(self.kv_type in ("f16", "f32", "q8_0"), f"kv_type is {self.kv_type!r}", "Use f16, f32 or q8_0")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen and when an answer ends. The defaults are those of Zephyr's model card."""

    temperature: float = 0.7
    """0 takes the likeliest token each time."""
    top_k: int = 50
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 0.95
    """Keep the likeliest tokens whose probabilities add up to p; 1 keeps all."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the likeliest; 0 drops none."""
    repeat_penalty: float = 1.0
    """Divide the logits of recent tokens (the last 64); 1 changes nothing."""
    seed: int | None = None
    """0 to 4294967294; None: a new one for each answer."""
    max_tokens: int | None = None
    """At most this many tokens in an answer; None: as many as the context holds."""
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these strings; they are not part of it."""

    def __post_init__(self) -> None:
        _require_numbers(self, ("top_k", "seed", "max_tokens"), ("temperature", "top_p", "min_p", "repeat_penalty"))
        for name, low, high in (
            ("temperature", 0.0, 100.0),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
            ("repeat_penalty", 0.01, 100.0),
        ):
            value = getattr(self, name)
            _require(
                math.isfinite(value) and low <= value <= high,
                f"{name} is {value}, outside {low:g} to {high:g}",
                f"The default is {type(self).__dataclass_fields__[name].default:g}",
            )
        _require(0 <= self.top_k <= 1 << 20, f"top_k is {self.top_k}, outside 0 to {1 << 20}", "Use 0 to keep all")
        _require(
            self.seed is None or 0 <= self.seed <= 0xFFFFFFFE,
            f"seed is {self.seed}, outside 0 to {0xFFFFFFFE}",
            "Leave it out for a new one each time",
        )
        _require(
            self.max_tokens is None or self.max_tokens >= 1,
            f"max_tokens is {self.max_tokens}, below 1",
            "Leave it out to use what the context holds",
        )
        _require(
            not isinstance(self.stop, str) and all(isinstance(s, str) and s for s in self.stop),
            f"stop is {self.stop!r}",
            "Give one or several texts, none of them empty",
        )


BUNDLED_MODEL_SAMPLING = Sampling(temperature=0.0)
"""For zephyr-tiny: a model of a few million parameters knows one answer; sampling among others makes it wrong."""
