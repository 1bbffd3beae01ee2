"""A checkpoint folder, opened and checked from its headers alone: nothing of the weights has been read yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from zephyr_local.convert.lora import Adapter, require_fits, require_untied
from zephyr_local.convert.model_config import ModelConfig, read_config, read_json
from zephyr_local.convert.safetensors_file import Shard, SourceType, StoredTensor, parse_shard, read_shard
from zephyr_local.convert.shard_supply import ShardSupply
from zephyr_local.convert.tensor_names import EMBEDDING, IGNORED_ENDINGS, OUTPUT, ExpectedTensor, expected_tensors
from zephyr_local.convert.vocabulary import Vocabulary, read_vocabulary
from zephyr_local.errors import CheckpointError
from zephyr_local.gguf_check import MAX_TOKENS

_SINGLE = "model.safetensors"
_INDEX = f"{_SINGLE}.index.json"
_LOOSE = "model*.safetensors"
_PICKLES = ("*.bin", "*.pth", "*.pt", "*.ckpt")
_NOT_WEIGHTS = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "rng_state*.pth")


@dataclass(frozen=True, slots=True)
class FoundTensor:
    """A tensor of the model, and where its values are stored."""

    expected: ExpectedTensor
    stored: StoredTensor
    shard_name: str
    base_type: SourceType  # what the base stores it as; an adapter's tensor in its place is rounded to that


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that the headers tell; each tensor is in exactly one shard, with its right shape."""

    folder: Path
    tokenizer_folder: Path  # the adapter's, where it brings a tokenizer
    config: ModelConfig
    vocabulary: Vocabulary
    shards: tuple[Shard, ...]  # the adapter's is the last
    tensors: tuple[FoundTensor, ...]
    adapter: Adapter | None = None


def open_checkpoint(folder: Path, adapter: Adapter | None = None, supply: ShardSupply | None = None) -> Checkpoint:
    """Opens and checks a checkpoint, with an adapter that shall be merged; a CheckpointError says what is wrong.

    With a `supply` its shards need not be in the folder.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise CheckpointError(f"{folder} {what}; a checkpoint is a folder", "Give the folder with config.json in it")
    config = read_config(folder)
    shards = tuple(_read_shard(path, supply) for path in _shard_paths(folder, supply))
    stored = _stored_tensors(shards)
    _require_index_agrees(folder, shards)
    with_output = OUTPUT in stored or not config.tie_word_embeddings
    wanted = expected_tensors(config, with_output=with_output)
    _require_tensors(stored, wanted, config)
    if adapter is not None:
        require_fits(adapter, {tensor.source_name: tensor.shape for tensor in wanted})
        _require_other_name(adapter, shards)
        config = _adapted_config(config, adapter)
        wanted = expected_tensors(config, with_output=with_output)
        stored |= adapter.replaced
        shards += (adapter.shard,)
    tokenizer_folder = folder if adapter is None or not _has_tokenizer(adapter.folder) else adapter.folder
    return Checkpoint(
        folder=folder,
        tokenizer_folder=tokenizer_folder,
        config=config,
        vocabulary=read_vocabulary(tokenizer_folder, config),
        shards=shards,
        tensors=_located(wanted, stored, shards, adapter),
        adapter=adapter,
    )


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.model", "tokenizer.json"))


def _located(
    wanted: list[ExpectedTensor],
    stored: Mapping[str, StoredTensor],
    shards: tuple[Shard, ...],
    adapter: Adapter | None,
) -> tuple[FoundTensor, ...]:
    base = {tensor.name: (tensor, shard.path.name) for shard in shards for tensor in shard.tensors}
    replaced = adapter.replaced if adapter is not None else {}
    found = []
    for tensor in wanted:
        of_base, shard_name = base[tensor.source_name]
        if tensor.source_name in replaced:
            shard_name = shards[-1].path.name
        base_type = SourceType[of_base.dtype]
        found.append(FoundTensor(tensor, stored[tensor.source_name], shard_name, base_type))
    return tuple(found)


def _adapted_config(config: ModelConfig, adapter: Adapter) -> ModelConfig:
    """The config of the merged model: an adapter may bring more tokens than its base has."""
    require_untied(adapter, tied=config.tie_word_embeddings)
    if adapter.vocab_size is None:
        return config
    if adapter.vocab_size > MAX_TOKENS:
        raise CheckpointError(
            f"the adapter gives its base {adapter.vocab_size} tokens, above the limit of {MAX_TOKENS}",
            "Save, copy or download the adapter again",
        )
    return replace(config, vocab_size=adapter.vocab_size)


def _require_other_name(adapter: Adapter, shards: tuple[Shard, ...]) -> None:
    """Refuses a base with a shard of the adapter's name, by which their hashes are told apart."""
    name = adapter.shard.path.name
    if any(shard.path.name == name for shard in shards):
        raise CheckpointError(
            f"a shard of the base is called {name}, as the adapter's weights are", "Rename it, in the index too"
        )


def _read_shard(path: Path, supply: ShardSupply | None) -> Shard:
    if supply is None:
        return read_shard(path)
    return parse_shard(path, supply.size_bytes(path.name), partial(supply.begin, path.name))


def _is_there(path: Path, supply: ShardSupply | None) -> bool:
    return path.is_file() if supply is None else path.name in supply.names


def _shard_paths(folder: Path, supply: ShardSupply | None) -> list[Path]:
    if _is_there(
        folder / _SINGLE, supply
    ):  # wins over an index, as in transformers: saving anew may leave an old one behind
        return [folder / _SINGLE]
    index = folder / _INDEX
    if index.is_file():
        names = sorted(set(_weight_map(index).values()))
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise CheckpointError(f"{_INDEX} names the shard {name!r}", "Copy or download the index again")
            if not _is_there(folder / name, supply):
                raise CheckpointError(
                    f"{_INDEX} names {name}, which is not there", "Copy or download the missing shard"
                )
        return [folder / name for name in names]
    named = folder.glob(_LOOSE) if supply is None else (folder / name for name in supply.names)
    found = sorted(path for path in named if path.match(_LOOSE) and _is_there(path, supply))
    if found:
        return found
    pickles = sorted({path.name for pattern in _PICKLES for path in folder.glob(pattern)} - _side_files(folder))
    if pickles:
        raise CheckpointError(
            f"{folder} has its weights as pickles only ({', '.join(pickles[:3])}), and loading a pickle runs its code",
            "Take the safetensors version, or save it anew with transformers: save_pretrained(safe_serialization=True)",
        )
    raise CheckpointError(
        f"{folder} has no model.safetensors and no {_INDEX}", "Give the folder that save_pretrained wrote"
    )


def _side_files(folder: Path) -> set[str]:
    return {path.name for pattern in _NOT_WEIGHTS for path in folder.glob(pattern)}


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(f"{_INDEX} has no weight_map of names", "Copy or download the index again")
    return weight_map


def _stored_tensors(shards: tuple[Shard, ...]) -> dict[str, StoredTensor]:
    stored: dict[str, StoredTensor] = {}
    where: dict[str, str] = {}
    for shard in shards:
        for tensor in shard.tensors:
            if tensor.name in stored:
                raise CheckpointError(
                    f"the tensor {tensor.name} is in {where[tensor.name]} and again in {shard.path.name}",
                    "Remove the shards that do not belong to this checkpoint, or add its index",
                )
            stored[tensor.name] = tensor
            where[tensor.name] = shard.path.name
    return stored


def _require_index_agrees(folder: Path, shards: tuple[Shard, ...]) -> None:
    index = folder / _INDEX
    if not index.is_file() or shards[0].path.name == _SINGLE:
        return
    weight_map = _weight_map(index)
    stored = {tensor.name: shard.path.name for shard in shards for tensor in shard.tensors}
    for name, shard_name in weight_map.items():
        if stored.get(name) != shard_name:
            there = f"it is in {stored[name]}" if name in stored else "no shard has it"
            raise CheckpointError(
                f"{_INDEX} says that {name} is in {shard_name}, and {there}", "Copy or download the checkpoint again"
            )
    if extra := sorted(stored.keys() - weight_map.keys()):
        raise CheckpointError(
            f"{_INDEX} does not list {_first(extra)}, which its shards hold", "Copy or download the index again"
        )


def _require_tensors(stored: Mapping[str, StoredTensor], wanted: list[ExpectedTensor], config: ModelConfig) -> None:
    expected = {tensor.source_name: tensor for tensor in wanted}
    if missing := [name for name in expected if name not in stored]:
        tied = " (or tie_word_embeddings in config.json)" if missing == [OUTPUT] else ""
        raise CheckpointError(
            f"the checkpoint lacks {_first(missing)}{tied}",
            "Copy or download its shards again; config.json must fit them",
        )
    extra = [name for name in stored if name not in expected and not name.endswith(IGNORED_ENDINGS)]
    if extra:
        raise CheckpointError(
            f"the checkpoint holds {_first(extra)}, which a {config.architecture} of {config.n_layers} layers has not",
            "Check that config.json belongs to these weights; adapters must be merged first",
        )
    for name, tensor in expected.items():
        found = stored[name]
        if found.shape != tensor.shape:
            hint = ": vocab_size does not match the embedding" if name in (EMBEDDING, OUTPUT) else ""
            raise CheckpointError(
                f"{name} has shape {list(found.shape)}, and config.json means {list(tensor.shape)}{hint}",
                "Check that config.json belongs to these weights",
            )
        if found.dtype not in SourceType.__members__:
            raise CheckpointError(
                f"{name} is stored as {found.dtype}; BF16, F16 and F32 can be converted",
                "Save the checkpoint in one of these types",
            )


def _first(names: list[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
