"""Shards that come while a checkpoint is read, so that never all of them lie on the disk.

The headers alone decide what is made of a checkpoint, and its weights are read once and forwards. So whoever has the
shards elsewhere gives the headers first and each shard when it is its turn, and takes it away when it has been read.
No network is known here: ``zephyr_local.model_store.hub_shards`` is such a supply.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final, Protocol

SIDE_FILES: Final = (
    "config.json",
    "model.safetensors.index.json",
    "generation_config.json",
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "README.md",
)
"""All of a checkpoint's folder that a conversion reads besides the shards; none but config.json has to be there."""
MORE_TEMPLATES: Final = "additional_chat_templates/*.jinja"
"""These too, by their path in the folder."""


class ShardSupply(Protocol):
    """Where the shards of a checkpoint come from; what it raises ends the conversion, as any other error."""

    @property
    def names(self) -> Collection[str]:
        """File names of all the shards that can be had, though the checkpoint may not need them all."""

    def size_bytes(self, name: str) -> int:
        """Of the whole shard."""

    def begin(self, name: str, n_bytes: int) -> bytes:
        """The first bytes of a shard, all where it has no more: those that it comes with later."""

    def order(self, names: Sequence[str]) -> Sequence[str]:
        """The order in which these shall be read, which are the checkpoint's; the outputs do not depend on it."""

    def prepare(self, name: str) -> None:
        """Have the whole shard in the checkpoint's folder; called before it is read, in the order that was given."""

    def consumed(self, name: str, sha256: str) -> None:
        """The shard was read to its end, and this is the digest of what was read; it is not needed any more."""
