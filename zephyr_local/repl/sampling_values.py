"""The values of /set: every field of ``Sampling``, written and read as text."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any, Final, get_type_hints

from zephyr_local.errors import InvalidInputError
from zephyr_local.settings import Sampling, sampling_range

NAMES: Final = tuple(field.name for field in fields(Sampling))
_GIVE_TEXTS: Final = 'Give ["…", "…"], or one text'
UNSET: Final = "default"
"""The word that takes a field back to what it was when the program began."""


def parse_value(name: str, text: str) -> Any:  # noqa: ANN401 — a field's
    """The value that ``text`` stands for. Raises InvalidInputError; whether it is in range is Sampling's to say."""
    text = text.strip()
    if name not in NAMES:
        raise InvalidInputError(f"{name!r} is not a sampling setting", f"Use one of {', '.join(NAMES)}")
    if name == "logit_bias":
        return _biases(text)
    if name in ("stop", "dry_sequence_breakers"):
        return _texts(name, text)
    if _is_optional(name) and text.lower() in ("none", "off"):
        return None
    whole = isinstance(_default(name), int) or _is_optional(name)
    try:
        return int(text) if whole else float(text)
    except ValueError:
        kind = "a whole number" if whole else "a number"
        raise InvalidInputError(f"{name} is {text!r}", f"Give {kind}, {range_text(name)}") from None


def range_text(name: str) -> str:
    """What a field takes, for a list."""
    limits = sampling_range(name)
    if limits is not None:
        low, high = (f"{limit:.10g}" for limit in limits)
        return f"{low} to {high}" + (", or none" if _is_optional(name) else "")
    if name == "logit_bias":
        return "TOKEN:BIAS …, each bias -1000 to 1000 or -inf"
    return 'texts, as JSON: ["…", "…"], or one text'


def value_text(value: object) -> str:
    """A field's value, as ``parse_value`` reads it."""
    if value is None:
        return "none"
    if value == ():
        return "none"
    if isinstance(value, tuple) and isinstance(value[0], tuple):
        return " ".join(f"{token}:{bias:.10g}" for token, bias in value)
    if isinstance(value, tuple):
        return json.dumps(list(value), ensure_ascii=False)
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _default(name: str) -> object:
    return next(field.default for field in fields(Sampling) if field.name == name)


def _is_optional(name: str) -> bool:
    return type(None) in getattr(get_type_hints(Sampling)[name], "__args__", ())


def _texts(name: str, text: str) -> tuple[str, ...]:
    if not text.startswith("["):
        return () if text.lower() == "none" else (text,)
    try:
        texts = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidInputError(f"{name} is not JSON: {error.msg}", _GIVE_TEXTS) from None
    except RecursionError:
        raise InvalidInputError(f"{name} is nested too deep", _GIVE_TEXTS) from None
    return tuple(texts)


def _biases(text: str) -> dict[int, float]:
    biases: dict[int, float] = {}
    if text.lower() == "none":
        return biases
    for item in text.replace(",", " ").split():
        token, _, bias = item.partition(":")
        try:
            biases[int(token)] = float(bias)
        except ValueError:
            remedy = f"Give {range_text('logit_bias')}"
            raise InvalidInputError(f"logit_bias has {item!r}", remedy) from None
    return biases
