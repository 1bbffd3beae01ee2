"""What this machine has: cores and their instructions, memory, disk, GPUs; found without native code of ours.

On Linux it is read from /proc and /sys, whose root every function takes, so that a tree of files can stand for a
machine. On macOS sysctl and vm_stat are asked, on Windows the functions of kernel32.
"""

from __future__ import annotations

from zephyr_local.hardware.cpu import CPU, read_cpu, recommended_threads, usable_cores
from zephyr_local.hardware.disk import Disk, disk_of
from zephyr_local.hardware.gpus import Device, DeviceKind, Gpu, Vendor, find_gpus
from zephyr_local.hardware.memory import Memory, MemoryLimit, read_memory

__all__ = [
    "CPU",
    "Device",
    "DeviceKind",
    "Disk",
    "Gpu",
    "Memory",
    "MemoryLimit",
    "Vendor",
    "disk_of",
    "find_gpus",
    "read_cpu",
    "read_memory",
    "recommended_threads",
    "usable_cores",
]
