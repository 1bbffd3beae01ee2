"""Our numba kernels give ggml's bytes, whatever the weights, their number, and the threads that ask."""

from __future__ import annotations

import ctypes
import functools
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import skip_or_fail
from tests.quantize.hard_weights import IMPORTANCE, KINDS
from zephyr_local.quantize.encoders import KERNEL_KINDS, THOROUGH_KINDS
from zephyr_local.quantize.kernels import ggml
from zephyr_local.quantize.kernels.self_check import EncodeKind
from zephyr_local.quantize.types import TensorType

ENCODED = sorted(KERNEL_KINDS, key=lambda kind: kind.name)


@functools.cache
def encoder(kind: TensorType) -> EncodeKind:
    try:
        from zephyr_local.quantize.kernels import compiled, numba_encoder
    except ImportError:
        skip_or_fail("numba", 'pip install "zephyr-local[fast]"')
    return numba_encoder.prepare(kind, compiled.cache_folder())


def test_what_is_promised_without_numba_is_what_the_kernels_encode() -> None:
    encoder(TensorType.Q8_0)
    from zephyr_local.quantize.kernels import numba_encoder

    assert set(numba_encoder._FAMILIES) == KERNEL_KINDS
    assert set(numba_encoder._IMPROVERS) == THOROUGH_KINDS


def require_ggml_bytes(kind: TensorType, rows: np.ndarray, importance: np.ndarray | None, what: str) -> None:
    ours, theirs = encoder(kind)(rows, importance), ggml.encode(kind, rows, importance)
    if not np.array_equal(ours, theirs):
        blocks = (ours != theirs).reshape(-1, kind.block_bytes).any(axis=1)
        pytest.fail(f"{kind.name} of {what}: {blocks.sum()} of {blocks.size} blocks differ, first {blocks.argmax()}")


@pytest.mark.parametrize("weights", KINDS)
@pytest.mark.parametrize("kind", ENCODED, ids=lambda kind: kind.name)
def test_the_corpus_has_ggmls_bytes(kind: TensorType, weights: str) -> None:
    for importance in IMPORTANCE:
        rng = np.random.default_rng(1)
        rows = KINDS[weights](rng, 24, 1280)
        require_ggml_bytes(kind, rows, IMPORTANCE[importance](rng, 1280), f"{weights}, importance {importance}")


@pytest.mark.parametrize("seed", range(40))
def test_any_mixture_of_any_shape_has_ggmls_bytes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_columns = 256 * int(rng.integers(1, 9))
    pieces = [KINDS[name](rng, int(rng.integers(1, 5)), n_columns) for name in rng.choice(list(KINDS), 4)]
    rows = np.concatenate(pieces)
    rng.shuffle(rows)
    rows[rng.random(rows.shape[0]) < 0.3] *= np.float32(10.0 ** rng.uniform(-20, 0))
    name = str(rng.choice(list(IMPORTANCE)))
    for kind in ENCODED:
        require_ggml_bytes(kind, rows, IMPORTANCE[name](rng, n_columns), f"seed {seed}, importance {name}")


@pytest.mark.parametrize("n_blocks", [1, 2, 15, 16, 17, 31, 33])
@pytest.mark.parametrize("kind", ENCODED, ids=lambda kind: kind.name)
def test_blocks_beside_a_block_do_not_change_it(kind: TensorType, n_blocks: int) -> None:
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((1, kind.block_weights * n_blocks), dtype=np.float32)
    importance = rng.lognormal(size=rows.shape[1]).astype(np.float32)
    for weights in (None, importance):
        together = encoder(kind)(rows, weights)
        alone = [
            encoder(kind)(
                rows[:, i : i + kind.block_weights].copy(),
                None if weights is None else weights[i : i + kind.block_weights].copy(),
            )
            for i in range(0, rows.shape[1], kind.block_weights)
        ]
        np.testing.assert_array_equal(together, np.concatenate(alone))


def test_importance_belongs_to_columns_and_not_to_rows() -> None:
    rng = np.random.default_rng(3)
    row, importance = rng.standard_normal((1, 768), dtype=np.float32), rng.lognormal(size=768).astype(np.float32)
    for kind in ENCODED:
        many = encoder(kind)(np.repeat(row, 7, axis=0), importance).reshape(7, -1)
        np.testing.assert_array_equal(many, np.repeat(many[:1], 7, axis=0))


def test_weights_that_may_not_be_written_are_read() -> None:
    rows = np.random.default_rng(4).standard_normal((2, 512), dtype=np.float32)
    rows.flags.writeable = False
    for kind in ENCODED:
        require_ggml_bytes(kind, rows, rows[0] ** 2, "a read-only array")


def test_threads_at_once_get_the_bytes_of_one() -> None:
    rng = np.random.default_rng(5)
    blocks = [rng.standard_normal((8, 4096), dtype=np.float32) for _ in range(8)]
    for kind in ENCODED:
        one_by_one = [encoder(kind)(rows, None) for rows in blocks]
        with ThreadPoolExecutor(4) as pool:
            at_once = list(pool.map(lambda rows, kind=kind: encoder(kind)(rows, None), blocks))
        for ours, theirs in zip(at_once, one_by_one, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["normal", "heavy_tailed", "constant_rows", "zeros", "denormals", "huge", "real"])
@pytest.mark.parametrize("kind", ENCODED, ids=lambda kind: kind.name)
def test_ten_million_weights_have_ggmls_bytes(kind: TensorType, weights: str) -> None:
    """Half of them with importance; in pieces, since each kind has other rows and scales by turns."""
    for piece in range(10):
        rng = np.random.default_rng([piece, 6])
        rows = KINDS[weights](rng, 245, 4096)
        importance = None if piece % 2 == 0 else IMPORTANCE["lognormal" if piece % 4 == 1 else "with_zeros"](rng, 4096)
        require_ggml_bytes(kind, rows, importance, f"{weights}, piece {piece}")


def test_compiled_kernels_are_kept_and_read_again(tmp_path: Path) -> None:
    encoder(TensorType.Q8_0)
    from zephyr_local.quantize.kernels import compiled, numba_encoder
    from zephyr_local.quantize.kernels.q8_0 import encode_q8_0

    folder = tmp_path / "kernels"
    assert not numba_encoder.is_compiled([TensorType.Q8_0], [], folder)
    first = compiled.compile_kernel(encode_q8_0, numba_encoder.SIGNATURE, folder)
    assert numba_encoder.is_compiled([TensorType.Q8_0], [], folder)
    assert not numba_encoder.is_compiled([TensorType.Q8_0, TensorType.Q4_K], [], folder)
    assert not numba_encoder.is_compiled([TensorType.Q8_0], [TensorType.Q4_K], folder)
    again = compiled.compile_kernel(encode_q8_0, numba_encoder.SIGNATURE, folder)
    assert (sum(first.stats.cache_hits.values()), sum(again.stats.cache_hits.values())) == (0, 1)


@pytest.mark.parametrize("damage", [b"", b"\x80\x05nonsense", None])
def test_a_damaged_or_unwritable_cache_costs_time_alone(tmp_path: Path, damage: bytes | None) -> None:
    encoder(TensorType.Q8_0)
    from zephyr_local.quantize.kernels import compiled, numba_encoder
    from zephyr_local.quantize.kernels.q8_0 import encode_q8_0

    folder = tmp_path / "kernels"
    if damage is None:
        folder.write_text("a file where the folder should be")
    else:
        compiled.compile_kernel(encode_q8_0, numba_encoder.SIGNATURE, folder)
        for path in folder.rglob("*.nb?"):
            path.write_bytes(damage)
    kernel = compiled.compile_kernel(encode_q8_0, numba_encoder.SIGNATURE, folder)
    rows = np.random.default_rng(0).standard_normal((2, 64), dtype=np.float32)
    encoded = np.empty(4 * 34, np.uint8)
    kernel(rows.reshape(-1), rows[0, :0], 8, encoded)
    np.testing.assert_array_equal(encoded, ggml.encode(TensorType.Q8_0, rows))


def test_nothing_is_kept_where_nothing_tells_versions_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen application has no sources to be told apart by."""
    encoder(TensorType.Q8_0)
    from zephyr_local.quantize.kernels import compiled

    assert compiled.cache_folder() is not None
    monkeypatch.setattr(compiled, "_SOURCES", tmp_path / "absent")
    assert compiled.cache_folder() is None


def q8_0_kernel(folder: Path) -> object:
    from zephyr_local.quantize.kernels import compiled, numba_encoder
    from zephyr_local.quantize.kernels.q8_0 import encode_q8_0

    return compiled.compile_kernel(encode_q8_0, numba_encoder.SIGNATURE, folder)


def test_code_is_kept_nowhere_else_than_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """numba itself would go on to places whose code it does not tell from that of another version."""
    encoder(TensorType.Q8_0)
    from numba.core import caching

    def refused(*_: object) -> None:
        raise OSError("not yours")

    monkeypatch.setattr(caching.UserProvidedCacheLocator, "ensure_cache_path", refused)
    kept: list[object] = []
    monkeypatch.setattr(caching.IndexDataCacheFile, "save", lambda *arguments: kept.append(arguments))
    kernel = q8_0_kernel(tmp_path / "kernels")
    assert kernel.signatures  # type: ignore[attr-defined]
    assert kept == []


def test_a_full_disk_costs_what_is_kept_and_no_second_compilation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder(TensorType.Q8_0)
    from numba.core import caching

    folder = tmp_path / "kernels"
    folder.mkdir()
    (folder / "another").write_text("kernel")

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(caching.IndexDataCacheFile, "save", full)
    assert q8_0_kernel(folder).signatures  # type: ignore[attr-defined]
    assert (folder / "another").read_text() == "kernel"


def called_from_llvm(function: Callable[[], None]) -> None:
    """Calls it as LLVM calls llvmlite when it has compiled something: by ctypes, which prints and forgets errors."""
    from llvmlite.binding import executionengine

    names: dict[str, object] = {"function": function}
    source = "def _raw_object_cache_notify():\n    function()"
    exec(compile(source, executionengine.__file__, "exec"), names)
    ctypes.CFUNCTYPE(None)(names["_raw_object_cache_notify"])()


def test_ctrl_c_is_raised_where_llvm_would_swallow_it(capfd: pytest.CaptureFixture[str]) -> None:
    encoder(TensorType.Q8_0)
    from zephyr_local.quantize.kernels.compiled import interrupts_kept

    came_back = False
    with pytest.raises(KeyboardInterrupt), interrupts_kept():  # noqa: PT012
        called_from_llvm(lambda: signal.raise_signal(signal.SIGINT))
        came_back = True
    assert came_back, "there it can only be raised later"
    with pytest.raises(KeyboardInterrupt), interrupts_kept():  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        pytest.fail("elsewhere it is raised at once")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert capfd.readouterr().err == ""


def test_an_applications_own_handler_of_ctrl_c_is_left_alone() -> None:
    encoder(TensorType.Q8_0)
    from zephyr_local.quantize.kernels.compiled import interrupts_kept

    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: seen.append(number))
    try:
        with interrupts_kept():
            called_from_llvm(lambda: signal.raise_signal(signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [signal.SIGINT]
