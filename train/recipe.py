"""Recipes: folders of YAML that say what a run does. recipe.yaml is ours, one file a stage is TRL's.

Reading a recipe needs no torch; TRL's own parser reads its files when a stage begins, and refuses keys that it does not
know (see docs/design/training.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, Self, get_args

from zephyr_local.errors import InvalidInputError

Stage = Literal["pretrain", "dsft", "ddpo"]
SystemTurn = Literal["as_written", "empty"]
"""``empty``: a chat without a system turn gets an empty one, as the code of 2023 did; in training and in serving."""

STAGES: Final[tuple[Stage, ...]] = get_args(Stage)
RECIPES_FOLDER: Final = Path(__file__).parent / "recipes"

# Keys of a stage's file that may change between a run and its going on: they change no weight.
FREE_STAGE_KEYS: Final = frozenset(
    {
        "logging_steps", "logging_strategy", "logging_first_step", "log_level", "report_to", "run_name", "save_steps",
        "save_total_limit", "save_strategy", "disable_tqdm", "dataset_num_proc", "dataloader_num_workers",
        "dataloader_pin_memory",
    }
)  # fmt: skip
_SET_BY_US: Final = frozenset(
    {"model_name_or_path", "output_dir", "dataset_name", "datasets", "resume_from_checkpoint", "env"}
)
"""And ``env``, by which TRL would let a file set environment variables."""
FREE_OWN_KEYS: Final = frozenset({"name", "export", "stages"})
"""Of recipe.yaml: another name or export, or a further stage, changes nothing that is there."""


@dataclass(frozen=True, slots=True)
class StageData:
    """Where a stage's data comes from, and how it is prepared."""

    train: tuple[str, ...] = ()
    """Files (JSONL, JSON, Parquet; relative ones to the recipe), ``hub:REPO@SPLIT``, ``made:NAME``."""
    test: tuple[str, ...] = ()
    held_out: float = 0.0
    """Without `test`: this share of the prompts is kept out for it."""
    prepare: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the step that cleans dialogues, or binarises and filters preferences."""

    @property
    def sources(self) -> tuple[str, ...]:
        """All of both splits."""
        return (*self.train, *self.test)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe as it runs: read, --set applied, checked as far as it can be without torch."""

    name: str
    folder: Path
    own: Mapping[str, Any]
    """recipe.yaml."""
    trl: Mapping[Stage, Mapping[str, Any]]
    """A stage's YAML for TRL's parser."""
    base: str
    """A folder, or a repository of the hub, or empty where `new` makes the model."""
    new: str
    """A maker of models, such as ``tiny``."""
    template: str
    system_turn: SystemTurn
    stages: tuple[Stage, ...]
    sequences_a_step: Mapping[Stage, int]
    data: Mapping[Stage, StageData]
    export: tuple[str, ...]

    @classmethod
    def read(cls, name_or_folder: str | Path, overrides: Sequence[str] = ()) -> Self:
        """A bundled recipe by its name, or a folder; `overrides` are ``key=value``, such as
        ``dsft.learning_rate=1e-5`` (a key of a stage's file) or ``base=./mistral-7b`` (one of recipe.yaml).

        Raises InvalidInputError, naming the file and key.
        """
        folder = _find(name_or_folder)
        own = _read_yaml(folder / "recipe.yaml")
        trl = {stage: _read_yaml(folder / f"{stage}.yaml") for stage in STAGES if (folder / f"{stage}.yaml").is_file()}
        for override in overrides:
            _apply(override, own, trl)
        return cls._checked(folder, own, trl)

    @classmethod
    def _checked(cls, folder: Path, own: dict[str, Any], trl: dict[Stage, dict[str, Any]]) -> Self:
        file = folder / "recipe.yaml"
        known = {
            "name",
            "base",
            "new",
            "template",
            "system_turn",
            "stages",
            "sequences_a_step",
            "data",
            "export",
            "rounds",
        }
        _require_keys(own, known, file)
        stages = _stages(own.get("stages"), trl, folder)
        if bool(own.get("base")) == bool(own.get("new")):
            problem = "both base and new" if own.get("base") else "neither base nor new"
            raise InvalidInputError(f"{file} has {problem}", "Name what the first stage starts from")
        data = _mapping(own.get("data", {}), f"data in {file}")
        sequences: dict[Any, Any] = _mapping(own.get("sequences_a_step", {}), f"sequences_a_step in {file}")
        for name, entry in {**data, **sequences}.items():
            if name not in STAGES:
                raise InvalidInputError(f"{file} names the stage {name!r}", f"Stages are {', '.join(STAGES)}")
            if name in sequences and (type(sequences[name]) is not int or sequences[name] < 1):
                raise InvalidInputError(f"sequences_a_step.{name} is {entry!r} in {file}", "Give a whole number")
        for stage in stages:
            if stage not in data:
                raise InvalidInputError(f"{file} has no data for the stage {stage}", f"Add data.{stage}.train")
        return cls(
            name=str(own.get("name", folder.name)),
            folder=folder,
            own=own,
            trl=trl,
            base=_base(str(own.get("base") or ""), folder),
            new=str(own.get("new") or ""),
            template=_template(str(own.get("template", "zephyr")), folder),
            system_turn=_system_turn(own.get("system_turn", "as_written"), file),
            stages=stages,
            sequences_a_step=sequences,
            data={stage: _stage_data(stage, data[stage], folder, file) for stage in stages},
            export=tuple(str(name) for name in own.get("export") or ()),
        )

    def settings(self) -> dict[str, Any]:
        """Everything that decides the weights, flat: ``dsft.learning_rate`` → value."""
        flat = _flat({key: value for key, value in self._resolved().items() if key not in FREE_OWN_KEYS})
        for stage in self.stages:
            flat |= {f"{stage}.{k}": v for k, v in _flat(self.trl[stage]).items() if k not in FREE_STAGE_KEYS}
        return flat

    def _resolved(self) -> dict[str, Any]:
        """recipe.yaml with every path absolute and every default written out."""
        data = {
            stage: {
                "train": list(entry.train),
                "test": list(entry.test),
                "held_out": entry.held_out,
                "prepare": dict(entry.prepare),
            }
            for stage, entry in self.data.items()
        }
        own = {
            "name": self.name,
            "base": self.base,
            "new": self.new,
            "template": self.template,
            "system_turn": self.system_turn,
            "stages": list(self.stages),
            "sequences_a_step": dict(self.sequences_a_step),
            "data": data,
            "export": list(self.export),
        }
        return {key: value for key, value in own.items() if value not in ("", {})}

    def write(self, folder: Path) -> None:
        """The recipe as it runs, as a folder that :meth:`read` reads; paths in it are absolute."""
        import yaml

        from zephyr_local.train.data.records import write_whole

        files: dict[str, Mapping[str, Any]] = {"recipe": self._resolved()}
        for stage in self.stages:
            files[stage] = self.trl[stage]
        for name, value in files.items():
            text = yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True)
            write_whole(folder / f"{name}.yaml", text.encode())


def bundled_recipes() -> dict[str, str]:
    """The recipes in the package: name → the first line of recipe.yaml's comment."""
    found = {}
    for file in sorted(RECIPES_FOLDER.glob("*/recipe.yaml")):
        first = file.read_text(encoding="utf-8").splitlines()[0]
        found[file.parent.name] = first.lstrip("# ")
    return found


def _find(name_or_folder: str | Path) -> Path:
    for folder in (Path(name_or_folder), RECIPES_FOLDER / name_or_folder):
        if (folder / "recipe.yaml").is_file():
            return folder.absolute()
    raise InvalidInputError(
        f"there is no recipe {str(name_or_folder)!r}",
        f"Give a folder with a recipe.yaml, or one of {', '.join(bundled_recipes())}",
    )


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        value = yaml.load(path.read_bytes(), _loader())
    except FileNotFoundError:
        raise InvalidInputError(f"there is no {path}", "Add it to the recipe") from None
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path} cannot be read: {error}", "Mend the file") from None
    return _mapping(value if value is not None else {}, str(path))


def _loader() -> Any:  # noqa: ANN401 — yaml has no types
    """YAML's safe loader, to which 1e-5 is a number (YAML 1.1 wants 1.0e-5 and makes a text of it)."""
    import re

    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        pass

    number = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+\Z")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789."))
    return Loader


def _apply(override: str, own: dict[str, Any], trl: dict[Stage, dict[str, Any]]) -> None:
    import yaml

    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise InvalidInputError(f"--set {override!r} is no key=value", "Write --set dsft.learning_rate=1e-5, say")
    try:
        value = yaml.load(text, _loader())
    except yaml.YAMLError as error:
        raise InvalidInputError(f"--set {key}: {text!r} is no YAML value: {error}", "Quote it") from None
    target: dict[str, Any] = own
    stage = next((stage for stage in STAGES if stage == parts[0]), None)
    if stage is not None and len(parts) > 1:
        if stage not in trl:
            raise InvalidInputError(f"--set {key}: the recipe has no stage {stage}", f"It has {', '.join(trl)}")
        target, parts = trl[stage], parts[1:]
    else:
        value = _from_here(parts, value)
        if value and parts in (["base"], ["new"]):  # one of the two is what a run starts from
            own.pop("new" if parts == ["base"] else "base", None)
    for index, part in enumerate(parts[:-1]):
        inner = target.setdefault(part, {})
        if not isinstance(inner, dict):
            raise InvalidInputError(f"--set {key}: {'.'.join(parts[: index + 1])} is no mapping", "Check the key")
        target = inner
    target[parts[-1]] = value


def _from_here(parts: Sequence[str], value: Any) -> Any:  # noqa: ANN401 — YAML's
    """A value of --set, its files looked for where the command runs; a recipe's own are relative to the recipe."""
    if isinstance(value, dict):
        return {key: _from_here([*parts, str(key)], entry) for key, entry in value.items()}
    if parts[-1] not in ("train", "test", "against", "template", "prompts", "models", "templates"):
        return value
    if isinstance(value, list):
        return [_from_here(parts, entry) for entry in value]
    return str(Path(value).absolute()) if isinstance(value, str) and Path(value).exists() else value


def _stages(value: object, trl: Mapping[Stage, Any], folder: Path) -> tuple[Stage, ...]:
    names = value if value is not None else list(trl)
    if not isinstance(names, list) or not names or any(name not in STAGES for name in names):
        raise InvalidInputError(f"stages is {value!r} in {folder}", f"Give some of {', '.join(STAGES)}, in this order")
    chosen = tuple(stage for stage in STAGES if stage in names)
    if list(chosen) != names:
        raise InvalidInputError(f"stages are {', '.join(names)} in {folder}", f"The order is {', '.join(chosen)}")
    for stage in chosen:
        if stage not in trl:
            raise InvalidInputError(f"there is no {folder / stage}.yaml", f"Add it, or leave {stage} out of stages")
        for key in sorted(_SET_BY_US & trl[stage].keys()):
            raise InvalidInputError(
                f"{folder / stage}.yaml sets {key}", "Remove it: the run sets it from recipe.yaml and its folder"
            )
    return chosen


def _stage_data(stage: Stage, value: object, folder: Path, file: Path) -> StageData:
    entry = _mapping(value, f"data.{stage} in {file}")
    _require_keys(entry, {item.name for item in fields(StageData)}, file, f"data.{stage}.")
    train = _sources(entry.get("train"), folder, f"data.{stage}.train in {file}")
    if not train:
        raise InvalidInputError(f"data.{stage}.train is empty in {file}", "Name files, hub:REPO@SPLIT or made:NAME")
    test = _sources(entry.get("test"), folder, f"data.{stage}.test in {file}")
    held_out = entry.get("held_out", 0.0)
    if not isinstance(held_out, (int, float)) or isinstance(held_out, bool) or not 0 <= held_out < 1:
        raise InvalidInputError(f"data.{stage}.held_out is {held_out!r} in {file}", "Give a share from 0 to below 1")
    if test and held_out:
        raise InvalidInputError(f"data.{stage} has test and held_out in {file}", "Give one of the two")
    prepare = dict(_mapping(entry.get("prepare") or {}, f"data.{stage}.prepare in {file}"))
    if "against" in prepare:  # files of prompts, relative ones to the recipe like all others
        prepare["against"] = list(_sources(prepare["against"], folder, f"data.{stage}.prepare.against in {file}"))
    return StageData(train, test, float(held_out), prepare)


def _sources(value: object, folder: Path, what: str) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value if value is not None else []
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise InvalidInputError(f"{what} is {value!r}", "Give a list of files, hub:REPO@SPLIT or made:NAME")
    return tuple(name if name.startswith(("hub:", "made:")) else str((folder / name).absolute()) for name in names)


def _base(name: str, folder: Path) -> str:
    """Relative folders are relative to where the command runs, or to the recipe; else a repository's name."""
    for place in (Path(name), folder / name):
        if name and (place / "config.json").is_file():
            return str(place.absolute())
    if name and (name.startswith((".", "/", "~")) or name.count("/") != 1):
        raise InvalidInputError(f"the base {name!r} is no folder with a config.json", "Give --set base=FOLDER")
    return name


def _system_turn(value: object, file: Path) -> SystemTurn:
    for rule in get_args(SystemTurn):
        if value == rule:
            return rule  # type: ignore[no-any-return]  # get_args knows no types
    raise InvalidInputError(f"system_turn is {value!r} in {file}", f"Use {' or '.join(get_args(SystemTurn))}")


def _template(name: str, folder: Path) -> str:
    return name if name == "zephyr" or Path(name).is_absolute() else str((folder / name).absolute())


def _mapping(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise InvalidInputError(f"{what} is no mapping", "Write key: value lines")
    return value


def _require_keys(entry: Mapping[str, Any], known: set[str], file: Path, prefix: str = "") -> None:
    for key in entry:
        if key not in known:
            raise InvalidInputError(f"{file} has the unknown key {prefix}{key}", f"Known: {', '.join(sorted(known))}")


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, entry in value.items():
        if isinstance(entry, Mapping):
            flat |= _flat(entry, f"{prefix}{key}.")
        else:
            flat[prefix + key] = entry
    return flat
