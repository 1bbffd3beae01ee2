"""Plans fit, or say how much is missing and what would fit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.shaped_model import MISTRAL_7B, write_shaped_model
from zephyr_local.errors import NotEnoughMemoryError
from zephyr_local.gguf_split import read_model
from zephyr_local.memory.estimate import Gpu, estimate_memory
from zephyr_local.memory.plan import Machine, fitted, nearest_that_fits, plan, readable, shortfall
from zephyr_local.memory.shape import ModelShape, shape_of
from zephyr_local.quantize.types import FileType
from zephyr_local.settings import EngineSettings

AVX2 = frozenset({"avx2"})
GB = 10**9


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> ModelShape:
    folder = tmp_path_factory.mktemp("shapes")
    return shape_of(read_model(write_shaped_model(folder / "zephyr.gguf", MISTRAL_7B, FileType.Q4_K_M)))


def host(available_bytes: float) -> Machine:
    return Machine(int(available_bytes), AVX2)


def test_where_all_fits_the_defaults_stand(mistral: ModelShape) -> None:
    planned = plan(mistral, EngineSettings(), host(16 * GB), "zephyr.gguf")
    assert (planned.settings.n_ctx, planned.settings.n_gpu_layers) == (4096, None)
    assert planned.notices == ()
    assert planned.estimate == estimate_memory(mistral, EngineSettings(), AVX2)


def test_a_context_that_nobody_asked_for_gives_way_and_says_so(mistral: ModelShape) -> None:
    needed = estimate_memory(mistral, EngineSettings(n_ctx=2048), AVX2).needed_bytes
    planned = plan(mistral, EngineSettings(), host(needed), "zephyr.gguf")
    assert planned.settings.n_ctx == planned.estimate.n_ctx == 2048
    assert planned.notices == (
        f"the context is 2048 tokens and not 4096, for which {readable(needed)} of memory are too little",
    )


def test_a_context_that_was_asked_for_is_refused_with_the_shortfall_and_what_fits(mistral: ModelShape) -> None:
    asked = EngineSettings(n_ctx=32768)
    needed = estimate_memory(mistral, asked, AVX2).needed_bytes
    with pytest.raises(NotEnoughMemoryError) as caught:
        plan(mistral, asked, host(needed - GB), "zephyr.gguf")
    assert caught.value.exit_code == 4
    assert caught.value.problem == (
        f"zephyr.gguf with a context of 32768 tokens needs {readable(needed)} of memory, and {readable(needed - GB)} "
        "are available: 1.00 GB too little"
    )
    assert caught.value.remedy.startswith("It fits with --kv-type q8_0;")
    with pytest.raises(NotEnoughMemoryError, match="It fits with --n-ctx 25600;"):
        plan(mistral, replace(asked, kv_type="q8_0"), host(needed - 2.5 * GB), "zephyr.gguf")


@pytest.mark.parametrize(("asked", "step"), [(4096, 256), (1 << 20, 1024)])
def test_the_nearest_context_is_the_longest_that_fits(mistral: ModelShape, asked: int, step: int) -> None:
    settings = EngineSettings(n_ctx=asked, kv_type="q8_0")
    machine = host(estimate_memory(mistral, replace(settings, n_ctx=asked // 3), AVX2).needed_bytes)
    found = nearest_that_fits(mistral, settings, machine)
    assert found is not None
    assert found.n_ctx is not None
    assert asked // 3 - step <= found.n_ctx <= asked // 3 + step
    assert found == replace(settings, n_ctx=found.n_ctx)
    assert shortfall(estimate_memory(mistral, found, AVX2), machine) is None
    assert shortfall(estimate_memory(mistral, replace(found, n_ctx=found.n_ctx + step), AVX2), machine) is not None


def test_where_nothing_fits_it_says_so(mistral: ModelShape) -> None:
    with pytest.raises(NotEnoughMemoryError, match="No setting makes it fit: use a smaller type"):
        plan(mistral, EngineSettings(), replace(host(2 * GB), limited_by="the cgroup's memory"), "zephyr.gguf")
    with pytest.raises(NotEnoughMemoryError, match="the cgroup's memory is the limit"):
        plan(mistral, EngineSettings(), replace(host(2 * GB), limited_by="the cgroup's memory"), "zephyr.gguf")


def test_who_does_not_want_the_check_is_not_stopped(mistral: ModelShape) -> None:
    planned = plan(mistral, EngineSettings(check_memory=False), host(1), "zephyr.gguf")
    assert planned.settings.n_ctx == 4096
    assert planned.notices == ()


def test_as_many_layers_go_to_the_gpu_as_fit(mistral: ModelShape) -> None:
    roomy = plan(mistral, EngineSettings(), replace(host(16 * GB), gpus=(Gpu("CUDA0", 24 * GB),)), "z")
    assert roomy.settings.n_gpu_layers == roomy.estimate.n_gpu_layers == 33
    assert roomy.notices == ()
    small = replace(host(16 * GB), gpus=(Gpu("CUDA0", 4 * GB),))
    tight = plan(mistral, EngineSettings(), small, "z")
    layers = tight.settings.n_gpu_layers
    assert layers is not None
    assert 0 < layers < 33
    assert tight.estimate.devices[0].needed_bytes <= 4 * GB
    more = estimate_memory(mistral, EngineSettings(n_gpu_layers=layers + 1), AVX2, small.gpus)
    assert more.devices[0].needed_bytes > 4 * GB
    assert tight.notices == (f"{layers} of 33 layers fit the GPU; the CPU computes the others, slower",)


def test_layers_that_were_asked_for_are_refused_where_they_do_not_fit(mistral: ModelShape) -> None:
    small = replace(host(16 * GB), gpus=(Gpu("CUDA0", 4 * GB),))
    with pytest.raises(NotEnoughMemoryError, match=r"33 layers on the GPU needs .* of memory of CUDA0, and 4.00 GB"):
        plan(mistral, EngineSettings(n_gpu_layers=-1), small, "z")
    found = nearest_that_fits(mistral, EngineSettings(n_gpu_layers=-1), small)
    assert found is not None
    assert found.n_gpu_layers is None


def test_a_gpu_too_small_for_anything_is_left_out(mistral: ModelShape) -> None:
    planned = plan(mistral, EngineSettings(), replace(host(16 * GB), gpus=(Gpu("CUDA0", GB // 10),)), "z")
    assert planned.settings.n_gpu_layers == 0


def test_memory_that_a_gpu_shares_with_the_host_is_counted_once(mistral: ModelShape) -> None:
    shared = replace(host(6 * GB), gpus=(Gpu("MTL0", 6 * GB, is_unified=True, has_host_buffers=False),))
    planned = plan(mistral, EngineSettings(), shared, "z")
    assert planned.settings.n_gpu_layers == 33
    assert shortfall(planned.estimate, replace(shared, available_bytes=5 * GB)) is not None


def test_a_gpu_that_shares_the_memory_and_has_no_layer_takes_none_of_it(mistral: ModelShape) -> None:
    on_cpu = estimate_memory(mistral, EngineSettings(n_gpu_layers=0), AVX2)
    shared = replace(host(on_cpu.needed_bytes), gpus=(Gpu("MTL0", 6 * GB, is_unified=True),))
    planned = plan(mistral, EngineSettings(n_ctx=4096), shared, "z")
    assert planned.settings.n_gpu_layers == 0


@pytest.mark.parametrize("free", [(0.1,), (1,), (3.7,), (24,), (2, 2), (1, 5), (0.6, 0.6, 9)])
def test_the_most_layers_that_fit_are_found_among_all(mistral: ModelShape, free: tuple[float, ...]) -> None:
    machine = replace(host(64 * GB), gpus=tuple(Gpu(f"CUDA{i}", int(size * GB)) for i, size in enumerate(free)))
    estimate, missing = fitted(mistral, EngineSettings(), machine)
    assert missing is None
    fitting = [
        n_layers
        for n_layers in range(mistral.n_layer + 2)
        if shortfall(estimate_memory(mistral, EngineSettings(n_gpu_layers=n_layers), AVX2, machine.gpus), machine)
        is None
    ]
    assert estimate.n_gpu_layers == max(fitting)


def test_what_is_missing_beside_a_full_gpu_is_told_and_not_what_the_cpu_alone_would_miss(mistral: ModelShape) -> None:
    machine = replace(host(2 * GB), gpus=(Gpu("CUDA0", 2 * GB),))
    with pytest.raises(NotEnoughMemoryError, match=r"\d+ layers on the GPU needs .* of memory, and 2.00 GB") as caught:
        plan(mistral, EngineSettings(n_ctx=4096), machine, "z")
    alone = shortfall(estimate_memory(mistral, EngineSettings(n_gpu_layers=0), AVX2, machine.gpus), machine)
    assert alone is not None
    assert readable(alone.missing_bytes) not in caught.value.problem


def test_a_cache_of_full_floats_gives_way_to_half_ones_first(mistral: ModelShape) -> None:
    asked = EngineSettings(n_ctx=16384, kv_type="f32")
    needed = estimate_memory(mistral, replace(asked, kv_type="f16"), AVX2).needed_bytes
    with pytest.raises(NotEnoughMemoryError, match="It fits with --kv-type f16;"):
        plan(mistral, asked, host(needed), "z")


def test_sizes_are_readable_however_small() -> None:
    assert [readable(size) for size in (0, 999, 163_232, 10**6, 4_368_439_584, 2**45)] == [
        *("0 kB", "1 kB", "163 kB", "1 MB", "4.37 GB", "35,184.37 GB")
    ]
