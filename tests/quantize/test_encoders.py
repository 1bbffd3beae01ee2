"""Which encoder serves, and what is said where it is not the fast one."""

from __future__ import annotations

import importlib.util
import json
import logging
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import skip_or_fail
from zephyr_local.errors import InvalidInputError
from zephyr_local.quantize import encoders
from zephyr_local.quantize.encoders import EncoderOptions, Search, open_encoder
from zephyr_local.quantize.kernels import ggml, self_check
from zephyr_local.quantize.types import TensorType

ROWS = np.random.default_rng(0).standard_normal((4, 1024), dtype=np.float32)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Q8_0's kernel compiles in a moment, so these tests can begin with nothing compiled."""
    if importlib.util.find_spec("numba") is None:
        skip_or_fail("numba", 'pip install "zephyr-local[fast]"')
    from zephyr_local.quantize.kernels import compiled, numba_encoder

    monkeypatch.setattr(compiled, "_user_cache", lambda: tmp_path / "cache")
    numba_encoder._kernel.cache_clear()


def checks(tmp_path: Path) -> dict[str, bool]:
    (path,) = (tmp_path / "cache").rglob("checked-*.json")
    found: dict[str, bool] = json.loads(path.read_text())
    return found


def test_numba_serves_where_it_gives_ggmls_bytes_and_ggml_serves_the_other_types(tmp_path: Path) -> None:
    encoder = open_encoder(EncoderOptions(), [TensorType.Q8_0, TensorType.Q4_0, TensorType.F16])
    assert (encoder.name, encoder.notices) == ("numba", ())
    for kind in (TensorType.Q8_0, TensorType.Q4_0, TensorType.F16, TensorType.BF16):
        np.testing.assert_array_equal(encoder.encode(kind, ROWS, None), ggml.encode(kind, ROWS))
    assert checks(tmp_path) == {"Q8_0": True}


def test_the_first_time_compiles_and_says_so_and_the_second_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from zephyr_local.quantize.kernels import numba_encoder

    said: list[str] = []
    open_encoder(EncoderOptions(), [TensorType.Q8_0], lambda: said.append("compiling"))
    assert said == ["compiling"]
    numba_encoder._kernel.cache_clear()  # as in a new process

    def never(*_: object) -> bool:
        raise AssertionError("what a probe found is kept")

    monkeypatch.setattr(encoders, "gives_ggml_bytes", never)
    encoder = open_encoder(EncoderOptions(), [TensorType.Q8_0], lambda: said.append("compiling"))
    assert said == ["compiling"]
    np.testing.assert_array_equal(encoder.encode(TensorType.Q8_0, ROWS, None), ggml.encode(TensorType.Q8_0, ROWS))


def test_where_bytes_differ_ggml_serves_with_one_line_and_so_the_next_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """As a processor would do it whose compiler fuses multiply and add: here ggml is made to differ by one bit."""
    honest = ggml.encode

    def other_bytes(*arguments: object) -> np.ndarray:
        encoded = honest(*arguments)  # type: ignore[arg-type]
        encoded[5] ^= 1
        return encoded

    from zephyr_local.quantize.kernels import numba_encoder

    with monkeypatch.context() as patch, caplog.at_level(logging.INFO, "zephyr_local"):
        patch.setattr(self_check.ggml, "encode", other_bytes)
        first = open_encoder(EncoderOptions(), [TensorType.Q8_0])
    assert [record.getMessage() for record in caplog.records] == list(first.notices)
    assert "encoding Q8_0 with ggml" in first.notices[0]
    np.testing.assert_array_equal(first.encode(TensorType.Q8_0, ROWS, None), ggml.encode(TensorType.Q8_0, ROWS))
    assert checks(tmp_path) == {"Q8_0": False}

    monkeypatch.setattr(numba_encoder, "prepare", lambda *_: pytest.fail("what does not serve is not compiled"))
    assert open_encoder(EncoderOptions(), [TensorType.Q8_0]).notices == first.notices


@pytest.mark.parametrize("content", ["", "[1]", '{"Q8_0": "yes"}', "{"])
def test_a_damaged_note_of_what_was_found_is_made_anew(tmp_path: Path, content: str) -> None:
    open_encoder(EncoderOptions(), [TensorType.Q8_0])
    (path,) = (tmp_path / "cache").rglob("checked-*.json")
    path.write_text(content)
    assert open_encoder(EncoderOptions(), [TensorType.Q8_0]).notices == ()
    assert checks(tmp_path) == {"Q8_0": True}


def test_a_note_is_about_one_build_of_ggml(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    open_encoder(EncoderOptions(), [TensorType.Q8_0])
    monkeypatch.setattr(ggml, "library_identity", lambda: "another build")
    open_encoder(EncoderOptions(), [TensorType.Q8_0])
    assert len(list((tmp_path / "cache").rglob("checked-*.json"))) == 2


def test_without_numba_ggml_serves_and_the_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "numba" else find_spec(name))
    with caplog.at_level(logging.INFO, "zephyr_local"):
        encoder = open_encoder(EncoderOptions(), [TensorType.Q4_K])
    assert encoder.name == "ggml"
    assert len(encoder.notices) == len(caplog.records) == 1
    assert 'pip install "zephyr-local[fast]"' in encoder.notices[0]
    np.testing.assert_array_equal(encoder.encode(TensorType.Q4_K, ROWS, None), ggml.encode(TensorType.Q4_K, ROWS))
    with pytest.raises(InvalidInputError, match="needs numba"):
        open_encoder(EncoderOptions(search=Search.THOROUGH), [TensorType.Q4_K])


def test_types_that_no_kernel_makes_compile_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    encoder = open_encoder(EncoderOptions(), [TensorType.F16, TensorType.Q5_0], lambda: said.append("compiling"))
    assert said == []
    assert not (tmp_path / "cache").exists()
    np.testing.assert_array_equal(encoder.encode(TensorType.Q5_0, ROWS, None), ggml.encode(TensorType.Q5_0, ROWS))


def test_the_thorough_search_and_a_device_exclude_each_other() -> None:
    with pytest.raises(InvalidInputError, match="runs on the CPU"):
        EncoderOptions(search=Search.THOROUGH, device="cuda")
