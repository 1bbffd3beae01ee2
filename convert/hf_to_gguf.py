"""A Hugging Face checkpoint becomes a GGUF file in one pass; the target is whole or absent."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from zephyr_local.convert.checkpoint import Checkpoint, open_checkpoint
from zephyr_local.convert.metadata import Provenance, build_metadata, checkpoint_name, with_provenance
from zephyr_local.convert.row_blocks import Destination, ShardHashes, read_blocks
from zephyr_local.errors import CheckpointError, InvalidInputError, ModelFileError, OutputError
from zephyr_local.hardware import usable_cores
from zephyr_local.quantize.encode import Block, WrittenRange, block_weights, encode_blocks
from zephyr_local.quantize.gguf_header import MetadataValue, TensorPlace, pack_header, padded, place_tensors
from zephyr_local.quantize.gguf_output import (
    OutputFile,
    remove_dead_leftovers,
    require_free_space,
    require_same_tensors,
    require_writable_target,
)
from zephyr_local.quantize.kernels import ggml
from zephyr_local.quantize.mixes import ModelFacts, TensorShape, choose_types
from zephyr_local.quantize.types import FileType
from zephyr_local.settings import MAX_THREADS


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """How a conversion runs; nothing here changes the bytes of the result."""

    threads: int | None = None
    """Encoder threads; None: the cores that this process may use."""
    overwrite: bool = False
    """Replace a file that stands at the target."""

    def __post_init__(self) -> None:
        if self.threads is not None and not 1 <= self.threads <= MAX_THREADS:
            raise InvalidInputError(
                f"threads is {self.threads}, outside 1 to {MAX_THREADS}", "Give the number of cores, or leave it out"
            )


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a conversion is; the callback runs on the thread that called convert_checkpoint."""

    stage: Literal["check", "convert", "verify"]
    tensor: str
    """The tensor that a block was just finished of, by its name in the checkpoint; empty at the start of a stage."""
    done_bytes: int
    """Of the checkpoint's tensors in the stage "convert", of the output's in "verify"."""
    total_bytes: int
    tensor_index: int
    """Tensors begun in this stage, counting the current one."""
    n_tensors: int
    elapsed_s: float
    """Since the stage began."""

    @property
    def bytes_per_s(self) -> float:
        """Rate of this stage so far; 0 where nothing can be said yet."""
        return self.done_bytes / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def remaining_s(self) -> float | None:
        """Time left in this stage at its rate so far; None where nothing can be said yet."""
        return (self.total_bytes - self.done_bytes) / self.bytes_per_s if self.bytes_per_s > 0 else None


@dataclass(frozen=True, slots=True)
class ConvertResult:
    """What was written."""

    path: Path
    size_bytes: int
    n_tensors: int
    bits_per_weight: float
    source_sha256: str
    elapsed_s: float
    notices: tuple[str, ...] = ()
    """Lines for the user about what of the checkpoint was left out."""


OnProgress = Callable[[Progress], None]


def default_target_name(source: Path, file_type: FileType) -> str:
    """The file name that a conversion gets where the user gives none, such as ``zephyr-7b-beta-Q4_K_M.gguf``."""
    return f"{checkpoint_name(source)}-{file_type.name}.gguf"


def convert_checkpoint(
    source: Path,
    target: Path,
    file_type: FileType,
    options: ConvertOptions | None = None,
    on_progress: OnProgress | None = None,
) -> ConvertResult:
    """Writes the checkpoint in the folder `source` as `target`, in the given type, and returns what was written.

    Raises CheckpointError or OutputError; then, and after KeyboardInterrupt or any exception of `on_progress`, whatever
    stood at `target` is untouched and nothing else is left behind.
    """
    options = options or ConvertOptions()
    started = time.monotonic()
    reporter = _Reporter(on_progress)
    # Not normalised: where `link` is a link, the system's `link/..` is not the folder that the link stands in.
    source, target = Path(source).absolute(), Path(target).absolute()
    reporter.begin("check", 0, 0)
    _require_no_input(target, source)
    require_writable_target(target, overwrite=options.overwrite)
    ggml.prepare()
    checkpoint = open_checkpoint(source)
    plan = _plan(checkpoint, file_type)
    remove_dead_leftovers(target)
    require_free_space(target.parent, plan.size_bytes)
    with OutputFile(target, plan.size_bytes, overwrite=options.overwrite) as output:
        output.write_at(0, plan.header(Provenance.unknown(plan.shard_names)))
        output.reserve()
        _require_loadable(output.path, plan.places)
        digests, ranges = _stream(checkpoint, plan, output, options.threads or usable_cores(), reporter)
        provenance = Provenance(plan.shard_names, digests)
        reporter.begin("verify", sum(written.size_bytes for written in ranges), len(plan.places))
        output.write_at(0, plan.header(provenance))
        output.verify(ranges, reporter.verified)
        require_same_tensors(output.path, plan.places)
        output.commit()
    data_bytes = sum(place.size_bytes for place in plan.places)
    return ConvertResult(
        path=target,
        size_bytes=plan.size_bytes,
        n_tensors=len(plan.places),
        bits_per_weight=8 * data_bytes / plan.n_weights,
        source_sha256=provenance.sha256,
        elapsed_s=time.monotonic() - started,
        notices=plan.notices,
    )


@dataclass(frozen=True, slots=True)
class _Plan:
    """The output file, decided from headers alone."""

    metadata: dict[str, MetadataValue]
    places: list[TensorPlace]  # in the order of the file
    shard_names: tuple[str, ...]
    n_weights: int
    data_begin: int
    notices: tuple[str, ...]

    def header(self, provenance: Provenance) -> bytes:
        """Its length does not depend on the digests."""
        return pack_header(with_provenance(self.metadata, provenance), self.places)

    @property
    def size_bytes(self) -> int:
        return self.data_begin + self.places[-1].offset + padded(self.places[-1].size_bytes)


def _plan(checkpoint: Checkpoint, file_type: FileType) -> _Plan:
    config = checkpoint.config
    shapes = {tensor.name: tensor.shape for tensor in checkpoint.wanted.values()}
    n_weights = sum(math.prod(shape) for shape in shapes.values())
    facts = ModelFacts(config.n_layers, config.n_heads, config.n_kv_heads)
    types = choose_types((TensorShape(name, shape) for name, shape in shapes.items()), file_type, facts)
    places = place_tensors((name, shapes[name], kind) for name, kind in types.items())
    metadata, notices = build_metadata(checkpoint.folder, config, checkpoint.vocabulary, file_type, n_weights)
    shard_names = tuple(shard.path.name for shard in checkpoint.shards)
    header = pack_header(with_provenance(metadata, Provenance.unknown(shard_names)), places)
    return _Plan(metadata, places, shard_names, n_weights, len(header), tuple(notices))


def _require_no_input(target: Path, source: Path) -> None:
    """Refuses a target that is one of the checkpoint's own files, by whatever name."""
    if not target.exists() or not source.is_dir():
        return
    for path in source.iterdir():
        if path.exists() and path.samefile(target):
            raise OutputError(f"{target} is the input {path}", "Give the output another name or folder")


def _require_loadable(path: Path, places: Sequence[TensorPlace]) -> None:
    """Shows the header to the runtime before the work: what it would refuse to load is better known now."""
    try:
        require_same_tensors(path, places)
    except ModelFileError as error:
        problem = error.problem.removeprefix(f"{path.name}: ")
        raise CheckpointError(
            f"the converted model could not be loaded here: {problem}", "Check config.json and the tokenizer's files"
        ) from error


def _stream(
    checkpoint: Checkpoint, plan: _Plan, output: OutputFile, threads: int, reporter: _Reporter
) -> tuple[tuple[str, ...], list[WrittenRange]]:
    """Converts every tensor; returns the shards' SHA-256 and what was written where."""
    places = {place.name: place for place in plan.places}
    destinations = {
        name: Destination(expected, places[expected.name], plan.data_begin + places[expected.name].offset)
        for name, expected in checkpoint.wanted.items()
    }
    reporter.begin("convert", checkpoint.wanted_bytes, len(destinations))
    hashes = ShardHashes()
    try:
        blocks = read_blocks(
            checkpoint.shards, destinations, checkpoint.config.head_dim, block_weights(threads), hashes
        )
        ranges = encode_blocks(blocks, output.write_at, threads, reporter.converted)
    finally:
        hashes.close()
    return tuple(hashes.digests[name] for name in plan.shard_names), ranges


class _Reporter:
    """Counts what is done and tells the callback, if there is one."""

    def __init__(self, on_progress: OnProgress | None) -> None:
        self._tell = on_progress
        self._began = time.monotonic()
        self._now = Progress("check", "", 0, 0, 0, 0, 0.0)

    def begin(self, stage: Literal["check", "convert", "verify"], total_bytes: int, n_tensors: int) -> None:
        self._began = time.monotonic()
        self._update(Progress(stage, "", 0, total_bytes, 0, n_tensors, 0.0))

    def converted(self, block: Block) -> None:
        self._advance(block.tensor, block.source_bytes)

    def verified(self, written: WrittenRange) -> None:
        self._advance(written.tensor, written.size_bytes)

    def _advance(self, tensor: str, size_bytes: int) -> None:
        now = self._now
        begun = now.tensor_index + (tensor != now.tensor)
        elapsed = time.monotonic() - self._began
        done = now.done_bytes + size_bytes
        self._update(replace(now, tensor=tensor, done_bytes=done, tensor_index=begun, elapsed_s=elapsed))

    def _update(self, progress: Progress) -> None:
        self._now = progress
        if self._tell is not None:
            self._tell(progress)
