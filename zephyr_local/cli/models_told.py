"""How models, paths and partial downloads are told: to people, on one line whatever is in a name, and as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from zephyr_local.repl.screen import visible

if TYPE_CHECKING:
    from zephyr_local.model_store.partials import Partial
    from zephyr_local.model_store.places import FoundModel


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


def partial_as_json(partial: Partial) -> dict[str, object]:
    return {
        "repository": partial.repository,
        "revision": partial.commit,
        "file": partial.path,
        "sha256": partial.digest,
        "size_bytes": partial.size_bytes,
        "there_bytes": partial.there_bytes,
    }
