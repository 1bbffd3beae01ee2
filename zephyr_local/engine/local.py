"""The engine in this process: the same service, its events passed as objects."""

from __future__ import annotations

import os
from collections.abc import Callable

from zephyr_local.engine import protocol
from zephyr_local.engine.service import Service
from zephyr_local.errors import EngineError

_inherited: list[LocalEngine] = []  # in a forked process: destructors would touch what is the parent's


class LocalEngine:
    """A service on threads of this process. ``on_event`` is called on them and must not wait."""

    lost: EngineError | None = None  # it ends with this process

    def __init__(self, on_event: Callable[[protocol.Event], None]) -> None:
        self._owner = os.getpid()
        self._service = Service(on_event)

    def send(self, request: protocol.Request) -> None:
        self._service.handle(request)

    def close(self) -> None:
        """Cancel what runs, free the model, and wait for it. Closing twice is fine."""
        if self._owner == os.getpid():
            self._service.close()

    def forget_after_fork(self) -> None:
        """Nothing can be freed in a forked process: the threads and the model are the parent's."""
        _inherited.append(self)
