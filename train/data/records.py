"""JSONL, JSON and Parquet, a record at a time; outputs are whole or absent."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

from zephyr_local.errors import InvalidInputError, OutputError
from zephyr_local.folder_sync import sync_folder

SUFFIXES = (".jsonl", ".json", ".parquet")
MAX_LINE_BYTES = 64 << 20
PARQUET_BATCH_ROWS = 1024


class Record(NamedTuple):
    """One record, and where it stands: ``file.jsonl:17`` (line or row, from 1)."""

    where: str
    value: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Damage:
    """Why a line or an element is no record."""

    where: str
    reason: str
    """A phrase, the same for all of its kind."""
    detail: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where} is {self.reason}{self.detail}"


def read_records(path: Path) -> Iterator[Record]:
    """As :func:`read_with_damage`, but raises InvalidInputError for a line or an element that is no record, too."""
    for found in read_with_damage(path):
        if isinstance(found, Damage):
            raise InvalidInputError(str(found), found.remedy)
        yield found


def read_with_damage(path: Path) -> Iterator[Record | Damage]:
    """The records of one file, in order: JSONL a line at a time, Parquet a batch of rows at a time, JSON (an array of
    objects, as AlpacaEval and ShareGPT publish) whole; and what stands in the place of one.

    Raises InvalidInputError for a file that is not there or is not what its name says.
    """
    if path.suffix not in SUFFIXES:
        raise InvalidInputError(f"{path} is none of {', '.join(SUFFIXES)}", "Convert it, or rename it to what it is")
    if not path.is_file():
        raise InvalidInputError(f"there is no file {path}", "Check the path")
    reader = {".jsonl": _read_jsonl, ".json": _read_json, ".parquet": _read_parquet}[path.suffix]
    yield from reader(path)


def _read_jsonl(path: Path) -> Iterator[Record | Damage]:
    with path.open("rb") as stream:
        number = 0
        while line := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            where = f"{path.name}:{number}"
            if len(line) > MAX_LINE_BYTES:
                yield Damage(where, f"longer than {MAX_LINE_BYTES} bytes", "", "Write one record a line")
                while line and not line.endswith(b"\n"):
                    line = stream.readline(MAX_LINE_BYTES)
            elif line.strip():
                yield _line(line, where)


def _line(line: bytes, where: str) -> Record | Damage:
    try:
        return _object(json.loads(line), where)
    except json.JSONDecodeError as error:
        detail = f": {error.msg} at column {error.colno}"
    except (ValueError, RecursionError) as error:
        detail = f": {error}"
    return Damage(where, "not JSON", detail, "Mend or remove that record")


def _read_json(path: Path) -> Iterator[Record | Damage]:
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{path.name} is not JSON: {error}", "Mend the file") from None
    if isinstance(values, Mapping):
        values = [values]
    if not isinstance(values, list):
        raise InvalidInputError(f"{path} holds no array of records", "Give a JSON array of objects, or JSONL")
    for number, value in enumerate(values, start=1):
        yield _object(value, f"{path.name}:{number}")


def _object(value: object, where: str) -> Record | Damage:
    if isinstance(value, dict):
        return Record(where, value)
    return Damage(where, "no JSON object", "", "Write each record as an object")


def _read_parquet(path: Path) -> Iterator[Record | Damage]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=PARQUET_BATCH_ROWS):
                for value in batch.to_pylist():
                    number += 1
                    yield Record(f"{path.name}:{number}", value)
    except pyarrow.ArrowException as error:
        raise InvalidInputError(f"{path} is no Parquet file: {error}", "Fetch it again") from None


def write_whole(path: Path, data: bytes) -> None:
    """Write a small file so that it is whole or absent."""
    with WholeFile(path) as part:
        part.stream.write(data)


class WholeFile:
    """A file under a temporary name beside its target, which gets the target's name when the block ends well.

    ``with WholeFile(path) as part: part.stream.write(...)``; otherwise nothing is left of it.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.stream: IO[bytes]

    def __enter__(self) -> Self:
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix=f".{self.target.name}.", suffix=".part", dir=self.target.parent)
        except OSError as error:
            raise OutputError(f"{self.target} cannot be written: {error.strerror}", "Choose another place") from None
        self.path = Path(name)
        self.stream = os.fdopen(descriptor, "wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.stream.flush()
                os.fsync(self.stream.fileno())
                self.stream.close()
                self.path.chmod(0o644)
                self.path.replace(self.target)
                sync_folder(self.target.parent)
        except OSError as problem:
            remedy = "Free some space or choose another place"
            raise OutputError(f"{self.target} cannot be written: {problem.strerror}", remedy) from None
        finally:
            with suppress(OSError):
                self.stream.close()
            self.path.unlink(missing_ok=True)


class RecordWriter:
    """Writes records to a .jsonl or .parquet file, which is whole or absent: it gets its name when the block ends well.

    ``with RecordWriter(path) as out: out.write({...})``. Parquet takes its columns from the first batch of rows;
    `parquet_types` names the types (``double``) of those that may be null all through it.
    """

    def __init__(self, target: Path, parquet_types: Mapping[str, str] = {}) -> None:
        if target.suffix not in (".jsonl", ".parquet"):
            raise InvalidInputError(f"{target} is neither .jsonl nor .parquet", "Name the output with one of the two")
        self._part = WholeFile(target)
        self._parquet_types = parquet_types
        self._rows: list[Mapping[str, Any]] = []
        self._parquet: Any = None
        self.n_written = 0

    def __enter__(self) -> Self:
        self._part.__enter__()
        return self

    def write(self, value: Mapping[str, Any]) -> None:
        """One record of JSON values."""
        self.n_written += 1
        if self._part.target.suffix == ".jsonl":
            self._part.stream.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
            return
        self._rows.append(value)
        if len(self._rows) >= PARQUET_BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow
        import pyarrow.parquet

        if self._parquet is None:
            table = pyarrow.Table.from_pylist(self._rows)
            for name, type_name in self._parquet_types.items():
                place = table.schema.get_field_index(name)
                if place >= 0 and pyarrow.types.is_null(table.schema.field(place).type):
                    column = pyarrow.nulls(len(table), pyarrow.type_for_alias(type_name))
                    table = table.set_column(place, name, column)
            self._parquet = pyarrow.parquet.ParquetWriter(self._part.stream, table.schema)
        else:
            table = pyarrow.Table.from_pylist(self._rows, schema=self._parquet.schema)
        self._parquet.write_table(table)
        self._rows = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._part.target.suffix == ".parquet":
                self._flush()
                self._parquet.close()
        except BaseException as problem:
            self._part.__exit__(type(problem), problem, None)
            raise
        self._part.__exit__(kind, error, trace)
