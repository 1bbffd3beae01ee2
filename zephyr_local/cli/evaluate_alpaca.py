"""`zephyr-local evaluate alpaca-eval`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zephyr_local.cli.asking import asking, asking_options
from zephyr_local.cli.data_options import FILE
from zephyr_local.errors import InvalidInputError

if TYPE_CHECKING:
    from zephyr_local.train.data.records import Record
    from zephyr_local.train.evaluate.win_rate import WinRate


@click.command("alpaca-eval", short_help="How often is a model's answer preferred to a reference's?")
@click.argument("models", metavar="[MODEL]...", nargs=-1)
@click.option("--annotations", type=FILE, multiple=True, help="Score a file of annotations; ask nobody. Repeatable.")
@click.option("--instructions", type=FILE, help="The evaluation set; by default the reference's instructions.")
@click.option("--reference", type=FILE, help="The outputs that are compared with, in AlpacaEval's format.")
@click.option("--judge", metavar="MODEL", help="Who says which output is better.")
@click.option("--judge-template", type=FILE, help="A TOML file of your own that says how the judge is asked.")
@click.option("--both-orders", is_flag=True, help="Ask the judge twice, each output first once; disagreement is a tie.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of which output stands first.")
@click.option("--limit", type=click.IntRange(1), help="Take the first so many instructions.")
@click.option("--out", "-o", type=FILE, default=Path("runs/alpaca-eval"), show_default=True, help="Where all is kept.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, rates in percent.")
@asking_options
def alpaca_command(
    models: tuple[str, ...],
    annotations: tuple[Path, ...],
    instructions: Path | None,
    reference: Path | None,
    judge: str | None,
    judge_template: Path | None,
    both_orders: bool,
    seed: int,
    limit: int | None,
    out: Path,
    as_json: bool,
    models_file: Path | None,
    budget: float | None,
    skip_failed: bool,
) -> None:
    """Have each MODEL answer AlpacaEval's instructions and a judge compare its outputs with a reference's; or score
    --annotations that are there. Prints win rate, standard error, length-controlled win rate and lengths.

    No data is shipped: take eval set and reference outputs from AlpacaEval (the data is CC BY-NC).
    """
    from zephyr_local.train.data.records import read_records
    from zephyr_local.train.evaluate.win_rate import win_rate

    if annotations:
        if models or judge:
            raise InvalidInputError("--annotations are there already", "Leave MODEL and --judge out")
        found = {}
        for path in dict.fromkeys(annotations):
            records = list(read_records(path))
            name = _name(path, records)
            found[f"{name} ({path})" if name in found else name] = win_rate(records)
        _show(found, None, as_json)
        return
    if not models or reference is None or judge is None:
        raise InvalidInputError(
            "nothing to do", "Give MODEL with --reference FILE and --judge MODEL, or --annotations FILE"
        )
    from zephyr_local.train.asking.models import ModelsFile
    from zephyr_local.train.asking.template import JudgeTemplate
    from zephyr_local.train.evaluate.alpaca_eval import (
        TEMPLATE,
        TEMPLATE_VALUES,
        AlpacaEval,
        annotate,
        answer_instructions,
        read_instructions,
        read_outputs,
        require_outputs,
    )

    known = ModelsFile.read(models_file)
    specs = [known.find(name) for name in models]
    asked = read_instructions(instructions or reference)[:limit]
    evaluation = AlpacaEval(
        asked,
        read_outputs(reference),
        known.find(judge),
        JudgeTemplate.read(judge_template or TEMPLATE, TEMPLATE_VALUES),
        both_orders,
        seed,
    )
    require_outputs(asked, evaluation.reference)
    found = {}
    with asking(out, budget, skip_failed) as session:
        session.require_ready([*specs, evaluation.judge])
        for outputs in answer_instructions(session, asked, specs):
            found[outputs.generator] = win_rate(read_records(annotate(session, evaluation, outputs)))
        facts = session.as_json()
    click.echo(f"answers and annotations are in {out}", err=True)
    _show(found, facts, as_json)


def _name(path: Path, records: Sequence[Record]) -> str:
    """The model's name: what the annotations say, else the folder's, as AlpacaEval keeps ``NAME/annotations.json``."""
    named = records[0].value.get("generator_2") if records else None
    if isinstance(named, str) and named:
        return named
    return path.absolute().parent.name if path.stem == "annotations" else path.stem


def _show(found: dict[str, WinRate], facts: dict[str, Any] | None, as_json: bool) -> None:
    if as_json:
        models = [{"model": name, **rate.as_json()} for name, rate in found.items()]
        value: dict[str, Any] = models[0] if len(models) == 1 else {"models": models}
        click.echo(json.dumps({**value, **({"asked": facts} if facts is not None else {})}, indent=2))
        return
    from zephyr_local.train.evaluate.mt_scores import aligned

    rows = [
        ["model", "win rate", "error", "length-controlled", "wins", "losses", "ties", "none", "length", "reference"]
    ]
    for name, rate in sorted(found.items(), key=lambda entry: -entry[1].win_rate):
        controlled = rate.length_controlled
        rows.append(
            [
                name,
                f"{rate.win_rate:.2f} %",
                f"{rate.standard_error:.2f}",
                "–" if controlled is None else f"{controlled.win_rate:.2f} ± {controlled.standard_error:.2f}",
                f"{rate.n_wins:,}",
                f"{rate.n_losses:,}",
                f"{rate.n_ties:,}",
                f"{rate.n_without:,}",
                f"{rate.mean_length:,.0f}",
                f"{rate.mean_reference_length:,.0f}",
            ]
        )
    for line in aligned(rows):
        click.echo(line)
