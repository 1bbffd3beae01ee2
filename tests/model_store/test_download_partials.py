"""Partial files: who holds one, what an interruption leaves, what is told of it, and notes that are damaged."""

from __future__ import annotations

import itertools
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.model_store.download_fixtures import DATA, PATH, hub_to_fetch_from
from tests.model_store.hub_fixtures import NAME, TOKEN
from tests.stand_in_hub import Fault, Kind, StandInHub, sha256
from zephyr_local.errors import HubError, OutputError
from zephyr_local.model_store.download import DownloadProgress, download
from zephyr_local.model_store.file_lock import file_lock
from zephyr_local.model_store.hub import read_snapshot
from zephyr_local.model_store.hub_problems import Patience
from zephyr_local.model_store.partials import amount, list_partials, remove_partial


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hub: StandInHub) -> StandInHub:
    return hub_to_fetch_from(hub, monkeypatch, tmp_path)


def test_a_file_that_this_process_downloads_already_is_refused_at_once(hub, place):
    path = place.lay(DATA[:1000])
    with file_lock(path.with_name(f"{path.name}.lock"), PATH):
        place.fails(OutputError, f"this process downloads {PATH} now")
        with pytest.raises(OutputError):
            remove_partial(list_partials(place.partials)[0])
    assert place.partial == DATA[:1000]
    place.fetch()
    assert place.is_whole()


def test_a_lock_that_a_killed_process_left_holds_nobody_up(hub, place):
    path = place.lay(DATA[:1000])
    path.with_name(f"{path.name}.lock").write_text("1")
    place.fetch()
    assert place.is_whole()


class StopError(Exception):
    """From the one who is told."""


@pytest.mark.parametrize("error", [KeyboardInterrupt, StopError])
def test_an_interrupted_download_goes_on(hub, place, error):
    hub.pause_s = 0.002
    place.snapshot = read_snapshot(NAME)

    def stop(progress: DownloadProgress) -> None:
        if progress.done_bytes > 100_000:
            raise error

    with pytest.raises(error):
        download(
            place.snapshot, place.snapshot.file(PATH), place.target, partial_folder=place.partials, on_progress=stop
        )
    n_bytes = len(place.partial or b"")
    assert 100_000 < n_bytes < len(DATA)
    assert place.partial == DATA[:n_bytes]
    assert place.left() == [sha256(DATA), f"{sha256(DATA)}.json"]
    assert place.fetch().resumed_bytes == n_bytes
    assert place.is_whole()


def test_an_interrupted_pause_goes_on_too(hub, place):
    place.snapshot = read_snapshot(NAME)
    hub.fail(Kind.STORAGE, [Fault(cut_after=300_000)])

    def wait(_seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(
            place.snapshot,
            place.snapshot.file(PATH),
            place.target,
            partial_folder=place.partials,
            patience=Patience(wait=wait),
        )
    assert place.fetch().resumed_bytes == 300_000


def test_progress_is_told_from_what_is_there_to_the_end(hub, place):
    hub.pause_s = 0.02
    place.lay(DATA[:200_000])
    place.fetch()
    done = [one.done_bytes for one in place.told]
    assert done == sorted(done)
    assert done[0] == 200_000
    last = place.told[-1]
    assert (last.done_bytes, last.total_bytes, last.fetched_bytes) == (len(DATA), len(DATA), len(DATA) - 200_000)
    assert (place.told[0].fetched_bytes, place.told[0].rate_bytes_s, place.told[0].left_s) == (0, None, None)
    assert last.rate_bytes_s is not None
    assert 10_000 < last.rate_bytes_s < 10_000_000
    assert last.left_s == 0
    rated = next(one for one in place.told if one.rate_bytes_s)
    assert rated.left_s == pytest.approx((len(DATA) - rated.done_bytes) / (rated.rate_bytes_s or 1))
    assert 5 < len(place.told) < 60


def test_a_partial_file_says_what_it_is_of(hub, place):
    before = datetime.now(UTC).replace(microsecond=0)
    hub.fail(Kind.STORAGE, itertools.chain([Fault(cut_after=300_000)], itertools.repeat(Fault(status=503))))
    place.fails(HubError, "HTTP 503")
    (found,) = list_partials(place.partials)
    assert place.snapshot is not None
    assert (found.repository, found.commit, found.path) == (NAME, place.snapshot.commit, PATH)
    assert (found.size_bytes, found.there_bytes, found.digest) == (len(DATA), 300_000, sha256(DATA))
    assert found.file == place.partials / sha256(DATA)
    assert found.date is not None
    assert before <= found.date <= datetime.now(UTC)
    note = (place.partials / f"{sha256(DATA)}.json").read_text()
    assert "http" not in note
    assert TOKEN not in note
    remove_partial(found)
    assert place.left() == []
    remove_partial(found)


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"null",
        b"[" * 70_000,
        b'{"repository": "../..", "commit": 7, "path": "../x", "size_bytes": -1, "date": "soon"}',
        b'{"repository": null, "path": "a\\u001b[2J", "size_bytes": true, "date": 5}',
        b'{"date": "9999-12-31T23:59:59-23:59"}',
    ],
)
def test_a_damaged_note_is_no_hindrance(hub, place, note):
    path = place.lay(DATA[:1000])
    path.with_name(f"{path.name}.json").write_bytes(note)
    (found,) = list_partials(place.partials)
    assert (found.digest, found.there_bytes, found.file) == (sha256(DATA), 1000, path)
    assert (found.repository, found.commit, found.path, found.size_bytes, found.date) == (None,) * 5
    assert place.fetch().resumed_bytes == 1000
    assert place.is_whole()


def test_partial_files_are_listed_the_latest_first_and_nothing_else_is(place):
    assert list_partials(place.partials) == ()
    for name, date in (
        ("1" * 64, "2024-01-01T00:00:00+00:00"),
        ("2" * 40, "2025-01-01T00:00:00+02:00"),
        ("3" * 64, ""),
    ):
        place.lay(b"").with_name(name).write_bytes(b"x")
        (place.partials / f"{name}.json").write_text(json.dumps({"date": date}))
    place.lay(b"").rename(place.partials / "other")
    (place.partials / f"{'4' * 64}.json").write_text("{}")
    assert [one.digest[0] for one in list_partials(place.partials)] == ["2", "1", "3"]


def test_amounts_are_read_as_a_person_does():
    assert [amount(n) for n in (0, 999_999, 1_000_000, 4_368_439_584)] == [
        "0 bytes",
        "999999 bytes",
        "1.0 MB",
        "4.37 GB",
    ]
