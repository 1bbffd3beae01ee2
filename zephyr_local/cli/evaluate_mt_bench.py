"""`zephyr-local evaluate mt-bench`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zephyr_local.cli.asking import asking, asking_options
from zephyr_local.cli.data_options import FILE
from zephyr_local.errors import InvalidInputError

if TYPE_CHECKING:
    from zephyr_local.train.evaluate.mt_files import Question


@click.command("mt-bench", short_help="Two turns on eight subjects, rated by a judge.")
@click.argument("models", metavar="[MODEL]...", nargs=-1)
@click.option("--questions", type=FILE, required=True, help="FastChat's question.jsonl.")
@click.option("--judge-prompts", type=FILE, help="FastChat's judge_prompts.jsonl.")
@click.option("--references", type=FILE, help="Reference answers for math, reasoning and coding, as FastChat's.")
@click.option("--judge", metavar="MODEL", help="Who rates the answers.")
@click.option(
    "--mode",
    type=click.Choice(["single", "pairwise-baseline", "pairwise-all"]),
    default="single",
    show_default=True,
    help="Rate each answer, or compare answers two by two, in both orders.",
)
@click.option("--baseline", metavar="NAME", help="In pairwise-baseline: the model that the others are compared with.")
@click.option("--judgments", type=FILE, help="Score a file of judgments; ask nobody.")
@click.option("--limit", type=click.IntRange(1), help="Take the first so many questions.")
@click.option("--out", "-o", type=FILE, default=Path("runs/mt-bench"), show_default=True, help="Where all is kept.")
@click.option("--plot", type=FILE, help="A radar chart of the categories, as PNG.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@asking_options
def mt_bench_command(
    models: tuple[str, ...],
    questions: Path,
    judge_prompts: Path | None,
    references: Path | None,
    judge: str | None,
    mode: str,
    baseline: str | None,
    judgments: Path | None,
    limit: int | None,
    out: Path,
    plot: Path | None,
    as_json: bool,
    models_file: Path | None,
    budget: float | None,
    skip_failed: bool,
) -> None:
    """Have each MODEL answer MT-Bench's questions in two turns and a judge rate the answers from 1 to 10; print the
    mean by model, turn and category.

    A MODEL may be a file of answers. All files are FastChat's, and its show_result.py reads what is written:
    OUT/model_answer/MODEL.jsonl, OUT/model_judgment/JUDGE_single.jsonl and JUDGE_pair.jsonl. No data is shipped.
    """
    from zephyr_local.train.evaluate.mt_files import read_questions

    if plot is not None:
        if mode != "single":
            raise InvalidInputError("the chart shows ratings, and pairs have none", "Leave --plot or --mode out")
        if plot.suffix != ".png":
            raise InvalidInputError(f"{plot} is no .png", "Name the chart so")
        from zephyr_local.train.evaluate.radar import require_matplotlib

        require_matplotlib()
    asked = read_questions(questions)[:limit]
    if judgments is not None:
        from zephyr_local.train.data.records import read_records

        if models or judge:
            raise InvalidInputError("--judgments are there already", "Leave MODEL and --judge out")
        found = _checked(read_records(judgments))
        if found and "g1_winner" in found[0] and mode == "single":  # the file says it
            mode = "pairwise-baseline" if baseline else "pairwise-all"
        named = {str(judgment.get(key)) for judgment in found for key in ("model_1", "model_2")}
        if baseline is not None and baseline not in named:
            raise InvalidInputError(f"there are no pairs with {baseline} in {judgments}", "Check --baseline")
        _show(found, asked, mode, baseline, plot, None, as_json)
        return
    if baseline is not None and mode != "pairwise-baseline":
        raise InvalidInputError(f"--baseline is not for the mode {mode}", "Give --mode pairwise-baseline")
    if not models or judge_prompts is None or judge is None:
        raise InvalidInputError(
            "nothing to do", "Give MODEL with --judge-prompts FILE and --judge MODEL, or --judgments FILE"
        )
    from zephyr_local.train.asking.models import ModelsFile
    from zephyr_local.train.evaluate.mt_bench import MODES, MtBench, answer_questions, judge_pairs, judge_singly
    from zephyr_local.train.evaluate.mt_files import read_answers, read_judge_prompts

    known = ModelsFile.read(models_file)
    specs = [known.find(name) for name in models]
    bench = MtBench(
        asked,
        read_judge_prompts(judge_prompts),
        read_answers(references)[1] if references is not None else None,
        known.find(judge),
        next(known_mode for known_mode in MODES if known_mode == mode),
        baseline,
    )
    with asking(out, budget, skip_failed) as session:
        session.require_ready([*specs, bench.judge])
        answers = answer_questions(session, bench, specs)
        made = (judge_singly if mode == "single" else judge_pairs)(session, bench, answers)
        facts = session.as_json()
    click.echo(f"answers and judgments are in {out}", err=True)
    _show(made, asked, mode, baseline, plot, facts, as_json)


def _checked(records: Any) -> list[Mapping[str, Any]]:  # noqa: ANN401 — an iterator of Record
    """Judgments that have what the tables need. Raises InvalidInputError, naming the line."""
    found = []
    for record in records:
        value = record.value
        single = {"model", "score", "turn", "question_id"} <= value.keys()
        if not single and not {"model_1", "model_2", "g1_winner", "g2_winner"} <= value.keys():
            raise InvalidInputError(f"{record.where} is no judgment", "Give a file as FastChat writes it")
        if single and (isinstance(value["score"], bool) or not isinstance(value["score"], (int, float))):
            raise InvalidInputError(f"{record.where} has the score {value['score']!r}", "Give a number, or -1 for none")
        found.append(value)
    return found


def _show(
    judgments: Sequence[Mapping[str, Any]],
    questions: Sequence[Question],
    mode: str,
    baseline: str | None,
    plot: Path | None,
    facts: dict[str, Any] | None,
    as_json: bool,
) -> None:
    from zephyr_local.train.evaluate.mt_scores import pair_scores, pair_table, single_scores, single_table

    asked = {question.id for question in questions}
    judgments = [judgment for judgment in judgments if judgment["question_id"] in asked]
    kind = "score" if mode == "single" else "g1_winner"
    if not judgments or any(kind not in judgment for judgment in judgments):
        raise InvalidInputError(
            f"there are no judgments of the mode {mode} for these questions",
            "Check --mode, --questions and --judgments",
        )
    value: dict[str, Any] = {"mode": mode}
    if mode == "single":
        scores = single_scores(judgments, questions)
        value["models"] = [score.as_json() for score in scores]
        lines = single_table(scores, questions)
        if plot is not None:
            from zephyr_local.train.evaluate.radar import draw_radar

            draw_radar(plot, scores, list(dict.fromkeys(question.category for question in questions)))
    else:
        pairs = pair_scores(judgments, baseline if mode == "pairwise-baseline" else None)
        value["models"] = [score.as_json() for score in pairs]
        lines = pair_table(pairs)
    if as_json:
        click.echo(json.dumps({**value, **({"asked": facts} if facts is not None else {})}, indent=2))
        return
    for line in lines:
        click.echo(line)
