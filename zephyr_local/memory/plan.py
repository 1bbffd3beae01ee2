"""What fits: the settings that were not given, chosen, or how much is missing and what would fit."""

from __future__ import annotations

import bisect
from collections.abc import Set
from dataclasses import dataclass, replace
from typing import Final

from zephyr_local.errors import NotEnoughMemoryError
from zephyr_local.memory.estimate import Gpu, MemoryEstimate, estimate_memory
from zephyr_local.memory.shape import ModelShape
from zephyr_local.settings import DEFAULT_N_CTX, N_CTX_STEP, EngineSettings, KVType

_SMALLER_CONTEXTS: Final = (3072, 2048, 1536, 1024, 512)
"""That are tried where nobody asked for one."""
_LEAST_N_CTX: Final = 512


@dataclass(frozen=True, slots=True)
class Machine:
    """What a model is to fit."""

    available_bytes: int
    """Of the host's memory, what a new process may take."""
    features: Set[str]
    """Of the CPU, in llama.cpp's words."""
    gpus: tuple[Gpu, ...] = ()
    limited_by: str = ""
    """What limits ``available_bytes`` where it is not the machine itself."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Settings that fit."""

    settings: EngineSettings
    """Those that were given, with ``n_ctx`` and ``n_gpu_layers`` decided."""
    estimate: MemoryEstimate
    notices: tuple[str, ...]
    """Lines for the user where less was chosen than usual."""


@dataclass(frozen=True, slots=True)
class Shortfall:
    """What is missing, and where."""

    where: str
    needed_bytes: int
    available_bytes: int

    @property
    def missing_bytes(self) -> int:
        return self.needed_bytes - self.available_bytes

    def __str__(self) -> str:
        return (
            f"{readable(self.needed_bytes)} of {self.where}, and {readable(max(0, self.available_bytes))} are available"
            f": {readable(self.missing_bytes)} too little"
        )


def plan(model: ModelShape, settings: EngineSettings, machine: Machine, name: str) -> Plan:
    """Choose what ``settings`` leave open so that the model fits.

    As many layers go to GPUs as fit there; the context is 4096 tokens, or what the model was trained for, or less where
    that is what fits. What was given is kept. Raises NotEnoughMemoryError with the shortfall of the model called
    ``name`` and the nearest settings that fit; with ``settings.check_memory`` False the first choice is taken as it is.
    """
    usual = min(DEFAULT_N_CTX, model.n_ctx_train)
    contexts = [settings.n_ctx] if settings.n_ctx is not None else [usual, *_below(usual)]
    first: tuple[MemoryEstimate, Shortfall] | None = None
    for n_ctx in contexts:
        asked = replace(settings, n_ctx=n_ctx)
        if not settings.check_memory:
            estimate, missing = estimate_memory(model, asked, machine.features, machine.gpus), None
        else:
            estimate, missing = fitted(model, asked, machine)
        if missing is None:
            return _planned(model, asked, estimate, machine, usual if settings.n_ctx is None else n_ctx)
        first = first or (estimate, missing)
    assert first is not None
    estimate, missing = first
    n_layers = estimate.n_gpu_layers
    layers = f" and {n_layers} layer{'s' if n_layers > 1 else ''} on the GPU" if n_layers else ""
    raise NotEnoughMemoryError(
        f"{name} with a context of {estimate.n_ctx} tokens{layers} needs {missing}{limit_told(machine)}",
        _remedy(model, replace(settings, n_ctx=contexts[0]), machine),
    )


def fitted(model: ModelShape, settings: EngineSettings, machine: Machine) -> tuple[MemoryEstimate, Shortfall | None]:
    """What the model takes, and what is missing: with the layers on GPUs that were asked for, else with as many as fit.

    Where it fits neither so nor on the CPU alone, the estimate is the one that misses less.
    """
    if settings.n_gpu_layers is not None or not machine.gpus:
        estimate = estimate_memory(model, settings, machine.features, machine.gpus)
        return estimate, shortfall(estimate, machine)

    def on_gpus(n_layers: int) -> MemoryEstimate:
        return estimate_memory(model, replace(settings, n_gpu_layers=n_layers), machine.features, machine.gpus)

    def is_too_much(n_layers: int) -> bool:
        return _shortfall_of_gpus(on_gpus(n_layers)) is not None

    # A layer more is more on a GPU, and less on the host.
    n_layers = bisect.bisect_left(range(model.n_layer + 2), True, lo=1, key=is_too_much) - 1
    tried = [(estimate, shortfall(estimate, machine)) for estimate in map(on_gpus, dict.fromkeys((n_layers, 0)))]
    return min(tried, key=lambda one: one[1].missing_bytes if one[1] is not None else 0)


def shortfall(estimate: MemoryEstimate, machine: Machine) -> Shortfall | None:
    """What is missing for an estimate; None where it fits."""
    if (of_gpus := _shortfall_of_gpus(estimate)) is not None:
        return of_gpus
    devices = zip(estimate.devices, machine.gpus, strict=True)
    shared = sum(need.needed_bytes for need, gpu in devices if gpu.is_unified and need.n_layers)
    if estimate.needed_bytes + shared > machine.available_bytes:
        return Shortfall("memory", estimate.needed_bytes + shared, machine.available_bytes)
    return None


def nearest_that_fits(model: ModelShape, settings: EngineSettings, machine: Machine) -> EngineSettings | None:
    """The settings next to these that fit: a smaller cache, a shorter context, fewer layers on the GPU, or all."""
    for n_gpu_layers in dict.fromkeys((settings.n_gpu_layers, None)):  # None: as many as fit
        given = replace(settings, n_gpu_layers=n_gpu_layers)
        of_one_change = [given, *(replace(given, kv_type=kv_type) for kv_type in _smaller_caches(given))]
        for changed in of_one_change:
            if changed != settings and fitted(model, changed, machine)[1] is None:
                return changed
        for changed in (given, replace(given, kv_type="q8_0")):
            if (shorter := _longest_that_fits(model, changed, machine)) is not None:
                return shorter
    return None


def readable(size_bytes: int) -> str:
    """Bytes for people, in powers of ten as disks and files are told."""
    if size_bytes >= 10**9:
        return f"{size_bytes / 1e9:,.2f} GB"
    return f"{size_bytes / 1e6:,.0f} MB" if size_bytes >= 10**6 else f"{size_bytes / 1e3:,.0f} kB"


def limit_told(machine: Machine) -> str:
    """What limits the memory, in brackets behind a text; empty where it is the machine itself."""
    return f" ({machine.limited_by} is the limit)" if machine.limited_by else ""


def changes_told(found: EngineSettings, settings: EngineSettings) -> str:
    """What to give on the command line in place of ``settings`` to get the ``found`` ones."""
    changes = []
    if found.n_ctx != settings.n_ctx:
        changes.append(f"--n-ctx {found.n_ctx}")
    if found.kv_type != settings.kv_type:
        changes.append(f"--kv-type {found.kv_type}")
    if found.n_gpu_layers != settings.n_gpu_layers:
        changes.append("without --n-gpu-layers")
    return " ".join(changes)


def _shortfall_of_gpus(estimate: MemoryEstimate) -> Shortfall | None:
    for need in estimate.devices:
        if need.n_layers and need.needed_bytes > need.free_bytes:
            return Shortfall(f"memory of {need.name}", need.needed_bytes, need.free_bytes)
    return None


def _planned(
    model: ModelShape, settings: EngineSettings, estimate: MemoryEstimate, machine: Machine, usual_n_ctx: int
) -> Plan:
    notices = []
    if settings.n_ctx is not None and settings.n_ctx < usual_n_ctx:
        notices.append(
            f"the context is {estimate.n_ctx} tokens and not {usual_n_ctx}, for which "
            f"{readable(machine.available_bytes)} of memory are too little"
        )
    if machine.gpus and settings.n_gpu_layers is None and estimate.n_gpu_layers <= model.n_layer:
        notices.append(
            f"{estimate.n_gpu_layers} of {model.n_layer + 1} layers fit the GPU; the CPU computes the others, slower"
        )
    # A GPU that is not there is no reason to tell llama.cpp 0, which means that one that is there is not used.
    n_gpu_layers = estimate.n_gpu_layers if machine.gpus else settings.n_gpu_layers
    return Plan(replace(settings, n_gpu_layers=n_gpu_layers), estimate, tuple(notices))


def _below(n_ctx: int) -> list[int]:
    return [smaller for smaller in _SMALLER_CONTEXTS if smaller < n_ctx]


def _smaller_caches(settings: EngineSettings) -> tuple[KVType, ...]:
    kinds: dict[str, tuple[KVType, ...]] = {"f32": ("f16", "q8_0"), "f16": ("q8_0",)}
    return kinds.get(settings.kv_type, ())


def _longest_that_fits(model: ModelShape, settings: EngineSettings, machine: Machine) -> EngineSettings | None:
    """The longest context below that of ``settings`` that fits, in steps that people would take."""
    n_ctx = settings.n_ctx or DEFAULT_N_CTX
    step = N_CTX_STEP if n_ctx <= DEFAULT_N_CTX else 4 * N_CTX_STEP

    def is_too_long(steps: int) -> bool:
        return fitted(model, replace(settings, n_ctx=steps * step), machine)[1] is not None

    # Memory only grows with the context. The first step is of no use to a chat where it is the last that fits.
    steps = bisect.bisect_left(range(-(-n_ctx // step)), True, lo=1, key=is_too_long) - 1
    return replace(settings, n_ctx=steps * step) if steps * step >= _LEAST_N_CTX else None


def _remedy(model: ModelShape, settings: EngineSettings, machine: Machine) -> str:
    found = nearest_that_fits(model, settings, machine)
    if found is None:
        return "No setting makes it fit: use a smaller type or model (zephyr-local models fit NAME), or free memory"
    changes = changes_told(found, settings)
    return f"It fits with {changes}; or use a smaller type (zephyr-local models fit NAME), or free memory"
