"""`zephyr-local data dialogues IN... -o train.jsonl`: published chats become clean dialogues to train on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from zephyr_local.cli.data_options import FILE, given_settings, progress, setting
from zephyr_local.repl.screen import visible


@click.command("dialogues", short_help="Make clean dialogues for dSFT of published chats.")
@click.argument("inputs", metavar="IN...", type=FILE, nargs=-1, required=True)
@click.option("-o", "--output", type=FILE, required=True, help="Dialogues to train on: .jsonl or .parquet.")
@click.option("--test-input", "test_inputs", type=FILE, multiple=True, help="Dialogues to test on; may be repeated.")
@click.option("--test", type=FILE, help="Dialogues to test on: .jsonl or .parquet.")
@setting("--held-out", type=float, help="Goes to --test without --test-input: a share, or from 1 a number [0.01].")
@setting("--format", help="The inputs' format: ultrachat, ultrachat_200k, sharegpt, alpaca, messages [auto].")
@setting("--truecase/--no-truecase", help="Mend turns whose case is wrong as a whole [on].")
@setting(
    "--drop-feelings/--keep-feelings",
    help="Drop dialogues in which the assistant says unasked that it has no feelings or opinions [drop].",
)
@setting(
    "--duplicates",
    "drop_duplicates",
    type=click.Choice(["none", "exact", "near"]),
    help="Which dialogues are dropped after the first of their kind [exact].",
)
@setting("--duplicates-by", type=click.Choice(["dialogue", "prompt"]), help="What is compared [dialogue].")
@setting("--near-threshold", type=float, help="How similar near duplicates are: Jaccard, five-word shingles [0.8].")
@click.option("--against", type=FILE, multiple=True, help="Prompts to keep out of training, such as MT-Bench's.")
@setting("--run-words", type=int, help="Of long prompts in --against, runs of so many words are looked for [13].")
@setting("--min-run-share", type=float, help="The share of these runs that must be found; 0: one is enough [0.5].")
@setting("--max-characters", type=int, help="Of a whole dialogue [1000000].")
@setting("--seed", type=int, help="Of the split and of MinHash [0].")
def command(
    inputs: tuple[Path, ...],
    output: Path,
    test_inputs: tuple[Path, ...],
    test: Path | None,
    **settings: Any,  # noqa: ANN401
) -> None:
    """Turn chats into checked and cleaned dialogues, one record a line, as the paper does.

    IN... are JSONL, JSON or Parquet files: UltraChat as its authors publish it or filtered, ShareGPT, Alpaca, OpenAI
    messages. Damaged records are dropped and counted. report.json beside the output says what was read, changed and
    dropped, and why.
    """
    from zephyr_local.errors import InvalidInputError
    from zephyr_local.train.data.dialogues import DialogueSettings, prepare_dialogues

    given = given_settings(settings)
    if "held_out" in given and test is None:
        raise InvalidInputError("--held-out is given and no file for what is held out", "Name one with --test")
    if "held_out" in given and test_inputs:
        raise InvalidInputError("both --test-input and --held-out are given", "Give one of the two")
    report = prepare_dialogues(
        inputs,
        test_inputs,
        output,
        test,
        DialogueSettings(**given),
        on_progress=progress(),
    )
    for line in report.lines():
        click.echo(visible(line), err=True)
    splits: Any = report.facts["splits"]
    for name, split in splits.items():
        counts = f"{split['dialogues']:,} dialogues, {split['turns']:,} turns, {split['characters']:,} characters"
        click.echo(f"{name}: {counts}", err=True)
