"""A recipe run from end to end: each stage's data, then the stage, each in a process of its own; then the export.

Nothing here imports torch. What is done is not done again, and what was killed goes on (docs/design/training.md).
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from zephyr_local.errors import CheckpointError, InvalidInputError
from zephyr_local.offline import is_offline, require_online
from zephyr_local.train.child import ERROR_FILE, TrainingError, read_error, report_nothing
from zephyr_local.train.launch import LaunchOptions, launch_command
from zephyr_local.train.recipe import Recipe, Stage
from zephyr_local.train.run_folder import RunFolder

_BASE_FILES: Final = ("config.json", "tokenizer.model", "tokenizer.json", "model.safetensors.index.json")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a recipe is run; none of it changes what is trained."""

    only: Stage | None = None
    """Run this stage alone; those before it must be done."""
    threads: int | None = None
    launch: LaunchOptions = field(default_factory=LaunchOptions)
    export: tuple[str, ...] | None = None
    """GGUF types of the last stage, such as ``q4_k_m``; None: the recipe's."""
    plot: bool = False
    keep_checkpoints: bool = False
    force: bool = False
    """Begin although the guard objects."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run left."""

    model: Path
    """The folder of the last stage that was run."""
    ggufs: tuple[Path, ...]


def run_recipe(
    recipe: Recipe, out: Path, options: RunOptions | None = None, say: Callable[[str], None] = lambda _line: None
) -> RunResult:
    """Run a recipe in `out`, or go on with the run that is there.

    Raises InvalidInputError where `out` holds another run, OfflineError before anything is begun that would need the
    hub and may not ask it, TrainingError where a stage ends early, and what a stage itself raises; running it again
    goes on.
    """
    options = options or RunOptions()
    if options.only is not None and options.only not in recipe.stages:
        raise InvalidInputError(f"the recipe has no stage {options.only}", f"It has {', '.join(recipe.stages)}")
    run = RunFolder(Path(out).absolute())
    _require_reachable(recipe, run, options.only)
    with run.lock() as lock:
        recipe = replace(recipe, base=str(_local_base(recipe.base, say))) if recipe.base else recipe
        recipe = run.begin(recipe, _facts(recipe))
        children = _Children(run, options, lock)
        for stage in recipe.stages:
            if options.only is not None and options.only != stage:
                if recipe.stages.index(stage) < recipe.stages.index(options.only):
                    _require_done(run, stage)
                continue
            _one_stage(run, recipe, stage, children, say)
        last = options.only or recipe.stages[-1]
        if options.plot:
            children.run("plots", [str(run.stage(stage).folder) for stage in recipe.stages])
        ggufs = _export(run, recipe, last, options, children, say)
    return RunResult(run.stage(last).folder, ggufs)


def _one_stage(run: RunFolder, recipe: Recipe, stage: Stage, children: _Children, say: Callable[[str], None]) -> None:
    folder = run.stage(stage)
    if folder.done.is_file():
        say(f"{stage}: done before")
        return
    if not folder.data_report.is_file():
        online = ["--online"] if any(source.startswith("hub:") for source in recipe.data[stage].sources) else []
        children.run("prepare", [str(run.folder), stage, *online])
    folder.folder.mkdir(parents=True, exist_ok=True)
    if not folder.results.is_file():
        children.run_stage(stage)
    children.finish(stage)
    if not folder.done.is_file():
        raise TrainingError(f"the stage {stage} ended without being complete", "Run it again: it goes on")


def _require_done(run: RunFolder, stage: Stage) -> None:
    if not run.stage(stage).done.is_file():
        raise InvalidInputError(
            f"the stage {stage} comes first and is not done in {run.folder}",
            f"Run it, or start elsewhere: --set base=FOLDER --set stages=[…] without {stage}",
        )


def _export(
    run: RunFolder,
    recipe: Recipe,
    stage: Stage,
    options: RunOptions,
    children: _Children,
    say: Callable[[str], None],
) -> tuple[Path, ...]:
    types = recipe.export if options.export is None else options.export
    name = recipe.name if stage == recipe.stages[-1] else f"{recipe.name}-{stage}"
    targets = tuple(run.folder / f"{name}-{kind.upper()}.gguf" for kind in types)
    wanted = [(kind, target) for kind, target in zip(types, targets, strict=True) if not target.is_file()]
    if wanted:
        say(f"export: {', '.join(str(target.name) for _, target in wanted)}")
        arguments = [item for kind, target in wanted for item in (kind, str(target))]
        children.run("export", [str(run.stage(stage).folder), *arguments])
    return targets


class _Children:
    """The run's processes: each holds the lock, inherits the terminal, and leaves its error in a file."""

    def __init__(self, run: RunFolder, options: RunOptions, lock: int) -> None:
        self._run, self._options, self._lock = run, options, lock

    def run(self, module: str, arguments: Sequence[str]) -> None:
        threads = ["--threads", str(self._options.threads)] if self._options.threads is not None else []
        self._call([sys.executable, "-P", "-m", f"zephyr_local.train.{module}", *arguments, *threads], module)

    def finish(self, stage: Stage) -> None:
        keep = ["--keep-checkpoints"] if self._options.keep_checkpoints else []
        self.run("finish", [str(self._run.folder), stage, *keep])

    def run_stage(self, stage: Stage) -> None:
        options = self._options
        arguments = [str(self._run.folder), stage, "--world", str(options.launch.n_processes)]
        arguments += ["--threads", str(options.threads)] if options.threads is not None else []
        arguments += ["--force"] if options.force else []
        self._call(launch_command(options.launch, "zephyr_local.train.stage", arguments), stage)

    def _call(self, command: Sequence[str], name: str) -> None:
        with tempfile.TemporaryDirectory(prefix="zephyr-local-") as scratch:
            error_file = Path(scratch) / "error.json"
            # torchrun and accelerate do not pass -P on to the processes that they start
            environment = os.environ | {ERROR_FILE: str(error_file), "PYTHONSAFEPATH": "1"}
            if self._options.threads is not None:
                environment["OMP_NUM_THREADS"] = str(self._options.threads)
            pass_fds = () if os.name == "nt" else (self._lock,)
            process = subprocess.Popen(command, env=environment, pass_fds=pass_fds)
            with _passing_on_sigterm(process):
                try:
                    code = process.wait()
                except KeyboardInterrupt:
                    process.wait()  # Ctrl+C went to the whole group
                    raise
            if code:
                raise read_error(error_file, name, code)


@contextmanager
def _passing_on_sigterm(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """While it runs, a SIGTERM to this process (a scheduler's, say) goes to that one, which would stay behind."""
    if threading.current_thread() is not threading.main_thread():  # where Python lets nobody handle signals
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda _number, _frame: process.terminate())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _require_reachable(recipe: Recipe, run: RunFolder, only: Stage | None) -> None:
    """Raise OfflineError where a base or data would be fetched and no connection may leave this machine."""
    if not is_offline():
        return
    if recipe.base and not (Path(recipe.base) / "config.json").is_file():
        try:
            _base_here(recipe.base)
        except CheckpointError:
            require_online(f"fetching the base {recipe.base}, which is not on this machine,")
    for stage in recipe.stages if only is None else (only,):
        if not run.stage(stage).data_report.is_file():
            require_sources_reachable(stage, recipe.data[stage].sources)


def require_sources_reachable(what: str, sources: Sequence[str]) -> None:
    """Raise OfflineError where one of them is streamed from the hub and no connection may leave this machine."""
    for source in sources:
        if source.startswith("hub:"):
            require_online(f"reading {source} for {what}")


def _base_here(name: str) -> Path:
    """A base's folder in the hub's cache; raises CheckpointError."""
    from zephyr_local.convert.hub_cache import find_base

    return find_base(name, None, Path.cwd())


def _local_base(name: str, say: Callable[[str], None]) -> Path:
    """The base's folder: given, in the hub's cache, or fetched: the recipe names it, which is asking for it."""
    if (Path(name) / "config.json").is_file():
        return Path(name).absolute()
    try:
        return _base_here(name)
    except CheckpointError as missing:
        say(f"fetching {name} from the hub")
        report_nothing()
        try:
            from huggingface_hub import snapshot_download

            patterns = ["*.safetensors", "*.json", "tokenizer.model", "README.md"]
            return Path(snapshot_download(name, allow_patterns=patterns))
        except Exception as error:
            raise InvalidInputError(
                f"the base {name} is not on this machine and cannot be fetched: {error}",
                f"Give --set base=FOLDER. ({missing.problem})",
            ) from None


def require_sources(recipe: Recipe) -> list[tuple[Stage, Path]]:
    """The files that a recipe's stages take their data from. Raises InvalidInputError for one that is not there."""
    sources = [(stage, source) for stage in recipe.stages for source in recipe.data[stage].sources]
    files = [(stage, Path(source)) for stage, source in sources if not source.startswith(("hub:", "made:"))]
    for stage, file in files:
        if not file.is_file():
            raise InvalidInputError(f"data.{stage} names {file}, which is not there", "Check the path")
    return files


def _facts(recipe: Recipe) -> dict[str, Any]:
    """What a run may not change between its parts, besides the settings: the base's and the data's bytes."""
    facts: dict[str, Any] = {}
    if recipe.base:
        base = Path(recipe.base)
        found = [base / name for name in _BASE_FILES if (base / name).is_file()]
        facts["base.files"] = {path.name: _digest(path) for path in found} | {
            path.name: path.stat().st_size for path in sorted(base.glob("*.safetensors"))
        }
    return facts | {f"data.{stage}.digest {file}": _digest(file) for stage, file in require_sources(recipe)}


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
