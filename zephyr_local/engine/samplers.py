"""``Sampling`` → a chain of llama.cpp's samplers, in the order of its own tools (``common_sampler_init``)."""

from __future__ import annotations

import ctypes
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from zephyr_local.engine.llama import C, Native
from zephyr_local.errors import EngineError, InvalidInputError

if TYPE_CHECKING:
    from zephyr_local.engine.llama import LlamaModel
    from zephyr_local.settings import Sampling

_GREEDY_BELOW: Final = 1e-6  # logits divided by less overflow, and the chain would choose the last token of all
_MIN_KEEP: Final = 1
_MIROSTAT_M: Final = 100  # likeliest tokens from which Mirostat 1 estimates the distribution; llama.cpp's number
_NEVER: Final = 1e-30  # of the likeliest token's probability; float32 can still divide and take the logarithm


class Sampler:
    """A chain of llama.cpp's samplers; belongs to one answer of one model."""

    def __init__(self, chain: Native) -> None:
        self._chain = chain
        self.is_plainly_greedy = False
        """Whether it takes the token of the greatest logit, the first of several, and has no other stage."""

    @property
    def chain(self) -> Native:
        if self._chain is None:
            raise EngineError("the sampler was closed", "Make a new one")
        return self._chain

    def add(self, stage: Native) -> None:
        """Put a stage behind the others; the chain owns it from now on."""
        C.llama_sampler_chain_add(self.chain, stage)

    def close(self) -> None:
        chain, self._chain = self._chain, None
        if chain is not None:
            C.llama_sampler_free(chain)

    def __del__(self) -> None:
        if C is not None:  # the module may be gone when the interpreter ends
            self.close()


def make_sampler(model: LlamaModel, sampling: Sampling, recent: Sequence[int] = ()) -> Sampler:
    """A sampler for one answer; ``recent`` are the tokens before it, for the penalties and DRY.

    Stages that change nothing are left out. Raises InvalidInputError for a ``logit_bias`` that the vocabulary cannot
    have. Unlike in llama.cpp's tools the penalties and DRY hold with Mirostat, too, and with temperature 0 the
    likeliest token is taken whatever Mirostat says.
    """
    biases = _biases(model, sampling)
    parameters = C.llama_sampler_chain_default_params()
    parameters.no_perf = True
    sampler = Sampler(C.llama_sampler_chain_init(parameters))
    if biases:
        array = (C.llama_logit_bias * len(biases))(*biases)  # copied by the call
        sampler.add(C.llama_sampler_init_logit_bias(model.n_vocab, len(biases), array))
    window = _add_penalties(sampler, model, sampling)
    for token in recent[max(len(recent) - window, 0) :]:
        C.llama_sampler_accept(sampler.chain, token)  # before the stages that have no use for it
    seed = secrets.randbelow(0xFFFFFFFF) if sampling.seed is None else sampling.seed
    if sampling.temperature < _GREEDY_BELOW:
        sampler.add(C.llama_sampler_init_greedy())
        sampler.is_plainly_greedy = C.llama_sampler_chain_n(sampler.chain) == 1
    elif sampling.mirostat:
        _add_mirostat(sampler, model, sampling, seed)
    else:
        _add_truncations(sampler, sampling, seed)
        _add_temperature(sampler, sampling)
        sampler.add(C.llama_sampler_init_dist(seed))
    return sampler


def _biases(model: LlamaModel, sampling: Sampling) -> list[tuple[int, float]]:
    biases = dict(sampling.logit_bias)
    for token in biases:
        if token >= model.n_vocab:
            raise InvalidInputError(
                f"logit_bias has the token {token}, and the model's last is {model.n_vocab - 1}",
                "Use tokens of this model",
            )
    if biases and sum(bias == float("-inf") for bias in biases.values()) == model.n_vocab:
        raise InvalidInputError("logit_bias bans every token of the model", "Leave one")
    return list(biases.items())


def _add_penalties(sampler: Sampler, model: LlamaModel, sampling: Sampling) -> int:
    """The stages that look back; return how many tokens they look back to."""
    window = 0
    penalties = (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty)
    if sampling.repeat_last_n and penalties != (1.0, 0.0, 0.0):
        sampler.add(C.llama_sampler_init_penalties(model.n_vocab, sampling.repeat_last_n, *penalties))
        window = sampling.repeat_last_n
    if sampling.dry_multiplier and sampling.dry_penalty_last_n:
        breakers = [text.encode() for text in sampling.dry_sequence_breakers]
        sampler.add(
            C.llama_sampler_init_dry(
                model.vocab,
                sampling.dry_multiplier,
                sampling.dry_base,
                sampling.dry_allowed_length,
                sampling.dry_penalty_last_n,
                (ctypes.c_char_p * len(breakers))(*breakers),
                len(breakers),
            )
        )
        window = max(window, sampling.dry_penalty_last_n)
    return window


def _add_truncations(sampler: Sampler, sampling: Sampling, seed: int) -> None:
    if sampling.top_k:
        sampler.add(C.llama_sampler_init_top_k(sampling.top_k))
    if sampling.typical_p < 1.0:
        _add_without_zeros(sampler)
        sampler.add(C.llama_sampler_init_typical(sampling.typical_p, _MIN_KEEP))
    if sampling.top_p < 1.0:
        sampler.add(C.llama_sampler_init_top_p(sampling.top_p, _MIN_KEEP))
    if sampling.min_p > 0.0:
        sampler.add(C.llama_sampler_init_min_p(sampling.min_p, _MIN_KEEP))
    if sampling.xtc_probability > 0.0 and sampling.xtc_threshold <= 0.5:
        _add_without_zeros(sampler)
        sampler.add(C.llama_sampler_init_xtc(sampling.xtc_probability, sampling.xtc_threshold, _MIN_KEEP, seed))


def _add_mirostat(sampler: Sampler, model: LlamaModel, sampling: Sampling, seed: int) -> None:
    _add_temperature(sampler, sampling)
    tau, eta = sampling.mirostat_tau, sampling.mirostat_eta
    if sampling.mirostat == 1:
        _add_without_zeros(sampler)
        sampler.add(C.llama_sampler_init_mirostat(model.n_vocab, seed, tau, eta, _MIROSTAT_M))
    else:
        sampler.add(C.llama_sampler_init_mirostat_v2(seed, tau, eta))


def _add_temperature(sampler: Sampler, sampling: Sampling) -> None:
    if sampling.temperature != 1.0:
        sampler.add(C.llama_sampler_init_temp(sampling.temperature))


def _add_without_zeros(sampler: Sampler) -> None:
    """Drop the tokens whose probability is 0 in float32, banned ones above all.

    With one of them among its candidates, typical_p and Mirostat 1 compute NaN and keep anything, and XTC at a
    threshold of 0 chooses it.
    """
    sampler.add(C.llama_sampler_init_min_p(_NEVER, _MIN_KEEP))
