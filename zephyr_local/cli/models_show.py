"""`zephyr-local models show`: all that is known of one model, and from where."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from zephyr_local.repl.screen import visible

if TYPE_CHECKING:
    from pathlib import Path

    from zephyr_local.gguf_file import GGUFFile
    from zephyr_local.model_store.library import Resolved

_OWN_KEYS = "zephyr_local."


@click.command("show", short_help="All that is known of a model, and from where.")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def show(name: str, as_json: bool) -> None:
    """Show where NAME lies and whose it is, where it was got and with which command, its licence, its chat template,
    and the memory that it takes."""
    from zephyr_local.model_store.library import resolve

    facts = _facts(resolve(name))
    if as_json:
        click.echo(json.dumps(facts))
        return
    width = max(len(key) for key in facts)
    for key, value in facts.items():
        if value is None or value == []:
            continue
        texts = [str(item) for item in value] if isinstance(value, list) else [str(value)]
        for i, text in enumerate(texts):
            click.echo(f"{(key if i == 0 else '').ljust(width)}  {visible(text)}")


def _facts(resolved: Resolved) -> dict[str, object]:
    from zephyr_local.cli.verdict import read_with_verdict
    from zephyr_local.model_store.registry import recorded

    path, model, entry = resolved.path, resolved.model, resolved.entry
    gguf, verdict = read_with_verdict(path)
    record = recorded(path.absolute())
    files = [str(file.path) for file in gguf.files]
    return {
        "path": str(path),
        "files": files if len(files) > 1 else [],
        "name": model.name if model else path.stem,
        "owner": model.owner if model else None,
        "size_bytes": gguf.size_bytes,
        "repository": record.repository if record else model.repository if model else None,
        "revision": record.revision if record else model.revision if model else None,
        "sha256": record.sha256 if record else model.sha256 if model else None,
        "source": record.source if record else None,
        "recorded": datetime.fromtimestamp(record.recorded_s, UTC).isoformat("T", "seconds") if record else None,
        "command": record.command if record else None,
        "licence": (record.licence if record else None) or (entry.licence if entry else None) or _licence(gguf),
        "catalogue": entry.name if entry else None,
        "title": entry.title if entry else None,
        "prompt": entry.prompt if entry else None,
        "chat": str(verdict),
        "memory": _memory(path, gguf, refused=verdict.refusal is not None),
        "made": [f"{key} = {value}" for key, value in gguf.metadata.items() if key.startswith(_OWN_KEYS)],
    }


def _licence(gguf: GGUFFile) -> str | None:
    return gguf.text("general.license") or None


def _memory(path: Path, gguf: GGUFFile, *, refused: bool) -> str | None:
    """What it takes on the CPU with the defaults."""
    from zephyr_local.hardware import read_cpu
    from zephyr_local.memory.estimate import estimate_memory
    from zephyr_local.memory.plan import readable
    from zephyr_local.memory.shape import shape_of
    from zephyr_local.settings import EngineSettings

    if refused:
        return None
    estimate = estimate_memory(shape_of(gguf), EngineSettings(), read_cpu().features)
    parts = asdict(estimate)
    told = ", ".join(
        f"{name} {readable(parts[f'{key}_bytes'])}"
        for key, name in (
            ("weights_mapped", "mapped weights"),
            ("weights_repacked", "repacked weights"),
            ("kv", "KV cache"),
            ("compute", "compute buffers"),
        )
    )
    return f"{readable(estimate.needed_bytes)} on the CPU with a context of {estimate.n_ctx} tokens ({told})"
