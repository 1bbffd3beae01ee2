"""Sizes, parts, memory and disk, decided from headers alone."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoint_builder import MISTRAL_7B, ModelShape, build_checkpoint
from zephyr_local.convert.hf_to_gguf import ConvertOptions, OutputRequest, convert_model, dry_run, open_source
from zephyr_local.errors import InvalidInputError
from zephyr_local.quantize.mapped_file import FileHashes
from zephyr_local.quantize.mixes import MixOptions
from zephyr_local.quantize.output_plan import needs, part_path, plan_outputs
from zephyr_local.quantize.pipeline import block_weights, peak_memory_bytes
from zephyr_local.quantize.source import SourceTensor
from zephyr_local.quantize.types import FileType, TensorType

SHAPES = {
    "rows of 256s": ModelShape(),
    "rows of 32s": ModelShape(288, 416, 2, 4, 2),
    "rows of 16s": ModelShape(272, 400, 2, 4, 2),
    "tied": ModelShape(tied=True, architecture="LlamaForCausalLM"),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("checkpoints") / "zephyr-small")


@pytest.mark.parametrize("split", [None, 1, 400_000, 10**9])
@pytest.mark.parametrize("name", SHAPES)
def test_files_and_sizes_are_those_that_are_written(name: str, split: int | None, tmp_path: Path) -> None:
    source = build_checkpoint(tmp_path / "checkpoint", SHAPES[name])
    out = tmp_path / "out"
    requests = [OutputRequest(out / f"{kind.name}.gguf", kind, split_max_bytes=split) for kind in FileType]
    found = dry_run(source, requests)
    assert not out.exists()
    out.mkdir()
    results = convert_model(source, requests)
    for plan, result in zip(found.plans, results, strict=True):
        assert tuple(file.path for file in plan.files) == result.paths
        assert [file.size_bytes for file in plan.files] == [path.stat().st_size for path in result.paths]
        assert (plan.size_bytes, plan.bits_per_weight) == (result.size_bytes, result.bits_per_weight)
        assert len(plan.tensors) == result.n_tensors == sum(len(file.places) for file in plan.files)
    assert dict(found.needs.disk_bytes) == {out: sum(path.stat().st_size for path in out.iterdir())}
    assert found.notices == results[0].notices


def test_disk_is_counted_by_folder(checkpoint: Path, tmp_path: Path) -> None:
    requests = [
        OutputRequest(tmp_path / "one" / "a.gguf", FileType.Q8_0),
        OutputRequest(tmp_path / "two" / "b.gguf", FileType.Q8_0),
        OutputRequest(tmp_path / "one" / "c.gguf", FileType.Q4_0),
    ]
    found = dry_run(checkpoint, requests)
    a, b, c = (plan.size_bytes for plan in found.plans)
    assert dict(found.needs.disk_bytes) == {tmp_path / "one": a + c, tmp_path / "two": b}
    assert set(found.needs.free_bytes) == {tmp_path / "one", tmp_path / "two"}
    assert all(free > 0 for free in found.needs.free_bytes.values())
    assert list(tmp_path.iterdir()) == []


def test_what_fell_back_is_known(tmp_path: Path) -> None:
    source = build_checkpoint(tmp_path / "checkpoint", SHAPES["rows of 32s"])
    found = dry_run(source, [OutputRequest(tmp_path / "a.gguf", FileType.Q4_K_M)])
    fallbacks = {(t.kind, t.wanted) for t in found.plans[0].fallbacks}
    assert fallbacks == {(TensorType.Q5_0, TensorType.Q4_K), (TensorType.Q8_0, TensorType.Q6_K)}
    assert dry_run(source, [OutputRequest(tmp_path / "a.gguf", FileType.Q8_0)]).plans[0].fallbacks == ()


def test_the_name_of_a_part() -> None:
    assert part_path(Path("folder/model.v2.gguf"), 0, 12) == Path("folder/model.v2-00001-of-00012.gguf")
    assert part_path(Path("model"), 11, 12) == Path("model-00012-of-00012.gguf")


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (np.ones(255, np.float32), r"has the shape \(255,\), and its rows have 256 weights"),
        (np.ones((1, 256), np.float32), r"has the shape \(1, 256\)"),
        (np.full(256, np.nan, np.float32), "negative or not finite"),
        (np.full(256, np.inf, np.float32), "negative or not finite"),
        (np.full(256, -1, np.float32), "negative or not finite"),
        (np.ones(256, np.float64), "no contiguous float32 array"),
        (np.ones(512, np.float32)[::2], "no contiguous float32 array"),
    ],
)
def test_an_importance_matrix_of_something_else(
    weights: np.ndarray, words: str, checkpoint: Path, tmp_path: Path
) -> None:
    request = OutputRequest(tmp_path / "a.gguf", FileType.Q4_0, importance={"blk.0.attn_q.weight": weights})
    with pytest.raises(InvalidInputError, match=words):
        dry_run(checkpoint, [request])


def test_an_importance_of_a_tensor_that_is_not_there_steers_the_mix_alone(checkpoint: Path, tmp_path: Path) -> None:
    """As in llama.cpp, whose rules ask whether there is a matrix, and not for which tensors."""
    importance = {"blk.99.attn_q.weight": np.ones(3, np.float32)}
    plain = OutputRequest(tmp_path / "plain.gguf", FileType.Q4_0)
    steered = OutputRequest(tmp_path / "steered.gguf", FileType.Q4_0, importance=importance)
    convert_model(checkpoint, [plain, steered])
    assert plain.target.read_bytes() == steered.target.read_bytes()  # two layers: an eighth of them is none


def test_a_mix_that_cannot_be_met_in_one_of_several(checkpoint: Path, tmp_path: Path) -> None:
    mix = MixOptions(tensor_types=(("attn_v", TensorType.Q8_0),))
    requests = [OutputRequest(tmp_path / f"{kind.name}.gguf", kind, mix) for kind in (FileType.Q4_0, FileType.F16)]
    with pytest.raises(InvalidInputError, match="no effect in an F16 file"):
        convert_model(checkpoint, requests)
    assert list(tmp_path.iterdir()) == []


# --- memory ---

ONE = [{TensorType.Q4_K, TensorType.Q6_K, TensorType.F32}]
"""The types of one output."""


def mistral_7b(stored: TensorType = TensorType.BF16) -> list[SourceTensor]:
    return [SourceTensor(name, shape, stored, stored, name) for name, shape in MISTRAL_7B.tensor_shapes().items()]


def test_memory_does_not_grow_with_the_model_but_for_the_list_of_ranges() -> None:
    tensors = mistral_7b()
    one_layer = [tensor for tensor in tensors if ".layers." not in tensor.name or ".layers.0." in tensor.name]
    whole, part = (peak_memory_bytes(8, 1 << 20, some, ONE) for some in (tensors, one_layer))
    assert whole - part < 4 << 20
    assert peak_memory_bytes(8, 1 << 20, tensors, 17 * ONE) - whole < 64 << 20
    assert whole < 512 << 20


def test_memory_grows_with_threads_with_the_sources_type_and_with_what_cannot_be_divided() -> None:
    tensors = mistral_7b()
    by_threads = [peak_memory_bytes(threads, 1 << 20, tensors, ONE) for threads in (1, 2, 4, 8, 16)]
    assert by_threads == sorted(set(by_threads))
    assert peak_memory_bytes(2, 1 << 20, mistral_7b(TensorType.F32), ONE) > by_threads[1]
    assert peak_memory_bytes(2, 4 << 20, tensors, ONE) > by_threads[1]


@pytest.mark.parametrize("threads", [1, 24, 512])
def test_no_block_is_larger_than_memory_was_reckoned_for(threads: int, tmp_path: Path) -> None:
    """Heads of 512 rows are not divided, and many threads get small blocks."""
    shape = ModelShape(512, 512, 1, 2, 1, head_dim=512)
    source = open_source(build_checkpoint(tmp_path / "checkpoint", shape), ConvertOptions())
    plans = plan_outputs(source, [OutputRequest(tmp_path / "a.gguf", FileType.Q8_0)], allow_requantize=False)
    largest = 0
    hashes = FileHashes()
    for block in source.read_blocks(block_weights(threads), hashes):
        largest = max(largest, block.source_bytes)
    hashes.close()
    in_blocks = needs(source, plans, threads).peak_memory_bytes - peak_memory_bytes(1, 1, [norm(source.tensors)], ONE)
    assert in_blocks >= (2 * threads + 1) * largest


def norm(tensors: tuple[SourceTensor, ...]) -> SourceTensor:
    return replace(next(tensor for tensor in tensors if len(tensor.shape) == 1), shape=(1,))


def test_a_folder_that_is_not_there_yet_is_looked_up_where_it_would_be(checkpoint: Path, tmp_path: Path) -> None:
    found = dry_run(checkpoint, [OutputRequest(tmp_path / "a" / "b" / "c.gguf", FileType.Q8_0)])
    free = os.statvfs(tmp_path) if hasattr(os, "statvfs") else None
    if free is not None:
        assert abs(found.needs.free_bytes[tmp_path / "a" / "b"] - free.f_bavail * free.f_frsize) < 10**10
