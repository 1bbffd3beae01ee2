"""`zephyr-local doctor`: what is installed, what the machine has, and what stands between the two.

``--json`` writes ``{"status": …, "checks": {NAME: {"status", "text", "remedies", …}}}``; each check adds what it found:

- ``versions``: ``zephyr_local``, ``llama_cpp_python``, ``python``, ``executable``, ``system``
- ``cpu``: the fields of :class:`~zephyr_local.hardware.CPU`, and ``recommended_threads``
- ``memory``: the fields of :class:`~zephyr_local.hardware.Memory`
- ``disk``: ``data_folder`` and the fields of :class:`~zephyr_local.hardware.Disk`; ``store_folder``, where models are
  pulled to, and ``store_free_bytes``
- ``engine``: the fields of :class:`~zephyr_local.engine.probe.Probed` without ``devices``; ``kernels`` for the
  instructions that it was built for, ``unused_features`` for those of the CPU that it was not
- ``devices``: ``devices``, a list with the fields of :class:`~zephyr_local.hardware.Device`
- ``gpus``: ``gpus``, a list with the fields of :class:`~zephyr_local.hardware.Gpu`, and ``is_used`` of each
- ``extras``: ``extras``, name → ``is_installed`` and ``missing_packages``
- ``network``: ``is_offline`` and ``variables``, those that say so; ``configuration``,
  ``catalogue`` (the user's models.toml) and ``registry`` (models.sqlite3): ``path`` and ``exists``
- ``hub``: ``hf_token_is_set`` and ``hf_endpoint`` (null: the hub's own). A check that failed has none of its keys.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, TypeVar

import click

from zephyr_local import __version__
from zephyr_local.cli.doctor_check import Check, Status
from zephyr_local.cli.doctor_settings import (
    catalogue_check,
    configuration_check,
    hub_check,
    network_check,
    registry_check,
)
from zephyr_local.configuration import configuration_path
from zephyr_local.engine.probe import Probed, probe
from zephyr_local.errors import OutputError, ZephyrError
from zephyr_local.hardware import CPU, Gpu, Memory, Vendor, disk_of, find_gpus, read_cpu, read_memory
from zephyr_local.hardware.features import COMPARED
from zephyr_local.model_store.catalogue import catalogue_path
from zephyr_local.model_store.library import store_folder
from zephyr_local.model_store.registry import registry_path
from zephyr_local.repl.screen import visible
from zephyr_local.user_folders import data_folder

EXTRAS: Final = {
    "fast": "quantize several times faster",
    "hub": "pull models by name",
    "judge": "have answers judged",
    "train": "train models",
}
"""The extras that are looked for → what for."""

_PATIENCE_S: Final = 10.0
_ROOM_BYTES: Final = 5_000_000_000  # a 7B model at Q4_K_M and a chat's files
_WORTH_A_REBUILD: Final = frozenset({"avx", "avx2", "fma", "f16c", "avx512f", "neon", "dotprod"})
_TOLD_BY_EVERY_SYSTEM: Final = frozenset({"avx", "avx2", "avx512f", "dotprod"})
_BACKENDS: Final[dict[Vendor, set[str]]] = {
    "nvidia": {"CUDA", "Vulkan"},
    "amd": {"ROCm", "Vulkan"},
    "apple": {"MTL", "Metal"},
}
_VENDORS: Final[dict[Vendor, str]] = {"nvidia": "NVIDIA", "amd": "AMD", "apple": "Apple"}
_BUILDS: Final[dict[Vendor, dict[str, str]]] = {
    "nvidia": {"With the CUDA toolkit": "-DGGML_CUDA=on"},
    "amd": {"With ROCm": "-DGGML_HIP=on", "With the Vulkan SDK": "-DGGML_VULKAN=on"},
    "apple": {"With the Xcode command line tools": "-DGGML_METAL=on"},
}
_WHEELS: Final[dict[Vendor, dict[str, str]]] = {
    "nvidia": {"Without a compiler, CUDA 13.0 (other versions have folders of their own)": "cu130"},
    "amd": {},
    "apple": {"Without a compiler": "metal"},
}
_INDEX: Final = "https://abetlen.github.io/llama-cpp-python/whl"
_EXTRA: Final = re.compile(r"""extra\s*==\s*['"]([\w-]+)['"]""")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Asked:
    """What takes long to answer, asked while the rest is checked."""

    probed: Future[Probed]
    gpus: Future[tuple[Gpu, ...]]


@click.command("doctor", short_help="Show what is installed, what this machine has, and what is wrong.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout; sizes in bytes.")
def command(as_json: bool) -> None:
    """Show versions, CPU, memory, disk, GPUs, extras and settings, and what to do where something is amiss.

    Each line is `ok`, a `note` (it works, and could be better) or a `problem`; with one, the exit code is 1. Nothing
    is changed, and the network is not asked.
    """
    with ThreadPoolExecutor(2) as pool:
        asked = Asked(pool.submit(probe, _PATIENCE_S), pool.submit(find_gpus))
        checks = {name: _made(check, asked) for name, check in _CHECKS.items()}
    statuses = {check.status for check in checks.values()}
    status: Status = "problem" if "problem" in statuses else "note" if "note" in statuses else "ok"
    if as_json:
        click.echo(json.dumps({"status": status, "checks": {name: _as_json(check) for name, check in checks.items()}}))
    else:
        _show(checks)
    if status == "problem":
        raise click.exceptions.Exit(1)


def _made(check: Callable[[Asked], Check], asked: Asked) -> Check:
    try:
        return check(asked)
    except ZephyrError as error:
        return Check("problem", error.problem, remedies=(error.remedy,))
    except Exception as error:  # one check's trouble must not hide the others
        return Check("problem", f"could not be checked: {type(error).__name__}: {error}")


def _as_json(check: Check) -> dict[str, object]:
    return {"status": check.status, "text": check.text, "remedies": list(check.remedies), **check.facts}


def _show(checks: Mapping[str, Check]) -> None:
    width = max(map(len, checks))
    indent = " " * (len("problem") + width + 4)
    for name, check in checks.items():
        first, *others = visible(check.text).split("\n")
        click.echo(f"{check.status:7}  {name:{width}}  {first}")
        for line in others:
            click.echo(indent + line)
        for remedy in check.remedies:
            click.echo(f"{indent}→ {visible(remedy)}")


# --- the checks ---


def versions_check() -> Check:
    """What is installed."""
    binding = _version("llama-cpp-python")
    python, system = platform.python_version(), f"{platform.system()} {platform.release()}"
    facts = {"zephyr_local": __version__, "llama_cpp_python": binding, "python": python, "system": system}
    text = f"zephyr-local {__version__}, llama-cpp-python {binding or 'not installed'}, {system}"
    text += f"\nPython {python}, {sys.executable}"
    return Check("ok", text, facts | {"executable": sys.executable})


def cpu_check(cpu: CPU) -> Check:
    """What there is to say of a CPU."""
    cores = _counted(cpu.physical_cores, "core")
    if cpu.performance_cores < cpu.physical_cores:
        cores += f", {cpu.performance_cores} of them fast"
    if not cpu.knows_topology:
        cores = f"{cpu.logical_cores} logical cores (which of them share one is not told)"
    elif cpu.logical_cores > cpu.physical_cores:
        cores += f", {cpu.logical_cores} logical"
    if cpu.limited_by == "cgroup":
        cores += f" (a cgroup allows {cpu.quota_cores:g} of the machine's {cpu.machine_cores})"
    elif cpu.limited_by == "affinity":
        cores += f" (this process may not use all {cpu.machine_cores} of the machine)"
    name = f"{cpu.name} ({cpu.architecture})" if cpu.name else cpu.architecture
    threads = cpu.recommended_threads
    text = f"{name}: {cores}; {_counted(threads, 'thread')} recommended"
    text += f"\n{' '.join(sorted(cpu.features)) or 'its instructions are not told'}"
    facts = asdict(cpu) | {"features": sorted(cpu.features), "recommended_threads": threads}
    if cpu.is_translated:
        text += "\nPython runs as x86-64 on an Apple CPU, at a part of its speed"
        return Check("note", text, facts, ("Install a Python for arm64, and zephyr-local into it",))
    return Check("ok", text, facts)


def memory_check(memory: Memory) -> Check:
    """What there is to say of the memory."""
    facts = asdict(memory)
    if not memory.total_bytes:
        return Check("note", "the system does not tell how much there is", facts)
    text = f"{_size(memory.available_bytes)} of {_size(memory.total_bytes)} available"
    text += f", {_size(memory.swap_bytes)} swap" if memory.swap_bytes else ", no swap"
    if memory.limited_by == "cgroup":
        text += f" (a cgroup's limit; the machine has {_size(memory.machine_bytes)})"
    elif memory.limited_by:
        flag = "-v" if memory.limited_by == "RLIMIT_AS" else "-d"
        text += f" (limited by ulimit {flag}; the machine has {_size(memory.machine_bytes)})"
        return Check("note", text, facts, (f"Raise it where a model does not load: ulimit {flag} unlimited",))
    return Check("ok", text, facts)


def disk_check(folder: Path, store: Path | None = None) -> Check:
    """What there is to say of the disk that the user's data is, or would be, on, and of the store's, if it is apart."""
    if folder.parts[:1] == ("~",):  # what platformdirs answers where no home folder is known
        raise OutputError("no home folder is known for chats and models", "Set the environment variable HOME")
    store = folder if store is None else store
    disk, stores = disk_of(folder), disk_of(store)
    facts = asdict(disk) | {"folder": str(disk.folder), "data_folder": str(folder)}
    facts |= {"store_folder": str(store), "store_free_bytes": stores.free_bytes}
    text = f"{_size(disk.free_bytes)} of {_size(disk.total_bytes)} free for {folder}"
    if not store.is_relative_to(folder):
        text += f"\n{_size(stores.free_bytes)} of {_size(stores.total_bytes)} free for models in {store}"
    for place in (disk, stores):
        if not place.is_writable:
            problem = f"{text}, but {place.folder} cannot be written to"
            return Check("problem", problem, facts, ("Check its permissions",))
    if stores.free_bytes < _ROOM_BYTES:
        return Check("note", f"{text}: too little for a 7B model", facts, ("Make room, or keep models elsewhere",))
    return Check("ok", text, facts)


def engine_check(probed: Probed, cpu: CPU) -> Check:
    """What llama.cpp was built for, against what the CPU has."""
    built = probed.cpu_features
    known = bool(cpu.features) and "CPU : " in probed.system_info
    unused = sorted((cpu.features & COMPARED) - built) if known else []
    lacking = sorted((built - cpu.features) & _TOLD_BY_EVERY_SYSTEM) if known else []
    facts = asdict(probed) | {"kernels": sorted(built), "unused_features": unused}
    del facts["devices"]
    text = f"llama.cpp {probed.llama_version}, {'with' if probed.supports_gpu_offload else 'without'} GPU support"
    text += f"\nkernels for {' '.join(sorted(built)) or 'no instructions that it tells of'}"
    for warning in probed.warnings:
        text += f"\nit said: {warning}"
    if lacking:
        text += f"\nbut the CPU has no {', '.join(lacking)}: it will crash"
        return Check("problem", text, facts, (_rebuilt(),))
    if unused:
        text += f"\nnot used of the CPU: {' '.join(unused)}"
        if not _WORTH_A_REBUILD.isdisjoint(unused):
            return Check("note", text, facts, (_rebuilt(),))
    return Check("ok", text, facts)


def devices_check(probed: Probed | None) -> Check:
    """What llama.cpp can compute on."""
    if probed is None:
        return Check("note", "llama.cpp could not be asked")
    lines = []
    for device in probed.devices:
        free = f"{_size(device.free_bytes)} of " if device.kind != "cpu" else ""  # there it takes all to be free
        lines.append(f"{device.name}: {device.description} ({device.kind}), {free}{_size(device.total_bytes)}")
    facts = {"devices": [asdict(device) for device in probed.devices]}
    return Check("ok", "\n".join(lines), facts) if lines else Check("problem", "it has none", facts, (_rebuilt(),))


def gpus_check(gpus: tuple[Gpu, ...], probed: Probed | None) -> Check:
    """The GPUs that are here, used or not, and what to install for those that are not."""
    backends = {device.backend for device in probed.devices if device.kind.endswith("gpu")} if probed else set()
    used = {gpu.vendor for gpu in gpus if backends & _BACKENDS[gpu.vendor]}
    facts = {"gpus": [asdict(gpu) | {"is_used": gpu.vendor in used} for gpu in gpus]}
    if not gpus:
        return Check("ok", "none of NVIDIA, AMD or Apple was found", facts)
    lines, remedies = [], list[str]()
    for gpu in gpus:
        how = "used" if gpu.vendor in used else "not used" if probed else "llama.cpp could not be asked"
        memory = f", {_size(gpu.memory_bytes)}" if gpu.memory_bytes else ""
        driver = f", driver {gpu.driver}" if gpu.driver else ""
        trouble = f" ({gpu.trouble})" if gpu.trouble and gpu.vendor not in used else ""
        lines.append(f"{gpu.name or f'a GPU of {_VENDORS[gpu.vendor]}'}{memory}{driver}: {how}{trouble}")
        if probed and gpu.vendor not in used:
            remedies += [remedy for remedy in _to_use(gpu, probed) if remedy not in remedies]
    all_used = all(gpu.vendor in used for gpu in gpus)
    return Check("ok" if all_used else "note", "\n".join(lines), facts, (*remedies,))


def _to_use(gpu: Gpu, probed: Probed) -> tuple[str, ...]:
    """What to do so that llama.cpp uses a GPU of this vendor."""
    first = (f"Install {_VENDORS[gpu.vendor]}'s driver, or pass the GPU into the container",) if gpu.trouble else ()
    if probed.supports_gpu_offload:
        hidden = gpu.vendor == "nvidia" and "CUDA_VISIBLE_DEVICES" in os.environ
        said = "CUDA_VISIBLE_DEVICES is set, and names none of them" if hidden else "See what llama.cpp said above"
        return first or (said,)
    builds = tuple(f"{needed}: {_rebuilt(option)}" for needed, option in _BUILDS[gpu.vendor].items())
    wheels = tuple(f"{needed}: {_wheel(folder)}" for needed, folder in _WHEELS[gpu.vendor].items())
    return *first, *builds, *wheels


def extras_check(requirements: Sequence[str]) -> Check:
    """Which extras are complete; ``requirements`` are those of zephyr-local's metadata."""
    packages: dict[str, list[str]] = {extra: [] for extra in EXTRAS}
    for requirement in requirements:
        name, extra = _NAME.match(requirement), _EXTRA.search(requirement)
        if name is not None and extra is not None and extra[1] in packages:
            packages[extra[1]].append(name[0])
    if not all(packages.values()):
        return Check("note", "not known: this zephyr-local was not installed by pip, or by another version of it")
    missing = {extra: [name for name in names if _version(name) is None] for extra, names in packages.items()}
    facts = {extra: {"is_installed": not names, "missing_packages": names} for extra, names in missing.items()}
    said = [f"{extra} {'lacks ' + ', '.join(names) if names else 'installed'}" for extra, names in missing.items()]
    remedies = [f'To {EXTRAS[extra]}: pip install "zephyr-local[{extra}]"' for extra, names in missing.items() if names]
    return Check("note" if remedies else "ok", "; ".join(said), {"extras": facts}, (*remedies,))


_CHECKS: Final[Mapping[str, Callable[[Asked], Check]]] = {
    "versions": lambda _: versions_check(),
    "cpu": lambda _: cpu_check(read_cpu()),
    "memory": lambda _: memory_check(read_memory()),
    "disk": lambda _: disk_check(data_folder(), store_folder()),
    "engine": lambda asked: engine_check(asked.probed.result(), read_cpu()),
    "devices": lambda asked: devices_check(_answer(asked.probed)),
    "gpus": lambda asked: gpus_check(asked.gpus.result(), _answer(asked.probed)),
    "extras": lambda _: extras_check(_requirements()),
    "network": lambda _: network_check(),
    "hub": lambda _: hub_check(),
    "configuration": lambda _: configuration_check(configuration_path()),
    "catalogue": lambda _: catalogue_check(catalogue_path()),
    "registry": lambda _: registry_check(registry_path()),
}


# --- what they share ---


def _answer(future: Future[_Answer]) -> _Answer | None:
    """What was asked for, None where that failed, as another check says."""
    try:
        return future.result()
    except Exception:
        return None


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:,.1f} GB" if size_bytes >= 10**9 else f"{size_bytes / 1e6:,.0f} MB"


def _counted(number: int, word: str) -> str:
    return f"{number} {word}" + ("s" if number != 1 else "")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _requirements() -> list[str]:
    """What pip knows that zephyr-local wants."""
    try:
        return importlib.metadata.requires("zephyr-local") or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _binding() -> str:
    """The llama-cpp-python that this zephyr-local wants, as pip takes it."""
    return next((text for text in _requirements() if text.startswith("llama-cpp-python")), "llama-cpp-python")


def _rebuilt(option: str = "-DGGML_NATIVE=on") -> str:
    return f'CMAKE_ARGS="{option}" pip install --no-cache-dir --force-reinstall "{_binding()}"'


def _wheel(folder: str) -> str:
    return (
        f'pip install --force-reinstall "{_binding()}" --only-binary llama-cpp-python '
        f"--extra-index-url {_INDEX}/{folder}"
    )
