"""The models on this machine, for an application's own chooser: where each lies, and whether it fits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from zephyr_local.data import bundled_model_path
from zephyr_local.engine.machine import machine_known
from zephyr_local.errors import ModelFileError, ModelNotFoundError, NotEnoughMemoryError
from zephyr_local.gguf_check import check_runnable
from zephyr_local.gguf_split import read_model
from zephyr_local.memory.plan import Machine, fitted, plan
from zephyr_local.memory.shape import shape_of
from zephyr_local.model_store.library import base_and_type, models_here
from zephyr_local.model_store.names import BUNDLED_NAME, type_in_name
from zephyr_local.settings import EngineSettings, require_kind


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model on this machine; ``path`` is what ``Zephyr`` takes."""

    name: str
    path: Path
    file_type: str | None
    """Such as ``Q4_K_M``, where its name tells it."""
    size_bytes: int
    place: str
    """Whose store it lies in: ``zephyr-local``, ``ollama``, ``lm-studio``…; ``bundled`` for zephyr-tiny."""
    needed_bytes: int | None
    """Of memory, the GPUs' too, for answers at full speed; None where it cannot be loaded."""
    missing_bytes: int | None
    """Of that, what this machine lacks just now; 0: it fits."""
    n_ctx: int | None
    """Tokens of context that it would be loaded with: fewer than usual, where that alone fits."""
    n_gpu_layers: int
    """How many of its layers would be on GPUs."""
    problem: str | None
    """Why it cannot be loaded, whatever the memory."""


def local_models(settings: EngineSettings | None = None) -> tuple[LocalModel, ...]:
    """All models here, zephyr-tiny first, other tools' among them, with what each takes at ``settings``.

    Reads the header of each file and asks llama.cpp, in a process of its own, for GPUs: call it on a thread that may
    wait a second. The network is not asked, and nothing is loaded.
    """
    settings = EngineSettings() if settings is None else settings
    require_kind(settings, EngineSettings, "settings")
    machine, bundled = machine_known(), bundled_model_path()
    told = [_told(BUNDLED_NAME, bundled, type_in_name(bundled.stem)[1], bundled.stat().st_size, "bundled")]
    told += [
        _told(model.name, model.path, base_and_type(model)[1], model.size_bytes, model.owner)
        for model in models_here().models
    ]
    return tuple(_with_needs(model, settings, machine) for model in told)


def _told(name: str, path: Path, file_type: str | None, size_bytes: int, place: str) -> LocalModel:
    return LocalModel(name, path, file_type, size_bytes, place, None, None, None, 0, None)


def _with_needs(model: LocalModel, settings: EngineSettings, machine: Machine) -> LocalModel:
    try:
        gguf = read_model(model.path)
        check_runnable(gguf)
    except (ModelFileError, ModelNotFoundError) as error:
        return replace(model, problem=str(error))
    shape, missing_bytes = shape_of(gguf), 0
    try:
        estimate = plan(shape, settings, machine, model.name).estimate
    except NotEnoughMemoryError:
        estimate, shortfall = fitted(shape, settings, machine)
        missing_bytes = 1 if shortfall is None else shortfall.missing_bytes
    needed_bytes = estimate.needed_bytes + sum(device.needed_bytes for device in estimate.devices if device.n_layers)
    return replace(
        model,
        needed_bytes=needed_bytes,
        missing_bytes=missing_bytes,
        n_ctx=estimate.n_ctx,
        n_gpu_layers=estimate.n_gpu_layers,
    )
