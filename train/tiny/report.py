"""What a run of the recipe ``tiny`` is worth: the exam before and after each stage, samples, and the card.

``python -m zephyr_local.train.tiny.report OUT`` writes ``zephyr-tiny.md``, the card that ships with the GGUF, and
``results.md`` with samples and every mistake.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from zephyr_local.errors import InvalidInputError
from zephyr_local.train.data.records import write_whole
from zephyr_local.train.recipe import Recipe, Stage
from zephyr_local.train.run_folder import RunFolder
from zephyr_local.train.tiny.card import StageFacts, exam_table, made_by_stages, mistakes_text, model_card, samples
from zephyr_local.train.tiny.exam import ExamResult, take_exam

CARD_NAME: Final = "zephyr-tiny.md"
_TITLES: Final[dict[Stage, str]] = {"pretrain": "pre-training", "dsft": "dSFT", "ddpo": "dDPO"}
_DATA: Final[dict[Stage, str]] = {
    "pretrain": "{records:,} paragraphs of plain text",
    "dsft": "{records:,} dialogues",
    "ddpo": "{records:,} preferences between answers of four answerers, by a judge of four criteria",
}


def write_report(out: Path, say: Callable[[str], None]) -> None:
    """Have each stage and the GGUF take the exam, and write card and results.

    Raises InvalidInputError where a stage is not done.
    """
    run = RunFolder(out)
    recipe = Recipe.read(run.recipe)
    gguf = out / f"{recipe.name}-{recipe.export[0].upper()}.gguf"
    for path in (*(run.stage(stage).done for stage in recipe.stages), gguf):
        if not path.is_file():
            raise InvalidInputError(f"there is no {path}", "Run the recipe to its end first")
    columns: list[tuple[str, ExamResult]] = []
    for stage in recipe.stages:
        columns.append((f"after {_TITLES[stage]}", take_exam(run.stage(stage).folder)))
        say(f"exam after {_TITLES[stage]}: {columns[-1][1].right} of {columns[-1][1].asked}")
    columns.append((f"GGUF, {recipe.export[0].upper()}", take_exam(gguf)))
    say(f"exam of the GGUF: {columns[-1][1].right} of {columns[-1][1].asked}")
    results = {stage: json.loads(run.stage(stage).results.read_bytes()) for stage in recipe.stages}
    made = made_by_stages([_facts(run, stage, results[stage]) for stage in recipe.stages])
    n_parameters = results[recipe.stages[-1]]["n_parameters"]
    card = model_card(n_parameters, gguf.stat().st_size, columns, made)
    write_whole(out / CARD_NAME, card.encode())
    text = f"{made}\n\n{exam_table(columns)}\n\n{samples(gguf)}\n\nMistakes of the GGUF:\n\n"
    write_whole(out / "results.md", (text + mistakes_text(columns[-1][1].mistakes) + "\n").encode())


def _facts(run: RunFolder, stage: Stage, results: dict[str, Any]) -> StageFacts:
    records = json.loads(run.stage(stage).data_report.read_bytes())["train_ids"]["records"]
    return StageFacts(_TITLES[stage], _DATA[stage].format(records=records), results["n_steps"], results["elapsed_s"])


def main() -> int:
    """The process's entry point; returns its exit code."""
    from zephyr_local.train.progress import say_on_stderr
    from zephyr_local.train.stage import quiet_libraries
    from zephyr_local.train.stage_error import reporting

    parser = argparse.ArgumentParser(prog="python -m zephyr_local.train.tiny.report")
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    quiet_libraries()
    exit_codes: list[int] = []
    with reporting(exit_codes):
        write_report(given.out, say_on_stderr)
    return exit_codes[0] if exit_codes else 0


if __name__ == "__main__":
    sys.exit(main())
