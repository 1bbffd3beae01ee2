"""`zephyr-local evaluate`: how good a model is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from zephyr_local.cli.evaluate_alpaca import alpaca_command
from zephyr_local.cli.evaluate_mt_bench import mt_bench_command


@click.group("evaluate", short_help="Measure a model: MT-Bench, AlpacaEval, preferences.")
def command() -> None:
    """Measure a model: by MT-Bench, by AlpacaEval, or by how it prefers the answers that were chosen.

    MODEL is a GGUF's path, 'bundled', http(s)://HOST/v1#MODEL for an OpenAI-compatible endpoint, a file of answers, or
    a name in a --models file. A command that was stopped goes on when it is given again; nothing is asked twice.
    """


command.add_command(mt_bench_command)
command.add_command(alpaca_command)


@command.command("pairs", short_help="Does it prefer the answers that were chosen?")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("pairs", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--reference", type=click.Path(path_type=Path), help="The checkpoint that dDPO began with.")
@click.option("--beta", type=float, help="DPO's beta, which scales the margins; 0.1 by default.")
@click.option("--limit", type=click.IntRange(1), help="Score the first so many pairs.")
@click.option("--device", help="cpu, cuda or mps; cpu by default.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), help="float32 by default.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def pairs_command(
    model: Path,
    pairs: tuple[Path, ...],
    reference: Path | None,
    as_json: bool,
    **settings: Any,  # noqa: ANN401 — EvaluationSettings names them
) -> None:
    """Score PAIRS (as `zephyr-local data preferences` writes) by the checkpoint MODEL, a pair at a time.

    With --reference the reward is DPO's: how much more likely than before the answer has become. The accuracy is split
    by which answer is longer, since models learn length first.
    """
    from zephyr_local.cli.train_run import require_train_extra

    require_train_extra()
    from zephyr_local.train.evaluate_pairs import EvaluationSettings, evaluate_pairs

    given = {name: value for name, value in settings.items() if value is not None}
    result = evaluate_pairs(model, reference, pairs, EvaluationSettings(**given))
    if as_json:
        click.echo(json.dumps(result.as_json(), indent=2))
        return
    for line in result.lines():
        click.echo(line)
