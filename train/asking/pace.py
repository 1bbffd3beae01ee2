"""How fast one endpoint is asked: its limits of requests and tokens a minute, and its wish to be left alone a while."""

from __future__ import annotations

import threading
import time

_MINUTE_S = 60.0


class Pace:
    """Shared by the threads that ask one endpoint.

    Each request waits until those before it have had their share of the minute: requests are spread evenly, without
    bursts, which endpoints count by the second.
    """

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        self._per_request_s = _MINUTE_S / requests_per_minute if requests_per_minute else 0.0
        self._per_token_s = _MINUTE_S / tokens_per_minute if tokens_per_minute else 0.0
        self._lock = threading.Lock()
        self._next_at = 0.0
        self._quiet_until = 0.0

    def wait(self, tokens: int, stop: threading.Event) -> bool:
        """Wait for a request's turn; false where `stop` came first."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next_at)
            self._next_at = turn + max(self._per_request_s, tokens * self._per_token_s)
        while not stop.is_set():
            with self._lock:
                left = max(turn, self._quiet_until) - time.monotonic()
            if left <= 0:
                return True
            stop.wait(left)
        return False

    def leave_alone(self, seconds: float) -> None:
        """Send nothing for so long: the endpoint asked for it."""
        with self._lock:
            self._quiet_until = max(self._quiet_until, time.monotonic() + seconds)
