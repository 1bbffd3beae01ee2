"""Shards that come in turn, and the first bytes of files: the client is the real one, the hub a stand-in."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.checkpoint_hub import CheckpointHub, shard_bytes
from tests.conftest import skip_or_fail
from tests.stand_in_hub import Fault, Kind, sha256
from zephyr_local.errors import HubError, OfflineError, OutputError
from zephyr_local.model_store import hub_shards
from zephyr_local.model_store.hub import read_snapshot
from zephyr_local.model_store.hub_problems import Patience
from zephyr_local.model_store.hub_shards import HubShards
from zephyr_local.model_store.pull import PullProgress
from zephyr_local.model_store.ranges import read_begin

NAME = "stand/in-model"
SIZES = (300_000, 500_000, 400_000)
FILES = {f"model-{n}.safetensors": random.Random(n).randbytes(size) for n, size in enumerate(SIZES, 1)}
FIRST, SECOND, THIRD = NAMES = tuple(FILES)
PATIENCE = Patience(attempts=3, wait=lambda seconds: None)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[CheckpointHub]:
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        skip_or_fail("huggingface_hub", 'pip install "zephyr-local[hub]"')
    with CheckpointHub() as stand_in:
        stand_in.add(NAME, {**FILES, "small.safetensors": b"small", "empty.safetensors": b""})
        stand_in.connect(monkeypatch, tmp_path / "hf")
        yield stand_in


def supply(folder: Path, on_progress: Callable[[PullProgress], object] | None = None) -> HubShards:
    snapshot = read_snapshot(NAME)
    (folder / "work").mkdir(exist_ok=True)
    return HubShards(snapshot, snapshot.files, folder / "work", folder / ".partial", on_progress)


def wait_until(found: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def here(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "work").iterdir())


# --- the first bytes ---


def begin(name: str, n_bytes: int) -> bytes:
    snapshot = read_snapshot(NAME)
    return read_begin(snapshot, snapshot.file(name), n_bytes, patience=PATIENCE)


def test_no_more_than_the_first_bytes_are_sent(hub):
    assert begin(FIRST, 1000) == FILES[FIRST][:1000]
    assert hub.sent_bytes() == 1000
    assert begin(FIRST, 10**9) == FILES[FIRST]
    assert begin("small.safetensors", 3) == b"sma", "git's own files have no ranges"
    hub.served.clear()
    assert begin("empty.safetensors", 8) == begin(FIRST, 0) == b""
    assert {one.kind for one in hub.served} == {Kind.INFO, Kind.TREE}


def test_a_server_without_ranges_is_left_when_enough_has_come(hub):
    hub.faults_of_begins = [Fault(ignores_range=True)]
    hub.pause_s = 0.001
    assert begin(SECOND, 1000) == FILES[SECOND][:1000]
    assert hub.sent_bytes() < len(FILES[SECOND])


@pytest.mark.parametrize(
    "fault",
    [
        Fault(cut_after=500),
        Fault(is_dropped=True),
        Fault(status=503),
        Fault(status=403),
        Fault(headers={"Content-Range": "bytes 8-1007/300000"}),
        Fault(headers={"Content-Range": "bytes 0-999/300001"}),
        Fault(headers={"Content-Range": None}),
        Fault(headers={"Content-Encoding": "gzip"}),
        Fault(ignores_range=True, body=b"\0" * 2000),
    ],
    ids=lambda fault: str(fault)[6:60],
)
def test_what_goes_wrong_is_tried_again_and_at_last_told(fault, hub):
    hub.faults_of_begins = [fault, fault]
    assert begin(FIRST, 1000) == FILES[FIRST][:1000]
    hub.faults_of_begins = [fault] * 3
    with pytest.raises(HubError) as caught:
        begin(FIRST, 1000)
    assert "X-Amz" not in str(caught.value)


def test_offline_asks_for_no_range(hub, monkeypatch):
    snapshot = read_snapshot(NAME)
    hub.served.clear()
    monkeypatch.setenv("ZEPHYR_LOCAL_OFFLINE", "1")
    with pytest.raises(OfflineError):
        read_begin(snapshot, snapshot.file(FIRST), 8)
    assert hub.served == []


# --- shards in turn ---


def test_a_header_costs_one_request_unless_it_is_long(hub, tmp_path):
    with supply(tmp_path) as shards:
        assert shards.begin(FIRST, 8) == FILES[FIRST][:8]
        assert shards.begin(FIRST, 60_000) == FILES[FIRST][:60_000]
        assert len(hub.of_kind(Kind.STORAGE)) == 1
        assert shards.begin(FIRST, 100_000) == FILES[FIRST][:100_000]
        assert shards.begin(FIRST, 100_000) == FILES[FIRST][:100_000]
        assert len(hub.of_kind(Kind.STORAGE)) == 2


def test_headers_without_an_end_are_refused(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_shards, "_MOST_BEGINS_BYTES", 100_000)
    with supply(tmp_path) as shards:
        shards.begin(FIRST, 8)
        with pytest.raises(HubError, match="the headers of stand/in-model have more than"):
            shards.begin(SECOND, 8)


def test_the_next_shard_comes_while_one_is_read_and_no_other(hub, tmp_path):
    most = 0

    def look() -> None:
        nonlocal most
        most = max(most, shard_bytes(tmp_path, FILES))

    hub.on_piece = look
    with supply(tmp_path) as shards:
        assert shards.order(NAMES) == NAMES
        for name, following in zip(NAMES, (*NAMES[1:], None), strict=True):
            shards.prepare(name)
            assert (tmp_path / "work" / name).read_bytes() == FILES[name]
            if following is not None:
                wait_until((tmp_path / "work" / following).exists)
            time.sleep(0.05)
            assert here(tmp_path) == sorted(filter(None, (name, following)))
            shards.consumed(name, sha256(FILES[name]))
        assert (shards.fetched_bytes, shards.resumed_bytes) == (sum(SIZES), 0)
        assert shards.consumed_names == list(NAMES)
    assert here(tmp_path) == []
    assert most <= max(SIZES[0] + SIZES[1], SIZES[1] + SIZES[2])
    assert hub.sent_bytes() == sum(SIZES)


def test_one_at_a_time_where_there_is_no_room(hub, tmp_path):
    with supply(tmp_path) as shards:
        shards.is_ahead = False
        shards.order(NAMES)
        for name in NAMES:
            shards.prepare(name)
            time.sleep(0.05)
            assert here(tmp_path) == [name]
            shards.consumed(name, sha256(FILES[name]))


def test_what_is_here_comes_first_and_counts(hub, tmp_path):
    with supply(tmp_path) as shards:
        assert shards.needed_bytes(NAMES, ahead=True) == SIZES[1] + SIZES[2]
        assert shards.needed_bytes(NAMES, ahead=False) == SIZES[1]
        (tmp_path / "work" / THIRD).write_bytes(FILES[THIRD])
        (tmp_path / ".partial").mkdir()
        (tmp_path / ".partial" / sha256(FILES[SECOND])).write_bytes(FILES[SECOND][:100_000])
        assert shards.order(NAMES) == (THIRD, SECOND, FIRST)
        assert shards.missing_bytes(NAMES) == sum(SIZES) - SIZES[2] - 100_000
        assert shards.needed_bytes(NAMES, ahead=True) == SIZES[1] + SIZES[2] - (SIZES[2] + 100_000)
        # While the first is read, the part of the second lies there; then the second comes alone.
        assert shards.needed_bytes(NAMES, ahead=False) == 0
        for name in shards.order(NAMES):
            shards.prepare(name)
            shards.consumed(name, sha256(FILES[name]))
        assert shards.fetched_bytes == sum(SIZES) - SIZES[2] - 100_000
        assert shards.resumed_bytes == SIZES[2] + 100_000
    assert hub.whole(FILES[THIRD]) == []


def test_a_shard_from_before_that_is_damaged_comes_again(hub, tmp_path):
    with supply(tmp_path) as shards:
        (tmp_path / "work" / FIRST).write_bytes(bytes(SIZES[0]))
        shards.order(NAMES)
        shards.prepare(FIRST)
        assert (tmp_path / "work" / FIRST).read_bytes() == FILES[FIRST]


def test_what_was_read_otherwise_is_found_out_and_kept(hub, tmp_path):
    with supply(tmp_path) as shards:
        shards.order([FIRST])
        shards.prepare(FIRST)
        with pytest.raises(OutputError, match="was read otherwise than it was written"):
            shards.consumed(FIRST, "0" * 64)
    assert here(tmp_path) == [FIRST]


def test_a_header_that_differs_from_the_shards_is_found_out(hub, tmp_path):
    hub.faults_of_begins = [Fault(flip_at=12)]
    with supply(tmp_path) as shards:
        shards.begin(FIRST, 100)
        shards.order([FIRST])
        with pytest.raises(
            HubError, match=r"the header of model-1\.safetensors of stand/in-model first came otherwise"
        ):
            shards.prepare(FIRST)


def test_how_far_it_is_counts_over_all_shards(hub, tmp_path):
    told: list[PullProgress] = []
    with supply(tmp_path, told.append) as shards:
        shards.is_ahead = False
        shards.order(NAMES)
        for name in NAMES:
            shards.prepare(name)
            shards.consumed(name, sha256(FILES[name]))
    assert {one.total_bytes for one in told} == {sum(SIZES)}
    ends = {one.file: one.done_bytes for one in told}
    assert ends == {FIRST: SIZES[0], SECOND: SIZES[0] + SIZES[1], THIRD: sum(SIZES)}
    assert [one.done_bytes for one in told] == sorted(one.done_bytes for one in told)


def test_leaving_ends_what_comes_and_keeps_it(hub, tmp_path):
    hub.pause_s = 0.02
    with supply(tmp_path) as shards:
        shards.order(NAMES)
        shards.prepare(FIRST)
        wait_until(lambda: sum(one.sent_bytes for one in hub.whole(FILES[SECOND])) > 100_000)
        began = time.monotonic()
    assert time.monotonic() - began < 60
    partial = tmp_path / ".partial" / sha256(FILES[SECOND])
    assert FILES[SECOND].startswith(partial.read_bytes())
    assert 0 < partial.stat().st_size < SIZES[1]
    assert not partial.with_name(f"{partial.name}.lock").exists()


def test_leaving_ends_a_pause_between_two_attempts(hub, tmp_path):
    hub.faults_of = {sha256(FILES[SECOND]): [Fault(status=503, headers={"Retry-After": "250"})]}
    told: list[PullProgress] = []
    with supply(tmp_path, told.append) as shards:
        shards.order(NAMES)
        shards.prepare(FIRST)
        wait_until(lambda: any(one.trouble for one in told))
        began = time.monotonic()
    assert time.monotonic() - began < 60
