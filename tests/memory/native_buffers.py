"""What llama.cpp itself says that it would allocate, without allocating it."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from zephyr_local.engine.context import Context
from zephyr_local.engine.llama import C
from zephyr_local.settings import EngineSettings

_SIZE = re.compile(r"(\S+)\s+(model|compute|output|KV) buffer size\s*=\s*([\d.]+) MiB")


def _logged(records: list[logging.LogRecord]) -> dict[str, float]:
    found: dict[str, float] = {}
    for record in records:
        if match := _SIZE.search(record.getMessage()):
            name = f"{match[1]} {match[2]}"
            found[name] = found.get(name, 0.0) + float(match[3]) * 1024 * 1024
    return found


class Kept(logging.Handler):
    """Keeps llama.cpp's lines while it is entered."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def __enter__(self) -> Kept:
        logger = logging.getLogger("zephyr_local.native")
        self._level = logger.level
        logger.setLevel(logging.DEBUG)
        logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logger = logging.getLogger("zephyr_local.native")
        logger.setLevel(self._level)
        logger.removeHandler(self)

    def sizes(self) -> dict[str, float]:
        """Bytes by buffer, such as ``CPU_REPACK model``; to the hundredth of a MiB that is logged."""
        return _logged(self.records)


def reserved(path: Path, settings: EngineSettings) -> dict[str, float]:
    """Bytes of the buffers that a context would have."""
    parameters = C.llama_model_default_params()
    parameters.no_alloc, parameters.load_mode = True, 0  # LLAMA_LOAD_MODE_NONE, as it must be without allocation
    model = C.llama_model_load_from_file(os.fsencode(path), parameters)
    assert model
    try:
        with Kept() as kept:
            Context(model, settings, path.name).close()
    finally:
        C.llama_model_free(model)
    return kept.sizes()
