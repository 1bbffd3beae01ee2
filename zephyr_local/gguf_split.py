"""Reads a model that lies in several GGUF files, as llama.cpp splits it, as one.

The first file has the model's metadata; each file has three keys under ``split.`` and some of the tensors. llama.cpp is
given the first and finds the others by name (``llama_split_prefix`` and the loader, src/llama-model-loader.cpp of
llama.cpp 0c1e57098), so the same names are asked for here. It asserts the type of ``split.no`` in them, which ends the
process, and does not compare the rest: that is done here, before it sees them.

Nothing in the format says that two files belong to the same model: a part of a fine-tune with the same cuts, names and
shapes is taken for the model's own by llama.cpp. Parts that our converter wrote name their source, which is compared.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from zephyr_local.errors import ModelFileError, ModelNotFoundError
from zephyr_local.gguf_file import MAX_HEADER_BYTES, MAX_TENSORS, GGUFFile, TensorInfo, read_gguf

MAX_PARTS: Final = 1024
SPLIT_NO: Final = "split.no"
"""u16: which part this is, from 0."""
SPLIT_COUNT: Final = "split.count"
"""u16: how many parts there are."""
SPLIT_TENSORS_COUNT: Final = "split.tensors.count"
"""i32: tensors in all parts together."""

SOURCE_SHA256: Final = "zephyr_local.source.sha256"
"""Text, in parts that our converter wrote: what the model was made from."""

_WHOLE_SET: Final = "Put all parts of one download, under their own names, into one folder"


@dataclass(frozen=True, slots=True)
class SplitPlace:
    """Which part of how many a file says that it is."""

    no: int
    """From 0."""
    count: int
    """2 or more."""
    n_tensors: int
    """Of all parts together."""

    def __str__(self) -> str:
        return f"part {self.no + 1} of {self.count}"


def part_file_name(prefix: str, no: int, count: int) -> str:
    """The name under which llama.cpp looks for part ``no`` (from 0); ``prefix`` may begin with a folder."""
    return f"{prefix}-{no + 1:05d}-of-{count:05d}.gguf"


def read_model(path: str | os.PathLike[str]) -> GGUFFile:
    """Read the headers of the model at ``path``: one file, or the first of several, whose others are read too.

    Raises ModelNotFoundError where there is no file, ModelFileError where it is not whole and well-formed, is not the
    first part, or where the other parts are missing, damaged or do not belong to it.
    """
    return join_parts(read_gguf(path))


def split_place(gguf: GGUFFile) -> SplitPlace | None:
    """Which part of a set a file is; None for a model in one file, which a count of 0 or 1 is to llama.cpp too.

    Raises ModelFileError where the keys under ``split.`` are incomplete, of another type, or out of range.
    """
    if SPLIT_COUNT not in gguf.metadata:
        return None
    count = _number(gguf, SPLIT_COUNT, "u16")
    if count <= 1:
        return None
    if count > MAX_PARTS:
        raise ModelFileError(
            f"{gguf.path.name}: {SPLIT_COUNT} is {count}, over the limit of {MAX_PARTS}",
            "Get the model in fewer parts, or join them with llama-gguf-split --merge",
        )
    place = SplitPlace(_number(gguf, SPLIT_NO, "u16"), count, _number(gguf, SPLIT_TENSORS_COUNT, "i32"))
    if place.no >= count:
        raise ModelFileError(f"{gguf.path.name}: {SPLIT_NO} is {place.no}, not below the {count} parts", _WHOLE_SET)
    return place


def lone_part_error(gguf: GGUFFile, place: SplitPlace) -> ModelFileError:
    """The error for a part where the whole model is needed; it says which file to give."""
    name = str(gguf.path)
    ending, first_ending = part_file_name("", place.no, place.count), part_file_name("", 0, place.count)
    if place.no == 0:
        remedy = f"Give {gguf.path.name} with the other parts beside it"
    elif name.endswith(ending):
        remedy = f"Give the first part, {name.removesuffix(ending)}{first_ending}, with the others beside it"
    else:
        remedy = f"Give the first part, whose name ends in {first_ending}, with the others beside it"
    return ModelFileError(f"{gguf.path.name}: it is {place} of a split model", remedy)


def join_parts(first: GGUFFile) -> GGUFFile:
    """The whole model of which ``first`` is the first part, its siblings read; ``first`` itself if it is not split.

    Raises as :func:`read_model` does.
    """
    place = split_place(first)
    if place is None:
        return first
    if place.no != 0:
        raise lone_part_error(first, place)
    name, ending = str(first.path), part_file_name("", 0, place.count)
    # Longer than the ending: llama.cpp takes no empty prefix.
    if not name.endswith(ending) or name == ending:
        raise ModelFileError(
            f"{first.path.name}: it is {place}, but it is not named NAME{ending}",
            "Rename the parts so: llama.cpp finds the others by the first one's name",
        )
    prefix = name.removesuffix(ending)
    siblings = (_read_part(Path(part_file_name(prefix, no, place.count)), place, no) for no in range(1, place.count))
    return join(first, siblings)


def join(first: GGUFFile, siblings: Iterable[GGUFFile]) -> GGUFFile:
    """The whole model of these parts, whatever their names; raises ModelFileError where they do not fit together."""
    place = split_place(first)
    if place is None:
        return first
    parts = [first]
    tensors = list(first.tensors)
    owners = {tensor.name: first for tensor in first.tensors}
    n_header_bytes = first.data_offset
    for no, part in enumerate(siblings, start=1):
        _require_sibling(part, replace(place, no=no), first)
        n_header_bytes += part.data_offset
        # A thousand headers, each below the limit of one, would fill the memory.
        if n_header_bytes > MAX_HEADER_BYTES or len(tensors) + len(part.tensors) > MAX_TENSORS:
            raise ModelFileError(
                f"{part.path.name}: the headers up to this part have {n_header_bytes} bytes and "
                f"{len(tensors) + len(part.tensors)} tensors, over the {MAX_HEADER_BYTES} or {MAX_TENSORS} of a model",
                _WHOLE_SET,
            )
        parts.append(part)
        tensors += _tensors_of_part(part, no, owners)
    if len(tensors) != place.n_tensors:
        raise ModelFileError(
            f"{first.path.name}: its {place.count} parts have {len(tensors)} tensors and {SPLIT_TENSORS_COUNT} is "
            f"{place.n_tensors}",
            _WHOLE_SET,
        )
    size_bytes = sum(part.size_bytes for part in parts)
    return replace(first, tensors=tuple(tensors), size_bytes=size_bytes, parts=tuple(parts))


def _read_part(path: Path, place: SplitPlace, no: int) -> GGUFFile:
    try:
        return read_gguf(path)
    except ModelNotFoundError:
        raise ModelFileError(f"{replace(place, no=no)} is missing: there is no file {path}", _WHOLE_SET) from None


def _require_sibling(part: GGUFFile, expected: SplitPlace, first: GGUFFile) -> None:
    for key, type_name, wanted in (
        (SPLIT_NO, "u16", expected.no),
        (SPLIT_COUNT, "u16", expected.count),
        (SPLIT_TENSORS_COUNT, "i32", expected.n_tensors),
    ):
        found = _number(part, key, type_name)
        if found != wanted:
            raise ModelFileError(
                f"{part.path.name}: {key} is {found}; as {expected} of this model it must be {wanted}", _WHOLE_SET
            )
    made_from, first_made_from = part.text(SOURCE_SHA256), first.text(SOURCE_SHA256)
    if made_from and made_from != first_made_from:
        raise ModelFileError(f"{part.path.name}: it was made from another model than {first.path.name}", _WHOLE_SET)


def _tensors_of_part(part: GGUFFile, no: int, owners: dict[str, GGUFFile]) -> list[TensorInfo]:
    for tensor in part.tensors:
        owner = owners.setdefault(tensor.name, part)
        if owner is not part:
            raise ModelFileError(f"{part.path.name}: the tensor {tensor.name} is in {owner.path.name} too", _WHOLE_SET)
    return [replace(tensor, part=no) for tensor in part.tensors]


def _number(gguf: GGUFFile, key: str, type_name: str) -> int:
    value = gguf.metadata.get(key)
    if value is None:
        raise ModelFileError(f"{gguf.path.name}: the key {key} is missing", _WHOLE_SET)
    if gguf.value_types[key] != type_name or not isinstance(value, int):
        raise ModelFileError(
            f"{gguf.path.name}: {key} has the type {gguf.value_types[key]}; it must be {type_name}", _WHOLE_SET
        )
    return value
