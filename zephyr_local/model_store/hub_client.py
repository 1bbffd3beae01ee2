"""huggingface_hub's HTTP client, asked so that it neither hangs nor prints, and the token stays with the hub.

The library gives the endpoint, the token, the session and a file's metadata. Its own listing of a repository has no
timeout and sleeps as long as a server says, and its downloads do not outlive their process (version 2.4: hf_api.py,
file_download.py), so requests are made on its session here.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit

from zephyr_local.errors import HubError
from zephyr_local.model_store.hub_problems import Asked, failure, refusal, shown_address
from zephyr_local.offline import require_online

if TYPE_CHECKING:
    import httpx2

_MOST_JSON_BYTES: Final = 64 << 20
_MOST_REDIRECTS: Final = 8
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_CHECK_ENDPOINT: Final = "Check HF_ENDPOINT"


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a hub says of a file when it is asked for; None where it says nothing."""

    commit: str | None
    etag: str | None
    """The digest that it is stored under: SHA-256 in LFS, else git's of the blob."""
    size_bytes: int | None
    address: str
    """Where it lies now; signed, so neither shown nor kept."""


class HubClient:
    """One hub, as the environment names it (HF_ENDPOINT, HF_TOKEN)."""

    def __init__(self, what: str) -> None:
        """``what`` needs the network ("pull zephyr-7b-beta").

        Raises OfflineError where it may not be asked, HubError where the library is missing or set up wrongly.
        """
        require_online(what)
        _load()
        from huggingface_hub import constants

        self._endpoint = constants.ENDPOINT.rstrip("/")
        try:
            _origin(self._endpoint)
        except ValueError:
            raise HubError(
                "HF_ENDPOINT is no address of a model hub", "Set it to one, such as https://huggingface.co, or unset it"
            ) from None
        self.endpoint = shown_address(self._endpoint) + urlsplit(self._endpoint).path
        """As it may be shown."""
        self._timeout_s = float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
        self._metadata_timeout_s = float(constants.HF_HUB_ETAG_TIMEOUT)

    def get_json(self, path: str, query: Mapping[str, str], asked: Asked) -> tuple[Any, dict[str, str]]:
        """What an address below the endpoint answers, and the query of the next page, empty after the last.

        Raises PassingError, and ZephyrError kinds.
        """
        with self.get(f"{self._endpoint}{path}" + (f"?{urlencode(query)}" if query else ""), {}, asked) as response:
            if response.status_code != 200:
                raise self.refusal(response, asked)
            body = bytearray()
            for piece in response.iter_bytes():
                body += piece
                if len(body) > _MOST_JSON_BYTES:
                    raise HubError(
                        f"{self.endpoint} answers with more than {_MOST_JSON_BYTES >> 20} MiB about {asked}",
                        _CHECK_ENDPOINT,
                    )
            following = response.links.get("next", {}).get("url", "")
        try:
            # The query alone: a mirror hands on the hub's own address, which the token is not meant for.
            return json.loads(body), dict(parse_qsl(urlsplit(following).query))
        except (ValueError, RecursionError):
            raise HubError(
                f"{self.endpoint} answers something other than JSON about {asked}",
                "Check HF_ENDPOINT, and whether the network wants a log-in first",
            ) from None

    def facts(self, asked: Asked) -> FileFacts:
        """What the hub says of a file now. Raises PassingError, and ZephyrError kinds."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        token = _token_in(self._headers())
        url = hf_hub_url(asked.repository, asked.path or "", revision=asked.revision, endpoint=self._endpoint)
        with self._translated(url, replace(asked, token=token)), self._valid_addresses():
            found = get_hf_file_metadata(
                url,
                token=token or False,
                timeout=self._metadata_timeout_s,
                library_name="zephyr-local",
                library_version=_own_version(),
            )
            return FileFacts(found.commit_hash, found.etag, found.size, self._redirected(url, found.location))

    @contextlib.contextmanager
    def get(self, url: str, headers: Mapping[str, str], asked: Asked) -> Iterator[httpx2.Response]:
        """The answer to a GET, to be read raw within the context; redirects are followed.

        The token is sent to the endpoint and, from the first address on that is not there, to none. What goes wrong
        while it is read is translated, too: PassingError, and ZephyrError kinds.
        """
        # Compressed, a range would be one of other bytes.
        sent = {**self._headers(), "Accept-Encoding": "identity", **headers}
        with self._translated(url, replace(asked, token=_token_in(sent))):
            response = self._open(url, sent)
            try:
                yield response
            finally:
                response.close()

    def refusal(self, response: httpx2.Response, asked: Asked) -> Exception:
        """The error that the hub's answer is."""
        return refusal(response.status_code, response.headers, replace(asked, token=_token_in(self._headers())))

    def is_own(self, url: str) -> bool:
        """Whether an address is at the endpoint: scheme, host and port."""
        return _origin(url) == _origin(self._endpoint)

    def _open(self, url: str, headers: dict[str, str]) -> httpx2.Response:
        from huggingface_hub import get_session

        session = get_session()
        for _ in range(_MOST_REDIRECTS):
            with self._valid_addresses():
                if not self.is_own(url):
                    headers.pop("authorization", None)
                request = session.build_request("GET", url, headers=headers, timeout=self._timeout_s)
                response = session.send(request, stream=True, follow_redirects=False)
                if not response.has_redirect_location:
                    return response
                response.close()
                url = self._redirected(url, response.headers["location"])
        raise HubError(f"{shown_address(url)} leads from one address to the next", _CHECK_ENDPOINT)

    def _redirected(self, url: str, location: str) -> str:
        target = urljoin(url, location)
        if _origin(url)[0] == "https" and _origin(target)[0] != "https":
            raise HubError(f"{shown_address(url)} leads to an address that is not https", _CHECK_ENDPOINT)
        return target

    def _headers(self) -> dict[str, str]:
        import httpx2
        from huggingface_hub.errors import DeviceCodeError, OIDCError
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        try:
            return build_hf_headers(library_name="zephyr-local", library_version=_own_version())
        # It may be exchanged or refreshed, or be read from a file.
        except (OIDCError, DeviceCodeError, httpx2.HTTPError, OSError, ValueError) as error:
            raise HubError(
                f"huggingface_hub finds no token for {self.endpoint} ({type(error).__name__})",
                "Set HF_TOKEN, unset HF_OIDC_RESOURCE, or log in again (hf auth login)",
            ) from None

    @contextlib.contextmanager
    def _translated(self, url: str, asked: Asked) -> Iterator[None]:
        import httpx2
        from huggingface_hub.errors import OfflineModeIsEnabled

        try:
            yield
        except (httpx2.HTTPError, httpx2.StreamError, OfflineModeIsEnabled) as error:
            raise failure(error, url, asked) from None

    @contextlib.contextmanager
    def _valid_addresses(self) -> Iterator[None]:
        """Around what parses addresses that servers gave."""
        import httpx2

        try:
            yield
        except UnicodeEncodeError:  # of a header's value; addresses are encoded
            raise HubError(
                "the token in HF_TOKEN has characters that no token has", "Set it again, or unset it"
            ) from None
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, ValueError):
            raise HubError(f"{self.endpoint} leads to an address that is none", _CHECK_ENDPOINT) from None


def _load() -> None:
    """Import the library, which reads the environment as it is imported."""
    # Telemetry, and bars that it would draw.
    for variable in ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(variable, "1")
    try:
        import httpx2  # noqa: F401
        from huggingface_hub import constants, get_hf_file_metadata, get_session  # noqa: F401
    except ImportError:
        raise HubError(
            "asking a model hub needs huggingface_hub, which is not installed or too old",
            'pip install "zephyr-local[hub]"',
        ) from None
    except ValueError:
        raise HubError(
            "a variable that huggingface_hub reads is not a number",
            "Check HF_HUB_DOWNLOAD_TIMEOUT and HF_HUB_ETAG_TIMEOUT (seconds)",
        ) from None
    if os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1":
        constants.HF_HUB_DISABLE_TELEMETRY = True  # another may have imported it before
    # It adds a handler that prints; without one, what an application set up for itself still gets its records.
    logger = logging.getLogger("huggingface_hub")
    for handler in [handler for handler in logger.handlers if type(handler) is logging.StreamHandler]:
        logger.removeHandler(handler)
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())


def _token_in(headers: Mapping[str, str]) -> str | None:
    return headers.get("authorization", "").removeprefix("Bearer ") or None


def _origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port; raises ValueError where it is no address to ask."""
    parts = urlsplit(url)
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        raise ValueError(url)
    return parts.scheme, parts.hostname, parts.port or _DEFAULT_PORTS[parts.scheme]


def _own_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("zephyr-local")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "0+unknown"
