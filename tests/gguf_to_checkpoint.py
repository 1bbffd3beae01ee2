"""The way back: a GGUF becomes a float32 checkpoint that transformers loads, with its vocabulary as tokenizer.model.

Only for tests: it lets them start from zephyr-tiny's real weights, of which the package ships the quantized file alone.
Written against gguf's and sentencepiece's own readers, not against ours.
"""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from sentencepiece import sentencepiece_model_pb2 as spm

_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def _source_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem in _WHOLE:
        return f"{_WHOLE[stem]}.weight"
    _, layer, part = stem.split(".")
    return f"model.layers.{layer}.{_LAYER[part]}.weight"


def _split_pairs(rows: NDArray[np.float32], head_dim: int) -> NDArray[np.float32]:
    """(even, odd) neighbours of each head, as llama.cpp keeps them → first half, second half, as transformers does."""
    n_out, n_in = rows.shape
    return rows.reshape(n_out // head_dim, head_dim // 2, 2, n_in).swapaxes(1, 2).reshape(n_out, n_in)


def gguf_to_checkpoint(file: Path, folder: Path) -> None:
    """Write config.json, model.safetensors and tokenizer.model for the llama-architecture GGUF ``file``."""
    reader = gguf.GGUFReader(file)

    def value(key: str):
        return reader.fields[key].contents()

    n_heads, hidden = int(value("llama.attention.head_count")), int(value("llama.embedding_length"))
    head_dim = int(value("llama.rope.dimension_count"))
    weights = {}
    for tensor in reader.tensors:
        rows = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if "attn_q" in tensor.name or "attn_k" in tensor.name:
            rows = _split_pairs(rows, head_dim)
        weights[_source_name(tensor.name)] = np.ascontiguousarray(rows)
    folder.mkdir(parents=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "dtype": "float32",
        "hidden_size": hidden,
        "intermediate_size": int(value("llama.feed_forward_length")),
        "num_hidden_layers": int(value("llama.block_count")),
        "num_attention_heads": n_heads,
        "num_key_value_heads": int(value("llama.attention.head_count_kv")),
        "head_dim": head_dim,
        "vocab_size": len(value("tokenizer.ggml.tokens")),
        "max_position_embeddings": int(value("llama.context_length")),
        "rms_norm_eps": float(value("llama.attention.layer_norm_rms_epsilon")),
        "rope_theta": float(value("llama.rope.freq_base")),
        "sliding_window": None,
        "tie_word_embeddings": "lm_head.weight" not in weights,
        "bos_token_id": int(value("tokenizer.ggml.bos_token_id")),
        "eos_token_id": int(value("tokenizer.ggml.eos_token_id")),
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.model").write_bytes(
        _sentencepiece_model(
            value("tokenizer.ggml.tokens"), value("tokenizer.ggml.scores"), value("tokenizer.ggml.token_type")
        )
    )


def _sentencepiece_model(tokens: list[str], scores: list[float], kinds: list[int]) -> bytes:
    model = spm.ModelProto()
    for token, score, kind in zip(tokens, scores, kinds, strict=True):
        model.pieces.add(piece=token, score=score, type=kind)  # llama.cpp's numbers are SentencePiece's
    model.trainer_spec.model_type = spm.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.unk_id, model.trainer_spec.bos_id, model.trainer_spec.eos_id = 0, 1, 2
    model.trainer_spec.pad_id = -1
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = False
    return bytes(model.SerializeToString())
