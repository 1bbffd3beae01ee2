"""What `zephyr-local train run` and its siblings do with their flags."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zephyr_local.errors import InvalidInputError

if TYPE_CHECKING:
    from zephyr_local.train.launch import LaunchOptions
    from zephyr_local.train.recipe import Recipe, Stage

_NEEDED = ("torch", "transformers", "trl", "peft", "datasets", "yaml", "pyarrow")


@dataclass(frozen=True, slots=True)
class TrainFlags:
    """The flags of a run, as click gives them."""

    out: Path | None
    overrides: tuple[str, ...]
    export: tuple[str, ...]
    launcher: str | None
    processes: int
    machines: int
    machine_rank: int
    main_process_ip: str | None
    main_process_port: int | None
    threads: int | None
    plot: bool
    keep_checkpoints: bool
    force: bool
    dry_run: bool
    gpu: str
    mfu: float | None
    as_json: bool
    rounds: int = 1


def require_train_extra() -> None:
    """Say what to install where training's packages are missing, before anything is written."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InvalidInputError(
            f"training needs {', '.join(missing)}, which is not installed", 'pip install "zephyr-local[train]"'
        )


def run(only: Stage | None, name: str, flags: TrainFlags) -> None:
    """Run a recipe, or say what it would take."""
    require_train_extra()
    from zephyr_local.train.recipe import Recipe

    recipe = Recipe.read(name, flags.overrides)
    if flags.as_json and not flags.dry_run:
        raise InvalidInputError("--json is for --dry-run alone", "Add --dry-run, or leave --json out")
    from zephyr_local.quantize.types import FileType
    from zephyr_local.train.rounds import RoundSettings, run_rounds
    from zephyr_local.train.run import RunOptions, require_sources

    for kind in flags.export or recipe.export:
        FileType.parse(kind)  # before hours are spent
    require_sources(recipe)
    if flags.rounds > 1:
        RoundSettings.of(recipe)
    if flags.dry_run:
        _dry_run(recipe, only, flags)
        return
    options = RunOptions(
        only=only,
        threads=flags.threads,
        launch=_launch(flags),
        export=flags.export or None,
        plot=flags.plot,
        keep_checkpoints=flags.keep_checkpoints,
        force=flags.force,
    )
    out = flags.out or Path("runs") / recipe.name
    try:
        result = run_rounds(recipe, out, flags.rounds, options, lambda line: click.echo(line, err=True))
    except KeyboardInterrupt:
        click.echo(f"\nStopped. The same command goes on from the last checkpoint in {out}.", err=True)
        raise
    click.echo(f"{result.model}")
    for path in result.ggufs:
        click.echo(f"{path}")
    if result.ggufs:
        click.echo(f"Talk with it: zephyr-local chat {result.ggufs[-1]}", err=True)


def _launch(flags: TrainFlags) -> LaunchOptions:
    from zephyr_local.train.launch import LaunchOptions

    return LaunchOptions(
        launcher=flags.launcher,
        n_processes=flags.processes,
        n_machines=flags.machines,
        machine_rank=flags.machine_rank,
        main_process_ip=flags.main_process_ip,
        main_process_port=flags.main_process_port,
    )


def _dry_run(recipe: Recipe, only: Stage | None, flags: TrainFlags) -> None:
    from zephyr_local.train.child import quiet_libraries
    from zephyr_local.train.dry_run import DryRunOptions, dry_run, shown

    quiet_libraries()
    forecasts = dry_run(recipe, DryRunOptions(_launch(flags), flags.gpu, flags.mfu, only))
    click.echo(shown(forecasts, as_json=flags.as_json), nl=False)
