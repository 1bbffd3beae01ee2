"""Values of /set: what is shown is what is read."""

from __future__ import annotations

import dataclasses

import pytest

from zephyr_local.errors import InvalidInputError
from zephyr_local.repl.sampling_values import NAMES, parse_value, range_text, value_text
from zephyr_local.settings import Sampling

OTHER = Sampling(
    temperature=0.1 + 0.2,
    min_p=1.25e-07,
    seed=7,
    max_tokens=1,
    stop=("a b", "[", "none", '"', "\n", "日本"),
    dry_sequence_breakers=(),
    logit_bias={3: -float("inf"), 2: 0.5},
    logprobs=0,
)


@pytest.mark.parametrize("sampling", [Sampling(), OTHER])
@pytest.mark.parametrize("name", NAMES)
def test_a_value_that_is_shown_is_read_as_it_was(name: str, sampling: Sampling) -> None:
    value = parse_value(name, value_text(getattr(sampling, name)))
    again = getattr(dataclasses.replace(sampling, **{name: value}), name)
    expected = getattr(sampling, name)
    assert again == (pytest.approx(expected, rel=1e-9) if isinstance(expected, float) else expected)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("temperature", " 1e-1 ", 0.1),
        ("top_k", "0", 0),
        ("seed", "none", None),
        ("max_tokens", "OFF", None),
        ("stop", "The End", ("The End",)),
        ("stop", '["a", "b"]', ("a", "b")),
        ("stop", "none", ()),
        ("logit_bias", "1:2, 3:-inf", {1: 2.0, 3: -float("inf")}),
        ("logit_bias", "none", {}),
    ],
)
def test_what_a_text_stands_for(name: str, text: str, value: object) -> None:
    assert parse_value(name, text) == value


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("temperature", "hot", "Give a number, 0 to 100"),
        ("temperature", "none", "Give a number"),
        ("top_k", "1.5", "Give a whole number, 0 to 1048576"),
        ("seed", "9" * 5000, "Give a whole number"),
        ("stop", '["a"', "is not JSON"),
        ("stop", "[" * 100_000, "nested too deep"),
        ("logit_bias", "1", "TOKEN:BIAS"),
        ("logit_bias", "a:1", "TOKEN:BIAS"),
        ("nosuch", "1", "Use one of temperature"),
    ],
)
def test_what_stands_for_nothing_is_refused(name: str, text: str, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        parse_value(name, text)


def test_ranges_are_those_of_sampling() -> None:
    assert range_text("temperature") == "0 to 100"
    assert range_text("max_tokens").endswith(", or none")
    for name in NAMES:
        low, to, high = range_text(name).removesuffix(", or none").partition(" to ")
        if to and name != "logit_bias":
            for text in (low, high):
                dataclasses.replace(Sampling(), **{name: parse_value(name, text)})
