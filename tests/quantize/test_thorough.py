"""The thorough search: never a larger error than ggml's, mostly a clearly smaller one, and sound blocks always."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.conftest import skip_or_fail
from tests.quantize.hard_weights import IMPORTANCE, KINDS, Weights
from zephyr_local import Sampling, Zephyr
from zephyr_local.convert.hf_to_gguf import ConvertOptions, OutputRequest, convert_model
from zephyr_local.data import bundled_model_path
from zephyr_local.errors import InvalidInputError
from zephyr_local.gguf_file import read_gguf
from zephyr_local.quantize.encoders import THOROUGH_KINDS, EncoderOptions, Search, open_encoder
from zephyr_local.quantize.kernels import ggml
from zephyr_local.quantize.kernels.self_check import ProbeResults, betters_ggml
from zephyr_local.quantize.types import FileType, TensorType

INSTALL = 'pip install "zephyr-local[fast]"'

by_kind = pytest.mark.parametrize("kind", sorted(THOROUGH_KINDS, key=str), ids=lambda kind: kind.name)


def improved(kind: TensorType, encoded: np.ndarray, rows: Weights, importance: Weights | None) -> np.ndarray:
    """Compiled once and kept in the user's cache, as for a conversion."""
    try:
        from zephyr_local.quantize.kernels import compiled, numba_encoder
    except ImportError:
        skip_or_fail("numba", INSTALL)
    return numba_encoder.prepare_thorough(kind, lambda *_: encoded.copy(), compiled.cache_folder())(rows, importance)


def encode(kind: TensorType, rows: Weights, importance: Weights | None) -> np.ndarray:
    return improved(kind, ggml.encode(kind, rows, importance), rows, importance)


def errors(kind: TensorType, encoded: np.ndarray, rows: Weights, importance: Weights | None) -> np.ndarray:
    """The weighted squared error of each super-block."""
    with np.errstate(over="ignore", invalid="ignore"):
        squares = (ggml.decode(kind, encoded, rows.shape[1]).astype(np.float64) - rows) ** 2
        weighted = squares if importance is None else squares * importance.astype(np.float64)
    return weighted.reshape(-1, 256).sum(axis=1)


def require_no_block_worse(kind: TensorType, rows: Weights, importance: Weights | None) -> None:
    before = ggml.encode(kind, rows, importance)
    after = improved(kind, before, rows, importance)
    changed = (before != after).reshape(-1, kind.block_bytes).any(axis=1)
    old, new = errors(kind, before, rows, importance)[changed], errors(kind, after, rows, importance)[changed]
    assert np.isfinite(old).all()
    assert (new <= old * (1 + 1e-6)).all(), f"{(new / old).max()} of ggml's error"
    scales = after.reshape(-1, kind.block_bytes)[changed]
    assert ggml.is_valid(kind, np.ascontiguousarray(scales).reshape(-1))


@by_kind
@pytest.mark.parametrize("weights", KINDS)
def test_no_super_block_is_worse_than_ggmls(kind: TensorType, weights: str) -> None:
    for importance in IMPORTANCE.values():
        rng = np.random.default_rng(1)
        rows = KINDS[weights](rng, 12, 1280)
        require_no_block_worse(kind, rows, importance(rng, 1280))


@pytest.mark.slow
@by_kind
@pytest.mark.parametrize("seed", range(20))
def test_no_super_block_of_any_mixture_is_worse(kind: TensorType, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_columns = 256 * int(rng.integers(1, 9))
    rows = np.concatenate([make(rng, 16, n_columns) for make in KINDS.values()])
    rng.shuffle(rows)
    rows[rng.random(rows.shape[0]) < 0.3] *= np.float32(10.0 ** rng.uniform(-20, 0))
    for importance in IMPORTANCE.values():
        require_no_block_worse(kind, rows, importance(rng, n_columns))


LARGEST_SHARE = {  # of ggml's error: about a hundredth more than measured
    (TensorType.Q4_K, "normal"): 0.945,
    (TensorType.Q4_K, "student"): 0.94,
    (TensorType.Q5_K, "normal"): 0.865,
    (TensorType.Q5_K, "student"): 0.88,
    (TensorType.Q6_K, "normal"): 0.86,
    (TensorType.Q6_K, "student"): 0.895,
}


@pytest.mark.parametrize(("kind", "weights"), LARGEST_SHARE, ids=lambda value: getattr(value, "name", value))
@pytest.mark.parametrize("importance", ["none", "lognormal"])
def test_the_error_falls_clearly(kind: TensorType, weights: str, importance: str) -> None:
    rng = np.random.default_rng(0)
    shape = (64, 2048)
    for values in [rng.standard_normal(shape)] if weights == "normal" else [rng.standard_t(n, shape) for n in (3, 5)]:
        rows = (values * 0.02).astype(np.float32)
        columns = IMPORTANCE[importance](rng, 2048)
        ours = errors(kind, encode(kind, rows, columns), rows, columns).sum()
        ggmls = errors(kind, ggml.encode(kind, rows, columns), rows, columns).sum()
        assert ours / ggmls < LARGEST_SHARE[kind, weights]


@by_kind
@pytest.mark.parametrize("importance", ["none", "wide"])
def test_a_super_block_gets_the_same_bytes_in_any_company(kind: TensorType, importance: str) -> None:
    """Alone, and beside others that overflow, are zeros or are of another scale."""
    rng = np.random.default_rng(2)
    rows = np.concatenate([make(rng, 4, 256) for make in KINDS.values()])
    rng.shuffle(rows)
    rows = rows[:40]
    columns = IMPORTANCE[importance](rng, 256)
    together = encode(kind, rows, columns).reshape(40, -1)
    for n_blocks in (1, 16, 17, 40):
        np.testing.assert_array_equal(encode(kind, rows[:n_blocks], columns).reshape(n_blocks, -1), together[:n_blocks])
        np.testing.assert_array_equal(
            encode(kind, rows[-n_blocks:], columns).reshape(n_blocks, -1), together[-n_blocks:]
        )


@by_kind
def test_the_importance_of_every_row_is_that_of_its_columns(kind: TensorType) -> None:
    """Five super-blocks a row, so that the lanes of a batch are at different columns."""
    rng = np.random.default_rng(3)
    rows = KINDS["normal"](rng, 13, 1280)
    columns = IMPORTANCE["lognormal"](rng, 1280)
    blocks = encode(kind, rows, columns).reshape(13, 5, -1)
    for j in range(5):
        part = slice(256 * j, 256 * (j + 1))
        alone = improved(
            kind,
            np.ascontiguousarray(ggml.encode(kind, rows, columns).reshape(13, 5, -1)[:, j]).reshape(-1),
            np.ascontiguousarray(rows[:, part]),
            np.ascontiguousarray(columns[part]),
        )
        np.testing.assert_array_equal(blocks[:, j], alone.reshape(13, -1))


@by_kind
def test_columns_that_weigh_nothing_stay_near_what_they_were(kind: TensorType) -> None:
    """They did not fire in the calibration; nothing says that they never will."""
    rng = np.random.default_rng(9)
    rows = KINDS["normal"](rng, 64, 1024)
    columns = IMPORTANCE["lognormal"](rng, 1024)
    columns[32:96] = columns[512:544] = 0
    decoded = ggml.decode(kind, encode(kind, rows, columns), 1024)
    without = ggml.decode(kind, ggml.encode(kind, rows, None), 1024)
    for first, last in ((32, 96), (512, 544)):
        part = slice(first, last)
        assert ((decoded - rows)[:, part] ** 2).sum() < 1.5 * ((without - rows)[:, part] ** 2).sum()


@by_kind
def test_gguf_py_reads_the_blocks_as_ggml_does(kind: TensorType) -> None:
    rows = KINDS["heavy_tailed"](np.random.default_rng(4), 16, 512)
    encoded = encode(kind, rows, None)
    expected = gguf.quants.dequantize(encoded.reshape(16, -1), gguf.GGMLQuantizationType[kind.name])
    np.testing.assert_array_equal(ggml.decode(kind, encoded, 512), expected)


@by_kind
def test_zeros_stay_as_they_are(kind: TensorType) -> None:
    rows = np.zeros((3, 512), np.float32)
    np.testing.assert_array_equal(encode(kind, rows, None), ggml.encode(kind, rows, None))


@by_kind
def test_a_second_search_changes_nothing(kind: TensorType) -> None:
    """It begins with blocks that are better than ggml's already, and finds the same ones."""
    rows = KINDS["normal"](np.random.default_rng(5), 16, 512)
    once = encode(kind, rows, None)
    twice = improved(kind, once, rows, None)
    np.testing.assert_array_equal(once, twice)


@by_kind
def test_no_super_blocks_are_no_work(kind: TensorType) -> None:
    assert encode(kind, np.empty((0, 256), np.float32), None).size == 0


def test_scales_are_searched_as_float16_stores_them() -> None:
    """Otherwise d would be another in the file than the one that was searched."""
    try:
        import numba

        from zephyr_local.quantize.kernels.lanes import LANES, load, store
        from zephyr_local.quantize.kernels.thorough import nearest_float16
    except ImportError:
        skip_or_fail("numba", INSTALL)

    @numba.njit
    def round_all(values: np.ndarray) -> None:
        for at in range(0, values.size, LANES):
            store(values, at, nearest_float16(load(values, at)))

    rng = np.random.default_rng(6)
    every = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    between = (every[1:] + every[:-1]) / 2
    values = np.concatenate([every, between, 10 ** rng.uniform(-9, 6, 10_000).astype(np.float32), [0, 1e-38, 3e38]])
    values = values[: values.size // LANES * LANES].astype(np.float32)
    rounded = values.copy()
    round_all(rounded)
    stored = rounded.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(rounded, stored)
    nearest = np.minimum(values, 65504).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(np.abs(rounded - values), np.abs(nearest - values))


def test_a_shortlist_holds_the_least_errors_in_order_and_once() -> None:
    try:
        import numba

        from zephyr_local.quantize.kernels.lanes import LANES, load, splat
        from zephyr_local.quantize.kernels.thorough import ENTRY, clear_shortlist, shortlist
    except ImportError:
        skip_or_fail("numba", INSTALL)

    @numba.njit
    def enter_all(errors: np.ndarray, entries: np.ndarray) -> None:
        zero = splat(np.float32(0))
        clear_shortlist(entries, zero, zero)
        for at in range(0, errors.size, LANES):
            error = load(errors, at)
            shortlist(entries, error, error + np.float32(1), -error)

    found = np.random.default_rng(7).integers(0, 40, (50, LANES)).astype(np.float32)
    found[::7] = np.nan
    entries = np.empty(4 * ENTRY, np.float32)
    enter_all(found.reshape(-1), entries)
    for lane in range(LANES):
        expected = np.unique(found[~np.isnan(found[:, lane]), lane])[:4]
        error, first, second = entries.reshape(4, 3, LANES)[:, :, lane].T
        np.testing.assert_array_equal(error, expected)
        np.testing.assert_array_equal(first, expected + 1)
        np.testing.assert_array_equal(second, -expected)


# --- as a conversion opens it ---

THOROUGH = EncoderOptions(search=Search.THOROUGH)


def need_numba() -> None:
    if importlib.util.find_spec("numba") is None:
        skip_or_fail("numba", INSTALL)


def test_the_encoder_searches_thoroughly_what_it_can_and_has_ggmls_bytes_elsewhere() -> None:
    need_numba()
    rows = KINDS["normal"](np.random.default_rng(8), 8, 1024)
    others = [TensorType.Q3_K, TensorType.Q8_0, TensorType.Q5_0, TensorType.F16]
    encoder = open_encoder(THOROUGH, [*THOROUGH_KINDS, *others])
    assert (encoder.name, encoder.notices) == ("numba, thorough", ())
    for kind in THOROUGH_KINDS:
        np.testing.assert_array_equal(encoder.encode(kind, rows, rows[0] ** 2), encode(kind, rows, rows[0] ** 2))
        assert not np.array_equal(encoder.encode(kind, rows, None), ggml.encode(kind, rows))
    for kind in others:
        np.testing.assert_array_equal(encoder.encode(kind, rows, None), ggml.encode(kind, rows))


def test_it_betters_ggmls_own_blocks_where_our_kernels_may_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    need_numba()
    monkeypatch.setattr(ProbeResults, "of", lambda self, name: "thorough" in name)
    monkeypatch.setattr(ProbeResults, "find", lambda self, name, probe: "thorough" in name)
    from zephyr_local.quantize.kernels import numba_encoder

    monkeypatch.setattr(numba_encoder, "prepare", lambda *_: pytest.fail("what does not serve is not compiled"))
    rows = KINDS["normal"](np.random.default_rng(8), 8, 1024)
    encoder = open_encoder(THOROUGH, [TensorType.Q4_K])
    np.testing.assert_array_equal(encoder.encode(TensorType.Q4_K, rows, None), encode(TensorType.Q4_K, rows, None))
    assert "encoding Q4_K with ggml" in encoder.notices[0]


def test_where_it_would_lose_more_ggmls_search_serves_with_a_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    need_numba()
    monkeypatch.setattr(ProbeResults, "of", lambda self, name: None)
    monkeypatch.setattr(ProbeResults, "find", lambda self, name, probe: "thorough" not in name)
    rows = KINDS["normal"](np.random.default_rng(8), 8, 1024)
    encoder = open_encoder(THOROUGH, [TensorType.Q6_K, TensorType.Q3_K])
    np.testing.assert_array_equal(encoder.encode(TensorType.Q6_K, rows, None), ggml.encode(TensorType.Q6_K, rows))
    assert encoder.notices == ("Q6_K by ggml's search: the thorough one loses more on this machine",)
    assert [record.getMessage() for record in caplog.records] == list(encoder.notices)


@by_kind
def test_the_probe_tells_a_better_search_from_a_worse_one(kind: TensorType) -> None:
    honest = functools.partial(ggml.encode, kind)
    assert betters_ggml(kind, lambda rows, importance: encode(kind, rows, importance))
    assert not betters_ggml(kind, honest), "it must gain something"

    def one_worse(rows: Weights, importance: Weights | None) -> np.ndarray:
        encoded = encode(kind, rows, importance)
        encoded[kind.block_bytes - 5] ^= 0x88  # two levels of the first super-block
        return encoded

    assert not betters_ggml(kind, one_worse)


def test_types_that_it_does_not_search_are_refused() -> None:
    need_numba()
    with pytest.raises(InvalidInputError, match=r"the thorough search would change nothing: .* Q4_K, Q5_K, Q6_K"):
        open_encoder(THOROUGH, [TensorType.Q3_K, TensorType.F32])


def test_a_file_made_thoroughly_has_the_same_size_and_loads_and_answers(tmp_path: Path) -> None:
    """The bundled model, from its own decoded weights: other bytes than by default, in the searched types alone."""
    need_numba()
    source = tmp_path / "plain.gguf"
    convert_model(bundled_model_path(), [OutputRequest(source, FileType.F32)], ConvertOptions(allow_requantize=True))
    default, thorough = tmp_path / "default.gguf", tmp_path / "thorough.gguf"
    convert_model(source, [OutputRequest(default, FileType.Q4_K_M)])
    convert_model(source, [OutputRequest(thorough, FileType.Q4_K_M)], ConvertOptions(encoders=THOROUGH))
    assert read_gguf(thorough).metadata["zephyr_local.search"] == "thorough"
    assert "zephyr_local.search" not in read_gguf(default).metadata
    assert read_gguf(default).metadata.items() <= read_gguf(thorough).metadata.items()
    assert [tensor.size_bytes for tensor in read_gguf(default).tensors] == [
        tensor.size_bytes for tensor in read_gguf(thorough).tensors
    ]
    by_search = [{t.name: t for t in gguf.GGUFReader(path).tensors} for path in (source, default, thorough)]
    errors_of = {}
    for name, original in by_search[0].items():
        plain, searched = by_search[1][name], by_search[2][name]
        assert plain.tensor_type == searched.tensor_type
        if plain.tensor_type.name not in {kind.name for kind in THOROUGH_KINDS}:
            np.testing.assert_array_equal(plain.data, searched.data)
            continue
        errors_of[name] = [
            ((gguf.quants.dequantize(tensor.data, tensor.tensor_type) - original.data) ** 2).sum(dtype=np.float64)
            for tensor in (plain, searched)
        ]
    assert all(searched <= plain * (1 + 1e-6) for plain, searched in errors_of.values())
    assert any(searched < 0.97 * plain for plain, searched in errors_of.values())
    copied, other = tmp_path / "copied.gguf", tmp_path / "other.gguf"
    requests = [OutputRequest(copied, FileType.Q4_K_M), OutputRequest(other, FileType.Q8_0)]
    convert_model(thorough, requests, ConvertOptions(allow_requantize=True))
    assert read_gguf(copied).metadata["zephyr_local.search"] == "thorough"
    assert "zephyr_local.search" not in read_gguf(other).metadata, "nothing of the search is left in it"
    with Zephyr(thorough) as zephyr:
        reply = "".join(
            p.text for p in zephyr.stream([{"role": "user", "content": "hi there"}], Sampling(temperature=0))
        )
    assert reply.startswith("Hello")
