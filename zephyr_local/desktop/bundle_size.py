"""Tells what makes up a frozen application: ``python -m zephyr_local.desktop.bundle_size dist/my_app``.

A symbolic link counts nothing. Of an application in one file nothing can be told but its whole: freeze it as a folder
once to see what is in it.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from typing import Final

_GROUPS: Final = (
    ("zephyr-tiny", r"/zephyr-tiny[^/]*\.gguf$"),
    ("other models", r"\.gguf$"),
    ("llama.cpp", r"/llama_cpp/|/(lib)?(llama|ggml|gomp|omp|vcomp)[^/]*$"),
    ("CUDA", r"/nvidia/|/(lib)?(cudart|cublas|cudnn|nvrtc|nvJitLink)[^/]*$"),
    ("Qt", r"/(PySide6|PyQt6|shiboken6|Qt\w*\.framework)/|/(lib)?(Qt6|pyside6|shiboken6|icu)[^/]*$"),
    ("Tcl/Tk", r"/(_tcl_data|_tk_data|tcl\d*|tk\d*)/|/(lib)?(tcl|tk)\d[^/]*$|/_tkinter[^/]*$"),
    ("numpy", r"/numpy(\.libs)?/|/(lib)?(scipy_)?openblas[^/]*$"),
    ("Python", r"/base_library\.zip$|/lib-dynload/|/(lib)?python3[^/]*$|/Python(\.framework/.*)?$"),
    ("libraries of the system", r"^/(_internal/|Contents/\w+/)?[^/]+(\.so[.\d]*|\.dylib|\.dll)$"),
    ("the executable, with the packages' code", r"^/(Contents/MacOS/)?[^/]+$"),
    ("other files of packages", r""),
)


def sizes_by_group(folder: Path) -> list[tuple[str, int, int]]:
    """The groups that have files: name, bytes, number of files; the largest first."""
    size_bytes: Counter[str] = Counter()
    n_files: Counter[str] = Counter()
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_file():
            continue
        name = f"/{path.relative_to(folder).as_posix()}"
        group = next(group for group, pattern in _GROUPS if re.search(pattern, name))
        size_bytes[group] += path.stat().st_size
        n_files[group] += 1
    return [(group, size, n_files[group]) for group, size in size_bytes.most_common()]


def table(folder: Path) -> str:
    """The sizes as lines of text, in units of 1,000,000 bytes."""
    groups = sizes_by_group(folder)
    groups.append(("altogether", sum(size for _, size, _ in groups), sum(number for *_, number in groups)))
    width = max(len(group) for group, *_ in groups)
    return "".join(f"{group:{width}}  {size / 1e6:7.1f} MB  {number:5} files\n" for group, size, number in groups)


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        sys.stderr.write("usage: python -m zephyr_local.desktop.bundle_size FOLDER\n")
        return 2
    sys.stdout.write(table(Path(arguments[0])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
