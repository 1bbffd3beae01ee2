"""`zephyr-local data feedback IN... -o rated.jsonl`: models answer prompts, a judge rates the answers."""

from __future__ import annotations

from pathlib import Path

import click

from zephyr_local.cli.asking import asking, asking_options
from zephyr_local.cli.data_options import FILE
from zephyr_local.errors import InvalidInputError, ZephyrError
from zephyr_local.repl.screen import visible


@click.command("feedback", short_help="Have models answer prompts, and a judge rate the answers.")
@click.argument("inputs", metavar="[IN]...", type=FILE, nargs=-1)
@click.option("-o", "--output", type=FILE, help="Rated answers, in UltraFeedback's format: .jsonl or .parquet.")
@click.option("--candidate", "candidates", multiple=True, metavar="MODEL", help="Who answers; give two to twenty.")
@click.option("--judge", metavar="MODEL", help="Who rates the answers.")
@click.option("--samples", type=click.IntRange(1), default=1, show_default=True, help="Answers of each candidate.")
@click.option("--draw", type=click.IntRange(2), help="Draw so many answerers for each prompt; all by default.")
@click.option("--templates", type=FILE, help="A folder with the judge's templates, changed by you.")
@click.option("--copy-templates", type=FILE, help="Copy our templates to this folder, and do nothing else.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the draw and of the order of answers.")
@click.option("--limit", type=click.IntRange(1), help="Take the first so many prompts.")
@click.option("--folder", type=FILE, help="Where answers are kept as they come; by default OUTPUT with .asked.")
@click.option("--report", type=FILE, help="A report, as .json: what was read, asked, refused, and what it cost.")
@asking_options
def command(
    inputs: tuple[Path, ...],
    output: Path | None,
    candidates: tuple[str, ...],
    judge: str | None,
    samples: int,
    draw: int | None,
    templates: Path | None,
    copy_templates: Path | None,
    seed: int,
    limit: int | None,
    folder: Path | None,
    report: Path | None,
    models_file: Path | None,
    budget: float | None,
    skip_failed: bool,
) -> None:
    """Make AI feedback: each --candidate answers the prompts of IN..., and --judge rates the answers from 1 to 5 for
    instruction following, truthfulness, honesty and helpfulness, each with a reason.

    MODEL is a GGUF's path, 'bundled', http(s)://HOST/v1#MODEL for an OpenAI-compatible endpoint, a file of answers, or
    a name in a --models file. The command goes on where it was when it is given again, and asks nothing twice. Then
    make pairs: zephyr-local data preferences rated.jsonl -o pairs.jsonl
    """
    from zephyr_local.train.feedback.ratings import TEMPLATES, read_templates

    if copy_templates is not None:
        _copy(TEMPLATES, copy_templates)
        return
    if not inputs or output is None or not candidates or judge is None:
        raise InvalidInputError("nothing to do", "Give IN, --output, --candidate twice or more, and --judge")
    if report is not None and (report.suffix != ".json" or report.is_dir()):
        raise InvalidInputError(f"{report} is no .json file", "Name the report so")
    import itertools

    from zephyr_local.train.asking.models import ModelsFile
    from zephyr_local.train.data.records import read_with_damage
    from zephyr_local.train.data.report import DataReport
    from zephyr_local.train.feedback.feedback import FeedbackSettings, give_feedback
    from zephyr_local.train.feedback.prompts import read_prompts

    known = ModelsFile.read(models_file)
    settings = FeedbackSettings(
        tuple(known.find(name) for name in candidates),
        known.find(judge),
        read_templates(templates),
        samples,
        draw,
        seed,
    )
    _require_free(output, [*inputs, *(Path(spec.file) for spec in settings.candidates if spec.file)])
    made = DataReport("feedback")
    records = itertools.chain.from_iterable(read_with_damage(path) for path in inputs)
    prompts = itertools.islice(read_prompts(records, made), limit)
    try:
        with asking(folder or output.with_name(f"{output.name}.asked"), budget, skip_failed) as session:
            session.require_ready([*settings.candidates, settings.judge])
            try:
                feedback = give_feedback(
                    session, prompts, settings, output, made, lambda line: click.echo(line, err=True)
                )
            finally:
                made.facts |= session.as_json()
    except ZephyrError as error:
        made.facts["ended_by"] = str(error)
        raise
    finally:
        if report is not None:
            made.write(report)
    for aspect, count in feedback.n_unrated.most_common():
        click.echo(f"not rated by {aspect}: {count:,} of {feedback.n_records:,} prompts", err=True)
    for line in [*made.lines(), f"{feedback.n_answers:,} answers to {feedback.n_records:,} prompts rated"]:
        click.echo(visible(line), err=True)


def _require_free(output: Path, inputs: list[Path]) -> None:
    """Refuse an output that would take an input's place, or that cannot be written, and inputs that are not there."""
    for path in inputs:
        if not path.is_file():
            raise InvalidInputError(f"there is no file {path}", "Check the path")
        if output.exists() and output.samefile(path):
            raise InvalidInputError(f"{output} is an input, too", "Name another --output")
    if output.suffix not in (".jsonl", ".parquet"):
        raise InvalidInputError(f"{output} is neither .jsonl nor .parquet", "Name the output with one of the two")
    if output.is_dir():
        raise InvalidInputError(f"{output} is a folder", "Name a file")


def _copy(source: Path, target: Path) -> None:
    import shutil

    if target.exists():
        raise InvalidInputError(f"{target} exists", "Name a folder that is not there yet")
    shutil.copytree(source, target)
    click.echo(f"copied to {target}; change the files, and give --templates {target}")
