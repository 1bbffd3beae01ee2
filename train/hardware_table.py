"""GPUs that forecasts know: memory, and dense bfloat16 throughput as the maker's data sheet has it.

Sheets quote figures with 2:4 sparsity beside or instead of dense ones; these are dense, with float32 accumulation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from zephyr_local.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class GpuModel:
    """One kind of GPU."""

    memory_bytes: int
    """As the driver reports it, a little below the label's GB."""
    bf16_flops: float
    """Peak floating-point operations a second."""
    source: str


_GIB: Final = 1 << 30
GPU_MODELS: Final[Mapping[str, GpuModel]] = {
    "a100-40gb": GpuModel(39 * _GIB, 312e12, "NVIDIA A100 data sheet (2021): 312 TFLOP/s bfloat16, 40 GB"),
    "a100-80gb": GpuModel(79 * _GIB, 312e12, "NVIDIA A100 data sheet (2021): 312 TFLOP/s bfloat16, 80 GB"),
    "h100-80gb": GpuModel(79 * _GIB, 989e12, "NVIDIA H100 data sheet, SXM: 1,979 TFLOP/s bfloat16 sparse, 80 GB"),
    "h200": GpuModel(139 * _GIB, 989e12, "NVIDIA H200 data sheet, SXM: 1,979 TFLOP/s bfloat16 sparse, 141 GB"),
    "l4": GpuModel(22 * _GIB, 121e12, "NVIDIA L4 data sheet: 242 TFLOP/s bfloat16 sparse, 24 GB"),
    "rtx-3090": GpuModel(
        int(23.6 * _GIB),
        71e12,
        "NVIDIA GA102 white paper (2021), table 9: 71 TFLOP/s float16, float32 accumulation, 24 GB",
    ),
    "rtx-4090": GpuModel(
        int(23.6 * _GIB),
        165e12,
        "NVIDIA Ada white paper (2022), table 2: 165 TFLOP/s float16, float32 accumulation, 24 GB",
    ),
}


def gpu_model(name: str) -> GpuModel:
    """A GPU by its name in :data:`GPU_MODELS`. Raises InvalidInputError, naming those known."""
    try:
        return GPU_MODELS[name]
    except KeyError:
        raise InvalidInputError(f"no GPU {name!r} is known", f"Give one of {', '.join(GPU_MODELS)}") from None
