"""A PEFT adapter becomes a GGUF adapter, which llama.cpp adds to a model that it has loaded.

Names, keys and layout: convert_lora_to_gguf.py and src/llama-adapter.cpp of llama.cpp 0c1e57098. That loader takes
one `adapter.lora.alpha` for all tensors and divides it by each tensor's rank. An adapter whose scaling is otherwise
(rsLoRA, alpha patterns) gets the alpha that its scaling means, and where tensors differ, the difference goes into
`lora_b`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zephyr_local.convert.lora import Adapter, LoraDelta, open_adapter, require_fits, require_untied
from zephyr_local.convert.metadata import adapter_metadata
from zephyr_local.convert.model_config import ModelConfig, read_config
from zephyr_local.convert.rope_permute import interleave_pairs
from zephyr_local.convert.tensor_names import Pairing, expected_tensors
from zephyr_local.errors import CheckpointError, InvalidInputError
from zephyr_local.quantize.encode import WrittenRange, encode_rows, require_finite, written_ranges
from zephyr_local.quantize.gguf_header import TensorPlace, pack_header, padded, place_tensors
from zephyr_local.quantize.gguf_output import (
    OutputFile,
    require_free_space,
    require_same_places,
    require_writable_target,
)
from zephyr_local.quantize.kernels import ggml
from zephyr_local.quantize.leftovers import settle_leftovers
from zephyr_local.quantize.mapped_file import FileHashes, MappedFile
from zephyr_local.quantize.mixes import fallback_type
from zephyr_local.quantize.provenance import Provenance, with_provenance
from zephyr_local.quantize.types import FileType
from zephyr_local.quantize.write_files import ConvertResult, require_no_input

_TYPES = (FileType.F32, FileType.F16, FileType.BF16, FileType.Q8_0)


@dataclass(frozen=True, slots=True)
class _Pair:
    """The two factors of one weight."""

    module: str  # as the adapter calls it: the name in errors
    name: str  # of the weight in the GGUF
    delta: LoraDelta
    head_dim: int | None
    factor: float  # what lora_b is multiplied by

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of the two tensors."""
        (rank, n_in), (n_out, _) = self.delta.a.shape, self.delta.b.shape
        # llama.cpp looks rows of an embedding up, so it wants A the other way around (build_inp_embd)
        yield f"{self.name}.lora_a", (n_in, rank) if self.delta.is_embedding else (rank, n_in)
        yield f"{self.name}.lora_b", (n_out, rank)

    def rows(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """The two tensors as float32, finite, each with its name for errors."""
        a = self.delta.a.rows(slice(0, self.delta.a.shape[0]))
        require_finite(f"lora_A of {self.module}", a, 0)
        yield f"lora_A of {self.module}", np.ascontiguousarray(a.T) if self.delta.is_embedding else a
        b = self.delta.b.rows(slice(0, self.delta.b.shape[0]))
        if self.factor != 1.0:
            with np.errstate(all="ignore"):  # the check follows
                b = b * np.float32(self.factor)
        require_finite(f"lora_B of {self.module}", b, 0)
        if self.head_dim is not None:
            b = np.ascontiguousarray(interleave_pairs(b, self.head_dim))
        yield f"lora_B of {self.module}", b


def convert_adapter(
    adapter_folder: Path, base: Path, target: Path, file_type: FileType = FileType.F32, *, overwrite: bool = False
) -> ConvertResult:
    """Writes a PEFT adapter as a GGUF adapter; of the base, only config.json is read.

    Raises CheckpointError where llama.cpp's format cannot hold the adapter; the target is whole or absent.
    """
    started = time.monotonic()
    if file_type not in _TYPES:
        raise InvalidInputError(
            f"an adapter cannot be {file_type.name}", f"Use one of {', '.join(kind.name for kind in _TYPES)}"
        )
    adapter_folder, target = Path(adapter_folder).absolute(), Path(target).absolute()
    for folder in (adapter_folder, base):
        require_no_input(target, tuple(folder.iterdir()) if folder.is_dir() else ())
    require_writable_target(target, overwrite=overwrite)
    ggml.prepare()
    adapter = open_adapter(adapter_folder)
    alpha, pairs = _pairs(adapter, read_config(base))
    places = place_tensors(
        (name, shape, fallback_type(file_type.default_type, shape[-1]))
        for pair in pairs
        for name, shape in pair.shapes()
    )
    n_weights = sum(math.prod(pair.delta.shape) for pair in pairs)
    metadata, notices = adapter_metadata(adapter_folder, alpha, n_weights)
    provenance = _provenance(adapter)
    header = pack_header(with_provenance(metadata, provenance), places)
    size = len(header) + places[-1].offset + padded(places[-1].size_bytes)
    settle_leftovers(target)
    require_free_space(target.parent, size)
    with OutputFile(target, size, overwrite=overwrite) as output:
        output.write_at(0, header)
        output.reserve()
        output.verify(_write(pairs, places, len(header), output))
        require_same_places([output.path], [places])
        output.commit()
    return ConvertResult(
        path=target,
        paths=(target,),
        size_bytes=size,
        n_tensors=len(places),
        bits_per_weight=8 * sum(p.size_bytes for p in places) / sum(math.prod(p.shape) for p in places),
        source_sha256=provenance.sha256,
        elapsed_s=time.monotonic() - started,
        notices=tuple(notices),
    )


def _pairs(adapter: Adapter, config: ModelConfig) -> tuple[float, list[_Pair]]:
    """The alpha of the file, and the factors in the order in which the adapter stores them."""
    expected = {tensor.source_name: tensor for tensor in expected_tensors(config, with_output=True)}
    require_fits(adapter, {name: tensor.shape for name, tensor in expected.items()})
    for name, tensor in adapter.replaced.items():
        # PEFT also stores, unchanged, an embedding that only has factors.
        if name not in adapter.deltas or tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"the adapter brings {name} as a whole, which a GGUF adapter cannot hold",
                "Merge it instead: zephyr-local quantize ADAPTER",
            )
    require_untied(adapter, tied=config.tie_word_embeddings)
    alphas = {name: _alpha(adapter, name) for name in adapter.deltas}
    alpha = next((value for value in alphas.values() if value), 1.0)  # 0 means "no scaling at all" to llama.cpp
    pairs = [
        _Pair(
            name.removesuffix(".weight"),
            expected[name].name,
            delta,
            config.head_dim if expected[name].pairing is Pairing.ROTARY else None,
            alphas[name] / alpha,
        )
        for name, delta in adapter.deltas.items()
    ]
    return alpha, pairs


def _alpha(adapter: Adapter, name: str) -> float:
    """What llama.cpp, dividing by the rank, must be given for the adapter's scaling; as the float32 of the file."""
    rank, scaling = adapter.config.scaling(name.removesuffix(".weight"))
    return float(np.float32(scaling * rank))


def _provenance(adapter: Adapter) -> Provenance:
    shard = adapter.shard
    hashes = FileHashes()
    try:
        data = MappedFile(shard.path, shard.size_bytes, hashes)
        data.skip(0, shard.size_bytes)
        data.finish()
    finally:
        hashes.close()
    return Provenance((shard.path.name,), (hashes.digests[shard.path.name],))


def _write(pairs: list[_Pair], places: list[TensorPlace], data_begin: int, output: OutputFile) -> list[WrittenRange]:
    written = []
    remaining = iter(places)
    for pair in pairs:
        for name, rows in pair.rows():
            place = next(remaining)
            encoded = encode_rows(name, place.kind, rows)
            output.write_at(data_begin + place.offset, encoded.data)
            written += written_ranges(place.name, [(0, data_begin + place.offset)], encoded)
    return written
