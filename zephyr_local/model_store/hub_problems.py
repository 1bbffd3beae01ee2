"""What went wrong between here and a model hub, told apart by what to do about it.

What may pass is a PassingError, which another attempt answers; the rest is a ZephyrError for the user. Neither quotes
the client library, whose texts hold signed addresses and can hold the token; what a server says is cleaned first.

The hub's headers are those that huggingface_hub 2.4 reads (utils/_http.py): ``X-Error-Code``, ``X-Error-Message``,
``RateLimit`` of draft-ietf-httpapi-ratelimit-headers-09.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar
from urllib.parse import urlsplit

from zephyr_local.errors import HubError, ModelNotFoundError, OfflineError, ZephyrError
from zephyr_local.retry_after import retry_after_s

_Result = TypeVar("_Result")
_MOST_QUOTED: Final = 200
_RETRIED: Final = frozenset({408, 425, 429})
_QUERY: Final = re.compile(r"(\w+://[^\s?#]*)[?#]\S*")
_TRY_LATER: Final = "Try again later"
_CHECK_ENDPOINT: Final = "Check HF_ENDPOINT"


@dataclass(frozen=True, slots=True)
class Asked:
    """What a hub was asked for: what an error has to name, and what it must not."""

    endpoint: str
    repository: str
    revision: str | None = None
    path: str | None = None
    token: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        path = f"/{self.path}" if self.path is not None else ""
        return f"{self.repository}{path}"


class PassingError(Exception):
    """Another attempt may go well. ``problem`` and ``remedy`` are a HubError's, for when no attempt did."""

    def __init__(self, problem: str, remedy: str = _TRY_LATER, *, wait_s: float | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy
        self.wait_s = wait_s
        """How long the server asks to be left alone."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How often something is tried, and how long is waited in between."""

    attempts: int = 8
    """In a row, without anything won."""
    longest_pause_s: float = 60.0
    longest_wait_s: float = 300.0
    """A server that asks for more is not waited for."""
    wait: Callable[[float], object] = time.sleep

    def pause_s(self, failures: int, error: PassingError) -> float | None:
        """How long to wait after so many failures in a row; None where it is time to give up."""
        if failures >= self.attempts or (error.wait_s or 0.0) > self.longest_wait_s:
            return None
        return max(error.wait_s or 0.0, min(2.0 ** (failures - 1), self.longest_pause_s))

    def persist(self, attempt: Callable[[], _Result]) -> _Result:
        """What ``attempt`` returns, tried again where it raises PassingError; at last that becomes a HubError."""
        failures = 0
        while True:
            try:
                return attempt()
            except PassingError as error:
                failures += 1
                pause_s = self.pause_s(failures, error)
                if pause_s is None:
                    raise HubError(error.problem, error.remedy) from None
            self.wait(pause_s)


def shown_address(url: str) -> str:
    """Scheme, host and port: what may be shown of an address that can hold a password or a signature."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def refusal(status: int, headers: Mapping[str, str], asked: Asked) -> ZephyrError | PassingError:
    """The error that a hub's answer is; ``headers`` find their names in lower case."""
    code = headers.get("x-error-code", "")
    said = quoted(headers.get("x-error-message", ""), asked.token)
    if status in _RETRIED or status >= 500:
        return _passing(status, headers, asked)
    if code == "GatedRepo":
        return _gated(asked, said)
    if code == "RevisionNotFound":
        return ModelNotFoundError(
            f"{asked.repository} has no revision {asked.revision}",
            f"See {_page(asked)}/commits/main, and the list of branches there",
        )
    if code == "EntryNotFound" or (status == 404 and not code and asked.path is not None):
        return ModelNotFoundError(f"{asked.repository} has no file {asked.path}", f"See {_page(asked)}/tree/main")
    if status == 401 and code != "RepoNotFound" and asked.token is not None:
        return HubError(
            f"{asked.endpoint} does not take the token of HF_TOKEN or hf auth login (HTTP 401{_colon(said)})",
            f"Make a new one at {asked.endpoint}/settings/tokens, or unset it: an open model needs none",
        )
    if code == "RepoNotFound" or status in (401, 404):
        return ModelNotFoundError(f"{asked.endpoint} has no model {asked.repository}", _private_remedy(asked))
    if status == 403:
        return HubError(
            f"{asked.endpoint} refuses {asked} (HTTP 403{_colon(said)})",
            f"Check at {asked.endpoint}/settings/tokens what the token in HF_TOKEN may read",
        )
    return HubError(f"{asked.endpoint}, asked for {asked}, answers HTTP {status}{_colon(said)}", _TRY_LATER)


def failure(error: Exception, url: str, asked: Asked) -> ZephyrError | PassingError:
    """The error that stands for what the client library raised while ``url`` was asked."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return refusal(error.response.status_code, error.response.headers, asked)
    if isinstance(error, OfflineModeIsEnabled):  # read when it was imported, from more variables than ours
        return OfflineError(
            f"{asked} needs the network, and HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set", "Unset the variable"
        )
    host = shown_address(url)
    if isinstance(error, httpx2.TimeoutException):
        return PassingError(f"{host} sends nothing", "Try again later, or set HF_HUB_DOWNLOAD_TIMEOUT (seconds)")
    if isinstance(error, httpx2.LocalProtocolError):
        return HubError("the token in HF_TOKEN has characters that no token has", "Set it again, or unset it")
    if isinstance(error, httpx2.TooManyRedirects):
        return HubError(f"{host} leads from one address to the next", _CHECK_ENDPOINT)
    if isinstance(error, httpx2.ProxyError):
        return PassingError("the proxy makes no connection", "Check HTTPS_PROXY and HTTP_PROXY")
    if isinstance(error, httpx2.ConnectError):
        return _no_connection(error, host)
    return PassingError(f"the connection to {host} was cut")


def quoted(text: str, token: str | None) -> str:
    """What a server says, short, on one line, and without the token, signatures or what moves a cursor."""
    if token:
        text = text.replace(token, "…")
    text = _QUERY.sub(r"\1", text)
    text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return text[:_MOST_QUOTED] + ("…" if len(text) > _MOST_QUOTED else "")


def _passing(status: int, headers: Mapping[str, str], asked: Asked) -> PassingError:
    wait_s = _asked_wait_s(headers)
    if status != 429:
        return PassingError(f"{asked.endpoint} answers HTTP {status}", wait_s=wait_s)
    said = f" and asks for a pause of {wait_s:.0f} s" if wait_s else ""
    remedy = "Try again later" if asked.token else "Try again later; with a token in HF_TOKEN more is allowed"
    return PassingError(f"{asked.endpoint} has been asked too often (HTTP 429){said}", remedy, wait_s=wait_s)


def _gated(asked: Asked, said: str) -> HubError:
    problem = f"{asked.repository} is only for those who accepted its licence"
    if asked.token is None:
        return HubError(
            problem,
            f"Accept it at {_page(asked)}, make a token at {asked.endpoint}/settings/tokens, and set HF_TOKEN to it",
        )
    return HubError(
        f"{problem}, and the account of HF_TOKEN is not one of them{_colon(said)}",
        f"Accept it at {_page(asked)} with that account; some owners take days to answer",
    )


def _private_remedy(asked: Asked) -> str:
    if asked.token is None:
        return "Check the name; a private model looks the same without a token in HF_TOKEN"
    return "Check the name; a private model looks the same to an account that may not see it, as that of HF_TOKEN"


def _page(asked: Asked) -> str:
    return f"{asked.endpoint}/{asked.repository}"


def _colon(said: str) -> str:
    return f": {said.rstrip('.')}" if said else ""


def _no_connection(error: Exception, host: str) -> HubError | PassingError:
    why = ""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return HubError(
                f"{host} has no certificate that is trusted here: {cause.verify_message}",
                "Check the machine's clock and its certificates (SSL_CERT_FILE)",
            )
        if isinstance(cause, socket.gaierror):
            why = ": its name is not known here"
        elif isinstance(cause, OSError) and cause.strerror and not why:
            why = f": {cause.strerror}"
    return PassingError(f"no connection to {host}{why}", "Check the network, HF_ENDPOINT and the proxy's HTTPS_PROXY")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _asked_wait_s(headers: Mapping[str, str]) -> float | None:
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:  # it comes with every answer, and counts where nothing remains
        return float(limit.reset_in_seconds)
    return retry_after_s(headers.get("retry-after"))
