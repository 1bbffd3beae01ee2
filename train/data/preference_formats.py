"""The formats that preferences are published in, recognised by their keys, checked and made one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from zephyr_local.chat_types import Message, Role
from zephyr_local.errors import InvalidInputError
from zephyr_local.train.data.preference_records import (
    PROMPT_KEYS,
    Answer,
    Preference,
    ScoredAnswers,
    UnusablePreferenceError,
    checked_prompt,
    checked_text,
    first_given,
    is_list,
    number,
    read_messages,
    read_prompt,
    record_id,
    record_source,
)
from zephyr_local.train.data.records import Record
from zephyr_local.train.data.ultrafeedback import Score, read_ultrafeedback

AUTO: Final = "auto"
NOT_RECOGNISED: Final = "not recognised as a preference"
OTHER_PROMPTS: Final = "the two answers follow different prompts"
TIE: Final = "a tie"
NO_VERDICT: Final = "no verdict"

_CHOSEN_KEYS: Final = ("chosen", "chosen_response")
_REJECTED_KEYS: Final = ("rejected", "rejected_response")
# UltraFeedback binarised by Hugging Face, then by Argilla in three spellings.
_SCORE_KEYS: Final = ("score_{}", "{}_score", "{}-rating", "{}_rating", "{}_avg_rating")

_HH_TURN: Final = re.compile(r"\n\n(Human|Assistant):")
_HH_ROLES: Final[Mapping[str, Role]] = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class _Format:
    looks_like: str
    """Its keys, for people."""
    recognises: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Record, Score], Preference | ScoredAnswers]


def recognised_format(value: Mapping[str, Any]) -> str | None:
    """The name of the format that a record's keys speak of; None where none does."""
    return next((name for name, known in _FORMATS.items() if known.recognises(value)), None)


def check_format(name: str) -> None:
    """Raises InvalidInputError unless it is ``auto`` or one of ``FORMAT_NAMES``."""
    if name not in (AUTO, *_FORMATS):
        raise InvalidInputError(f"there is no preference format {name!r}", f"Use {AUTO}, {', '.join(_FORMATS)}")


def described_formats() -> str:
    """The formats and their keys, for a message."""
    return "; ".join(f"{name} ({known.looks_like})" for name, known in _FORMATS.items())


def read_preference(record: Record, format_name: str, score: Score) -> Preference | ScoredAnswers:
    """A record in a format of `FORMAT_NAMES`. Raises UnusablePreferenceError with the reason."""
    known = _FORMATS[format_name]
    if not known.recognises(record.value):
        raise UnusablePreferenceError(NOT_RECOGNISED)
    return known.read(record, score)


def alpaca_eval_verdict(value: Mapping[str, Any]) -> float | None:
    """AlpacaEval's ``preference``: 1.0 for the first output, 2.0 for the second, 1.5 for a tie; None without one.

    Its first files write 0 for a tie; those of its second version hold what lies between, a judge's probability.
    """
    given = number(value.get("preference"))
    if given == 0:
        return 1.5
    return given if given is not None and 1 <= given <= 2 else None


# --- two answers, one chosen ---


def _read_pair(record: Record, _score: Score) -> Preference:
    """`chosen` and `rejected` as text or messages, the prompt in a key of its own or in front of both answers."""
    value = record.value
    chosen, rejected = first_given(value, _CHOSEN_KEYS), first_given(value, _REJECTED_KEYS)
    if is_list(chosen) != is_list(rejected):
        raise UnusablePreferenceError("one answer is text and the other messages")
    if not is_list(chosen):
        return _preference(record, read_prompt(value), chosen, rejected)
    before, better = _split(read_messages(chosen))
    before_worse, worse = _split(read_messages(rejected))
    if before != before_worse:
        raise UnusablePreferenceError(OTHER_PROMPTS, better)
    if before:
        prompt = checked_prompt(before)
        if _is_continuation(value, prompt):
            prompt = checked_prompt(read_prompt(value) + prompt)
    else:
        prompt = read_prompt(value)
    return _preference(record, prompt, better, worse)


def _split(messages: Sequence[Message]) -> tuple[Sequence[Message], str]:
    """What stands before the answer, and the answer."""
    if not messages or messages[-1].role != "assistant":
        raise UnusablePreferenceError("an answer that is not the assistant's")
    return messages[:-1], messages[-1].content


def _is_continuation(value: Mapping[str, Any], before: Sequence[Message]) -> bool:
    """Whether the prompt is messages that the answers go on from, rather than repeat."""
    prompt = first_given(value, PROMPT_KEYS)
    return is_list(prompt) and bool(prompt) and read_messages(prompt) != tuple(before)[: len(prompt)]


def _preference(record: Record, prompt: tuple[Message, ...], chosen: object, rejected: object) -> Preference:
    scores = [
        number(first_given(record.value, [key.format(name) for key in _SCORE_KEYS])) for name in ("chosen", "rejected")
    ]
    better = Answer(checked_text(chosen, "an answer"), scores[0])
    worse = Answer(checked_text(rejected, "an answer"), scores[1])
    return Preference(
        prompt, record_id(record, prompt, (better, worse)), record_source(record), chosen=better, rejected=worse
    )


def _read_hh(record: Record, _score: Score) -> Preference:
    """Anthropic's helpful-and-harmless data: whole dialogues as text, or a prompt so written and two answers."""
    value = record.value
    prompt, chosen, rejected = (value.get(key) for key in ("prompt", "chosen", "rejected"))
    whole = isinstance(chosen, str) and _HH_TURN.match(chosen) is not None
    if prompt is not None and not whole:
        turns = _hh_turns(prompt)
        if not turns or turns[-1] != Message("assistant", ""):
            raise UnusablePreferenceError("a prompt that does not end where the assistant begins")
        return _preference(record, checked_prompt(_filled(turns[:-1])), _stripped(chosen), _stripped(rejected))
    before, better = _split(_filled(_hh_turns(chosen)))
    before_worse, worse = _split(_filled(_hh_turns(rejected)))
    if before != before_worse:
        raise UnusablePreferenceError(OTHER_PROMPTS, better)
    return _preference(record, checked_prompt(before), better, worse)


def _hh_turns(text: object) -> list[Message]:
    begin, *parts = _HH_TURN.split(checked_text(text, "a dialogue"))
    if begin.strip():
        raise UnusablePreferenceError("a dialogue that does not begin with a turn")
    return [Message(_HH_ROLES[who], said.strip()) for who, said in zip(parts[::2], parts[1::2], strict=True)]


def _filled(turns: Sequence[Message]) -> Sequence[Message]:
    if not all(turn.content for turn in turns):
        raise UnusablePreferenceError("a turn that is empty")
    return turns


def _stripped(text: object) -> object:
    return text.strip() if isinstance(text, str) else text


def _read_alpaca_eval(record: Record, _score: Score) -> Preference:
    """Two models' outputs and which of them the annotator prefers."""
    verdict = alpaca_eval_verdict(record.value)
    if verdict is None:
        raise UnusablePreferenceError(NO_VERDICT)
    if verdict == 1.5:
        raise UnusablePreferenceError(TIE)
    # Published verdicts are weights between 1 and 2 since the second version: these are scores, plain ones are not.
    weights = (2 - verdict, verdict - 1) if 1 < verdict < 2 else (None, None)
    outputs = [
        Answer(checked_text(record.value.get(f"output_{which}"), "an answer"), weight)
        for which, weight in enumerate(weights, start=1)
    ]
    if verdict > 1.5:
        outputs.reverse()
    prompt = read_prompt(record.value)
    chosen, rejected = outputs
    return Preference(
        prompt, record_id(record, prompt, outputs), record_source(record), chosen=chosen, rejected=rejected
    )


# --- recognising ---


def _has_answers(value: Mapping[str, Any]) -> bool:
    return first_given(value, _CHOSEN_KEYS) is not None and first_given(value, _REJECTED_KEYS) is not None


def _has_prompt(value: Mapping[str, Any]) -> bool:
    return first_given(value, PROMPT_KEYS) is not None


def _is_hh(value: Mapping[str, Any]) -> bool:
    prompt = value.get("prompt")
    begins = value.get("chosen") if prompt is None else prompt
    return _has_answers(value) and isinstance(begins, str) and _HH_TURN.match(begins) is not None


_FORMATS: Final[Mapping[str, _Format]] = {
    "ultrafeedback": _Format(
        "instruction, completions",
        lambda value: _has_prompt(value) and is_list(value.get("completions")),
        read_ultrafeedback,
    ),
    "alpaca_eval": _Format(
        "instruction, output_1, output_2, preference",
        lambda value: _has_prompt(value) and {"output_1", "output_2", "preference"} <= value.keys(),
        _read_alpaca_eval,
    ),
    "hh": _Format("chosen, rejected as '\\n\\nHuman: … \\n\\nAssistant: …'", _is_hh, _read_hh),
    "ultrafeedback_binarized": _Format(
        "prompt, prompt_id, chosen, rejected as messages, score_chosen, score_rejected",
        lambda value: "prompt_id" in value and is_list(value.get("chosen")) and is_list(value.get("rejected")),
        _read_pair,
    ),
    "pairs": _Format(
        "prompt, question or instruction, chosen, rejected as text or messages",
        lambda value: _has_prompt(value) and _has_answers(value),
        _read_pair,
    ),
    "implicit": _Format(
        "chosen, rejected as messages that begin alike",
        lambda value: is_list(value.get("chosen")) and is_list(value.get("rejected")),
        _read_pair,
    ),
}
FORMAT_NAMES: Final = tuple(_FORMATS)
