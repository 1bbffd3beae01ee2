"""Models under a further name: a pull found that a file which lies elsewhere is the very one of a repository."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from zephyr_local.model_store.places import FoundModel

if TYPE_CHECKING:
    from zephyr_local.model_store.registry import AlsoKnown, FileRecord

_FILE: Final = re.compile(r"(?P<stem>.+?)(-\d{5}-of-(?P<count>\d{5}))?(\.gguf)?", re.ASCII | re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class AlsoKnownModel(FoundModel):
    """A model that lies where it has another name, or in no place of models."""

    hub_files: tuple[str, ...] = ()
    """Below the repository."""
    is_second: bool = False
    """Whether it is found under its own name, too: its bytes count once."""


def also_known_models(
    models: Sequence[FoundModel], records: Mapping[Path, FileRecord], names: Iterable[AlsoKnown]
) -> Iterator[AlsoKnownModel]:
    """The models among ``names`` whose files are there as they were, but for those that have that name already."""
    sets: dict[tuple[str, str, str, Path], list[AlsoKnown]] = {}
    for name in names:
        stem, count = _stem_and_count(name.file)
        where = name.path if count == 1 else name.path.parent
        sets.setdefault((name.repository, name.revision, stem, where), []).append(name)
    by_path = {path.absolute(): model for model in models for path in model.files}
    told = {(model.path, model.repository, model.revision, model.name) for model in models}
    for (repository, revision, stem, _), parts in sets.items():
        model = by_path.get(parts[0].path)
        if len(parts) != _stem_and_count(parts[0].file)[1]:
            continue
        if not all(_has_its_digest(part, records.get(part.path), by_path.get(part.path)) for part in parts):
            continue
        shown = PurePosixPath(stem).name
        if model is not None and (model.path, repository, revision, shown) in told:
            continue
        paths = tuple(part.path for part in parts) if model is None else model.files
        sha256 = parts[0].sha256 if len(parts) == 1 else None
        size_bytes = _size_of(paths) if model is None else model.size_bytes
        if size_bytes is not None:
            yield AlsoKnownModel(
                *(paths[0], "folder" if model is None else model.owner, shown, repository, revision, sha256),
                *(size_bytes, paths),
                hub_files=tuple(part.file for part in parts),
                is_second=model is not None,
            )


def _stem_and_count(file: str) -> tuple[str, int]:
    """A file's path without its part and ``.gguf``, and of how many parts it is one."""
    found = _FILE.fullmatch(file)
    if found is None:
        return file, 1
    return found["stem"], int(found["count"] or 1)


def _has_its_digest(name: AlsoKnown, record: FileRecord | None, model: FoundModel | None) -> bool:
    """Whether the file still has the digest that it was recognised by, as far as that is known without reading it."""
    if record is not None and record.is_as_it_was(name.path):
        return not record.is_wrong and record.sha256 == name.sha256
    return model is not None and model.sha256 == name.sha256


def _size_of(paths: Sequence[Path]) -> int | None:
    try:
        return sum(path.stat().st_size for path in paths)
    except OSError:  # gone in between
        return None
