"""Keys and values of the GGUF, as llama.cpp's converter writes them, plus where the weights came from.

The keys of the model and their order follow conversion/base.py and conversion/llama.py of llama.cpp 0c1e57098
(`prepare_metadata`, `set_gguf_parameters`); the `general.*` keys come from gguf-py's own `Metadata`, which reads the
model card. Keys that llama.cpp does not have are all under `zephyr_local.`, and listed in docs/design/conversion.md.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from zephyr_local.convert.model_config import MAX_JSON_BYTES, ModelConfig, read_json, require_readable, shown
from zephyr_local.convert.vocabulary import Vocabulary
from zephyr_local.errors import CheckpointError
from zephyr_local.gguf_check import is_allowed_key
from zephyr_local.quantize.gguf_header import MetadataValue, ValueType
from zephyr_local.quantize.provenance import PREFIX

_SNAPSHOT = re.compile(r"[0-9a-f]{40}")
_MORE_TEMPLATES = "additional_chat_templates/*.jinja"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "config.json", "chat_template.*", _MORE_TEMPLATES)
_CARD_FILES = ("README.md", "generation_config.json", "config.json")
_MAX_CARD_BYTES = 4 << 20  # reading YAML takes minutes for more
_MAX_CARD_ENTRIES = 1 << 18
SLIDING_WINDOW = f"{PREFIX}sliding_window"
"""Tokens that attention looked back over in the training, which llama.cpp's `llama` architecture has no key for."""
_CODE_LLAMA_EOT = "\u2581<EOT>"  # llama.cpp's converter takes 32010 where there are 32016 tokens
_LOCAL_BASE = re.compile(r"base_model:([a-z]+:)?(/|~|\.\.?/|[A-Za-z]:\\)")
_LOCAL_URL = re.compile("https://huggingface.co//")
_YARN_KEYS = {
    "extrapolation_factor": "add_rope_scaling_yarn_ext_factor",
    "attention_factor": "add_rope_scaling_yarn_attn_factor",
    "attn_factor": "add_rope_scaling_yarn_attn_factor",
    "beta_fast": "add_rope_scaling_yarn_beta_fast",
    "beta_slow": "add_rope_scaling_yarn_beta_slow",
}


def checkpoint_name(folder: Path) -> str:
    """The model's name: the folder's, or the repository's where the folder is a snapshot of the hub's cache."""
    folder = Path(os.path.normpath(folder.absolute()))  # not resolve: a link's own name says more
    if not _SNAPSHOT.fullmatch(folder.name):
        return folder.name or "model"
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.split("--")[-1]
    config = folder / "config.json"
    path = read_json(config).get("_name_or_path") if config.is_file() else None
    name = path if isinstance(path, str) else ""
    return name.rstrip("/").split("/")[-1] or folder.name


@dataclass(frozen=True, slots=True)
class ModelFolders:
    """Where the files of a model lie: all in one folder, unless it is a base with an adapter."""

    model: Path  # names and describes it
    weights: Path  # config.json, generation_config.json
    tokenizer: Path


def build_metadata(
    folders: ModelFolders, config: ModelConfig, vocabulary: Vocabulary, n_weights: int
) -> tuple[dict[str, MetadataValue], list[str]]:
    """Every key that llama.cpp's converter writes, in its order, and lines for the user about what was left out.

    The file type stands in its place with the value 0.
    """
    notices = list(vocabulary.notices)
    writer = gguf.GGUFWriter(path=None, arch="llama")  # collects keys; nothing is written through it
    writer.add_type(gguf.GGUFType.MODEL)
    writer.kv_data[0].update(_general_keys(folders.model, folders.weights, n_weights, notices))
    _model_keys(writer, config)
    try:
        _vocabulary_keys(writer, folders, vocabulary)
    except (ValueError, TypeError, LookupError, AttributeError, AssertionError, RecursionError, OSError) as error:
        # what gguf-py's reader of these files raises where they are not as it expects
        raise CheckpointError(
            f"tokenizer_config.json, tokenizer.json, the chat template or config.json cannot be understood ({error!r})",
            "Take these files from the base model",
        ) from error
    values = _packed(writer, notices)
    if config.sliding_window is not None:
        values[SLIDING_WINDOW] = MetadataValue(ValueType.UINT32, config.sliding_window)
    return values, notices


def adapter_metadata(folder: Path, alpha: float, n_weights: int) -> tuple[dict[str, MetadataValue], list[str]]:
    """Every key of a GGUF adapter as llama.cpp's converter writes them, and notices as :func:`build_metadata`."""
    notices: list[str] = []
    writer = gguf.GGUFWriter(path=None, arch="llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    # below zero: gguf-py's sign for an adapter, whose size says nothing of its base's
    writer.kv_data[0].update(_general_keys(folder, folder, -n_weights, notices))
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    return _packed(writer, notices), notices


def _packed(writer: gguf.GGUFWriter, notices: list[str]) -> dict[str, MetadataValue]:
    values: dict[str, MetadataValue] = {}
    for key, entry in writer.kv_data[0].items():
        if (value := _packable(key, entry, notices)) is not None:
            values[key] = value
    return values


def _general_keys(folder: Path, weights: Path, n_weights: int, notices: list[str]) -> dict[str, Any]:
    """The keys that describe the model; none of them steers it, so a damaged side file costs them and no more."""
    writer = gguf.GGUFWriter(path=None, arch="llama")
    try:
        _require_readable({folder, weights}, _CARD_FILES)
        for described in {folder, weights}:
            _require_bounded_card(described)
        _general(folder, weights, n_weights).set_gguf_meta_model(writer)
    except Exception as error:  # gguf-py's readers of side files raise whatever the file makes them raise
        notices.append(f"README.md or generation_config.json cannot be understood ({error!r}); both are left out")
        writer = gguf.GGUFWriter(path=None, arch="llama")
        size_label = gguf.size_label(n_weights, n_weights, 0, 0) if n_weights > 0 else None
        bare = gguf.Metadata(name=checkpoint_name(folder), size_label=size_label)
        bare.set_gguf_meta_model(writer)
    return dict(writer.kv_data[0])


def _packable(key: str, entry: Any, notices: list[str]) -> MetadataValue | None:  # noqa: ANN401  (gguf-py's GGUFValue)
    """The value as it will stand in the file, or None where a key that steers nothing cannot be stored."""
    try:
        value = _value(entry)
        value.pack()
    except (struct.error, TypeError, ValueError, OverflowError, LookupError, AttributeError) as error:
        if key.startswith("general."):
            notices.append(f"{key} is left out: its value {shown(entry.value)} cannot be stored ({error})")
            return None
        files = "config.json"
        if key.startswith("tokenizer."):
            files = "tokenizer_config.json, tokenizer.json, added_tokens.json or the chat template, whichever holds it"
        raise CheckpointError(
            f"the value of {key} is {shown(entry.value)}, which the GGUF cannot hold ({error})", f"Correct {files}"
        ) from error
    if not is_allowed_key(key):  # a newer gguf-py may write keys that the runtime has no rule for
        notices.append(f"the key {key} is left out: zephyr-local does not know it")
        return None
    return value


class _FirstWins(dict[str, bool]):
    """Keeps the value that a key was first given."""

    def __setitem__(self, key: str, value: bool) -> None:
        self.setdefault(key, value)


class _SpecialVocab(gguf.SpecialVocab):
    """gguf-py's, but for two things.

    Ids below zero: LLaMA-1's config.json gives -1 where it means none. And where tokenizer.json's post-processor and
    tokenizer_config.json disagree on whether bos is added, the former counts, as in gguf-py after 0.19.0: it is what
    transformers' fast tokenizers do.
    """

    def _load(self, path: str | os.PathLike[str]) -> None:
        self.add_special_token = _FirstWins()
        super()._load(path)  # type: ignore[arg-type]

    def _set_special_token(self, typ: str, tid: Any) -> None:  # noqa: ANN401
        if not (isinstance(tid, int) and tid < 0):
            super()._set_special_token(typ, tid)


def _general(folder: Path, weights: Path, n_weights: int) -> gguf.Metadata:
    metadata = gguf.Metadata.load(None, folder, None, n_weights)
    _forget_local_paths(metadata)
    if folder != weights:  # an adapter: how to sample is its base's to say
        of_base = gguf.Metadata.load(None, weights, None, n_weights)
        for name in vars(of_base):
            if name.startswith("sampling_"):
                setattr(metadata, name, getattr(of_base, name))
    if _SNAPSHOT.fullmatch(folder.name):
        _name_after_repository(metadata, folder, n_weights)
    if metadata.name is None:
        metadata.name = checkpoint_name(folder)
    if metadata.size_label is None and n_weights > 0:
        metadata.size_label = gguf.size_label(n_weights, n_weights, 0, 0)
    if metadata.sampling_penalty_repeat is None:  # read by gguf-py after 0.19
        penalty = gguf.Metadata.load_generation_config(weights).get("repetition_penalty")
        metadata.sampling_penalty_repeat = penalty
    return metadata


def _forget_local_paths(metadata: gguf.Metadata) -> None:
    """PEFT's model cards name a base that lay in a folder by its path, which is nobody else's concern."""
    metadata.base_models = [
        base for base in metadata.base_models or [] if not _begins(base.get("repo_url"), _LOCAL_URL)
    ] or None
    metadata.tags = [tag for tag in metadata.tags or [] if not _begins(tag, _LOCAL_BASE)] or None


def _begins(value: object, pattern: re.Pattern[str]) -> bool:
    return isinstance(value, str) and pattern.match(value) is not None  # YAML's aliases make texts without end of lists


def _name_after_repository(metadata: gguf.Metadata, folder: Path, n_weights: int) -> None:
    """gguf-py takes the name from the folder: in the hub's cache that is a commit, so the repository's is taken."""
    hashed = gguf.Metadata.get_model_id_components(folder.name, n_weights)
    named = gguf.Metadata.get_model_id_components(checkpoint_name(folder), n_weights)
    fields = ("name", "organization", "basename", "finetune", "version", "size_label")
    for key, of_hash, of_name in zip(fields, hashed, named, strict=True):
        current = getattr(metadata, key)
        if key == "name":
            of_hash, of_name = (_title(part) for part in (of_hash, of_name))
        if current is None or current == of_hash:
            setattr(metadata, key, of_name)


def _title(name: str | None) -> str | None:
    return str(gguf.Metadata.id_to_title(name)) if name else name  # type: ignore[no-untyped-call]


def _require_readable(folders: set[Path], names: tuple[str, ...]) -> None:
    """gguf-py reads these files as a whole, whatever their size."""
    for path in (path for folder in folders for name in names for path in folder.glob(name)):
        if path.is_file():
            require_readable(path, _MAX_CARD_BYTES if path.suffix == ".md" else MAX_JSON_BYTES)


def _require_bounded_card(folder: Path) -> None:
    """Refuses a model card whose aliases (YAML's `*name`) make more of it than gguf-py should write into its log."""
    waiting: list[Any] = [gguf.Metadata.load_model_card(folder)]
    for _ in range(_MAX_CARD_ENTRIES):
        if not waiting:
            return
        if len(waiting) > _MAX_CARD_ENTRIES:
            break
        entry = waiting.pop()
        waiting.extend(entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ())
    raise CheckpointError(f"README.md has more than {_MAX_CARD_ENTRIES} entries", "Shorten what stands between its ---")


def _model_keys(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    writer.add_block_count(config.n_layers)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.ffn_size)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    if config.rope_scaling is not None:
        scaling = config.rope_scaling
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling.kind))
        writer.add_rope_scaling_factor(scaling.factor)
        if scaling.original_context is not None:
            writer.add_rope_scaling_orig_ctx_len(scaling.original_context)
        for name, value in scaling.yarn:  # of attention_factor and attn_factor, which share a key, the first counts
            if (method := _YARN_KEYS[name]) and not _has_key(writer, method):
                getattr(writer, method)(value)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if config.tells_head_dim:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    writer.add_file_type(0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _has_key(writer: gguf.GGUFWriter, method: str) -> bool:
    return f"llama.rope.scaling.{method.removeprefix('add_rope_scaling_')}" in writer.kv_data[0]


def _vocabulary_keys(writer: gguf.GGUFWriter, folders: ModelFolders, vocabulary: Vocabulary) -> None:
    if vocabulary.add_space_prefix is not None:
        writer.add_add_space_prefix(vocabulary.add_space_prefix)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    _require_readable({folders.tokenizer, folders.weights}, _TOKENIZER_FILES)
    special = _SpecialVocab(folders.tokenizer, n_vocab=len(vocabulary.tokens))
    _fill_special(special, folders.tokenizer, vocabulary)
    if folders.weights != folders.tokenizer:  # ids that only config.json tells
        special._try_load_from_config_json(folders.weights)
    for name in ("bos", "eos"):
        if name in special.special_token_ids:
            vocabulary.make_control(special.special_token_ids[name])
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_scores(vocabulary.scores)
    writer.add_token_types([int(kind) for kind in vocabulary.kinds])
    special.add_to_gguf(writer, quiet=True)
    if (names := writer.kv_data[0].get(gguf.Keys.Tokenizer.CHAT_TEMPLATES)) is not None:
        names.value.sort()  # gguf-py takes them from a set, whose order is another in each process


def _fill_special(special: gguf.SpecialVocab, folder: Path, vocabulary: Vocabulary) -> None:
    """What gguf-py misses: ids that only tokenizer_config.json's texts or the SentencePiece model tell."""
    from_pieces = {"bos": vocabulary.bos_id, "eos": vocabulary.eos_id}
    for name in ("bos", "eos", "pad"):
        if name in special.special_token_ids:
            continue
        content = vocabulary.special_texts.get(name)
        if content is not None and content in vocabulary.tokens:
            special.special_token_ids[name] = vocabulary.tokens.index(content)
        elif (token_id := from_pieces.get(name)) is not None:
            special.special_token_ids[name] = token_id
    if _CODE_LLAMA_EOT in vocabulary.tokens:
        special.special_token_ids.setdefault("eot", vocabulary.tokens.index(_CODE_LLAMA_EOT))
    if vocabulary.unk_id not in (None, 0):  # 0 is what llama.cpp takes by itself
        special.special_token_ids.setdefault("unk", vocabulary.unk_id)
    template = folder / "chat_template.jinja"
    if special.chat_template is None and template.is_file():  # gguf-py looks only beside a tokenizer_config.json
        special.chat_template = template.read_text(encoding="utf-8")
    if isinstance(special.chat_template, list) and any(folder.glob(_MORE_TEMPLATES)):
        special.chat_template.sort(key=lambda named: str(named.get("name")))  # a folder lists its files in no order


def _value(entry: Any) -> MetadataValue:  # noqa: ANN401  (gguf-py's GGUFValue)
    kind = ValueType(entry.type)
    for element in entry.value if kind is ValueType.ARRAY else [entry.value]:
        if not isinstance(element, str | bytes | int | float):
            raise TypeError(f"{shown(element)} is neither a text nor a number")
    if kind is not ValueType.ARRAY:
        return MetadataValue(kind, entry.value)
    values = [value.decode("utf-8") if isinstance(value, bytes) else value for value in entry.value]
    element = entry.sub_type if entry.sub_type is not None else gguf.GGUFValueType.get_type(values[0])
    return MetadataValue(kind, values, ValueType(element))
