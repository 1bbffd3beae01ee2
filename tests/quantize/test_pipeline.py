"""Reading, encoding and writing at once: what waits for what, and which error comes first."""

from __future__ import annotations

import errno
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.checkpoint_builder import build_checkpoint
from zephyr_local.convert.checkpoint_source import CheckpointSource
from zephyr_local.convert.hf_to_gguf import ConvertOptions, OutputRequest, Progress, convert_model, open_source
from zephyr_local.errors import OutputError
from zephyr_local.gguf_file import read_gguf
from zephyr_local.quantize import early_sync
from zephyr_local.quantize.early_sync import EarlySync
from zephyr_local.quantize.encode import Destination, written_ranges
from zephyr_local.quantize.encoders import Encode, Encoder
from zephyr_local.quantize.gguf_output import OutputFile
from zephyr_local.quantize.kernels import ggml
from zephyr_local.quantize.mapped_file import wait
from zephyr_local.quantize.output_plan import plan_outputs
from zephyr_local.quantize.pipeline import Write, encode_blocks, pipeline_size, to_encode, to_write
from zephyr_local.quantize.progress import Reporter
from zephyr_local.quantize.source import Block, SourceTensor
from zephyr_local.quantize.types import FileType, TensorType
from zephyr_local.quantize.write_files import write_files

LIMIT_S = 60.0  # of waiting for what must happen; nothing here takes a second
N_COLUMNS = 32
TENSOR = SourceTensor("a", (1000, N_COLUMNS), TensorType.F32, TensorType.F32, "the source's a")
PLACES = {"a": [Destination(0, TensorType.F32, 0)]}
Rows = NDArray[np.float32]


def blocks_of(n_blocks: int, on_draw: Callable[[int], None] | None = None) -> Iterator[Block]:
    """Blocks of one row each, filled with their number."""
    for number in range(n_blocks):
        if on_draw is not None:
            on_draw(number)
        yield Block(TENSOR, number, 4 * N_COLUMNS, lambda n=number: np.full((1, N_COLUMNS), n, np.float32))


def plain(kind: TensorType, rows: Rows, importance: Rows | None) -> NDArray[np.uint8]:
    return ggml.encode(kind, rows, importance)


def nowhere(file: int, offset: int, data: memoryview) -> None:
    pass


def number_at(offset: int) -> int:
    return offset // (4 * N_COLUMNS)


def wait_until(reached: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not reached():
        assert time.monotonic() - began < LIMIT_S
        time.sleep(0.001)


def require_at_rest() -> None:
    names = [thread.name for thread in threading.enumerate()]
    assert [name for name in names if name.startswith(("encode", "write", "verify", "sync", "sha256"))] == []


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_block_is_written_at_its_place_and_told_of_in_order(threads: int):
    written = bytearray(40 * 4 * N_COLUMNS)
    told: list[tuple[str, int]] = []

    def write(file: int, offset: int, data: memoryview) -> None:
        written[offset : offset + data.nbytes] = data

    streamed = encode_blocks(blocks_of(40), PLACES, plain, write, threads, lambda *block: told.append(block))
    assert np.array_equal(np.frombuffer(written, np.float32), np.repeat(np.arange(40, dtype=np.float32), N_COLUMNS))
    assert told == [("the source's a", 4 * N_COLUMNS)] * 40
    assert [number_at(of_block.offset) for of_block in streamed.ranges] == list(range(40))
    fourth = np.full(32, 3, np.float32).view(np.uint8)
    assert streamed.ranges[3:4] == written_ranges("the source's a", [(0, 3 * 128)], fourth)
    assert streamed.read_bytes == 40 * 4 * N_COLUMNS
    require_at_rest()


def test_alike_places_are_encoded_once():
    kinds: list[TensorType] = []
    places = [Destination(file, kind, 0) for file, kind in enumerate([TensorType.F32, TensorType.F16, TensorType.F32])]

    def encode(kind: TensorType, rows: Rows, importance: Rows | None) -> NDArray[np.uint8]:
        kinds.append(kind)
        return plain(kind, rows, importance)

    files: list[int] = []
    streamed = encode_blocks(blocks_of(1), {"a": places}, encode, lambda file, *_: files.append(file), 1)
    assert kinds == [TensorType.F32, TensorType.F16]
    assert files == [0, 2, 1]
    assert [(written.file, written.size_bytes) for written in streamed.ranges] == [(0, 128), (2, 128), (1, 64)]


# --- what waits for what ---


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_stalled_disk_stops_the_encoders_only_when_its_queue_is_full(threads: int):
    encoded: list[int] = []
    drawn: list[int] = []
    disk_goes_on = threading.Event()

    def encode(kind: TensorType, rows: Rows, importance: Rows | None) -> NDArray[np.uint8]:
        encoded.append(int(rows[0, 0]))
        return plain(kind, rows, importance)

    def write(file: int, offset: int, data: memoryview) -> None:
        assert disk_goes_on.wait(LIMIT_S)

    def run() -> None:
        encode_blocks(blocks_of(60, drawn.append), PLACES, encode, write, threads)

    calling = threading.Thread(target=run)
    calling.start()
    wait_until(lambda: len(encoded) > to_write(threads))
    time.sleep(0.05)  # anything beyond the bounds would come now
    assert len(encoded) <= to_write(threads) + threads, "each thread holds one that finds no place in the queue"
    assert len(drawn) <= to_write(threads) + to_encode(threads)
    disk_goes_on.set()
    calling.join(LIMIT_S)
    assert sorted(encoded) == list(range(60))
    require_at_rest()


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_reading_runs_ahead_of_the_encoders(threads: int):
    drawn: list[int] = []
    encoders_go_on = threading.Event()

    def encode(kind: TensorType, rows: Rows, importance: Rows | None) -> NDArray[np.uint8]:
        assert encoders_go_on.wait(LIMIT_S)
        return plain(kind, rows, importance)

    def run() -> None:
        encode_blocks(blocks_of(60, drawn.append), PLACES, encode, nowhere, threads)

    calling = threading.Thread(target=run)
    calling.start()
    wait_until(lambda: len(drawn) == to_encode(threads))
    time.sleep(0.05)
    assert len(drawn) == to_encode(threads)
    encoders_go_on.set()
    calling.join(LIMIT_S)
    assert len(drawn) == 60
    require_at_rest()


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_bytes_in_flight_are_bounded(threads: int):
    """Source bytes until a block is encoded, encoded bytes until they are written."""
    source: weakref.WeakValueDictionary[int, Rows] = weakref.WeakValueDictionary()
    made: weakref.WeakValueDictionary[int, NDArray[np.uint8]] = weakref.WeakValueDictionary()
    most_read, most_made = 0, 0

    def blocks() -> Iterator[Block]:
        nonlocal most_read, most_made
        for number in range(100):
            raw = np.full((1, N_COLUMNS), number, np.float32)
            source[number] = raw
            most_read, most_made = max(most_read, len(source)), max(most_made, len(made))
            yield Block(TENSOR, number, raw.nbytes, lambda raw=raw: raw)
            del raw

    def encode(kind: TensorType, rows: Rows, importance: Rows | None) -> NDArray[np.uint8]:
        encoded = plain(kind, rows, importance)
        made[int(rows[0, 0])] = encoded
        return encoded

    def write(file: int, offset: int, data: memoryview) -> None:
        time.sleep(0.001)  # so that the queue fills

    encode_blocks(blocks(), PLACES, encode, write, threads)
    # A thread may still hold the last block that it is through with; of 100, these are few.
    assert most_read <= to_encode(threads) + threads
    assert most_made <= to_write(threads) + threads + 1


def test_waiting_is_no_work():
    """A slow disk is the writer's time alone, a slow encoder the encoders', a slow source the reader's."""

    def slow(*_: object) -> None:
        time.sleep(0.02)

    def slowly(kind: TensorType, rows: Rows, importance: Rows | None) -> NDArray[np.uint8]:
        slow()
        return plain(kind, rows, importance)

    def busiest(blocks: Iterator[Block], encode: Encode, write: Write) -> str:
        found = encode_blocks(blocks, PLACES, encode, write, 2)
        busy = {"read": found.read_s, "encode": found.encode_s / 2, "write": found.write_s}
        name = max(busy, key=lambda part: busy[part])
        assert busy[name] >= 20 * 0.02 / (2 if name == "encode" else 1)
        return name

    assert busiest(blocks_of(20, slow), plain, nowhere) == "read"
    assert busiest(blocks_of(20), slowly, nowhere) == "encode"
    assert busiest(blocks_of(20), plain, slow) == "write"


# --- errors ---


class Failure(Exception):
    """Of the block with that number."""


@pytest.mark.parametrize(
    ("fails", "first"),
    [
        ({"encode": 5}, "encode 5"),
        ({"write": 5}, "write 5"),
        ({"read": 5}, "read 5"),
        ({"write": 4, "encode": 5}, "write 4"),
        ({"encode": 4, "write": 5}, "encode 4"),
        ({"encode": 4, "read": 5}, "encode 4"),
        ({"write": 4, "read": 5}, "write 4"),
        ({"write": 3, "encode": 4, "read": 5}, "write 3"),
        ({"read": 0}, "read 0"),
    ],
    ids=str,
)
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_the_error_of_the_first_block_that_has_one(threads: int, fails: dict[str, int], first: str):
    """Where a block fails early on its way, it waits here until the blocks after it have failed."""
    failed = {stage: threading.Event() for stage in fails}
    told: list[int] = []

    def meet(stage: str, number: int) -> None:
        if fails.get(stage) != number:
            return
        for other, its_number in fails.items():
            # A block that is read later than this one's thread can serve has no chance to fail first.
            if its_number > number and its_number - number < threads:
                failed[other].wait(1)
        failed[stage].set()
        raise Failure(f"{stage} {number}")

    def encode(kind: TensorType, rows: Rows, importance: Rows | None) -> NDArray[np.uint8]:
        meet("encode", int(rows[0, 0]))
        return plain(kind, rows, importance)

    def write(file: int, offset: int, data: memoryview) -> None:
        meet("write", number_at(offset))

    blocks = blocks_of(50, lambda number: meet("read", number))
    with pytest.raises(Failure, match=first):
        encode_blocks(blocks, PLACES, encode, write, threads, lambda *_: told.append(1))
    assert len(told) == int(first.split()[1]), "all blocks before it, and none after"
    require_at_rest()


def test_an_interruption_does_not_wait_for_what_is_left_to_do():
    begun: list[int] = []

    def encode(kind: TensorType, rows: Rows, importance: Rows | None) -> NDArray[np.uint8]:
        begun.append(int(rows[0, 0]))
        return plain(kind, rows, importance)

    def interrupt(number: int) -> None:
        if number == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_blocks(blocks_of(50, interrupt), PLACES, encode, nowhere, 2)
    assert len(begun) <= 5
    require_at_rest()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return build_checkpoint(tmp_path / "checkpoint")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def test_a_disk_that_fails_in_the_middle_leaves_nothing_behind(
    checkpoint: Path, out: Path, monkeypatch: pytest.MonkeyPatch
):
    write_some = OutputFile._write_some
    n_writes = 0

    def failing(self: OutputFile, offset: int, view: memoryview) -> int:
        nonlocal n_writes
        n_writes += 1
        if n_writes > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_some(self, offset, view)

    monkeypatch.setattr(OutputFile, "_write_some", failing)
    requests = [OutputRequest(out / f"{kind.name}.gguf", kind) for kind in (FileType.Q8_0, FileType.Q4_0)]
    with pytest.raises(OutputError, match="No space left on device"):
        convert_model(checkpoint, requests, ConvertOptions(threads=2))
    assert list(out.iterdir()) == []
    require_at_rest()


@pytest.mark.parametrize("step_bytes", [1, 1 << 40], ids=["early", "at the end"])
@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.EIO, "Check the folder's permissions"), (errno.ENOSPC, "Free some space")], ids=str
)
def test_what_does_not_reach_the_disk_is_an_error(
    number: int, remedy: str, step_bytes: int, checkpoint: Path, out: Path, monkeypatch: pytest.MonkeyPatch
):
    """A quota, or a server's disk, may be met no sooner."""

    def broken(fd: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(early_sync, "_STEP_BYTES", step_bytes)
    monkeypatch.setattr(os, "fdatasync", broken, raising=False)
    with pytest.raises(OutputError, match=rf"a\.gguf cannot be written: {os.strerror(number)}") as caught:
        convert_model(checkpoint, [OutputRequest(out / "a.gguf", FileType.Q8_0)])
    assert caught.value.remedy.startswith(remedy)
    assert list(out.iterdir()) == []
    require_at_rest()


def test_a_disk_that_falls_behind_stops_the_writer(out: Path, monkeypatch: pytest.MonkeyPatch):
    """Or all would seem done while most of it is still to be written."""
    monkeypatch.setattr(early_sync, "_STEP_BYTES", 10)
    disk_goes_on = threading.Event()
    synced: list[OutputFile] = []

    def sync_data(self: OutputFile) -> None:
        assert disk_goes_on.wait(LIMIT_S)
        synced.append(self)

    monkeypatch.setattr(OutputFile, "sync_data", sync_data)
    handed_over: list[int] = []
    with OutputFile(out / "a.gguf", 100, overwrite=False) as output:
        sync = EarlySync([output])

        def write() -> None:
            for number in range(6):
                sync.written(0, 5)
                handed_over.append(number)

        writing = threading.Thread(target=write)
        writing.start()
        wait_until(lambda: len(handed_over) == 5)
        time.sleep(0.05)
        assert len(handed_over) == 5, "10 bytes are being synced, and 20 more would be two steps"
        disk_goes_on.set()
        writing.join(LIMIT_S)
        sync.finish()
        sync.close()
    assert len(synced) == 3
    assert sync.waited.seconds > 0.04
    require_at_rest()


def test_a_source_that_leaves_something_out_makes_no_file(checkpoint: Path, out: Path, monkeypatch: pytest.MonkeyPatch):
    whole = CheckpointSource.read_blocks

    def all_but_one(self: CheckpointSource, *arguments: object) -> Iterator[Block]:
        blocks = whole(self, *arguments)  # type: ignore[arg-type]
        next(blocks)
        yield from blocks

    monkeypatch.setattr(CheckpointSource, "read_blocks", all_but_one)
    with pytest.raises(AssertionError, match="left something out"):
        convert_model(checkpoint, [OutputRequest(out / "a.gguf", FileType.Q8_0)])
    assert list(out.iterdir()) == []
    require_at_rest()


class FinishesLate(Future[int]):
    """Is finished just after a wait for it gave up."""

    def result(self, timeout: float | None = None) -> int:
        if timeout is not None and not self.done():
            self.set_result(7)
            raise TimeoutError
        return super().result(timeout)


def test_a_wait_that_gives_up_is_no_error_of_the_work():
    future = FinishesLate()
    timer = threading.Timer(0.05, lambda: future.done() or future.set_result(7))
    timer.start()
    assert wait(future) == 7
    timer.join()
    failed: Future[int] = Future()
    failed.set_exception(TimeoutError("of the work"))
    with pytest.raises(TimeoutError, match="of the work"):
        wait(failed)


def test_the_time_of_a_run_begins_with_its_first_stage(checkpoint: Path, out: Path):
    """It compiles in between, on a new machine."""

    def slow_check(progress: Progress) -> None:
        if progress.stage == "check":
            time.sleep(0.3)

    (result,) = convert_model(checkpoint, [OutputRequest(out / "a.gguf", FileType.Q4_0)], None, slow_check)
    assert result.elapsed_s > 0.3


# --- whose encoder ---


@pytest.mark.parametrize("threads", [1, 3])
def test_the_given_encoder_makes_the_bytes(threads: int, checkpoint: Path, out: Path):
    """All types go through it; it is handed the rows and the importance."""
    importance = {"blk.0.ffn_up.weight": np.linspace(0.5, 2, 256, dtype=np.float32)}

    def seven(kind: TensorType, rows: Rows, weights: Rows | None) -> NDArray[np.uint8]:
        return ggml.encode(kind, np.full_like(rows, 7 if weights is None else weights[-1]))

    source = open_source(checkpoint, ConvertOptions())
    plans = plan_outputs(
        source, [OutputRequest(out / "a.gguf", FileType.Q8_0, importance=importance)], allow_requantize=False
    )
    encoder = Encoder("seven", seven, ("seven encodes",))
    size = pipeline_size(threads)
    (result,) = write_files(source, plans, encoder, size, Reporter(None), overwrite=False)
    file = read_gguf(out / "a.gguf")
    data = (out / "a.gguf").read_bytes()
    for tensor in file.tensors:
        begin = file.data_offset + tensor.offset
        kind = TensorType[tensor.type_name]
        values = ggml.decode(kind, np.frombuffer(data[begin : begin + tensor.size_bytes], np.uint8), tensor.shape[0])
        expected = 2 if tensor.name == "blk.0.ffn_up.weight" else 7
        assert np.allclose(values, expected, rtol=0.01), tensor.name
    assert result.notices[-1] == "seven encodes"
    assert result.timings is not None
    assert (result.timings.encoder, result.timings.threads) == ("seven", threads)


def test_a_device_gets_more_at_a_time():
    for threads in (1, 2, 16, 512):
        assert pipeline_size(threads, on_device=True).block_weights > pipeline_size(threads).block_weights
        assert 2 * threads * pipeline_size(threads, on_device=True).block_weights <= 256 << 20
