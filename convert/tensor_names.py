"""Hugging Face's tensor names, llama.cpp's, and the shape that each must have.

Names: gguf-py/gguf/tensor_mapping.py and constants.py of llama.cpp 0c1e57098, for the architecture `llama`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from zephyr_local.convert.model_config import ModelConfig


class Pairing(Enum):
    """Whether the rows of a tensor are paired for rotary positions, and in heads of which kind."""

    NONE = auto()
    ROTARY = auto()


@dataclass(frozen=True, slots=True)
class ExpectedTensor:
    """A tensor that a checkpoint of this shape must hold."""

    source_name: str
    name: str  # in the GGUF
    shape: tuple[int, ...]  # (n_out, n_in)
    pairing: Pairing = Pairing.NONE


IGNORED_ENDINGS = (".rotary_emb.inv_freq", ".attention.masked_bias", ".attention.bias")
"""Buffers that old versions of transformers saved: computed from the config, skipped by llama.cpp's converter too."""

OUTPUT = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"


def expected_tensors(config: ModelConfig, *, with_output: bool) -> list[ExpectedTensor]:
    """Every tensor of the model; `with_output` says whether the output matrix is stored apart from the embedding."""
    wide, vocab = config.hidden_size, config.vocab_size
    tensors = [
        ExpectedTensor(EMBEDDING, "token_embd.weight", (vocab, wide)),
        ExpectedTensor("model.norm.weight", "output_norm.weight", (wide,)),
    ]
    if with_output:
        tensors.append(ExpectedTensor(OUTPUT, "output.weight", (vocab, wide)))
    for layer in range(config.n_layers):
        tensors += _layer_tensors(config, f"model.layers.{layer}.", f"blk.{layer}.")
    return tensors


def _layer_tensors(config: ModelConfig, source: str, target: str) -> list[ExpectedTensor]:
    wide, ffn = config.hidden_size, config.ffn_size
    queries, values = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    paired = Pairing.ROTARY
    return [
        ExpectedTensor(f"{source}input_layernorm.weight", f"{target}attn_norm.weight", (wide,)),
        ExpectedTensor(f"{source}self_attn.q_proj.weight", f"{target}attn_q.weight", (queries, wide), paired),
        ExpectedTensor(f"{source}self_attn.k_proj.weight", f"{target}attn_k.weight", (values, wide), paired),
        ExpectedTensor(f"{source}self_attn.v_proj.weight", f"{target}attn_v.weight", (values, wide)),
        ExpectedTensor(f"{source}self_attn.o_proj.weight", f"{target}attn_output.weight", (wide, queries)),
        ExpectedTensor(f"{source}post_attention_layernorm.weight", f"{target}ffn_norm.weight", (wide,)),
        ExpectedTensor(f"{source}mlp.gate_proj.weight", f"{target}ffn_gate.weight", (ffn, wide)),
        ExpectedTensor(f"{source}mlp.up_proj.weight", f"{target}ffn_up.weight", (ffn, wide)),
        ExpectedTensor(f"{source}mlp.down_proj.weight", f"{target}ffn_down.weight", (wide, ffn)),
    ]
