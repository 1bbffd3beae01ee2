"""A model's numbers and tensors: all that its need of memory depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zephyr_local.gguf_file import TENSOR_TYPES, GGUFFile, TensorInfo

_BLOCKS = {name: (weights, n_bytes) for name, weights, n_bytes in TENSOR_TYPES.values()}


@dataclass(frozen=True, slots=True)
class Weights:
    """One tensor, as far as memory is concerned."""

    name: str
    type_name: str
    n_rows: int
    size_bytes: int

    @property
    def layer(self) -> int | None:
        """The block that it belongs to; None for the embeddings, the last norm and the output."""
        first, _, rest = self.name.partition(".")
        number = rest.partition(".")[0]
        return int(number) if first == "blk" and number.isascii() and number.isdecimal() else None


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A model of the llama architecture."""

    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    head_size: int
    n_ff: int
    n_vocab: int
    n_ctx_train: int
    tensors: tuple[Weights, ...]

    @property
    def size_bytes(self) -> int:
        """Of all tensors; a file has a header besides, of a megabyte or so."""
        return sum(tensor.size_bytes for tensor in self.tensors)


def shape_of(gguf: GGUFFile) -> ModelShape:
    """The shape of a model that ``gguf_check`` has accepted."""

    def number(key: str, default: int | None = None) -> int:
        value = gguf.metadata.get(f"llama.{key}", default)
        assert isinstance(value, int)
        return value

    n_embd, n_head = number("embedding_length"), number("attention.head_count")
    tokens = gguf.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, Sequence)
    return ModelShape(
        number("block_count"),
        n_embd,
        n_head,
        number("attention.head_count_kv", n_head),
        number("attention.key_length", n_embd // n_head),
        number("feed_forward_length"),
        len(tokens),
        number("context_length"),
        tuple(_weights(tensor) for tensor in gguf.tensors),
    )


def row_bytes(type_name: str, n_columns: int) -> int:
    """Bytes of a row of ``n_columns`` weights in a type of ggml's; a last block that is not full counts as whole."""
    block, block_bytes = _BLOCKS[type_name]
    return -(-n_columns // block) * block_bytes


def _weights(tensor: TensorInfo) -> Weights:
    n_rows = tensor.n_elements // tensor.shape[0]
    return Weights(tensor.name, tensor.type_name, n_rows, tensor.size_bytes)
