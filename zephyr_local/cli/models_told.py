"""How models, paths and partial downloads are told: to people, on one line whatever is in a name, and as JSON."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zephyr_local.repl.screen import visible

if TYPE_CHECKING:
    from zephyr_local.model_store.partials import Partial
    from zephyr_local.model_store.places import FoundModel


_UNFINISHED: Final = re.compile(r".+\.gguf\.[0-9a-f]{16}\.part", re.DOTALL)
"""What ``quantize.leftovers`` calls a file that is being written."""


def on_a_line(text: str | Path) -> str:
    """A name or a path as it stands in a line of output, of which it cannot make two."""
    return visible(str(text)).replace("\n", "^J").replace("\t", "^I")


def model_as_json(model: FoundModel) -> dict[str, object]:
    """A model as every verb's JSON has it."""
    from zephyr_local.model_store.library import base_and_type

    return {
        "name": model.name,
        "type": base_and_type(model)[1],
        "path": str(model.path),
        "owner": model.owner,
        "repository": model.repository,
        "revision": model.revision,
        "sha256": model.sha256,
        "size_bytes": model.size_bytes,
        "files": [str(path) for path in model.files],
    }


def partials_here() -> tuple[Partial, ...]:
    """Downloads that did not come to their end, the latest first."""
    from zephyr_local.model_store.library import store_folder
    from zephyr_local.model_store.partials import list_partials
    from zephyr_local.model_store.pull import PARTIAL_FOLDER

    return list_partials(store_folder() / PARTIAL_FOLDER)


def partial_told(partial: Partial) -> str:
    """How much of what is there."""
    from zephyr_local.memory.plan import readable

    of = f" of {readable(partial.size_bytes)}" if partial.size_bytes else ""
    what = f"{partial.repository}/{partial.path}" if partial.repository and partial.path else partial.digest
    return f"{readable(partial.there_bytes)}{of} of {on_a_line(what)}"


def what_becomes_of(partial: Partial) -> str:
    """What goes on with it, or would."""
    from zephyr_local.model_store.partials import is_downloading

    if is_downloading(partial):
        return "a process downloads it now"
    return "the same pull goes on, zephyr-local models prune removes it"


def unfinished_here() -> list[Path]:
    """What conversions into the store have begun to write: killed ones have left it, a running one writes it."""
    from zephyr_local.model_store.library import store_folder
    from zephyr_local.model_store.pull import PARTIAL_FOLDER

    found: list[Path] = []
    for folder, folders, names in os.walk(store_folder()):
        folders[:] = [name for name in folders if name != PARTIAL_FOLDER]
        found += [Path(folder, name) for name in names if _UNFINISHED.fullmatch(name)]
    return sorted(found)


def target_of(unfinished: Path) -> Path:
    """The file that it was to be."""
    return unfinished.with_name(unfinished.name.rsplit(".", 2)[0])


def unfinished_told(path: Path) -> str:
    from zephyr_local.memory.plan import readable

    return f"{readable(size_of(path))} of {on_a_line(target_of(path))}"


def size_of(path: Path) -> int:
    """In bytes; 0 for what is gone."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def partial_as_json(partial: Partial) -> dict[str, object]:
    from zephyr_local.model_store.partials import is_downloading

    return {
        "repository": partial.repository,
        "revision": partial.commit,
        "file": partial.path,
        "sha256": partial.digest,
        "size_bytes": partial.size_bytes,
        "there_bytes": partial.there_bytes,
        "is_downloading": is_downloading(partial),
    }


def command_line() -> str:
    """What was typed, as the registry keeps it with the files that came of it."""
    return shlex.join(["zephyr-local", *sys.argv[1:]])
