"""The model card of a stage: what it was made from, with which settings and versions, and what came out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from zephyr_local.train.data.records import write_whole
from zephyr_local.train.recipe import Recipe, Stage
from zephyr_local.train.run_folder import RunFolder, stage_base
from zephyr_local.train.terminal import duration

_TITLES: Final[Mapping[Stage, str]] = {
    "pretrain": "pre-training",
    "dsft": "distilled supervised fine-tuning (dSFT)",
    "ddpo": "distilled direct preference optimisation (dDPO)",
}
_TEST_NAMES: Final = {
    "eval_loss": "loss",
    "eval_mean_token_accuracy": "token accuracy",
    "eval_rewards/accuracies": "chosen preferred, mean of batches",
    "eval_rewards/margins": "reward margin",
}
_LICENCE_UNKNOWN: Final = "other"


def write_card(run: RunFolder, stage: Stage) -> None:
    """Write ``README.md`` of a stage from its results and its data's report."""
    recipe, folder = Recipe.read(run.recipe), run.stage(stage)
    results = json.loads(folder.results.read_bytes())
    report = json.loads(folder.data_report.read_bytes())
    base = stage_base(run, recipe, stage)
    text = "\n".join(
        [
            *_front_matter(recipe, base),
            f"# {recipe.name}: {stage}",
            "",
            f"{_TITLES[stage][0].upper()}{_TITLES[stage][1:]} by zephyr-local, in the way of Zephyr (Tunstall et al. "
            "2023, arXiv 2310.16944), with TRL.",
            "",
            *_came_out(results),
            *_data(report),
            *_settings(recipe, stage),
            *_versions(results),
        ]
    )
    write_whole(folder.folder / "README.md", text.encode())


def _front_matter(recipe: Recipe, base: Path) -> list[str]:
    """What conversion takes name and licence from; the licence is the base's."""
    licence = _licence(base / "README.md")
    lines = ["---", f"model_name: {recipe.name}", f"license: {licence}", "language:", "- en", "tags:", "- chat"]
    lines += ["- trl", "library_name: transformers"]
    if recipe.own.get("base") and not Path(str(recipe.own["base"])).is_absolute():
        lines.append(f"base_model: {recipe.own['base']}")
    return [*lines, "---", ""]


def _licence(card: Path) -> str:
    try:
        lines = card.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return _LICENCE_UNKNOWN
    for line in lines[1:] if lines[:1] == ["---"] else []:
        if line == "---":
            break
        if line.startswith("license:"):
            return line.partition(":")[2].strip()
    return _LICENCE_UNKNOWN


def _table(rows: Sequence[tuple[str, str]]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), ""]


def _came_out(results: Mapping[str, Any]) -> list[str]:
    losses = [entry["loss"] for entry in results["log"] if "loss" in entry]
    tokens = max((entry.get("num_tokens", 0) for entry in results["log"]), default=0)
    rows = [
        ("parameters", f"{results['n_parameters']:,}, of which {results['n_trained']:,} were trained"),
        ("steps", f"{results['n_steps']:,}, {results['epochs']:.3g} epochs"),
        ("loss", f"{losses[0]:.4g} at first, {losses[-1]:.4g} at the end" if losses else "not logged"),
        ("tokens", f"{tokens:,.0f}"),
        ("time", f"{duration(results['elapsed_s'])}, {results['processes']} process(es), {results['device']}"),
    ]
    for key, kind in (("peak_gpu_bytes", "GPU memory"), ("peak_rss_bytes", "memory of the process")):
        if results[key] is not None:
            rows.append((f"peak {kind}", f"{results[key] / 2**30:.2f} GiB"))
    if results["resumed_from"]:
        rows.append(("gone on from", f"{results['resumed_from']}; time is from there on"))
    test = [(name, f"{results['test'][key]:.4g}") for key, name in _TEST_NAMES.items() if key in results["test"]]
    return ["## What came out", "", *_table(rows), *(["On held-out data:", "", *_table(test)] if test else [])]


def _data(report: Mapping[str, Any]) -> list[str]:
    sources = report["sources"]
    train, test = ("; ".join(map(_source_name, sources[split])) for split in ("train", "test"))
    held_out = "held out of these" if "test_ids" in report else "none given"
    rows = [("train", train), ("test", test or held_out)]
    rows += [("read", f"{report['read']:,}"), ("kept", f"{report['kept']:,}")]
    rows += [(f"dropped: {reason}", f"{count:,}") for reason, count in report["dropped"].items()]
    rows += [(f"changed: {what}", f"{count:,}") for what, count in report["changed"].items()]
    rows += [
        (f"{split} tokens", f"{report[f'{split}_ids']['tokens']:,} in {report[f'{split}_ids']['records']:,} records")
        for split in ("train", "test")
        if f"{split}_ids" in report
    ]
    return ["## Data", "", *_table([(name, value.replace("|", "\\|")) for name, value in rows])]


def _source_name(source: str) -> str:
    """A file without its folders: a card travels, and whose machine it was is nobody's business."""
    return source if source.startswith(("hub:", "made:")) else Path(source).name


def _settings(recipe: Recipe, stage: Stage) -> list[str]:
    rows = [(f"`{key}`", f"`{value}`") for key, value in recipe.trl[stage].items()]
    rows += [("template", f"`{recipe.template}`"), ("system turn", f"`{recipe.system_turn}`")]
    return ["## Settings", "", "What the recipe sets; the rest are TRL's defaults.", "", *_table(rows)]


def _versions(results: Mapping[str, Any]) -> list[str]:
    named = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return ["## Versions", "", named, ""]
