"""One file from a hub is whole or absent, on any disk. The client is the real one, the hub a stand-in."""

from __future__ import annotations

import itertools
import os
import re
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from tests.model_store.download_fixtures import DATA, PATH, SMALL, hub_to_fetch_from
from tests.model_store.hub_fixtures import NAME, TOKEN
from tests.stand_in_hub import Fault, Kind, StandInHub, git_blob, sha256
from zephyr_local.errors import HubError, OutputError
from zephyr_local.model_store.download import Downloaded
from zephyr_local.model_store.hub import HubFile, read_snapshot


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hub: StandInHub) -> StandInHub:
    return hub_to_fetch_from(hub, monkeypatch, tmp_path)


def test_a_large_file_comes_from_the_storage_and_nothing_else_is_left(hub, place):
    done = place.fetch()
    assert done == Downloaded(place.target, sha256(DATA), len(DATA), len(DATA), 0)
    assert place.is_whole()
    assert [one.kind for one in hub.served] == [Kind.INFO, Kind.TREE, Kind.HEAD, Kind.STORAGE]
    assert hub.sent_bytes() == len(DATA)


def test_the_token_goes_to_the_hub_and_not_to_the_storage(hub, place):
    place.fetch()
    for one in hub.served:
        assert one.headers.get("authorization") == (None if one.kind is Kind.STORAGE else f"Bearer {TOKEN}")


def test_the_token_does_not_come_back_on_a_way_that_leads_elsewhere_and_home(hub, place):
    with StandInHub() as other:
        home = f"{hub.url}/{NAME}/resolve/main/{PATH}"
        other.fail(Kind.OTHER, [Fault(status=302, headers={"Location": home})])
        hub.fail(Kind.HEAD, [Fault(status=302, headers={"Location": f"{other.url}/elsewhere"})])
        place.fetch()
        assert [(one.kind, "authorization" in one.headers) for one in other.served] == [(Kind.OTHER, False)]
    ours = [one for one in hub.served if one.kind is Kind.FILE]
    assert ours
    assert all("authorization" not in one.headers for one in ours)
    assert place.is_whole()


@pytest.mark.parametrize("path", ["config.json", "ü ber/a+b#c?.txt"])
def test_a_small_file_is_checked_by_gits_digest(hub, place, path):
    done = place.fetch(path)
    assert done == Downloaded(place.target, sha256(SMALL), len(SMALL), len(SMALL), 0)
    assert place.target.read_bytes() == SMALL
    assert place.left() == []


def test_a_small_file_that_is_wrong_is_refused(hub, place):
    hub.fail(Kind.FILE, itertools.repeat(Fault(body=SMALL.upper())))
    with pytest.raises(HubError, match="another git digest than the hub promises"):
        place.fetch("config.json")
    assert not place.target.exists()
    assert place.left() == []


def test_an_empty_file_needs_no_request(hub, place):
    assert place.fetch("folder/empty").size_bytes == 0
    assert place.target.read_bytes() == b""
    assert {one.kind for one in hub.served} == {Kind.INFO, Kind.TREE}


def test_what_is_there_is_not_fetched(hub, place):
    place.fetch()
    before = len(hub.served)
    assert place.fetch() == Downloaded(place.target, sha256(DATA), len(DATA), 0, 0)
    assert len(hub.served) == before


def test_what_a_kill_after_the_renaming_left_is_cleared_away(hub, place):
    place.fetch()
    (place.partials / f"{sha256(DATA)}.json").write_text("{}")
    (place.partials / f"{sha256(DATA)}.lock").write_text("123")
    place.fetch()
    assert place.left() == []


@pytest.mark.parametrize("old", [b"old", DATA[:-1] + b"\0"])
def test_another_file_at_the_name_is_replaced_only_by_a_whole_one(hub, place, old):
    place.target.parent.mkdir(parents=True)
    place.target.write_bytes(old)
    hub.fail(Kind.STORAGE, [Fault(flip_at=5), Fault(flip_at=5)])
    place.fails(HubError, "came twice with another SHA-256")
    assert place.target.read_bytes() == old
    place.fetch()
    assert place.is_whole()


def test_too_full_a_disk_is_found_before_anything_is_fetched(hub, place):
    place.snapshot = replace(read_snapshot(NAME), files=(HubFile(PATH, 1 << 50, sha256(DATA), None),))
    place.lay(DATA[:1000])
    before = len(hub.served)
    text = place.fails(OutputError, r"GB free; 1125899\.91 GB are still to come, and 67\.1 MB stay free, so .* missing")
    assert str(place.partials) in text
    assert len(hub.served) == before
    assert place.partial == DATA[:1000]


def test_a_target_that_cannot_be_is_found_before_anything_is_fetched(hub, place):
    place.snapshot = read_snapshot(NAME)
    place.target.mkdir(parents=True)
    place.fails(OutputError, "is a folder")
    place.target.rmdir()
    place.target.parent.rmdir()
    place.target.parent.write_text("a file")
    place.fails(OutputError, "is not a folder")
    assert {one.kind for one in hub.served} == {Kind.INFO, Kind.TREE}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="may write everywhere")
def test_a_folder_that_may_not_be_written_is_found_before_anything_is_fetched(hub, place):
    place.snapshot = read_snapshot(NAME)
    place.target.parent.mkdir(parents=True)
    place.target.parent.chmod(0o500)
    place.fails(OutputError, "cannot be written")
    assert {one.kind for one in hub.served} == {Kind.INFO, Kind.TREE}


def test_partial_files_that_cannot_be_written_are_an_error_of_the_output(hub, place):
    place.partials.parent.mkdir(parents=True)
    place.partials.write_text("a file")
    place.fails(OutputError, re.escape(f"{place.partials} cannot be written"))


def test_a_target_on_another_disk_is_whole_or_absent_too(hub, place, tmp_path):
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system to write to")
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        place.target = Path(folder) / "new" / PATH
        place.fetch()
        assert place.is_whole()
        assert [path.name for path in place.target.parent.iterdir()] == [PATH]


def test_the_digest_of_a_blob_is_gits():
    # git hash-object of an empty file, and of "hello\n"
    assert git_blob(b"") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    assert git_blob(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_a_whole_file_in_a_place_that_cannot_be_written_is_enough(hub, place):
    place.fetch()
    place.partials.rmdir()
    place.partials.write_text("no folder")
    assert place.fetch().fetched_bytes == 0
