"""An OpenAI-compatible endpoint, one try at a time: ``POST {url}/chat/completions``.

What is wrong with a try is told apart by what to do about it: try again (TransientError), leave this question
(RefusedError), or stop altogether (a ZephyrError), for a wrong key does not get better.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlsplit

from zephyr_local.errors import InvalidInputError
from zephyr_local.retry_after import retry_after_s
from zephyr_local.train.asking.models import ModelSpec
from zephyr_local.train.asking.request import Answer, RefusedError, Request, TransientError

MOST_ANSWER_BYTES: Final = 16 << 20
CONNECT_TIMEOUT_S: Final = 20.0
_CHUNK_BYTES: Final = 4096
_MOST_QUOTED: Final = 300
_MOST_TOKENS: Final = 1_000_000_000
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")
_RETRIED: Final = frozenset({408, 409, 425, 429})
_NOT_BEGUN: Final = _RETRIED | {503, 529}
"""With these an endpoint turns a request away; with another error it, or one behind it, may have been at work."""
_FATAL: Final = frozenset({401, 402, 403, 404, 405})


class Endpoint:
    """Asks one model of one endpoint; any thread may use it."""

    def __init__(self, spec: ModelSpec) -> None:
        """Raises InvalidInputError where the package that it needs is missing, and OfflineError where nothing that is
        beyond this machine may be asked.
        """
        spec.require_reachable()
        try:
            import requests
            import urllib3
        except ImportError:
            raise InvalidInputError(
                "asking an endpoint needs requests, which is not installed", 'pip install "zephyr-local[judge]"'
            ) from None
        self.spec = spec
        self.identity = f"{spec.url.rstrip('/')}#{spec.model}"
        self._requests, self._urllib3 = requests, urllib3
        self._of_thread = threading.local()
        self._key = spec.api_key
        # Another machine's loopback is not ours: a proxy that HTTP_PROXY names has no business with this address.
        self._proxies = {"no_proxy": urlsplit(spec.url).hostname} if spec.is_on_this_machine else None

    def ask(self, request: Request) -> Answer:
        """One try. Raises TransientError, RefusedError and ZephyrError kinds."""
        deadline = time.monotonic() + self.spec.timeout_s
        exceptions, raw = self._requests.exceptions, self._urllib3.exceptions
        try:
            with self._session().post(
                f"{self.spec.url.rstrip('/')}/chat/completions",
                data=json.dumps(self._body(request)).encode(),
                headers=self._headers(request),
                auth=self._authorized,  # or requests takes what a .netrc has
                timeout=(min(CONNECT_TIMEOUT_S, self.spec.timeout_s), self.spec.timeout_s),
                stream=True,
                proxies=self._proxies,
                allow_redirects=False,
            ) as response:
                if response.status_code != 200:
                    raise self._problem(response, deadline)
                body = b"".join(_pieces(response, deadline))
                content_type = response.headers.get("Content-Type", "")
        except exceptions.ConnectTimeout:
            raise TransientError("no connection in time") from None
        except exceptions.SSLError as error:
            raise InvalidInputError(
                f"{self.spec.name} at {self.spec.url} has no certificate that is trusted here: {_short(str(error))}",
                "Check the url, or the machine's certificates (SSL_CERT_FILE)",
            ) from None
        except (exceptions.Timeout, raw.ReadTimeoutError, TimeoutError):
            raise TransientError("no whole answer in time", may_be_billed=True) from None
        except (raw.ProtocolError, raw.DecodeError):
            raise TransientError("an answer that was cut off", may_be_billed=True) from None
        except exceptions.ConnectionError as error:
            raise _connection_problem(error) from None
        except (exceptions.InvalidURL, exceptions.MissingSchema, exceptions.InvalidHeader) as error:
            raise InvalidInputError(
                f"{self.spec.url} cannot be asked: {type(error).__name__}", "Check the url and the proxy's"
            ) from None
        except (exceptions.RequestException, raw.HTTPError) as error:
            raise TransientError(f"no answer ({type(error).__name__})", may_be_billed=True) from None
        if content_type.startswith("text/event-stream") or (self.spec.stream and body.lstrip().startswith(b"data:")):
            return _answer(_joined_stream(body), request)
        return _answer(_json(body), request)

    def _session(self) -> Any:  # noqa: ANN401 — requests is imported late
        session = getattr(self._of_thread, "session", None)
        if session is None:
            session = self._of_thread.session = self._requests.Session()
        return session

    def _headers(self, request: Request) -> dict[str, str]:
        # The key lets an endpoint that knows it give an answer that was lost on its way again, unbilled.
        return {"Content-Type": "application/json", "Idempotency-Key": request.key(self.identity)}

    def _authorized(self, prepared: Any) -> Any:  # noqa: ANN401
        if self._key is not None:
            prepared.headers["Authorization"] = f"Bearer {self._key}"
        return prepared

    def _body(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.spec.model,
            "messages": [{"role": turn.role, "content": turn.content} for turn in request.messages],
            "temperature": request.temperature,
            "top_p": request.top_p,
            self.spec.max_tokens_key: request.max_tokens,
        }
        if self.spec.seed:
            body["seed"] = request.seed
        if self.spec.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return body

    def _problem(self, response: Any, deadline: float) -> Exception:  # noqa: ANN401
        status = response.status_code
        said = self._without_key(_said(response, deadline))
        if status == 429 and "insufficient_quota" in said:
            return InvalidInputError(
                f"{self.spec.name} says that its quota is used up: {said}",
                "Pay, or name another model; the answers that came are kept",
            )
        if status in _RETRIED or status >= 500:
            wait = retry_after_s(response.headers.get("Retry-After"))
            return TransientError(f"HTTP {status}", retry_after_s=wait, may_be_billed=status not in _NOT_BEGUN)
        if status in _FATAL or 300 <= status < 400:
            variable = self.spec.key_variable
            source = f"is read from {variable}" if variable else "wants api_key_env in a --models file"
            key = f" (the key {source})" if status in (401, 403) else ""
            return InvalidInputError(
                f"{self.spec.name} at {self.spec.url} answers HTTP {status}: {said}",
                f"Check the url, the model's name and the key{key}; answers that came are kept",
            )
        return RefusedError(f"HTTP {status}: {said}")

    def _without_key(self, text: str) -> str:
        """What an endpoint says may hold what it was sent."""
        return text.replace(self._key, "…") if self._key else text


def _pieces(response: Any, deadline: float) -> Iterator[bytes]:  # noqa: ANN401
    """The body as it comes, up to the deadline: a read's own timeout begins anew with every byte."""
    total = 0
    # Not iter_content, which waits until a whole chunk is there.
    while piece := response.raw.read1(_CHUNK_BYTES, decode_content=True):
        total += len(piece)
        if total > MOST_ANSWER_BYTES:
            raise TransientError(f"an answer of more than {MOST_ANSWER_BYTES >> 20} MiB", may_be_billed=True)
        if time.monotonic() > deadline:
            raise TimeoutError
        yield piece


def _connection_problem(error: Exception) -> TransientError:
    """requests wraps what urllib3 raised, which is what tells."""
    from urllib3.exceptions import NewConnectionError, ProxyError, ReadTimeoutError

    inner = error.args[0] if error.args else error
    reason = getattr(inner, "reason", inner)
    if isinstance(inner, ReadTimeoutError) or isinstance(reason, ReadTimeoutError):
        return TransientError("no whole answer in time", may_be_billed=True)
    # One that was never made cost nothing; one that was closed may have brought the question there.
    return TransientError("no connection", may_be_billed=not isinstance(reason, (NewConnectionError, ProxyError)))


def _said(response: Any, deadline: float) -> str:  # noqa: ANN401
    """What an error's body says, short and on one line."""
    try:
        body = b"".join(_pieces(response, deadline))
    except Exception:
        return "nothing more"
    text = body.decode(errors="replace")
    try:
        value: Any = json.loads(text)
        error = value.get("error", value)
        text = str(error.get("message", error) if isinstance(error, dict) else error)
        code = error.get("code") if isinstance(error, dict) else None
        text += f" ({code})" if code and str(code) not in text else ""
    except (ValueError, AttributeError):
        pass
    return _short(text) or "nothing more"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line[:_MOST_QUOTED] + ("…" if len(line) > _MOST_QUOTED else "")


def _json(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise TransientError("an answer that is not JSON", may_be_billed=True) from None
    if not isinstance(value, dict):
        raise TransientError("an answer that is no JSON object", may_be_billed=True)
    return value


def _joined_stream(body: bytes) -> dict[str, Any]:
    """Server-sent events put together as the one answer that they are. Without an end it was cut off."""
    texts: list[str] = []
    finish: str | None = None
    usage: object = None
    # Not str.splitlines, which also ends a line at characters that JSON may hold as they are.
    for line in _LINE_END.split(body):
        if not line.startswith(b"data:"):
            continue
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            break
        event = _json(data)
        if "error" in event:
            raise TransientError("an error in the stream", may_be_billed=True)
        usage = event.get("usage") or usage
        choices = event.get("choices")
        some = choices if isinstance(choices, list) else []
        choice = next((c for c in some if isinstance(c, dict) and c.get("index", 0) == 0), {})
        delta = choice.get("delta")
        if isinstance(delta, dict) and isinstance(delta.get("content"), str):
            texts.append(delta["content"])
        if isinstance(choice.get("finish_reason"), str):
            finish = choice["finish_reason"]
    if finish is None:
        raise TransientError("a stream that was cut off", may_be_billed=True)
    message = {"role": "assistant", "content": "".join(texts)}
    return {"choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": usage}


def _first_choice(choices: object) -> dict[str, Any]:
    """The choice that was asked for: index 0, wherever it stands. Two that differ are no answer."""
    found = [c for c in choices if isinstance(c, dict) and c.get("index", 0) == 0] if isinstance(choices, list) else []
    if not found or any(choice != found[0] for choice in found):
        raise TransientError("an answer without the one choice that was asked for", may_be_billed=True)
    return found[0]


def _answer(value: dict[str, Any], request: Request) -> Answer:
    """The answer, which may be empty: that too is an answer, and may be billed."""
    choice = _first_choice(value.get("choices"))
    message = choice.get("message")
    if not isinstance(message, dict):
        raise TransientError("an answer without a message", may_be_billed=True)
    content = message.get("content")
    text = _whole_characters(content) if isinstance(content, str) else ""
    finish = str(choice.get("finish_reason") or "stop")
    usage = value.get("usage")
    asked, answered = (_count(usage, name) for name in ("prompt_tokens", "completion_tokens"))
    if asked is not None and answered is not None:
        return Answer(text, finish, asked, answered)
    said = min(len(text.encode()), request.max_tokens)
    return Answer(text, finish, request.most_prompt_tokens, said, estimated=True)


def _whole_characters(text: str) -> str:
    """The text with halves of a surrogate pair joined, as from two events of a stream, or replaced."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _count(usage: object, name: str) -> int | None:
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if isinstance(count, int) and not isinstance(count, bool) and 0 <= count <= _MOST_TOKENS else None
