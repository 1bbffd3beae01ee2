"""On-policy rounds: the model that was just aligned answers, is judged, and is aligned again.

Round 1 is the recipe's own run. Each further round is a run of its own in ``OUT/round-N``: dDPO alone, from the model
of the round before, which is also its reference, on preferences among that model's own answers.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from zephyr_local.errors import InvalidInputError
from zephyr_local.train.data.records import write_whole
from zephyr_local.train.recipe import Recipe
from zephyr_local.train.run import RunOptions, RunResult, require_sources_reachable, run_recipe
from zephyr_local.train.run_folder import RunFolder

if TYPE_CHECKING:
    from zephyr_local.train.asking.models import ModelSpec

Say = Callable[[str], None]

_SECONDS_A_LINE: Final = 10.0
ROUND_MARK: Final = "{round}"
"""In `data`, stands for the round's number: other prompts each time."""


@dataclass(frozen=True, slots=True)
class RoundSettings:
    """What a recipe says of its further rounds, under ``rounds``: either `data`, or `prompts` and `judge`."""

    data: tuple[str, ...] = ()
    """``made:NAME``: rated answers of the round's first model, made by a function of ours."""
    prompts: tuple[str, ...] = ()
    """What the model is asked: files (relative ones to the recipe) or ``hub:REPO@SPLIT``."""
    judge: str = ""
    """Who rates the answers: as ``--judge`` of ``zephyr-local data feedback``."""
    models: str = ""
    """The TOML file that describes the judge."""
    templates: str = ""
    """A folder with the judge's templates, where they are not ours."""
    n_prompts: int | None = None
    """Prompts of a round; each round takes the next ones. None: all, in every round."""
    samples: int = 4
    """Answers to each prompt."""
    temperature: float = 1.0
    """Of the answers: the model's own distribution, as on-policy means it."""
    max_tokens: int = 1024
    gguf: str = "q8_0"
    """The type in which our engine runs the model."""
    budget: float | None = None
    """Dollars for the judge, each round."""
    ddpo: Mapping[str, Any] = field(default_factory=dict)
    """Keys of ddpo.yaml that are other than in the first round."""

    @classmethod
    def of(cls, recipe: Recipe) -> Self:
        """Raises InvalidInputError, naming the key."""
        where = f"rounds in {recipe.folder / 'recipe.yaml'}"
        table = recipe.own.get("rounds")
        if not isinstance(table, Mapping):
            raise InvalidInputError(
                f"the recipe {recipe.name} has no rounds", "Add rounds with prompts and a judge; see docs/feedback.md"
            )
        known = {entry.name for entry in fields(cls)}
        for key in table:
            if key not in known:
                raise InvalidInputError(f"{where} has the unknown key {key}", f"Known: {', '.join(sorted(known))}")
        given = dict(table)
        for key in ("data", "prompts"):
            value = given.get(key, ())
            names = [value] if isinstance(value, str) else list(value)
            given[key] = tuple(
                n if n.startswith(("hub:", "made:")) else str((recipe.folder / n).absolute()) for n in names
            )
        for key in ("models", "templates"):
            if given.get(key):
                given[key] = str((recipe.folder / given[key]).absolute())
        try:
            settings = cls(**given)
        except TypeError as error:
            raise InvalidInputError(f"{where}: {error}", "Mend the recipe") from None
        if bool(settings.data) == bool(settings.prompts):
            what = "both data and prompts" if settings.data else "neither data nor prompts"
            raise InvalidInputError(f"{where} has {what}", "Give one of the two")
        if settings.prompts and not settings.judge:
            raise InvalidInputError(f"{where} names no judge", "Give one: --set rounds.judge=MODEL")
        if "ddpo" not in recipe.stages:
            raise InvalidInputError("rounds go on with dDPO, which the recipe has not", "Add the stage ddpo")
        return settings


def run_rounds(
    recipe: Recipe, out: Path, n_rounds: int, options: RunOptions | None = None, say: Say = lambda _line: None
) -> RunResult:
    """Run a recipe and its further rounds, or go on with those that are there; returns what the last one left.

    Raises what run_recipe raises, and what asking a judge raises.
    """
    options = options or RunOptions()
    if n_rounds == 1:
        return run_recipe(recipe, out, options, say)
    settings = RoundSettings.of(recipe)
    _require_reachable(settings, Path(out), n_rounds)
    result = run_recipe(recipe, out, options, say)
    for number in range(2, n_rounds + 1):
        folder = Path(out).absolute() / f"round-{number}"
        _require_same(settings, folder)
        if settings.data:
            train = [source.replace(ROUND_MARK, str(number)) for source in settings.data]
        else:
            rated = folder / "rated.jsonl"
            if not rated.is_file():
                _rate(settings, number, result.model, folder, say)
            train = [str(rated)]
        say(f"round {number}: dDPO from {result.model}")
        again = _recipe_of_round(recipe, settings, number, result.model, train, RunFolder(Path(out).absolute()))
        result = run_recipe(again, folder / "run", options, lambda line, n=number: say(f"round {n}: {line}"))  # type: ignore[misc]
    return result


def _recipe_of_round(
    recipe: Recipe, settings: RoundSettings, number: int, model: Path, train: Sequence[str], first: RunFolder
) -> Recipe:
    data: dict[str, Any] = {"train": list(train), "prepare": dict(recipe.data["ddpo"].prepare)}
    if recipe.data["ddpo"].held_out:
        data["held_out"] = recipe.data["ddpo"].held_out
    elif recipe.data["ddpo"].test:
        data["test"] = list(recipe.data["ddpo"].test)
    overrides = [
        f"base={json.dumps(str(model))}",
        "stages=[ddpo]",
        f"name={recipe.name}-round-{number}",
        f"data.ddpo={json.dumps(data)}",
        *(f"ddpo.{key}={json.dumps(value)}" for key, value in settings.ddpo.items()),
    ]
    return Recipe.read(first.recipe, overrides)


def _rate(settings: RoundSettings, number: int, model: Path, folder: Path, say: Say) -> None:
    """Have the model answer and the judge rate; ``rated.jsonl`` is whole or absent."""
    from zephyr_local.train.asking.models import ModelSpec
    from zephyr_local.train.asking.session import Session
    from zephyr_local.train.data.report import DataReport
    from zephyr_local.train.feedback.feedback import FeedbackSettings, give_feedback
    from zephyr_local.train.feedback.prompts import read_prompts
    from zephyr_local.train.feedback.ratings import read_templates
    from zephyr_local.train.prepare import records_of

    gguf = folder / f"answering-{settings.gguf.upper()}.gguf"
    if not gguf.is_file():
        _convert(model, gguf, settings.gguf)
    judge = _judge(settings)
    policy = ModelSpec(
        name=f"round {number - 1}",
        gguf=str(gguf),
        temperature=settings.temperature,
        max_tokens=settings.max_tokens,
    )
    report = DataReport("feedback")
    prompts = read_prompts(records_of(settings.prompts, RunFolder(folder / "run")), report)
    skipped = 0 if settings.n_prompts is None else settings.n_prompts * (number - 2)
    wanted = itertools.islice(prompts, skipped, None if settings.n_prompts is None else skipped + settings.n_prompts)
    feedback_settings = FeedbackSettings(
        (policy,), judge, read_templates(Path(settings.templates) if settings.templates else None), settings.samples
    )
    said_at = 0.0

    def tell(tally: Any) -> None:  # noqa: ANN401 — a Tally
        nonlocal said_at
        if time.monotonic() > said_at + _SECONDS_A_LINE:
            said_at = time.monotonic()
            say(f"round {number}: {tally.line()}")

    with Session(folder / "asked", settings.budget, tell) as session:
        session.require_ready([judge])
        give_feedback(session, wanted, feedback_settings, folder / "rated.jsonl", report, say)
        for line in session.summary():
            say(f"round {number}: {line}")
    gguf.unlink()


def _judge(settings: RoundSettings) -> ModelSpec:
    from zephyr_local.train.asking.models import ModelsFile

    return ModelsFile.read(Path(settings.models) if settings.models else None).find(settings.judge)


def _require_reachable(settings: RoundSettings, out: Path, n_rounds: int) -> None:
    """Raise OfflineError for what a later round would ask the network, before hours are spent on the first."""
    for number in range(2, n_rounds + 1):
        folder = out / f"round-{number}"
        if settings.data and not RunFolder(folder / "run").stage("ddpo").data_report.is_file():
            require_sources_reachable(f"round {number}", settings.data)
        elif settings.prompts and not (folder / "rated.jsonl").is_file():
            require_sources_reachable(f"round {number}", settings.prompts)
            _judge(settings).require_reachable()


def _require_same(settings: RoundSettings, folder: Path) -> None:
    """What is half rated goes on with the settings that it began with."""
    values = {key: value for key, value in asdict(settings).items() if key not in ("budget", "ddpo", "models")}
    values = json.loads(json.dumps(values))
    file = folder / "rounds.json"
    if file.is_file():
        before = json.loads(file.read_bytes())
        differ = [f"rounds.{key} was {before.get(key)!r}" for key in values if before.get(key) != values[key]]
        if differ:
            raise InvalidInputError(
                f"{folder} was begun with other settings: {', '.join(differ)}", "Give those, or choose another --out"
            )
    write_whole(file, json.dumps(values, indent=2).encode() + b"\n")


def _convert(model: Path, target: Path, kind: str) -> None:
    from zephyr_local.convert.hf_to_gguf import ConvertOptions, OutputRequest, convert_model
    from zephyr_local.quantize.types import FileType

    target.parent.mkdir(parents=True, exist_ok=True)
    convert_model(model, [OutputRequest(target, FileType.parse(kind))], ConvertOptions(overwrite=True))
