"""A download goes on from the bytes that came before, and takes no others than it asked for."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.model_store.download_fixtures import AGAIN, DATA, PATH, hub_to_fetch_from
from tests.model_store.hub_fixtures import NAME
from tests.stand_in_hub import Fault, Kind, StandInHub
from zephyr_local.errors import HubError, OfflineError
from zephyr_local.model_store.hub import read_snapshot


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hub: StandInHub) -> StandInHub:
    return hub_to_fetch_from(hub, monkeypatch, tmp_path)


@pytest.mark.parametrize("n_bytes", [1, 65_536, 999_999, len(DATA) - 1])
def test_what_came_before_is_not_fetched_again(hub, place, n_bytes):
    place.lay(DATA[:n_bytes])
    done = place.fetch()
    assert (done.fetched_bytes, done.resumed_bytes) == (len(DATA) - n_bytes, n_bytes)
    assert [one.headers["range"] for one in hub.of_kind(Kind.STORAGE)] == [f"bytes={n_bytes}-"]
    assert hub.sent_bytes() == len(DATA) - n_bytes
    assert place.is_whole()


def test_all_that_came_before_a_kill_is_put_in_place_without_the_network(hub, place, monkeypatch):
    place.snapshot = read_snapshot(NAME)
    place.lay(DATA)
    monkeypatch.setenv("ZEPHYR_LOCAL_OFFLINE", "1")
    before = len(hub.served)
    assert (place.fetch().fetched_bytes, place.told[-1].done_bytes) == (0, len(DATA))
    assert len(hub.served) == before
    assert place.is_whole()


def test_offline_nothing_is_asked_and_what_is_there_is_kept(hub, place, monkeypatch):
    place.snapshot = read_snapshot(NAME)
    place.lay(DATA[:1000])
    monkeypatch.setenv("ZEPHYR_LOCAL_OFFLINE", "1")
    before = len(hub.served)
    place.fails(OfflineError, "fetching model.Q4_K_M.gguf of stand/in-GGUF needs the network")
    assert len(hub.served) == before
    assert place.partial == DATA[:1000]


def test_more_bytes_than_the_file_has_are_no_beginning_of_it(hub, place):
    place.lay(DATA + b"\0")
    assert (place.fetch().fetched_bytes, place.is_whole()) == (len(DATA), True)


@pytest.mark.parametrize("n_bytes", [500_000, len(DATA)])
def test_a_beginning_that_is_wrong_is_found_out_and_all_is_fetched_once(hub, place, n_bytes):
    place.lay(b"\0" + DATA[1:n_bytes])
    done = place.fetch()
    assert (done.fetched_bytes, done.resumed_bytes) == (2 * len(DATA) - n_bytes, 0)
    assert place.is_whole()


def test_the_same_file_of_another_repository_and_commit_goes_on(hub, place):
    place.lay(DATA[:400_000])
    hub.add("other/copy", {"renamed.gguf": DATA})
    assert place.fetch("renamed.gguf", "other/copy").resumed_bytes == 400_000
    assert place.is_whole()


def test_a_server_without_ranges_begins_anew(hub, place):
    place.lay(DATA[:400_000])
    hub.fail(Kind.STORAGE, [Fault(ignores_range=True)])
    done = place.fetch()
    assert (done.fetched_bytes, done.resumed_bytes) == (len(DATA), 0)
    assert place.pauses == []
    assert place.is_whole()


def test_a_range_that_is_refused_leads_to_the_whole(hub, place):
    place.lay(DATA[:400_000])
    hub.fail(Kind.STORAGE, [Fault(status=416, headers={"Content-Range": "bytes */5"})])
    assert place.fetch().fetched_bytes == len(DATA)
    assert [one.headers.get("range") for one in hub.of_kind(Kind.STORAGE)] == ["bytes=400000-", None]
    assert place.is_whole()


@pytest.mark.parametrize(
    "content_range",
    [
        f"bytes 399999-{len(DATA) - 1}/{len(DATA)}",
        f"bytes 0-{len(DATA) - 1}/{len(DATA)}",
        f"bytes 400000-{len(DATA) - 1}/{len(DATA) + 1}",
        f"bytes 400000-{len(DATA) - 1}",
        f"400000-{len(DATA) - 1}/{len(DATA)}",
        "bytes */5",
        "bytes 400000-" + "9" * 5000 + "/*",
        "",
    ],
)
def test_another_range_than_the_one_asked_for_is_not_taken(hub, place, content_range):
    place.lay(DATA[:400_000])
    wrong = Fault(headers={"Content-Range": content_range})
    hub.fail(Kind.STORAGE, itertools.repeat(wrong))
    text = place.fails(HubError, "sends another range than the one that was asked for")
    assert text.endswith(f"{AGAIN}.")
    assert place.partial == DATA[:400_000]
    hub.fail(Kind.STORAGE, [wrong])
    assert place.fetch().resumed_bytes == 400_000
    assert place.is_whole()


def test_a_range_whose_total_is_not_told_is_taken(hub, place):
    place.lay(DATA[:400_000])
    hub.fail(Kind.STORAGE, [Fault(headers={"Content-Range": f"bytes 400000-{len(DATA) - 1}/*"})])
    assert place.fetch().resumed_bytes == 400_000


def test_a_shorter_range_than_asked_for_is_taken_and_gone_on_from(hub, place):
    place.lay(DATA[:400_000])
    part = DATA[400_000:600_000]
    hub.fail(Kind.STORAGE, [Fault(body=part, headers={"Content-Range": f"bytes 400000-599999/{len(DATA)}"})])
    assert place.fetch().fetched_bytes == len(DATA) - 400_000
    assert place.is_whole()


@pytest.mark.parametrize("there", [0, 400_000])
@pytest.mark.parametrize("fault", [Fault(extra_bytes=1), Fault(extra_bytes=100_000), Fault(is_endless=True)])
def test_more_than_was_promised_is_cut_off_and_nothing_of_it_is_kept(hub, place, there, fault):
    if there:
        place.lay(DATA[:there])
    hub.fail(Kind.STORAGE, itertools.repeat(fault))
    place.fails(HubError, f"sends more of {PATH} than its {len(DATA)} bytes")
    assert place.partial == (DATA[:there] if there else None)
    assert len(hub.of_kind(Kind.STORAGE)) == 1
    hub.fail(Kind.STORAGE, [])
    place.fetch()
    assert place.is_whole()


def test_a_page_that_asks_for_a_log_in_is_no_file(hub, place):
    place.lay(DATA[:400_000])
    portal = Fault(status=200, body=b"<html>Welcome to the hotel</html>")
    hub.fail(Kind.STORAGE, [portal])
    place.fetch()
    assert place.is_whole()
    assert hub.of_kind(Kind.STORAGE)[-1].range_begin == 400_000


def test_what_comes_compressed_is_not_taken(hub, place):
    hub.fail(Kind.STORAGE, itertools.repeat(Fault(headers={"Content-Encoding": "gzip"})))
    place.fails(HubError, "compresses")
    assert {one.headers["accept-encoding"] for one in hub.of_kind(Kind.STORAGE)} == {"identity"}
    assert place.left() == []
