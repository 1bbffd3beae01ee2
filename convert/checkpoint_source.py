"""A checkpoint, with or without an adapter, as the source of a conversion."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from zephyr_local.convert.checkpoint import Checkpoint, FoundTensor, open_checkpoint
from zephyr_local.convert.lora import Adapter
from zephyr_local.convert.metadata import ModelFolders, build_metadata, checkpoint_name
from zephyr_local.convert.row_blocks import WantedTensor, read_blocks
from zephyr_local.convert.shard_supply import ShardSupply
from zephyr_local.convert.tensor_names import Pairing
from zephyr_local.quantize.gguf_header import MetadataValue
from zephyr_local.quantize.mapped_file import FileHashes, map_file
from zephyr_local.quantize.mixes import ModelFacts, TensorShape
from zephyr_local.quantize.source import Block, SourceTensor
from zephyr_local.quantize.types import TensorType


@dataclass(frozen=True, slots=True)
class CheckpointSource:
    """A checkpoint whose tensors are converted, and merged with its adapter, as they are read."""

    checkpoint: Checkpoint
    tensors: tuple[SourceTensor, ...]
    metadata: Mapping[str, MetadataValue]
    notices: tuple[str, ...]
    supply: ShardSupply | None = None
    """Brings the shards, where they are not in the folder."""

    @property
    def model_folder(self) -> Path:
        """The folder that the model is named after."""
        adapter = self.checkpoint.adapter
        return self.checkpoint.folder if adapter is None else adapter.folder

    @property
    def name(self) -> str:
        """The model's name."""
        return checkpoint_name(self.model_folder)

    @property
    def files(self) -> tuple[Path, ...]:
        """Everything in its folders."""
        folders = {self.checkpoint.folder, self.model_folder}
        return tuple(path for folder in sorted(folders) for path in folder.iterdir())

    @property
    def hashed(self) -> tuple[str, ...]:
        """Names of the shards; the adapter's is the last."""
        return tuple(shard.path.name for shard in self.checkpoint.shards)

    @property
    def facts(self) -> ModelFacts:
        """What the mixes need to know of the model."""
        config = self.checkpoint.config
        return ModelFacts(config.n_layers, config.n_heads, config.n_kv_heads)

    def merge_bytes(self, block_weights: int) -> int:
        """A block's product and its rounding, and a factor with what widens it."""
        if self.checkpoint.adapter is None:
            return 0
        deltas = self.checkpoint.adapter.deltas.values()
        factor = max((delta.widened_weights for delta in deltas), default=0)
        return block_weights * (4 + 2 + 8) + factor * (4 + 4)

    def read_blocks(self, max_weights: int, hashes: FileHashes) -> Iterator[Block]:
        """Every block of every tensor, in the order of the shards' bytes; a supply may put one shard before another."""
        found, adapter = self.checkpoint.tensors, self.checkpoint.adapter
        if adapter is not None:
            # Its factors are read through a mapping from before: past the end of a file that shrank since, the system
            # would end this process.
            map_file(adapter.shard.path, adapter.shard.size_bytes)
        wanted = {
            (f.shard_name, f.stored.name): self._wanted(f, tensor)
            for f, tensor in zip(found, self.tensors, strict=True)
        }
        return read_blocks(self.checkpoint.shards, wanted, max_weights, hashes, self.supply)

    def _wanted(self, found: FoundTensor, tensor: SourceTensor) -> WantedTensor:
        adapter = self.checkpoint.adapter
        return WantedTensor(
            tensor=tensor,
            base_type=found.base_type,
            head_dim=self.checkpoint.config.head_dim if found.expected.pairing is Pairing.ROTARY else None,
            delta=None if adapter is None else adapter.deltas.get(found.expected.source_name),
        )


def open_checkpoint_source(
    folder: Path, adapter: Adapter | None = None, supply: ShardSupply | None = None
) -> CheckpointSource:
    """Opens and checks the checkpoint in a folder; raises CheckpointError."""
    checkpoint = open_checkpoint(folder, adapter, supply)
    tensors = tuple(
        SourceTensor(
            name=found.expected.name,
            shape=found.expected.shape,
            stored=TensorType[found.stored.dtype],
            kept=TensorShape.of_checkpoint(
                found.expected.name, found.expected.shape, TensorType[found.base_type.name]
            ).stored,
            source_name=found.expected.source_name,
        )
        for found in checkpoint.tensors
    )
    n_weights = sum(math.prod(tensor.shape) for tensor in tensors)
    metadata, notices = build_metadata(
        ModelFolders(
            model=checkpoint.folder if adapter is None else adapter.folder,
            weights=checkpoint.folder,
            tokenizer=checkpoint.tokenizer_folder,
        ),
        checkpoint.config,
        checkpoint.vocabulary,
        n_weights,
    )
    return CheckpointSource(checkpoint, tensors, metadata, tuple(notices), supply)
