"""Pulls a model: what a repository offers, whether it is here already, and each file of it whole or not at all."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from zephyr_local.errors import InvalidInputError, ModelNotFoundError, OutputError
from zephyr_local.model_store.download import Downloaded, DownloadProgress, download
from zephyr_local.model_store.hub import HubFile, HubSnapshot
from zephyr_local.model_store.names import HubName, folded, type_in_name
from zephyr_local.model_store.places import FoundModel
from zephyr_local.model_store.registry import AlsoKnown, FileRecord, Registry

PARTIAL_FOLDER: Final = ".partial"
_PART: Final = re.compile(r"(?P<stem>.+)-(?P<no>\d{5})-of-(?P<count>\d{5})\Z", re.ASCII | re.DOTALL)
_NOT_A_MODEL: Final = re.compile(r"mmproj|imatrix|(\A|[-_.])(lora|adapter)([-_.]|\Z)", re.IGNORECASE)
_MAX_NAMED: Final = 12


@dataclass(frozen=True, slots=True)
class Offer:
    """A model in a repository: one file, or all parts of a split one."""

    stem: str
    """The file's name without its folder, its part and ``.gguf``."""
    file_type: str | None
    """As its name says it."""
    files: tuple[HubFile, ...]

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    @property
    def label(self) -> str:
        return self.file_type or self.stem


@dataclass(frozen=True, slots=True)
class PullProgress:
    """How far a pull is, over all of its files."""

    file: str
    done_bytes: int
    total_bytes: int
    rate_bytes_s: float | None
    left_s: float | None
    trouble: str | None


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a pull came to."""

    paths: tuple[Path, ...]
    """Of a split model the first part first."""
    fetched_bytes: int
    resumed_bytes: int
    notices: tuple[str, ...] = ()

    @property
    def was_here(self) -> bool:
        """Every file had its name already, and was what the hub has."""
        return not self.fetched_bytes and not self.resumed_bytes


def offers(snapshot: HubSnapshot) -> tuple[Offer, ...]:
    """The models in a repository, by size; parts of a set that is not whole are no model."""
    singles: list[Offer] = []
    sets: dict[tuple[str, int], dict[int, HubFile]] = {}
    for file in snapshot.files:
        path = PurePosixPath(file.path)
        if path.suffix.lower() != ".gguf" or _NOT_A_MODEL.search(path.stem):
            continue
        part = _PART.match(path.stem)
        if part is None:
            singles.append(Offer(path.stem, type_in_name(path.stem)[1], (file,)))
        else:
            key = (str(path.parent / part["stem"]), int(part["count"]))
            sets.setdefault(key, {})[int(part["no"])] = file
    for (stem, count), parts in sets.items():
        if sorted(parts) == list(range(1, count + 1)):
            name = PurePosixPath(stem).name
            singles.append(Offer(name, type_in_name(name)[1], tuple(parts[no] for no in sorted(parts))))
    return tuple(sorted(singles, key=lambda offer: (offer.size_bytes, offer.stem)))


def chosen_offers(snapshot: HubSnapshot, name: HubName) -> tuple[Offer, ...]:
    """The offers that a name leaves open: one where it names a file, or a type that is there once.

    Raises ModelNotFoundError that lists what the repository has.
    """
    all_offers = offers(snapshot)
    where = f"{snapshot.repository} at {snapshot.commit[:12]}"
    found: Iterable[Offer] = all_offers
    if name.file is not None:
        wanted = name.file
        found = [offer for offer in all_offers if wanted in (offer.stem, *(file.path for file in offer.files))]
        found = found or _named_file(snapshot, wanted)
    elif name.file_type is not None:
        found = [offer for offer in all_offers if offer.file_type == name.file_type]
    matches = tuple(found)
    if not matches and not all_offers:
        raise ModelNotFoundError(
            f"{where} holds no GGUF",
            "Name a repository of GGUFs, or make one of its checkpoint: zephyr-local pull "
            f"{snapshot.repository} --quantize q4_k_m",
        )
    if not matches:
        there = _listed(list(dict.fromkeys(offer.label for offer in all_offers)))
        raise ModelNotFoundError(f"{where} has no {name.file or name.file_type}", f"It has: {there}")
    return matches


def _named_file(snapshot: HubSnapshot, wanted: str) -> list[Offer]:
    """A file that is no model by its name, and was asked for all the same."""
    file = next((file for file in snapshot.files if file.path == wanted), None)
    if file is None:
        return []
    path = PurePosixPath(wanted)
    if path.suffix.lower() != ".gguf":
        raise InvalidInputError(f"{wanted} of {snapshot.repository} is not a GGUF", "Name one that is")
    if _PART.match(path.stem):
        raise ModelNotFoundError(
            f"{wanted} is a part of a model, and {snapshot.repository} has not all of them",
            "Take another model, or tell its makers",
        )
    return [Offer(path.stem, type_in_name(path.stem)[1], (file,))]


def targets(store: Path, snapshot: HubSnapshot, offer: Offer) -> tuple[Path, ...]:
    """Where the files of an offer go: OWNER/REPO/FILE below the store."""
    return tuple(store.joinpath(*snapshot.repository.split("/"), *file.path.split("/")) for file in offer.files)


def known_files(models: Iterable[FoundModel], records: Iterable[FileRecord]) -> dict[tuple[str, int], Path]:
    """By digest and size, the files on this machine of which somebody tells both; not those that were found wrong."""
    known: dict[tuple[str, int], Path] = {}
    records = list(records)
    wrong = wrong_files(records)
    for model in models:
        if model.sha256 is not None and len(model.files) == 1 and model.path.absolute() not in wrong:
            known[model.sha256, model.size_bytes] = model.path
    for record in records:
        if record.counts_for(record.path):
            known[record.sha256, record.size_bytes] = record.path
    return known


def wrong_files(records: Iterable[FileRecord]) -> frozenset[Path]:
    """Those that were found to have another digest than they must, and were not written since."""
    return frozenset(record.path for record in records if record.is_wrong and record.is_as_it_was(record.path))


def here_already(offer: Offer, known: Mapping[tuple[str, int], Path]) -> tuple[Path, ...] | None:
    """Where an offer's files lie among :func:`known_files`; None unless all are there."""
    found = [None if file.sha256 is None else known.get((file.sha256, file.size_bytes)) for file in offer.files]
    paths = tuple(path for path in found if path is not None)
    if len(paths) != len(found):
        return None
    if len(paths) > 1:  # parts are found by their names, side by side
        names = [PurePosixPath(file.path).name for file in offer.files]
        if len({path.parent for path in paths}) > 1 or [path.name for path in paths] != names:
            return None
    return paths


def missing_bytes(store: Path, snapshot: HubSnapshot, offer: Offer, wrong: Set[Path] = frozenset()) -> int:
    """What of an offer is still to come; files that lie in the store, and the beginnings of others, are there.

    Those that are known as ``wrong`` come again.
    """
    missing = 0
    for file, target in zip(offer.files, targets(store, snapshot, offer), strict=True):
        if _size_of(target) != file.size_bytes or target.absolute() in wrong:
            missing += max(0, file.size_bytes - _size_of(store / PARTIAL_FOLDER / file.digest))
    return missing


def bytes_held(store: Path) -> int:
    """What the store's files take, partial ones too; what a link leads to is not the store's."""
    return sum(
        _size_of(Path(folder, name))
        for folder, _, names in os.walk(store)
        for name in names
        if not os.path.islink(os.path.join(folder, name))  # noqa: PTH114, PTH118 — of thousands
    )


def _size_of(path: Path) -> int:
    try:
        return os.path.getsize(path)  # noqa: PTH202
    except OSError:  # it is not there, or no longer
        return 0


def pull_offer(
    snapshot: HubSnapshot,
    offer: Offer,
    store: Path,
    *,
    command: str,
    on_progress: Callable[[PullProgress], object] | None = None,
) -> Pulled:
    """Fetch the files of an offer into the store and record where they are from.

    Raises what ``download`` does; files that were whole before stay, and the next call goes on.
    """
    done: list[Downloaded] = []
    notices: list[str] = []
    before = 0
    for file, target in zip(offer.files, targets(store, snapshot, offer), strict=True):
        tell = None if on_progress is None else _of_all(offer, target.name, before, on_progress)
        done.append(download(snapshot, file, target, partial_folder=store / PARTIAL_FOLDER, on_progress=tell))
        try:
            _record(snapshot, done[-1], command)
        except OutputError as error:  # it is a memory: the file is there without it
            notices.append(f"where {target.name} is from is not remembered: {error.problem}")
        before += file.size_bytes
    return Pulled(
        tuple(part.path for part in done),
        sum(part.fetched_bytes for part in done),
        sum(part.resumed_bytes for part in done),
        tuple(notices),
    )


def record_also(snapshot: HubSnapshot, offer: Offer, paths: Sequence[Path]) -> None:
    """Remember that files which lie elsewhere are an offer's, so that its name finds them. Raises OutputError."""
    with Registry() as registry:
        for file, path in zip(offer.files, paths, strict=True):
            if file.sha256 is not None:  # by which it was found
                registry.record_also(AlsoKnown(path, file.sha256, snapshot.repository, snapshot.commit, file.path))


def _of_all(
    offer: Offer, name: str, before_bytes: int, on_progress: Callable[[PullProgress], object]
) -> Callable[[DownloadProgress], None]:
    """What a file's download tells, told of all files of the offer."""

    def tell(progress: DownloadProgress) -> None:
        done_bytes, rate = before_bytes + progress.done_bytes, progress.rate_bytes_s
        left_s = (offer.size_bytes - done_bytes) / rate if rate else None
        on_progress(PullProgress(name, done_bytes, offer.size_bytes, rate, left_s, progress.trouble))

    return tell


def require_one_model(found: Sequence[Offer], snapshot: HubSnapshot) -> None:
    """Raise InvalidInputError where offers are of several models, between which no memory can choose."""
    names = {folded(name): name for name in (type_in_name(offer.stem)[0] for offer in found)}
    if len(names) > 1:
        raise InvalidInputError(
            f"{snapshot.repository} holds several models: {_listed(sorted(names.values(), key=str.casefold))}",
            f"Name the file: hf:{snapshot.repository}/{found[0].files[0].path}, for example",
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more


def _record(snapshot: HubSnapshot, file: Downloaded, command: str) -> None:
    path, status = file.path.absolute(), file.path.stat()
    record = FileRecord(
        *(path, status.st_size, status.st_mtime_ns, file.sha256, "hub"),
        *(snapshot.repository, snapshot.commit, snapshot.licence, time.time(), command),
    )
    with Registry() as registry:
        registry.record(record)
