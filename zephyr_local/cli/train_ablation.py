"""`zephyr-local train ablation`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from zephyr_local.cli.train_run import require_train_extra


@click.command("ablation", short_help="Repeat the paper's ablation at tiny scale.")
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), default=Path("runs/ablation"), show_default=True, help="Its folder."
)
@click.option("--seeds", type=click.IntRange(1, 100), help="How many times everything is trained; 3 by default.")
@click.option("--epochs", type=click.IntRange(1, 100), help="Of the dDPO that goes on for longer; 5 by default.")
@click.option("--start-steps", type=click.IntRange(1), help="Steps of dSFT before a second stage; 300 by default.")
@click.option("--second-steps", type=click.IntRange(1), help="Steps of the second stage; 100 by default.")
@click.option("--pretrain-steps", type=click.IntRange(1), help="Steps of the base model; 600 by default.")
@click.option("--teacher-steps", type=click.IntRange(1), help="Steps of the model that is rated; 600 by default.")
@click.option("--prompts", type=click.IntRange(1), help="Prompts that feedback is given on; 2000 by default.")
@click.option("--judged", type=click.IntRange(1), help="Prompts of the judge's comparison; 400 by default.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.")
def ablation_command(out: Path, threads: int | None, **sizes: Any) -> None:  # noqa: ANN401 — AblationSettings names them
    """Train zephyr-tiny by dDPO alone, by dSFT, by dSFT twice and by dSFT then dDPO, with three seeds each; then train
    dDPO for five epochs; have every model sit the exam, have the judge compare their answers, and print the tables.

    It is about an hour and a half on two cores, no run of it over six minutes; given again, it goes on where it was.
    """
    require_train_extra()
    from zephyr_local.train.child import quiet_libraries
    from zephyr_local.train.tiny.ablation import AblationSettings, run_ablation
    from zephyr_local.train.tiny.ablation_marks import mark_ablation
    from zephyr_local.train.tiny.ablation_report import write_report

    settings = AblationSettings(**{name: value for name, value in sizes.items() if value is not None})

    def say(line: str) -> None:
        click.echo(line, err=True)

    try:
        folder = run_ablation(out, settings, threads, say)
        quiet_libraries()
        mark_ablation(folder, settings, threads, say)
    except KeyboardInterrupt:
        click.echo(f"\nStopped. The same command goes on from where it was in {out}.", err=True)
        raise
    click.echo(write_report(folder, settings), nl=False)
