"""Pulls a model: what a repository offers, whether it is here already, and each file of it whole or not at all."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from zephyr_local.errors import InvalidInputError, ModelNotFoundError, OutputError
from zephyr_local.memory.plan import readable
from zephyr_local.model_store.download import Downloaded, DownloadProgress, download
from zephyr_local.model_store.hub import HubFile, HubSnapshot
from zephyr_local.model_store.names import HubName, type_in_name
from zephyr_local.model_store.places import FoundModel
from zephyr_local.model_store.registry import FileRecord, Registry

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
    was_here: bool
    """Every file was here already."""


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
    if not all_offers:
        raise ModelNotFoundError(
            f"{where} holds no GGUF",
            "Name a repository of GGUFs, or make one of its checkpoint: zephyr-local pull "
            f"{snapshot.repository} --quantize q4_k_m",
        )
    found: Iterable[Offer] = all_offers
    if name.file is not None:
        wanted = name.file
        found = [offer for offer in all_offers if wanted in (offer.stem, *(file.path for file in offer.files))]
    elif name.file_type is not None:
        found = [offer for offer in all_offers if offer.file_type == name.file_type]
    if not (matches := tuple(found)):
        there = ", ".join(offer.label for offer in all_offers[:_MAX_NAMED])
        more = f" and {len(all_offers) - _MAX_NAMED} more" if len(all_offers) > _MAX_NAMED else ""
        raise ModelNotFoundError(f"{where} has no {name.file or name.file_type}", f"It has: {there}{more}")
    return matches


def targets(store: Path, snapshot: HubSnapshot, offer: Offer) -> tuple[Path, ...]:
    """Where the files of an offer go: OWNER/REPO/FILE below the store."""
    return tuple(store.joinpath(*snapshot.repository.split("/"), *file.path.split("/")) for file in offer.files)


def here_already(offer: Offer, models: Sequence[FoundModel], records: Iterable[FileRecord]) -> tuple[Path, ...] | None:
    """Where an offer's files lie on this machine already, by digest and size; None unless all are there."""
    known: dict[tuple[str, int], Path] = {}
    for model in models:
        if model.sha256 is not None and len(model.files) == 1:
            known[model.sha256, model.size_bytes] = model.path
    for record in records:
        if record.counts_for(record.path):
            known[record.sha256, record.size_bytes] = record.path
    found = tuple(known.get((file.sha256 or "", file.size_bytes)) for file in offer.files)
    paths = tuple(path for path in found if path is not None)
    if len(paths) != len(found) or (len(paths) > 1 and len({path.parent for path in paths}) > 1):
        return None  # parts count where they lie side by side
    return paths


def require_disk(store: Path, max_bytes: int | None, offer: Offer) -> None:
    """Raise OutputError where the store would hold more than ``max_bytes`` with an offer in it."""
    if max_bytes is None:
        return
    held = sum(path.stat().st_size for path in store.rglob("*") if path.is_file()) if store.is_dir() else 0
    if held + offer.size_bytes > max_bytes:
        raise OutputError(
            f"{offer.stem} has {readable(offer.size_bytes)}, and {store} holds {readable(held)} of the "
            f"{readable(max_bytes)} that it may: {readable(held + offer.size_bytes - max_bytes)} too much",
            "Remove something (zephyr-local models list, rm, prune), take a smaller type, or raise --max-disk",
        )


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
    before = 0
    for file, target in zip(offer.files, targets(store, snapshot, offer), strict=True):

        def tell(progress: DownloadProgress, name: str = target.name, before: int = before) -> None:
            if on_progress is not None:
                rate = progress.rate_bytes_s
                rest = offer.size_bytes - before - progress.done_bytes
                left = rest / rate if rate else None
                on_progress(
                    PullProgress(name, before + progress.done_bytes, offer.size_bytes, rate, left, progress.trouble)
                )

        done.append(download(snapshot, file, target, partial_folder=store / PARTIAL_FOLDER, on_progress=tell))
        _record(snapshot, done[-1], command)
        before += file.size_bytes
    fetched = sum(part.fetched_bytes for part in done)
    return Pulled(
        tuple(part.path for part in done), fetched, sum(part.resumed_bytes for part in done), was_here=not fetched
    )


def require_one_model(found: Sequence[Offer], snapshot: HubSnapshot) -> None:
    """Raise InvalidInputError where offers are of several models, between which no memory can choose."""
    names = sorted({type_in_name(offer.stem)[0] for offer in found})
    if len(names) > 1:
        raise InvalidInputError(
            f"{snapshot.repository} holds several models: {', '.join(names[:_MAX_NAMED])}",
            f"Name the file: hf:{snapshot.repository}/{found[0].files[0].path}, for example",
        )


def _record(snapshot: HubSnapshot, file: Downloaded, command: str) -> None:
    status = file.path.stat()
    with Registry() as registry:
        registry.record(
            FileRecord(
                file.path.absolute(),
                status.st_size,
                status.st_mtime_ns,
                file.sha256,
                "hub",
                snapshot.repository,
                snapshot.commit,
                snapshot.licence,
                time.time(),
                command,
            )
        )
