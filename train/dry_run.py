"""A recipe's forecast without running it: what ``zephyr-local train run RECIPE --dry-run`` prints.

Reads the recipe, TRL's keys of each stage, and the base's config.json; no weights, no data, no network.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from zephyr_local.errors import InvalidInputError
from zephyr_local.train.forecast import PUBLISHED_SEQUENCES, Forecast, Work, forecast_stage
from zephyr_local.train.guard import batch_problems
from zephyr_local.train.launch import LaunchOptions, layout_of
from zephyr_local.train.model_shape import KNOWN_SHAPES, ModelShape, count_on_meta
from zephyr_local.train.recipe import Recipe, Stage
from zephyr_local.train.stage_plan import StagePlan, plan_stage


@dataclass(frozen=True, slots=True)
class DryRunOptions:
    """What a forecast is made for."""

    launch: LaunchOptions = field(default_factory=LaunchOptions)
    gpu: str | None = None
    """A name of hardware_table.GPU_MODELS; None: no hours."""
    mfu: float | None = None
    """Share of the GPU's peak that training reaches; None: an assumed one."""
    only: Stage | None = None


def dry_run(recipe: Recipe, options: DryRunOptions | None = None) -> list[Forecast]:
    """The forecast of each stage. Parameters are counted on the instantiated model too (on torch's meta device).

    Raises InvalidInputError for keys that TRL refuses, and where nothing on this machine tells the base's shape.
    """
    options = options or DryRunOptions()
    shape = shape_of(recipe)
    stages = recipe.stages if options.only is None else (options.only,)
    return [_forecast(recipe, stage, shape, options) for stage in stages]


def shape_of(recipe: Recipe) -> ModelShape:
    """The shape of the recipe's base: its config.json's, a released base's that is known, or the made model's."""
    if recipe.new:
        return _made_shape(recipe.new)
    if Path(recipe.base).is_dir():
        return ModelShape.from_folder(Path(recipe.base))
    if recipe.base in KNOWN_SHAPES:
        return KNOWN_SHAPES[recipe.base]
    from zephyr_local.convert.hub_cache import find_base

    return ModelShape.from_folder(find_base(recipe.base, None, Path.cwd()))


def _made_shape(name: str) -> ModelShape:
    if name != "tiny":
        raise InvalidInputError(f"the shape of new: {name} is not known", "Give a base's folder: --set base=FOLDER")
    from zephyr_local.train.tiny.shape import TinyShape

    made = TinyShape()
    sizes = (made.vocab_size, made.hidden_size, made.intermediate_size, made.n_layers, made.n_heads, made.n_kv_heads)
    return ModelShape(*sizes, head_dim=made.hidden_size // made.n_heads)


def _forecast(recipe: Recipe, stage: Stage, shape: ModelShape, options: DryRunOptions) -> Forecast:
    plan = plan_stage(recipe, stage, layout_of(options.launch), options.launch.n_processes)
    forecast = forecast_stage(plan, shape, _work(recipe, plan), options.gpu, options.mfu)
    built = count_on_meta(shape, plan.lora_rank, plan.lora_modules)
    if built != forecast.counts:
        raise AssertionError(f"counted {forecast.counts}, built {built}")
    wrong = [f"{problem.problem}. {problem.remedy}" for problem in batch_problems(plan)]
    return replace(forecast, notes=(*wrong, *forecast.notes))


def _work(recipe: Recipe, plan: StagePlan) -> Work:
    """Published numbers of the sets that the bundled recipes name; others are known when their data is prepared."""
    known = [PUBLISHED_SEQUENCES.get(source) for source in recipe.data[plan.stage].train]
    numbers = [number for number in known if number is not None]
    return Work(sum(numbers)) if numbers and len(numbers) == len(known) else Work()


def shown(forecasts: Sequence[Forecast], *, as_json: bool) -> str:
    """For the terminal, or as JSON; with a final newline."""
    if as_json:
        stages: list[dict[str, Any]] = [forecast.as_json() for forecast in forecasts]
        return json.dumps({"stages": stages}, indent=2) + "\n"
    lines = [line for forecast in forecasts for line in forecast.lines()]
    hours = [forecast.hours for forecast in forecasts]
    known = [number for number in hours if number is not None]
    if len(known) == len(hours) > 1:
        lines.append(f"all stages: about {sum(known):.1f} hours")
    return "\n".join(lines) + "\n"
