"""Every default of the engine and of sampling, once; the command line, the API and the server read them from here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Literal

from zephyr_local.errors import InvalidInputError

KVType = Literal["f16", "f32", "q8_0"]

DEFAULT_N_CTX = 4096
"""Tokens of context where neither the user nor a smaller model says otherwise."""

N_CTX_STEP = 256
"""llama.cpp rounds n_ctx up to a multiple of it."""

KEPT_SEQUENCES = 8
"""Sequence ids besides those of running answers: finished chats, kept for their prefix."""

MAX_UBATCH = 512
"""Tokens that llama.cpp computes at once; more of a batch come one such piece after the other."""

CPU_CHUNK = 128
"""Tokens of a prompt in one step on the CPU where nobody else waits: as fast as more, and progress can be told."""

MAX_N_CTX = 1 << 20
MAX_THREADS = 512  # llama.cpp aborts the process at some thousands of threads
MAX_PARALLEL = 64
MAX_LOGPROBS = 20
MAX_SEED = 0xFFFFFFFE

_BAN: Final = float("-inf")
_MAX_BIAS = 1000
_MAX_TOKEN = (1 << 31) - 1
_MAX_BREAKERS = 64
_MAX_BREAKER_BYTES = 40  # llama.cpp cuts a longer one off, in the middle of a character if need be


def _require(condition: bool, problem: str, remedy: str) -> None:
    if not condition:
        raise InvalidInputError(problem, remedy)


def require_kind(value: object, kind: type, name: str) -> None:
    """Refuse an argument of another type, which would otherwise fail in the engine, far from who gave it."""
    if not isinstance(value, kind):
        raise InvalidInputError(f"{name} is of type {type(value).__name__}", f"Give one of type {kind.__name__}")


def _is_number(value: object, *, whole: bool = False) -> bool:
    return isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)


def _require_numbers(settings: Any, whole: tuple[str, ...], real: tuple[str, ...] = ()) -> None:  # noqa: ANN401
    """Refuse text and the like, which would otherwise fail far from here, and None where it is not the default."""
    defaults = {field.name: field.default for field in fields(settings)}
    for name in (*whole, *real):
        value = getattr(settings, name)
        _require(
            (value is None and defaults[name] is None) or _is_number(value, whole=name in whole),
            f"{name} is {value!r}",
            f"Give a {'whole number' if name in whole else 'number'}",
        )


def _texts(name: str, value: Any) -> tuple[str, ...]:  # noqa: ANN401
    """Several texts, none of them empty, as a tuple."""
    texts = tuple(value) if isinstance(value, Iterable) and not isinstance(value, (str, bytes)) else None
    valid = texts is not None and all(isinstance(text, str) and text for text in texts)
    _require(valid, f"{name} is {value!r}", "Give one or several texts, none of them empty")
    return texts or ()


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How a model is loaded. Names are llama.cpp's."""

    n_ctx: int | None = None
    """Tokens of context, rounded up to a multiple of 256; None: 4096, or what the model was trained for if less."""
    n_batch: int = 512
    """Tokens in one prefill step: also how long a GPU takes to notice a cancel."""
    n_threads: int | None = None
    """CPU threads; None: the physical cores that this process may use, of those for performance where they differ."""
    n_gpu_layers: int | None = None
    """Layers on the GPU, where llama.cpp was built for one; None: as many as fit; -1: all."""
    kv_type: KVType = "f16"
    """Type of the KV cache; f32 costs twice the memory and agrees with float32 logits to about 1e-5."""
    check_tensors: bool = True
    """Refuse weights that are NaN or infinite; reads the whole file once."""
    n_parallel: int = 4
    """Answers at once; they share the context's n_ctx tokens."""
    check_memory: bool = True
    """Refuse, before it is loaded, a model that does not fit the memory that is available."""

    def __post_init__(self) -> None:
        _require_numbers(self, ("n_ctx", "n_batch", "n_threads", "n_gpu_layers", "n_parallel"))
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
            self.n_gpu_layers is None or -1 <= self.n_gpu_layers <= 10_000,
            f"n_gpu_layers is {self.n_gpu_layers}, outside -1 to 10000",
            "Give 0 for the CPU alone, -1 for all layers, or leave it out for as many as fit",
        )
        for name in ("check_tensors", "check_memory"):
            _require(isinstance(getattr(self, name), bool), f"{name} is {getattr(self, name)!r}", "Give True or False")
        _require(self.kv_type in ("f16", "f32", "q8_0"), f"kv_type is {self.kv_type!r}", "Use f16, f32 or q8_0")
        _require(
            1 <= self.n_parallel <= MAX_PARALLEL,
            f"n_parallel is {self.n_parallel}, outside 1 to {MAX_PARALLEL}",
            "Give 1 where one answer at a time is enough",
        )


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
    """Divide the logits of recent tokens; 1 changes nothing."""
    seed: int | None = None
    """0 to 4294967294; None: a new one for each answer."""
    max_tokens: int | None = None
    """At most this many tokens in an answer; None: as many as the context holds."""
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these strings; they are not part of it."""

    typical_p: float = 1.0
    """Keep the tokens whose surprise is nearest to the expected one, until they add up to p; 1 keeps all."""
    repeat_last_n: int = 64
    """How many recent tokens the repeat, frequency and presence penalties see; 0: none."""
    frequency_penalty: float = 0.0
    """Take this from a recent token's logit for each time that it occurred."""
    presence_penalty: float = 0.0
    """Take this from a recent token's logit, however often it occurred."""
    mirostat: int = 0
    """1 or 2: version of Mirostat, which aims at a surprise in place of top_k, top_p, min_p, typical_p and XTC.

    Prefer 2: after some dozens of tokens that the model was surer of than mirostat_tau, llama.cpp's version 1
    overflows and takes the likeliest token from then on.
    """
    mirostat_tau: float = 5.0
    """The surprise that Mirostat aims at, in bits."""
    mirostat_eta: float = 0.1
    """How fast Mirostat adapts."""
    dry_multiplier: float = 0.0
    """Take multiplier * base ** (length - allowed_length) from a token that prolongs a repetition; 0: nothing."""
    dry_base: float = 1.75
    """How fast DRY grows with the repetition's length."""
    dry_allowed_length: int = 2
    """Repetitions shorter than this many tokens cost nothing."""
    dry_penalty_last_n: int = 64
    """How many recent tokens DRY searches for repetitions; 0: none."""
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    """Repetitions end at these texts."""
    xtc_probability: float = 0.0
    """How often XTC drops all but the least likely of the tokens above its threshold; 0: never."""
    xtc_threshold: float = 0.1
    """The probability from which XTC calls a token likely; none is dropped where it is over 0.5."""
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()
    """Token → what is added to its logit, -1000 to 1000, or -inf to ban it. Kept as sorted pairs."""
    logprobs: int | None = None
    """Give each token's log probability, and those of so many (0 to 20) of the likeliest; None: give none."""

    def __post_init__(self) -> None:
        _require_numbers(self, ("seed", "max_tokens", "logprobs", *_WHOLE_RANGES), tuple(_REAL_RANGES))
        defaults = {field.name: field.default for field in fields(self)}
        for name, (low, high) in (_REAL_RANGES | _WHOLE_RANGES).items():
            value = getattr(self, name)
            _require(  # which NaN is not either
                low <= value <= high,
                f"{name} is {value}, outside {low:.7g} to {high:.7g}",
                f"The default is {defaults[name]:g}",
            )
        _require(
            self.seed is None or 0 <= self.seed <= MAX_SEED,
            f"seed is {self.seed}, outside 0 to {MAX_SEED}",
            "Leave it out for a new one each time",
        )
        _require(
            self.max_tokens is None or self.max_tokens >= 1,
            f"max_tokens is {self.max_tokens}, below 1",
            "Leave it out to use what the context holds",
        )
        _require(
            self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS,
            f"logprobs is {self.logprobs}, outside 0 to {MAX_LOGPROBS}",
            "Leave it out to get none",
        )
        # A frozen dataclass sets its own fields so.
        object.__setattr__(self, "stop", _texts("stop", self.stop))
        object.__setattr__(self, "dry_sequence_breakers", _breakers(self.dry_sequence_breakers))
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))


_REAL_RANGES: Final[dict[str, tuple[float, float]]] = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "typical_p": (0.0, 1.0),
    "repeat_penalty": (0.01, 100.0),
    "frequency_penalty": (-100.0, 100.0),
    "presence_penalty": (-100.0, 100.0),
    "mirostat_tau": (0.0, 20.0),
    "mirostat_eta": (0.0, 1.0),
    "dry_multiplier": (0.0, 100.0),
    "dry_base": (1.0, 100.0),
    "xtc_probability": (0.0, 1.0),
    "xtc_threshold": (0.0, 1.0),
}
_WHOLE_RANGES: Final[dict[str, tuple[float, float]]] = {
    "top_k": (0, 1 << 20),
    "repeat_last_n": (0, MAX_N_CTX),
    "mirostat": (0, 2),
    "dry_allowed_length": (1, MAX_N_CTX),
    "dry_penalty_last_n": (0, MAX_N_CTX),
}


def sampling_range(name: str) -> tuple[float, float] | None:
    """The least and the greatest value of a field of ``Sampling``; None where it is no number."""
    others = {"seed": (0, MAX_SEED), "max_tokens": (1, MAX_N_CTX), "logprobs": (0, MAX_LOGPROBS)}
    return (_REAL_RANGES | _WHOLE_RANGES | others).get(name)


def _breakers(value: Any) -> tuple[str, ...]:  # noqa: ANN401
    breakers = _texts("dry_sequence_breakers", value)
    _require(
        len(breakers) <= _MAX_BREAKERS,
        f"dry_sequence_breakers are {len(breakers)}, more than {_MAX_BREAKERS}",
        "Each costs a search through the vocabulary; give fewer",
    )
    for text in breakers:
        data = text.encode("utf-8", "ignore")
        _require(  # C ends a text at the first NUL, and a lone surrogate has no UTF-8
            b"\0" not in data and data.decode() == text and len(data) <= _MAX_BREAKER_BYTES,
            f"dry_sequence_breakers has {text!r}",
            f"Give texts of at most {_MAX_BREAKER_BYTES} bytes of UTF-8, without NUL",
        )
    return breakers


def _biases(value: Any) -> tuple[tuple[int, float], ...]:  # noqa: ANN401
    """Pairs of token and bias, sorted, of a mapping or of such pairs."""
    remedy = "Give a mapping from tokens to numbers"
    _require(isinstance(value, Iterable) and not isinstance(value, (str, bytes)), f"logit_bias is {value!r}", remedy)
    biases: dict[int, float] = {}
    for pair in value.items() if isinstance(value, Mapping) else value:
        _require(isinstance(pair, (tuple, list)) and len(pair) == 2, f"logit_bias has {pair!r}", remedy)
        token, bias = pair
        _require(
            _is_number(token, whole=True) and 0 <= token <= _MAX_TOKEN and token not in biases,
            f"logit_bias has the token {token!r}",
            "Give each token once, as its number in the vocabulary",
        )
        _require(
            _is_number(bias) and (bias == _BAN or -_MAX_BIAS <= bias <= _MAX_BIAS),
            f"logit_bias is {bias!r} for token {token}, outside -{_MAX_BIAS} to {_MAX_BIAS}",
            "Use -inf to ban a token",
        )
        biases[token] = float(bias)
    return tuple(sorted(biases.items()))


BUNDLED_MODEL_SAMPLING = Sampling(temperature=0.0)
"""For zephyr-tiny: a model of a few million parameters knows one answer; sampling among others makes it wrong."""
