"""Small LoRA adapters: by hand, without torch (:func:`build_adapter`), or as PEFT trains and saves them.

:func:`merge_with_peft` is the reference that our merge is compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.checkpoint_builder import Dtype, ModelShape, random_weights, read_tensors, rewrite_tensors, write_json

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
EMBEDDING = "embed_tokens"

CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
    "rslora": {"r": 5, "lora_alpha": 7, "use_rslora": True, "target_modules": ["q_proj", "down_proj"]},
    "patterns": {
        "r": 4,
        "lora_alpha": 3,
        "target_modules": ["q_proj", "k_proj", "gate_proj"],
        "rank_pattern": {"layers.1.self_attn.q_proj": 6, r".*\.0\..*gate_proj": 2, "k_proj": 1},
        "alpha_pattern": {r"layers\.\d+\.mlp\.gate_proj": 9, "q_proj": 11},
    },
    "all linear": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
    "output": {"r": 8, "lora_alpha": 3, "target_modules": ["lm_head", "o_proj"]},
    "embedding": {"r": 8, "lora_alpha": 3, "target_modules": ["embed_tokens", "v_proj"]},
}
"""LoraConfigs of PEFT that each give their tensors another rank, scaling or kind of layer."""


def adapter_config(**changes: object) -> dict[str, Any]:
    """adapter_config.json as PEFT 0.21 writes it, with changes; `...` removes an entry."""
    config: dict[str, Any] = {
        "alora_invocation_tokens": None,
        "alpha_pattern": {},
        "arrow_config": None,
        "auto_mapping": None,
        "base_model_name_or_path": None,
        "bias": "none",
        "corda_config": None,
        "ensure_weight_tying": False,
        "eva_config": None,
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "kasa_config": None,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": 16,
        "lora_bias": False,
        "lora_dropout": 0.05,
        "lora_ga_config": None,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "monteclora_config": None,
        "peft_type": "LORA",
        "peft_version": "0.21.2",
        "qalora_group_size": 16,
        "r": 8,
        "rank_pattern": {},
        "revision": None,
        "target_modules": ["q_proj", "v_proj"],
        "target_parameters": None,
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": None,
        "use_bdlora": None,
        "use_dora": False,
        "use_qalora": False,
        "use_rslora": False,
        "velora_config": None,
    }
    return {key: value for key, value in (config | changes).items() if value is not ...}


def factor_shapes(
    shape: ModelShape, targets: Iterable[str], rank: int, key: str = "lora_{}.weight"
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of A and B of every module whose name ends on a target, as PEFT names them."""
    targets = tuple(targets)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, base in shape.tensor_shapes().items():
        module = name.removesuffix(".weight")
        if module.split(".")[-1] not in targets:
            continue
        embedding = module.endswith(EMBEDDING)
        n_out, n_in = (base[1], base[0]) if embedding else base
        for letter, factor in (("A", (rank, n_in)), ("B", (n_out, rank))):
            tail = f"lora_embedding_{letter}" if embedding else key.format(letter)
            shapes[f"base_model.model.{module}.{tail}"] = factor
    return shapes


def build_adapter(
    folder: Path,
    shape: ModelShape | None = None,
    *,
    targets: Iterable[str] = ("q_proj", "v_proj"),
    rank: int = 8,
    dtype: Dtype = "F32",
    saved: Mapping[str, tuple[int, ...]] | None = None,
    seed: int = 0,
    **config: object,
) -> Path:
    """Writes an adapter for a checkpoint of this shape; `saved` are whole tensors of the base, by name, with shapes."""
    shape, targets = shape or ModelShape(), tuple(targets)
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    shapes = factor_shapes(shape, targets, rank)
    shapes |= {f"base_model.model.{name}": saved_shape for name, saved_shape in (saved or {}).items()}
    tensors = {name: (dtype, random_weights(size, dtype, generator)) for name, size in shapes.items()}
    rewrite_tensors(folder / "adapter_model.safetensors", tensors)
    write_json(
        folder / "adapter_config.json", adapter_config(**({"r": rank, "target_modules": sorted(targets)} | config))
    )
    return folder


def train_adapter(
    base: Path, folder: Path, *, dtype: Dtype = "F32", vocab_size: int | None = None, seed: int = 0, **config: Any
) -> Path:
    """Saves an adapter with PEFT itself, all of its weights random; `config` is LoraConfig's."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    model = get_peft_model(_load(base, vocab_size), LoraConfig(task_type="CAUSAL_LM", **config))
    kind = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name or (vocab_size and parameter.shape[0] == vocab_size):
            parameter.data = (torch.randn(parameter.shape) * 0.1).to(kind)
    model.save_pretrained(folder)
    return folder


def merge_with_peft(base: Path, adapter: Path, target: Path, vocab_size: int | None = None) -> Path:
    """The checkpoint that PEFT merges, in the base's own type; `vocab_size` where the adapter has more tokens."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(_load(base, vocab_size), str(adapter))
    merged = model.merge_and_unload()
    merged.save_pretrained(target)
    return target


def change_tensors(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrites an adapter's weights after `change` has had them: names → (dtype, array)."""
    path = folder / "adapter_model.safetensors"
    tensors = read_tensors(path)
    change(tensors)
    rewrite_tensors(path, tensors)


def _load(base: Path, vocab_size: int | None) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    if vocab_size is not None:
        model.resize_token_embeddings(vocab_size, mean_resizing=False)
    return model
