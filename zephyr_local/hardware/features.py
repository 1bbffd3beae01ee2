"""The instructions of a CPU that llama.cpp has kernels for, in llama.cpp's words, from the words of each system."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_LINUX: Final = {  # arch/x86/include/asm/cpufeatures.h, arch/arm64/kernel/cpuinfo.c
    "pni": "sse3",
    "ssse3": "ssse3",
    "sse4_2": "sse42",
    "avx": "avx",
    "avx_vnni": "avx_vnni",
    "avx2": "avx2",
    "f16c": "f16c",
    "fma": "fma",
    "bmi2": "bmi2",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512cd": "avx512cd",
    "avx512dq": "avx512dq",
    "avx512vl": "avx512vl",
    "avx512vbmi": "avx512vbmi",
    "avx512_vnni": "avx512vnni",
    "avx512_bf16": "avx512bf16",
    "amx_tile": "amx_tile",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
    "neon": "neon",
    "asimd": "neon",
    "asimdhp": "fp16",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "sve2": "sve2",
    "sme": "sme",
    "sme2": "sme2",
}

_MACOS: Final = {  # machdep.cpu.features and .leaf7_features of an Intel Mac
    "SSE3": "sse3",
    "SSSE3": "ssse3",
    "SSE4.2": "sse42",
    "AVX1.0": "avx",
    "F16C": "f16c",
    "FMA": "fma",
    "AVX2": "avx2",
    "BMI2": "bmi2",
    "AVX512F": "avx512f",
    "AVX512BW": "avx512bw",
    "AVX512CD": "avx512cd",
    "AVX512DQ": "avx512dq",
    "AVX512VL": "avx512vl",
    "AVX512VBMI": "avx512vbmi",
    "AVX512VNNI": "avx512vnni",
}

_APPLE_ARM: Final = {  # hw.optional.arm.
    "FEAT_FP16": "fp16",
    "FEAT_DotProd": "dotprod",
    "FEAT_I8MM": "i8mm",
    "FEAT_BF16": "bf16",
    "FEAT_SME": "sme",
    "FEAT_SME2": "sme2",
}

WINDOWS: Final = {  # PF_… of winnt.h, for IsProcessorFeaturePresent; it tells no more of x86
    13: "sse3",
    36: "ssse3",
    38: "sse42",
    39: "avx",
    40: "avx2",
    41: "avx512f",
    60: "bmi2",
}
WINDOWS_ARM: Final = {43: "dotprod", 46: "sve", 47: "sve2", 66: "i8mm", 67: "fp16", 68: "bf16", 70: "sme", 71: "sme2"}

_BUILT: Final = {  # ggml-cpu.cpp, ggml_backend_cpu_get_features
    "SSE3": "sse3",
    "SSSE3": "ssse3",
    "AVX": "avx",
    "AVX_VNNI": "avx_vnni",
    "AVX2": "avx2",
    "F16C": "f16c",
    "FMA": "fma",
    "BMI2": "bmi2",
    "AVX512": "avx512f",
    "AVX512_VBMI": "avx512vbmi",
    "AVX512_VNNI": "avx512vnni",
    "AVX512_BF16": "avx512bf16",
    "AMX_INT8": "amx_int8",
    "NEON": "neon",
    "FP16_VA": "fp16",
    "MATMUL_INT8": "i8mm",
    "SVE": "sve",
    "DOTPROD": "dotprod",
    "SME": "sme",
    "SME2": "sme2",
}

COMPARED: Final = frozenset(_BUILT.values())
"""Those that llama.cpp tells of its own build."""


def of_linux(words: str) -> frozenset[str]:
    """From the line ``flags`` or ``Features`` of /proc/cpuinfo."""
    return frozenset(_LINUX[word] for word in words.split() if word in _LINUX)


def of_macos(sysctl: Mapping[str, str]) -> frozenset[str]:
    """From sysctl's ``hw`` and ``machdep.cpu``."""
    words = f"{sysctl.get('machdep.cpu.features', '')} {sysctl.get('machdep.cpu.leaf7_features', '')}".split()
    found = {_MACOS[word] for word in words if word in _MACOS}
    found |= {ours for name, ours in _APPLE_ARM.items() if sysctl.get(f"hw.optional.arm.{name}") == "1"}
    if "1" in (sysctl.get("hw.optional.AdvSIMD"), sysctl.get("hw.optional.neon")):
        found.add("neon")
    return frozenset(found)


def of_build(system_info: str) -> frozenset[str]:
    """From ``llama_print_system_info``, such as ``CPU : AVX2 = 1 | OPENMP = 1 |``: what the kernels were built for."""
    found = set()
    for part in system_info.replace(" : ", " | ").split(" | "):
        name, _, value = part.partition(" = ")
        if name.strip() in _BUILT and value.strip() not in ("", "0"):
            found.add(_BUILT[name.strip()])
    return frozenset(found)
