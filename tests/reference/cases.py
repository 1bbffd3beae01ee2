"""Small checkpoints that ours and llama.cpp's converter both convert; what they write must be equal.

Each case differs from the others in one thing that a converter may get wrong. A case whose `every_type` is set is
quantized to all types: those are the cases about weights. The others, about side files, need few.
Cases about LoRA adapters, which that tree's `convert_lora_to_gguf.py` converts, get a list of their own beside CASES.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from tests.checkpoint_builder import (
    Dtype,
    ModelShape,
    build_checkpoint,
    change_json,
    mistral_sentencepiece_model,
    read_tensors,
    rewrite_tensors,
    write_json,
)
from zephyr_local.chat_template import ZEPHYR_TEMPLATE

FEW_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_K_M")
_TOKENS = "tokenizer.ggml."


def _as_built(folder: Path) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Case:
    """A checkpoint by name; the folder has that name, because converters read the model's name from it."""

    name: str
    shape: ModelShape = field(default_factory=lambda: ModelShape(n_layers=1))
    dtype: Dtype | Mapping[str, Dtype] = "BF16"
    n_shards: int = 1
    vocabulary: Literal["made up", "Mistral's"] = "made up"
    change: Callable[[Path], None] = _as_built
    """What is done to the folder after it was built."""
    every_type: bool = False
    noted: Mapping[str, str] = field(default_factory=dict)
    """Keys that ours writes otherwise, each with the reason."""

    @property
    def float_type(self) -> str:
        """The type in which llama.cpp's converter loses nothing of the stored weights."""
        return self.dtype if isinstance(self.dtype, str) else "F32"

    def build(self, parent: Path) -> Path:
        """Write the checkpoint into the folder `parent` / name, and return that."""
        tokenizer = mistral_sentencepiece_model() if self.vocabulary == "Mistral's" else None
        folder = build_checkpoint(
            parent / self.name, self.shape, dtype=self.dtype, n_shards=self.n_shards, tokenizer=tokenizer, seed=100
        )
        self.change(folder)
        return folder


# --- config.json


def _config(**changes: object) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / "config.json", **changes)


def _yarn(**more: float) -> Callable[[Path], None]:
    section: dict[str, object] = {"factor": 4.0, "original_max_position_embeddings": 128, **more}
    return _config(rope_scaling={"rope_type": "yarn", **section})


def _rope_parameters(**section: object) -> Callable[[Path], None]:
    """As transformers 5 writes it."""
    return _config(rope_theta=..., rope_parameters={"rope_theta": 250000.0, **section})


def _absent_entries(folder: Path) -> None:
    names = ("num_key_value_heads", "rms_norm_eps", "max_position_embeddings", "rope_theta")
    change_json(folder / "config.json", **dict.fromkeys(names, ...))


# --- weights


def _rotary_buffers(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = read_tensors(path)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = ("F32", np.ones(16, "<f4"))
    rewrite_tensors(path, tensors)


def _odd_values(folder: Path) -> None:
    """Denormals, negative zeros, rows of zeros, the largest values, and ties of each rounding."""
    path = folder / "model.safetensors"
    tensors = read_tensors(path)
    values = tensors["lm_head.weight"][1]
    values[0, :8] = np.array([1e-45, -1e-45, -0.0, 1e-39, -1e-39, 6e-8, 2.0**-25, 65504.0], "<f4")
    values[1] = 0.0
    values[2, :4] = np.array([0x3F808000, 0x3F818000, 0x3F800FFF, 0x3F801000], "<u4").view("<f4")
    values[3] = np.float32(1.0)
    values[4] = np.linspace(-127, 127, values.shape[1], dtype="<f4")
    values[5] = np.round(values[4]) + np.float32(0.5)
    rewrite_tensors(path, tensors)


# --- the tokenizer's files


def _added_tokens(folder: Path) -> None:
    """513 tokens and 7 rows more: added in both files, one of them marked special, one by its look, two in neither."""
    write_json(folder / "added_tokens.json", {"<pad>": 512, "plain": 513})
    decoder = {
        "0": {"content": "<unk>", "special": True},
        "1": {"content": "<s>", "special": True},
        "2": {"content": "</s>", "special": True},
        "512": {"content": "<pad>", "special": False},
        "514": {"content": "<|user|>", "special": False},
        "515": {"content": "\u2581two words", "special": False},
        "516": {"content": "[INST]", "special": True},
    }
    change_json(folder / "config.json", pad_token_id=512)
    change_json(folder / "tokenizer_config.json", added_tokens_decoder=decoder, pad_token="<pad>")


def _chatml(folder: Path) -> None:
    write_json(folder / "added_tokens.json", {"<|im_end|>": 512, "<|im_start|>": 513})
    change_json(folder / "config.json", eos_token_id=512)
    change_json(folder / "tokenizer_config.json", eos_token="<|im_end|>", add_prefix_space=False)


def _template_in_config(template: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "chat_template.jinja").unlink()
        change_json(folder / "tokenizer_config.json", chat_template=template)

    return change


def _both_templates(folder: Path) -> None:
    change_json(folder / "tokenizer_config.json", chat_template="{{ 'of tokenizer_config.json' }}")


def _more_templates(folder: Path) -> None:
    others = folder / "additional_chat_templates"
    others.mkdir()
    (others / "tool_use.jinja").write_text("{{ tools }}", encoding="utf-8")


def _no_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


_SPECIAL = ("<unk>", "<s>", "</s>")


def _tokenizer_json(*, eos: bool = False, **more: object) -> dict[str, object]:
    """The parts of a Llama tokenizer.json that gguf-py looks at: added tokens, and the template with its pair."""

    def special(text: str) -> dict[str, object]:
        return {"SpecialToken": {"id": text, "type_id": 0}}

    def sequence(name: str) -> list[dict[str, object]]:
        return [special("<s>"), {"Sequence": {"id": name, "type_id": 0}}, *([special("</s>")] if eos else [])]

    return {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": text, "special": True} for i, text in enumerate(_SPECIAL)],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "\u2581"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": sequence("A"),
            "pair": sequence("A") + sequence("B"),
            "special_tokens": {},
        },
        "model": {"type": "BPE", "vocab": {}, "merges": []},
        **more,
    }


def _with_tokenizer_json(*, eos: bool = False, **tokenizer_config: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        write_json(folder / "tokenizer.json", _tokenizer_json(eos=eos))
        change_json(folder / "tokenizer_config.json", **tokenizer_config)

    return change


def _special_tokens_only_in_texts(folder: Path) -> None:
    """transformers 5 writes neither ids into config.json nor added tokens beside tokenizer.json."""
    change_json(folder / "config.json", bos_token_id=..., eos_token_id=...)
    write_json(folder / "tokenizer.json", _tokenizer_json())


def _added_in_tokenizer_json(folder: Path) -> None:
    names = dict(enumerate(_SPECIAL)) | {512: "<|end|>", 513: "two words"}
    tokens = [{"id": i, "content": text, "special": text != "two words"} for i, text in names.items()]
    write_json(folder / "tokenizer.json", _tokenizer_json(added_tokens=tokens))


def _added_tokens_json_alone(folder: Path) -> None:
    write_json(folder / "added_tokens.json", {"</s>": 2, "<s>": 1, "<unk>": 0})


def _token_past_the_rows(folder: Path) -> None:
    """Llama-2's first repositories list a <pad> that has no row in the embedding."""
    write_json(folder / "added_tokens.json", {"<pad>": 512})


def _template_json(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    write_json(folder / "chat_template.json", {"chat_template": ZEPHYR_TEMPLATE})


def _template_without_config(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()


# --- what describes the model


def _zephyr_7b_beta(folder: Path) -> None:
    """The side files of zephyr-7b-beta."""
    change_json(
        folder / "config.json",
        _name_or_path="HuggingFaceH4/mistral-7b-sft-beta",
        pad_token_id=2,
        sliding_window=4096,
        torch_dtype="bfloat16",
        transformers_version="4.35.0",
        use_cache=True,
    )
    names = {"</s>": 2, "<s>": 1, "<unk>": 0}
    write_json(folder / "added_tokens.json", names)
    write_json(folder / "special_tokens_map.json", {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"})
    decoder = {str(i): {"content": text, "special": True, "lstrip": False} for text, i in names.items()}
    _with_tokenizer_json(
        add_bos_token=...,
        add_eos_token=...,
        added_tokens_decoder=decoder,
        additional_special_tokens=["<unk>", "<s>", "</s>"],
        chat_template=ZEPHYR_TEMPLATE,
        legacy=True,
        model_max_length=1000000000000000019884624838656,
        pad_token="</s>",
        tokenizer_class="LlamaTokenizer",
        truncation_side="left",
    )(folder)
    (folder / "chat_template.jinja").unlink()
    write_json(folder / "generation_config.json", {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2})
    (folder / "README.md").write_text(
        "---\nlicense: mit\nbase_model: mistralai/Mistral-7B-v0.1\ntags:\n- generated_from_trainer\nlanguage:\n- en\n"
        "datasets:\n- HuggingFaceH4/ultrachat_200k\n- HuggingFaceH4/ultrafeedback_binarized\nwidget:\n- example_title:"
        " Pirate!\n  messages:\n  - role: system\n    content: You are a pirate.\npipeline_tag: text-generation\n"
        "model-index:\n- name: zephyr-7b-beta\n  results: []\n---\n# Zephyr 7B \u03b2\n",
        encoding="utf-8",
    )


def _generation_config(folder: Path) -> None:
    values = {"do_sample": True, "temperature": 1, "top_k": 50, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.1}
    write_json(folder / "generation_config.json", values)


def _rich_card(folder: Path) -> None:
    (folder / "README.md").write_text(
        "---\nlicense: other\nlicense_name: house-rules\nlicense_link: https://example.org/rules\nlanguage: [de, en]\n"
        "model_name: Tiny Chat\nmodel_creator: Some One\nquantized_by: nobody\ntags: [chat, tiny]\n"
        "base_model:\n- someone/tiny-base-1b\n- https://huggingface.co/other/tiny-v2\n"
        "datasets: [someone/words-v1.0]\npipeline_tag: text-generation\n---\nBody.\n",
        encoding="utf-8",
    )


_GROUPED = ModelShape(n_layers=9)  # the first and last eighth and each third between are all there and all differ
_PADDED = ModelShape(n_layers=1, vocab_size=520)
_MISTRAL = ModelShape(64, 64, 1, 2, 1, vocab_size=32000)
_LLAMA = "LlamaForCausalLM"
_CODE_LLAMA = ModelShape(64, 64, 1, 2, 1, vocab_size=32016, architecture=_LLAMA)

# What is known to differ; docs/design/conversion.md says which of it is on purpose.
_ONLY_TOKENIZER_JSON = dict.fromkeys(
    (f"{_TOKENS}tokens", f"{_TOKENS}scores", f"{_TOKENS}token_type"),
    "added tokens that tokenizer.json alone lists are [PAD...] to the reference",
)
_KINDS_OF_ADDED = {
    f"{_TOKENS}token_type": "bos, eos and unk are no ordinary text also where only added_tokens.json names them"
}
_IDS_OF_PIECES = dict.fromkeys(
    (f"{_TOKENS}bos_token_id", f"{_TOKENS}eos_token_id"), "the reference does not ask the SentencePiece model"
)
_EOS_OF_PIECES = {f"{_TOKENS}eos_token_id": "several ids in config.json are none to the reference"}
_NO_INFILL = {f"{_TOKENS}eot_token_id": "the reference knows CodeLlama by its 32016 tokens, ours by the one's text"}
_TEMPLATE_FOUND = {"tokenizer.chat_template": "the reference looks for it only beside a tokenizer_config.json"}

CASES: tuple[Case, ...] = (
    Case("grouped-heads", _GROUPED, every_type=True),
    Case("stored-as-f16", ModelShape(n_layers=2), dtype="F16", every_type=True),
    Case("stored-as-f32", ModelShape(n_layers=2), dtype="F32", every_type=True),
    Case("odd-values", dtype="F32", change=_odd_values, every_type=True),
    Case("several-shards", ModelShape(n_layers=3), n_shards=4),
    Case("mixed-types", dtype={"lm_head.weight": "F32", "model.norm.weight": "F32"}),
    Case("tied-llama", ModelShape(n_layers=4, tied=True, architecture=_LLAMA), every_type=True),
    Case("tied-with-output", change=_config(tie_word_embeddings=True)),
    Case("wide-heads", ModelShape(n_layers=2, n_heads=4, n_kv_heads=1, head_dim=128), every_type=True),
    Case("as-many-kv-heads", ModelShape(n_layers=2, n_kv_heads=8, architecture=_LLAMA), every_type=True),
    Case("rows-of-288", ModelShape(288, 416, 3, 4, 2), every_type=True),
    Case("rows-of-272", ModelShape(272, 400, 2, 4, 2), every_type=True),
    Case("rows-of-320-and-512", ModelShape(320, 512, 2, 4, 4), every_type=True),
    Case("tied-rows-of-288", ModelShape(288, 512, 2, 4, 2, tied=True), every_type=True),
    Case("mistral-vocabulary", _MISTRAL, vocabulary="Mistral's"),
    Case("rotary-buffers", change=_rotary_buffers),
    Case("linear-scaling", change=_config(rope_scaling={"type": "linear", "factor": 2.0})),
    Case("yarn", change=_yarn()),
    Case("yarn-llama", ModelShape(n_layers=1, architecture=_LLAMA), change=_yarn()),
    Case("yarn-in-full", change=_yarn(beta_fast=32.0, beta_slow=1.0, attention_factor=1.2, extrapolation_factor=1.0)),
    Case("yarn-with-two-factors", change=_yarn(attn_factor=1.3, attention_factor=1.4)),
    Case(
        "yarn-at-the-top",
        change=_config(original_max_position_embeddings=128, rope_scaling={"type": "yarn", "factor": 4.0}),
    ),
    Case("rope-scaling-default", change=_config(rope_scaling={"rope_type": "default"})),
    Case("rope-parameters", change=_rope_parameters(rope_type="default")),
    Case(
        "yarn-in-rope-parameters",
        change=_rope_parameters(rope_type="yarn", factor=4.0, original_max_position_embeddings=128),
    ),
    Case("rope-theta", ModelShape(n_layers=1, rope_theta=1e6, rms_norm_eps=1e-6)),
    Case("absent-entries", ModelShape(n_layers=1, n_kv_heads=8), change=_absent_entries),
    Case("absent-entries-llama", ModelShape(n_layers=1, n_kv_heads=8, architecture=_LLAMA), change=_absent_entries),
    Case("added-tokens", _PADDED, change=_added_tokens),
    Case("chatml", ModelShape(n_layers=1, vocab_size=514), change=_chatml, noted=_KINDS_OF_ADDED),
    Case("template-in-tokenizer-config", change=_template_in_config(ZEPHYR_TEMPLATE)),
    Case(
        "named-templates",
        change=_template_in_config(
            [{"name": "default", "template": ZEPHYR_TEMPLATE}, {"name": "tool_use", "template": "{{ tools }}"}]
        ),
    ),
    Case("both-templates", change=_both_templates),
    Case("additional-templates", change=_more_templates),
    Case("template-json", change=_template_json),
    Case("template-without-config", change=_template_without_config, noted=_TEMPLATE_FOUND),
    Case("no-template", change=_no_template),
    Case("adds-eos", change=_with_tokenizer_json(eos=True, add_eos_token=True)),
    Case("tokenizer-json-adds-bos", change=_with_tokenizer_json(add_bos_token=False)),
    Case("tokens-only-in-texts", change=_special_tokens_only_in_texts),
    Case("only-tokenizer-json-lists", _PADDED, change=_added_in_tokenizer_json, noted=_ONLY_TOKENIZER_JSON),
    Case("added-tokens-json-alone", change=_added_tokens_json_alone, noted=_KINDS_OF_ADDED),
    Case("token-past-the-rows", change=_token_past_the_rows),
    Case("ids-only-in-tokenizer-model", change=_config(bos_token_id=..., eos_token_id=...), noted=_IDS_OF_PIECES),
    Case("several-eos", change=_config(eos_token_id=[2, 7]), noted=_EOS_OF_PIECES),
    Case("code-llama", _CODE_LLAMA, vocabulary="Mistral's", noted=_NO_INFILL),
    Case("zephyr-7b-beta", change=_zephyr_7b_beta),
    Case("generation-config", change=_generation_config),
    Case("tiny-chat-v2", change=_rich_card),
)


def by_name(name: str) -> Case:
    """The case of that name."""
    (case,) = (case for case in CASES if case.name == name)
    return case
