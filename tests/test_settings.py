"""Settings refuse what would kill or confuse the engine, with the value and the limit in the message."""

from __future__ import annotations

import dataclasses
import pickle

import pytest

from zephyr_local.chat_types import Message, parse_messages
from zephyr_local.errors import InvalidInputError
from zephyr_local.settings import EngineSettings, Sampling


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", "0.7"),
        ("top_k", 50.0),
        ("top_k", True),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 1.1),
        ("min_p", -1.0),
        ("repeat_penalty", 0.0),
        ("top_k", -1),
        ("seed", 1 << 32),
        ("seed", 0xFFFFFFFF),  # llama.cpp's word for "any"
        ("max_tokens", 0),
        ("stop", "text"),
        ("stop", ("",)),
        ("stop", (3,)),
        ("stop", None),
        ("stop", b"text"),
        ("temperature", None),
        ("temperature", 10**400),
        ("typical_p", 1.01),
        ("typical_p", float("nan")),
        ("repeat_last_n", -1),  # older llama.cpp's word for the whole context
        ("repeat_last_n", (1 << 20) + 1),
        ("repeat_last_n", 64.0),
        ("frequency_penalty", float("inf")),
        ("frequency_penalty", -101),
        ("presence_penalty", float("nan")),
        ("presence_penalty", True),
        ("mirostat", 3),
        ("mirostat", -1),
        ("mirostat", True),
        ("mirostat", 2.0),
        ("mirostat_tau", 20.5),
        ("mirostat_tau", float("nan")),
        ("mirostat_eta", -0.1),
        ("mirostat_eta", "0.1"),
        ("dry_multiplier", -0.1),
        ("dry_multiplier", float("inf")),
        ("dry_base", 0.9),
        ("dry_base", float("nan")),
        ("dry_allowed_length", 0),
        ("dry_penalty_last_n", -1),
        ("dry_sequence_breakers", "text"),
        ("dry_sequence_breakers", ("",)),
        ("dry_sequence_breakers", ("a", "b\0")),
        ("dry_sequence_breakers", ("\udce4",)),
        ("dry_sequence_breakers", ("é" * 21,)),
        ("dry_sequence_breakers", (3,)),
        ("dry_sequence_breakers", ("a",) * 65),
        ("dry_sequence_breakers", None),
        ("xtc_probability", 1.1),
        ("xtc_probability", float("nan")),
        ("xtc_threshold", -0.1),
        ("xtc_threshold", None),
        ("logit_bias", None),
        ("logit_bias", 3),
        ("logit_bias", "12"),
        ("logit_bias", {"12": 1.0}),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {1 << 31: 1.0}),
        ("logit_bias", {True: 1.0}),
        ("logit_bias", {1.0: 1.0}),
        ("logit_bias", {1: float("nan")}),
        ("logit_bias", {1: float("inf")}),
        ("logit_bias", {1: 1000.5}),
        ("logit_bias", {1: 10**400}),
        ("logit_bias", {1: "1"}),
        ("logit_bias", {1: None}),
        ("logit_bias", ((1, 2.0), (1, 3.0))),
        ("logit_bias", ((1, 2.0, 3.0),)),
        ("logit_bias", (1, 2)),
        ("logprobs", -1),
        ("logprobs", 21),
        ("logprobs", True),
        ("logprobs", 1.0),
    ],
)
def test_sampling_refuses(name: str, value: object) -> None:
    with pytest.raises(InvalidInputError, match=name) as caught:
        Sampling(**{name: value})  # type: ignore[arg-type]
    assert caught.value.exit_code == 2
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_ctx", 0),
        ("n_ctx", "4096"),
        ("n_ctx", 1 << 21),
        ("n_batch", 0),
        ("n_threads", 0),
        ("n_threads", 10_000),
        ("n_gpu_layers", -2),
        ("kv_type", "q2"),
        ("n_batch", None),
        ("n_parallel", 0),
        ("n_parallel", 65),
        ("n_parallel", None),
        ("n_parallel", True),
    ],
)
def test_engine_settings_refuse(name: str, value: object) -> None:
    with pytest.raises(InvalidInputError, match=name):
        EngineSettings(**{name: value})  # type: ignore[arg-type]


def test_what_is_at_the_limit_is_accepted() -> None:
    ends = {"mirostat_tau": 20, "xtc_threshold": 1, "logprobs": 20, "repeat_last_n": 1 << 20, "frequency_penalty": -100}
    assert dataclasses.asdict(Sampling(**ends)).items() >= ends.items()  # type: ignore[arg-type]
    assert Sampling(logprobs=0).logprobs == 0
    assert Sampling(dry_sequence_breakers=("é" * 20,) * 64, repeat_last_n=0, dry_penalty_last_n=0)
    assert Sampling(dry_sequence_breakers=()).dry_sequence_breakers == ()
    assert EngineSettings(n_parallel=64).n_parallel == 64


def test_collections_are_kept_as_tuples() -> None:
    biases = {7: 1, 3: float("-inf"), 5: -1000.0}
    sampling = Sampling(logit_bias=biases, stop=["a"], dry_sequence_breakers=["b"])  # type: ignore[arg-type]
    biases[9] = 1.0
    assert sampling.logit_bias == ((3, float("-inf")), (5, -1000.0), (7, 1.0))
    assert (sampling.stop, sampling.dry_sequence_breakers) == (("a",), ("b",))
    assert dataclasses.replace(sampling, seed=1).logit_bias == sampling.logit_bias
    assert Sampling(logit_bias=[[7, 1.0]]).logit_bias == ((7, 1.0),)  # type: ignore[arg-type]
    assert len({sampling, dataclasses.replace(sampling), Sampling()}) == 2


def test_settings_are_frozen_and_cross_a_pipe() -> None:
    sampling = Sampling(stop=("a",), seed=4, logit_bias={4: 1.0})
    assert pickle.loads(pickle.dumps(sampling)) == sampling
    assert pickle.loads(pickle.dumps(EngineSettings())) == EngineSettings()
    with pytest.raises(dataclasses.FrozenInstanceError):
        sampling.seed = 5  # type: ignore[misc]


def test_messages_are_parsed_or_named() -> None:
    assert parse_messages([{"role": "user", "content": "a"}, Message("assistant", "b")]) == (
        Message("user", "a"),
        Message("assistant", "b"),
    )
    with pytest.raises(InvalidInputError, match="message 1 has the role 'tool'"):
        parse_messages([Message("user", "a"), {"role": "tool", "content": "b"}])
    with pytest.raises(InvalidInputError, match="content of type list"):
        parse_messages([{"role": "user", "content": []}])
    with pytest.raises(InvalidInputError, match="no messages"):
        parse_messages([])


@pytest.mark.parametrize("wrong", [1, 0, None, "yes"])
def test_check_tensors_is_true_or_false(wrong: object) -> None:
    with pytest.raises(InvalidInputError, match="check_tensors"):
        EngineSettings(check_tensors=wrong)  # type: ignore[arg-type]
