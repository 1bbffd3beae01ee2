"""What may pass is tried again, with pauses, and a cut download goes on from there."""

from __future__ import annotations

import itertools
import re
import socket
from pathlib import Path

import pytest

from tests.model_store.download_fixtures import AGAIN, DATA, PATH, hub_to_fetch_from
from tests.stand_in_hub import Fault, Kind, StandInHub
from zephyr_local.errors import HubError


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hub: StandInHub) -> StandInHub:
    return hub_to_fetch_from(hub, monkeypatch, tmp_path)


PASSING = [
    *(Fault(status=status) for status in (408, 429, 500, 502, 503, 504)),
    Fault(is_dropped=True),
    Fault(is_dropped=True, reset=True),
]


@pytest.mark.parametrize("fault", PASSING)
@pytest.mark.parametrize("kind", [Kind.HEAD, Kind.STORAGE])
def test_what_may_pass_is_tried_again(hub, place, kind, fault):
    hub.fail(kind, [fault, fault])
    assert place.fetch().fetched_bytes == len(DATA)
    assert place.is_whole()
    assert place.pauses == [1.0, 2.0]
    assert len([one for one in place.told if one.trouble]) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_storage_that_refuses_is_asked_again_with_a_fresh_signature(hub, place, status):
    hub.fail(Kind.STORAGE, [Fault(status=status)])
    place.fetch()
    assert len(hub.of_kind(Kind.HEAD)) == 2
    hub.fail(Kind.STORAGE, itertools.repeat(Fault(status=status)))
    place.target.unlink()
    place.fails(HubError, f"cannot be fetched: {re.escape(hub.storage)} answers HTTP {status}")


@pytest.mark.parametrize("fault", [Fault(cut_after=300_000), Fault(silent_after=300_000)])
def test_a_connection_that_is_cut_or_falls_silent_goes_on_from_there(hub, place, fault, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    hub.fail(Kind.STORAGE, [fault])
    done = place.fetch()
    assert (done.fetched_bytes, done.resumed_bytes) == (len(DATA), 0)
    assert hub.of_kind(Kind.STORAGE)[1].range_begin == 300_000
    assert hub.sent_bytes() == len(DATA)
    assert place.is_whole()


def test_a_connection_that_is_reset_goes_on_from_what_had_come(hub, place):
    hub.fail(Kind.STORAGE, [Fault(cut_after=300_000, reset=True)])
    place.fetch()
    assert 0 <= hub.of_kind(Kind.STORAGE)[1].range_begin <= 300_000
    assert place.is_whole()


def test_the_pauses_grow_and_at_the_end_it_says_what_is_there(hub, place):
    place.attempts = 8
    hub.fail(Kind.STORAGE, itertools.chain([Fault(cut_after=300_000)], itertools.repeat(Fault(status=503))))
    text = place.fails(HubError, f"{PATH} cannot be fetched whole: .*HTTP 503; 300000 bytes of 1.0 MB are here")
    assert text.endswith(f"Try again later; {AGAIN}.")
    assert place.pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0]
    assert place.partial == DATA[:300_000]
    hub.fail(Kind.STORAGE, [])
    assert place.fetch().resumed_bytes == 300_000


def test_each_new_byte_gives_new_patience(hub, place):
    hub.fail(Kind.STORAGE, [Fault(cut_after=30_000)] * 20)
    assert place.fetch().fetched_bytes == len(DATA)
    assert place.pauses == [1.0] * 20
    assert hub.sent_bytes() == len(DATA)


def test_a_server_that_begins_anew_and_is_always_cut_is_given_up(hub, place):
    hub.fail(Kind.STORAGE, itertools.repeat(Fault(ignores_range=True, cut_after=400_000)))
    place.fails(HubError, "was cut")
    assert len(hub.of_kind(Kind.STORAGE)) == 1 + place.attempts - 1
    assert place.partial == DATA[:400_000]


def test_a_storage_that_asks_for_a_pause_gets_it_and_too_long_a_one_is_told(hub, place):
    hub.fail(Kind.HEAD, [Fault(status=429, headers={"Retry-After": "33"})])
    place.fetch()
    assert place.pauses == [33.0]
    place.target.unlink()
    hub.fail(Kind.HEAD, [Fault(status=429, headers={"Retry-After": "4000"})])
    place.fails(HubError, r"asked too often \(HTTP 429\) and asks for a pause of 4000 s")
    assert place.pauses == [33.0]


def test_no_connection_keeps_what_is_there(hub, place):
    place.lay(DATA[:400_000])
    with socket.create_server(("127.0.0.1", 0)) as server:
        hub.storage_url = f"http://127.0.0.1:{server.getsockname()[1]}"
    text = place.fails(HubError, f"no connection to {hub.storage_url}: Connection refused; 400000 bytes of 1.0 MB")
    assert "HTTPS_PROXY; the same command" in text
    assert place.partial == DATA[:400_000]
