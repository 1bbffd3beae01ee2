"""How much memory a model on this machine would take: for applications that ask before they load."""

from __future__ import annotations

import os
from pathlib import Path

from zephyr_local.data import bundled_model_path
from zephyr_local.gguf_check import check_runnable
from zephyr_local.gguf_split import read_model
from zephyr_local.hardware import read_cpu
from zephyr_local.memory.estimate import MemoryEstimate
from zephyr_local.memory.estimate import estimate_memory as estimate_of_shape
from zephyr_local.memory.shape import shape_of
from zephyr_local.model_store.library import resolve
from zephyr_local.model_store.names import is_bundled_name
from zephyr_local.settings import EngineSettings, require_kind


def estimate_memory(
    model: str | os.PathLike[str] | None = None, settings: EngineSettings | None = None
) -> MemoryEstimate:
    """What the engine's process takes with a model on the CPU, from its header alone; nothing is loaded.

    ``model`` is what ``Zephyr`` takes. ``needed_bytes`` is what must be there for answers at full speed,
    ``resident_bytes`` what the system shows at most; both within a tenth of what was measured on Linux. Raises
    ModelNotFoundError and ModelFileError.
    """
    settings = EngineSettings() if settings is None else settings
    require_kind(settings, EngineSettings, "settings")
    gguf = read_model(bundled_model_path() if model is None else _file(model, settings))
    check_runnable(gguf)
    return estimate_of_shape(shape_of(gguf), settings, read_cpu().features)


def _file(model: str | os.PathLike[str], settings: EngineSettings) -> Path:
    if not isinstance(model, str):
        return Path(model)
    return bundled_model_path() if is_bundled_name(model) else resolve(model, settings).path
