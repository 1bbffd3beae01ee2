"""A torch device gives ggml's bytes, whatever the weights, their number, and the threads that ask."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.quantize.hard_weights import IMPORTANCE, KINDS
from zephyr_local.errors import EngineError, InvalidInputError
from zephyr_local.quantize.encoders import KERNEL_KINDS
from zephyr_local.quantize.kernels import ggml, torch_encoder, torch_search
from zephyr_local.quantize.types import TensorType

ENCODED = sorted(torch_encoder.KINDS, key=lambda kind: kind.name)
EXTREME_IMPORTANCE: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "zeros": lambda rng, n_columns: np.zeros(n_columns, np.float32),
    "denormal": lambda rng, n_columns: (10.0 ** rng.uniform(-45, -30, n_columns)).astype(np.float32),
    "huge": lambda rng, n_columns: (10.0 ** rng.uniform(20, 38, n_columns)).astype(np.float32),
    "any": lambda rng, n_columns: (10.0 ** rng.uniform(-45, 38, n_columns)).astype(np.float32),
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """The operations here are short: threads for each would cost more than they save, on a busy machine many times."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch_encoder.open_device(request.param)


def require_ggml_bytes(
    kind: TensorType, rows: np.ndarray, importance: np.ndarray | None, device: torch.device, what: str
) -> None:
    ours, theirs = torch_encoder.encode(kind, rows, importance, device), ggml.encode(kind, rows, importance)
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    if not np.array_equal(ours, theirs):
        blocks = (ours != theirs).reshape(-1, kind.block_bytes).any(axis=1)
        pytest.fail(f"{kind.name} of {what}: {blocks.sum()} of {blocks.size} blocks differ, first {blocks.argmax()}")


def mixture(rng: np.random.Generator, n_columns: int) -> np.ndarray:
    """Rows of four kinds of weights, shuffled, some of them scaled down by up to twenty decades."""
    pieces = [KINDS[name](rng, int(rng.integers(1, 5)), n_columns) for name in rng.choice(list(KINDS), 4)]
    rows = np.concatenate(pieces)
    rng.shuffle(rows)
    rows[rng.random(rows.shape[0]) < 0.3] *= np.float32(10.0 ** rng.uniform(-20, 0))
    return rows


def test_a_device_encodes_what_the_kernels_encode() -> None:
    assert torch_encoder.KINDS == KERNEL_KINDS


@pytest.mark.parametrize("importance", IMPORTANCE)
@pytest.mark.parametrize("kind", ENCODED, ids=lambda kind: kind.name)
def test_the_corpus_has_ggmls_bytes(kind: TensorType, importance: str, device: torch.device) -> None:
    rng = np.random.default_rng(1)
    rows = np.concatenate([weights(rng, 12, 1280) for weights in KINDS.values()])
    what = f"12 rows of each of {', '.join(KINDS)}; importance {importance}"
    require_ggml_bytes(kind, rows, IMPORTANCE[importance](rng, 1280), device, what)


@pytest.mark.parametrize("importance", EXTREME_IMPORTANCE)
def test_scales_that_overflow_or_are_no_numbers_have_ggmls_bytes(importance: str, device: torch.device) -> None:
    rng = np.random.default_rng(2)
    rows = np.concatenate([weights(rng, 4, 768) for weights in KINDS.values()])
    column_importance = EXTREME_IMPORTANCE[importance](rng, 768)
    for kind in ENCODED:
        require_ggml_bytes(kind, rows, column_importance, device, f"importance {importance}")
    if importance == "huge":  # the case that this is about
        assert not ggml.is_valid(TensorType.Q4_K, ggml.encode(TensorType.Q4_K, rows, column_importance))


@pytest.mark.parametrize(("n_rows", "n_blocks"), [(1, 1), (1, 2), (1, 7), (3, 1), (5, 3), (0, 1)])
@pytest.mark.parametrize("kind", ENCODED, ids=lambda kind: kind.name)
def test_any_shape_has_ggmls_bytes(kind: TensorType, n_rows: int, n_blocks: int, device: torch.device) -> None:
    rng = np.random.default_rng([n_rows, n_blocks])
    n_columns = n_blocks * kind.block_weights
    rows = rng.standard_normal((n_rows, n_columns), dtype=np.float32)
    for importance in (None, rng.lognormal(size=n_columns).astype(np.float32)):
        require_ggml_bytes(kind, rows, importance, device, f"{n_rows} rows of {n_blocks} blocks")


@pytest.mark.parametrize("chunk_weights", [1, 768, 7 * 256])
@pytest.mark.parametrize("kind", ENCODED, ids=lambda kind: kind.name)
def test_chunks_change_nothing(
    kind: TensorType, chunk_weights: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Importance goes on with the columns where a chunk ends within a row or takes several rows."""
    monkeypatch.setattr(torch_encoder, "CHUNK_WEIGHTS", chunk_weights)
    rng = np.random.default_rng(3)
    n_columns = 5 * kind.block_weights
    rows = KINDS["heavy_tailed"](rng, 3, n_columns)
    for importance in (None, rng.lognormal(size=n_columns).astype(np.float32)):
        require_ggml_bytes(kind, rows, importance, device, f"chunks of {chunk_weights}")


def test_weights_that_may_not_be_written_are_read(device: torch.device) -> None:
    rows = np.random.default_rng(4).standard_normal((2, 512), dtype=np.float32)
    importance = rows[0] ** 2
    before = rows.copy()
    rows.flags.writeable = importance.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in ENCODED:
            require_ggml_bytes(kind, rows, importance, device, "a read-only array")
    np.testing.assert_array_equal(rows, before)


def test_threads_at_once_get_the_bytes_of_one(device: torch.device) -> None:
    rng = np.random.default_rng(5)
    pieces = [rng.standard_normal((2, 2048), dtype=np.float32) for _ in range(8)]
    for kind in ENCODED:
        with ThreadPoolExecutor(4) as pool:
            at_once = list(pool.map(lambda rows, kind=kind: torch_encoder.encode(kind, rows, None, device), pieces))
        for ours, rows in zip(at_once, pieces, strict=True):
            np.testing.assert_array_equal(ours, ggml.encode(kind, rows))


class AsCuda(TorchDispatchMode):
    """The CPU with what CUDA does otherwise: its NaN has other bits, and a constant divides as its reciprocal."""

    several_roundings = ("addcdiv", "addcmul", "lerp", "mean", "mm", "pow", "prod", "reciprocal", "rsqrt", "sum")

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        name = operation.overloadpacket.__name__
        assert name.rstrip("_") not in self.several_roundings, f"{name} may round in another order"
        assert "alpha" not in (keywords or {})
        if name in ("div", "div_") and not isinstance(arguments[1], torch.Tensor):
            divided = arguments[0] * float(np.float32(1) / np.float32(arguments[1]))
            result = arguments[0].copy_(divided) if name == "div_" else divided
        else:
            result = operation(*arguments, **(keywords or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float32 and not operation.is_view:
            result.view(torch.int32).masked_fill_(result.isnan(), 0x7FFFFFFF)
        return result


@pytest.mark.parametrize("kind", ENCODED, ids=lambda kind: kind.name)
def test_what_differs_on_cuda_changes_no_byte(kind: TensorType) -> None:
    rng = np.random.default_rng(11)
    rows = np.concatenate([weights(rng, 4, 768) for weights in KINDS.values()])
    for importance in (None, EXTREME_IMPORTANCE["any"](rng, 768), EXTREME_IMPORTANCE["huge"](rng, 768)):
        with AsCuda():
            encoded = torch_encoder.encode(kind, rows, importance, torch.device("cpu"))
        np.testing.assert_array_equal(encoded, ggml.encode(kind, rows, importance))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ENCODED, ids=lambda kind: kind.name)
def test_ten_million_weights_have_ggmls_bytes(kind: TensorType, device: torch.device) -> None:
    for seed in range(12):
        rng = np.random.default_rng([seed, 6])
        rows = np.concatenate([weights(rng, 50, 1280) for weights in KINDS.values()])
        name = ("none", "lognormal", "none", "with_zeros", "none", "wide")[seed % 6]
        require_ggml_bytes(kind, rows, IMPORTANCE[name](rng, 1280), device, f"seed {seed}, importance {name}")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_any_mixture_of_any_shape_has_ggmls_bytes(seed: int, device: torch.device) -> None:
    rng = np.random.default_rng([seed, 7])
    n_columns = 256 * int(rng.integers(1, 9))
    rows = mixture(rng, n_columns)
    every = IMPORTANCE | EXTREME_IMPORTANCE
    name = str(rng.choice(list(every)))
    for kind in ENCODED:
        require_ggml_bytes(kind, rows, every[name](rng, n_columns), device, f"seed {seed}, importance {name}")


def floats() -> Iterator[np.ndarray]:
    """float32 of every exponent, and those about which roundings differ."""
    rng = np.random.default_rng(8)
    yield rng.integers(0, 1 << 31, 1 << 16, dtype=np.uint32).view(np.float32)
    yield (rng.integers(-(1 << 24), 1 << 24, 1 << 14) / 2).astype(np.float32)
    yield np.array([0.0, -0.0, 0.5, 1.5, 4194303, 4194303.5, 4194304, -4194304, 1e-45, np.inf, -np.inf], np.float32)


def test_nearest_is_ggmls_trick_and_a_nan_of_any_bits_is_0(device: torch.device) -> None:
    for values in floats():
        values = values[~np.isnan(values)]
        with np.errstate(over="ignore"):
            expected = ((values + np.float32(12582912)).view(np.int32) & 0x7FFFFF) - 0x400000
        np.testing.assert_array_equal(torch_search.nearest(torch.tensor(values, device=device)).cpu(), expected)
    nans = np.array([0x7FC00000, 0xFFC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001], np.uint32).view(np.float32)
    assert torch_search.nearest(torch.tensor(nans, device=device)).cpu().tolist() == [0] * nans.size


@pytest.mark.parametrize("constant", [1.0, 3.0, 15.0, 63.0, 127.0, -31.899999618530273, -128.0])
def test_constants_divide_and_are_divided_with_one_rounding(constant: float, device: torch.device) -> None:
    for values in floats():
        with np.errstate(all="ignore"):
            below, above = np.float32(constant) / values, values / np.float32(constant)
        tensor = torch.tensor(values, device=device)
        np.testing.assert_array_equal(torch_search.quotient(constant, tensor).cpu(), below)
        np.testing.assert_array_equal(torch_search.over(tensor, constant).cpu(), above)


def test_roots_are_rounded_to_nearest(device: torch.device) -> None:
    for values in floats():
        values = np.abs(values[~np.isnan(values)])
        roots = torch_search.square_root(torch.tensor(values, device=device)).cpu()
        np.testing.assert_array_equal(roots, np.sqrt(values))


def test_products_and_sums_are_rounded_one_by_one_and_denormals_kept(device: torch.device) -> None:
    rng = np.random.default_rng(9)
    terms, scale, start = (np.float32(rng.standard_normal(shape)) for shape in ((32, 4096), 4096, 4096))
    for factor in (np.float32(1), np.float32(1e-39)):
        expected = np.zeros(4096, np.float32)
        for term in terms:
            expected = expected + (term * scale + start) * factor
        tensors = [torch.tensor(array, device=device) for array in (terms, scale, start)]
        products = (tensors[0] * tensors[1]).add_(tensors[2]).mul_(float(factor))
        np.testing.assert_array_equal(torch_search.ordered_sum(products).cpu(), expected)
        assert np.count_nonzero(expected) > 4000


@pytest.mark.parametrize("name", ["", "CUDA", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:100", "cpu:1", "meta", "xpu"])
def test_a_name_that_is_no_device_is_refused(name: str) -> None:
    with pytest.raises(InvalidInputError, match="no device that can encode") as caught:
        torch_encoder.open_device(name)
    assert "cuda:1" in caught.value.remedy


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        for name in ("cuda", "cuda:1"):
            with pytest.raises(InvalidInputError, match="finds no CUDA device"):
                torch_encoder.open_device(name)
        patch.setattr(torch.backends.mps, "is_available", lambda: False)
        with pytest.raises(InvalidInputError, match="finds no Metal device"):
            torch_encoder.open_device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InvalidInputError, match="no device cuda:2: torch finds 2") as caught:
        torch_encoder.open_device("cuda:2")
    assert "cuda:0 to cuda:1" in caught.value.remedy


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_a_device_that_does_not_start_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InvalidInputError, match="cuda:0 cannot be used"):
        torch_encoder.open_device("cuda:0")


def test_the_cpu_is_a_device() -> None:
    assert torch_encoder.open_device("cpu") == torch.device("cpu")


@pytest.mark.gpu
def test_a_cuda_device_goes_by_its_number() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert str(torch_encoder.open_device("cuda")) == str(torch_encoder.open_device("cuda:0")) == "cuda:0"


@pytest.mark.gpu
def test_a_chunk_takes_the_memory_that_is_promised() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    device = torch_encoder.open_device("cuda")
    rows = np.random.default_rng(10).standard_normal((2048, 4096), dtype=np.float32)
    importance = rows[0] ** 2
    for kind in ENCODED:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        torch_encoder.encode(kind, rows, importance, device)
        assert torch.cuda.max_memory_allocated(device) <= 256 << 20


def test_memory_that_does_not_suffice_is_said(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    def out_of_memory(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(torch_encoder._ENCODERS, TensorType.Q8_0, out_of_memory)
    with pytest.raises(EngineError, match="too little free memory to encode, which takes about 256 MiB"):
        torch_encoder.encode(TensorType.Q8_0, np.zeros((1, 32), np.float32), None, device)


def test_what_else_a_device_fails_in_is_said(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    def not_there(*_: object) -> torch.Tensor:
        raise NotImplementedError("aten::nan_to_num is not there")

    monkeypatch.setitem(torch_encoder._ENCODERS, TensorType.Q8_0, not_there)
    with pytest.raises(EngineError, match=r"cannot encode Q8_0 .*nan_to_num") as caught:
        torch_encoder.encode(TensorType.Q8_0, np.zeros((1, 32), np.float32), None, device)
    assert caught.value.remedy == "Leave out --device"
