"""Which weights llama.cpp holds a second time, in an order that the CPU's kernels read faster.

Follows ``ggml/src/ggml-cpu/repack.cpp`` and ``amx/amx.cpp`` of llama.cpp 0c1e57098. Features have its names, and count
where the library was built with them: a build for another machine than this one may have fewer.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Final

# Type → the features that a kernel needs, and what the number of rows must be a multiple of.
_KERNELS: Final[dict[str, tuple[tuple[frozenset[str], int], ...]]] = {
    "Q4_0": (
        (frozenset({"avx2"}), 8),
        (frozenset({"neon", "i8mm"}), 4),
        (frozenset({"neon", "dotprod"}), 4),
    ),
    "Q4_K": (
        (frozenset({"avx2"}), 8),
        (frozenset({"neon", "i8mm"}), 8),
        (frozenset({"neon", "dotprod"}), 8),
    ),
    "Q2_K": ((frozenset({"avx512f"}), 8),),
    "Q5_K": ((frozenset({"neon", "i8mm"}), 8), (frozenset({"neon", "dotprod"}), 8)),
    "Q6_K": ((frozenset({"neon", "i8mm"}), 8), (frozenset({"neon", "dotprod"}), 8)),
    "IQ4_NL": ((frozenset({"avx2"}), 8), (frozenset({"neon", "dotprod"}), 4)),
    "Q8_0": ((frozenset({"neon", "i8mm"}), 4), (frozenset({"neon", "dotprod"}), 4)),
}
_AMX: Final = frozenset({"amx_int8", "avx512vnni"})
_AMX_TYPES: Final = ("Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")
_AMX_ROWS: Final = 32


def is_repacked(type_name: str, n_rows: int, features: Set[str]) -> bool:
    """Whether a matrix of this type is repacked, where a matrix multiplication is all that it is used for."""
    if type_name in _AMX_TYPES and features >= _AMX and n_rows % _AMX_ROWS == 0:
        return True
    return any(features >= needed and n_rows % multiple == 0 for needed, multiple in _KERNELS.get(type_name, ()))
