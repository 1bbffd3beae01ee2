"""MT-Bench's categories as a radar chart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from zephyr_local.errors import InvalidInputError
from zephyr_local.train.evaluate.mt_scores import ModelScore

HIGHEST_RATING: Final = 10


def require_matplotlib() -> None:
    """Raises InvalidInputError where it is missing."""
    try:
        import matplotlib

        matplotlib.use("Agg")  # no window, no display
    except ImportError:
        raise InvalidInputError(
            "the chart needs matplotlib, which is not installed", 'pip install "zephyr-local[plot]"'
        ) from None


def draw_radar(path: Path, scores: Sequence[ModelScore], categories: Sequence[str]) -> None:
    """Draw each model's mean rating by category, 0 to 10, as a PNG.

    Raises InvalidInputError where matplotlib is missing.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    angles = [2 * math.pi * index / len(categories) for index in range(len(categories))]
    figure = Figure(figsize=(7, 6), dpi=120, layout="constrained")
    axes: Any = figure.add_subplot(projection="polar")
    axes.set_theta_offset(math.pi / 2)
    axes.set_theta_direction(-1)
    axes.set_xticks(angles, categories)
    axes.tick_params(axis="x", pad=16)
    axes.set_ylim(0, HIGHEST_RATING)
    for score in scores:
        values = [score.by_category.get(category, 0.0) for category in categories]
        axes.plot([*angles, angles[0]], [*values, values[0]], label=f"{score.model}  {score.mean or 0:.2f}")
        axes.fill(angles, values, alpha=0.08)
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        figure.savefig(part, format="png")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
