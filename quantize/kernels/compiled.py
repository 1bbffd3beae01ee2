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
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import llvmlite
import numba
from llvmlite.binding import executionengine
from numba.core import types

FLOATS_READ = types.Array(types.float32, 1, "C", readonly=True)
BYTES_WRITTEN = types.Array(types.uint8, 1, "C")
INTEGER = types.int64

_SOURCES = Path(__file__).parent
_CACHE_DIR_IS_GLOBAL = threading.Lock()


def cache_folder() -> Path | None:
    """Where kernels of this version, compiled for this processor, are kept; None where there is no such place."""
    versions = f"{numba.__version__} {llvmlite.__version__} {sys.implementation.cache_tag} {cpu()}"
    digest = hashlib.sha256(versions.encode())
    try:
        sources = sorted(_SOURCES.glob("*.py"))
        for source in sources:
            digest.update(source.name.encode() + source.read_bytes())
        folder = _user_cache() / "zephyr-local" / "kernels" / digest.hexdigest()[:16]
    except (OSError, RuntimeError):  # a user without a home
        return None
    return folder if sources else None  # in a frozen application nothing tells one version from the next


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

    A folder that cannot be written costs the compilation every time, one that cannot be read is emptied. Raises
    whatever numba does of a function that it cannot compile.
    """
    if folder is not None:
        dispatcher = _dispatcher(function)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if _keep_in(folder, dispatcher):
                return _compiled(dispatcher, signature)
        except Exception:  # a damaged cache may raise anything when it is unpickled
            if dispatcher.overloads:  # compiled, and no room to keep it
                dispatcher.disable_compile()
                return dispatcher
            with contextlib.suppress(OSError):
                shutil.rmtree(folder)
    return _compiled(_dispatcher(function), signature)


def _compiled(dispatcher: Any, signature: Sequence[types.Type]) -> Any:
    with interrupts_kept():
        dispatcher.compile(tuple(signature))
    dispatcher.disable_compile()
    return dispatcher


@contextlib.contextmanager
def interrupts_kept() -> Iterator[None]:
    """Raises KeyboardInterrupt at the end where Ctrl+C comes while Python is called back from LLVM.

    There ctypes would print and forget it; and there it comes often, for LLVM compiles for seconds, and the signal
    waits for the next line of Python. Elsewhere it is raised at once. A handler of the application's own is left alone.
    """
    default = signal.default_int_handler
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not default:
        yield
        return
    kept = False

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal kept
        inner = frame
        while inner is not None:
            if inner.f_code.co_filename == executionengine.__file__ and inner.f_code.co_name.startswith("_raw_object"):
                kept = True
                return
            inner = inner.f_back
        default(number, frame)

    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, default)
    if kept:
        raise KeyboardInterrupt


def _dispatcher(function: Callable[..., None]) -> Any:
    # IEEE division: by zero gives infinity or NaN, as in C. No fastmath: the bytes depend on the order of operations.
    return numba.njit(nogil=True, error_model="numpy")(function)


def _keep_in(folder: Path, dispatcher: Any) -> bool:
    """Lets numba keep the code there; False where it would choose another place, as it does if it may not write."""
    with _CACHE_DIR_IS_GLOBAL:
        before = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = str(folder)
        try:
            dispatcher.enable_caching()
        finally:
            numba.config.CACHE_DIR = before
    return Path(dispatcher.stats.cache_path).is_relative_to(folder)
