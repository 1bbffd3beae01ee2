"""Dialogues, from what is published to the records that dSFT trains and tests on: read, cleaned, filtered, split."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

from zephyr_local.errors import InvalidInputError
from zephyr_local.train.data.contamination import OverlapLimits, PromptIndex, read_prompts
from zephyr_local.train.data.dialogue_formats import (
    AUTO,
    FORMAT_NAMES,
    NOT_RECOGNISED,
    Dialogue,
    Turn,
    UnusableDialogueError,
    parse_dialogue,
)
from zephyr_local.train.data.dialogue_settings import DialogueSettings as DialogueSettings
from zephyr_local.train.data.duplicates import ExactIndex, NearIndex, comparable_text
from zephyr_local.train.data.feelings import unasked_claim
from zephyr_local.train.data.records import Damage, Record, RecordWriter, read_with_damage
from zephyr_local.train.data.report import DataReport
from zephyr_local.train.data.split import count_limit, share_limit, split_place
from zephyr_local.train.data.truecase import truecase_turns

Input = Path | Iterable[Record | Damage]
Split = Literal["train", "test"]
OnProgress = Callable[[int], object]
"""Takes how many records are read."""

REPORT_NAME: Final = "report.json"
CONTAMINATED: Final = "a prompt to keep out of training"
FEELINGS: Final = "feelings or opinions disclaimed unasked"
SAME: Final = "the same as an earlier one"
NEARLY_SAME: Final = "nearly the same as an earlier one"
IN_BOTH: Final = "a first prompt that stands in the test split too"
TRUECASED: Final = "truecased"
RECORDS_A_REPORT: Final = 1000
_MOST_LISTED: Final = 1000
_EXCERPT_CHARACTERS: Final = 80


def prepare_dialogues(
    inputs: Sequence[Input],
    test_inputs: Sequence[Input],
    train: Path,
    test: Path | None,
    settings: DialogueSettings,
    on_progress: OnProgress | None = None,
) -> DataReport:
    """Write the dialogues of the inputs to `train`, and those of the test inputs, or the held-out ones, to `test`.

    An input is a file or any iterable of records. Both files and ``report.json`` beside `train` are written whole or
    not at all, the report last. Reads one record at a time; of each dialogue about 100 bytes stay, with near duplicates
    1 to 2 KB. A train dialogue whose first prompt, in normal form, is one of the test inputs' is dropped. `on_progress`
    is told how many records are read. The same inputs and settings give the same bytes. Raises InvalidInputError where
    an input holds no dialogue, or a split none.
    """
    report_path = train.parent / REPORT_NAME
    report = _Step(settings, on_progress).run(inputs, test_inputs, train, test, report_path)
    report.write(report_path)
    return report


def prepare_dialogue_records(
    records: Iterable[Record | Damage],
    test_records: Iterable[Record | Damage] | None,
    train: Path,
    test: Path | None,
    settings: DialogueSettings,
    on_progress: OnProgress | None = None,
) -> DataReport:
    """:func:`prepare_dialogues` of one stream of records a split; the report is the caller's to write."""
    test_inputs = [] if test_records is None else [test_records]
    return _Step(settings, on_progress).run([records], test_inputs, train, test, None)


@dataclass(slots=True)
class _Split:
    """What went into one output."""

    n_dialogues: int = 0
    n_turns: int = 0
    n_characters: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)

    def count(self, dialogue: Dialogue) -> None:
        self.n_dialogues += 1
        self.n_turns += len(dialogue.turns)
        self.n_characters += dialogue.n_characters
        self.formats[dialogue.format] += 1
        if dialogue.source in self.sources or len(self.sources) < _MOST_LISTED:
            self.sources[dialogue.source] += 1

    def as_json(self) -> dict[str, object]:
        return {
            "dialogues": self.n_dialogues,
            "turns": self.n_turns,
            "characters": self.n_characters,
            "formats": dict(sorted(self.formats.items())),
            "sources": dict(sorted(self.sources.items())),
        }


class _Step:
    """One run, and what it has seen so far."""

    def __init__(self, settings: DialogueSettings, on_progress: OnProgress | None) -> None:
        self._settings = settings
        self._on_progress = on_progress
        self._report = DataReport("dialogues")
        self._splits: dict[Split, _Split] = {}
        self._exact = ExactIndex()
        self._near = NearIndex(settings.near_threshold, settings.seed) if settings.drop_duplicates == "near" else None
        limits = OverlapLimits(settings.min_contained_words, settings.run_words, settings.min_run_share)
        self._prompts = PromptIndex((p for path in settings.against for p in read_prompts(path)), limits)
        self._contaminated: list[dict[str, str]] = []
        self._test_places: set[int] = set()
        self._n_turns_mended = 0

    def run(
        self,
        inputs: Sequence[Input],
        test_inputs: Sequence[Input],
        train: Path,
        test: Path | None,
        report_path: Path | None,
    ) -> DataReport:
        if not inputs:
            raise InvalidInputError("there is no input to train on", "Give a file")
        if test_inputs and test is None:
            raise InvalidInputError("there are test inputs and no file for them", "Name one")
        outputs = [path for path in (train, test, report_path) if path is not None]
        _check_paths([*inputs, *test_inputs, *self._settings.against], outputs)
        with ExitStack() as files:
            train_out = files.enter_context(RecordWriter(train))
            self._splits["train"] = _Split()
            test_out: RecordWriter | None = None
            if test is not None:
                test_out = files.enter_context(RecordWriter(test))
                self._splits["test"] = _Split()
            if test_out is None:
                self._write_all(inputs, "train", train_out)
            elif test_inputs:
                self._write_all(test_inputs, "test", test_out)  # first, so that what it asks is known
                self._write_all(inputs, "train", train_out)
            elif self._settings.held_out < 1:
                limit = share_limit(self._settings.held_out)
                for dialogue in self._dialogues(inputs):
                    self._write_to_side(dialogue, limit, train_out, test_out)
            else:
                self._split_by_count(inputs, train_out, test_out)
            self._finish()
            if report_path is not None:
                report_path.unlink(missing_ok=True)  # an older report must not stand beside newer data
        return self._report

    def _write_all(self, inputs: Sequence[Input], split: Split, out: RecordWriter) -> None:
        for dialogue in self._dialogues(inputs):
            if split == "test":
                self._test_places.add(split_place(dialogue, self._settings.seed))
            self._write(dialogue, split, out)

    def _split_by_count(self, inputs: Sequence[Input], train_out: RecordWriter, test_out: RecordWriter) -> None:
        """Which places are the least is known at the end: until then the dialogues lie in a file without a name."""
        places: list[int] = []
        with tempfile.TemporaryFile() as spool:
            for dialogue in self._dialogues(inputs):
                places.append(split_place(dialogue, self._settings.seed))
                kept = [dialogue.turns, dialogue.id, dialogue.source, dialogue.format]
                spool.write(json.dumps(kept).encode() + b"\n")
            limit = count_limit(places, int(self._settings.held_out))
            spool.seek(0)
            for line in spool:
                turns, *names = json.loads(line)
                self._write_to_side(Dialogue(tuple(Turn(*turn) for turn in turns), *names), limit, train_out, test_out)

    def _write_to_side(self, dialogue: Dialogue, limit: int, train_out: RecordWriter, test_out: RecordWriter) -> None:
        if split_place(dialogue, self._settings.seed) < limit:
            self._write(dialogue, "test", test_out)
        else:
            self._write(dialogue, "train", train_out)

    def _write(self, dialogue: Dialogue, split: Split, out: RecordWriter) -> None:
        self._report.n_kept += 1
        self._splits[split].count(dialogue)
        out.write(dialogue.as_record())

    def _dialogues(self, inputs: Sequence[Input]) -> Iterator[Dialogue]:
        """The dialogues to keep of the inputs, cleaned."""
        for given in inputs:
            first, damaged, n_recognised = "", "", 0
            for record in read_with_damage(given) if isinstance(given, Path) else given:
                if isinstance(record, Damage):
                    damaged = damaged or f" ({record})"
                    self._report.drop_damaged(record)
                    continue
                first = first or record.where
                self._report.n_read += 1
                if self._on_progress is not None and self._report.n_read % RECORDS_A_REPORT == 0:
                    self._on_progress(self._report.n_read)
                try:
                    dialogue = parse_dialogue(record, self._settings.format, self._settings.max_characters)
                except UnusableDialogueError as error:
                    n_recognised += str(error) != NOT_RECOGNISED
                    self._report.drop(str(error), record.where, _excerpt(str(dict(record.value))))
                    continue
                n_recognised += 1
                if self._keeps(dialogue, record.where):
                    yield self._cleaned(dialogue, record.where)
            if not n_recognised:
                raise self._not_recognised(given, first, damaged)

    def _not_recognised(self, given: Input, first: str, damaged: str) -> InvalidInputError:
        name = str(given) if isinstance(given, Path) else first.rpartition(":")[0] or "an input"
        if not first:
            return InvalidInputError(f"{name} holds no record{damaged}", "Give a file with dialogues")
        wanted = "dialogue" if self._settings.format == AUTO else f"dialogue in the format {self._settings.format}"
        return InvalidInputError(f"no record of {name} is a {wanted}", f"The formats are {', '.join(FORMAT_NAMES)}")

    def _keeps(self, dialogue: Dialogue, where: str) -> bool:
        """Whether a dialogue passes the filters; the reason is counted where it does not."""
        settings = self._settings
        if len(self._prompts) and (overlap := self._prompts.find(dialogue.user_texts)) is not None:
            self._report.drop(CONTAMINATED, where, f"{overlap.how}: {_excerpt(overlap.prompt.text)}")
            if len(self._contaminated) < _MOST_LISTED:
                found = {"where": where, "id": dialogue.id, "prompt": overlap.prompt.where, "how": overlap.how}
                self._contaminated.append(found)
            return False
        if settings.drop_feelings and (claim := unasked_claim(dialogue.turns)) is not None:
            self._report.drop(FEELINGS, where, claim)
            return False
        if self._test_places and split_place(dialogue, settings.seed) in self._test_places:
            self._report.drop(IN_BOTH, where, _excerpt(dialogue.user_texts[0]))
            return False
        if settings.drop_duplicates == "none":
            return True
        text = comparable_text(dialogue, settings.duplicates_by)
        if not self._exact.is_new(text):
            self._report.drop(SAME, where, _excerpt(dialogue.user_texts[0]))
            return False
        if self._near is not None and not self._near.is_new(text):
            self._report.drop(NEARLY_SAME, where, _excerpt(dialogue.user_texts[0]))
            return False
        return True

    def _cleaned(self, dialogue: Dialogue, where: str) -> Dialogue:
        for change in dialogue.changes:
            self._report.change(change, where)
        if not self._settings.truecase:
            return dialogue
        turns = truecase_turns(dialogue.turns)
        mended = [(old.content, new.content) for old, new in zip(dialogue.turns, turns, strict=True) if old != new]
        if mended:
            self._n_turns_mended += len(mended)
            before, after = mended[0]
            self._report.change(TRUECASED, where, f"{_excerpt(before)} → {_excerpt(after)}")
        return replace(dialogue, turns=turns)

    def _finish(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self._report.n_read)
        for name, split in self._splits.items():
            if not split.n_dialogues:
                remedy = "See what was dropped" if name == "train" else "Hold out more"
                reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self._report.dropped.items()))
                problem = f"of {self._report.n_read} records no dialogue is left to {name} on"
                raise InvalidInputError(problem, f"{remedy} (dropped: {reasons or 'none'})")
        self._report.facts = {
            "settings": self._settings.as_json(),
            "splits": {name: split.as_json() for name, split in self._splits.items()},
            "turns_truecased": self._n_turns_mended,
            "contaminated": self._contaminated,
            "prompts_kept_out": len(self._prompts),
        }


def _check_paths(inputs: Sequence[Input], outputs: Sequence[Path]) -> None:
    places = [path.resolve() for path in outputs]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise InvalidInputError(f"{outputs[number]} is named twice as an output", "Name two files")
    for given in inputs:
        if isinstance(given, Path) and given.resolve() in places:
            raise InvalidInputError(f"{given} is both input and output", "Name another output")


def _excerpt(text: str) -> str:
    """The beginning of a text, on one line, as Unicode."""
    return " ".join(text[: 2 * _EXCERPT_CHARACTERS].split())[:_EXCERPT_CHARACTERS].encode(errors="replace").decode()
