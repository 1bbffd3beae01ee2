"""`zephyr-local data preferences IN... -o pairs.jsonl`: published preferences become pairs to train on."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zephyr_local.cli.data_options import FILE, given_settings, progress, setting
from zephyr_local.errors import InvalidInputError
from zephyr_local.repl.screen import visible

if TYPE_CHECKING:
    from zephyr_local.train.data.report import DataReport

_REPORT_SUFFIXES = (".md", ".json")


@click.command("preferences", short_help="Make pairs for dDPO of published preferences.")
@click.argument("inputs", metavar="IN...", type=FILE, nargs=-1, required=True)
@click.option("-o", "--output", type=FILE, required=True, help="Pairs to train on: .jsonl or .parquet.")
@click.option("--test-input", "test_inputs", type=FILE, multiple=True, help="Preferences to test on; may be repeated.")
@click.option("--test", "test_output", type=FILE, help="Pairs to test on: .jsonl or .parquet.")
@setting("--held-out", type=float, help="Without --test-input: this share of the prompts goes to --test.")
@setting("--format", help="The inputs' format; by their keys if not given.")
@setting("--score", type=click.Choice(["mean", "overall"]), help="Of UltraFeedback; the mean of four ratings [mean].")
@setting(
    "--rejected",
    type=click.Choice(["random", "lowest", "length-matched", "all"]),
    help="Which answer is rejected beside the best: one at random, as in the paper [random].",
)
@setting("--ties", type=click.Choice(["drop", "keep", "redraw"]), help="Where both score the same [drop].")
@setting("--min-margin", type=float, help="The least difference of scores.")
@setting("--max-length-ratio", type=float, help="The most times that one answer may be longer than the other.")
@setting("--drop-source", "drop_sources", multiple=True, help="A source to leave out, such as truthful_qa.")
@setting("--max-length", type=int, help="The most tokens of prompt and answer; longer pairs are dropped.")
@setting("--max-prompt-length", type=int, help="The most tokens of a prompt.")
@click.option("--tokenizer", type=FILE, help="A checkpoint's folder, to count tokens with.")
@click.option("--report", "reports", type=FILE, multiple=True, help="A report: .md or .json; may be repeated.")
@setting("--seed", type=int, help="Of the draws [0].")
def command(
    inputs: tuple[Path, ...],
    output: Path,
    test_inputs: tuple[Path, ...],
    test_output: Path | None,
    tokenizer: Path | None,
    reports: tuple[Path, ...],
    **settings: Any,  # noqa: ANN401 — PreferenceSettings parses them
) -> None:
    """Turn preferences into pairs of a chosen and a rejected answer, one record a line.

    IN... are JSONL, JSON or Parquet files: UltraFeedback as its authors publish it or binarised, pairs as text or
    messages, Anthropic's helpful-and-harmless dialogues, AlpacaEval's annotations. Damaged records are dropped and
    counted. Nothing is pooled: a prompt of the test split is dropped from the pairs to train on.
    """
    from zephyr_local.train.data.preferences import PreferenceSettings, prepare_preferences

    for report in reports:
        if report.suffix not in _REPORT_SUFFIXES:
            raise InvalidInputError(f"{report} is neither .md nor .json", "Name the report with one of the two")
    given = given_settings(settings)
    known = {field.name for field in fields(PreferenceSettings)}
    assert given.keys() <= known, "an option that is no setting"
    parsed = PreferenceSettings(**given)
    with closing(_chats(tokenizer)) if tokenizer is not None else nullcontext() as chats:
        made = prepare_preferences(
            inputs,
            test_inputs,
            output,
            test_output,
            parsed,
            count_tokens=chats.count_tokens if chats is not None else None,
            on_progress=progress(),
        )
    _write_reports(made, reports)
    for line in [*made.lines(), *_split_lines(made)]:
        click.echo(visible(line), err=True)


def _chats(folder: Path) -> Any:  # noqa: ANN401 — with torch's room closed to this one, its type is too
    from zephyr_local.train.chat_ids import ChatIds

    return ChatIds(folder)


def _write_reports(made: DataReport, paths: Sequence[Path]) -> None:
    from zephyr_local.train.data.pair_report import markdown
    from zephyr_local.train.data.records import write_whole

    for path in paths:
        if path.suffix == ".json":
            made.write(path)
        else:
            write_whole(path, markdown(made).encode())


def _split_lines(made: DataReport) -> list[str]:
    splits: Any = made.facts["splits"]
    lines = []
    for name, split in splits.items():
        unit = "tokens" if split["tokens"] else "characters"
        share = split[f"longer_chosen_{unit}"]["longer_share"]
        lines.append(f"{name}: {split['pairs']:,} pairs; the longer answer (in {unit}) was chosen in {share:.1%}")
    return lines
