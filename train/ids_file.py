"""A stage's data as token ids, in an Arrow file that every process maps: made once, by the rule of chat_ids.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from zephyr_local.chat_types import Message
from zephyr_local.errors import InvalidInputError
from zephyr_local.train.chat_ids import NOT_LEARNED, ChatIds, messages_of
from zephyr_local.train.data.records import WholeFile, read_records
from zephyr_local.train.recipe import Stage

_BATCH_ROWS: Final = 1024
_COLUMNS: Final[Mapping[Stage, Sequence[str]]] = {
    "pretrain": ("input_ids", "labels"),
    "dsft": ("input_ids", "labels"),
    "ddpo": ("prompt_ids", "chosen_ids", "rejected_ids"),
}


def write_ids(records: Path, target: Path, stage: Stage, chats: ChatIds, *, assistant_only: bool) -> dict[str, int]:
    """Encode a file of texts, dialogues or pairs; the target is whole or absent. Returns what it counted.

    Raises InvalidInputError where there is nothing to train on.
    """
    import pyarrow

    schema = pyarrow.schema([(name, pyarrow.list_(pyarrow.int32())) for name in _COLUMNS[stage]])
    counts = {"records": 0, "tokens": 0, "learned_tokens": 0, "longest": 0}
    with WholeFile(target) as part:
        with pyarrow.ipc.new_stream(part.stream, schema) as writer:
            rows: list[Mapping[str, list[int]]] = []
            for row in _rows(records, stage, chats, assistant_only=assistant_only):
                _count(row, counts)
                rows.append(row)
                if len(rows) == _BATCH_ROWS:
                    writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))
                    rows = []
            if rows:
                writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))
        if not counts["records"]:
            raise InvalidInputError(f"{records} has no record to train on", "Look into the report beside it")
    return counts


def _rows(records: Path, stage: Stage, chats: ChatIds, *, assistant_only: bool) -> Iterator[Mapping[str, list[int]]]:
    for record in read_records(records):
        value: Any = record.value
        try:
            if stage == "pretrain":
                ids = chats.text_ids(value["text"])
                yield {"input_ids": ids, "labels": ids}
            elif stage == "dsft":
                dialogue = chats.dialogue_ids(messages_of(value["messages"]))
                yield {"input_ids": dialogue.ids, "labels": dialogue.labels(assistant_only=assistant_only)}
            else:
                prompt: list[Message] = messages_of(value["prompt"])
                (chosen,), (rejected,) = messages_of(value["chosen"]), messages_of(value["rejected"])
                pair = chats.pair_ids(prompt, chosen.content, rejected.content)
                yield {"prompt_ids": pair.prompt, "chosen_ids": pair.chosen, "rejected_ids": pair.rejected}
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInputError(
                f"{record.where} is no record of the stage {stage}: {type(error).__name__} {error}",
                "Prepare the data with `zephyr-local data`",
            ) from None


def _count(row: Mapping[str, list[int]], counts: dict[str, int]) -> None:
    if "labels" in row:
        length, learned = len(row["input_ids"]), sum(label != NOT_LEARNED for label in row["labels"])
        longest = length
    else:
        prompt, chosen, rejected = (len(row[name]) for name in _COLUMNS["ddpo"])
        length, learned = 2 * prompt + chosen + rejected, chosen + rejected
        longest = prompt + max(chosen, rejected)
    counts["records"] += 1
    counts["tokens"] += length
    counts["learned_tokens"] += learned
    counts["longest"] = max(counts["longest"], longest)


def read_ids(path: Path) -> Any:  # noqa: ANN401 — a datasets.Dataset; the library is not imported before it is needed
    """The ids as a memory-mapped dataset. What is derived from it is kept beside it."""
    from datasets import Dataset

    return Dataset.from_file(str(path))
