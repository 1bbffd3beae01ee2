"""The checkpoint's weights, block by block in the order in which the shards store them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from zephyr_local.convert.lora import LoraDelta, rounded
from zephyr_local.convert.rope_permute import interleave_pairs
from zephyr_local.convert.safetensors_file import Shard, SourceType, StoredTensor
from zephyr_local.convert.shard_supply import ShardSupply
from zephyr_local.quantize.encode import require_finite
from zephyr_local.quantize.kernels import ggml
from zephyr_local.quantize.mapped_file import Bytes, FileHashes, MappedFile, row_ranges
from zephyr_local.quantize.source import Block, SourceTensor


@dataclass(frozen=True, slots=True)
class WantedTensor:
    """A stored tensor that is converted: what it becomes, and what is done to its rows on the way."""

    tensor: SourceTensor
    base_type: SourceType  # what the base stores it as
    head_dim: int | None = None  # rows are paired for rotary positions in heads of so many; None: they are not
    delta: LoraDelta | None = None


def read_blocks(
    shards: tuple[Shard, ...],
    wanted: Mapping[tuple[str, str], WantedTensor],
    max_weights: int,
    hashes: FileHashes,
    supply: ShardSupply | None = None,
) -> Iterator[Block]:
    """Every block of every wanted tensor (by shard and name), in the order of the shards' bytes.

    A `supply` brings each shard when it is its turn, and says whose turn it is.
    """
    if supply is not None:
        by_name = {shard.path.name: shard for shard in shards}
        shards = tuple(by_name[name] for name in supply.order(tuple(by_name)))
    for shard in shards:
        name = shard.path.name
        if supply is not None:
            supply.prepare(name)
        data = MappedFile(shard.path, shard.size_bytes, hashes)
        data.skip(0, shard.data_begin)
        for stored in shard.tensors:
            tensor = wanted.get((name, stored.name))
            if tensor is None:
                data.skip(stored.begin, stored.end)
            else:
                yield from _blocks(data, stored, tensor, max_weights)
        data.finish()
        del data
        if supply is not None:
            supply.consumed(name, hashes.digests[name])


def _blocks(data: MappedFile, stored: StoredTensor, wanted: WantedTensor, max_weights: int) -> Iterator[Block]:
    tensor = wanted.tensor
    source = SourceType[stored.dtype]
    row_bytes = tensor.n_columns * source.size_bytes
    for rows in row_ranges(tensor.n_rows, tensor.n_columns, wanted.head_dim or 1, max_weights):
        raw = data.take(stored.begin + rows.start * row_bytes, len(rows) * row_bytes)
        yield Block(
            tensor=tensor,
            first_row=rows.start,
            source_bytes=raw.nbytes,
            load=partial(_load, raw, wanted, rows.start),
        )
        del raw


def _load(raw: Bytes, wanted: WantedTensor, first_row: int) -> NDArray[np.float32]:
    tensor, base_type = wanted.tensor, wanted.base_type
    rows = ggml.decode(tensor.stored, raw, tensor.n_columns)
    require_finite(tensor.source_name, rows, first_row)
    if tensor.stored.name != base_type.name:  # an adapter's own tensor, which PEFT loads into one of the base's type
        rows = rounded(rows, base_type)
        require_finite(f"{tensor.source_name} of the adapter, as the base's {base_type.name},", rows, first_row)
    if wanted.delta is not None:
        rows = wanted.delta.merged(rows, first_row, base_type)
        require_finite(f"{tensor.source_name} with the adapter", rows, first_row)
    return rows if wanted.head_dim is None else np.ascontiguousarray(interleave_pairs(rows, wanted.head_dim))
