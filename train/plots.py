"""A stage's curves as PNG files beside its results: ``python -m zephyr_local.train.plots FOLDER ...``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from zephyr_local.errors import InvalidInputError
from zephyr_local.train.child import run_child
from zephyr_local.train.terminal import say_on_stderr

_PLOTS: Final[Mapping[str, Sequence[str]]] = {
    "loss": ("loss", "eval_loss"),
    "rewards": ("rewards/chosen", "rewards/rejected", "rewards/margins"),
    "chosen-preferred": ("rewards/accuracies", "eval_rewards/accuracies"),
    "learning-rate": ("learning_rate",),
    "gradient-norm": ("grad_norm",),
}
"""File name → what is drawn in it, by TRL's names."""


def plot_stage(folder: Path, say: Callable[[str], None] = lambda _line: None) -> list[Path]:
    """Draw what a stage's ``results.json`` logged into ``plots/``; returns the files.

    Raises InvalidInputError where matplotlib is missing or the stage is not done.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")  # no window, no display
        from matplotlib.figure import Figure
    except ImportError:
        raise InvalidInputError(
            "plots need matplotlib, which is not installed", "pip install zephyr-local[plot]"
        ) from None
    path = folder / "results.json"
    if not path.is_file():
        raise InvalidInputError(f"{folder} has no results.json", "Train the stage to its end first")
    log: list[dict[str, Any]] = json.loads(path.read_bytes())["log"]
    written = []
    for name, keys in _PLOTS.items():
        curves = {key: [(entry["step"], entry[key]) for entry in log if key in entry] for key in keys}
        if not any(curves.values()):
            continue
        figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
        axes = figure.subplots()
        for key, points in curves.items():
            if points:
                marker = "o" if len(points) < 3 else None
                axes.plot([step for step, _ in points], [value for _, value in points], label=key, marker=marker)
        axes.set_xlabel("step")
        axes.set_title(f"{folder.name}: {name.replace('-', ' ')}")
        axes.grid(alpha=0.3)
        axes.legend()
        target = folder / "plots" / f"{name}.png"
        target.parent.mkdir(exist_ok=True)
        figure.savefig(target)
        written.append(target)
        say(f"{target}")
    return written


def main() -> int:
    """The process's entry point; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m zephyr_local.train.plots")
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--threads", type=int, help="taken for the sake of its siblings")
    folders: list[Path] = parser.parse_args().folders
    return run_child(lambda: [plot_stage(folder, say_on_stderr) for folder in folders])


if __name__ == "__main__":
    sys.exit(main())
