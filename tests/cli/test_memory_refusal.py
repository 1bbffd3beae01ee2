"""A model that does not fit is refused before it is loaded, by the command and from Python."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.command import zephyr_local
from tests.shaped_model import MISTRAL_7B, Shape, write_shaped_model
from zephyr_local.api import Zephyr
from zephyr_local.errors import NotEnoughMemoryError
from zephyr_local.quantize.types import FileType
from zephyr_local.settings import EngineSettings

# Its cache takes 128 KiB a token, and no machine that this runs on has the 137 GB of 2^20 tokens.
DEEP = Shape(128, 256, 2, 2, 256, n_vocab=512, n_ctx_train=1 << 20)
MOST = 1 << 20


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    return write_shaped_model(tmp_path / "zephyr-deep.gguf", DEEP, FileType.F32)


def test_the_command_says_what_is_missing_and_what_would_fit(deep: Path, tmp_path: Path) -> None:
    wide = write_shaped_model(tmp_path / "zephyr-7b.gguf", MISTRAL_7B, FileType.F32)
    done = zephyr_local("chat", str(wide), "Hello", "--n-ctx", str(MOST), home=tmp_path)
    assert done.returncode == 4
    assert done.stdout == ""
    said = "zephyr-7b.gguf with a context of 1048576 tokens needs "
    assert said in done.stderr
    assert " too little" in done.stderr
    assert "Traceback" not in done.stderr


def test_from_python_it_is_an_error_of_its_own(deep: Path) -> None:
    for isolated in (True, False):
        with pytest.raises(NotEnoughMemoryError, match="It fits with --n-ctx"):
            Zephyr(deep, EngineSettings(n_ctx=MOST), template="zephyr", isolated=isolated)


def test_what_fits_loads_and_a_context_that_gave_way_is_told(deep: Path) -> None:
    with Zephyr(deep, EngineSettings(n_ctx=256), template="zephyr") as zephyr:
        assert zephyr.n_ctx == 256
        assert not [notice for notice in zephyr.notices if "too little" in notice]
