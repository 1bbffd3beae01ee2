"""Asks llama.cpp what it was built for and what it can compute on: in a child, which may crash, hang or not start.

To ask a GPU for its memory starts its driver, and a library that was built for another CPU dies of its first
instruction. Neither may happen to an application, nor to the command that is to say what is wrong.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any, Final

from zephyr_local.child_process import start_child
from zephyr_local.engine.native_log import LOGGER
from zephyr_local.errors import EngineError
from zephyr_local.hardware import Device
from zephyr_local.hardware.features import of_build

TIMEOUT_S: Final = 20.0
"""Starting the drivers of several GPUs takes seconds; all else takes half of one."""

ROLE: Final = "probe"

_REAP_S: Final = 1.0
_MOST_SAID_CHARS: Final = 500
_MOST_WARNINGS: Final = 20
_LIFE_S: Final = 120  # of a child whose parent was killed
_REINSTALL_IT: Final = "Install it anew for this machine: pip install --no-cache-dir --force-reinstall llama-cpp-python"
_BUILT_FOR_ANOTHER: Final = (
    "This llama.cpp was built for another CPU. Build it here: "
    "pip install --no-cache-dir --force-reinstall --no-binary llama-cpp-python llama-cpp-python"
)


@dataclass(frozen=True, slots=True)
class Probed:
    """What llama.cpp says of itself in a new process."""

    devices: tuple[Device, ...]
    system_info: str
    """``llama_print_system_info``: backends and what they were built for."""
    llama_version: str
    binding_version: str
    """llama-cpp-python's."""
    supports_gpu_offload: bool
    """It was built with a backend for GPUs; whether there is one is told by ``devices``."""
    mmap: bool
    mlock: bool
    warnings: tuple[str, ...] = ()
    """Its last warnings and errors while it was asked, such as why a GPU could not be started."""

    @property
    def cpu_features(self) -> frozenset[str]:
        """The instructions that its CPU kernels use, in the words of :class:`zephyr_local.hardware.CPU`."""
        return of_build(self.system_info)


def probe(timeout_s: float = TIMEOUT_S) -> Probed:
    """Ask a child. Raises EngineError with the reason where it ends otherwise than with an answer."""
    process = start_child(ROLE)
    try:
        answer, said = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise EngineError(
            f"llama.cpp did not say within {timeout_s:g} seconds what it can compute on",
            "A GPU's driver may hang: see whether its own tool (nvidia-smi, rocm-smi) answers",
        ) from None
    finally:
        _end(process)
    if process.returncode:
        raise _failure(process.returncode, said)
    try:
        return _parsed(answer)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise EngineError(
            "what was started to ask llama.cpp answered with something else",
            "A frozen application calls zephyr_local.freeze_support() as its first line",
        ) from None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill it where it runs; one that hangs in a driver is left to the system."""
    if process.poll() is None:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_REAP_S)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _parsed(answer: bytes) -> Probed:
    fields: dict[str, Any] = json.loads(answer)
    devices = tuple(Device(**device) for device in fields.pop("devices"))
    return Probed(devices=devices, warnings=tuple(fields.pop("warnings")), **fields)


def _failure(code: int, said: bytes) -> EngineError:
    lines = said.decode("utf-8", "replace").strip().splitlines()
    last = f": {lines[-1].strip()[:_MOST_SAID_CHARS]}" if lines else ""
    if code > 0:
        return EngineError(f"llama.cpp cannot be loaded{last or f' (exit code {code})'}", _REINSTALL_IT)
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return EngineError(
        f"llama.cpp crashed with {name} when it was asked what it can compute on{last}",
        _BUILT_FOR_ANOTHER if name == "SIGILL" else _REINSTALL_IT,
    )


# --- the child ---


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage()[:_MOST_SAID_CHARS])


def main() -> None:
    """Write the answer to what is stdout now; returns never."""
    answers = os.dup(1)
    os.dup2(2, 1)  # where native code may print
    if sys.platform != "win32":
        signal.alarm(_LIFE_S)  # whose default ends the process, also inside a driver
    warnings = _Warnings()
    LOGGER.propagate = False
    LOGGER.addHandler(warnings)
    from zephyr_local.engine import llama

    found = Probed(
        devices=llama.device_facts(),
        system_info=llama.C.llama_print_system_info().decode("utf-8", "replace"),
        llama_version=llama.C.llama_version().decode("utf-8", "replace"),
        binding_version=llama.C.__version__,
        supports_gpu_offload=llama.C.llama_supports_gpu_offload(),
        mmap=llama.C.llama_supports_mmap(),
        mlock=llama.C.llama_supports_mlock(),
        warnings=tuple(warnings.lines[-_MOST_WARNINGS:]),
    )
    with os.fdopen(answers, "wb") as stream:
        stream.write(json.dumps(asdict(found)).encode())
    os._exit(0)  # drivers may hang or crash when a process ends in order
