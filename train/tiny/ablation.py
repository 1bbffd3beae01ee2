"""The paper's ablation at tiny scale: which stages an aligned model needs, and how long dDPO should go on.

Tunstall et al. 2023 (arXiv 2310.16944), table 3 and figure 3, with zephyr-tiny in Mistral-7B's place, its exam in
MT-Bench's, and the win rate that its judge gives over plain dSFT in AlpacaEval's. All is kept in one folder, and what
is done there is not done again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from zephyr_local.errors import InvalidInputError
from zephyr_local.train.data.records import RecordWriter, read_records, write_whole
from zephyr_local.train.recipe import Recipe
from zephyr_local.train.run import RunOptions, run_recipe
from zephyr_local.train.run_folder import RunFolder

Say = Callable[[str], None]

DSFT: Final = "dSFT"
VARIANTS: Final[dict[str, str]] = {
    "ddpo": "dDPO without dSFT",
    "dsft": DSFT,
    "dsft-dsft": "dSFT, then dSFT on chosen answers",
    "dsft-ddpo": "dSFT, then dDPO",
}
"""Folder → the name in the table, in the paper's order."""
START: Final = "start"
"""The dSFT that the two-stage variants of a seed go on from."""
EPOCHS: Final = "epochs"
_FEEDBACK_SEED: Final = 1
_HELD_OUT: Final = 0.1


@dataclass(frozen=True, slots=True)
class AblationSettings:
    """How large the ablation is. A step of dSFT trains on 2,048 tokens of packed chats, one of dDPO on 16 pairs: some
    1,400 tokens, the prompt counted with each answer."""

    seeds: int = 3
    """Seeds 1, 2, …: of the chats that are drawn, and of their order and the pairs'."""
    pretrain_steps: int = 600
    """Of the base model, which all runs share."""
    teacher_steps: int = 600
    """Of the dSFT whose answers are rated; all runs share the pairs, as the paper's share UltraFeedback."""
    prompts: int = 2000
    """That feedback is given on; nearly all give a pair, and a tenth of the pairs is held out."""
    start_steps: int = 300
    """Of dSFT before a second stage."""
    second_steps: int = 100
    """Of the second stage: nine tenths of an epoch over the pairs. A run has start_steps + second_steps in all,
    whatever its stages."""
    epochs: int = 5
    """Of the dDPO that goes on for longer."""
    judged: int = 400
    """Prompts of the judge's comparison, none of which feedback was given on."""
    accuracy_pairs: int = 400
    """Pairs of the training split on which the accuracy after each epoch is counted; of the held-out split, all."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise InvalidInputError(f"{name} is {value}", "Give 1 or more")

    @property
    def total_steps(self) -> int:
        """Of every variant."""
        return self.start_steps + self.second_steps


@dataclass(frozen=True, slots=True)
class AblationFolder:
    """Where the ablation keeps what."""

    folder: Path

    @property
    def common(self) -> RunFolder:
        """The base model and the one whose answers are rated."""
        return RunFolder(self.folder / "common")

    @property
    def settings(self) -> Path:
        return self.folder / "settings.json"

    @property
    def rated(self) -> Path:
        """Answers with their ratings, which the pairs are made of."""
        return self.folder / "rated.jsonl"

    @property
    def chosen(self) -> Path:
        """The chosen answers as dialogues."""
        return self.folder / "chosen.jsonl"

    def run(self, seed: int, name: str) -> RunFolder:
        """A run of a seed: one of VARIANTS, START or EPOCHS."""
        return RunFolder(self.folder / f"seed-{seed}" / name)

    def model(self, seed: int, variant: str) -> Path:
        """The checkpoint that a variant ends with."""
        return self.run(seed, variant).stage("ddpo" if variant.endswith("ddpo") else "dsft").folder

    def marks(self, seed: int, name: str) -> Path:
        """What a variant's or an epoch's model was found to be worth."""
        return self.folder / f"seed-{seed}" / f"{name}.marks.json"


def run_ablation(out: Path, settings: AblationSettings, threads: int | None, say: Say) -> AblationFolder:
    """Train every model of the ablation in `out`, or those that are missing.

    Raises InvalidInputError where `out` holds an ablation of other settings, and what a stage raises.
    """
    folder = AblationFolder(out.absolute())
    _require_same(folder, settings)
    trainer = _Trainer(settings, RunOptions(threads=threads, export=()), say)
    common = trainer.common(folder.common)
    if not folder.rated.is_file():
        say(f"feedback: four answers to each of {settings.prompts:,} prompts")
        _rate(folder, settings, threads, say)
    for seed in range(1, settings.seeds + 1):
        base = common.stage("pretrain").folder
        start = trainer.dsft(folder.run(seed, START), base, settings.start_steps, seed)
        trainer.dsft(folder.run(seed, "dsft"), base, settings.total_steps, seed)
        pairs = trainer.ddpo(folder.run(seed, "dsft-ddpo"), start, folder.rated, seed, settings.second_steps)
        if not folder.chosen.is_file():
            _keep_chosen(pairs.parent / "data" / "ddpo" / "train.jsonl", folder.chosen)
        chosen = [str(folder.chosen)]
        trainer.dsft(folder.run(seed, "dsft-dsft"), start, settings.second_steps, seed, chosen)
        trainer.ddpo(folder.run(seed, "ddpo"), base, folder.rated, seed, settings.total_steps)
        trainer.ddpo(folder.run(seed, EPOCHS), start, folder.rated, seed, None)
    return folder


def _require_same(folder: AblationFolder, settings: AblationSettings) -> None:
    """More seeds may come to an ablation that is there; nothing else may differ."""
    values = {name: value for name, value in asdict(settings).items() if name != "seeds"}
    if folder.settings.is_file():
        before = json.loads(folder.settings.read_bytes())
        differ = [f"{n} was {before.get(n)} and is {value}" for n, value in values.items() if before.get(n) != value]
        if differ:
            raise InvalidInputError(
                f"{folder.folder} holds an ablation with other settings: {'; '.join(differ)}", "Choose another --out"
            )
    write_whole(folder.settings, json.dumps(values, indent=2).encode() + b"\n")


@dataclass(frozen=True, slots=True)
class _Trainer:
    settings: AblationSettings
    options: RunOptions
    say: Say

    def common(self, run: RunFolder) -> RunFolder:
        settings = self.settings
        overrides = [
            "stages=[pretrain, dsft]",
            "sequences_a_step={pretrain: 8, dsft: 4}",
            f"pretrain.max_steps={settings.pretrain_steps}",
            f'data.pretrain.train=["made:tiny-text?n={_paragraphs(settings.pretrain_steps)}&seed=1"]',
            *_dsft_overrides(settings.teacher_steps, seed=100),
        ]
        self._run(run, overrides)
        return run

    def dsft(self, run: RunFolder, base: Path, steps: int, seed: int, files: Sequence[str] | None = None) -> Path:
        """Train on the made chats of a seed, or on files; returns the checkpoint."""
        overrides = [
            f"base={json.dumps(str(base))}",
            "stages=[dsft]",
            "sequences_a_step={dsft: 4}",
            f"dsft.seed={seed}",
            *_dsft_overrides(steps, seed, files),
        ]
        self._run(run, overrides)
        return run.stage("dsft").folder

    def ddpo(self, run: RunFolder, base: Path, rated: Path, seed: int, steps: int | None) -> Path:
        """Train on the pairs for so many steps, or for the settings' epochs, each of which is kept."""
        length = [f"ddpo.max_steps={steps}", "ddpo.eval_strategy='no'"]
        if steps is None:
            length = ["ddpo.max_steps=-1", f"ddpo.num_train_epochs={self.settings.epochs}", "ddpo.save_strategy=epoch"]
            length += ["ddpo.save_total_limit=null"]
        overrides = [
            f"base={json.dumps(str(base))}",
            "stages=[ddpo]",
            "sequences_a_step={ddpo: 16}",
            f"ddpo.seed={seed}",
            f"data.ddpo.train={json.dumps([str(rated)])}",
            f"data.ddpo.held_out={_HELD_OUT}",
            *length,
        ]
        self._run(run, overrides, keep_checkpoints=steps is None)
        return run.stage("ddpo").folder

    def _run(self, run: RunFolder, overrides: Sequence[str], *, keep_checkpoints: bool = False) -> None:
        recipe = Recipe.read("tiny", overrides)
        if all(run.stage(stage).done.is_file() for stage in recipe.stages):
            return
        name = "/".join(run.folder.parts[-2:])
        options = replace(self.options, keep_checkpoints=keep_checkpoints)
        run_recipe(recipe, run.folder, options, lambda line: self.say(f"{name}: {line}"))


def _dsft_overrides(steps: int, seed: int, files: Sequence[str] | None = None) -> list[str]:
    train = list(files) if files is not None else [f"made:tiny-dialogues?n={_chats(steps)}&seed={seed}"]
    # A second stage has few chats, none to spare for a test.
    no_test = ["data.dsft.held_out=0", "dsft.eval_strategy='no'"] if files is not None else []
    return [f"dsft.max_steps={steps}", f"data.dsft.train={json.dumps(train)}", *no_test]


def _paragraphs(steps: int) -> int:
    """A little more text than the steps read: 38 tokens a paragraph."""
    return max(1000, int(round(steps * 8 * 256 / 35, -3)))


def _chats(steps: int) -> int:
    """A few more chats than the steps read: 91 tokens each."""
    return max(1000, int(round(steps * 4 * 512 / 77, -3)))


def _rate(folder: AblationFolder, settings: AblationSettings, threads: int | None, say: Say) -> None:
    import torch

    from zephyr_local.train.child import quiet_libraries
    from zephyr_local.train.tiny.feedback import feedback

    quiet_libraries()
    if threads is not None:
        torch.set_num_threads(threads)
    common = folder.common
    stages = (common.stage("dsft").folder, common.stage("pretrain").folder)
    with RecordWriter(folder.rated) as out:
        for record in feedback(settings.prompts, _FEEDBACK_SEED, *stages):
            out.write(record)
    say(f"feedback: written to {folder.rated}")


def _keep_chosen(pairs: Path, target: Path) -> None:
    with RecordWriter(target) as out:
        for record in read_records(pairs):
            value: Any = record.value
            out.write({"messages": [*value["prompt"], *value["chosen"]], "id": value["id"], "source": value["source"]})


def rated_prompts(folder: AblationFolder) -> Iterable[tuple[tuple[str, str], ...]]:
    """The prompts that feedback was given on, as pairs of role and content."""
    for record in read_records(folder.rated):
        yield tuple((turn["role"], turn["content"]) for turn in record.value["prompt"])
