"""What a conversion reads: tensors with names and shapes, and their rows block by block.

A source is a checkpoint (zephyr_local.convert) or a GGUF (:mod:`zephyr_local.quantize.gguf_source`). Its tensors and
keys are known from headers alone; only ``read_blocks`` touches the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from zephyr_local.quantize.gguf_header import MetadataValue
from zephyr_local.quantize.mapped_file import FileHashes
from zephyr_local.quantize.mixes import ModelFacts
from zephyr_local.quantize.types import TensorType


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """A tensor of the model, as the source stores it."""

    name: str  # in the GGUF
    shape: tuple[int, ...]  # (n_out, n_in), or (n,) for a norm
    stored: TensorType
    kept: TensorType  # what it becomes where a mix leaves it as it is: `stored`, but F32 for a checkpoint's norms
    source_name: str  # as the source calls it: the name in errors

    @property
    def n_columns(self) -> int:
        """Weights in a row."""
        return self.shape[-1]

    @property
    def n_rows(self) -> int:
        """Rows of the matrix; 1 for a vector."""
        return math.prod(self.shape[:-1])

    @property
    def stored_bytes(self) -> int:
        """Bytes of the tensor in the source."""
        return self.stored.size_bytes(math.prod(self.shape))


@dataclass(frozen=True, slots=True)
class Block:
    """Some whole rows of a tensor, waiting to be encoded."""

    tensor: SourceTensor
    first_row: int
    source_bytes: int
    load: Callable[[], NDArray[np.float32]]  # (n_rows, n_columns), checked by require_finite; runs on an encoder thread
    encoded: NDArray[np.uint8] | None = None  # these rows as stored, where an output of the same type may copy them


class Source(Protocol):
    """A model that can be converted."""

    @property
    def name(self) -> str:
        """The model's name, for file names."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that must not be written over; those whose bytes are the weights come in `hashed`."""

    @property
    def hashed(self) -> tuple[str, ...]:
        """Names of the files that `read_blocks` reads from end to end, in the order of the manifest."""

    @property
    def tensors(self) -> tuple[SourceTensor, ...]:
        """All tensors, in no particular order."""

    @property
    def facts(self) -> ModelFacts:
        """What the mixes need to know of the model."""

    @property
    def metadata(self) -> Mapping[str, MetadataValue]:
        """Every key of the GGUF but the file type and the provenance."""

    @property
    def notices(self) -> tuple[str, ...]:
        """Lines for the user about what of the source was left out."""

    def merge_bytes(self, block_weights: int) -> int:
        """What loading a block of so many weights holds besides its rows, on one thread: an adapter's merge."""

    def read_blocks(self, max_weights: int, hashes: FileHashes) -> Iterator[Block]:
        """Every block of every tensor, in the order of the files' bytes, each byte hashed as it passes."""
