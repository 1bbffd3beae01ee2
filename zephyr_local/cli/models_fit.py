"""`zephyr-local models fit`: each type of a model with its size, memory and expected rate, and which fits here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zephyr_local.cli.notice import show_notice
from zephyr_local.cli.options import engine_options
from zephyr_local.errors import InvalidInputError, ModelNotFoundError
from zephyr_local.memory.plan import Machine, readable
from zephyr_local.settings import EngineSettings

if TYPE_CHECKING:
    from zephyr_local.cli.type_fits import TypeFit
    from zephyr_local.memory.shape import ModelShape
    from zephyr_local.model_store.places import FoundModel


@click.command("fit", short_help="Which types of a model fit this machine, and how fast they will be.")
@click.argument("name")
@engine_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def fit(name: str, settings: EngineSettings, as_json: bool) -> None:
    """Tell of each type of NAME its size, the memory that it takes, the layers on the GPU, and the expected rate.

    NAME is a model of the catalogue or one that is here. Sizes are computed from its shape; the rate from how fast this
    machine reads memory just now. Nothing is asked of the network.
    """
    from zephyr_local.cli.type_fits import fit_of
    from zephyr_local.engine.machine import probed_machine
    from zephyr_local.hardware import recommended_threads
    from zephyr_local.memory.bandwidth import read_bandwidth_bytes_s

    shapes, here = _types(name)
    machine = probed_machine()
    threads = settings.n_threads or recommended_threads()
    bandwidth = None if machine.gpus else read_bandwidth_bytes_s(threads)
    fits = [fit_of(type_name, shape, machine, settings, bandwidth) for type_name, shape in shapes.items()]
    if as_json:
        click.echo(json.dumps(_as_json(name, fits, here, machine, bandwidth)))
        return
    _show(name, fits, here, machine, bandwidth)


def _types(name: str) -> tuple[dict[str, ModelShape], dict[str, Path]]:
    """The model in every type, and where types of it are on this machine."""
    from zephyr_local.cli.type_fits import in_other_type, shape_in_type
    from zephyr_local.gguf_check import check_runnable
    from zephyr_local.gguf_split import read_model
    from zephyr_local.memory.shape import shape_of
    from zephyr_local.model_store.catalogue import read_catalogue
    from zephyr_local.model_store.library import base_and_type, matching, models_here, resolve, what_is_wanted
    from zephyr_local.quantize.types import FileType

    catalogue = read_catalogue()
    target = catalogue.alias(name) or name
    entry = catalogue.entry(what_is_wanted(target, catalogue).base)
    if entry is not None and entry.shape is not None:
        shapes = {kind.name: shape_in_type(entry.shape, kind) for kind in FileType}
        found: Sequence[FoundModel] = list(
            matching(what_is_wanted(entry.name, catalogue), models_here(catalogue).models)
        )
        return shapes, {base_and_type(model)[1] or model.name: model.path for model in reversed(found)}
    try:
        resolved = resolve(name)
    except ModelNotFoundError as error:
        raise InvalidInputError(error.problem, f"{error.remedy}; or add its shape with models add") from None
    gguf = read_model(resolved.path)
    check_runnable(gguf)
    own = shape_of(gguf)
    own_type = (base_and_type(resolved.model)[1] if resolved.model else None) or resolved.path.name
    shapes = {}
    for kind in FileType:
        try:
            shapes[kind.name] = in_other_type(own, kind)
        except InvalidInputError:  # its rows are no whole number of the type's blocks
            continue
    return {**shapes, own_type: own}, {own_type: resolved.path}


def _show(
    name: str, fits: Sequence[TypeFit], here: Mapping[str, Path], machine: Machine, bandwidth: float | None
) -> None:
    from zephyr_local.cli.type_fits import best
    from zephyr_local.settings import DEFAULT_N_CTX

    contexts = list(fits[0].estimates)
    has_gpu = bool(machine.gpus)
    rows = [
        ["TYPE", "SIZE", *(f"AT {n_ctx}" for n_ctx in contexts), *(["GPU LAYERS"] if has_gpu else []), "TOKENS/S", ""]
    ]
    for fit_ in sorted(fits, key=lambda fit_: fit_.model.size_bytes):
        cells = [fit_.type_name, readable(fit_.model.size_bytes)]
        for n_ctx in contexts:
            needed = readable(_needed(fit_, n_ctx))
            cells.append(needed if fit_.plans[n_ctx] is not None else f"({needed})")
        if has_gpu:
            layers = next(iter(fit_.estimates.values())).n_gpu_layers
            cells.append(f"{layers} of {fit_.model.n_layer + 1}")
        cells.append("" if fit_.tokens_s is None or not fit_.fits_anywhere else f"{fit_.tokens_s:.3g}")
        cells.append("here" if fit_.type_name in here else "")
        rows.append(cells)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        first, *others = row
        line = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        click.echo("  ".join(line).rstrip())
    gpus = "".join(f", {gpu.name} has {readable(gpu.free_bytes)} free" for gpu in machine.gpus)
    limit = f" ({machine.limited_by})" if machine.limited_by else ""
    click.echo(
        f"\nMemory: {readable(machine.available_bytes)} available{limit}{gpus}; in brackets: does not fit.", err=True
    )
    if bandwidth is not None:
        click.echo(f"Rates are expected, from {bandwidth / 1e9:.0f} GB/s of memory just now.", err=True)
    usual = DEFAULT_N_CTX if DEFAULT_N_CTX in contexts else contexts[0]
    found = best(fits, usual)
    if found is None:
        smallest = min(fits, key=lambda fit_: fit_.model.size_bytes)
        show_notice(
            f"no type of {name} fits with a context of {usual} tokens; the smallest, {smallest.type_name}, needs "
            f"{readable(_needed(smallest, usual))}"
        )
    else:
        show_notice(f"the largest quantized type that fits with {usual} tokens is {found.type_name}")


def _needed(fit_: TypeFit, n_ctx: int) -> int:
    estimate = fit_.estimates[n_ctx]
    return estimate.needed_bytes + sum(device.needed_bytes for device in estimate.devices if device.n_layers)


def _as_json(
    name: str, fits: Sequence[TypeFit], here: Mapping[str, Path], machine: Machine, bandwidth: float | None
) -> dict[str, object]:
    return {
        "name": name,
        "available_bytes": machine.available_bytes,
        "limited_by": machine.limited_by or None,
        "gpus": [{"name": gpu.name, "free_bytes": gpu.free_bytes} for gpu in machine.gpus],
        "read_bandwidth_bytes_s": bandwidth,
        "types": [
            {
                "type": fit_.type_name,
                "size_bytes": fit_.model.size_bytes,
                "path": str(here[fit_.type_name]) if fit_.type_name in here else None,
                "expected_tokens_s": fit_.tokens_s,
                "contexts": [
                    {
                        "n_ctx": n_ctx,
                        "fits": fit_.plans[n_ctx] is not None,
                        "needed_bytes": estimate.needed_bytes,
                        "resident_bytes": estimate.resident_bytes,
                        "n_gpu_layers": estimate.n_gpu_layers,
                        "gpu_bytes": sum(device.needed_bytes for device in estimate.devices if device.n_layers),
                    }
                    for n_ctx, estimate in fit_.estimates.items()
                ],
            }
            for fit_ in fits
        ],
    }
