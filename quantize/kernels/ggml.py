"""ggml's own encoders and decoders, called in the library that llama-cpp-python ships.

Only `libggml-base` is loaded, by ctypes: none of llama.cpp, and no package import, so this costs nothing at start.
ctypes releases the GIL during a call, which lets several threads encode at once.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zephyr_local.errors import EngineError
from zephyr_local.quantize.types import TensorType

_REMEDY = "Install llama-cpp-python 0.3.36 or later into this Python"


def _library_path() -> Path:
    if sys.platform == "win32":
        names = ["ggml-base.dll", "libggml-base.dll"]
    elif sys.platform == "darwin":
        names = ["libggml-base.dylib", "libggml-base.so"]
    else:
        names = ["libggml-base.so"]
    folders = []
    if chosen := os.environ.get("LLAMA_CPP_LIB_PATH"):  # what llama_cpp itself heeds
        folders.append(Path(chosen))
    spec = importlib.util.find_spec("llama_cpp")
    if spec is not None and spec.submodule_search_locations:
        folders += [Path(location) / "lib" for location in spec.submodule_search_locations]
    for folder in folders:
        for name in names:
            if (folder / name).is_file():
                return folder / name
    raise EngineError(
        f"{names[0]} is not where llama-cpp-python keeps its libraries ({folders or 'not installed'})", _REMEDY
    )


_DECODED_BY_GGML = [kind for kind in TensorType if kind.is_quantized]


def _decoder_name(kind: TensorType) -> str:
    return f"dequantize_row_q{kind.name[1:]}"


@functools.cache
def _library() -> ctypes.CDLL:
    path = _library_path()
    try:
        library = ctypes.CDLL(str(path))
        library.ggml_quantize_chunk.argtypes = [
            ctypes.c_int,  # type
            ctypes.c_void_p,  # const float * src
            ctypes.c_void_p,  # void * dst
            ctypes.c_int64,  # first weight
            ctypes.c_int64,  # rows
            ctypes.c_int64,  # weights in a row
            ctypes.c_void_p,  # importance, one float a column, or NULL
        ]
        library.ggml_quantize_chunk.restype = ctypes.c_size_t
        for kind in _DECODED_BY_GGML:
            decoder = getattr(library, _decoder_name(kind))  # const block * src, float * dst, weights
            decoder.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
            decoder.restype = None
        library.ggml_validate_row_data.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
        library.ggml_validate_row_data.restype = ctypes.c_bool
        library.ggml_blck_size.argtypes = [ctypes.c_int]
        library.ggml_blck_size.restype = ctypes.c_int64
        library.ggml_type_size.argtypes = [ctypes.c_int]
        library.ggml_type_size.restype = ctypes.c_size_t
    except (OSError, AttributeError) as error:
        raise EngineError(f"{path} cannot be used ({error})", _REMEDY) from error
    for kind in TensorType:  # a library with other blocks would write past our buffers
        if (library.ggml_blck_size(kind.ggml_id), library.ggml_type_size(kind.ggml_id)) != kind.value[1:]:
            raise EngineError(f"{path} lays {kind.name} out otherwise than llama.cpp 0c1e57098", _REMEDY)
    return library


def prepare() -> None:
    """Loads the library, so that what is wrong with it is known before any work is done."""
    _library()


def library_identity() -> str:
    """A text that changes when another build of the library takes this one's place."""
    path = _library_path()
    status = path.stat()
    return f"{path} {status.st_size} {status.st_mtime_ns}"


def require_encodable(kind: TensorType, rows: NDArray[np.float32], importance: NDArray[np.float32] | None) -> None:
    """Asserts what native code relies on: on anything else it would end the process, or read past an array."""
    n_columns = rows.shape[1]
    assert rows.dtype == np.float32, rows.dtype
    assert rows.flags.c_contiguous
    assert kind.fits(n_columns), (kind, n_columns)
    if importance is not None:
        assert importance.dtype == np.float32, importance.dtype
        assert importance.shape == (n_columns,), (importance.shape, n_columns)
        assert importance.flags.c_contiguous


def encode(
    kind: TensorType, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """Encodes float32 rows, shape (n_rows, n_columns); returns the bytes. The columns must be whole blocks.

    `importance`, shape (n_columns,), finite and not negative, weighs each column's errors against the others'.
    """
    require_encodable(kind, rows, importance)
    n_rows, n_columns = rows.shape
    encoded = np.empty(kind.size_bytes(rows.size), dtype=np.uint8)
    weights = None if importance is None else importance.ctypes.data
    written = _library().ggml_quantize_chunk(
        kind.ggml_id, rows.ctypes.data, encoded.ctypes.data, 0, n_rows, n_columns, weights
    )
    assert written == encoded.nbytes, (kind, written, encoded.nbytes)
    return encoded


def decode(kind: TensorType, encoded: NDArray[np.uint8], n_columns: int) -> NDArray[np.float32]:
    """The weights of whole rows of `n_columns`, shape (n_rows, n_columns), as llama.cpp reads them; always a copy."""
    assert encoded.dtype == np.uint8, encoded.dtype
    assert encoded.flags.c_contiguous
    assert encoded.size % kind.size_bytes(n_columns) == 0, (kind, encoded.size, n_columns)
    if kind is TensorType.F32:
        weights = encoded.view("<f4").astype(np.float32)
    elif kind is TensorType.F16:
        weights = encoded.view("<f2").astype(np.float32)
    elif kind is TensorType.BF16:
        weights = (encoded.view("<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        weights = np.empty(encoded.size // kind.block_bytes * kind.block_weights, dtype=np.float32)
        getattr(_library(), _decoder_name(kind))(encoded.ctypes.data, weights.ctypes.data, weights.size)
    return weights.reshape(-1, n_columns)


_SCALE_OFFSETS = {  # bytes into a block at which its float16 scales stand (ggml/src/ggml-common.h)
    TensorType.Q4_0: (0,),
    TensorType.Q4_1: (0, 2),
    TensorType.Q5_0: (0,),
    TensorType.Q5_1: (0, 2),
    TensorType.Q8_0: (0,),
    TensorType.Q2_K: (80, 82),
    TensorType.Q3_K: (108,),
    TensorType.Q4_K: (0, 2),
    TensorType.Q5_K: (0, 2),
    TensorType.Q6_K: (208,),
    TensorType.F16: (0,),
    TensorType.BF16: (0,),
}


def is_valid(kind: TensorType, encoded: NDArray[np.uint8]) -> bool:
    """Whether no scale in the encoded bytes is NaN or infinite.

    ggml's own check has the last word; since it prints what it finds to stderr, ours comes first.
    """
    exponent = 0x7F80 if kind is TensorType.BF16 else 0x7C00
    halves = encoded.view("<u2").reshape(-1, kind.block_bytes // 2)
    for offset in _SCALE_OFFSETS.get(kind, ()):
        if ((halves[:, offset // 2] & exponent) == exponent).any():
            return False
    return bool(_library().ggml_validate_row_data(kind.ggml_id, encoded.ctypes.data, encoded.nbytes))
