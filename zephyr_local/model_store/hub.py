"""What a model hub has under a name: the commit, the files with their sizes and digests, the licence.

Asked of the hub's API (https://huggingface.co/docs/hub/api): ``/api/models/OWNER/REPO/revision/REVISION`` and
``…/tree/COMMIT``. Only the commit that the first answer names is asked for from then on, so a branch that moves cannot
mix two revisions. Nothing in an answer is believed that would later steer a path, an address or a terminal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Final
from urllib.parse import quote

from zephyr_local.errors import HubError, InvalidInputError, ModelNotFoundError
from zephyr_local.model_store.hub_client import HubClient
from zephyr_local.model_store.hub_problems import Asked, Patience, quoted

DEFAULT_REVISION: Final = "main"
MAX_NAME_LENGTH: Final = 96
MAX_FILES: Final = 100_000
MAX_PAGES: Final = 1_000
MAX_FILE_BYTES: Final = 1 << 50
MAX_PART_BYTES: Final = 255
MAX_PATH_BYTES: Final = 1024

_NAME: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?", re.ASCII)
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_GIT_ID: Final = re.compile(r"[0-9a-f]{40}")
_DEVICE: Final = re.compile(r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9¹²³])", re.IGNORECASE)
_CHECK_ENDPOINT: Final = "Check HF_ENDPOINT; if it is the hub's own, tell its makers"
_SNAPSHOT_PATIENCE: Final = Patience(attempts=3)


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repository, at one commit."""

    path: str
    """Below the repository; checked by :func:`check_file_path`."""
    size_bytes: int
    sha256: str | None
    """Of what lies in LFS, which every large file does."""
    git_blob: str | None
    """Git's SHA-1 of the blob, of what lies in git itself; exactly one of the two is there."""

    @property
    def digest(self) -> str:
        """The one of the two that is known: 64 or 40 hexadecimal digits."""
        return self.sha256 or self.git_blob or ""


@dataclass(frozen=True, slots=True)
class HubSnapshot:
    """A repository at one commit."""

    repository: str
    revision: str
    """As asked for: a branch, a tag or a commit."""
    commit: str
    files: tuple[HubFile, ...]
    licence: str | None
    """As the model's card names it, such as ``apache-2.0``."""
    gated: bool
    """Whether its files are only for those who accepted its licence."""
    left_out: tuple[str, ...] = ()
    """Paths that the hub lists and that no file may get here (see :func:`check_file_path`); not fit to be shown."""

    def file(self, path: str) -> HubFile:
        """The file at ``path``. Raises ModelNotFoundError where there is none, HubError where its name is refused."""
        for file in self.files:
            if file.path == path:
                return file
        if path in self.left_out:
            check_file_path(path, from_hub=True)
        raise ModelNotFoundError(
            f"{self.repository} has no file {path} at the revision {self.revision}",
            "Check the name: upper and lower case differ there",
        )


def parse_repository(text: str) -> str:
    """``OWNER/REPO``, by the hub's rules for names. Raises InvalidInputError."""
    names = text.split("/")
    if (
        len(names) != 2
        or not all(_NAME.fullmatch(name) and len(name) <= MAX_NAME_LENGTH for name in names)
        or "--" in text
        or ".." in text
        or text.endswith(".git")
    ):
        raise InvalidInputError(
            f"{text!r} is not the name of a repository",
            "Write OWNER/REPO, as in the address of the model's page: letters, digits, single - and ., and _, "
            f"{MAX_NAME_LENGTH} at most of each",
        )
    return text


def check_file_path(path: str, *, from_hub: bool = False) -> PurePosixPath:
    """The path of a file below a repository or a folder, which no part of it leaves, on any system.

    Raises InvalidInputError, or HubError where the hub gave the name.
    """
    reason = _path_problem(path)
    if reason is None:
        return PurePosixPath(path)
    problem = f"the file name {path!r} {reason}"
    if from_hub:
        raise HubError(f"the hub lists {problem.removeprefix('the ')}", "Fetch that file by other means, and with care")
    raise InvalidInputError(problem, "Write the file's path as the repository's page shows it, with / between folders")


def check_revision(text: str) -> str:
    """A branch, tag or commit, by git's rules as far as they matter to an address. Raises InvalidInputError."""
    if not text or len(text) > MAX_PART_BYTES or not text.isprintable() or ".." in text or set(text) & set(" ~^:?*[\\"):
        raise InvalidInputError(f"{text!r} is not a revision", "Write a branch, a tag or a commit")
    return text


def read_snapshot(
    repository: str, revision: str | None = None, *, patience: Patience = _SNAPSHOT_PATIENCE
) -> HubSnapshot:
    """Ask the hub what ``OWNER/REPO`` has at a revision; ``main`` where none is given.

    Raises InvalidInputError, OfflineError, ModelNotFoundError where the hub knows neither of them, and HubError.
    """
    repository = parse_repository(repository)
    revision = check_revision(DEFAULT_REVISION if revision is None else revision)
    client = HubClient(f"asking what {repository} has")
    asked = Asked(client.endpoint, repository, revision)
    path = f"/api/models/{repository}/revision/{quote(revision, safe='')}"
    info, _ = patience.persist(partial(client.get_json, path, {}, asked))
    commit = info.get("sha") if isinstance(info, dict) else None
    if not isinstance(commit, str) or not _GIT_ID.fullmatch(commit):
        raise HubError(f"{client.endpoint} names no commit of {repository}", _CHECK_ENDPOINT)
    entries = _read_tree(client, Asked(client.endpoint, repository, commit), patience)
    files: dict[str, HubFile] = {}
    left_out: list[str] = []
    for entry in entries:
        file = _parse_file(entry, asked)
        if _path_problem(file.path) is not None:
            left_out.append(file.path)
        elif files.setdefault(file.path, file) != file:
            raise HubError(f"{client.endpoint} lists two files {file.path} in {repository}", _CHECK_ENDPOINT)
    gated = info.get("gated") not in (None, False)
    return HubSnapshot(repository, revision, commit, tuple(files.values()), _licence(info), gated, tuple(left_out))


def _read_tree(client: HubClient, asked: Asked, patience: Patience) -> list[dict[str, Any]]:
    """The entries of the whole tree that are files, page by page."""
    path = f"/api/models/{asked.repository}/tree/{asked.revision}"
    query = {"recursive": "true", "expand": "false"}
    files: list[dict[str, Any]] = []
    for _ in range(MAX_PAGES):
        page, following = patience.persist(partial(client.get_json, path, query, asked))
        if not isinstance(page, list) or not all(isinstance(entry, dict) for entry in page):
            raise _strange(asked)
        files += [entry for entry in page if entry.get("type") == "file"]
        if not following:
            return files
        if following == query or len(files) > MAX_FILES:
            break
        query = following
    raise HubError(
        f"{asked.endpoint} lists the files of {asked} without an end, or more than {MAX_FILES}", _CHECK_ENDPOINT
    )


def _parse_file(entry: dict[str, Any], asked: Asked) -> HubFile:
    path, size_bytes, blob, lfs = (entry.get(name) for name in ("path", "size", "oid", "lfs"))
    sha256 = None
    if lfs is not None:  # the entry's own digest is then that of a pointer file
        blob = None
        sha256, size_bytes = (lfs.get("oid"), lfs.get("size")) if isinstance(lfs, dict) else (None, None)
    if (
        not isinstance(path, str)
        or not isinstance(size_bytes, int)
        or isinstance(size_bytes, bool)
        or not 0 <= size_bytes <= MAX_FILE_BYTES
        or not (_matches(_SHA256, sha256) or _matches(_GIT_ID, blob))
    ):
        raise _strange(asked)
    return HubFile(path, size_bytes, sha256, blob)


def _licence(info: dict[str, Any]) -> str | None:
    """From the card, whose ``other`` stands beside a name of its own; else from the hub's tags."""
    card = info.get("cardData")
    card = card if isinstance(card, dict) else {}
    found: object = card.get("license")
    if found == "other" and isinstance(card.get("license_name"), str):
        found = card["license_name"]
    if found is None:
        tags = info.get("tags")
        tagged = [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
        found = [tag.removeprefix("license:") for tag in tagged if tag.startswith("license:")]
    names: Iterable[object] = found if isinstance(found, list) else [found]
    return quoted(", ".join(name for name in names if isinstance(name, str)), None) or None


def _path_problem(path: str) -> str | None:
    """Why no file may get this path; None where it may."""
    parts = path.split("/")
    if not path.isprintable():
        return "holds characters that cannot be shown"
    if "\\" in path or ":" in path:
        return "holds \\ or :, which name folders and drives elsewhere"
    if any(part in ("", ".", "..") for part in parts):
        return "is not a path below the repository"
    if any(part != part.rstrip(" .") or part != part.lstrip(" ") for part in parts):
        return "has a part that begins or ends in a space, or ends in a full stop"
    if any(_DEVICE.fullmatch(part.partition(".")[0].rstrip(" ")) for part in parts):
        return "has a part that names a device on Windows"
    if any(len(part.encode()) > MAX_PART_BYTES for part in parts) or len(path.encode()) > MAX_PATH_BYTES:
        return f"is longer than {MAX_PATH_BYTES} bytes, or a part of it than {MAX_PART_BYTES}"
    return None


def _matches(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _strange(asked: Asked) -> HubError:
    return HubError(f"{asked.endpoint} lists the files of {asked} in a way that is not understood", _CHECK_ENDPOINT)
