"""Which encoder serves, and what is said where it is not the fast one."""

from __future__ import annotations

import importlib.util
import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import skip_or_fail
from zephyr_local.errors import EngineError, InvalidInputError
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


@pytest.mark.parametrize("place", ["nowhere", "a file"])
def test_what_cannot_be_kept_is_said(place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from zephyr_local.quantize.kernels import compiled

    folder = None if place == "nowhere" else tmp_path / "file"
    if folder is not None:
        folder.touch()
    monkeypatch.setattr(compiled, "cache_folder", lambda: folder)
    said: list[str] = []
    for _ in range(2):
        encoder = open_encoder(EncoderOptions(), [TensorType.Q8_0], lambda: said.append("compiling"))
        (notice,) = encoder.notices
        assert notice.startswith("compiled encoders cannot be kept")
        assert encoder.name == "numba"
    assert said == ["compiling"] * 2


def test_an_encoder_tells_how_long_it_took_to_prepare() -> None:
    assert 0 < open_encoder(EncoderOptions(), [TensorType.Q8_0]).prepared_s < 60


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
    assert first.name == "ggml"
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
    assert encoder.notices[0].startswith("encoding Q4_K with ggml")
    assert 'pip install "zephyr-local[fast]"' in encoder.notices[0]
    assert encoders.foreseen_notices(EncoderOptions(), [TensorType.Q4_K, TensorType.F16]) == encoder.notices
    assert encoders.foreseen_notices(EncoderOptions(), [TensorType.F16]) == ()
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
    for search in (Search.THOROUGH, "thorough"):
        with pytest.raises(InvalidInputError, match="runs on the CPU"):
            EncoderOptions(search=search, device="cuda")  # type: ignore[arg-type]


def test_a_search_goes_by_its_name() -> None:
    assert EncoderOptions(search="thorough").search is Search.THOROUGH  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="'harder' is no search") as caught:
        EncoderOptions(search="harder")  # type: ignore[arg-type]
    assert caught.value.remedy == "Use ggml or thorough"


@pytest.mark.parametrize("broken", ["prepare", "is_compiled"])
def test_a_numba_that_fails_leaves_ggml_to_serve_with_a_line(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does in a frozen application without LLVM's library, or where nobody may make memory executable."""
    from zephyr_local.quantize.kernels import numba_encoder

    def fails(*_: object) -> None:
        raise OSError("cannot load libllvmlite.so\nin any of\nthese places")

    monkeypatch.setattr(numba_encoder, broken, fails)
    encoder = open_encoder(EncoderOptions(), [TensorType.Q8_0], lambda: None)
    expected = "encoding with ggml, several times slower: numba fails here (OSError: cannot load libllvmlite.so)"
    assert (encoder.name, encoder.notices) == ("ggml", (expected,))
    np.testing.assert_array_equal(encoder.encode(TensorType.Q8_0, ROWS, None), ggml.encode(TensorType.Q8_0, ROWS))
    with pytest.raises(InvalidInputError, match="the thorough search needs numba, and numba fails here"):
        open_encoder(EncoderOptions(search=Search.THOROUGH), [TensorType.Q4_K], lambda: None)


def test_an_error_of_the_callback_is_the_callers() -> None:
    def stop() -> None:
        raise OSError("no more of this")

    with pytest.raises(OSError, match="no more of this"):
        open_encoder(EncoderOptions(), [TensorType.Q8_0], stop)


def test_nothing_is_printed_beside_the_notice() -> None:
    """Where an application has configured no logging, as the command line has not."""
    code = (
        "import sys; sys.modules['numba'] = None; import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name: None if name == 'numba' else find(name)\n"
        "from zephyr_local.quantize.encoders import EncoderOptions, open_encoder\n"
        "from zephyr_local.quantize.types import TensorType\n"
        "print(open_encoder(EncoderOptions(), [TensorType.Q4_K]).notices)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "encoding Q4_K with ggml" in done.stdout
    assert done.stderr == ""


# --- on a device ---


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> EncoderOptions:
    """The CPU, opened as if it were another device."""
    from zephyr_local.quantize.kernels import torch_encoder

    monkeypatch.setattr(torch_encoder, "open_device", lambda name: torch.device("cpu"))
    return EncoderOptions(device="cuda")


def test_a_device_with_ggmls_bytes_needs_no_word(device: EncoderOptions) -> None:
    encoder = open_encoder(device, [TensorType.Q4_K, TensorType.Q5_0])
    assert (encoder.name, encoder.notices) == ("torch on cpu", ())
    for kind in (TensorType.Q4_K, TensorType.Q5_0):
        np.testing.assert_array_equal(encoder.encode(kind, ROWS, ROWS[0] ** 2), ggml.encode(kind, ROWS, ROWS[0] ** 2))


def test_a_device_with_other_bytes_and_the_same_error_is_named_so(
    device: EncoderOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoders, "gives_ggml_bytes", lambda *_: False)
    encoder = open_encoder(device, [TensorType.Q8_0])
    assert encoder.notices == ("Q8_0: cpu gives other bytes than ggml, with the same error to 0e+00",)


@pytest.mark.parametrize(
    ("damage", "words"),
    [(b"\x00\x00", "with another error than ggml"), (b"\xff\x7f", "by nan of it")],
    ids=["zero", "NaN"],
)
def test_a_device_with_another_error_is_refused(
    damage: bytes, words: str, device: EncoderOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the scale of the first block is another one."""
    from zephyr_local.quantize.kernels import torch_encoder

    def damaged(kind: TensorType, rows: np.ndarray, importance: np.ndarray | None, _: object) -> np.ndarray:
        encoded = ggml.encode(kind, rows, importance)
        encoded[:2] = np.frombuffer(damage, np.uint8)
        return encoded

    monkeypatch.setattr(torch_encoder, "encode", damaged)
    with pytest.raises(EngineError, match=words) as caught:
        open_encoder(device, [TensorType.Q8_0])
    assert caught.value.remedy == "Leave out --device"


def test_a_device_that_would_have_nothing_to_do_is_refused(device: EncoderOptions) -> None:
    with pytest.raises(InvalidInputError, match="the device cuda would change nothing"):
        open_encoder(device, [TensorType.F16])


def test_a_name_that_is_no_device_is_refused_at_once() -> None:
    with pytest.raises(InvalidInputError, match="'abacus' is no device") as caught:
        EncoderOptions(device="abacus")
    assert "cuda:1" in caught.value.remedy
