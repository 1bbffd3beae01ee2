"""GPUs: those that llama.cpp computes on, and those that are here whether it does or not."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from zephyr_local.hardware.tree import ROOT, number_in, text_of

DeviceKind = Literal["cpu", "gpu", "integrated-gpu", "accelerator"]
Vendor = Literal["nvidia", "amd", "apple"]

_ASK_S: Final = 5.0
_REAP_S: Final = 0.5
_MOST_SAID_CHARS: Final = 200
_FIELDS: Final = ("name", "memory.total", "driver_version", "compute_cap")  # the last is of 2021: older ones refuse it
_WSL_FOLDER: Final = "usr/lib/wsl/lib"  # which is not always in PATH
_NVIDIA_PCI: Final = "0x10de"
_AMD_PCI: Final = "0x1002"
_DISPLAY_CLASS: Final = "0x03"
_DRIVER: Final = re.compile(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b")
_CARD: Final = re.compile(r"card\d+")


@dataclass(frozen=True, slots=True)
class Device:
    """What llama.cpp can compute on, as it says itself."""

    name: str
    """``CPU``, ``CUDA0``, ``MTL0``."""
    description: str
    kind: DeviceKind
    total_bytes: int
    free_bytes: int
    """For the CPU of Linux and macOS llama.cpp says all of it."""
    backend: str
    """``CPU``, ``CUDA``, ``ROCm``, ``Vulkan``, ``MTL``, ``BLAS``."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that the system knows of, without asking llama.cpp."""

    vendor: Vendor
    name: str = ""
    """Empty: not known."""
    memory_bytes: int = 0
    """0: not known. An Apple GPU has the machine's memory."""
    driver: str = ""
    """The driver's version; empty: none was found, or it does not tell."""
    compute_capability: str = ""
    """CUDA's, such as ``8.9``."""
    trouble: str = ""
    """Why no program can use it as things are; empty: nothing is known to be wrong."""


def find_gpus(root: Path = ROOT, search_path: str | None = None) -> tuple[Gpu, ...]:
    """The GPUs of NVIDIA, AMD and Apple; ``search_path`` is where nvidia-smi is looked for (None: PATH)."""
    if root == ROOT and sys.platform == "darwin":
        return _apple()
    return (*_nvidia(root, search_path), *_amd(root))


def _apple() -> tuple[Gpu, ...]:
    from zephyr_local.hardware.macos import ask_sysctl

    sysctl = ask_sysctl()
    if platform.machine() != "arm64" and sysctl.get("hw.optional.arm64") != "1":
        return ()  # llama.cpp's Metal is for Apple's own GPUs
    size = sysctl.get("hw.memsize", "")
    return (Gpu("apple", sysctl.get("machdep.cpu.brand_string", ""), int(size) if size.isdecimal() else 0),)


# --- NVIDIA ---


def _nvidia(root: Path, search_path: str | None) -> tuple[Gpu, ...]:
    proc = root / "proc/driver/nvidia"
    loaded = _DRIVER.search(text_of(proc / "version"))
    said = ""
    if (program := _nvidia_smi(root, search_path)) is not None:
        found, said = _ask_nvidia_smi(program)
        if found:
            return found
    driver = loaded[1] if loaded else ""
    if driver and not any((root / "dev").glob("nvidia[0-9]*")):
        said = "its driver is loaded, but no /dev/nvidia0 is here: a container has to be given the GPU"
    elif not driver:
        said = f"no driver of NVIDIA's is loaded{f' (nvidia-smi: {said})' if said else ''}"
    names = [_model_in(path) for path in sorted(proc.glob("gpus/*/information"))]
    if not names:
        names = [""] * max(_n_cards(root, _NVIDIA_PCI), bool(driver))
    return tuple(Gpu("nvidia", name, driver=driver, trouble=said) for name in names)


def _nvidia_smi(root: Path, search_path: str | None) -> str | None:
    import shutil  # this and subprocess: some milliseconds, which an engine need not wait for

    folders = [search_path if search_path is not None else os.environ.get("PATH", ""), str(root / _WSL_FOLDER)]
    return shutil.which("nvidia-smi", path=os.pathsep.join(filter(None, folders)))


def _ask_nvidia_smi(program: str) -> tuple[tuple[Gpu, ...], str]:
    """The GPUs that nvidia-smi names; where there are none, what it says instead."""
    said = ""
    for fields in (_FIELDS, _FIELDS[:3]):
        query = [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
        code, output = _run(query)
        if code == 0 and (found := [gpu for line in output.splitlines() if (gpu := _gpu_of(line, fields))]):
            return tuple(found), ""
        said = said or output.partition("\n")[0].strip()[:_MOST_SAID_CHARS]
        if "compute_cap" not in output:
            break
    return (), said


def _gpu_of(line: str, fields: tuple[str, ...]) -> Gpu | None:
    values = [value.strip() for value in line.rsplit(",", len(fields) - 1)]  # from the right: a name may have a comma
    if len(values) != len(fields):
        return None
    name, memory, driver, *capability = values
    return Gpu(
        "nvidia",
        name,
        int(memory) << 20 if memory.isdecimal() else 0,  # MiB; "[N/A]" where the GPU has the machine's memory
        driver,
        capability[0] if capability and re.fullmatch(r"\d+\.\d+", capability[0]) else "",
    )


def _run(command: list[str]) -> tuple[int | None, str]:
    """The exit code and both outputs; None where it did not end in time."""
    import subprocess

    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except OSError as error:
        return None, f"{command[0]} cannot be run: {error.strerror or error}"
    with process.stdout if process.stdout is not None else contextlib.nullcontext():
        try:
            output, _ = process.communicate(timeout=_ASK_S)
        except subprocess.TimeoutExpired:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # a driver that hangs may hold it for ever
                process.wait(_REAP_S)
            return None, f"it did not answer in {_ASK_S:.0f} seconds"
    return process.returncode, output.decode("utf-8", "replace")


def _model_in(path: Path) -> str:
    for line in text_of(path).splitlines():
        name, _, value = line.partition(":")
        if name == "Model":
            return value.strip()
    return ""


def _n_cards(root: Path, vendor: str) -> int:
    """The PCI devices of a vendor that are for graphics or, as in servers, for computing in 3D."""
    folders = (root / "sys/bus/pci/devices").glob("*")
    return sum(
        text_of(folder / "vendor") == vendor and text_of(folder / "class").startswith(_DISPLAY_CLASS)
        for folder in folders
    )


# --- AMD ---


def _amd(root: Path) -> tuple[Gpu, ...]:
    trouble = "" if (root / "dev/kfd").exists() else "its driver for computing is not loaded (there is no /dev/kfd)"
    found = []
    for folder in sorted((root / "sys/class/drm").glob("card*")):
        device = folder / "device"
        if _CARD.fullmatch(folder.name) and text_of(device / "vendor") == _AMD_PCI:
            memory = number_in(device / "mem_info_vram_total") or 0
            found.append(Gpu("amd", text_of(device / "product_name"), memory, trouble=trouble))
    return tuple(found)
