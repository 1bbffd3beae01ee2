"""The output files, decided from headers alone: types, places, sizes, parts, memory and disk.

A request is one file type of the model, written as one file or, with `split_max_bytes`, as several parts that llama.cpp
opens as one model (names and `split.*` keys as gguf-py's GGUFWriter makes them).
"""

from __future__ import annotations

import importlib.util
import math
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zephyr_local.errors import InvalidInputError
from zephyr_local.gguf_split import MAX_PARTS, SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS_COUNT, part_file_name
from zephyr_local.quantize.encode import is_copied
from zephyr_local.quantize.encoders import KERNEL_KINDS, THOROUGH_KINDS, EncoderOptions, Search
from zephyr_local.quantize.gguf_header import (
    MetadataValue,
    TensorPlace,
    ValueType,
    pack_header,
    padded,
    place_tensors,
    text,
)
from zephyr_local.quantize.mixes import MixOptions, TensorShape, choose_mix
from zephyr_local.quantize.pipeline import PipelineSize, peak_memory_bytes, pipeline_size
from zephyr_local.quantize.provenance import SEARCH_KEY, Provenance, with_provenance
from zephyr_local.quantize.source import Source, SourceTensor
from zephyr_local.quantize.types import FileType, TensorType

_QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION
_NUMBA_BYTES = 224 << 20  # 160 were measured, while it compiles everything
_TORCH_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class OutputRequest:
    """One file type of the model, and where it goes."""

    target: Path
    file_type: FileType
    mix: MixOptions = field(default_factory=MixOptions)
    split_max_bytes: int | None = None
    """The most bytes of tensors in a part; None: one file."""
    importance: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """For tensors by their name in the GGUF a weight for each column, (n_in,) float32: an importance matrix."""

    def __post_init__(self) -> None:
        if self.split_max_bytes is not None and self.split_max_bytes < 1:
            raise InvalidInputError(
                f"the largest part is {self.split_max_bytes} bytes", "Give a size such as 2G or 500M"
            )


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """What becomes of a tensor."""

    tensor: SourceTensor
    kind: TensorType
    wanted: TensorType
    """What the mix chose; `kind` differs where a row is no whole number of its blocks."""

    @property
    def size_bytes(self) -> int:
        """Bytes in the output."""
        return self.kind.size_bytes(math.prod(self.tensor.shape))


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file to be written: its whole header but for the digests."""

    path: Path
    metadata: Mapping[str, MetadataValue]
    places: tuple[TensorPlace, ...]  # in the order of the file
    is_first: bool  # of its parts; only the first one has the model's keys
    data_begin: int  # bytes from the start of the file to the tensors' data

    def header(self, provenance: Provenance) -> bytes:
        """Its length does not depend on the digests."""
        if self.is_first:
            return pack_header(with_provenance(self.metadata, provenance), self.places)
        return pack_header(provenance.part_keys() | dict(self.metadata), self.places)

    @property
    def size_bytes(self) -> int:
        """Of the whole file."""
        return self.data_begin + self.places[-1].offset + padded(self.places[-1].size_bytes)


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """What becomes of one request."""

    request: OutputRequest
    tensors: tuple[PlannedTensor, ...]  # in llama.cpp's order
    files: tuple[PlannedFile, ...]

    @property
    def size_bytes(self) -> int:
        """Of all its files."""
        return sum(file.size_bytes for file in self.files)

    @property
    def bits_per_weight(self) -> float:
        """Over all tensors, without the header."""
        return 8 * sum(t.size_bytes for t in self.tensors) / sum(math.prod(t.tensor.shape) for t in self.tensors)

    @property
    def fallbacks(self) -> tuple[PlannedTensor, ...]:
        """Tensors whose rows do not fit the type that the mix chose."""
        return tuple(tensor for tensor in self.tensors if tensor.kind is not tensor.wanted)


@dataclass(frozen=True, slots=True)
class Needs:
    """What writing the plans takes, and what there is."""

    peak_memory_bytes: int
    """Anonymous memory, reckoned generously; mapped pages of the source are the kernel's."""
    disk_bytes: Mapping[Path, int]
    """Bytes to be written, by folder."""
    free_bytes: Mapping[Path, int]
    """What the folder's disk has free."""


def plan_outputs(
    source: Source, requests: Sequence[OutputRequest], *, allow_requantize: bool, search: Search = Search.GGML
) -> list[OutputPlan]:
    """Decides every file of every request; raises InvalidInputError where a request cannot be met."""
    plans = [_plan(source, request, search, allow_requantize=allow_requantize) for request in requests]
    _require_distinct(file.path for plan in plans for file in plan.files)
    return plans


def _require_distinct(paths: Iterable[Path]) -> None:
    seen: set[Path] = set()
    for path in paths:
        place = path.parent.resolve() / path.name  # two names of one folder are the same place
        if place in seen:
            raise InvalidInputError(f"{path} would be written twice", "Give each output a name of its own")
        seen.add(place)


def _plan(source: Source, request: OutputRequest, search: Search, *, allow_requantize: bool) -> OutputPlan:
    by_name = {tensor.name: tensor for tensor in source.tensors}
    shapes = [TensorShape(tensor.name, tensor.shape, tensor.kept) for tensor in source.tensors]
    mix = choose_mix(shapes, request.file_type, source.facts, request.mix, has_importance=bool(request.importance))
    tensors = tuple(PlannedTensor(by_name[chosen.name], chosen.kind, chosen.wanted) for chosen in mix)
    _require_importance_fits(by_name, request)
    if not allow_requantize:
        _require_full_precision(tensors)
    metadata = _with_search(_with_file_type(source.metadata, request.file_type), tensors, search)
    parts = list(_parts(tensors, request.split_max_bytes))
    if len(parts) > MAX_PARTS:
        raise InvalidInputError(
            f"the model would be cut into {len(parts)} parts, above the limit of {MAX_PARTS}",
            "Give a larger --split-max-size",
        )
    unknown = Provenance.unknown(source.hashed)
    files = []
    for i, part in enumerate(parts):
        file = PlannedFile(
            path=request.target if len(parts) == 1 else part_path(request.target, i, len(parts)),
            metadata=_part_metadata(metadata, i, len(parts), len(tensors)),
            places=tuple(place_tensors((t.tensor.name, t.tensor.shape, t.kind) for t in part)),
            is_first=i == 0,
            data_begin=0,
        )
        # Packed once to be measured: with a whole vocabulary in it, that takes its time.
        files.append(replace(file, data_begin=len(file.header(unknown))))
    return OutputPlan(request, tensors, tuple(files))


def _require_importance_fits(tensors: Mapping[str, SourceTensor], request: OutputRequest) -> None:
    for name, weights in request.importance.items():
        tensor = tensors.get(name)
        if tensor is not None and weights.shape != (tensor.n_columns,):
            raise InvalidInputError(
                f"the importance of {name} has the shape {weights.shape}, and its rows have {tensor.n_columns} weights",
                "Use an importance matrix that was made with this model",
            )
        if weights.dtype != np.float32 or not weights.flags.c_contiguous:
            raise InvalidInputError(
                f"the importance of {name} is no contiguous float32 array",
                "Use numpy.ascontiguousarray(…, numpy.float32)",
            )
        if not (np.isfinite(weights).all() and (weights >= 0).all()):
            raise InvalidInputError(
                f"the importance of {name} has a value that is negative or not finite", "Make it anew"
            )


def _require_full_precision(tensors: Sequence[PlannedTensor]) -> None:
    for planned in tensors:
        stored = planned.tensor.stored
        if stored.is_quantized and planned.kind is not stored:
            raise InvalidInputError(
                f"{planned.tensor.source_name} is already quantized ({stored.name}), and making it "
                f"{planned.kind.name} loses more than making that of the original would",
                "Take the model in F32, F16 or BF16, or give --allow-requantize",
            )


def _with_file_type(metadata: Mapping[str, MetadataValue], file_type: FileType) -> dict[str, MetadataValue]:
    return dict(metadata) | {
        "general.file_type": MetadataValue(ValueType.UINT32, file_type.ftype),
        "general.quantization_version": MetadataValue(ValueType.UINT32, _QUANTIZATION_VERSION),
    }


def _with_search(
    metadata: Mapping[str, MetadataValue], tensors: Sequence[PlannedTensor], search: Search
) -> dict[str, MetadataValue]:
    """With the key that tells a thorough search, where one made some of the tensors; a GGUF may bring some along."""
    searchable = [planned for planned in tensors if planned.kind in THOROUGH_KINDS]
    copied = [planned for planned in searchable if is_copied(planned.tensor.stored, planned.kind)]
    brought = {key: value for key, value in metadata.items() if key == SEARCH_KEY and copied}
    made = {SEARCH_KEY: text(search.value)} if search is Search.THOROUGH and len(searchable) > len(copied) else {}
    return {key: value for key, value in metadata.items() if key != SEARCH_KEY} | brought | made


def _parts(tensors: Sequence[PlannedTensor], max_bytes: int | None) -> Iterator[list[PlannedTensor]]:
    """Cuts where the next tensor would pass the limit; a tensor above it has a part of its own."""
    part: list[PlannedTensor] = []
    size = 0
    for planned in tensors:
        if part and max_bytes is not None and size + planned.size_bytes > max_bytes:
            yield part
            part, size = [], 0
        part.append(planned)
        size += planned.size_bytes
    yield part


def part_path(target: Path, index: int, count: int) -> Path:
    """The name that llama.cpp gives a part, and by which it finds the others."""
    return target.with_name(part_file_name(target.name.removesuffix(".gguf"), index, count))


def _part_metadata(
    metadata: Mapping[str, MetadataValue], index: int, count: int, n_tensors: int
) -> Mapping[str, MetadataValue]:
    if count == 1:
        return metadata
    split = {
        SPLIT_NO: MetadataValue(ValueType.UINT16, index),
        SPLIT_COUNT: MetadataValue(ValueType.UINT16, count),
        SPLIT_TENSORS_COUNT: MetadataValue(ValueType.INT32, n_tensors),
    }
    return dict(metadata) | split if index == 0 else split


def encoded_kinds(plans: Iterable[OutputPlan]) -> frozenset[TensorType]:
    """The types that the plans' tensors are encoded in; those that a GGUF stores already are copied."""
    return frozenset(
        tensor.kind for plan in plans for tensor in plan.tensors if not is_copied(tensor.tensor.stored, tensor.kind)
    )


def needs(source: Source, plans: Sequence[OutputPlan], threads: int, encoders: EncoderOptions | None = None) -> Needs:
    """Memory and disk for writing the plans with so many encoder threads."""
    encoders = encoders or EncoderOptions()
    disk = disk_bytes(plans)
    largest = _largest_block(source, pipeline_size(threads, on_device=encoders.on_device))
    kinds = [{tensor.kind for tensor in plan.tensors} for plan in plans]
    peak = peak_memory_bytes(threads, largest, source.tensors, kinds) + threads * source.merge_bytes(largest)
    peak += _encoder_bytes(encoders, encoded_kinds(plans))
    free = {folder: shutil.disk_usage(_existing(folder)).free for folder in disk}
    return Needs(peak, disk, free)


def _encoder_bytes(options: EncoderOptions, kinds: Collection[TensorType]) -> int:
    """What the encoders' libraries hold, numba's compiler included, which is only needed the first time."""
    if options.on_device:
        return _TORCH_BYTES
    return _NUMBA_BYTES if KERNEL_KINDS & set(kinds) and importlib.util.find_spec("numba") is not None else 0


def disk_bytes(plans: Sequence[OutputPlan]) -> dict[Path, int]:
    """Bytes that the plans write, by folder."""
    disk: dict[Path, int] = {}
    for plan in plans:
        for file in plan.files:
            disk[file.path.parent] = disk.get(file.path.parent, 0) + file.size_bytes
    return disk


def _largest_block(source: Source, size: PipelineSize) -> int:
    """The most weights in a block; a row is not divided, nor are the rows of a head where they may be permuted."""
    heads = {"attn_q.weight": source.facts.n_heads, "attn_k.weight": source.facts.n_kv_heads}
    undivided = (
        tensor.n_columns * (tensor.n_rows // heads.get(tensor.name.split(".", 2)[-1], tensor.n_rows))
        for tensor in source.tensors
    )
    return max(size.block_weights, *undivided)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists: where it would be created."""
    return next(path for path in (folder, *folder.parents) if path.is_dir())
