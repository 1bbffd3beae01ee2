"""Models that already lie on this machine: the folders where they may be, and what in them is one.

Files are used where they lie: nothing is copied or written, and of a model its first four bytes are read. What other
tools left is not believed: a folder may have no end, a file may be a pipe, a link may lead nowhere. So every step has a
limit, and what cannot be used is told in a line and left out.

Where a tool keeps its models is cited at the function that says it, here, in ``ollama`` and in ``hub_cache``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from zephyr_local.gguf_split import MAX_PARTS, part_file_name
from zephyr_local.model_store import hub_cache, ollama

Owner = Literal["zephyr-local", "checkout", "huggingface", "lm-studio", "gpt4all", "ollama", "llama.cpp", "folder"]
"""Whose place it is, those that tell more of a model before those that tell less."""

MAX_ENTRIES: Final = 100_000
"""Files and folders that are looked at in one place."""
MAX_DEPTH: Final = 8
"""Folders below a place."""
MAX_NOTICES: Final = 50
"""For one place."""
_MAX_SETTINGS_BYTES: Final = 1 << 20

_PART: Final = re.compile(
    r"(?P<prefix>.+)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf", re.ASCII | re.DOTALL | re.IGNORECASE
)
# What lies beside a model and is none (llama.cpp 0c1e57098, common/download.cpp), and what GPT4All has not finished
# (gpt4all-chat/src/modellist.cpp). The others put an ending behind .gguf: .part, .incomplete, .downloadInProgress.
_NOT_A_MODEL: Final = re.compile(r".*mmproj.*|(.*[._-])?imatrix\.gguf|incomplete-.*", re.DOTALL)

FileKey = tuple[int, int] | str
"""What is the same for two paths to one file."""


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A GGUF that lies somewhere on this machine; its header has not been read."""

    path: Path
    """Of a model in several files the first. Links in it are not resolved: its name would be lost."""
    owner: Owner
    name: str
    """What it is called there: the file's stem without ``-00001-of-…``, or Ollama's NAME:TAG."""
    repository: str | None
    """OWNER/REPO, where the place tells it."""
    revision: str | None
    """The commit, where the place tells it."""
    sha256: str | None
    """Where the place tells it without the file being read; of a model in several files never."""
    size_bytes: int
    """Of all files together."""
    files: tuple[Path, ...]
    template: str | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """A folder where models may lie; it need not exist."""

    owner: Owner
    folder: Path


@dataclass(frozen=True, slots=True)
class Found:
    """Models, the most telling places' first, and what was left out: a line each, with names as they are on disk."""

    models: tuple[FoundModel, ...]
    notices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    size_bytes: int
    key: FileKey


_Sighting = tuple[FileKey, FoundModel]


def known_places(
    *,
    store: Path,
    search_folders: Sequence[Path] = (),
    environment: Mapping[str, str] | None = None,
    home: Path | None = None,
    platform: str | None = None,
) -> tuple[Place, ...]:
    """The folders where models may lie, in the order of what they tell; they need not exist, and none is made.

    ``environment``, ``home`` and ``platform`` (as ``sys.platform`` has it) are this process's unless given.
    """
    values = os.environ if environment is None else environment
    system = sys.platform if platform is None else platform
    places = [Place("zephyr-local", store)]
    if (checkout := _checkout_models()) is not None:
        places.append(Place("checkout", checkout))
    with contextlib.suppress(RuntimeError):  # a variable that begins with another user's home, who is not there
        places.append(Place("huggingface", hub_cache.cache_folder(environment, home)))
    user_home = home if home is not None else Path(os.path.expanduser("~"))  # noqa: PTH111 — without a home, "~"
    tools: tuple[tuple[Owner, Iterable[Path]], ...] = (
        ("lm-studio", _lm_studio_folders(values, user_home)),
        ("gpt4all", _gpt4all_folders(values, user_home, system)),
        ("ollama", ollama.model_folders(values, user_home, system)),
        ("llama.cpp", [hub_cache.llama_cpp_folder(values, user_home, system)]),
        ("folder", [_at_home(folder, user_home) for folder in search_folders]),
    )
    places += (Place(owner, folder) for owner, folders in tools for folder in folders)
    return tuple(dict.fromkeys(place for place in places if place.folder.parts[:1] != ("~",)))


def find_models(places: Sequence[Place]) -> Found:
    """Every GGUF in these places, each file once, by the owner that tells most of it.

    Two tags of Ollama, or two repositories, that share a file are two models. Never raises for what lies there.
    """
    sightings: list[_Sighting] = []
    notices: list[str] = []
    for place in places:
        look = Look(place.folder)
        sightings += _models_in(place, look)
        notices += look.notices
    return Found(tuple(_each_once(sightings)), tuple(dict.fromkeys(notices)))


class Look:
    """Looks into the folders of one place, at no more than MAX_ENTRIES names, and keeps what to tell about it."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._left = MAX_ENTRIES
        self._told: dict[str, None] = {}

    @property
    def notices(self) -> list[str]:
        told = list(self._told)
        more = len(told) - MAX_NOTICES
        return told if more <= 0 else [*told[:MAX_NOTICES], f"{self._place}: {more} more such problems"]

    def notice(self, text: str) -> None:
        self._told[text] = None

    def entries(self, folder: Path) -> list[os.DirEntry[str]]:
        """What is in a folder, by name; nothing where there is none, and with a notice where it cannot be read."""
        found: list[os.DirEntry[str]] = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if not self._left:
                        self.notice(f"{self._place} has more than {MAX_ENTRIES} files: not all were looked at")
                        break
                    self._left -= 1
                    found.append(entry)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:  # ValueError: a NUL in a path that a setting gave
            self.notice(f"{folder} cannot be read: {_reason(error)}")
        return sorted(found, key=lambda entry: entry.name)

    @staticmethod
    def is_folder(entry: os.DirEntry[str]) -> bool:
        """Whether it is a folder or a link to one."""
        try:
            return entry.is_dir()
        except OSError:  # a link that leads to itself
            return False

    @staticmethod
    def small_file(path: Path, limit_bytes: int) -> bytes:
        """What a tool wrote for itself. Raises OSError, and ValueError for what is no file or is over the limit."""
        with open(path, "rb", opener=_open_without_waiting) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise ValueError("no file")
            data = stream.read(limit_bytes + 1)
        if len(data) > limit_bytes:
            raise ValueError("too long")
        return data

    def gguf(self, path: Path) -> _File | None:
        """The GGUF at ``path``; None for what is empty or no file, with a notice for what is no GGUF or unreadable."""
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # opening a device may do something
                return None
            with open(path, "rb", buffering=0, opener=_open_without_waiting) as stream:
                status = os.fstat(stream.fileno())
                if not stat.S_ISREG(status.st_mode) or not status.st_size:
                    return None
                magic = stream.read(4)
        except FileNotFoundError:
            if path.is_symlink():
                self.notice(f"{path} is a link to a file that is not there")
            return None
        except (OSError, ValueError) as error:
            self.notice(f"{path} cannot be read: {_reason(error)}")
            return None
        if magic != b"GGUF":
            self.notice(f"{path} is not a GGUF file")
            return None
        return _File(path, status.st_size, _key(path, status))

    def models_below(self, root: Path) -> Iterator[tuple[str, list[_File]]]:
        """Every model at and below ``root``, the nearest first: name and files. Links to folders are followed."""
        seen: set[FileKey] = set()
        waiting = deque([(root, 0)])
        while waiting:
            folder, depth = waiting.popleft()
            key = _key_of(folder)
            if key in seen:  # a link back to where it came from
                continue
            if key is not None:
                seen.add(key)
            files: list[Path] = []
            for entry in self.entries(folder):
                # Hidden: what a tool keeps for itself, or has not finished.
                if entry.name.startswith("."):
                    continue
                if self.is_folder(entry):
                    if depth < MAX_DEPTH:
                        waiting.append((folder / entry.name, depth + 1))
                elif entry.name.lower().endswith(".gguf") and not _NOT_A_MODEL.fullmatch(entry.name.lower()):
                    files.append(folder / entry.name)
            yield from self._models_of(files)

    def _models_of(self, files: Iterable[Path]) -> Iterator[tuple[str, list[_File]]]:
        """The models among the files of one folder: each by itself, and the parts of one together."""
        split: dict[tuple[str, int], dict[str, Path]] = {}
        for path in files:
            part = _PART.fullmatch(path.name)
            if part is not None and 1 <= int(part["no"]) <= int(part["count"]):
                split.setdefault((part["prefix"], int(part["count"])), {})[path.name] = path
            elif (file := self.gguf(path)) is not None:
                yield path.name[: -len(".gguf")], [file]
        for (prefix, count), parts in split.items():
            if (whole := self._whole(prefix, count, parts)) is not None:
                yield prefix, whole

    def _whole(self, prefix: str, count: int, parts: Mapping[str, Path]) -> list[_File] | None:
        """All parts, in their order; None, with a notice, where one is missing."""
        one = next(iter(parts.values()))
        if count > MAX_PARTS:
            self.notice(f"{one} is one of {count} parts, over the limit of {MAX_PARTS}")
            return None
        whole: list[_File] = []
        for no in range(count):
            path = parts.get(part_file_name(prefix, no, count))
            file = None if path is None else self.gguf(path)
            if file is None:
                what = "missing" if path is None else "unusable"
                self.notice(f"{one.with_name(part_file_name(prefix, no, count))}, part {no + 1} of {count}, is {what}")
                return None
            whole.append(file)
        return whole


def _models_in(place: Place, look: Look) -> Iterator[_Sighting]:
    if place.owner == "ollama":
        for tagged in ollama.tagged_models(place.folder, look):
            if (file := look.gguf(tagged.blob)) is not None:
                yield _sighting("ollama", tagged.name, [file], repository=tagged.repository, sha256=tagged.sha256)
            elif not os.path.lexists(tagged.blob):
                look.notice(f"Ollama's {tagged.name} is left out: its blob {tagged.blob} is missing")
        return
    if place.owner in ("huggingface", "llama.cpp"):
        for snapshot in hub_cache.cached_snapshots(place.folder, look):
            for name, files in look.models_below(snapshot.folder):
                sha256 = hub_cache.blob_sha256(files[0].path) if len(files) == 1 else None
                yield _sighting(place.owner, name, files, snapshot.repository, snapshot.revision, sha256)
    if place.owner == "folder" and not os.path.lexists(place.folder):
        look.notice(f"{place.folder}, a folder to search for models, is not there")
    if place.owner != "huggingface":
        for name, files in look.models_below(place.folder):
            repository = None
            if place.owner in ("zephyr-local", "lm-studio"):
                folders = files[0].path.relative_to(place.folder).parts[:-1]
                repository = "/".join(folders[:2]) if len(folders) >= 2 else None
            yield _sighting(place.owner, name, files, repository)


def _sighting(
    owner: Owner,
    name: str,
    files: Sequence[_File],
    repository: str | None = None,
    revision: str | None = None,
    sha256: str | None = None,
) -> _Sighting:
    size_bytes = sum(file.size_bytes for file in files)
    paths = tuple(file.path for file in files)
    return files[0].key, FoundModel(paths[0], owner, name, repository, revision, sha256, size_bytes, paths)


def _each_once(sightings: Iterable[_Sighting]) -> Iterator[FoundModel]:
    owners: dict[FileKey, Owner] = {}
    told: set[tuple[FileKey, str | None]] = set()
    for key, model in sorted(sightings, key=lambda sighting: get_args(Owner).index(sighting[1].owner)):
        identity = model.name if model.owner == "ollama" else model.repository
        if key not in owners or (owners[key] == model.owner and identity and (key, identity) not in told):
            owners[key] = model.owner
            told.add((key, identity))
            yield model


def _checkout_models() -> Path | None:
    """``models/`` of the checkout that this runs from; None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    return root / "models" if (root / "pyproject.toml").is_file() else None


def _lm_studio_folders(environment: Mapping[str, str], home: Path) -> Iterator[Path]:
    """What LM Studio's settings name, and the folder that it has otherwise, for each home that it may have had.

    Source: lmstudio-ai/lmstudio-js, packages/lms-common-server/src/findLMStudioHome.ts; lmstudio-ai/lms,
    src/modelsFolder.ts and src/lmstudioPaths.ts; below it OWNER/REPO/FILE: https://lmstudio.ai/docs/basics/import-model.
    """
    pointed = _settings_text(home / ".lmstudio-home-pointer").strip()
    named = [Path(value) for value in (environment.get("LMSTUDIO_HOME", ""), pointed) if value]
    for folder in dict.fromkeys([*named, home / ".lmstudio", home / ".cache" / "lm-studio"]):
        try:
            settings = json.loads(_settings_text(folder / "settings.json"))
        except (ValueError, RecursionError):
            settings = None
        downloads = settings.get("downloadsFolder") if isinstance(settings, dict) else None
        if isinstance(downloads, str) and downloads:
            yield Path(downloads)
        yield folder / "models"


def _gpt4all_folders(environment: Mapping[str, str], home: Path, platform: str) -> Iterator[Path]:
    """What GPT4All's settings name, its application's own folder, and its Python binding's.

    Source: nomic-ai/gpt4all, gpt4all-chat/src/mysettings.cpp (defaultLocalModelsPath, modelPath), main.cpp (the names,
    IniFormat), gpt4all-bindings/python/gpt4all/gpt4all.py; where they are: https://doc.qt.io/qt-6/qstandardpaths.html
    (AppLocalDataLocation), https://doc.qt.io/qt-6/qsettings.html (Locations Where Application Settings Are Stored).
    """
    if platform == "win32":
        data = _value(environment, "LOCALAPPDATA", home / "AppData" / "Local")
        settings = _value(environment, "APPDATA", home / "AppData" / "Roaming")
    else:
        settings = _value(environment, "XDG_CONFIG_HOME", home / ".config")
        data = _value(environment, "XDG_DATA_HOME", home / ".local" / "share")
        if platform == "darwin":
            data = home / "Library" / "Application Support"
    line = re.search(r"^modelPath=(.+)$", _settings_text(settings / "nomic.ai" / "GPT4All.ini"), re.MULTILINE)
    if line is not None:
        # Qt puts quotes around a value with a comma or the like, and a backslash before one.
        yield Path(re.sub(r"\\(.)", r"\1", line[1].strip().removeprefix('"').removesuffix('"')))
    yield data / "nomic.ai" / "GPT4All"
    yield home / ".cache" / "gpt4all"


def _value(environment: Mapping[str, str], variable: str, otherwise: Path) -> Path:
    value = environment.get(variable)
    return Path(value) if value else otherwise


def _settings_text(path: Path) -> str:
    try:
        return Look.small_file(path, _MAX_SETTINGS_BYTES).decode("utf-8-sig")
    except (OSError, ValueError):
        return ""


def _at_home(folder: Path, home: Path) -> Path:
    return home.joinpath(*folder.parts[1:]) if folder.parts[:1] == ("~",) else folder


def _open_without_waiting(path: str, flags: int) -> int:
    # Opening a FIFO for reading waits for a writer, for ever if there is none.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _key_of(path: Path) -> FileKey | None:
    try:
        return _key(path, path.stat())
    except (OSError, ValueError):
        return None


def _key(path: Path, status: os.stat_result) -> FileKey:
    # Some network drives number no files.
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
