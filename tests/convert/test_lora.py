"""An adapter is merged with PEFT's bytes, or refused by name."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests import adapter_builder as adapters
from tests.checkpoint_builder import (
    Dtype,
    ModelShape,
    as_stored,
    build_checkpoint,
    change_json,
    pack_safetensors,
    read_tensors,
)
from zephyr_local.convert.adapter_config import is_adapter, read_adapter_config, require_unambiguous
from zephyr_local.convert.lora import Adapter, LoraDelta, open_adapter, require_fits, rounded
from zephyr_local.convert.safetensors_file import SourceType, StoredTensor
from zephyr_local.errors import CheckpointError
from zephyr_local.quantize.kernels import ggml
from zephyr_local.quantize.types import TensorType

SHAPE = ModelShape(hidden_size=64, ffn_size=160, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=300)
DTYPES: tuple[Dtype, ...] = ("F32", "F16", "BF16")
EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Checkpoints by their type, each built once."""
    folder = tmp_path_factory.mktemp("bases")
    return functools.cache(lambda dtype: build_checkpoint(folder / dtype, SHAPE, dtype=dtype))


def widened(dtype: str, values: np.ndarray) -> np.ndarray:
    raw = np.frombuffer(values.tobytes(), np.uint8)
    return ggml.decode(TensorType[dtype], raw, values.shape[-1])


def replacement(adapter: Adapter, tensor: StoredTensor) -> np.ndarray:
    raw = np.frombuffer(adapter.shard.path.read_bytes()[tensor.begin : tensor.end], np.uint8)
    return ggml.decode(TensorType[tensor.dtype], raw, tensor.shape[-1])


def merged_in_blocks(delta: LoraDelta, rows: np.ndarray, stored: SourceType) -> np.ndarray:
    """The merge in blocks of 1, 2, 3, 5, 8 … rows, on several threads, as the converter's encoders do it."""
    sizes, cuts = [1, 2, 3, 5, 8, 13, 21, 1], [0]
    while cuts[-1] < len(rows):
        cuts.append(min(len(rows), cuts[-1] + sizes[len(cuts) % len(sizes)]))

    def block(first: int, last: int) -> np.ndarray:
        before = rows[first:last].tobytes()
        merged = delta.merged(rows[first:last], first, stored)
        assert rows[first:last].tobytes() == before
        return merged

    with ThreadPoolExecutor(3) as pool:
        return np.concatenate(list(pool.map(block, cuts[:-1], cuts[1:])))


def merged_checkpoint(base: Path, adapter: Adapter, dtype: Dtype) -> dict[str, bytes]:
    """Bytes of every tensor of the merged model, from our merge."""
    stored = SourceType[dtype]
    merged: dict[str, bytes] = {}
    for name, (_, values) in read_tensors(base / "model.safetensors").items():
        rows = widened(dtype, values)
        if name in adapter.replaced:
            rows = rounded(replacement(adapter, adapter.replaced[name]), stored)
        if name in adapter.deltas:
            rows = merged_in_blocks(adapter.deltas[name], rows, stored)
        merged[name] = as_stored(rows, dtype).tobytes()
    return merged


def require_equals_peft(
    base: Path, folder: Path, tmp_path: Path, dtype: Dtype, vocab_size: int | None = None
) -> Adapter:
    adapter = open_adapter(folder)
    require_fits(adapter, SHAPE.tensor_shapes())
    reference = read_tensors(
        adapters.merge_with_peft(base, folder, tmp_path / "merged", vocab_size) / "model.safetensors"
    )
    merged = merged_checkpoint(base, adapter, dtype)
    assert merged.keys() == reference.keys()
    assert {kind for kind, _ in reference.values()} == {dtype}
    wrong = [name for name, (_, values) in reference.items() if values.tobytes() != merged[name]]
    assert wrong == []
    before = {name: values.tobytes() for name, (_, values) in read_tensors(base / "model.safetensors").items()}
    touched = adapter.deltas.keys() | adapter.replaced.keys()
    assert {name for name in merged if merged[name] != before[name]} == touched
    return adapter


CONFIGS = adapters.CONFIGS | {
    "whole modules": {"r": 8, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
}


@pytest.mark.parametrize("adapter_dtype", ["F32", "BF16"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_merge_has_the_bytes_of_peft(bases, tmp_path, config, dtype, adapter_dtype):
    folder = adapters.train_adapter(bases(dtype), tmp_path / "adapter", dtype=adapter_dtype, **config)
    require_equals_peft(bases(dtype), folder, tmp_path, dtype)


OTHER_CONFIGS = {
    "layers": {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
    "layers' pattern": {"target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": "layers"},
    "expression": {"target_modules": r".*layers\.[01]\.(self_attn|mlp)\.(q|k|up)_proj"},
    "excluded": {"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["layers.0.self_attn.q_proj"]},
    "norms saved": {"target_modules": ["q_proj"], "modules_to_save": ["norm"]},
    "mlp saved": {"target_modules": ["q_proj", "up_proj"], "modules_to_save": ["mlp"]},
    "no initial zeros": {"target_modules": ["q_proj"], "init_lora_weights": False},
    "gaussian": {"target_modules": ["q_proj", "embed_tokens"], "init_lora_weights": "gaussian"},
    "orthogonal": {"target_modules": ["q_proj"], "init_lora_weights": "orthogonal"},
    "biases where there are none": {"target_modules": ["q_proj"], "bias": "lora_only"},
    "rank 1": {"r": 1, "target_modules": ["q_proj", "embed_tokens"]},
    "rank 192": {"r": 192, "target_modules": ["q_proj", "embed_tokens"]},
    "rank 193": {"r": 193, "target_modules": ["q_proj", "embed_tokens"]},
    "rank 256": {"r": 256, "use_rslora": True, "target_modules": ["q_proj", "embed_tokens", "down_proj"]},
    "rank 640": {"r": 640, "target_modules": ["q_proj"]},
}


@pytest.mark.parametrize("config", OTHER_CONFIGS.values(), ids=OTHER_CONFIGS.keys())
def test_settings_and_ranks_mean_what_they_mean_to_peft(bases, tmp_path, config):
    folder = adapters.train_adapter(bases("BF16"), tmp_path / "adapter", **config)
    require_equals_peft(bases("BF16"), folder, tmp_path, "BF16")


@pytest.mark.parametrize("dtype", DTYPES)
def test_replacements_are_rounded_to_the_base_type(bases, tmp_path, dtype):
    """An adapter that was trained beside a float32 base, merged into that base's BF16 or F16 copy."""
    config = {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"]}
    folder = adapters.train_adapter(bases("F32"), tmp_path / "adapter", **config)
    adapter = require_equals_peft(bases(dtype), folder, tmp_path, dtype)
    assert {tensor.dtype for tensor in adapter.replaced.values()} == {"F32"}


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
        {"target_modules": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj"]},
    ],
    ids=["saved", "adapted", "resized alone"],
)
def test_adapter_with_more_tokens_than_its_base(bases, tmp_path, config):
    folder = adapters.train_adapter(bases("BF16"), tmp_path / "adapter", vocab_size=310, **config)
    adapter = require_equals_peft(bases("BF16"), folder, tmp_path, "BF16", vocab_size=310)
    assert adapter.vocab_size == 310


@pytest.mark.parametrize("rank", [1, 4, 8, 16, 64, 128, 256])
def test_big_blocks_have_the_bits_of_torch(tmp_path, rank):
    """Shapes at which either BLAS leaves its path for small matrices."""
    import torch

    shape = ModelShape(hidden_size=512, ffn_size=1536, n_layers=1, vocab_size=300)
    folder = adapters.build_adapter(tmp_path, shape, targets=["down_proj", "up_proj"], rank=rank)
    stored = read_tensors(folder / "adapter_model.safetensors")
    for name, delta in open_adapter(folder).deltas.items():
        prefix = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        a, b = (torch.from_numpy(stored[f"{prefix}{letter}.weight"][1]) for letter in "AB")
        expected = ((b @ a) * (16 / rank)).numpy()
        zero = np.zeros(delta.shape, np.float32)
        blocks = [delta.merged(zero[n : n + 301], n, SourceType.F32) for n in range(0, len(zero), 301)]
        np.testing.assert_array_equal(np.concatenate(blocks), expected)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_rounding_is_that_of_torch(dtype):
    import torch

    generator = np.random.default_rng(0)
    bits = generator.integers(0, 1 << 32, 1 << 16, dtype=np.uint32)
    ties = np.array([0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x00008000, 0x00000001, 0x80000000, 0x33000000], np.uint32)
    values = np.concatenate([bits, ties]).view(np.float32)[np.newaxis]
    kind = {"F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    expected = torch.from_numpy(values.copy()).to(kind).to(torch.float32).numpy()
    np.testing.assert_array_equal(rounded(values, SourceType[dtype]), expected)


@pytest.mark.parametrize("stored", list(SourceType))
@pytest.mark.parametrize("bad", [0x7F800000, 0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF])
def test_what_is_not_finite_stays_visible_and_quiet(tmp_path, recwarn, bad, stored):
    folder = adapters.build_adapter(tmp_path, SHAPE, targets=["q_proj"])

    def spoil(tensors):
        tensors[f"{Q0}.lora_A.weight"][1].view(np.uint32)[3, 5] = bad

    adapters.change_tensors(folder, spoil)
    delta = open_adapter(folder).deltas["model.layers.0.self_attn.q_proj.weight"]
    merged = delta.merged(np.ones((9, 64), np.float32), 2, stored)
    assert not np.isfinite(merged[:, 5]).any()
    assert np.isfinite(np.delete(merged, 5, axis=1)).all()
    assert list(recwarn) == []


def test_values_beyond_the_type_become_infinite_and_quiet(tmp_path, recwarn):
    folder = adapters.build_adapter(tmp_path, SHAPE, targets=["q_proj"], lora_alpha=1e9)
    delta = open_adapter(folder).deltas["model.layers.0.self_attn.q_proj.weight"]
    merged = delta.merged(np.zeros((64, 64), np.float32), 0, SourceType.F16)
    assert np.isinf(merged).any()
    assert list(recwarn) == []


def test_adapter_name_in_the_keys(bases, tmp_path):
    """As torch.save(model.state_dict()) and some trainers store them, and as PEFT still reads them."""
    folder = adapters.build_adapter(tmp_path / "adapter", SHAPE, targets=["q_proj", "embed_tokens"])
    plain = {name: delta.shape for name, delta in open_adapter(folder).deltas.items()}

    def rename(tensors):
        for name in list(tensors):
            new = name.replace(".weight", ".default.weight") if name.endswith(".weight") else f"{name}.default"
            tensors[new] = tensors.pop(name)

    adapters.change_tensors(folder, rename)
    assert {name: delta.shape for name, delta in open_adapter(folder).deltas.items()} == plain
    require_equals_peft(bases("BF16"), folder, tmp_path, "BF16")


def test_config_of_old_versions(tmp_path):
    """PEFT 0.3's entries alone."""
    kept = {"base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode", "init_lora_weights", "lora_alpha",
            "lora_dropout", "modules_to_save", "peft_type", "r", "target_modules", "task_type"}  # fmt: skip
    removed = dict.fromkeys(adapters.adapter_config().keys() - kept, ...)
    folder = adapters.build_adapter(tmp_path, SHAPE, base_model_name_or_path="org/base", **removed)
    config = read_adapter_config(folder)
    assert (config.base_model, config.revision, config.scaling("model.layers.0.self_attn.q_proj")) == (
        "org/base", None, (8, 2.0))  # fmt: skip
    assert len(open_adapter(folder).deltas) == 4


def test_which_folder_is_an_adapter(tmp_path):
    folder = adapters.build_adapter(tmp_path / "adapter", SHAPE)
    assert is_adapter(folder)
    (folder / "training_args.bin").write_bytes(b"")
    assert is_adapter(folder)
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"")
    assert not is_adapter(folder)
    assert not is_adapter(build_checkpoint(tmp_path / "model", SHAPE))
    assert not is_adapter(tmp_path / "nothing")


def test_touched_vocabulary(tmp_path):
    plain = open_adapter(adapters.build_adapter(tmp_path / "plain", SHAPE))
    assert plain.touched_vocabulary == ()
    assert plain.vocab_size is None
    both = adapters.build_adapter(
        tmp_path / "both", SHAPE, targets=["embed_tokens"], saved={OUTPUT: (300, 64)}, modules_to_save=["lm_head"]
    )
    assert open_adapter(both).touched_vocabulary == (EMBEDDING, OUTPUT)
    assert open_adapter(both).vocab_size == 300


REFUSED_SETTINGS = {
    "peft_type": ("IA3", "only LORA"),
    "use_dora": (True, "DoRA"),
    "fan_in_fan_out": (True, "fan_in_fan_out"),
    "lora_bias": (True, "lora_bias"),
    "layer_replication": ([[0, 2], [1, 2]], "repeats layers"),
    "trainable_token_indices": ([1, 2], "rows of the embedding"),
    "target_parameters": (["experts.up"], "target_parameters"),
    "alora_invocation_tokens": ([1], "activated"),
    "use_qalora": (True, "QALoRA"),
    "arrow_config": ({"top_k": 3}, "Arrow"),
    "use_bdlora": ({"nblocks": 2}, "BD-LoRA"),
    "kasa_config": ({"r": 1}, "KaSA"),
    "monteclora_config": ({"num_samples": 8}, "MonteCLoRA"),
    "velora_config": ({"num_groups": 64}, "VeLoRA"),
    "megatron_config": ({"a": 1}, "Megatron"),
    "task_type": ("SEQ_CLS", "CAUSAL_LM"),
    "bias": ("some", "bias is 'some'"),
    "use_something_new": (True, "not known here"),
    "r": (0, "r is 0"),
    "lora_alpha": (float("nan"), "lora_alpha is nan"),
    "use_rslora": ("yes", "use_rslora is 'yes'"),
    "rank_pattern": ({"q_proj": "8"}, "rank_pattern"),
    "alpha_pattern": ([1], "alpha_pattern"),
    "target_modules": ([1], "a list of names"),
    "exclude_modules": ({"a": 1}, "a list of names"),
    "modules_to_save": ("lm_head", "a list of names"),
    "layers_to_transform": (["1"], "layers_to_transform"),
    "layers_pattern": ([["a"]], "layers_pattern"),
    "base_model_name_or_path": (7, "base_model_name_or_path"),
}


@pytest.mark.parametrize(("key", "value", "words"), [(k, *v) for k, v in REFUSED_SETTINGS.items()])
def test_settings_that_are_refused(tmp_path, key, value, words):
    folder = adapters.build_adapter(tmp_path, SHAPE, **{key: value})
    with pytest.raises(CheckpointError) as refused:
        open_adapter(folder)
    assert key in refused.value.problem
    assert words in refused.value.problem
    assert refused.value.remedy


@pytest.mark.parametrize(
    "init", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "mica", "of tomorrow", 1, {}, "PiSSA"]
)
def test_beginnings_that_changed_the_base_are_refused(tmp_path, init):
    folder = adapters.build_adapter(tmp_path, SHAPE, init_lora_weights=init)
    with pytest.raises(CheckpointError, match="init_lora_weights"):
        open_adapter(folder)


@pytest.mark.parametrize("weights", ["model.safetensors", "model-00001-of-00002.safetensors"])
def test_an_adapter_and_a_model_in_one_folder(tmp_path, weights):
    folder = adapters.build_adapter(tmp_path / "both", SHAPE)
    require_unambiguous(folder)
    (folder / weights).write_bytes(b"")
    with pytest.raises(CheckpointError, match="holds both a model and an adapter") as refused:
        require_unambiguous(folder)
    assert "adapter_config.json away" in refused.value.remedy
    (folder / "adapter_config.json").unlink()
    require_unambiguous(folder)
    require_unambiguous(tmp_path / "nothing")


@pytest.mark.parametrize(
    "text", ["", "[]", "nul", "{" * 100_000, '{"peft_type": "LORA", "lora_alpha": 1' + "0" * 400 + "}"]
)
def test_damaged_configurations_are_refused(tmp_path, text):
    folder = adapters.build_adapter(tmp_path, SHAPE)
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError):
        open_adapter(folder)


def added(name, shape=(4, 4), dtype="F32"):
    code = {"F32": np.float32, "BF16": np.uint16}[dtype]
    return lambda tensors: tensors.update({name: (dtype, np.zeros(shape, code))})


def removed(name):
    return lambda tensors: tensors.pop(name)


def reshaped(name, shape):
    return lambda tensors: tensors.update({name: ("F32", np.zeros(shape, np.float32))})


BROKEN_WEIGHTS = {
    "A is missing": (removed(f"{Q0}.lora_A.weight"), "lora_B of model.layers.0.self_attn.q_proj"),
    "B is missing": (removed(f"{Q0}.lora_B.weight"), "lora_A of model.layers.0.self_attn.q_proj"),
    "A and an embedding's B": (added(f"{Q0}.lora_embedding_B"), "a LoRA is lora_embedding_A and"),
    "A twice": (added(f"{Q0}.lora_A.default.weight"), "lora_A.default.weight"),
    "another adapter's name": (added(f"{Q0}.lora_A.other.weight"), "not known"),
    "no prefix": (added("model.norm.weight"), "not known"),
    "not targeted": (
        lambda tensors: (added(f"{Q0[:-6]}k_proj.lora_A.weight", (8, 64))(tensors),
                         added(f"{Q0[:-6]}k_proj.lora_B.weight", (32, 8))(tensors)),
        "does not target"),
    "rank of A": (reshaped(f"{Q0}.lora_A.weight", (9, 64)), "rank 9"),
    "rank of B": (reshaped(f"{Q0}.lora_B.weight", (64, 7)), "rank 7"),
    "a vector": (reshaped(f"{Q0}.lora_A.weight", (8,)), "no matrix"),
    "nothing in it": (reshaped(f"{Q0}.lora_A.weight", (8, 0)), "no matrix"),
    "DoRA": (added(f"{Q0}.lora_magnitude_vector", (64,)), "DoRA"),
    "a LoRA's bias": (added(f"{Q0}.lora_B.bias", (64,)), "a bias"),
    "a bias": (added(f"{Q0}.bias", (64,)), "a bias"),
    "trained tokens": (
        added("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"), "a trained token"),
    "a base layer without its LoRA": (added("base_model.model.lm_head.base_layer.weight"), "not known"),
    "a LoRA beside its old base": (added(f"{Q0}.weight", (64, 64)), "not known"),
    "a copy alone": (added("base_model.model.lm_head.modules_to_save.weight"), "not known"),
    "no weight": (added("base_model.model.model.norm.scale"), "not known"),
    "nothing at all": (lambda tensors: tensors.clear(), "no tensors"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "words"), BROKEN_WEIGHTS.values(), ids=BROKEN_WEIGHTS.keys())
def test_weights_that_are_refused(tmp_path, change, words):
    folder = adapters.build_adapter(tmp_path, SHAPE)
    adapters.change_tensors(folder, change)
    with pytest.raises(CheckpointError) as refused:
        open_adapter(folder)
    assert words in refused.value.problem


def test_types_that_are_refused(tmp_path):
    folder = adapters.build_adapter(tmp_path, SHAPE)
    header = {f"{Q0}.lora_A.weight": {"dtype": "F64", "shape": [1, 1], "data_offsets": [0, 8]}}
    (folder / "adapter_model.safetensors").write_bytes(pack_safetensors(header, bytes(8)))
    with pytest.raises(CheckpointError, match="stored as F64"):
        open_adapter(folder)


def test_pickles_and_missing_weights_are_refused(tmp_path):
    folder = adapters.build_adapter(tmp_path, SHAPE)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="loading a pickle runs its code"):
        open_adapter(folder)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"has no adapter_model\.safetensors"):
        open_adapter(folder)


MISFITS = {
    "other width": ({"hidden_size": 128}, {}, "of shape [64, 64], and the base's has [128, 128]"),
    "fewer layers": ({"n_layers": 1}, {}, "model.layers.1.self_attn.q_proj.weight, which the base has not"),
    "more layers": ({"n_layers": 3}, {}, "model.layers.2.self_attn.q_proj was trained"),
    "incomplete": ({}, {"target_modules": ["q_proj", "v_proj", "k_proj"]}, "k_proj was trained"),
    "module not there": ({}, {"modules_to_save": ["lm_head"]}, "lm_head was trained"),
    "other vocabulary": ({"vocab_size": 299}, {"targets": ["embed_tokens"]}, "[300, 64], and the base's has [299, 64]"),
    "tied": ({"tied": True}, {"targets": ["lm_head"]}, "one matrix for its embedding and its output"),
    "fewer tokens": (
        {}, {"saved": {EMBEDDING: (299, 64)}, "modules_to_save": ["embed_tokens"]}, "[299, 64], and the base's has"),
    "new tokens in one": (
        {}, {"saved": {EMBEDDING: (301, 64)}, "modules_to_save": ["embed_tokens"]}, "need a row in both"),
    "new tokens in both, not alike": (
        {}, {"saved": {EMBEDDING: (301, 64), OUTPUT: (302, 64)}, "modules_to_save": ["embed_tokens", "lm_head"]},
        "need a row in both"),
    "wider embedding": (
        {}, {"saved": {EMBEDDING: (300, 65)}, "modules_to_save": ["embed_tokens"]}, "[300, 65], and the base's has"),
    "something else": ({}, {"saved": {"model.head.weight": (3, 3)}}, "model.head.weight, which the base has not"),
}  # fmt: skip


@pytest.mark.parametrize(("base", "config", "words"), MISFITS.values(), ids=MISFITS.keys())
def test_adapters_of_another_base_are_refused(tmp_path, base, config, words):
    adapter = open_adapter(adapters.build_adapter(tmp_path, SHAPE, **config))
    shapes = ModelShape(**{**{f: getattr(SHAPE, f) for f in SHAPE.__dataclass_fields__}, **base}).tensor_shapes()
    with pytest.raises(CheckpointError) as refused:
        require_fits(adapter, shapes)
    assert words in refused.value.problem


@pytest.mark.parametrize(
    ("name", "letters"), [("model.embed_tokens", ("lora_A.weight", "lora_B.weight")),
                          ("lm_head", ("lora_embedding_A", "lora_embedding_B"))],
)  # fmt: skip
def test_factors_of_the_wrong_kind_are_refused(tmp_path, name, letters):
    folder = adapters.build_adapter(tmp_path, SHAPE, targets=["q_proj"], target_modules=["q_proj", name.split(".")[-1]])
    shapes = [(8, 64), (300, 8)] if letters[0] == "lora_A.weight" else [(8, 300), (64, 8)]

    def add(tensors):
        for letter, shape in zip(letters, shapes, strict=True):
            added(f"base_model.model.{name}.{letter}", shape)(tensors)

    adapters.change_tensors(folder, add)
    with pytest.raises(CheckpointError, match="holds factors of"):
        require_fits(open_adapter(folder), SHAPE.tensor_shapes())


def test_builder_writes_what_peft_writes(tmp_path):
    """The configuration that the tests write is the one that PEFT writes."""
    import json

    from peft import LoraConfig

    LoraConfig(task_type="CAUSAL_LM").save_pretrained(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written.keys() == adapters.adapter_config().keys()
    change_json(tmp_path / "adapter_config.json", target_modules=["q_proj"])
    read_adapter_config(tmp_path)
