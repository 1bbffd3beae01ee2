"""A model hub on loopback: the API, the files and, on a port of its own, the storage that they are redirected to.

It answers as https://huggingface.co does where huggingface_hub 2.4 asks (hf_api.py, file_download.py,
utils/_http.py), and fails as a test says, request by request.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

_CHUNK_BYTES = 16 << 10
_LONGEST_S = 60.0


class Kind(Enum):
    """What a request is for."""

    INFO = "/api/models/OWNER/REPO"
    TREE = "/api/models/OWNER/REPO/tree/REVISION"
    HEAD = "HEAD of a file"
    FILE = "GET of a file, at the hub"
    STORAGE = "GET of a file, at the storage"
    OTHER = "anything else"


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request; bytes count from the beginning of the reply's body."""

    status: int | None = None
    """This, with nothing of what was asked for."""
    headers: Mapping[str, str | None] = field(default_factory=dict)
    """Beside the right ones, or in their place; None leaves one out."""
    body: bytes | None = None
    cut_after: int | None = None
    """So many bytes, and then the connection ends."""
    is_dropped: bool = False
    """The connection ends without an answer."""
    reset: bool = False
    """Whether it ends with a reset (RST) instead of an end (FIN)."""
    silent_after: int | None = None
    """So many bytes, and then nothing, for longer than anybody waits."""
    flip_at: int | None = None
    """A byte that arrives as another one."""
    ignores_range: bool = False
    extra_bytes: int = 0
    """More than there are, without a length to tell."""
    is_endless: bool = False


@dataclass
class Served:
    """One request and what became of it."""

    kind: Kind
    method: str
    path: str
    """With its query."""
    headers: dict[str, str]
    """Names in lower case."""
    fault: Fault | None = None
    status: int = 0
    sent_bytes: int = 0
    """Of the body, as far as the system took them."""

    @property
    def range_begin(self) -> int:
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", "bytes=0-"))
        assert found is not None, self.headers
        return int(found[1])


@dataclass
class Repository:
    """What one name has."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    is_gated: bool = False
    is_private: bool = False
    members: frozenset[str] = frozenset()
    """The tokens of those who may read it where it is gated or private."""


@dataclass
class StandInHub:
    """The two servers; a context manager."""

    lfs_from_bytes: int = 1024
    """Files as large as this lie in LFS, smaller ones in git."""
    page_entries: int = 1000
    chunk_bytes: int = _CHUNK_BYTES
    pause_s: float = 0.0
    """After each chunk that the storage sends."""
    send_buffer_bytes: int | None = 4096
    """What a system has taken and not yet delivered is lost with a client; None for as much as it likes."""
    tokens: frozenset[str] = frozenset({"hf_valid"})
    """Those that the hub knows."""
    served: list[Served] = field(default_factory=list)
    repositories: dict[str, Repository] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    listed: list[dict[str, Any]] | None = None
    """The whole tree's entries, instead of the right ones."""
    storage_url: str | None = None
    """Where files are said to lie, instead of at the storage here."""

    def __enter__(self) -> Self:
        self._lock = threading.Lock()
        self._faults: dict[Kind, Iterator[Fault | None]] = {}
        self.is_stopping = threading.Event()
        self._servers = [self._start(_HubHandler), self._start(_StorageHandler)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.is_stopping.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def _start(self, handler: type[_Handler]) -> ThreadingHTTPServer:
        class Handler(handler):  # type: ignore[misc, valid-type]
            owner = self

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False
            request_queue_size = 64

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Clients are killed on purpose; tests print nothing."""

        server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.005}, daemon=True).start()
        return server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._servers[0].server_address[1]}"

    @property
    def storage(self) -> str:
        return self.storage_url or f"http://127.0.0.1:{self._servers[1].server_address[1]}"

    def add(
        self, name: str, files: Mapping[str, bytes], *, branch: str = "main", licence: str | None = "mit", **about: Any
    ) -> str:
        """Add a commit, to which the branch moves; ``about`` are fields of Repository. The commit's id."""
        repository = self.repositories.setdefault(name, Repository())
        repository.info["cardData"] = {"license": licence} if licence else {}
        for key, value in about.items():
            setattr(repository, key, value)
        facts = repr((name, branch, len(repository.commits), sorted(files))).encode()
        commit = hashlib.sha1(facts).hexdigest()
        repository.commits[commit] = dict(files)
        repository.branches[branch] = commit
        return commit

    def fail(self, kind: Kind, faults: Iterable[Fault | None]) -> None:
        """Let the coming requests of a kind go wrong, in this order; None is one that goes well."""
        self._faults[kind] = iter(faults)

    def of_kind(self, kind: Kind) -> list[Served]:
        return [one for one in self.served if one.kind is kind]

    def sent_bytes(self) -> int:
        """Bytes of files that were sent, at the hub and at the storage."""
        return sum(one.sent_bytes for one in self.served if one.kind in (Kind.FILE, Kind.STORAGE))

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """The environment of a process that is to ask this hub, and nothing of the user's."""
        ours = ("HF_", "HUGGING", "ZEPHYR_LOCAL_", "TRANSFORMERS_OFFLINE", "DISABLE_TELEMETRY", "DO_NOT_TRACK")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        kept = {name: value for name, value in kept.items() if not name.lower().endswith("_proxy")}
        return {**kept, "HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DOWNLOAD_TIMEOUT": "5", **more}

    def connect(self, monkeypatch: Any, home: Path, token: str | None = None) -> None:
        """Let this process ask this hub: what the library read from its environment is set again."""
        import huggingface_hub
        from huggingface_hub import constants

        for name in [name for name in os.environ if name not in self.environment(home)]:
            monkeypatch.delenv(name)
        # Ours sets them for good where they are not set.
        more = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        for name, value in ({**more, "HF_TOKEN": token} if token is not None else more).items():
            monkeypatch.setenv(name, value)
        for name, value in {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DOWNLOAD_TIMEOUT": 5,
            "HF_TOKEN_PATH": str(home / "token"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        huggingface_hub.close_session()  # it may have been made with a proxy

    def begin(self, request: Served) -> None:
        with self._lock:
            self.served.append(request)
            request.fault = next(self._faults.get(request.kind, iter(())), None)


@functools.lru_cache(256)
def git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@functools.lru_cache(256)
def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    owner: StandInHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        if self.owner.send_buffer_bytes is not None:
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.owner.send_buffer_bytes)
        super().setup()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 — its name in the base
        """Tests print nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.served = Served(self.kind(), self.command, self.path, headers)
        self.owner.begin(self.served)
        self.fault = self.served.fault or Fault()
        try:
            if self.fault.is_dropped:
                self.cut(self.fault.reset)
            elif self.fault.status is not None:
                self.refuse(self.fault.status, "", "as asked")
            else:
                self.answer()
        except OSError:
            self.close_connection = True

    def kind(self) -> Kind:
        raise NotImplementedError

    def answer(self) -> None:
        raise NotImplementedError

    def refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message} if code or message else {}
        self.reply(status, {name: value for name, value in headers.items() if value}, self.json({"error": message}))

    def json(self, value: object) -> bytes:
        return json.dumps(value).encode()

    def reply(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        fault = self.fault
        body = fault.body if fault.body is not None else body
        has_length = not (fault.extra_bytes or fault.is_endless)
        length = {"Content-Length": str(len(body))} if has_length else {"Connection": "close"}
        self.served.status = status
        self.send_response(status)
        for name, value in {**length, "X-Request-Id": "stand-in", **headers, **fault.headers}.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if not has_length:
            self.close_connection = True
        if self.command != "HEAD":
            self.send_body(body)

    def send_body(self, body: bytes) -> None:
        fault = self.fault
        if fault.flip_at is not None and fault.flip_at < len(body):
            body = body[: fault.flip_at] + bytes([body[fault.flip_at] ^ 0xFF]) + body[fault.flip_at + 1 :]
        body += b"\0" * fault.extra_bytes
        end = min((n for n in (fault.cut_after, fault.silent_after) if n is not None), default=len(body))
        self.send_paced(memoryview(body)[:end])
        while fault.is_endless and not self.owner.is_stopping.is_set():
            self.send_paced(memoryview(bytes(self.owner.chunk_bytes)))
        if fault.silent_after is not None:
            self.owner.is_stopping.wait(_LONGEST_S)
        if fault.cut_after is not None or fault.silent_after is not None:
            self.cut(fault.reset)

    def send_paced(self, body: memoryview) -> None:
        pause_s = self.owner.pause_s if self.served.kind is Kind.STORAGE else 0.0
        while body:
            chunk, body = body[: self.owner.chunk_bytes], body[self.owner.chunk_bytes :]
            while chunk:
                n_sent = self.connection.send(chunk)
                self.served.sent_bytes += n_sent
                chunk = chunk[n_sent:]
            if pause_s:
                time.sleep(pause_s)

    def cut(self, is_reset: bool) -> None:
        self.close_connection = True
        if is_reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_WR)
        self.rfile.close()
        self.connection.close()


class _HubHandler(_Handler):
    """Paths as the hub's: the API, ``/OWNER/REPO/resolve/REVISION/PATH``, and where small files are sent on to."""

    def kind(self) -> Kind:
        path = urlsplit(self.path).path
        if path.startswith("/api/models/"):
            return Kind.TREE if "/tree/" in path else Kind.INFO
        if "/resolve/" in path or path.startswith("/api/resolve-cache/"):
            return Kind.HEAD if self.command == "HEAD" else Kind.FILE
        return Kind.OTHER

    def answer(self) -> None:
        path = urlsplit(self.path).path
        for pattern, answer in (
            (r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", self.answer_info),
            (r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", self.answer_tree),
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.answer_file),
            (r"/api/resolve-cache/models/([^/]+/[^/]+)/([^/]+)/(.+)", self.answer_small_file),
        ):
            if found := re.fullmatch(pattern, path):
                name, *rest = (unquote(part) if part is not None else "main" for part in found.groups())
                if name in self.owner.renamed:
                    query = f"?{urlsplit(self.path).query}" if urlsplit(self.path).query else ""
                    location = path.replace(name, self.owner.renamed[name], 1) + query
                    self.reply(307, {"Location": location}, b"")
                elif repository := self.readable(name):
                    answer(name, repository, *rest)
                return
        self.refuse(404, "", "Not Found")

    def readable(self, name: str) -> Repository | None:
        """The repository, unless it is refused, which is then answered."""
        token = self.served.headers.get("authorization", "").removeprefix("Bearer ")
        if token and token not in self.owner.tokens:
            self.refuse(401, "", "Invalid credentials in Authorization header")
            return None
        repository = self.owner.repositories.get(name)
        if repository is None or (repository.is_private and token not in repository.members):
            if token:
                self.refuse(404, "RepoNotFound", "Repository not found")
            else:
                self.refuse(401, "RepoNotFound", "Invalid username or password.")
            return None
        if repository.is_gated and self.served.kind in (Kind.HEAD, Kind.FILE) and token not in repository.members:
            hint = f"Access to model {name} is restricted"
            self.refuse(403 if token else 401, "GatedRepo", f"{hint}. Visit {self.owner.url}/{name}?ask=1 to ask.")
            return None
        return repository

    def commit(self, repository: Repository, revision: str) -> str | None:
        commit = repository.branches.get(revision, revision)
        if commit in repository.commits:
            return commit
        self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return None

    def answer_info(self, name: str, repository: Repository, revision: str) -> None:
        if commit := self.commit(repository, revision):
            gated = "manual" if repository.is_gated else False
            info = {"id": name, "modelId": name, "sha": commit, "private": False, "gated": gated, "tags": []}
            siblings = [{"rfilename": path} for path in repository.commits[commit]]
            self.reply(200, _JSON, self.json({**info, "siblings": siblings, **repository.info}))

    def answer_tree(self, name: str, repository: Repository, revision: str) -> None:
        if not (commit := self.commit(repository, revision)):
            return
        query = parse_qs(urlsplit(self.path).query)
        assert query["recursive"] == ["true"], self.path
        entries = self.owner.listed if self.owner.listed is not None else list(self.entries(repository.commits[commit]))
        begin = int(query.get("cursor", ["0"])[0])
        end = begin + self.owner.page_entries
        headers = dict(_JSON)
        if end < len(entries):
            path = f"{self.owner.url}/api/models/{name}/tree/{commit}"
            headers["Link"] = f'<{path}?recursive=true&expand=false&cursor={end}>; rel="next"'
        self.reply(200, headers, self.json(entries[begin:end]))

    def entries(self, files: Mapping[str, bytes]) -> Iterator[dict[str, Any]]:
        for folder in sorted({str(parent) for path in files for parent in Path(path).parents if str(parent) != "."}):
            yield {"type": "directory", "oid": git_blob(folder.encode()), "size": 0, "path": folder}
        for path, data in files.items():
            entry: dict[str, Any] = {"type": "file", "oid": git_blob(data), "size": len(data), "path": path}
            if self.is_lfs(data):
                pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256(data)}\nsize {len(data)}\n"
                entry["oid"] = git_blob(pointer.encode())
                entry["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": len(pointer)}
                entry["xetHash"] = "0" * 64
            yield entry

    def answer_file(self, name: str, repository: Repository, revision: str, path: str) -> None:
        if not (commit := self.commit(repository, revision)):
            return
        data = repository.commits[commit].get(path)
        if data is None:
            self.refuse(404, "EntryNotFound", "Entry not found")
            return
        if not self.is_lfs(data):
            location = f"/api/resolve-cache/models/{name}/{commit}/{quote(path)}?etag=%22{git_blob(data)}%22"
            self.reply(307, {"X-Repo-Commit": commit, "Location": location}, b"Temporary Redirect")
            return
        headers = {
            "X-Repo-Commit": commit,
            "X-Linked-Size": str(len(data)),
            "X-Linked-Etag": f'"{sha256(data)}"',
            "X-Xet-Hash": "0" * 64,
            "Accept-Ranges": "bytes",
            "Location": f"{self.owner.storage}/lfs/{sha256(data)}?X-Amz-Signature=secret-of-the-storage",
        }
        self.reply(302, headers, b"Found")

    def answer_small_file(self, name: str, repository: Repository, revision: str, path: str) -> None:
        data = repository.commits[revision][path]
        self.reply(200, {"X-Repo-Commit": revision, "ETag": f'"{git_blob(data)}"', "Accept-Ranges": "none"}, data)

    def is_lfs(self, data: bytes) -> bool:
        return len(data) >= self.owner.lfs_from_bytes


class _StorageHandler(_Handler):
    """``/lfs/SHA256``, with ranges; a token that comes here has gone too far."""

    def kind(self) -> Kind:
        return Kind.STORAGE

    def answer(self) -> None:
        digest = urlsplit(self.path).path.removeprefix("/lfs/")
        trees = itertools.chain.from_iterable(one.commits.values() for one in self.owner.repositories.values())
        data = next((data for tree in trees for data in tree.values() if sha256(data) == digest), None)
        if data is None or "X-Amz-Signature" not in self.path:
            self.refuse(403, "", "")
            return
        headers = {"ETag": f'"{digest[:32]}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        begin = self.served.range_begin
        if "range" not in self.served.headers or self.fault.ignores_range:
            self.reply(200, headers, data)
        elif begin >= len(data):
            self.reply(416, {**headers, "Content-Range": f"bytes */{len(data)}"}, b"")
        else:
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
            self.reply(206, headers, data[begin:])


_JSON = {"Content-Type": "application/json; charset=utf-8"}
