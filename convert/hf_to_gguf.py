"""A model becomes GGUF files in one pass; each target is whole or absent.

The model is a Hugging Face checkpoint, a PEFT adapter (merged into its base on the way), or a GGUF.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from zephyr_local.convert.adapter_config import is_adapter, read_adapter_config, require_unambiguous
from zephyr_local.convert.checkpoint_source import open_checkpoint_source
from zephyr_local.convert.hub_cache import find_base
from zephyr_local.convert.lora import open_adapter
from zephyr_local.convert.metadata import checkpoint_name
from zephyr_local.convert.shard_supply import ShardSupply
from zephyr_local.errors import InvalidInputError
from zephyr_local.hardware import usable_cores
from zephyr_local.quantize.encoders import EncoderOptions, Search, foreseen_notices, open_encoder, require_encoders
from zephyr_local.quantize.gguf_output import require_writable_target
from zephyr_local.quantize.gguf_source import model_name, open_gguf
from zephyr_local.quantize.kernels import ggml
from zephyr_local.quantize.output_plan import Needs, OutputPlan, OutputRequest, encoded_kinds, needs, plan_outputs
from zephyr_local.quantize.pipeline import pipeline_size
from zephyr_local.quantize.progress import OnProgress, Progress, Reporter
from zephyr_local.quantize.source import Source
from zephyr_local.quantize.timings import Timings
from zephyr_local.quantize.types import FileType, TensorType
from zephyr_local.quantize.write_files import (
    ConvertResult,
    require_loadable_plans,
    require_no_input,
    require_outputs,
    write_files,
)
from zephyr_local.settings import MAX_THREADS

__all__ = [
    "ConvertOptions",
    "ConvertResult",
    "DryRun",
    "EncoderOptions",
    "OutputRequest",
    "Progress",
    "Search",
    "Timings",
    "convert_checkpoint",
    "convert_model",
    "default_target_name",
    "dry_run",
    "stored_file_type",
]


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """How a conversion runs, and what it may do."""

    threads: int | None = None
    """Encoder threads; None: the cores that this process may use. The bytes of the result do not depend on it."""
    overwrite: bool = False
    """Replace files that stand at the targets."""
    base: Path | None = None
    """The checkpoint that an adapter belongs to; None: the one that it names, where that is on this machine."""
    allow_requantize: bool = False
    """Take a GGUF that is quantized already."""
    encoders: EncoderOptions = field(default_factory=EncoderOptions)
    """Which code encodes, and how hard it searches; by default whatever is fastest here with ggml's bytes."""
    supply: ShardSupply | None = None
    """Brings the shards of a checkpoint that has none in its folder; each is asked for once, when it is its turn."""

    def __post_init__(self) -> None:
        if self.threads is not None and not 1 <= self.threads <= MAX_THREADS:
            raise InvalidInputError(
                f"threads is {self.threads}, outside 1 to {MAX_THREADS}", "Give the number of cores, or leave it out"
            )


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a conversion would write, and what it would take."""

    plans: tuple[OutputPlan, ...]
    needs: Needs
    notices: tuple[str, ...]
    hashed: tuple[str, ...]
    """Names of the files that hold the weights, in the order of the manifest."""


def default_target_name(source: Path, file_type: FileType) -> str:
    """The file name that a conversion gets where the user gives none, such as ``zephyr-7b-beta-Q4_K_M.gguf``."""
    name = model_name(source) if source.suffix == ".gguf" else checkpoint_name(source)
    return f"{name}-{file_type.name}.gguf"


def convert_model(
    source: Path,
    requests: Sequence[OutputRequest],
    options: ConvertOptions | None = None,
    on_progress: OnProgress | None = None,
    on_notice: Callable[[str], None] | None = None,
) -> list[ConvertResult]:
    """Reads the model at `source` once and writes it as each request says; returns what was written, in their order.

    `source` is a checkpoint's folder, a PEFT adapter's folder, or a GGUF. `on_notice` is told before the work what
    stands in the results' notices. Raises CheckpointError, ModelFileError, InvalidInputError or OutputError; then, and
    after KeyboardInterrupt or any exception of a callback, whatever stood at the targets is there again and nothing
    else is left behind. (Where links cannot be made, as on FAT, of several files one that has been replaced already
    stays new and complete.)
    """
    options = options or ConvertOptions()
    # Not normalised: where `link` is a link, the system's `link/..` is not the folder that the link stands in.
    source = Path(source).absolute()
    requests = [replace(request, target=Path(request.target).absolute()) for request in requests]
    reporter = Reporter(on_progress)
    reporter.begin("check")
    for request in requests:
        require_no_input(request.target, _files_at(source))
        if request.split_max_bytes is None:
            require_writable_target(request.target, overwrite=options.overwrite)
    ggml.prepare()
    opened = open_source(source, options)
    plans = _plan(opened, requests, options)
    require_outputs(opened, plans, overwrite=options.overwrite)
    encoder = open_encoder(options.encoders, encoded_kinds(plans), lambda: reporter.begin("compile"))
    if on_notice is not None:
        for notice in (*opened.notices, *encoder.notices):
            on_notice(notice)
    size = pipeline_size(options.threads or usable_cores(), on_device=options.encoders.on_device)
    return write_files(opened, plans, encoder, size, reporter, overwrite=options.overwrite)


def convert_checkpoint(
    source: Path,
    target: Path,
    file_type: FileType,
    options: ConvertOptions | None = None,
    on_progress: OnProgress | None = None,
) -> ConvertResult:
    """:func:`convert_model` for one file."""
    return convert_model(source, [OutputRequest(target, file_type)], options, on_progress)[0]


def dry_run(source: Path, requests: Sequence[OutputRequest], options: ConvertOptions | None = None) -> DryRun:
    """What :func:`convert_model` would do, from headers alone; nothing is written. Raises as that does before its work.

    What stands at the targets and what the disk has free is told, not judged.
    """
    options = options or ConvertOptions()
    opened = open_source(Path(source).absolute(), options)
    requests = [replace(request, target=Path(request.target).absolute()) for request in requests]
    plans = _plan(opened, requests, options)
    kinds = encoded_kinds(plans)
    require_encoders(options.encoders, kinds)
    require_loadable_plans(opened, plans)
    found = needs(opened, plans, options.threads or usable_cores(), options.encoders)
    notices = (*opened.notices, *foreseen_notices(options.encoders, kinds))
    return DryRun(tuple(plans), found, notices, opened.hashed)


def _plan(source: Source, requests: Sequence[OutputRequest], options: ConvertOptions) -> list[OutputPlan]:
    return plan_outputs(source, requests, allow_requantize=options.allow_requantize, search=options.encoders.search)


def open_source(path: Path, options: ConvertOptions) -> Source:
    """Opens and checks the model at a path, whatever kind it is of."""
    if path.is_dir():
        require_unambiguous(path)
    if path.is_dir() and is_adapter(path):
        return open_checkpoint_source(adapter_base(path, options.base), open_adapter(path))
    if options.base is not None:
        raise InvalidInputError(
            f"{path} is no adapter, so it has no base", "Leave out --base, or give an adapter's folder"
        )
    if path.is_dir() or not _may_be_gguf(path):
        return open_checkpoint_source(path, supply=options.supply)
    return open_gguf(path)


def adapter_base(adapter: Path, base: Path | None) -> Path:
    """The folder of an adapter's base: the given one, else the one that the adapter names; neither is downloaded."""
    if base is not None:
        if base.exists() or base.is_absolute():
            return base.absolute()
        return find_base(str(base), None, adapter).absolute()
    config = read_adapter_config(adapter)
    if config.base_model is None:
        raise InvalidInputError(f"the adapter {adapter} does not name its base", "Give the base's folder with --base")
    return find_base(config.base_model, config.revision, adapter)


def stored_file_type(path: Path, options: ConvertOptions | None = None) -> FileType:
    """The type that most weights of a model are stored in, if it is one of the floats."""
    source = open_source(Path(path).absolute(), options or ConvertOptions())
    counts: Counter[TensorType] = Counter()
    for tensor in source.tensors:
        counts[tensor.kept] += math.prod(tensor.shape)
    stored = counts.most_common(1)[0][0]
    if stored.is_quantized:
        raise InvalidInputError(f"{path} is quantized ({stored.name})", "Say which type to write")
    return FileType[stored.name]


def _may_be_gguf(path: Path) -> bool:
    return path.exists() or path.suffix == ".gguf"


def _files_at(source: Path) -> tuple[Path, ...]:
    return tuple(source.iterdir()) if source.is_dir() else (source,)
