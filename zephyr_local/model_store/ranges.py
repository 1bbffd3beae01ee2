"""The first bytes of a file at a hub, without the rest: what a header says, before gigabytes come.

Asked for by range (RFC 9110, section 14); of a server that has none the connection is closed when enough has come.
Nothing here compares a digest, which only the whole file has: who believes these bytes compares them with it later.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Final

from zephyr_local.model_store.hub import HubFile, HubSnapshot, check_file_path
from zephyr_local.model_store.hub_client import HubClient
from zephyr_local.model_store.hub_problems import Asked, PassingError, Patience, shown_address

if TYPE_CHECKING:
    import httpx2

_CONTENT_RANGE: Final = re.compile(r"bytes 0-\d{1,18}/(?P<size>\d{1,18}|\*)", re.ASCII)
_PATIENCE: Final = Patience(attempts=5)


def read_begin(snapshot: HubSnapshot, file: HubFile, n_bytes: int, *, patience: Patience = _PATIENCE) -> bytes:
    """The first ``n_bytes`` of a file at the snapshot's commit; all of it where it has no more.

    Raises HubError, ModelNotFoundError and OfflineError as the hub answers, or does not.
    """
    check_file_path(file.path, from_hub=True)
    n_bytes = min(n_bytes, file.size_bytes)
    if n_bytes <= 0:
        return b""
    client = HubClient(f"reading the beginning of {file.path} of {snapshot.repository}")
    asked = Asked(client.endpoint, snapshot.repository, snapshot.commit, file.path)
    return patience.persist(partial(_attempt, client, asked, n_bytes, file.size_bytes))


def _attempt(client: HubClient, asked: Asked, n_bytes: int, size_bytes: int) -> bytes:
    facts = client.facts(asked)
    found = bytearray()
    with client.get(facts.address, {"Range": f"bytes=0-{n_bytes - 1}"}, asked) as response:
        _require_right(response, client, asked, size_bytes)
        for piece in response.iter_raw():
            found += piece
            if len(found) >= n_bytes:
                return bytes(found[:n_bytes])
    raise PassingError(f"{shown_address(facts.address)} sent less of {asked.path} than was asked for")


def _require_right(response: httpx2.Response, client: HubClient, asked: Asked, size_bytes: int) -> None:
    host, status = shown_address(str(response.url)), response.status_code
    if status not in (200, 206):
        if client.is_own(str(response.url)):
            raise client.refusal(response, asked)
        raise PassingError(f"{host} answers HTTP {status}")
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise PassingError(f"{host} compresses what has to come as it is")
    if status == 206:
        told = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        size = told["size"] if told is not None else ""
    else:
        size = response.headers.get("content-length", "*")
    if size not in ("*", str(size_bytes)):
        raise PassingError(f"{host} sends another file or range than {asked.path}, which has {size_bytes} bytes")
