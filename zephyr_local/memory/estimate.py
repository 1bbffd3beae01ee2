"""How much memory a model takes, from its header and the settings alone.

The rules are llama.cpp's at 0c1e57098: which weights stay in the mapped file and which are repacked (``repack``), which
layers go to which device (``src/llama-model.cpp``), the KV cache (``src/llama-kv-cache.cpp``), and the buffers of a
computation. Those depend on how ggml's allocator reuses memory; the sums below are what it came to on the shapes that
the tests ask it for, where they are within an eighth.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Final

from zephyr_local.memory.repack import is_repacked
from zephyr_local.memory.shape import ModelShape, Weights, row_bytes
from zephyr_local.settings import CPU_CHUNK, DEFAULT_N_CTX, KEPT_SEQUENCES, MAX_UBATCH, N_CTX_STEP, EngineSettings

_KV_TYPES: Final = {"f16": "F16", "f32": "F32", "q8_0": "Q8_0"}
_FLOAT_BYTES: Final = 4
_TOKEN_BYTES: Final = 210
"""Of llama.cpp's tables of the vocabulary and of ours, a token; measured with 32,000 of them."""
_FIXED_BYTES: Final = 3 << 20
"""Of the graph, the batch and the rest that depends on no setting; measured."""
DEVICE_FIXED_BYTES: Final = 512 << 20
"""What a driver takes of a GPU for itself before any buffer: CUDA's context is of this order. Not measured here."""
UNIFIED_FIXED_BYTES: Final = 64 << 20
"""The same of a GPU whose memory is the host's: queues and compiled kernels. Not measured here."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A device that layers may go to."""

    name: str
    free_bytes: int
    is_unified: bool = False
    """Whether its memory is the host's: Metal, and GPUs inside a processor."""
    has_host_buffers: bool = True
    """Whether llama.cpp's backend of it has buffers of its own on the host, as all but Metal's have. It prefers those
    to repacking the weights that stay there, and maps the file in their place."""


@dataclass(frozen=True, slots=True)
class DeviceNeed:
    """What is on one GPU."""

    name: str
    free_bytes: int
    fixed_bytes: int
    """What the driver takes before any buffer."""
    n_layers: int
    """The output counts as one more than the model's layers, as in llama.cpp."""
    weights_bytes: int
    kv_bytes: int
    compute_bytes: int

    @property
    def needed_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.compute_bytes + self.fixed_bytes


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """What a loaded model takes when its context is full."""

    n_ctx: int
    """Tokens, rounded up as llama.cpp does."""
    n_gpu_layers: int
    """Layers that are on GPUs, the output among them."""
    weights_mapped_bytes: int
    """Weights that are computed with where the file is mapped: pages that the system may drop and read again."""
    weights_repacked_bytes: int
    """Weights that are held once more, repacked for the CPU's kernels."""
    weights_read_once_bytes: int
    """The part of the file that is read while loading and not afterwards."""
    kv_bytes: int
    compute_bytes: int
    """Buffers of a computation and of its results, on the host."""
    other_bytes: int
    """The vocabulary and what depends on no setting."""
    devices: tuple[DeviceNeed, ...] = ()

    @property
    def anonymous_bytes(self) -> int:
        """Of the host's memory, what no file stands behind."""
        return self.weights_repacked_bytes + self.kv_bytes + self.compute_bytes + self.other_bytes

    @property
    def needed_bytes(self) -> int:
        """Of the host's memory, what must be there for answers at full speed."""
        return self.anonymous_bytes + self.weights_mapped_bytes

    @property
    def resident_bytes(self) -> int:
        """What the system shows as the process's at most, above an empty one: with all of the file that was read."""
        return self.needed_bytes + self.weights_read_once_bytes


def estimate_memory(
    model: ModelShape, settings: EngineSettings, features: Set[str], gpus: Sequence[Gpu] = ()
) -> MemoryEstimate:
    """What the model takes with these settings; ``features`` are those of the CPU that llama.cpp was built with.

    Where ``settings.n_gpu_layers`` is None or -1, all layers go to ``gpus``, and none where there are none.
    """
    n_ctx = padded_n_ctx(model, settings)
    layers = _Layers.of(model, settings, gpus)
    repacks = all(not gpu.has_host_buffers for gpu in gpus)
    mapped, repacked = _host_weights(model, layers, features if repacks else frozenset())
    kv_layer = kv_layer_bytes(model, n_ctx, settings.kv_type)
    compute = _Compute(model, settings, n_ctx)
    devices = tuple(
        DeviceNeed(
            gpu.name,
            gpu.free_bytes,
            UNIFIED_FIXED_BYTES if gpu.is_unified else DEVICE_FIXED_BYTES,
            layers.count(i),
            sum(t.size_bytes for t in model.tensors if layers.device_of(t) == i) + layers.tied_bytes(model, i),
            kv_layer * layers.n_with_cache(i),
            compute.reserved_bytes if layers.count(i) else 0,
        )
        for i, gpu in enumerate(gpus)
    )
    read_once = sum(t.size_bytes for t in model.tensors) - mapped
    all_on_gpus = layers.n_on_gpus > model.n_layer
    return MemoryEstimate(
        n_ctx,
        layers.n_on_gpus,
        mapped,
        repacked,
        read_once,
        kv_layer * layers.n_with_cache(None),
        (compute.input_bytes if all_on_gpus else compute.written_bytes + compute.work_bytes) + compute.output_bytes,
        _FIXED_BYTES + _TOKEN_BYTES * model.n_vocab,
        devices,
    )


def padded_n_ctx(model: ModelShape, settings: EngineSettings) -> int:
    """Tokens of context that llama.cpp makes of the settings."""
    n_ctx = settings.n_ctx or min(DEFAULT_N_CTX, model.n_ctx_train)
    return -(-n_ctx // N_CTX_STEP) * N_CTX_STEP


def kv_layer_bytes(model: ModelShape, n_ctx: int, kv_type: str) -> int:
    """Keys and values of one layer."""
    return 2 * n_ctx * row_bytes(_KV_TYPES[kv_type], model.n_head_kv * model.head_size)


def _host_weights(model: ModelShape, layers: _Layers, features: Set[str]) -> tuple[int, int]:
    """Bytes of the weights that stay mapped, and of those that are repacked."""
    mapped = repacked = 0
    for tensor in model.tensors:
        if layers.device_of(tensor) is not None:
            continue
        # Rows of the embeddings are looked up, and norms are no matrices.
        if _is_multiplied(tensor) and is_repacked(tensor.type_name, tensor.n_rows, features):
            repacked += tensor.size_bytes
        else:
            mapped += tensor.size_bytes
    if _is_tied(model) and layers.output_device is None:
        embeddings = _embeddings(model)
        if is_repacked(embeddings.type_name, embeddings.n_rows, features):  # and looked up in the file besides
            repacked += embeddings.size_bytes
    return mapped, repacked


def _is_multiplied(tensor: Weights) -> bool:
    return tensor.n_rows > 1 and tensor.name != "token_embd.weight"


def _is_tied(model: ModelShape) -> bool:
    return all(tensor.name != "output.weight" for tensor in model.tensors)


def _embeddings(model: ModelShape) -> Weights:
    return next(tensor for tensor in model.tensors if tensor.name == "token_embd.weight")


@dataclass(frozen=True, slots=True)
class _Layers:
    """Which device each layer is on; the output is the layer after the last."""

    devices: tuple[int | None, ...]
    """By layer; None: the CPU."""

    @classmethod
    def of(cls, model: ModelShape, settings: EngineSettings, gpus: Sequence[Gpu]) -> _Layers:
        """llama.cpp fills from the last layer, and divides those on GPUs by the memory that is free on each."""
        n_all = model.n_layer + 1
        wanted = settings.n_gpu_layers
        n_gpu = 0 if not gpus else n_all if wanted is None or wanted < 0 else min(wanted, n_all)
        first = n_all - n_gpu
        total = sum(gpu.free_bytes for gpu in gpus) or 1
        ends: list[float] = []
        for gpu in gpus:
            ends.append((ends[-1] if ends else 0.0) + gpu.free_bytes / total)

        def device(layer: int) -> int | None:
            if layer < first:
                return None
            share = (layer - first) / n_gpu
            return next((i for i, end in enumerate(ends) if share < end), len(ends) - 1)

        return cls(tuple(device(layer) for layer in range(n_all)))

    @property
    def n_on_gpus(self) -> int:
        return sum(device is not None for device in self.devices)

    @property
    def output_device(self) -> int | None:
        return self.devices[-1]

    def count(self, device: int) -> int:
        return self.devices.count(device)

    def n_with_cache(self, device: int | None) -> int:
        return self.devices[:-1].count(device)

    def device_of(self, tensor: Weights) -> int | None:
        """The embeddings stay on the CPU; the last norm goes with the output."""
        if tensor.name == "token_embd.weight":
            return None
        return self.devices[-1 if tensor.layer is None else tensor.layer]

    def tied_bytes(self, model: ModelShape, device: int) -> int:
        """The copy of the embeddings that serves as output, where a model has none of its own."""
        return _embeddings(model).size_bytes if _is_tied(model) and self.output_device == device else 0


class _Compute:
    """Buffers of a computation and of its results.

    llama.cpp reserves them for a whole micro-batch with logits of every token. A GPU has them at once; on the CPU only
    what is written to takes memory, and there a step is shorter and has the logits of the answers alone.
    """

    def __init__(self, model: ModelShape, settings: EngineSettings, n_ctx: int) -> None:
        n_sequences = settings.n_parallel + KEPT_SEQUENCES
        n_reserved = min(n_ctx, max(settings.n_batch + settings.n_parallel, n_sequences), MAX_UBATCH)
        self._model, self._n_ctx, self._flash = model, n_ctx, settings.kv_type != "f32"
        self.reserved_bytes = self._graph_bytes(n_reserved, n_reserved)
        n_written = min(n_reserved, CPU_CHUNK + settings.n_parallel)
        self.written_bytes = self._graph_bytes(n_written, settings.n_parallel)
        self.work_bytes = n_written * max(model.n_ff, model.n_embd) * 2
        """Activations of a step, converted to what the weights are multiplied with: half floats at most."""
        self.input_bytes = self._mask_bytes(n_reserved) + n_reserved * model.n_embd * _FLOAT_BYTES
        """What stays on the host where all layers are on GPUs."""
        self.output_bytes = n_sequences * model.n_vocab * _FLOAT_BYTES

    def _mask_bytes(self, n_tokens: int) -> int:
        return n_tokens * self._n_ctx * (2 if self._flash else _FLOAT_BYTES)

    def _graph_bytes(self, n_tokens: int, n_outputs: int) -> int:
        model = self._model
        embd, ff = n_tokens * model.n_embd * _FLOAT_BYTES, n_tokens * model.n_ff * _FLOAT_BYTES
        logits = n_outputs * model.n_vocab * _FLOAT_BYTES
        # Without flash attention every query's weights over the whole context are written down.
        attention = 0 if self._flash else n_tokens * self._n_ctx * model.n_head * _FLOAT_BYTES + 6 * embd
        return self._mask_bytes(n_tokens) + max(3 * ff + 4 * embd, logits + embd, attention)
