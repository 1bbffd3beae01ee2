"""A model's shape, from its config.json alone: how many parameters it has and how many adapters would train.

Counted by arithmetic, for the family that training is made for (Mistral's and Llama's decoder); :func:`count_on_meta`
counts the same on the instantiated model, on torch's meta device, which holds no weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from zephyr_local.convert.model_config import read_json
from zephyr_local.errors import CheckpointError

LINEAR_MODULES: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_FAMILY: Final = ("mistral", "llama")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a decoder in Mistral's manner: grouped attention, a gated MLP, RMSNorm, no biases."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    sliding_window: int | None = None
    tied: bool = False
    """The output matrix is the embedding matrix."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str = "config.json") -> Self:
        """From a checkpoint's config. Raises CheckpointError for another architecture and for sizes that are none."""
        kind = config.get("model_type")
        if kind not in _FAMILY:
            raise CheckpointError(
                f"{where} describes a model of the type {kind!r}", f"Forecasts know {' and '.join(_FAMILY)}"
            )
        n_heads = _size(config, "num_attention_heads", where)
        hidden_size = _size(config, "hidden_size", where)
        return cls(
            vocab_size=_size(config, "vocab_size", where),
            hidden_size=hidden_size,
            intermediate_size=_size(config, "intermediate_size", where),
            n_layers=_size(config, "num_hidden_layers", where),
            n_heads=n_heads,
            n_kv_heads=_size(config, "num_key_value_heads", where, n_heads),
            head_dim=_size(config, "head_dim", where, hidden_size // n_heads),
            sliding_window=_size(config, "sliding_window", where) if config.get("sliding_window") else None,
            tied=config.get("tie_word_embeddings") is True,
        )

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """From a checkpoint's folder; only its config.json is read."""
        return cls.from_config(read_json(folder / "config.json"), str(folder / "config.json"))

    @property
    def query_size(self) -> int:
        return self.n_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.n_kv_heads * self.head_dim

    @property
    def linear_sizes(self) -> dict[str, tuple[int, int]]:
        """A layer's matrices: name → (n_in, n_out)."""
        hidden, query, kv, inner = self.hidden_size, self.query_size, self.kv_size, self.intermediate_size
        sizes = ((hidden, query), (hidden, kv), (hidden, kv), (query, hidden), (hidden, inner), (hidden, inner))
        return dict(zip(LINEAR_MODULES, (*sizes, (inner, hidden)), strict=True))

    @property
    def n_linear(self) -> int:
        """Parameters of all layers' matrices: what 4-bit loading quantises."""
        return self.n_layers * sum(n_in * n_out for n_in, n_out in self.linear_sizes.values())

    @property
    def n_embedding(self) -> int:
        """Parameters of one vocabulary matrix."""
        return self.vocab_size * self.hidden_size

    @property
    def n_layer(self) -> int:
        """Parameters of one layer."""
        return self.n_linear // self.n_layers + 2 * self.hidden_size

    @property
    def n_parameters(self) -> int:
        vocabulary = self.n_embedding * (1 if self.tied else 2)
        return self.n_layers * self.n_layer + vocabulary + self.hidden_size

    @property
    def n_multiplied(self) -> int:
        """Parameters of matrices that each token is multiplied with: all but the norms and the embedding look-up."""
        return self.n_linear + self.n_embedding

    def n_adapter(self, rank: int, modules: Sequence[str]) -> int:
        """Parameters of LoRA's two matrices beside each of `modules` (Hu et al. 2021, section 4.1: r (n_in + n_out));
        names that are none of :data:`LINEAR_MODULES` are left out."""
        sizes = self.linear_sizes
        return self.n_layers * sum(rank * sum(sizes[name]) for name in modules if name in sizes)


MISTRAL_7B: Final = ModelShape(
    vocab_size=32_000, hidden_size=4096, intermediate_size=14_336, n_layers=32, n_heads=32, n_kv_heads=8, head_dim=128,
    sliding_window=4096,
)  # fmt: skip
"""mistralai/Mistral-7B-v0.1's, so that its forecast needs no file (Jiang et al. 2023, arXiv 2310.06825, table 1)."""

KNOWN_SHAPES: Final[Mapping[str, ModelShape]] = {"mistralai/Mistral-7B-v0.1": MISTRAL_7B}


class Counts(NamedTuple):
    """Parameters of a model as it would be trained."""

    n_parameters: int
    """Adapters included."""
    n_trainable: int


def count(shape: ModelShape, lora_rank: int | None = None, modules: Sequence[str] = LINEAR_MODULES) -> Counts:
    """Parameters by arithmetic; without `lora_rank` all of them train."""
    if lora_rank is None:
        return Counts(shape.n_parameters, shape.n_parameters)
    n_adapter = shape.n_adapter(lora_rank, modules)
    return Counts(shape.n_parameters + n_adapter, n_adapter)


def count_on_meta(shape: ModelShape, lora_rank: int | None = None, modules: Sequence[str] = LINEAR_MODULES) -> Counts:
    """Parameters of the instantiated model, adapters by peft, on torch's meta device: no weight takes memory."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv_heads,
        head_dim=shape.head_dim,
        sliding_window=shape.sliding_window,
        tie_word_embeddings=shape.tied,
    )
    with torch.device("meta"):
        model: Any = MistralForCausalLM(config)
        if lora_rank is not None:
            from peft import LoraConfig, get_peft_model

            model = get_peft_model(model, LoraConfig(r=lora_rank, target_modules=list(modules)))
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return Counts(sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains))


def _size(config: Mapping[str, Any], key: str, where: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None and default is not None:
        return default
    if type(value) is not int or not 0 < value < 1 << 31:
        raise CheckpointError(f"{key} is {value!r} in {where}", "Give a checkpoint with a whole number above 0 there")
    return value
