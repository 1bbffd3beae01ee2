"""Preferences, from what is published to the pairs that dDPO trains and tests on: read, paired, filtered, split."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from zephyr_local.chat_types import Message
from zephyr_local.errors import InvalidInputError
from zephyr_local.train.data.binarise import IDENTICAL_LEFT_OUT, binarise, refusal
from zephyr_local.train.data.normal_text import stable_hash
from zephyr_local.train.data.pair_statistics import PairStatistics, PairTokens, Verdicts
from zephyr_local.train.data.preference_formats import (
    AUTO,
    NOT_RECOGNISED,
    alpaca_eval_verdict,
    described_formats,
    read_preference,
    recognised_format,
)
from zephyr_local.train.data.preference_records import Preference, ScoredAnswers, UnusablePreferenceError
from zephyr_local.train.data.preference_settings import PreferenceSettings as PreferenceSettings
from zephyr_local.train.data.records import Damage, Record, RecordWriter, read_with_damage
from zephyr_local.train.data.report import DataReport

CountTokens = Callable[[Sequence[Message]], int]
"""Tokens of a chat as the model sees it; where its last turn is a user's, with the beginning of an answer."""
Input = Path | Iterable[Record | Damage]
Split = Literal["train", "test"]

IN_BOTH: Final = "a prompt that stands in the test split too"
DUPLICATE: Final = "a pair that was there before"
DROPPED_SOURCE: Final = "a source to leave out"
RECORDS_A_REPORT: Final = 1000
PARQUET_TYPES: Final = {"score_chosen": "double", "score_rejected": "double"}
"""Of the columns that may be null all through a batch."""
_HASH_RANGE: Final = 1 << 64
_DIGEST_BYTES: Final = 16


def prepare_preferences(
    train_inputs: Sequence[Input],
    test_inputs: Sequence[Input],
    train_out: Path,
    test_out: Path | None,
    settings: PreferenceSettings,
    count_tokens: CountTokens | None = None,
    on_progress: Callable[[int], object] | None = None,
) -> DataReport:
    """Write the pairs of the train inputs, and of the test inputs or the held-out prompts; both files or none.

    An input is a file or any iterable of records, and belongs to one split: nothing is pooled. A train record whose
    prompt, in normal form, is one of the test split's is dropped. Reads one record at a time; of each pair a few dozen
    bytes stay. `on_progress` is told how many records are read. Raises InvalidInputError where an input holds no
    preference, or a split no pair.
    """
    _check(train_inputs, test_inputs, train_out, test_out, settings)
    if settings.needs_tokens and count_tokens is None:
        raise InvalidInputError("a length in tokens is limited and no tokenizer is given", "Give one, or no limit")
    step = _Step(settings, count_tokens, on_progress)
    with ExitStack() as files:
        step.writers["train"] = files.enter_context(RecordWriter(train_out, PARQUET_TYPES))
        if test_out is not None:
            step.writers["test"] = files.enter_context(RecordWriter(test_out, PARQUET_TYPES))
        for given in test_inputs:  # first, so that what they ask is known
            step.take_all(given, "test")
        for given in train_inputs:
            step.take_all(given, "train")
        step.finish()
    return step.report


def prepare_preference_records(
    train: Iterable[Record | Damage],
    test: Iterable[Record | Damage] | None,
    train_out: Path,
    test_out: Path | None,
    settings: PreferenceSettings,
    count_tokens: CountTokens | None = None,
) -> DataReport:
    """:func:`prepare_preferences` of one stream of records a split."""
    return prepare_preferences(
        [train], [] if test is None else [test], train_out, test_out, settings, count_tokens=count_tokens
    )


def _check(
    train_inputs: Sequence[Input],
    test_inputs: Sequence[Input],
    train_out: Path,
    test_out: Path | None,
    settings: PreferenceSettings,
) -> None:
    if not train_inputs:
        raise InvalidInputError("there is no input to train on", "Give a file")
    if test_inputs and settings.held_out:
        raise InvalidInputError("there are both test inputs and a share to hold out", "Give one of the two")
    makes_test = bool(test_inputs) or settings.held_out > 0
    if makes_test and test_out is None:
        raise InvalidInputError("there is a test split and no file for it", "Name one")
    if test_out is not None and not makes_test:
        raise InvalidInputError(f"there is nothing to write to {test_out}", "Give test inputs or a share to hold out")
    outputs = [path.resolve() for path in (train_out, test_out) if path is not None]
    if len(set(outputs)) < len(outputs):
        raise InvalidInputError(f"{train_out} is named for both splits", "Name two files")
    for given in (*train_inputs, *test_inputs):
        if isinstance(given, Path) and given.resolve() in outputs:
            raise InvalidInputError(f"{given} is both input and output", "Name another output")


@dataclass(slots=True)
class _Step:
    """What a run has seen so far."""

    settings: PreferenceSettings
    count_tokens: CountTokens | None
    on_progress: Callable[[int], object] | None
    report: DataReport = field(default_factory=lambda: DataReport("preferences"))
    writers: dict[Split, RecordWriter] = field(default_factory=dict)
    statistics: dict[Split, PairStatistics] = field(default_factory=dict)
    prompts: dict[Split, set[bytes]] = field(default_factory=lambda: {"train": set(), "test": set()})
    seen_pairs: set[bytes] = field(default_factory=set)
    answers_left_out: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    verdicts: Verdicts = field(default_factory=Verdicts)

    def take_all(self, given: Input, split: Split) -> None:
        """Read one input to its end."""
        first, damaged, n_recognised = "", "", 0
        for record in read_with_damage(given) if isinstance(given, Path) else given:
            if isinstance(record, Damage):
                damaged = damaged or f" ({record})"
                self.report.drop_damaged(record)
                continue
            first = first or record.where
            n_recognised += self._take(record, split)
        if not n_recognised:
            name = str(given) if isinstance(given, Path) else first.rpartition(":")[0] or f"an input to {split} on"
            if not first:
                raise InvalidInputError(f"{name} holds no records{damaged}", "Give a file with preferences")
            wanted = "" if self.settings.format == AUTO else f" in the format {self.settings.format}"
            raise InvalidInputError(f"{name} holds no preferences{wanted}", f"Known are {described_formats()}")

    def _take(self, record: Record, split: Split) -> bool:
        """Keep or drop a record; whether it was recognised."""
        self.report.n_read += 1
        if self.on_progress is not None and self.report.n_read % RECORDS_A_REPORT == 0:
            self.on_progress(self.report.n_read)
        name = recognised_format(record.value) if self.settings.format == AUTO else self.settings.format
        try:
            if name is None:
                raise UnusablePreferenceError(NOT_RECOGNISED)
            self._keep(record, name, split)
        except UnusablePreferenceError as error:
            self.answers_left_out.update(error.left_out)
            self.report.drop(error.reason, record.where, _shown(error.text))
            return error.reason != NOT_RECOGNISED
        return True

    def _keep(self, record: Record, format_name: str, split: Split) -> None:
        if format_name == "alpaca_eval":
            self.verdicts.add(record.value, alpaca_eval_verdict(record.value))
        preference = read_preference(record, format_name, self.settings.score)
        self.formats[format_name] += 1
        if preference.source in self.settings.drop_sources:
            raise UnusablePreferenceError(DROPPED_SOURCE, preference.source)
        key = preference.key
        prompt = _digest(key)
        if split == "train" and prompt in self.prompts["test"] and not self.settings.held_out:
            raise UnusablePreferenceError(IN_BOTH, preference.last)
        if self.settings.held_out and stable_hash(key) < self.settings.held_out * _HASH_RANGE:
            split = "test"
        pairs, changes = self._pairs(preference)
        refused: list[str] = []
        n_kept = 0
        for pair in pairs:
            reason = self._write(pair, split)
            if reason is None:
                n_kept += 1
            else:
                refused.append(reason)
        if not n_kept:
            raise UnusablePreferenceError(refused[0], preference.last)
        self.report.n_kept += 1
        self.prompts[split].add(prompt)
        for what in [*changes, *(f"one of its pairs dropped: {reason}" for reason in dict.fromkeys(refused))]:
            self.report.change(what, record.where, _shown(preference.last))

    def _pairs(self, preference: Preference | ScoredAnswers) -> tuple[Sequence[Preference], list[str]]:
        """The pairs of a record, and what of it was left out."""
        if isinstance(preference, Preference):
            return [preference], []
        self.answers_left_out.update(preference.left_out)
        made = binarise(preference, self.settings)
        if not made.n_identical:
            return made.pairs, [*preference.left_out]
        self.answers_left_out[IDENTICAL_LEFT_OUT] += made.n_identical
        return made.pairs, [*preference.left_out, IDENTICAL_LEFT_OUT]

    def _write(self, pair: Preference, split: Split) -> str | None:
        """Write a pair and count it, or say why not."""
        if reason := refusal(pair, self.settings):
            return reason
        same = _digest("\0".join((pair.key, pair.chosen.text, pair.rejected.text)))
        if self.settings.drop_duplicates and same in self.seen_pairs:
            return DUPLICATE
        tokens = self._tokens(pair)
        if tokens is not None:
            limits, longer = self.settings, max(tokens.chosen, tokens.rejected)
            if limits.max_prompt_length is not None and tokens.prompt > limits.max_prompt_length:
                return f"a prompt of more than {limits.max_prompt_length} tokens"
            if limits.max_length is not None and tokens.prompt + longer > limits.max_length:
                return f"prompt and answer of more than {limits.max_length} tokens"
        self.seen_pairs.add(same)
        self.writers[split].write(pair.as_record())
        self.statistics.setdefault(split, PairStatistics()).add(pair, tokens)
        return None

    def _tokens(self, pair: Preference) -> PairTokens | None:
        if self.count_tokens is None:
            return None
        prompt = self.count_tokens(pair.prompt)
        chosen, rejected = (
            self.count_tokens([*pair.prompt, Message("assistant", answer.text)]) - prompt
            for answer in (pair.chosen, pair.rejected)
        )
        return PairTokens(prompt, chosen, rejected)

    def finish(self) -> None:
        """Complete the report. Raises InvalidInputError where a split is empty."""
        for split in self.writers:
            if split not in self.statistics:
                reasons = sorted(self.report.dropped.items(), key=lambda item: (-item[1], item[0]))
                why = "; ".join(f"{reason} ({count:,})" for reason, count in reasons[:3])
                problem = f"no pair is left for the {split} split of {self.report.n_read:,} records"
                remedy = f"Dropped were: {why}" if why else "Hold out a larger share"
                raise InvalidInputError(problem, remedy)
        verdicts = self.verdicts.as_json()
        self.report.facts = {
            "settings": self.settings.as_json(),
            "formats": dict(sorted(self.formats.items())),
            "answers_left_out": dict(sorted(self.answers_left_out.items())),
            **({"verdicts": verdicts} if verdicts else {}),
            "splits": {
                split: {"prompts": len(self.prompts[split]), **self.statistics[split].as_json()}
                for split in self.writers
            },
        }


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).digest()


def _shown(text: str) -> str:
    """A text on one line, as a report can hold it."""
    return " ".join(text.split()).encode(errors="replace").decode()
