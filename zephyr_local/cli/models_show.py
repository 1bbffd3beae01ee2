"""`zephyr-local models show`: all that is known of one model, and from where."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from zephyr_local.cli.models_told import on_a_line
from zephyr_local.cli.notice import show_notice
from zephyr_local.errors import OutputError
from zephyr_local.memory.plan import readable

if TYPE_CHECKING:
    from pathlib import Path

    from zephyr_local.gguf_file import GGUFFile
    from zephyr_local.memory.estimate import MemoryEstimate
    from zephyr_local.model_store.library import Resolved
    from zephyr_local.model_store.registry import FileRecord

_OWN_KEYS: Final = "zephyr_local."
_MAX_SHOWN: Final = 500
_PROSE: Final = ("licence", "title", "prompt", "chat", "made")
_LINE_ENDS: Final = re.compile(r"\s*\n\s*")


@click.command("show", short_help="All that is known of a model, and from where.")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def show(name: str, as_json: bool) -> None:
    """Show where NAME lies and whose it is, where it was got and with which command, its licence, its chat template,
    and the memory that it takes.

    The JSON object is that of a model and has also source (hub, quantize or verify), recorded (when), command, licence,
    catalogue, title, prompt, chat (whether chat loads it), memory (n_ctx, and bytes of each kind, on the CPU with the
    defaults) and made (what zephyr-local wrote into it).
    """
    from zephyr_local.data import bundled_model_path
    from zephyr_local.model_store.library import Resolved, existing_file, resolve
    from zephyr_local.model_store.names import is_bundled_name

    is_bundled = is_bundled_name(name) and existing_file(name) is None
    resolved = _placed(Resolved(bundled_model_path()) if is_bundled else resolve(name))
    for notice in resolved.notices:
        show_notice(on_a_line(notice))
    facts, estimate = _facts(resolved)
    if as_json:
        memory = None if estimate is None else {**_sizes(estimate), "n_ctx": estimate.n_ctx}
        click.echo(json.dumps({**facts, "memory": memory}))
        return
    if len(facts["files"]) < 2:
        facts["files"] = []
    facts["size"] = readable(facts.pop("size_bytes"))
    facts["memory"] = None if estimate is None else _memory_told(estimate)
    made: dict[str, str] = facts.pop("made")
    width = max(len(key) for key in facts)
    for key, value in {**facts, "made": [f"{key} = {text}" for key, text in made.items()]}.items():
        texts = value if isinstance(value, list) else [] if value is None else [value]
        if key in _PROSE:
            texts = [_LINE_ENDS.sub(" ", text.strip()) for text in texts]
        for i, text in enumerate(texts):
            click.echo(f"{(key if i == 0 else '').ljust(width)}  {on_a_line(text)}")


def _placed(resolved: Resolved) -> Resolved:
    """With the model and what the catalogue knows of it, also where a path was given."""
    from zephyr_local.cli.models_named import models_with
    from zephyr_local.model_store.catalogue import read_catalogue
    from zephyr_local.model_store.library import entry_of, models_here

    if resolved.model is not None:
        return resolved
    catalogue = read_catalogue()
    model = next(iter(models_with(resolved.path, models_here(catalogue).models)), None)
    return resolved if model is None else replace(resolved, model=model, entry=entry_of(model, catalogue))


def _facts(resolved: Resolved) -> tuple[dict[str, Any], MemoryEstimate | None]:
    from zephyr_local.cli.verdict import read_with_verdict
    from zephyr_local.model_store.library import base_and_type
    from zephyr_local.model_store.names import type_in_name

    path, model, entry = resolved.path, resolved.model, resolved.entry
    gguf, verdict = read_with_verdict(path)
    record = _recorded(model.path if model else path)
    licence = record.licence if record else None
    return {
        "name": model.name if model else path.stem,
        "type": base_and_type(model)[1] if model else type_in_name(path.stem)[1],
        "path": str(path),
        "owner": model.owner if model else None,
        "repository": record.repository if record else model.repository if model else None,
        "revision": record.revision if record else model.revision if model else None,
        "sha256": record.sha256 if record else model.sha256 if model else None,
        "size_bytes": gguf.size_bytes,
        "files": [str(file.path) for file in gguf.files],
        "source": record.source if record else None,
        "recorded": datetime.fromtimestamp(record.recorded_s, UTC).isoformat("T", "seconds") if record else None,
        "command": record.command if record else None,
        "licence": licence or (entry.licence if entry else None) or gguf.text("general.license") or None,
        "catalogue": entry.name if entry else None,
        "title": (entry.title or None) if entry else None,
        "prompt": (entry.prompt or None) if entry else None,
        "chat": str(verdict),
        "made": {key: str(value)[:_MAX_SHOWN] for key, value in gguf.metadata.items() if key.startswith(_OWN_KEYS)},
    }, None if verdict.refusal is not None else _memory(gguf)


def _recorded(path: Path) -> FileRecord | None:
    from zephyr_local.model_store.registry import recorded

    try:
        return recorded(path.absolute())
    except OutputError as error:  # it is a memory
        show_notice(error.problem)
        return None


def _memory(gguf: GGUFFile) -> MemoryEstimate:
    """What it takes on the CPU with the defaults."""
    from zephyr_local.hardware import read_cpu
    from zephyr_local.memory.estimate import estimate_memory
    from zephyr_local.memory.shape import shape_of
    from zephyr_local.settings import EngineSettings

    return estimate_memory(shape_of(gguf), EngineSettings(), read_cpu().features)


def _sizes(estimate: MemoryEstimate) -> dict[str, int]:
    parts = {key: value for key, value in asdict(estimate).items() if key.endswith("_bytes")}
    return {"needed_bytes": estimate.needed_bytes, **parts}


def _memory_told(estimate: MemoryEstimate) -> str:
    sizes = _sizes(estimate)
    told = ", ".join(
        f"{name} {readable(sizes[f'{key}_bytes'])}"
        for key, name in (
            ("weights_mapped", "mapped weights"),
            ("weights_repacked", "repacked weights"),
            ("kv", "KV cache"),
            ("compute", "compute buffers"),
            ("other", "other"),
        )
    )
    return f"{readable(estimate.needed_bytes)} on the CPU with a context of {estimate.n_ctx} tokens ({told})"
