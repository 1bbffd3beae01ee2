"""An OpenAI-compatible endpoint on loopback that answers as a test says, and fails as a test says."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

Messages = list[dict[str, str]]


class Fault(Enum):
    """What goes wrong with one request."""

    BUSY = "429"
    BUSY_RETRY_AFTER = "429 with Retry-After in seconds"
    BUSY_RETRY_AT = "429 with Retry-After as a date"
    ERROR = "500"
    OVERLOADED = "529"
    CUT = "the body ends before its length"
    DROPPED = "the connection is closed without an answer"
    SLOW = "a byte now and then, for longer than anybody waits"
    GARBAGE = "200, and no JSON"
    NOT_AN_ANSWER = "200, and JSON of another kind"
    EMPTY = "an empty answer"
    DUPLICATE = "the choice comes twice"
    CONFLICT = "two different choices"
    ORDER = "another choice stands first"
    LATE = "it is answered after those that came later"
    NO_USAGE = "no counts"
    BAD_REQUEST = "400"
    FORBIDDEN = "401"
    QUOTA = "429 that does not pass"
    REDIRECT = "302"
    HUGE = "more than anybody wants"


HARMLESS = frozenset({Fault.DUPLICATE, Fault.ORDER, Fault.LATE, Fault.NO_USAGE})
"""Those that an answer can be read in all the same."""


@dataclass
class Served:
    """One request and what became of it."""

    key: str
    body: dict[str, Any]
    headers: dict[str, str]
    began_at: float
    fault: Fault | None = None
    answered_at: float | None = None
    """When the whole answer had been written."""


@dataclass
class StandIn:
    """The server; a context manager."""

    answer: Callable[[Messages], str]
    faults: Callable[[int], Fault | None] = lambda _number: None
    """Of the request that came as the so manieth, from 0."""
    fault_of: Callable[[Messages], Fault | None] = lambda _messages: None
    """Of what is asked."""
    delay_s: Callable[[int], float] = lambda _number: 0.0
    retry_after_s: float = 1.0
    ascii_only: bool = True
    """Whether a stream's JSON escapes all other characters."""
    served: list[Served] = field(default_factory=list)
    most_at_once: int = 0

    def __enter__(self) -> Self:
        stand_in = self

        class Handler(_Handler):
            owner = stand_in

        self._lock = threading.Lock()
        self._now = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def answered(self) -> Counter[str]:
        """How often each request was answered in full."""
        return Counter(one.key for one in self.served if one.answered_at is not None)

    def begin(self, key: str, body: dict[str, Any], headers: dict[str, str]) -> tuple[int, Served]:
        with self._lock:
            number = len(self.served)
            fault = self.faults(number) or self.fault_of(body["messages"])
            served = Served(key, body, headers, time.monotonic(), fault)
            self.served.append(served)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        return number, served

    def end(self) -> None:
        with self._lock:
            self._now -= 1


class _Handler(BaseHTTPRequestHandler):
    owner: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 — its name in the base
        """Tests print nothing."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        number, served = self.owner.begin(self.headers.get("Idempotency-Key", ""), body, dict(self.headers))
        try:
            if self.path != "/v1/chat/completions":
                self._send(404, {"error": {"message": "no such path"}})
                return
            time.sleep(self.owner.delay_s(number))
            self._serve(served)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            self.owner.end()

    def _serve(self, served: Served) -> None:
        fault = served.fault
        plain = {Fault.BUSY: 429, Fault.ERROR: 500, Fault.OVERLOADED: 529, Fault.BAD_REQUEST: 400, Fault.FORBIDDEN: 401}
        if fault in plain:
            self._send(plain[fault], {"error": {"message": f"as asked: {plain[fault]}", "type": "fault"}})
        elif fault is Fault.QUOTA:
            self._send(429, {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}})
        elif fault in (Fault.BUSY_RETRY_AFTER, Fault.BUSY_RETRY_AT):
            wait = self.owner.retry_after_s
            when = self.date_time_string(int(time.time() + wait)) if fault is Fault.BUSY_RETRY_AT else str(wait)
            self._send(429, {"error": {"message": "slow down"}}, {"Retry-After": when})
        elif fault is Fault.REDIRECT:
            self._send(302, {}, {"Location": "http://127.0.0.1:9/v1/chat/completions"})
        elif fault is Fault.DROPPED:
            self.close_connection = True
        elif fault is Fault.GARBAGE:
            self._write(200, b"<html>Bad gateway</html>", "text/html")
        elif fault is Fault.NOT_AN_ANSWER:
            self._send(200, {"object": "list", "data": []})
        elif fault is Fault.HUGE:
            self._write(200, b'{"choices": "' + b"x" * (17 << 20), "application/json")
        else:
            if fault is Fault.LATE:
                time.sleep(0.15)
            text = "" if fault is Fault.EMPTY else self.owner.answer(served.body["messages"])
            if served.body.get("stream"):
                self._stream(served, text)
            else:
                self._whole(served, text)

    def _whole(self, served: Served, text: str) -> None:
        fault = served.fault
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        other = {"index": 1, "message": {"role": "assistant", "content": "another"}, "finish_reason": "stop"}
        choices: Sequence[object] = [choice]
        if fault is Fault.DUPLICATE:
            choices = [choice, choice]
        elif fault is Fault.CONFLICT:
            choices = [choice, {**other, "index": 0}]
        elif fault is Fault.ORDER:
            choices = [other, choice]
        usage = {"prompt_tokens": _tokens(served.body["messages"]), "completion_tokens": len(text.split())}
        value = {"id": "stand-in", "choices": choices, **({} if fault is Fault.NO_USAGE else {"usage": usage})}
        data = json.dumps(value).encode()
        if fault in (Fault.CUT, Fault.SLOW):
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.close_connection = True
            if fault is Fault.CUT:
                self.wfile.write(data[: len(data) // 2])
                return
            for byte in data[:-1]:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.2)
            return
        self._write(200, data, "application/json")
        if fault not in (Fault.EMPTY, Fault.CONFLICT):
            served.answered_at = time.monotonic()

    def _stream(self, served: Served, text: str) -> None:
        fault = served.fault
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.close_connection = True
        half = len(text) // 2
        pieces = [text[:half], text[half:]]
        events = [{"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]} for piece in pieces]
        if fault is Fault.ORDER:
            events.insert(1, {"choices": [{"index": 1, "delta": {"content": "another"}, "finish_reason": None}]})
        for event in events:
            data = json.dumps(event, ensure_ascii=self.owner.ascii_only)
            self.wfile.write(b"data: " + data.encode() + b"\n\n")
            self.wfile.flush()
            if fault is Fault.CUT:
                return
            while fault is Fault.SLOW:
                self.wfile.write(b": waiting\n\n")
                self.wfile.flush()
                time.sleep(0.2)
        end: dict[str, Any] = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        usage = {"prompt_tokens": _tokens(served.body["messages"]), "completion_tokens": len(text.split())}
        self.wfile.write(b"data: " + json.dumps(end).encode() + b"\n\n")
        self.wfile.write(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\ndata: [DONE]\n\n")
        self.wfile.flush()
        if fault is not Fault.EMPTY:
            served.answered_at = time.monotonic()

    def _send(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
        self._write(status, json.dumps(value).encode(), "application/json", headers)

    def _write(self, status: int, data: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()


def _tokens(messages: Messages) -> int:
    return sum(len(message["content"].split()) for message in messages)
