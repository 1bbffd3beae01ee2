"""Estimates from headers, beside what llama.cpp allocates and what a process takes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.gguf_builder import tiny_model
from tests.memory.native_buffers import Kept, reserved
from tests.shaped_model import MISTRAL_7B, SMALL, TINYLLAMA_1B, Shape, write_shaped_model
from zephyr_local.api import Zephyr
from zephyr_local.engine.llama import LlamaModel, kernel_features
from zephyr_local.gguf_split import read_model
from zephyr_local.memory.estimate import Gpu, MemoryEstimate, estimate_memory, kv_layer_bytes
from zephyr_local.memory.repack import is_repacked
from zephyr_local.memory.shape import ModelShape, shape_of
from zephyr_local.quantize.types import FileType
from zephyr_local.settings import EngineSettings, Sampling

MIB = 1024 * 1024
ROUNDING = 0.006 * MIB  # llama.cpp logs hundredths
AVX2, NEON = frozenset({"avx2"}), frozenset({"neon", "dotprod"})
FLAT = Shape(2, 256, 4, 2, 512, n_vocab=512)


def shape_at(path: Path) -> ModelShape:
    return shape_of(read_model(path))


def shaped(folder: Path, shape: Shape, file_type: str, **options: bool) -> Path:
    return write_shaped_model(folder / "shaped.gguf", shape, FileType.parse(file_type), **options)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("file_type", ["Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "Q4_0", "Q2_K", "F16"])
def test_mapped_and_repacked_weights_are_those_of_llama_cpp(tmp_path: Path, file_type: str, tied: bool) -> None:
    path = shaped(tmp_path, FLAT, file_type, tied=tied)
    estimate = estimate_memory(shape_at(path), EngineSettings(), kernel_features())
    with Kept() as kept:
        LlamaModel.load(path, EngineSettings(n_ctx=256)).close()
    assert estimate.weights_repacked_bytes == pytest.approx(
        kept.sizes().get("CPU_REPACK model", 0.0), abs=ROUNDING + 4096
    )
    # What it calls mapped spans all that lies between the first and the last such tensor.
    assert estimate.weights_mapped_bytes <= kept.sizes()["CPU_Mapped model"] + ROUNDING
    if tied:
        assert estimate.weights_mapped_bytes + estimate.weights_read_once_bytes == shape_at(path).size_bytes


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        (SMALL, EngineSettings()),
        (SMALL, EngineSettings(n_ctx=256)),
        (SMALL, EngineSettings(n_batch=64)),
        (SMALL, EngineSettings(kv_type="f32")),
        (SMALL, EngineSettings(n_ctx=16384, kv_type="q8_0")),
        (SMALL, EngineSettings(n_parallel=64)),
        (replace(SMALL, n_vocab=32000), EngineSettings()),
        (replace(SMALL, n_ff=8192), EngineSettings()),
        (replace(SMALL, n_embd=2048, n_head=32), EngineSettings()),
        (replace(SMALL, n_layer=32, n_head_kv=16), EngineSettings()),
        (TINYLLAMA_1B, EngineSettings(n_ctx=2048)),
        (MISTRAL_7B, EngineSettings(n_ctx=32768)),
        (MISTRAL_7B, EngineSettings(kv_type="f32")),
    ],
)
def test_a_gpu_would_have_the_compute_buffer_that_llama_cpp_reserves(
    tmp_path: Path, shape: Shape, settings: EngineSettings
) -> None:
    path = shaped(tmp_path, shape, "Q4_K_M")
    native = reserved(path, settings)
    model = shape_at(path)
    (need,) = estimate_memory(model, settings, AVX2, [Gpu("GPU", 80 << 30)]).devices
    assert need.compute_bytes == pytest.approx(native["CPU compute"], rel=1 / 8)
    assert need.kv_bytes == model.n_layer * kv_layer_bytes(model, settings.n_ctx or 4096, settings.kv_type)


@pytest.mark.parametrize(("kv_type", "element_bytes"), [("f16", 2), ("f32", 4), ("q8_0", 34 / 32)])
def test_the_kv_cache_is_llama_cpps(tmp_path: Path, kv_type: str, element_bytes: float) -> None:
    path = shaped(tmp_path, FLAT, "Q8_0")
    settings = EngineSettings(n_ctx=1000, kv_type=kv_type)  # type: ignore[arg-type]
    with Kept() as kept:
        LlamaModel.load(path, settings).close()
    estimate = estimate_memory(shape_at(path), settings, AVX2)
    assert estimate.n_ctx == 1024
    assert estimate.kv_bytes == 2 * 2 * 1024 * 128 * element_bytes
    assert estimate.kv_bytes == pytest.approx(kept.sizes()["CPU KV"], abs=2 * ROUNDING)


def resident(process_id: int) -> tuple[int, int]:
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{process_id}/status").read_text().splitlines())
    peak, anonymous = (int(lines[name].split()[0]) * 1024 for name in ("VmHWM", "RssAnon"))
    return peak, anonymous


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, which is Linux's")
@pytest.mark.parametrize(
    ("file_type", "settings", "n_words"),
    [
        ("Q4_K_M", EngineSettings(n_ctx=8192), 300),
        ("Q8_0", EngineSettings(n_ctx=2048, kv_type="f32"), 1800),
        ("F16", EngineSettings(n_ctx=4096, kv_type="q8_0"), 300),
    ],
)
def test_the_engines_process_takes_what_was_estimated(
    tmp_path: Path, file_type: str, settings: EngineSettings, n_words: int
) -> None:
    path = shaped(tmp_path, replace(SMALL, n_layer=6), file_type)
    code = "import zephyr_local.engine.service; print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as empty:
        assert empty.stdout is not None
        empty.stdout.readline()
        before = resident(empty.pid)
        empty.communicate(b"\n")
    with Zephyr(path, settings, template="zephyr") as zephyr:
        zephyr.complete([{"role": "user", "content": "a " * n_words}], Sampling(temperature=0, max_tokens=2))
        after = resident(zephyr.engine_process_id or 0)
    estimate = estimate_memory(shape_at(path), settings, kernel_features())
    assert estimate.resident_bytes == pytest.approx(after[0] - before[0], rel=0.1)
    assert estimate.anonymous_bytes == pytest.approx(after[1] - before[1], rel=0.1)


def whole(estimate: MemoryEstimate) -> int:
    """The weights, wherever they are, without what is repacked."""
    on_devices = sum(device.weights_bytes for device in estimate.devices)
    return estimate.weights_mapped_bytes + on_devices


def test_layers_on_gpus_leave_the_embeddings_on_the_host(tmp_path: Path) -> None:
    model = shape_at(shaped(tmp_path, SMALL, "F16"))
    gpu = Gpu("CUDA0", 8 << 30)
    all_there = estimate_memory(model, EngineSettings(), AVX2, [gpu])
    assert all_there.n_gpu_layers == SMALL.n_layer + 1
    assert all_there.kv_bytes == 0
    embeddings = next(t.size_bytes for t in model.tensors if t.name == "token_embd.weight")
    assert all_there.weights_mapped_bytes == embeddings
    assert whole(all_there) == model.size_bytes
    some = estimate_memory(model, EngineSettings(n_gpu_layers=3), AVX2, [gpu])
    assert some.n_gpu_layers == some.devices[0].n_layers == 3
    assert some.devices[0].kv_bytes * 3 == some.kv_bytes  # two layers and the output; six stay
    assert whole(some) == model.size_bytes
    none = estimate_memory(model, EngineSettings(n_gpu_layers=0), AVX2, [gpu])
    assert none.devices[0].compute_bytes == none.devices[0].weights_bytes == 0


def test_beside_a_gpu_with_host_buffers_nothing_is_repacked(tmp_path: Path) -> None:
    model = shape_at(shaped(tmp_path, SMALL, "Q4_0"))
    settings = EngineSettings(n_gpu_layers=3)
    cuda = estimate_memory(model, settings, AVX2, [Gpu("CUDA0", 8 << 30)])
    metal = estimate_memory(model, settings, AVX2, [Gpu("MTL0", 8 << 30, is_unified=True, has_host_buffers=False)])
    assert cuda.weights_repacked_bytes == 0 < metal.weights_repacked_bytes
    assert cuda.weights_mapped_bytes == metal.weights_mapped_bytes + metal.weights_repacked_bytes


def test_several_gpus_share_the_layers_by_their_free_memory(tmp_path: Path) -> None:
    model = shape_at(shaped(tmp_path, replace(SMALL, n_layer=11), "Q8_0"))
    gpus = [Gpu("CUDA0", 6 << 30), Gpu("CUDA1", 2 << 30)]
    estimate = estimate_memory(model, EngineSettings(), AVX2, gpus)
    assert [device.n_layers for device in estimate.devices] == [9, 3]
    assert whole(estimate) == model.size_bytes


def test_kernels_of_other_cpus_repack_other_types() -> None:
    assert is_repacked("Q4_K", 64, AVX2)
    assert not is_repacked("Q4_K", 63, AVX2)
    assert not is_repacked("Q6_K", 64, AVX2)
    assert is_repacked("Q6_K", 64, NEON)
    assert not is_repacked("Q2_K", 64, AVX2)
    assert is_repacked("Q2_K", 64, AVX2 | {"avx512f"})
    assert not is_repacked("F16", 64, AVX2 | NEON)
    assert is_repacked("Q6_K", 64, AVX2 | {"amx_int8", "avx512vnni"})
    assert not is_repacked("Q4_0", 64, frozenset())


def test_a_shape_is_read_from_a_header(tmp_path: Path) -> None:
    model = shape_at(tiny_model(n_embd=64, n_head=4, n_head_kv=2, n_block=3, n_ff=96).write(tmp_path / "a.gguf"))
    assert (model.n_layer, model.n_embd, model.head_size, model.n_head_kv, model.n_ff) == (3, 64, 16, 2, 96)
    assert model.n_ctx_train == 512
    assert {tensor.layer for tensor in model.tensors} == {None, 0, 1, 2}
    assert all(tensor.n_rows >= 1 for tensor in model.tensors)
