"""A GGUF file that is whole or absent: temporary name, read-back, atomic rename."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from zephyr_local.errors import OutputError
from zephyr_local.folder_sync import sync_folder
from zephyr_local.gguf_check import check_runnable
from zephyr_local.gguf_file import GGUFFile, read_gguf
from zephyr_local.gguf_split import join
from zephyr_local.quantize.encode import WrittenRange
from zephyr_local.quantize.gguf_header import TensorPlace
from zephyr_local.quantize.leftovers import WRITTEN, KeptFile, beside, bring_back, forget, identity_of, lock_written

_READ_BYTES = 4 << 20
_NO_ROOM = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT} if hasattr(errno, "EDQUOT") else {errno.ENOSPC, errno.EFBIG}


def require_writable_target(target: Path, *, overwrite: bool) -> None:
    """Refuses a target that cannot become the output, as far as that can be known before writing."""
    if target.is_dir():
        raise OutputError(f"{target} is a folder", "Give the name of a file, such as model-Q4_K_M.gguf")
    if os.path.lexists(target) and not overwrite:
        raise OutputError(f"{target} exists already", "Give another name, or --overwrite to replace it")
    folder = target.parent
    if not folder.is_dir():
        raise OutputError(f"the folder {folder} does not exist", "Create it, or write somewhere else")
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):  # it is also listed, for what a killed run left there
        raise OutputError(
            f"the folder {folder} cannot be read and written to", "Change its permissions, or write somewhere else"
        )


def require_free_space(folder: Path, needed_bytes: int) -> None:
    """Refuses an output that the disk cannot hold."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise OutputError(
            f"{folder} has {_readable(free)} free, and the output needs {_readable(needed_bytes)}",
            "Free some space, write to another disk, or choose a smaller type",
        )


def _readable(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.2f} MB"


class OutputFile:
    """The temporary file on its way to becoming `target`; a context manager that leaves nothing behind but success."""

    def __init__(self, target: Path, size_bytes: int, *, overwrite: bool) -> None:
        self._target = target
        self._size_bytes = size_bytes
        self._overwrite = overwrite
        self._path: Path | None = None
        self._fd = -1
        self._lock = threading.Lock()
        self._identity = (0, 0)

    def __enter__(self) -> Self:
        try:
            with self._explained():
                self._create()
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._discard()

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Writes at a place in the file; threads may call it at once."""
        view = memoryview(data).cast("B")
        with self._explained():
            while len(view) > 0:
                done = self._write_some(offset, view)
                offset += done
                view = view[done:]

    def reserve(self) -> None:
        """Takes the whole size from the disk now, so that a full disk is met before the work and not during it."""
        with self._explained():
            if hasattr(os, "posix_fallocate"):
                try:
                    os.posix_fallocate(self._fd, 0, self._size_bytes)
                    return
                except OSError as error:
                    if error.errno in _NO_ROOM:
                        raise
            os.ftruncate(self._fd, self._size_bytes)  # the file system cannot reserve

    def sync_data(self) -> None:
        """Waits until what was written is on the disk; threads may call it while others write."""
        with self._explained():
            getattr(os, "fdatasync", os.fsync)(self._fd)

    def verify(self, ranges: Iterable[WrittenRange], on_range: Callable[[WrittenRange], None] | None = None) -> None:
        """Reads back what was written and compares it; threads may call it at once."""
        with self._explained():
            os.fsync(self._fd)
            for written in ranges:
                if self._crc32_of(written.offset, written.size_bytes) != written.crc32:
                    raise OutputError(
                        f"{written.tensor} reads back otherwise than it was written to {self._target}",
                        "The disk or the memory is failing: write to another disk",
                    )
                if on_range is not None:
                    on_range(written)

    @property
    def path(self) -> Path:
        """The temporary file, for a reader that opens it by name."""
        assert self._path is not None
        return self._path

    def commit(self) -> None:
        """Gives the file its name: from here on it is the output."""
        with self._explained():
            os.fsync(self._fd)
            assert self._path is not None
            if os.name == "nt":  # an open file cannot be renamed there
                self._close()
            if self._overwrite:
                self._path.replace(self._target)
            else:
                self._name_without_overwriting(self._path)
            self._path = None
            self._close()
            sync_folder(self._target.parent)

    def kept(self, *, in_parts: bool) -> KeptFile:
        """What keeps the old file; `in_parts`: this is one of several files of a model."""
        return KeptFile(self._target, self._identity, in_parts=in_parts)

    def keep_old(self, kept: KeptFile) -> None:
        """Keeps the old file as far as this one may replace it."""
        with self._explained():
            kept.keep(overwrite=self._overwrite)

    def _create(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        while True:
            self._path = beside(self._target, WRITTEN)
            self._fd = os.open(self._path, flags, 0o666)
            self._identity = identity_of(os.fstat(self._fd))
            if lock_written(self._path, self._fd):
                return
            self._discard()

    def _write_some(self, offset: int, view: memoryview) -> int:
        if hasattr(os, "pwrite"):
            return os.pwrite(self._fd, view, offset)
        with self._lock:
            os.lseek(self._fd, offset, os.SEEK_SET)
            return os.write(self._fd, view)

    def _read_some(self, offset: int, size: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._fd, size, offset)
        with self._lock:
            os.lseek(self._fd, offset, os.SEEK_SET)
            return os.read(self._fd, size)

    def _crc32_of(self, offset: int, size: int) -> int:
        crc = 0
        while size > 0:
            piece = self._read_some(offset, min(size, _READ_BYTES))
            if not piece:
                break
            crc = zlib.crc32(piece, crc)
            offset += len(piece)
            size -= len(piece)
        return crc

    def _name_without_overwriting(self, path: Path) -> None:
        if os.name == "nt":
            path.rename(self._target)  # fails there if the target exists
            return
        try:
            os.link(path, self._target)
        except FileExistsError:
            raise OutputError(
                f"{self._target} appeared while the output was being written", "Give another name, or --overwrite"
            ) from None
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EACCES):
                raise
            if os.path.lexists(self._target):  # no hard links here (FAT, some network shares): a small race remains
                raise OutputError(
                    f"{self._target} appeared while the output was being written", "Give another name, or --overwrite"
                ) from None
            path.replace(self._target)
        else:
            with contextlib.suppress(OSError):  # it has its name, and the next run deletes the other
                path.unlink()

    def _discard(self) -> None:
        self._close()
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()
            self._path = None

    def _close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns an OSError of the output into one that says what to do."""
        try:
            yield
        except OSError as error:
            raise _explain(error, self._target) from error


def commit_together(models: Sequence[Sequence[OutputFile]]) -> None:
    """Gives all files of a run their names, of a model's parts the first one last.

    Where one cannot get its name, and after KeyboardInterrupt, all names are again what they were; but where links
    cannot be made (FAT, some network shares), a file that has replaced another stays, new and complete: never to be
    without either matters more. After a kill each model is old, complete, or in parts without the first one, which no
    program opens; then :func:`zephyr_local.quantize.leftovers.settle_leftovers` makes it old or complete.
    """
    if sum(len(files) for files in models) == 1:
        models[0][0].commit()  # one step, in which nothing can be left undone
        return
    begun: list[list[KeptFile]] = []
    try:
        for files in models:
            begun.append([output.kept(in_parts=len(files) > 1) for output in files])
            for output, kept in zip(files, begun[-1], strict=True):
                output.keep_old(kept)
            for output in reversed(files):
                output.commit()
    except BaseException:
        for of_model in reversed(begun):
            bring_back(of_model)
        raise
    for of_model in begun:
        forget(of_model)


def _explain(error: OSError, target: Path) -> OutputError:
    reason = error.strerror or str(error)
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return OutputError(
            f"{target} cannot be written: {reason} (a limit of this process: ulimit -n)",
            "Raise the limit, or write fewer types or larger parts (--split-max-size) at once",
        )
    if error.errno == errno.EFBIG:
        return OutputError(
            f"{target} cannot be written: {reason} (a limit of the file system, or of this process: ulimit -f)",
            "Write to another file system, raise the limit, or choose a smaller type",
        )
    if error.errno in _NO_ROOM:
        return OutputError(
            f"{target} cannot be written: {reason}", "Free some space, write to another disk, or choose a smaller type"
        )
    return OutputError(f"{target} cannot be written: {reason}", "Check the folder's permissions and the disk")


def require_loadable(paths: Sequence[Path], expected: Sequence[Sequence[TensorPlace]]) -> None:
    """Shows the files of one model to the runtime, then compares as :func:`require_same_places` does.

    Raises ModelFileError where the runtime would not load the model, OutputError where it reads back otherwise.
    """
    parts = [read_gguf(path) for path in paths]
    check_runnable(join(parts[0], parts[1:]))
    _compare(parts, expected)


def require_same_places(paths: Sequence[Path], expected: Sequence[Sequence[TensorPlace]]) -> None:
    """Reads headers back with the runtime's own reader and compares every name, shape, type and offset."""
    _compare([read_gguf(path) for path in paths], expected)


def _compare(parts: Sequence[GGUFFile], expected: Sequence[Sequence[TensorPlace]]) -> None:
    for part, places in zip(parts, expected, strict=True):
        stored = [(t.name, t.shape, t.type_name, t.offset, t.size_bytes) for t in part.tensors]
        wanted = [(t.name, tuple(reversed(t.shape)), t.kind.name, t.offset, t.size_bytes) for t in places]
        if stored != wanted:
            raise OutputError(
                f"the header of {part.path} reads back otherwise than it was written",
                "The disk or the memory is failing: write to another disk",
            )
