"""`zephyr-local inspect MODEL`: what a GGUF says about itself, read without any native code."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from zephyr_local.cli.models_told import on_a_line
from zephyr_local.cli.notice import show_notice
from zephyr_local.cli.verdict import Verdict, read_with_verdict
from zephyr_local.gguf_file import GGUFFile
from zephyr_local.repl.screen import visible

MAX_VALUE_CHARS = 200
MAX_SHOWN_VALUES = 8


@click.command("inspect", short_help="Show a GGUF file's metadata and tensors.")
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, arrays and texts in full.")
def command(model: str, as_json: bool) -> None:
    """Show the metadata and tensors of MODEL, a GGUF file or the name of a model on this machine, and whether `chat`
    would load it, with which template.

    Of a model in several files give the first, NAME-00001-of-00003.gguf.
    """
    gguf, verdict = read_with_verdict(_file_of(model))
    if as_json:
        click.echo(json.dumps(_as_json(gguf, verdict)))
    else:
        _show(gguf, verdict)


def _file_of(name: str) -> Path:
    """The file of a path or a name; a path is left to the reader, whatever it leads to."""
    from zephyr_local.model_store.names import is_bundled_name, looks_like_path

    path = Path(name)
    if name and (looks_like_path(name) or os.path.lexists(name)):
        return path
    if is_bundled_name(name):
        from zephyr_local.data import bundled_model_path

        return bundled_model_path()
    from zephyr_local.model_store.library import resolve  # which a path need not wait for

    resolved = resolve(name)
    for notice in resolved.notices:
        show_notice(on_a_line(notice))
    return resolved.path


def _as_json(gguf: GGUFFile, verdict: Verdict) -> dict[str, object]:
    return {
        "path": str(gguf.path),
        "version": gguf.version,
        "size_bytes": gguf.size_bytes,
        "refusal": verdict.refusal,
        "template": verdict.template,
        "template_refusal": verdict.template_refusal,
        "parts": [
            {"path": str(part.path), "size_bytes": part.size_bytes, "n_tensors": len(part.tensors)}
            for part in gguf.files
        ],
        "metadata": dict(gguf.metadata),
        "tensors": [
            {
                "name": t.name,
                "type": t.type_name,
                "shape": list(t.shape),
                "part": t.part,
                "offset": t.offset,
                "size_bytes": t.size_bytes,
            }
            for t in gguf.tensors
        ],
    }


def _value_text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.7g}"  # what a float32 holds
    if isinstance(value, list) and not (len(value) <= MAX_SHOWN_VALUES and sum(len(str(v)) for v in value) < 100):
        return f"[{len(value)} values]"
    text = visible(str(value)).replace("\n", "\\n")
    return text if len(text) <= MAX_VALUE_CHARS else f"{text[:MAX_VALUE_CHARS]}… ({len(text)} characters)"


def _show(gguf: GGUFFile, verdict: Verdict) -> None:
    click.echo(
        f"{visible(str(gguf.path))}: GGUF {gguf.version}, {gguf.size_bytes:,} bytes, {len(gguf.tensors)} tensors"
    )
    click.echo(visible(str(verdict)))
    if gguf.parts:
        click.echo("\nParts")
        for part in gguf.parts:
            click.echo(f"  {visible(part.path.name)}  {part.size_bytes:>14,} bytes  {len(part.tensors):5} tensors")
    click.echo("\nMetadata")
    width = max((len(key) for key in gguf.metadata), default=0)
    for key, value in gguf.metadata.items():
        click.echo(f"  {visible(key):{width}}  {_value_text(value)}")
    click.echo("\nTensors")
    width = max((len(tensor.name) for tensor in gguf.tensors), default=0)
    totals: dict[str, tuple[int, int]] = {}
    for tensor in gguf.tensors:
        shape = " × ".join(str(n) for n in tensor.shape)
        click.echo(
            f"  {visible(tensor.name):{width}}  {tensor.type_name:5} {shape:>16}  {tensor.size_bytes:>14,} bytes"
        )
        count, size = totals.get(tensor.type_name, (0, 0))
        totals[tensor.type_name] = (count + 1, size + tensor.size_bytes)
    click.echo("\nTypes")
    for name, (count, size) in sorted(totals.items(), key=lambda item: -item[1][1]):
        click.echo(f"  {name:5} {count:5} tensors  {size:>14,} bytes")
