"""What a conversion says of where its time went."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoint_builder import build_checkpoint
from zephyr_local.convert.hf_to_gguf import ConvertOptions, OutputRequest, convert_model, open_source
from zephyr_local.gguf_file import read_gguf
from zephyr_local.quantize.timings import Timings
from zephyr_local.quantize.types import FileType


def timings(**seconds: float) -> Timings:
    plain = {"read_s": 1.0, "hash_s": 1.0, "encode_s": 1.0, "write_s": 1.0, "sync_s": 1.0}
    return Timings(
        encoder="numba",
        threads=4,
        prepare_s=0.0,
        elapsed_s=10.0,
        read_bytes=10**9,
        written_bytes=10**9,
        verify_s=1.0,
        cpu_s=20.0,
        **(plain | seconds),
    )


@pytest.mark.parametrize(
    ("seconds", "part"),
    [
        ({}, None),
        ({"read_s": 9.5}, "read"),
        ({"hash_s": 9.5}, "hash"),
        ({"encode_s": 38.0}, "encode"),
        ({"write_s": 9.5}, "write"),
        ({"sync_s": 9.5}, "write"),
        ({"encode_s": 9.5}, None),
        ({"encode_s": 31.0, "read_s": 7.9}, None),
        ({"encode_s": 33.0, "read_s": 8.1}, "encode"),
        ({"encode_s": 33.0, "read_s": 8.5}, "read"),
        ({"encode_s": 41.0, "write_s": 9.9}, "encode"),
    ],
    ids=str,
)
def test_what_bounded_a_conversion(seconds: dict[str, float], part: str | None):
    assert timings(**seconds).bound_by == part


def test_shares_are_of_the_time_and_of_the_threads():
    shares = timings(read_s=2.0, hash_s=4.0, encode_s=20.0, write_s=1.0, sync_s=3.0).shares
    assert shares == pytest.approx({"read": 0.2, "hash": 0.4, "encode": 0.5, "write": 0.3})


def test_a_conversion_tells_its_timings(tmp_path: Path):
    checkpoint = build_checkpoint(tmp_path / "checkpoint")
    requests = [OutputRequest(tmp_path / f"{kind.name}.gguf", kind) for kind in (FileType.F16, FileType.Q4_0)]
    one, other = convert_model(checkpoint, requests, ConvertOptions(threads=2))
    found = one.timings
    assert found is not None
    assert found == other.timings
    assert found.read_bytes == sum(t.stored_bytes for t in open_source(checkpoint, ConvertOptions()).tensors)
    assert found.written_bytes == sum(
        tensor.size_bytes for result in (one, other) for tensor in read_gguf(result.path).tensors
    )
    for seconds in (found.read_s, found.hash_s, found.encode_s, found.write_s, found.sync_s, found.verify_s):
        assert 0 < seconds < one.elapsed_s * 2
    assert 0 < found.elapsed_s <= one.elapsed_s
    assert found.cpu_s >= 0  # some systems count in steps of 15 ms
