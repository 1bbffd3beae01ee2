"""`zephyr-local models fit`: each type of a model with its size, memory and expected rate, and which fits here."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zephyr_local.cli.models_told import on_a_line
from zephyr_local.cli.notice import show_notice
from zephyr_local.cli.options import engine_options
from zephyr_local.errors import InvalidInputError, ModelFileError, ModelNotFoundError
from zephyr_local.memory.plan import Machine, readable
from zephyr_local.settings import DEFAULT_N_CTX, EngineSettings

if TYPE_CHECKING:
    from zephyr_local.cli.type_fits import TypeFit
    from zephyr_local.gguf_file import GGUFFile
    from zephyr_local.memory.shape import ModelShape


@dataclass(frozen=True, slots=True)
class _Table:
    """What is told of a model."""

    name: str
    fits: tuple[TypeFit, ...]
    """By size."""
    here: Mapping[str, Path]
    """Type → where it is on this machine."""
    machine: Machine
    bandwidth_bytes_s: float | None


@click.command("fit", short_help="Which types of a model fit this machine, and how fast they will be.")
@click.argument("name")
@engine_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def fit(name: str, settings: EngineSettings, as_json: bool) -> None:
    """Tell of each type of NAME its size, the memory that it takes, the layers on the GPU, and the expected rate.

    NAME is a model of the catalogue or one that is here. Sizes are computed from its shape; the rate from how fast this
    machine reads memory just now. Nothing is asked of the network.

    The JSON object has name, available_bytes, limited_by, gpus (name, free_bytes), read_bandwidth_bytes_s, best (the
    type that pull takes, at the usual context) and types: type, size_bytes, path, expected_tokens_s and contexts
    (n_ctx, fits, missing_bytes, needed_bytes, resident_bytes, n_gpu_layers, gpu_bytes).
    """
    from zephyr_local.cli.type_fits import fit_of
    from zephyr_local.engine.machine import probed_machine
    from zephyr_local.hardware import recommended_threads
    from zephyr_local.memory.bandwidth import read_bandwidth_bytes_s

    shapes, here = _types(name)
    machine = probed_machine()
    bandwidth = None if machine.gpus else read_bandwidth_bytes_s(settings.n_threads or recommended_threads())
    fits = [fit_of(type_name, shape, machine, settings, bandwidth) for type_name, shape in shapes.items()]
    fits.sort(key=lambda fit_: (fit_.model.size_bytes, fit_.type_name))
    table = _Table(name, tuple(fits), here, machine, bandwidth)
    if as_json:
        click.echo(json.dumps(_as_json(table)))
    else:
        _show(table)


def _types(name: str) -> tuple[dict[str, ModelShape], dict[str, Path]]:
    """The model in every type, and where types of it are on this machine."""
    from zephyr_local.cli.type_fits import shape_in_type
    from zephyr_local.model_store.catalogue import read_catalogue
    from zephyr_local.model_store.library import (
        base_and_type,
        existing_file,
        matching,
        models_here,
        what_is_wanted,
        without_aliases,
    )
    from zephyr_local.model_store.names import looks_like_path
    from zephyr_local.quantize.types import FileType

    catalogue = read_catalogue()
    is_file = existing_file(name) is not None
    target = name if is_file else without_aliases(name, catalogue)
    entry = None if is_file or looks_like_path(target) else what_is_wanted(target, catalogue).entry
    if entry is None or entry.shape is None:
        return _types_of_file(name)
    shapes = {kind.name: shape_in_type(entry.shape, kind) for kind in FileType}
    here: dict[str, Path] = {}
    for model in matching(what_is_wanted(entry.name, catalogue), models_here(catalogue).models):
        type_name = base_and_type(model)[1] or on_a_line(model.name)
        if type_name not in shapes and (shape := _shape_at(model.path)) is not None:
            shapes[type_name] = shape  # one that llama-quantize has no name for, or that is not told
        if type_name in shapes:
            here.setdefault(type_name, model.path)
    return shapes, here


def _types_of_file(name: str) -> tuple[dict[str, ModelShape], dict[str, Path]]:
    """The same of a model that is known by its file alone."""
    from zephyr_local.cli.type_fits import in_other_type
    from zephyr_local.data import bundled_model_path
    from zephyr_local.gguf_check import check_runnable
    from zephyr_local.gguf_split import read_model
    from zephyr_local.memory.shape import shape_of
    from zephyr_local.model_store.library import Resolved, base_and_type, existing_file, resolve
    from zephyr_local.model_store.names import is_bundled_name, type_in_name
    from zephyr_local.quantize.types import FileType

    is_bundled = is_bundled_name(name) and existing_file(name) is None
    resolved = Resolved(bundled_model_path()) if is_bundled else resolve(name)
    for notice in resolved.notices:
        show_notice(on_a_line(notice))
    gguf = read_model(resolved.path)
    check_runnable(gguf)
    own = shape_of(gguf)
    told = base_and_type(resolved.model)[1] if resolved.model else type_in_name(resolved.path.stem)[1]
    if told is None and resolved.model is not None and resolved.model.owner == "ollama":
        own_type = _type_in_header(gguf) or on_a_line(resolved.model.name)  # the file's name is a digest
    else:
        own_type = told or on_a_line(resolved.path.name)
    shapes = {}
    for kind in FileType:
        with contextlib.suppress(InvalidInputError):  # its rows are no whole number of the type's blocks
            shapes[kind.name] = in_other_type(own, kind)
    return {**shapes, own_type: own}, {own_type: resolved.path}


def _type_in_header(gguf: GGUFFile) -> str | None:
    """What the file itself says that it was made as, where that is one of llama-quantize's types."""
    from zephyr_local.quantize.types import FileType

    number = gguf.metadata.get("general.file_type")
    return next((kind.name for kind in FileType if kind.ftype == number), None)


def _shape_at(path: Path) -> ModelShape | None:
    """The shape of a file that can be loaded."""
    from zephyr_local.gguf_check import check_runnable
    from zephyr_local.gguf_split import read_model
    from zephyr_local.memory.shape import shape_of

    try:
        gguf = read_model(path)
        check_runnable(gguf)
    except (ModelFileError, ModelNotFoundError):
        return None
    return shape_of(gguf)


def _show(table: _Table) -> None:
    contexts = _contexts(table.fits)
    has_gpu = bool(table.machine.gpus)
    header = ["TYPE", "SIZE", *(f"AT {n_ctx}" for n_ctx in contexts)]
    rows = [[*header, *(["GPU LAYERS"] if has_gpu else []), "TOKENS/S", ""]]
    rates = [fit_.tokens_s if fit_.fits_anywhere else None for fit_ in table.fits]
    for fit_, rate in zip(table.fits, _rates_told(rates), strict=True):
        cells = [fit_.type_name, readable(fit_.model.size_bytes)]
        for n_ctx in contexts:
            needed = readable(_needed(fit_, n_ctx)) if n_ctx in fit_.estimates else ""
            cells.append(f"({needed})" if n_ctx in fit_.shortfalls else needed)
        if has_gpu:
            layers = next(iter(fit_.estimates.values())).n_gpu_layers
            cells.append(f"{layers} of {fit_.model.n_layer + 1}")
        cells.append(rate)
        cells.append("here" if fit_.type_name in table.here else "")
        rows.append(cells)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        first, *others = row
        line = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        click.echo("  ".join(line).rstrip())
    _show_what_it_is_compared_with(table)


def _rates_told(rates: Sequence[float | None]) -> list[str]:
    """A column of rates: three digits of the largest count, and all have its decimals."""
    largest = max((rate for rate in rates if rate is not None), default=0.0)
    decimals = 2 if largest < 10 else 1 if largest < 100 else 0
    return ["" if rate is None else f"{float(f'{rate:.3g}'):,.{decimals}f}" for rate in rates]


def _show_what_it_is_compared_with(table: _Table) -> None:
    from zephyr_local.cli.type_fits import UNQUANTIZED, best

    machine, usual = table.machine, _usual(table.fits)
    gpus = "".join(f", {gpu.name} has {readable(gpu.free_bytes)} free" for gpu in machine.gpus)
    limit = f" ({machine.limited_by})" if machine.limited_by else ""
    click.echo(
        f"\nMemory: {readable(machine.available_bytes)} available{limit}{gpus}; in brackets: does not fit.", err=True
    )
    if table.bandwidth_bytes_s is not None:
        click.echo(f"Rates are expected, from {table.bandwidth_bytes_s / 1e9:.0f} GB/s of memory just now.", err=True)
    found = best(table.fits, usual)
    if found is None:
        smallest = next(fit_ for fit_ in table.fits if usual in fit_.shortfalls)
        show_notice(
            f"no type of {on_a_line(table.name)} fits with a context of {usual} tokens; the smallest, "
            f"{smallest.type_name}, needs {smallest.shortfalls[usual]}"
        )
    else:
        quantized = "" if found.type_name in UNQUANTIZED else "quantized "
        show_notice(f"the largest {quantized}type that fits with {usual} tokens is {found.type_name}")


def _contexts(fits: Sequence[TypeFit]) -> list[int]:
    """Those of all types: a file may have been trained for fewer tokens than what has its name."""
    return sorted({n_ctx for fit_ in fits for n_ctx in fit_.estimates})


def _usual(fits: Sequence[TypeFit]) -> int:
    """The context that a chat has where none is asked for, of those that are shown."""
    contexts = _contexts(fits)
    return DEFAULT_N_CTX if DEFAULT_N_CTX in contexts else contexts[-1]


def _needed(fit_: TypeFit, n_ctx: int) -> int:
    return fit_.estimates[n_ctx].needed_bytes + _on_gpus(fit_, n_ctx)


def _on_gpus(fit_: TypeFit, n_ctx: int) -> int:
    return sum(device.needed_bytes for device in fit_.estimates[n_ctx].devices if device.n_layers)


def _as_json(table: _Table) -> dict[str, object]:
    from zephyr_local.cli.type_fits import best

    machine = table.machine
    found = best(table.fits, _usual(table.fits))
    return {
        "name": table.name,
        "available_bytes": machine.available_bytes,
        "limited_by": machine.limited_by or None,
        "gpus": [{"name": gpu.name, "free_bytes": gpu.free_bytes} for gpu in machine.gpus],
        "read_bandwidth_bytes_s": table.bandwidth_bytes_s,
        "best": found.type_name if found is not None else None,
        "types": [
            {
                "type": fit_.type_name,
                "size_bytes": fit_.model.size_bytes,
                "path": str(table.here[fit_.type_name]) if fit_.type_name in table.here else None,
                "expected_tokens_s": fit_.tokens_s,
                "contexts": [_context_as_json(fit_, n_ctx) for n_ctx in fit_.estimates],
            }
            for fit_ in table.fits
        ],
    }


def _context_as_json(fit_: TypeFit, n_ctx: int) -> dict[str, object]:
    estimate, missing = fit_.estimates[n_ctx], fit_.shortfalls.get(n_ctx)
    return {
        "n_ctx": n_ctx,
        "fits": missing is None,
        "missing_bytes": 0 if missing is None else missing.missing_bytes,
        "needed_bytes": estimate.needed_bytes,
        "resident_bytes": estimate.resident_bytes,
        "n_gpu_layers": estimate.n_gpu_layers,
        "gpu_bytes": _on_gpus(fit_, n_ctx),
    }
