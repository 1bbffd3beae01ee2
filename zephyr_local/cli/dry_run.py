"""`--dry-run`: what a conversion would write and what it takes, as a table or as JSON."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from zephyr_local.cli.notice import show_notice
from zephyr_local.repl.screen import visible

if TYPE_CHECKING:
    from pathlib import Path

    from zephyr_local.convert.hf_to_gguf import DryRun
    from zephyr_local.quantize.output_plan import OutputPlan


def show_dry_run(found: DryRun, *, as_json: bool, more: Mapping[str, object] | None = None) -> None:
    """Print it on stdout, in JSON with `more` entries; the notices go to stderr."""
    for notice in found.notices:
        show_notice(notice)
    if as_json:
        click.echo(json.dumps({**_as_json(found), **(more or {})}))
        return
    _show_tensors(found.plans)
    for plan in found.plans:
        click.echo(f"\n{_headline(plan)}")
        for file in plan.files:
            exists = "; exists already" if os.path.lexists(file.path) else ""
            click.echo(f"  {visible(str(file.path))}: {file.size_bytes:,} bytes{exists}")
        for tensor in plan.fallbacks:
            click.echo(
                f"  {tensor.tensor.name} becomes {tensor.kind.name}: its rows of {tensor.tensor.n_columns} weights "
                f"are no whole number of {tensor.wanted.name}'s blocks of {tensor.wanted.block_weights}"
            )
    click.echo(
        f"\nPeak memory: at most {_readable(found.needs.peak_memory_bytes)}, besides file cache that the "
        "system takes back when it needs it"
    )
    for folder, needed in found.needs.disk_bytes.items():
        click.echo(f"Disk: {_readable(needed)} needed in {visible(str(folder))}, {_free(found, folder)}")


def _free(found: DryRun, folder: Path) -> str:
    free = found.needs.free_bytes[folder]
    return f"{_readable(free)} free" + ("" if free >= found.needs.disk_bytes[folder] else ": too little")


def _readable(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:,.2f} GB" if size_bytes >= 10**9 else f"{size_bytes / 1e6:,.1f} MB"


def _headline(plan: OutputPlan) -> str:
    counts = Counter(tensor.kind.name for tensor in plan.tensors)
    types = ", ".join(f"{count} × {name}" for name, count in counts.most_common())
    parts = f" in {len(plan.files)} parts" if len(plan.files) > 1 else ""
    return (
        f"{plan.request.file_type.name}: {_readable(plan.size_bytes)}{parts}, {plan.bits_per_weight:.2f} bits a weight"
        f" ({types})"
    )


def _show_tensors(plans: tuple[OutputPlan, ...]) -> None:
    """One line a tensor, and for each file type two columns: type and bytes."""
    rows = [["Tensor", "Shape", "Stored"]]
    rows[0] += [cell for plan in plans for cell in (plan.request.file_type.name, "bytes")]
    for planned in plans[0].tensors:
        tensor = planned.tensor
        rows.append([visible(tensor.name), " × ".join(str(n) for n in tensor.shape), tensor.stored.name])
    for plan in plans:
        for row, planned in zip(rows[1:], plan.tensors, strict=True):
            row += [planned.kind.name, f"{planned.size_bytes:,}"]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    numeric = {1, *range(4, len(widths), 2)}
    for row in rows:
        cells = (
            cell.rjust(w) if i in numeric else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        click.echo("  ".join(cells).rstrip())


def _as_json(found: DryRun) -> dict[str, object]:
    return {
        "outputs": [_plan_as_json(plan) for plan in found.plans],
        "peak_memory_bytes": found.needs.peak_memory_bytes,
        "disk": [
            {"folder": str(folder), "needed_bytes": needed, "free_bytes": found.needs.free_bytes[folder]}
            for folder, needed in found.needs.disk_bytes.items()
        ],
        "notices": list(found.notices),
    }


def _plan_as_json(plan: OutputPlan) -> dict[str, object]:
    return {
        "file_type": plan.request.file_type.name,
        "size_bytes": plan.size_bytes,
        "bits_per_weight": plan.bits_per_weight,
        "files": [
            {
                "path": str(file.path),
                "size_bytes": file.size_bytes,
                "n_tensors": len(file.places),
                "exists": os.path.lexists(file.path),
            }
            for file in plan.files
        ],
        "tensors": [
            {
                "name": planned.tensor.name,
                "shape": list(planned.tensor.shape),
                "stored": planned.tensor.stored.name,
                "type": planned.kind.name,
                "wanted": planned.wanted.name,
                "size_bytes": planned.size_bytes,
            }
            for planned in plan.tensors
        ],
    }
