"""Compiles kernels with numba and keeps the machine code between runs.

numba's own cache knows a function's file, not the files of what that function calls. Ours is a folder for each state of
all kernel sources, each version of numba and each kind of processor. The code is run as it is read, so the folder is
the user's own, as numba's would be.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core import types

FLOATS_READ = types.Array(types.float32, 1, "C", readonly=True)
BYTES_WRITTEN = types.Array(types.uint8, 1, "C")
INTEGER = types.int64


def cache_folder() -> Path | None:
    """Where kernels of this version, compiled for this processor, are kept; None where there is no such place."""
    versions = f"{numba.__version__} {llvmlite.__version__} {sys.implementation.cache_tag} {cpu()}"
    digest = hashlib.sha256(versions.encode())
    try:
        for source in sorted(Path(__file__).parent.glob("*.py")):
            digest.update(source.name.encode() + source.read_bytes())
        return _user_cache() / "zephyr-local" / "kernels" / digest.hexdigest()[:16]
    except (OSError, RuntimeError):  # a frozen application without sources; a user without a home
        return None


def _user_cache() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    chosen = Path(os.environ.get("XDG_CACHE_HOME") or "")
    return chosen if chosen.is_absolute() else Path.home() / ".cache"


def cpu() -> str:
    """The processor that the code is compiled for, with its features."""
    codegen = numba.core.registry.cpu_target.target_context.codegen()
    return " ".join(map(str, codegen.magic_tuple()))


def compile_kernel(function: Callable[..., None], signature: Sequence[types.Type], folder: Path | None) -> Any:
    """The function for these argument types, from the folder or compiled into it; calls release the GIL.

    A folder that cannot be written costs the compilation every time, one that cannot be read is emptied.
    """
    if folder is not None:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return _compile(function, signature, folder)
        except Exception:  # a damaged cache may raise anything when it is unpickled
            with contextlib.suppress(OSError):
                shutil.rmtree(folder)
    return _compile(function, signature, None)


def _compile(function: Callable[..., None], signature: Sequence[types.Type], folder: Path | None) -> Any:
    # IEEE division: by zero gives infinity or NaN, as in C. No fastmath: the bytes depend on the order of operations.
    dispatcher = numba.njit(nogil=True, error_model="numpy")(function)
    if folder is not None:
        before = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = str(folder)
        try:
            dispatcher.enable_caching()
        finally:
            numba.config.CACHE_DIR = before
    dispatcher.compile(tuple(signature))
    dispatcher.disable_compile()
    return dispatcher
