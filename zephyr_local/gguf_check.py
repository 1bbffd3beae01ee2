"""Decides whether a GGUF may be handed to native code: an allow-list for the llama architecture with SentencePiece.

llama.cpp trusts a header once it parses: a missing byte token, a norm that is not F32 or a block count of 0 end the
process instead of raising. So this asks for exactly what the runtime relies on, and refuses what it does not know: keys
under ``llama.``, ``tokenizer.`` and ``split.`` steer native code, all other prefixes are only text to it. The rules
were found by loading some five thousand mutated files; NaN weights are left to ``EngineSettings.check_tensors``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from zephyr_local.errors import ModelFileError
from zephyr_local.gguf_file import DOWNLOAD_AGAIN, MAX_TENSORS, GGUFFile, TensorInfo
from zephyr_local.gguf_split import (
    MAX_PARTS,
    SPLIT_COUNT,
    SPLIT_NO,
    SPLIT_TENSORS_COUNT,
    lone_part_error,
    split_place,
)

RUNNABLE_TYPES: Final = frozenset(
    {"F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"}
    | {"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"}
)
MAX_TOKENS: Final = 1 << 20
MAX_TOKEN_BYTES: Final = 512
MAX_TEMPLATE_BYTES: Final = 64 << 10
TAIL_BYTES: Final = 65536  # after the last tensor: padding, nothing else
MIN_TOKENS: Final = 3 + 256  # unknown, start, end, and a token for each byte

CONTROL, USER_DEFINED, BYTE = 3, 4, 6  # llama.cpp's llama_token_type
N_TOKEN_TYPES: Final = 6
_BYTE_TEXT = re.compile(r"<0x[0-9A-F]{2}>\Z")
_OTHER_MODEL: Final = "Use a GGUF of Zephyr, Mistral or another model of the llama architecture with SentencePiece"
_REBUILD: Final = "Get the file from another source, or convert the checkpoint again"


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a key's value must be: its GGUF type, and a range or a choice."""

    type_name: str
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()
    required: bool = False


def _u32(low: int, high: int, *, required: bool = False) -> _Rule:
    return _Rule("u32", low, high, required=required)


def _f32(low: float, high: float, *, required: bool = False) -> _Rule:
    return _Rule("f32", low, high, required=required)


def _choice(*choices: str, required: bool = False) -> _Rule:
    return _Rule("str", choices=choices, required=required)


_TOKEN_ID: Final = _u32(0, MAX_TOKENS - 1)
_FLAG: Final = _Rule("bool")
_TEMPLATE: Final = _Rule("str")

RULES: Final[Mapping[str, _Rule]] = {
    "general.architecture": _choice("llama", required=True),
    "general.type": _choice("model"),
    "general.alignment": _u32(32, 32),
    "general.file_type": _u32(0, 1100),
    "general.quantization_version": _u32(2, 2),
    "general.name": _Rule("str"),
    "general.basename": _Rule("str"),
    "llama.context_length": _u32(1, 1 << 20, required=True),
    "llama.embedding_length": _u32(1, 1 << 16, required=True),
    "llama.block_count": _u32(1, 512, required=True),
    "llama.feed_forward_length": _u32(1, 1 << 20, required=True),
    "llama.attention.head_count": _u32(1, 1024, required=True),
    "llama.attention.head_count_kv": _u32(1, 1024),
    "llama.attention.layer_norm_rms_epsilon": _f32(1e-12, 1e-1, required=True),
    "llama.attention.key_length": _u32(2, 1024),
    "llama.attention.value_length": _u32(2, 1024),
    "llama.attention.sliding_window": _u32(0, 1 << 20),
    "llama.rope.dimension_count": _u32(2, 1024),
    "llama.rope.freq_base": _f32(1.0, 1e9),
    "llama.rope.scaling.type": _choice("none", "linear", "yarn"),
    "llama.rope.scaling.factor": _f32(1e-3, 1e4),
    "llama.rope.scaling.original_context_length": _u32(1, 1 << 20),
    "llama.rope.scaling.attn_factor": _f32(1e-3, 1e3),
    "llama.rope.scaling.yarn_ext_factor": _f32(-1.0, 1e3),
    "llama.rope.scaling.yarn_attn_factor": _f32(-1.0, 1e3),
    "llama.rope.scaling.yarn_beta_fast": _f32(-1.0, 1e4),
    "llama.rope.scaling.yarn_beta_slow": _f32(-1.0, 1e4),
    "llama.rope.scaling.finetuned": _FLAG,
    "llama.rope.scale_linear": _f32(1e-3, 1e4),  # files of 2023
    "llama.tensor_data_layout": _Rule("str"),
    "llama.expert_count": _u32(0, 0),
    "llama.expert_used_count": _u32(0, 0),
    "llama.vocab_size": _u32(1, MAX_TOKENS),
    "tokenizer.ggml.model": _choice("llama", required=True),
    "tokenizer.ggml.pre": _Rule("str"),
    "tokenizer.ggml.tokens": _Rule("array[str]", required=True),
    "tokenizer.ggml.scores": _Rule("array[f32]", required=True),
    "tokenizer.ggml.token_type": _Rule("array[i32]", required=True),
    "tokenizer.ggml.merges": _Rule("array[str]"),
    "tokenizer.ggml.bos_token_id": _TOKEN_ID,
    "tokenizer.ggml.eos_token_id": _TOKEN_ID,
    "tokenizer.ggml.unknown_token_id": _TOKEN_ID,
    "tokenizer.ggml.padding_token_id": _u32(0, 0xFFFFFFFF),  # LLaMA-1's -1; llama.cpp ignores one out of range
    "tokenizer.ggml.eot_token_id": _TOKEN_ID,
    "tokenizer.ggml.eom_token_id": _TOKEN_ID,
    "tokenizer.ggml.seperator_token_id": _TOKEN_ID,  # llama.cpp's spelling
    "tokenizer.ggml.mask_token_id": _TOKEN_ID,
    "tokenizer.ggml.cls_token_id": _TOKEN_ID,
    "tokenizer.ggml.add_bos_token": _FLAG,
    "tokenizer.ggml.add_eos_token": _FLAG,
    "tokenizer.ggml.add_sep_token": _FLAG,
    "tokenizer.ggml.add_space_prefix": _FLAG,
    "tokenizer.ggml.remove_extra_whitespaces": _FLAG,
    "tokenizer.chat_template": _TEMPLATE,
    "tokenizer.chat_templates": _Rule("array[str]"),
    SPLIT_NO: _Rule("u16", 0, MAX_PARTS - 1),
    SPLIT_COUNT: _Rule("u16", 0, MAX_PARTS),
    SPLIT_TENSORS_COUNT: _Rule("i32", 0, MAX_TENSORS),
}
_NAMED_TEMPLATE: Final = re.compile(r"tokenizer\.chat_template\.[A-Za-z0-9_\-]{1,64}\Z")
_GUARDED_PREFIXES: Final = ("llama.", "tokenizer.", "split.")
_FIRST_PART_PREFIXES: Final = ("llama.", "tokenizer.")
_DEFAULT_IDS: Final = {
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}  # llama.cpp's, for SentencePiece

_TURN_ENDS: Final = (*_DEFAULT_IDS, "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")


def rule_for(key: str) -> _Rule | None:
    """What the value of a key must be; None for a key without a rule."""
    return _TEMPLATE if _NAMED_TEMPLATE.match(key) else RULES.get(key)


def is_allowed_key(key: str) -> bool:
    """Whether a file may have this key: it has a rule, or is under a prefix that is only text to llama.cpp."""
    return rule_for(key) is not None or not key.startswith(_GUARDED_PREFIXES)


def check_runnable(gguf: GGUFFile) -> None:
    """Raise ModelFileError, naming the key or tensor, its value and the limit, unless llama.cpp can safely load it.

    A part of a split model is refused; the whole, as ``gguf_split`` joins it, is what may be loaded.
    """
    _Check(gguf).run()


class _Check:
    def __init__(self, gguf: GGUFFile) -> None:
        self._gguf = gguf

    def run(self) -> None:
        if not self._gguf.parts and (place := split_place(self._gguf)) is not None:
            raise lone_part_error(self._gguf, place)
        # Then the architecture: for another one every later complaint would only confuse.
        self._check_rule("general.architecture", RULES["general.architecture"])
        if self._gguf.text("general.type") == "adapter":
            raise self._refused(
                "it is an adapter, not a model",
                "Merge it into its base: zephyr-local quantize with the adapter's folder",
            )
        for key, rule in RULES.items():
            self._check_rule(key, rule)
        for key in self._gguf.metadata:
            if not is_allowed_key(key):
                raise self._refused(f"the key {key} is not known for this architecture", _OTHER_MODEL)
            if (known := rule_for(key)) is not None:
                self._check_rule(key, known)
        for part in self._gguf.parts[1:]:
            self._check_later_part(part)
        n_tokens = self._check_vocabulary()
        self._check_tensors(n_tokens)

    # --- keys ---

    def _check_later_part(self, part: GGUFFile) -> None:
        """llama.cpp reads only ``split.no`` and the alignment of it, so a key that steers would be lost unseen."""
        for key in part.metadata:
            if not is_allowed_key(key) or key.startswith(_FIRST_PART_PREFIXES):
                raise self._refused(f"the key {key} does not belong in a later part", _OTHER_MODEL, part)
            if (known := rule_for(key)) is not None:
                self._check_rule(key, known, part)

    def _check_rule(self, key: str, rule: _Rule, part: GGUFFile | None = None) -> None:
        gguf = part or self._gguf
        if key not in gguf.metadata:
            if rule.required:
                raise self._refused(f"the key {key} is missing", _REBUILD)
            return
        value, type_name = gguf.metadata[key], gguf.value_types[key]
        if type_name != rule.type_name:
            raise self._refused(f"{key} has the type {type_name}; it must be {rule.type_name}", _REBUILD, gguf)
        if rule.choices and value not in rule.choices:
            choices = " or ".join(rule.choices)
            raise self._refused(f"{key} is {str(value)[:60]!r}; it must be {choices}", _OTHER_MODEL, gguf)
        if isinstance(value, int | float) and not rule.low <= value <= rule.high:  # NaN is refused too
            raise self._refused(f"{key} is {value}, outside {rule.low:g} to {rule.high:g}", _REBUILD, gguf)

    def _int(self, key: str, default: int = 0) -> int:
        value = self._gguf.metadata.get(key, default)
        assert isinstance(value, int)
        return value

    # --- vocabulary ---

    def _check_vocabulary(self) -> int:
        """Check the tokens and everything that points at them; return how many there are."""
        prefix = "tokenizer.ggml."
        tokens: Sequence[str] = self._gguf.metadata[prefix + "tokens"]  # type: ignore[assignment]
        scores: Sequence[float] = self._gguf.metadata[prefix + "scores"]  # type: ignore[assignment]
        types: Sequence[int] = self._gguf.metadata[prefix + "token_type"]  # type: ignore[assignment]
        n_tokens = len(tokens)
        if not MIN_TOKENS <= n_tokens <= MAX_TOKENS:
            raise self._refused(f"it has {n_tokens} tokens, outside {MIN_TOKENS} to {MAX_TOKENS}", _OTHER_MODEL)
        for key, length in (("scores", len(scores)), ("token_type", len(types))):
            if length != n_tokens:
                raise self._refused(f"{prefix}{key} has {length} entries for {n_tokens} tokens", _REBUILD)
        if self._int("llama.vocab_size", n_tokens) != n_tokens:
            raise self._refused(f"llama.vocab_size is {self._int('llama.vocab_size')} for {n_tokens} tokens", _REBUILD)
        self._check_tokens(tokens, types)
        if not all(map(math.isfinite, scores)):
            raise self._refused(f"{prefix}scores has a value that is not finite", _REBUILD)
        self._check_special_ids(tokens, types)
        for key in self._gguf.metadata:
            if rule_for(key) is _TEMPLATE and len(self._gguf.text(key).encode()) > MAX_TEMPLATE_BYTES:
                raise self._refused(f"{key} is longer than {MAX_TEMPLATE_BYTES} bytes", _REBUILD)
        return n_tokens

    def _check_tokens(self, tokens: Sequence[str], types: Sequence[int]) -> None:
        where = "tokenizer.ggml.tokens"
        for index, (text, type_id) in enumerate(zip(tokens, types, strict=True)):
            if not text or "\0" in text or len(text) > MAX_TOKEN_BYTES or len(text.encode()) > MAX_TOKEN_BYTES:
                raise self._refused(
                    f"{where}[{index}] is empty, longer than {MAX_TOKEN_BYTES} bytes, or contains NUL", _REBUILD
                )
            if not 1 <= type_id <= N_TOKEN_TYPES:
                raise self._refused(
                    f"tokenizer.ggml.token_type[{index}] is {type_id}, outside 1 to {N_TOKEN_TYPES}", _REBUILD
                )
            is_byte_text = text.startswith("<0x") and _BYTE_TEXT.match(text) is not None
            if (type_id == BYTE) != is_byte_text:
                raise self._refused(f"{where}[{index}] is {text!r} with the type {type_id}", _REBUILD)
        distinct = set(tokens)
        if len(distinct) != len(tokens):
            seen: set[str] = set()
            twice = next(text for text in tokens if text in seen or seen.add(text))  # type: ignore[func-returns-value]
            raise self._refused(f"{where} has {twice!r} twice", _REBUILD)
        for byte in range(256):
            if f"<0x{byte:02X}>" not in distinct:
                raise self._refused(f"{where} lacks the byte token <0x{byte:02X}>", _OTHER_MODEL)

    def _check_special_ids(self, tokens: Sequence[str], types: Sequence[int]) -> None:
        n_tokens = len(tokens)
        for key in RULES:
            if RULES[key] is _TOKEN_ID and key in self._gguf.metadata and self._int(key) >= n_tokens:
                raise self._refused(f"{key} is {self._int(key)}, not below the {n_tokens} tokens", _REBUILD)
        for key, default in _DEFAULT_IDS.items():
            # Converters of 2023 called an added token such as <|im_end|> user-defined, also where it ends the turns.
            if types[self._int(key, default)] not in (CONTROL, USER_DEFINED):
                raise self._refused(f"{key} is {self._int(key, default)}, which is not a control token", _REBUILD)
        steering = {i for i, kind in enumerate(types) if kind == CONTROL}
        steering |= {self._int(key, _DEFAULT_IDS.get(key, -1)) for key in _TURN_ENDS} - {-1}
        for token in sorted(steering):
            if len(tokens[token]) < 2:  # it could not be told from typed text
                raise self._refused(f"the control token {token} is the single character {tokens[token]!r}", _REBUILD)

    # --- tensors ---

    def _check_tensors(self, n_tokens: int) -> None:
        required, optional = self._expected_shapes(n_tokens)
        for tensor in self._gguf.tensors:
            expected = required.pop(tensor.name, None) or optional.get(tensor.name)
            if expected is None:
                raise self._refused_tensor(tensor, "does not belong to this architecture", _OTHER_MODEL)
            self._check_tensor(tensor, expected)
        if required:
            raise self._refused(f"the tensor {next(iter(required))} is missing", _REBUILD)
        for file in self._gguf.files:
            surplus = file.size_bytes - file.data_offset - self._end_of_contiguous(file)
            if surplus > TAIL_BYTES:
                raise self._refused(f"{surplus} bytes follow the last tensor", DOWNLOAD_AGAIN, file)

    def _end_of_contiguous(self, file: GGUFFile) -> int:
        """Bytes from ``data_offset`` to the end of a file's tensors, which must lie one right behind the other."""
        end = 0
        for tensor in file.tensors:
            if tensor.offset != end:
                raise self._refused(
                    f"the tensor {tensor.name} starts at {tensor.offset}, not at {end}", DOWNLOAD_AGAIN, file
                )
            end += tensor.size_bytes + -tensor.size_bytes % file.alignment
        return end

    def _check_tensor(self, tensor: TensorInfo, expected: tuple[int, ...]) -> None:
        shape = tensor.shape
        while len(shape) > len(expected) and shape[-1] == 1:
            shape = shape[:-1]
        if shape != expected:
            raise self._refused_tensor(tensor, f"has the shape {tensor.shape}; it must be {expected}", _REBUILD)
        if tensor.type_name not in RUNNABLE_TYPES:
            raise self._refused_tensor(
                tensor,
                f"has the type {tensor.type_name}, which is not run here",
                "Use a Q4_K_M, Q5_K_M, Q6_K or Q8_0 file",
            )
        if len(expected) == 1 and tensor.type_name != "F32":
            raise self._refused_tensor(tensor, f"has the type {tensor.type_name}; it must be F32", _REBUILD)

    def _expected_shapes(self, n_tokens: int) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
        """The shapes, as stored (row length first), of the tensors that must and that may be there."""
        n_embd, n_head = self._int("llama.embedding_length"), self._int("llama.attention.head_count")
        n_head_kv = self._int("llama.attention.head_count_kv", n_head)
        if n_embd % n_head and "llama.attention.key_length" not in self._gguf.metadata:
            raise self._refused(f"llama.attention.head_count is {n_head}, which does not divide {n_embd}", _REBUILD)
        if n_head % n_head_kv:
            raise self._refused(
                f"llama.attention.head_count_kv is {n_head_kv}, which does not divide {n_head}", _REBUILD
            )
        head = self._int("llama.attention.key_length", n_embd // n_head)
        for key, default in (("llama.attention.value_length", n_embd // n_head), ("llama.rope.dimension_count", head)):
            if self._int(key, default) != head:
                raise self._refused(
                    f"{key} is {self._int(key, default)}; it must be the head size {head}", _OTHER_MODEL
                )
        if head % 2:
            raise self._refused(f"the head size is {head}; it must be even", _REBUILD)
        required = {"token_embd.weight": (n_embd, n_tokens), "output_norm.weight": (n_embd,)}
        n_ff = self._int("llama.feed_forward_length")
        for block in range(self._int("llama.block_count")):
            required.update(_block_shapes(block, n_embd, n_ff, (n_head * head, n_head_kv * head)))
        return required, {"output.weight": (n_embd, n_tokens), "rope_freqs.weight": (head // 2,)}

    def _refused_tensor(self, tensor: TensorInfo, problem: str, remedy: str) -> ModelFileError:
        return self._refused(f"the tensor {tensor.name} {problem}", remedy, self._gguf.files[tensor.part])

    def _refused(self, problem: str, remedy: str, file: GGUFFile | None = None) -> ModelFileError:
        return ModelFileError(f"{(file or self._gguf).path.name}: {problem}", remedy)


def _block_shapes(
    block: int, n_embd: int, n_ff: int, n_query_and_kv: tuple[int, int]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    n_query, n_kv = n_query_and_kv
    for name, shape in (
        ("attn_norm", (n_embd,)),
        ("attn_q", (n_embd, n_query)),
        ("attn_k", (n_embd, n_kv)),
        ("attn_v", (n_embd, n_kv)),
        ("attn_output", (n_query, n_embd)),
        ("ffn_norm", (n_embd,)),
        ("ffn_gate", (n_embd, n_ff)),
        ("ffn_up", (n_embd, n_ff)),
        ("ffn_down", (n_ff, n_embd)),
    ):
        yield f"blk.{block}.{name}.weight", shape
