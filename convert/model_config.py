"""`config.json`: what the model is, and whether this converter can express all of it.

Absent entries get the defaults of transformers' LlamaConfig and MistralConfig (5.23), as in llama.cpp's converter,
which reads the file through them. A feature that the GGUF would silently lack is refused by name.
"""

from __future__ import annotations

import json
import reprlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from zephyr_local.errors import CheckpointError
from zephyr_local.gguf_check import MAX_TOKENS

Json = dict[str, Any]

MAX_JSON_BYTES: Final = 64 << 20
"""What is read of a side file. Mistral's tokenizer.json has 1.8 MB, one of 256,000 tokens some 20."""

_ARCHITECTURES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "mistral"}
_DEFAULTS: dict[str, Json] = {
    "llama": {"num_key_value_heads": None, "intermediate_size": 11008, "max_position_embeddings": 2048},
    "mistral": {"num_key_value_heads": 8, "intermediate_size": 14336, "max_position_embeddings": 4096 * 32},
}
_DEFAULTS_OF_BOTH: Json = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
}
_MAX_LAYERS = 512  # LLAMA_MAX_LAYERS; llama.cpp aborts beyond
_BASE_MODEL = "Convert a checkpoint of MistralForCausalLM or LlamaForCausalLM"
_CORRECT = "Correct it, or take config.json from the base model"
_DOWNLOAD_AGAIN = "Copy or download the file again"

_short = reprlib.Repr()
_short.maxlevel, _short.maxlist, _short.maxstring, _short.maxother = 3, 4, 100, 100
_MAX_SHOWN = 200


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How positions are stretched past the length of the training."""

    kind: Literal["linear", "yarn"]
    factor: float
    original_context: int | None = None  # yarn's
    yarn: tuple[tuple[str, float], ...] = ()  # entries of the config that llama.cpp has a key for


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a Llama-like model."""

    architecture: str
    vocab_size: int
    hidden_size: int
    ffn_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    context_length: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tie_word_embeddings: bool
    tells_head_dim: bool = True  # llama.cpp's converter writes the keys of it only where its transformers 4 knows it
    sliding_window: int | None = None  # tokens that attention looked back over in the training; None: all


def shown(value: object) -> str:
    """A value out of a file for a message: on one line, cut where it is long or deep."""
    text = _short.repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


def require_readable(path: Path, max_bytes: int = MAX_JSON_BYTES) -> None:
    """Refuses a side file that is too large to be read as a whole."""
    try:
        size_bytes = path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from error
    if size_bytes > max_bytes:
        raise CheckpointError(
            f"{path.name} has {size_bytes} bytes, more than the {max_bytes} that are read", _DOWNLOAD_AGAIN
        )


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"{path} cannot be read: {error.strerror or error}", "Check that the file is there and may be read"
    )


def read_json(path: Path) -> Json:
    """The JSON object in a file of the checkpoint, which has at most MAX_JSON_BYTES."""
    require_readable(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} is not valid JSON: {error}", _DOWNLOAD_AGAIN) from error
    except OSError as error:
        raise _unreadable(path, error) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path.name} holds no JSON object", _DOWNLOAD_AGAIN)
    return value


def read_config(folder: Path) -> ModelConfig:
    """Reads and checks `config.json`."""
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no config.json", "Give the folder that save_pretrained wrote, or that was downloaded"
        )
    config = read_json(path)
    architecture = _architecture(config)
    _require_expressible(config)
    defaults = _DEFAULTS_OF_BOTH | _DEFAULTS[_ARCHITECTURES[architecture]]
    n_heads = _count(config, "num_attention_heads", defaults)
    hidden_size = _count(config, "hidden_size", defaults)
    values = _value(config, "num_key_value_heads", defaults)
    n_kv_heads = n_heads if values is None else _count(config, "num_key_value_heads", defaults)
    if n_heads % n_kv_heads:
        raise CheckpointError(
            f"config.json: num_attention_heads is {n_heads}, no multiple of num_key_value_heads, {n_kv_heads}", _CORRECT
        )
    scaling, theta = _rope(config)
    return ModelConfig(
        architecture=architecture,
        vocab_size=_count(config, "vocab_size", defaults, most=MAX_TOKENS),
        hidden_size=hidden_size,
        ffn_size=_count(config, "intermediate_size", defaults),
        n_layers=_count(config, "num_hidden_layers", defaults, most=_MAX_LAYERS),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=_head_dim(config, hidden_size, n_heads),
        context_length=_count(config, "max_position_embeddings", defaults),
        rms_norm_eps=_positive(config, "rms_norm_eps", defaults["rms_norm_eps"]),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        tells_head_dim=_ARCHITECTURES[architecture] == "llama" or config.get("head_dim") is not None,
        sliding_window=_sliding_window(config, architecture),
    )


def _sliding_window(config: Json, architecture: str) -> int | None:
    """Mistral's alone: LlamaConfig has none, and its model would not heed it."""
    if _ARCHITECTURES[architecture] != "mistral":
        return None
    if "sliding_window" in config and config["sliding_window"] is None:  # an explicit null means: none
        return None
    return _count(config, "sliding_window", {"sliding_window": 4096})


def _architecture(config: Json) -> str:
    names = config.get("architectures")
    if isinstance(names, list) and len(names) == 1 and isinstance(names[0], str) and names[0] in _ARCHITECTURES:
        return names[0]
    if not names:  # old checkpoints of the original conversion scripts
        for name, model_type in _ARCHITECTURES.items():
            if config.get("model_type") == model_type:
                return name
    given = names if isinstance(names, list) and names else [config.get("model_type", "not named")]
    named = ", ".join(name if isinstance(name, str) and name.isprintable() else shown(name) for name in given[:4])
    raise CheckpointError(
        f"the architecture is {named[:200]}; MistralForCausalLM and LlamaForCausalLM can be converted", _BASE_MODEL
    )


def _require_expressible(config: Json) -> None:
    if config.get("quantization_config"):
        quantization = config["quantization_config"]
        method = quantization.get("quant_method", "unnamed") if isinstance(quantization, dict) else "unnamed"
        raise CheckpointError(
            f"the checkpoint is already quantized (quantization_config: {shown(method)})",
            "Take the checkpoint in full precision (BF16, F16 or F32)",
        )
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise CheckpointError(f"config.json: {key} is true, and biases are not converted", _BASE_MODEL)
    if (act := config.get("hidden_act", "silu")) not in ("silu", "swish"):
        raise CheckpointError(f"config.json: hidden_act is {shown(act)}, and llama.cpp computes silu", _BASE_MODEL)
    rotary = config.get("partial_rotary_factor", _rope_section(config).get("partial_rotary_factor"))
    if rotary not in (None, 1, 1.0):
        raise CheckpointError(
            f"config.json: partial_rotary_factor is {shown(rotary)}, and only 1 is converted", _BASE_MODEL
        )


def _rope_section(config: Json) -> Json:
    """transformers 5's rope_parameters, or rope_scaling of those before it."""
    section = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(section, dict):
        raise CheckpointError(f"config.json: the rope section is {shown(section)}, not an object", _CORRECT)
    return section


def _rope(config: Json) -> tuple[RopeScaling | None, float]:
    section = _rope_section(config)
    source: Mapping[str, Any] = section if section.get("rope_theta") is not None else config
    theta = _positive(source, "rope_theta", 10000.0)
    kind = section.get("rope_type", section.get("type")) or "default"
    if kind in ("default", "none"):
        return None, theta
    if kind not in ("linear", "yarn"):
        raise CheckpointError(
            f"config.json: the rope scaling {shown(kind)} is not converted; default, linear and yarn are",
            "Take a checkpoint without it: leaving it out would give wrong answers in long chats",
        )
    factor = _positive(section, "factor", None)
    if kind == "linear":
        return RopeScaling("linear", factor), theta
    for key in ("mscale", "mscale_all_dim"):
        if section.get(key) is not None:
            raise CheckpointError(f"config.json: yarn's {key} is not converted", _BASE_MODEL)
    original = section.get("original_max_position_embeddings", config.get("original_max_position_embeddings"))
    if type(original) is not int or original < 1:
        raise CheckpointError("config.json: yarn needs original_max_position_embeddings, a whole number", _CORRECT)
    names = ("extrapolation_factor", "attention_factor", "attn_factor", "beta_fast", "beta_slow")
    given = tuple((name, _positive(section, name, None)) for name in names if section.get(name) is not None)
    return RopeScaling("yarn", factor, original, given), theta


def _head_dim(config: Json, hidden_size: int, n_heads: int) -> int:
    if config.get("head_dim") is None and hidden_size % n_heads:
        raise CheckpointError(
            f"config.json: hidden_size is {hidden_size}, no multiple of num_attention_heads, {n_heads}", _CORRECT
        )
    head_dim = _count(config, "head_dim", {"head_dim": hidden_size // n_heads or None})
    if head_dim % 2:
        raise CheckpointError(f"config.json: head_dim is {head_dim}; rotary positions need an even number", _CORRECT)
    return head_dim


def _value(config: Mapping[str, Any], key: str, defaults: Mapping[str, Any]) -> object:
    if key == "num_key_value_heads" and key in config:
        return config[key]  # an explicit null means: as many as there are heads
    value = config.get(key)
    return defaults.get(key) if value is None else value


def _count(config: Mapping[str, Any], key: str, defaults: Mapping[str, Any], most: int = 1 << 24) -> int:
    value = _value(config, key, defaults)
    if type(value) is not int or not 1 <= value <= most:
        raise CheckpointError(f"config.json: {key} is {shown(value)}, not a whole number from 1 to {most}", _CORRECT)
    return value


def _positive(config: Mapping[str, Any], key: str, default: float | None) -> float:
    value = config.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
        raise CheckpointError(f"config.json: {key} is {shown(value)}, not a number above 0", _CORRECT)
    return float(value)
