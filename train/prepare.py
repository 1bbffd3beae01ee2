"""A stage's data made ready: sources read, cleaned or binarised, split, encoded.

``python -m zephyr_local.train.prepare OUT STAGE`` runs once for a stage, before any trainer, in a process of its own:
what is there is complete when report.json is.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

from zephyr_local.errors import InvalidInputError
from zephyr_local.offline import require_online
from zephyr_local.train.child import run_child
from zephyr_local.train.data.records import Damage, Record, RecordWriter, read_with_damage, write_whole
from zephyr_local.train.data.report import DataReport
from zephyr_local.train.recipe import Recipe, Stage, StageData
from zephyr_local.train.run_folder import RunFolder, StageFolder, stage_base
from zephyr_local.train.terminal import say_on_stderr

if TYPE_CHECKING:
    from zephyr_local.train.chat_ids import ChatIds

MAKERS: Final[Mapping[str, str]] = {
    "tiny-text": "zephyr_local.train.tiny.made:text_records",
    "tiny-dialogues": "zephyr_local.train.tiny.made:dialogue_records",
    "tiny-feedback": "zephyr_local.train.tiny.made:feedback_records",
    "tiny-on-policy": "zephyr_local.train.tiny.made:on_policy_records",
}
"""What ``made:NAME?n=1000&seed=1`` calls: a function of :class:`Making` that yields records."""

NEW_MODELS: Final[Mapping[str, str]] = {"tiny": "zephyr_local.train.tiny.made:new_model"}
"""What ``new: NAME`` calls: a function of a folder and the recipe's settings, which makes a checkpoint there."""


@dataclass(frozen=True, slots=True)
class Making:
    """What a maker of data is told."""

    n: int
    seed: int
    run: RunFolder
    """Where the stages before this one are."""


def prepare_stage(run: RunFolder, recipe: Recipe, stage: Stage, say: Callable[[str], None]) -> None:
    """Make a stage's data from its sources: records as JSONL, ids as Arrow, and a report of what became of them."""
    folder = run.stage(stage)
    folder.data.mkdir(parents=True, exist_ok=True)
    data = recipe.data[stage]
    chats = _chats(run, recipe, stage)
    trl = recipe.trl[stage]
    say(f"{stage}: reading {', '.join(data.train)}")
    if stage == "pretrain":
        report = _copy_texts(data, run, folder)
    elif stage == "dsft":
        report = _dialogues(data, run, folder)
    else:
        report = _preferences(data, run, folder, chats, trl)
    for line in report.lines():
        say(f"{stage}: {line}")
    assistant_only = bool(trl.get("assistant_only_loss", False))
    from zephyr_local.train.ids_file import write_ids

    for split in ("train", "test"):
        if folder.records(split).is_file():
            counts = write_ids(folder.records(split), folder.ids(split), stage, chats, assistant_only=assistant_only)
            report.facts[f"{split}_ids"] = counts
            say(f"{stage}: {counts['records']:,} records, {counts['tokens']:,} tokens to {split} on")
    report.facts["sources"] = {"train": list(data.train), "test": list(data.test)}
    report.write(folder.data_report)


def _chats(run: RunFolder, recipe: Recipe, stage: Stage) -> ChatIds:
    from zephyr_local.train.chat_ids import ChatIds

    return ChatIds(stage_base(run, recipe, stage), recipe.template, recipe.system_turn)


def _copy_texts(data: StageData, run: RunFolder, folder: StageFolder) -> DataReport:
    report = DataReport("texts")
    for split, sources in (("train", data.train), ("test", data.test)):
        if not sources:
            continue
        with RecordWriter(folder.records(split)) as out:
            for record in records_of(sources, run):
                if isinstance(record, Damage):
                    report.drop_damaged(record)
                    continue
                report.n_read += 1
                text = record.value.get("text")
                if not isinstance(text, str) or not text.strip():
                    report.drop("no text", record.where)
                    continue
                report.n_kept += 1
                out.write({"text": text})
    return report


def _dialogues(data: StageData, run: RunFolder, folder: StageFolder) -> DataReport:
    from zephyr_local.train.data.dialogues import DialogueSettings, prepare_dialogue_records

    settings = DialogueSettings.parse({**data.prepare, **({"held_out": data.held_out} if data.held_out else {})})
    return prepare_dialogue_records(
        records_of(data.train, run),
        records_of(data.test, run) if data.test else None,
        folder.records("train"),
        folder.records("test") if data.test or data.held_out else None,
        settings,
    )


def _preferences(
    data: StageData,
    run: RunFolder,
    folder: StageFolder,
    chats: ChatIds,
    trl: Mapping[str, Any],
) -> DataReport:
    from zephyr_local.train.data.preferences import PreferenceSettings, prepare_preference_records

    # What TRL would cut is dropped here: an answer that was cut has lost its end token.
    lengths = {"max_length": trl["max_length"]} if isinstance(trl.get("max_length"), int) else {}
    held_out = {"held_out": data.held_out} if data.held_out else {}
    settings = PreferenceSettings.parse({**lengths, **data.prepare, **held_out})
    return prepare_preference_records(
        records_of(data.train, run),
        records_of(data.test, run) if data.test else None,
        folder.records("train"),
        folder.records("test") if data.test or data.held_out else None,
        settings,
        chats.count_tokens,
    )


def records_of(sources: Iterable[str], run: RunFolder) -> Iterator[Record | Damage]:
    """The records of a recipe's sources, one after the other."""
    for source in sources:
        if source.startswith("made:"):
            yield from _made(source.removeprefix("made:"), run)
        elif source.startswith("hub:"):
            yield from _from_hub(source.removeprefix("hub:"))
        else:
            yield from read_with_damage(Path(source))


def _made(name_and_query: str, run: RunFolder) -> Iterator[Record]:
    name, _, query = name_and_query.partition("?")
    if name not in MAKERS:
        raise InvalidInputError(f"made:{name} is not known", f"Known: {', '.join(MAKERS)}")
    given = dict(parse_qsl(query))
    try:
        making = Making(int(given.pop("n")), int(given.pop("seed", "0")), run)
    except (KeyError, ValueError):
        raise InvalidInputError(f"made:{name_and_query} has no whole n", f"Write made:{name}?n=1000&seed=1") from None
    if given:
        raise InvalidInputError(f"made:{name_and_query} has the unknown {', '.join(given)}", "Known: n and seed")
    for number, value in enumerate(itertools.islice(_function(MAKERS[name])(making), making.n), start=1):
        yield Record(f"{name}:{number}", value)


def _function(path: str) -> Any:  # noqa: ANN401 — makers differ in what they take
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def _from_hub(name: str) -> Iterator[Record]:
    """A split of a repository of datasets, streamed: ``OWNER/NAME@SPLIT``, or ``OWNER/NAME/FILE@SPLIT``."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    repository, _, split = name.partition("@")
    owner, _, rest = repository.partition("/")
    dataset, _, file = rest.partition("/")
    if not dataset or not split:
        raise InvalidInputError(f"hub:{name} names no repository and split", "Write hub:OWNER/NAME@train")
    require_online(f"reading hub:{name}")
    try:
        rows = load_dataset(f"{owner}/{dataset}", data_files=file or None, split=split, streaming=True)
        for number, row in enumerate(rows, start=1):
            yield Record(f"{dataset}@{split}:{number}", row)
    except (OSError, ValueError, DatasetNotFoundError) as error:
        raise InvalidInputError(
            f"hub:{name} cannot be read: {error}", "Check the name and the connection, or name files of your own"
        ) from None


def make_new_model(run: RunFolder, recipe: Recipe) -> None:
    """Make the model that a recipe with `new` begins with, unless it is there."""
    done = run.new_model / "done.json"
    if done.is_file():
        return
    if recipe.new not in NEW_MODELS:
        raise InvalidInputError(f"new: {recipe.new} is not known", f"Known: {', '.join(NEW_MODELS)}")
    _function(NEW_MODELS[recipe.new])(run.new_model)
    write_whole(done, json.dumps({"new": recipe.new}).encode() + b"\n")


def main() -> int:
    """The process's entry point; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m zephyr_local.train.prepare")
    parser.add_argument("out", type=Path)
    parser.add_argument("stage")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--online", action="store_true", help="the recipe names a repository of the hub")
    given = parser.parse_args()

    def prepare() -> None:
        run = RunFolder(given.out)
        recipe = Recipe.read(run.recipe)
        if recipe.new:
            make_new_model(run, recipe)
        prepare_stage(run, recipe, given.stage, say_on_stderr)

    return run_child(prepare, threads=given.threads, online=given.online)


if __name__ == "__main__":
    sys.exit(main())
