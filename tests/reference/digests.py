"""What of a GGUF is compared with the reference: every key, and every tensor's shape, type and bytes, in short.

Read with gguf-py's reader and not with ours, from the bytes of each value.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.reference.cases import Case

FIXTURE = Path(__file__).with_name("digests.json")
OURS = "zephyr_local."
"""Our own keys begin so; the reference has none of them."""
CONVERTER_TYPES = ("F32", "F16", "BF16", "Q8_0")
"""What llama.cpp's converter writes itself; all other types are llama-quantize's."""
MAKE = "python -m tests.reference.make_digests --reference build/reference"


def short_sha256(data: bytes) -> str:
    """16 hex digits: these digests guard against accidents."""
    return hashlib.sha256(data).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class FileDigest:
    """One GGUF in short; two that are equal here are equal but for padding, the order of tensors, and our keys."""

    keys: Mapping[str, str]
    """Each key's type and value, the value in clear where it is short; in the order of the file."""
    shapes: Mapping[str, str]
    tensors: Mapping[str, str]
    """Each tensor's type and a digest of its bytes."""


def digest_file(path: Path) -> FileDigest:
    """The GGUF at `path` in short."""
    reader = gguf.GGUFReader(path)
    keys = {name: _describe(field) for name, field in reader.fields.items() if not name.startswith(("GGUF.", OURS))}
    shapes = {t.name: "x".join(str(int(n)) for n in t.shape) for t in reader.tensors}
    tensors = {t.name: f"{t.tensor_type.name}:{short_sha256(t.data.tobytes())}" for t in reader.tensors}
    return FileDigest(keys, shapes, tensors)


def _describe(field: gguf.ReaderField) -> str:
    types = " ".join(kind.name for kind in field.types)
    data = b"".join(np.asarray(field.parts[i]).tobytes() for i in field.data)
    if field.types[0] is gguf.GGUFValueType.ARRAY:
        return f"{types} {len(field.data)} {short_sha256(_lengths(field) + data)}"
    value = field.contents()
    shown = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)
    return f"{types} {shown if len(shown) <= 60 else short_sha256(data)}"


def _lengths(field: gguf.ReaderField) -> bytes:
    """The lengths of an array's strings, without which their bytes could be cut elsewhere."""
    if field.types[-1] is not gguf.GGUFValueType.STRING:
        return b""
    return ",".join(str(len(field.parts[i])) for i in field.data).encode()


def digest_inputs(folder: Path) -> dict[str, str]:
    """The files of a checkpoint by their path in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): short_sha256(path.read_bytes()) for path in files}


def compare(case: Case, file_type: str, ours: FileDigest, reference: FileDigest) -> list[str]:
    """Everything that differs, a line each; what the case says to differ must do so."""
    where = f"{case.name}, {file_type}"
    lines: list[str] = []
    for key in dict.fromkeys([*reference.keys, *ours.keys, *case.noted]):
        found, expected = ours.keys.get(key, "absent"), reference.keys.get(key, "absent")
        if (found != expected) != (key in case.noted):
            hint = f" (expected to differ: {case.noted[key]})" if key in case.noted else ""
            lines.append(f"{where}: {key} is {found}, the reference's {expected}{hint}")
    for what in ("shapes", "tensors"):
        mine, theirs = getattr(ours, what), getattr(reference, what)
        for name in sorted({*mine, *theirs}):
            if mine.get(name) != theirs.get(name):
                found, expected = mine.get(name, "absent"), theirs.get(name, "absent")
                lines.append(f"{where}: the tensor {name} is {found}, the reference's {expected}")
    if file_type in CONVERTER_TYPES:
        mine, theirs = ([key for key in digest.keys if key not in case.noted] for digest in (ours, reference))
        if mine != theirs and sorted(mine) == sorted(theirs):
            lines.append(f"{where}: the keys stand in the order {mine}, the reference's in {theirs}")
    return lines


# --- the fixture


@dataclass(frozen=True, slots=True)
class CaseDigests:
    """What the reference made of one case."""

    inputs: Mapping[str, str]
    files: Mapping[str, FileDigest]
    """By the name of the file type."""

    def as_json(self) -> dict[str, Any]:
        """Compact: keys and shapes once, and for every type but the first what differs from it."""
        first = next(iter(self.files.values()))
        return {
            "inputs": dict(self.inputs),
            "keys": dict(first.keys),
            "shapes": dict(first.shapes),
            "types": {
                name: {
                    "keys": _changes(first.keys, digest.keys),
                    "order": None if _same_order(name, first, digest) else list(digest.keys),
                    "tensors": " ".join(digest.tensors[tensor] for tensor in first.shapes),
                }
                for name, digest in self.files.items()
            },
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> CaseDigests:
        """The inverse of :meth:`as_json`."""
        files = {}
        for name, entry in value["types"].items():
            merged = {key: text for key, text in (value["keys"] | entry["keys"]).items() if text is not None}
            order = entry["order"] or list(merged)
            tensors = dict(zip(value["shapes"], entry["tensors"].split(), strict=True))
            files[name] = FileDigest({key: merged[key] for key in order}, value["shapes"], tensors)
        return cls(value["inputs"], files)


def _changes(first: Mapping[str, str], other: Mapping[str, str]) -> dict[str, str | None]:
    return {key: other.get(key) for key in {**first, **other} if first.get(key) != other.get(key)}


def _same_order(file_type: str, first: FileDigest, other: FileDigest) -> bool:
    # llama-quantize moves keys, whose order means nothing and is compared for the converter's files alone
    return file_type not in CONVERTER_TYPES or list(first.keys) == list(other.keys)


def load_fixture(path: Path = FIXTURE) -> dict[str, CaseDigests]:
    """The reference's digests by case."""
    if not path.is_file():
        return {}
    cases = json.loads(path.read_text(encoding="utf-8"))["cases"]
    return {name: CaseDigests.from_json(value) for name, value in cases.items()}


def dump_fixture(made_with: Mapping[str, object], cases: Mapping[str, CaseDigests]) -> str:
    """JSON with a line for each type of each case, so that a change is seen where it is."""
    lines = ["{", f'"made_with": {json.dumps(made_with, indent=1)},', '"cases": {']
    for number, (name, case) in enumerate(cases.items()):
        value = case.as_json()
        types = value.pop("types")
        lines.append(f"{json.dumps(name)}: {{")
        lines += [f" {json.dumps(part)}: {json.dumps(entry, ensure_ascii=False)}," for part, entry in value.items()]
        inner = [f"  {json.dumps(kind)}: {json.dumps(entry, ensure_ascii=False)}" for kind, entry in types.items()]
        lines += [' "types": {', ",\n".join(inner), " }", "}" + ("," if number < len(cases) - 1 else "")]
    return "\n".join([*lines, "}", "}"]) + "\n"
