"""What kernel32 says of processors and memory.

The structures are those of Microsoft's winnt.h and sysinfoapi.h: SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX with
RelationProcessorCore, and MEMORYSTATUSEX.
"""

from __future__ import annotations

import contextlib
import ctypes
import struct
import sys
from dataclasses import dataclass
from typing import Final

from zephyr_local.hardware import features

_CORE: Final = 0  # RelationProcessorCore
_HEAD: Final = struct.Struct("<IIBB20xH")  # relationship, size, flags, efficiency class, groups
_MASK: Final = struct.Struct("<QH6x")  # a mask of processors and their group, where a pointer has 8 bytes
_MEMORY: Final = struct.Struct("<II7Q")


@dataclass(frozen=True, slots=True)
class Core:
    """A physical core."""

    efficiency: int
    """Its class: the higher, the faster; 0 where all are alike."""
    n_threads: int


def usable_cores_of(data: bytes, affinity: int | None) -> tuple[Core, ...]:
    """The cores in GetLogicalProcessorInformationEx's answer that have a processor of ``affinity`` (None: any)."""
    cores = []
    start = 0
    while start + _HEAD.size <= len(data):
        relationship, size, _flags, efficiency, n_groups = _HEAD.unpack_from(data, start)
        if size < _HEAD.size or start + size > len(data) or n_groups * _MASK.size > size - _HEAD.size:
            return ()
        if relationship == _CORE:
            n_threads = 0
            for index in range(n_groups):
                mask, group = _MASK.unpack_from(data, start + _HEAD.size + index * _MASK.size)
                if affinity is not None:
                    mask = mask & affinity if group == 0 else 0
                n_threads += mask.bit_count()
            if n_threads:
                cores.append(Core(efficiency, n_threads))
        start += size
    return tuple(cores)


def processor_information() -> bytes:
    """GetLogicalProcessorInformationEx's answer; empty where there is none that we read."""
    if sys.platform == "win32" and struct.calcsize("P") == 8:
        size = ctypes.c_ulong(0)
        ask = ctypes.windll.kernel32.GetLogicalProcessorInformationEx
        ask(_CORE, None, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(max(1, size.value))
        if ask(_CORE, buffer, ctypes.byref(size)):
            return buffer.raw[: size.value]
    return b""


def process_affinity() -> int | None:
    """The processors of group 0 that this process may use; None where it may use other groups."""
    if sys.platform == "win32":
        kernel = ctypes.windll.kernel32
        kernel.GetCurrentProcess.restype = ctypes.c_void_p
        kernel.GetProcessAffinityMask.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
        own, whole = ctypes.c_size_t(0), ctypes.c_size_t(0)
        told = kernel.GetProcessAffinityMask(kernel.GetCurrentProcess(), ctypes.byref(own), ctypes.byref(whole))
        if told and own.value and kernel.GetActiveProcessorGroupCount() == 1:
            return own.value
    return None


def cpu_name() -> str:
    """The name that the registry has of the first processor."""
    if sys.platform == "win32":
        import winreg

        place = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
        with contextlib.suppress(OSError), winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, place) as key:
            return str(winreg.QueryValueEx(key, "ProcessorNameString")[0]).strip()
    return ""


def cpu_features(architecture: str) -> frozenset[str]:
    """Those that IsProcessorFeaturePresent can tell."""
    if sys.platform == "win32":
        on_arm = architecture == "arm64"
        asked = features.WINDOWS_ARM if on_arm else features.WINDOWS
        found = {name for number, name in asked.items() if ctypes.windll.kernel32.IsProcessorFeaturePresent(number)}
        return frozenset(found | {"neon"} if on_arm else found)
    return frozenset()


def memory_status() -> tuple[int, int, int]:
    """Bytes of memory, of memory that is available, and of the page file; zeros where the system does not tell."""
    if sys.platform == "win32":
        buffer = ctypes.create_string_buffer(_MEMORY.size)
        struct.pack_into("<I", buffer, 0, _MEMORY.size)
        if ctypes.windll.kernel32.GlobalMemoryStatusEx(buffer):
            return parsed_memory_status(buffer.raw)
    return 0, 0, 0


def parsed_memory_status(data: bytes) -> tuple[int, int, int]:
    """What GlobalMemoryStatusEx wrote; its limit of commitment is memory and page file together."""
    _, _, total, available, commit_limit, *_ = _MEMORY.unpack(data)
    return total, available, max(0, commit_limit - total)
