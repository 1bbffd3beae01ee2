"""A model that loads on a thread: what waits for it, and what becomes of it where nobody does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from zephyr_local.chat_types import Message
from zephyr_local.errors import EngineError, ModelFileError, ZephyrError
from zephyr_local.repl.late_model import LateModel
from zephyr_local.settings import BUNDLED_MODEL_SAMPLING, EngineSettings, Sampling

HELLO = (Message("user", "Hello"),)


@pytest.fixture(scope="module")
def model() -> Iterator[LateModel]:
    """The bundled one."""
    model = LateModel(None, EngineSettings(n_ctx=256))
    yield model
    model.close()


def test_every_call_waits_for_the_load(model: LateModel) -> None:
    assert model.label == "zephyr-tiny"
    assert model.n_ctx == 256
    assert model.count_tokens(HELLO) > 3
    assert "".join(piece.text for piece in model.stream(HELLO, BUNDLED_MODEL_SAMPLING)).startswith("Hello!")
    assert model.loaded is model.wait()
    assert model.is_done
    assert model.error is None


def test_how_a_model_is_sampled_by_default(model: LateModel, tmp_path: Path) -> None:
    assert model.default_sampling == BUNDLED_MODEL_SAMPLING
    assert LateModel(tmp_path / "other.gguf", EngineSettings()).default_sampling == Sampling()


def test_what_fails_is_raised_to_all_who_wait(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(1000))
    told = threading.Event()
    model = LateModel(tmp_path / "broken.gguf", EngineSettings(), on_change=told.set)
    for _ in range(2):
        with pytest.raises(ModelFileError, match="version is 0"):
            model.wait()
    with pytest.raises(ZephyrError):
        model.count_tokens(HELLO)
    assert told.is_set()
    assert model.is_done
    assert model.loaded is None
    assert model.label == "broken.gguf"
    model.close()


def test_the_load_tells_of_its_progress_and_its_end() -> None:
    shares: list[float] = []
    model = LateModel(None, EngineSettings(n_ctx=256))
    model.on_change = lambda: shares.append(1.0 if model.is_done else model.progress)
    model.wait()
    for thread in threading.enumerate():
        if thread.name == "zephyr-local-load":
            thread.join()
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    model.close()


@pytest.mark.parametrize("starts", [True, False])
def test_a_model_that_is_closed_before_it_is_loaded(starts: bool) -> None:
    model = LateModel(None, EngineSettings(n_ctx=256))
    if starts:
        model.start()
    model.close()
    model.close()
    assert model.is_done
    with pytest.raises(EngineError, match="was closed"):
        model.wait()
