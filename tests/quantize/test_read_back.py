"""Everything that was written is read back, by one thread or several."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from zephyr_local.errors import OutputError
from zephyr_local.quantize import read_back
from zephyr_local.quantize.encode import WrittenRange, written_ranges
from zephyr_local.quantize.gguf_output import OutputFile


@pytest.fixture
def outputs(tmp_path: Path) -> Iterator[list[OutputFile]]:
    with OutputFile(tmp_path / "a", 1000, overwrite=False) as a, OutputFile(tmp_path / "b", 1000, overwrite=False) as b:
        yield [a, b]


def ranges_in(outputs: list[OutputFile], n_ranges: int) -> list[WrittenRange]:
    written = []
    for number in range(n_ranges):
        values = np.full(8, number, np.uint8)
        outputs[number % 2].write_at(8 * number, values.data)
        written += written_ranges(f"tensor {number}", [(number % 2, 8 * number)], values)
    return written


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_everything_is_read_back_and_told_of_file_by_file(
    threads: int, outputs: list[OutputFile], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(read_back, "_WORTH_BYTES", 8)
    ranges = ranges_in(outputs, 100)
    told: list[WrittenRange] = []
    read_back.verify_all(outputs, ranges, threads, told.append)
    assert told == ranges[::2] + ranges[1::2]


@pytest.mark.parametrize("number", [0, 41, 99])
@pytest.mark.parametrize("threads", [1, 2, 7])
def test_no_wrong_byte_passes(number: int, threads: int, outputs: list[OutputFile], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(read_back, "_WORTH_BYTES", 8)
    ranges = ranges_in(outputs, 100)
    outputs[number % 2].write_at(8 * number + 3, b"x")
    with pytest.raises(OutputError, match=f"tensor {number} reads back otherwise"):
        read_back.verify_all(outputs, ranges, threads, lambda _: None)


def test_an_error_of_the_callback_ends_the_read_back(outputs: list[OutputFile]):
    def tired(_: WrittenRange) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        read_back.verify_all(outputs, ranges_in(outputs, 100), 2, tired)
