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
    ],
)
def test_engine_settings_refuse(name: str, value: object) -> None:
    with pytest.raises(InvalidInputError, match=name):
        EngineSettings(**{name: value})  # type: ignore[arg-type]


def test_settings_are_frozen_and_cross_a_pipe() -> None:
    sampling = Sampling(stop=("a",), seed=4)
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
