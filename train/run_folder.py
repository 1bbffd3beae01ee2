"""The folder of a run: where everything is, what it was started with, and that one run at a time works in it."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from zephyr_local.errors import InvalidInputError
from zephyr_local.train.data.records import write_whole
from zephyr_local.train.folder_lock import folder_lock
from zephyr_local.train.recipe import STAGES, Recipe, Stage

_SHOWN_DIFFERENCES: Final = 8
_ABSENT: Final = "nothing"


@dataclass(frozen=True, slots=True)
class StageFolder:
    """Where one stage keeps what."""

    folder: Path
    data: Path

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def runs(self) -> Path:
        """TensorBoard's files."""
        return self.folder / "runs"

    @property
    def saved(self) -> Path:
        """What the trainer saved, until train/finish.py has made a checkpoint's folder of it."""
        return self.folder / ".model.part"

    @property
    def results(self) -> Path:
        """Written when training is over and the model saved."""
        return self.folder / "results.json"

    @property
    def done(self) -> Path:
        """Written last: the stage is complete."""
        return self.folder / "done.json"

    @property
    def data_report(self) -> Path:
        """Written last of the data: it is complete."""
        return self.data / "report.json"

    def ids(self, split: str) -> Path:
        """The split (``train`` or ``test``) as token ids (train/ids_file.py)."""
        return self.data / f"{split}.ids.arrow"

    def records(self, split: str) -> Path:
        return self.data / f"{split}.jsonl"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run's output."""

    folder: Path

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe"

    @property
    def run(self) -> Path:
        return self.recipe / "run.json"

    @property
    def new_model(self) -> Path:
        """The model that a recipe with `new` begins with."""
        return self.folder / "new"

    def stage(self, stage: Stage) -> StageFolder:
        return StageFolder(self.folder / stage, self.folder / "data" / stage)

    @contextlib.contextmanager
    def lock(self) -> Iterator[int]:
        """Hold the folder; the stages' processes inherit the descriptor, so one that outlives its command holds it too.

        Raises OutputError where another run works in it.
        """
        with folder_lock(self.folder) as descriptor:
            yield descriptor

    def begin(self, recipe: Recipe, facts: Mapping[str, Any]) -> Recipe:
        """Write down what the run is started with, or compare it with what it was started with before.

        Raises InvalidInputError where the two disagree on anything that decides the weights.
        """
        settings = json.loads(json.dumps({**recipe.settings(), **facts}, default=str))
        if self.run.is_file() and self._holds_work():
            self._require_same(settings)
        elif self.run.is_file():  # it ended before there was anything: mended settings begin anew
            shutil.rmtree(self.folder / "data", ignore_errors=True)
            shutil.rmtree(self.new_model, ignore_errors=True)
        elif any(entry.name != ".lock" for entry in self.folder.iterdir()):
            raise InvalidInputError(
                f"{self.folder} is not empty and holds no run of a recipe", "Choose another --out, or empty the folder"
            )
        recipe.write(self.recipe)
        write_whole(self.run, json.dumps(settings, indent=2, ensure_ascii=False).encode() + b"\n")
        return Recipe.read(self.recipe)

    def _holds_work(self) -> bool:
        """Whether some stage's data is complete, or a stage has begun."""
        return any(self.stage(stage).data_report.is_file() or self.stage(stage).folder.exists() for stage in STAGES)

    def _require_same(self, settings: Mapping[str, Any]) -> None:
        try:
            before = json.loads(self.run.read_bytes())
        except (OSError, ValueError) as error:
            raise InvalidInputError(f"{self.run} cannot be read: {error}", "Choose another --out") from None
        stages = {key.partition(".")[0] for key in before} | {key.partition(".")[0] for key in settings}
        keys = sorted(before.keys() | settings.keys())
        # A further stage adds keys; it disagrees with nothing that is there.
        added = {s for s in stages if not any(k.startswith(f"{s}.") for k in before)}
        left = {s for s in stages if not any(k.startswith(f"{s}.") for k in settings)}
        differ = [
            f"{key} was {_shown(before, key)} and is {_shown(settings, key)}"
            for key in keys
            if before.get(key, _ABSENT) != settings.get(key, _ABSENT)
            and not (key.partition(".")[0] in added | left and "." in key)
        ]
        if differ:
            more = f" and {len(differ) - _SHOWN_DIFFERENCES} more" if len(differ) > _SHOWN_DIFFERENCES else ""
            raise InvalidInputError(
                f"{self.folder} holds a run with other settings: {'; '.join(differ[:_SHOWN_DIFFERENCES])}{more}",
                "Give the settings that it was started with, or choose another --out",
            )


def stage_base(run: RunFolder, recipe: Recipe, stage: Stage) -> Path:
    """The checkpoint that a stage starts from: the stage before it, or what the recipe begins with."""
    earlier = recipe.stages[: recipe.stages.index(stage)]
    if earlier:
        return run.stage(earlier[-1]).folder
    return run.new_model if recipe.new else Path(recipe.base)


def _shown(settings: Mapping[str, Any], key: str) -> str:
    return repr(settings[key]) if key in settings else _ABSENT
