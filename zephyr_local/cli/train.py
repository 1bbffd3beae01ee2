"""`zephyr-local train`: recipes run from data to an aligned model and its GGUF."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zephyr_local.cli.train_ablation import ablation_command

if TYPE_CHECKING:
    from zephyr_local.train.recipe import Stage


@click.group("train", short_help="Train a model: dialogues to dSFT to dDPO, and to a GGUF.")
def command() -> None:
    """Train a model as Zephyr was: supervised fine-tuning on dialogues, then preference optimisation.

    A RECIPE is a bundled one's name (`zephyr-local train recipes`) or a folder. A run that was killed goes on when the
    same command is given again. Needs the extra `train`: pip install "zephyr-local[train]".
    """


def _run_options(function: Callable[..., Any]) -> Callable[..., Any]:
    options = [
        click.argument("recipe"),
        click.option("--out", "-o", type=click.Path(path_type=Path), help="The run's folder; default: runs/RECIPE."),
        click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key, as dsft.seed=7."),
        click.option(
            "--export", multiple=True, metavar="TYPE", help="Make a GGUF of the result, as q4_k_m; repeatable."
        ),
        click.option("--launcher", metavar="NAME", help="torchrun, ddp, zero3, fsdp2, or an accelerate file."),
        click.option("--processes", type=click.IntRange(1), default=1, show_default=True, help="GPUs, all together."),
        click.option("--machines", type=click.IntRange(1), default=1, help="Machines, each running this command."),
        click.option("--machine-rank", type=click.IntRange(0), default=0, help="Which of them this is, from 0."),
        click.option("--main-process-ip", metavar="HOST", help="Where machine 0 is reached by the others."),
        click.option("--main-process-port", type=click.IntRange(1, 65535), help="And its port."),
        click.option("--threads", type=click.IntRange(1), help="CPU threads; the same number gives the same weights."),
        click.option("--plot", is_flag=True, help="Draw loss and rewards as PNG files."),
        click.option("--keep-checkpoints", is_flag=True, help="Keep the checkpoints of a stage that is done."),
        click.option("--force", is_flag=True, help="Begin although the hardware looks too small."),
        click.option(
            "--dry-run", is_flag=True, help="Print parameters, memory, tokens, steps and hours; train nothing."
        ),
        click.option("--gpu", default="a100-80gb", show_default=True, help="The GPU that --dry-run reckons with."),
        click.option("--mfu", type=click.FloatRange(0, 1, min_open=True), help="Share of its peak that is reached."),
        click.option("--json", "as_json", is_flag=True, help="With --dry-run: as JSON."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def _run(only: Stage | None, recipe: str, flags: dict[str, Any]) -> None:
    from zephyr_local.cli.train_run import TrainFlags, run

    run(only, recipe, TrainFlags(**flags))


@command.command("run", short_help="Run all stages of a recipe.")
@_run_options
@click.option(
    "--rounds",
    type=click.IntRange(1, 100),
    default=1,
    show_default=True,
    help="From the second on, the aligned model answers, is judged, and is aligned again.",
)
def run_command(recipe: str, **flags: Any) -> None:  # noqa: ANN401 — click's values, made into TrainFlags at once
    """Run all stages of RECIPE, one after the other, and export the result."""
    _run(None, recipe, flags)


@command.command("pretrain", short_help="Run a recipe's pre-training alone.")
@_run_options
def pretrain_command(recipe: str, **flags: Any) -> None:  # noqa: ANN401
    """Run the pre-training of RECIPE alone, where it has one."""
    _run("pretrain", recipe, flags)


@command.command("dsft", short_help="Run a recipe's supervised fine-tuning alone.")
@_run_options
def dsft_command(recipe: str, **flags: Any) -> None:  # noqa: ANN401
    """Run the supervised fine-tuning of RECIPE alone."""
    _run("dsft", recipe, flags)


@command.command("ddpo", short_help="Run a recipe's preference optimisation alone.")
@_run_options
def ddpo_command(recipe: str, **flags: Any) -> None:  # noqa: ANN401
    """Run the preference optimisation of RECIPE alone; its dSFT must be done in the same folder."""
    _run("ddpo", recipe, flags)


@command.command("recipes", short_help="List the bundled recipes, or copy one.")
@click.argument("name", required=False)
@click.option("--copy", type=click.Path(path_type=Path), help="Copy NAME's folder here, to change it.")
@click.option("--json", "as_json", is_flag=True, help="The list as JSON.")
def recipes_command(name: str | None, copy: Path | None, as_json: bool) -> None:
    """List the bundled recipes; with NAME and --copy FOLDER, copy one to change it."""
    from zephyr_local.errors import InvalidInputError
    from zephyr_local.train.recipe import RECIPES_FOLDER, bundled_recipes

    recipes = bundled_recipes()
    if name is None:
        if as_json:
            click.echo(json.dumps(recipes, indent=2))
        else:
            width = max(map(len, recipes), default=0)
            for known, title in recipes.items():
                click.echo(f"{known:{width}}  {title}")
        return
    if name not in recipes:
        raise InvalidInputError(f"there is no bundled recipe {name!r}", f"There are {', '.join(recipes)}")
    if copy is None:
        for path in sorted((RECIPES_FOLDER / name).glob("*.yaml")):
            click.echo(f"# --- {path.name}\n{path.read_text(encoding='utf-8')}")
        return
    import shutil

    if copy.exists():
        raise InvalidInputError(f"{copy} exists", "Name a folder that is not there yet")
    shutil.copytree(RECIPES_FOLDER / name, copy)
    click.echo(f"copied to {copy}; run it with: zephyr-local train run {copy}")


command.add_command(ablation_command)
