"""The K-quants and Q8_0, encoded by our numba kernels: ggml's bytes, about ten times as fast.

Importing this needs numba (`pip install "zephyr-local[fast]"`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from zephyr_local.quantize.kernels.affine import encode_affine
from zephyr_local.quantize.kernels.compiled import BYTES_WRITTEN, FLOATS_READ, INTEGER, compile_kernel
from zephyr_local.quantize.kernels.ggml import require_encodable
from zephyr_local.quantize.kernels.q8_0 import encode_q8_0
from zephyr_local.quantize.kernels.self_check import EncodeKind
from zephyr_local.quantize.kernels.symmetric import encode_symmetric
from zephyr_local.quantize.kernels.thorough_affine import improve_affine
from zephyr_local.quantize.kernels.thorough_symmetric import improve_symmetric
from zephyr_local.quantize.types import TensorType

SIGNATURE: Final = (FLOATS_READ, FLOATS_READ, INTEGER, BYTES_WRITTEN)
"""Of every kernel: weights, importance or nothing, bits of a level, the bytes (of an improver: to be bettered)."""
_FAMILIES: Final[dict[TensorType, tuple[Callable[..., None], int]]] = {
    TensorType.Q4_K: (encode_affine, 4),
    TensorType.Q5_K: (encode_affine, 5),
    TensorType.Q2_K: (encode_affine, 2),
    TensorType.Q6_K: (encode_symmetric, 6),
    TensorType.Q3_K: (encode_symmetric, 3),
    TensorType.Q8_0: (encode_q8_0, 8),
}

_IMPROVERS: Final[dict[TensorType, Callable[..., None]]] = {
    TensorType.Q4_K: improve_affine,
    TensorType.Q5_K: improve_affine,
    TensorType.Q6_K: improve_symmetric,
}
_NO_IMPORTANCE: Final = np.empty(0, np.float32)


@functools.cache
def _kernel(function: Callable[..., None], folder: Path | None) -> Callable[..., None]:
    kernel: Callable[..., None] = compile_kernel(function, SIGNATURE, folder)
    return kernel


def is_compiled(plain: Collection[TensorType], thorough: Collection[TensorType], folder: Path | None) -> bool:
    """Whether the folder holds all kernels that these types need for encoding, and those for the thorough search."""
    functions = {_FAMILIES[kind][0] for kind in plain} | {_IMPROVERS[kind] for kind in thorough}
    if folder is None:
        return not functions
    try:
        return all(any(folder.rglob(f"*.{function.__name__}-*.nbc")) for function in functions)
    except OSError:  # on Python 3.11, where another process empties the folder meanwhile
        return False


def prepare(kind: TensorType, folder: Path | None) -> EncodeKind:
    """An encoder with ggml's bytes for one type, compiled or read from the folder."""
    function, bits = _FAMILIES[kind]
    kernel = _kernel(function, folder)

    def encode(rows: NDArray[np.float32], importance: NDArray[np.float32] | None) -> NDArray[np.uint8]:
        require_encodable(kind, rows, importance)
        encoded = np.empty(kind.size_bytes(rows.size), dtype=np.uint8)
        kernel(rows.reshape(-1), _NO_IMPORTANCE if importance is None else importance, bits, encoded)
        return encoded

    return encode


def prepare_thorough(kind: TensorType, plain: EncodeKind, folder: Path | None) -> EncodeKind:
    """An encoder that betters `plain`'s blocks, which are as ggml's, by the thorough search where it can."""
    bits = _FAMILIES[kind][1]
    improve = _kernel(_IMPROVERS[kind], folder)

    def encode(rows: NDArray[np.float32], importance: NDArray[np.float32] | None) -> NDArray[np.uint8]:
        encoded = plain(rows, importance)
        improve(rows.reshape(-1), _NO_IMPORTANCE if importance is None else importance, bits, encoded)
        return encoded

    return encode
