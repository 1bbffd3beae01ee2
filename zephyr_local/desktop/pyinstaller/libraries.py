"""Which files of llama_cpp's folder of libraries a frozen application needs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Set
from itertools import groupby
from typing import Final

_OPENED_BY_PATH: Final = ("llama", "ggml")
_OURS: Final = re.compile(r"(?:lib)?(llama|ggml(?:-.+?)?)(?:\.so(?:\.\d+)*|(?:\.\d+)*\.dylib|\.dll)")


def chosen_libraries(names: Iterable[str], asked_for: Set[str]) -> list[str]:
    """The files that are needed, of those called ``names``; libraries ask for those called ``asked_for``.

    A wheel has no symbolic links: a library lies there under up to three names (libggml-cuda.so, libggml-cuda.so.0 and
    libggml-cuda.so.0.25.3), each with the whole of its bytes. A name is needed that another library asks for, that
    llama_cpp opens, or, where neither is so, that llama.cpp finds in the folder as a plug-in: the plain one.
    """
    matches = [match for match in map(_OURS.fullmatch, names) if match is not None]
    matches.sort(key=lambda match: (match[1], len(match[0]), match[0]))
    chosen: list[str] = []
    for library, group in groupby(matches, key=lambda match: match[1]):
        files = [match[0] for match in group]
        wanted = [name for name in files if name in asked_for]
        if library in _OPENED_BY_PATH or not wanted:
            wanted = [files[0], *wanted]
        chosen += dict.fromkeys(wanted)
    return chosen
