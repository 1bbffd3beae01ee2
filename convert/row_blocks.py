"""The weights, block by block in the order in which the shards store them, each byte hashed as it passes.

Only :func:`read_blocks` touches the shards' data. A block's bytes are copied out of the mapping once; the hash and the
encoder both see that copy, so what is hashed is what is converted.
"""

from __future__ import annotations

import hashlib
import mmap
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from zephyr_local.convert.rope_permute import interleave_pairs
from zephyr_local.convert.safetensors_file import Shard, SourceType, StoredTensor
from zephyr_local.convert.tensor_names import ExpectedTensor, Pairing
from zephyr_local.errors import CheckpointError
from zephyr_local.quantize.encode import Block, require_finite, wait
from zephyr_local.quantize.gguf_header import TensorPlace

_HASH_AHEAD = 4  # pieces that wait for the hash; each is a block's bytes at most
_SKIP_BYTES = 1 << 20

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a stored tensor goes: what it must be, and its place from the start of the output file."""

    expected: ExpectedTensor
    place: TensorPlace
    file_offset: int


@dataclass(slots=True)
class ShardHashes:
    """SHA-256 of the shards, computed on a thread of its own in step with the reading."""

    digests: dict[str, str] = field(default_factory=dict)  # by file name, when a shard is through
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="sha256"))
    _waiting: deque[Future[None]] = field(default_factory=deque)

    def feed(self, update: Callable[[memoryview], None], piece: Bytes) -> None:
        """Hands a piece on; waits where the hash has fallen behind."""
        self._waiting.append(self._pool.submit(update, piece.data))
        while len(self._waiting) > _HASH_AHEAD:
            wait(self._waiting.popleft())

    def settle(self) -> None:
        """Waits until all pieces are hashed."""
        while self._waiting:
            wait(self._waiting.popleft())

    def close(self) -> None:
        """Stops the thread; pieces that still wait are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def read_blocks(
    shards: tuple[Shard, ...],
    destinations: Mapping[str, Destination],
    head_dim: int,
    max_weights: int,
    hashes: ShardHashes,
) -> Iterator[Block]:
    """Every block of every tensor that has a destination, in the order of the shards' bytes."""
    for shard in shards:
        data = _map(shard)
        digest = hashlib.sha256()
        for piece in _pieces(data, 0, shard.data_begin):
            hashes.feed(digest.update, piece)
        for tensor in shard.tensors:
            destination = destinations.get(tensor.name)
            if destination is None:
                for piece in _pieces(data, tensor.begin, tensor.end):
                    hashes.feed(digest.update, piece)
                continue
            unit = head_dim if destination.expected.pairing is Pairing.ROTARY else 1
            for rows in _row_ranges(tensor, unit, max_weights):
                block, piece = _block(data, tensor, destination, rows, head_dim)
                hashes.feed(digest.update, piece)
                yield block
                del block, piece
        hashes.settle()
        hashes.digests[shard.path.name] = digest.hexdigest()
        del data


def _map(shard: Shard) -> Bytes:
    try:
        mapped = np.memmap(shard.path, dtype=np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{shard.path} cannot be mapped: {error}", "Check that it may be read") from error
    if mapped.size != shard.size_bytes:
        raise CheckpointError(
            f"{shard.path.name} changed while it was being converted", "Wait until nothing writes to the checkpoint"
        )
    raw = getattr(mapped, "_mmap", None)
    if isinstance(raw, mmap.mmap) and hasattr(mmap, "MADV_SEQUENTIAL"):
        raw.madvise(mmap.MADV_SEQUENTIAL)
    return mapped.view(np.ndarray)


def _pieces(data: Bytes, begin: int, end: int) -> Iterator[Bytes]:
    for position in range(begin, end, _SKIP_BYTES):
        yield data[position : min(position + _SKIP_BYTES, end)].copy()


def _row_ranges(tensor: StoredTensor, unit: int, max_weights: int) -> Iterator[range]:
    """Ranges of whole rows, in whole units (heads), of at most `max_weights` where a unit is not already more."""
    n_rows, n_columns = _matrix_shape(tensor)
    step = max(1, max_weights // (n_columns * unit)) * unit
    for first in range(0, n_rows, step):
        yield range(first, min(first + step, n_rows))


def _matrix_shape(tensor: StoredTensor) -> tuple[int, int]:
    return (1, tensor.shape[0]) if len(tensor.shape) == 1 else (tensor.shape[0], tensor.shape[1])


def _block(
    data: Bytes, tensor: StoredTensor, destination: Destination, rows: range, head_dim: int
) -> tuple[Block, Bytes]:
    n_columns = _matrix_shape(tensor)[1]
    source = SourceType[tensor.dtype]
    row_bytes = n_columns * source.size_bytes
    begin = tensor.begin + rows.start * row_bytes
    raw = data[begin : begin + len(rows) * row_bytes].copy()
    paired = head_dim if destination.expected.pairing is Pairing.ROTARY else None
    kind = destination.place.kind
    block = Block(
        tensor=tensor.name,
        kind=kind,
        offset=destination.file_offset + kind.size_bytes(rows.start * n_columns),
        source_bytes=raw.nbytes,
        load=partial(_load, raw, source, (tensor.name, rows.start, n_columns), paired),
    )
    return block, raw


def _load(raw: Bytes, source: SourceType, where: tuple[str, int, int], head_dim: int | None) -> NDArray[np.float32]:
    name, first_row, n_columns = where
    rows = widen(raw, source).reshape(-1, n_columns)
    require_finite(name, rows, first_row)
    return rows if head_dim is None else np.ascontiguousarray(interleave_pairs(rows, head_dim))


def widen(raw: Bytes, source: SourceType) -> NDArray[np.float32]:
    """Little-endian bytes of one of the source types as float32; every value of them is exact there."""
    if source is SourceType.F32:
        return raw.view("<f4").astype(np.float32, copy=False)
    if source is SourceType.F16:
        return raw.view("<f2").astype(np.float32)
    # a bfloat16 is the upper half of a float32
    bits = raw.view("<u2").astype(np.uint32)
    np.left_shift(bits, 16, out=bits)
    return bits.view(np.float32)
