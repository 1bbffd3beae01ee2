"""Wrong bytes, another file than the hub listed, and files that nobody may have: none of it is kept."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from tests.model_store.download_fixtures import DATA, PATH, hub_to_fetch_from
from tests.model_store.hub_fixtures import NAME, TOKEN
from tests.stand_in_hub import Fault, Kind, StandInHub
from zephyr_local.errors import HubError, InvalidInputError, ModelNotFoundError
from zephyr_local.model_store.download import download
from zephyr_local.model_store.hub import HubFile, HubSnapshot, read_snapshot


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hub: StandInHub) -> StandInHub:
    return hub_to_fetch_from(hub, monkeypatch, tmp_path)


def test_bytes_that_changed_on_the_way_are_fetched_once_more(hub, place):
    hub.fail(Kind.STORAGE, [Fault(flip_at=777_777)])
    done = place.fetch()
    assert done.fetched_bytes == 2 * len(DATA)
    assert [one.headers.get("range") for one in hub.of_kind(Kind.STORAGE)] == [None, None]
    assert place.is_whole()


def test_a_corrupt_range_is_found_out(hub, place):
    place.lay(DATA[:400_000])
    hub.fail(Kind.STORAGE, [Fault(flip_at=0)])
    place.fetch()
    assert [one.range_begin for one in hub.of_kind(Kind.STORAGE)] == [400_000, 0]
    assert place.is_whole()


def test_bytes_that_are_wrong_twice_are_refused_and_none_are_kept(hub, place):
    place.lay(DATA[:400_000])
    hub.fail(Kind.STORAGE, [Fault(flip_at=1), Fault(flip_at=2)])
    place.fails(
        HubError, f"{PATH} of {NAME} came twice with another SHA-256 than the hub promises; nothing of it is kept"
    )
    assert place.left() == []
    assert not place.target.exists()


@pytest.mark.parametrize(
    ("headers", "what"),
    [
        ({"X-Repo-Commit": "f" * 40}, "commit"),
        ({"X-Linked-Size": "5"}, "size"),
        ({"X-Linked-Etag": f'"{"0" * 64}"'}, "digest"),
        ({"X-Linked-Etag": f'W/"{"0" * 40}"'}, "digest"),
    ],
)
def test_a_hub_that_offers_another_file_than_it_listed_is_refused(hub, place, headers, what):
    place.lay(DATA[:400_000])
    hub.fail(Kind.HEAD, itertools.repeat(Fault(headers=headers)))
    place.fails(HubError, f"offers {NAME}/{PATH} with the {what} .*, and listed it with ")
    assert place.partial == DATA[:400_000]
    assert hub.of_kind(Kind.STORAGE) == []


def test_what_a_mirror_does_not_say_is_not_missed(hub, place):
    hub.fail(Kind.HEAD, [Fault(headers={"X-Repo-Commit": None, "X-Linked-Size": None, "X-Linked-Etag": None})])
    place.fetch()
    assert place.is_whole()
    place.target.unlink()
    odd = {"X-Repo-Commit": "", "X-Linked-Size": "unknown", "X-Linked-Etag": '"d41d8cd98f00b204-12"'}
    hub.fail(Kind.HEAD, [Fault(headers=odd)])
    place.fetch()
    assert place.is_whole()


def test_a_gated_file_names_the_page_where_it_is_opened(hub, place, monkeypatch):
    hub.add(NAME, {PATH: DATA}, is_gated=True, members=frozenset({"hf_member"}))
    hub.tokens |= {"hf_member"}
    place.lay(DATA[:1000])
    monkeypatch.delenv("HF_TOKEN")
    text = place.fails(HubError, f"{NAME} is only for those who accepted its licence")
    assert f"Accept it at {hub.url}/{NAME}, make a token at {hub.url}/settings/tokens, and set HF_TOKEN to it" in text
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    text = place.fails(HubError, "the account of HF_TOKEN is not one of them: Access to model .* is restricted")
    assert f"{hub.url}/{NAME}?" not in text
    assert place.partial == DATA[:1000]
    monkeypatch.setenv("HF_TOKEN", "hf_member")
    assert place.fetch().resumed_bytes == 1000
    assert place.is_whole()


def test_a_file_and_a_commit_that_are_gone_are_named(hub, place):
    place.snapshot = read_snapshot(NAME)
    files = hub.repositories[NAME].commits[place.snapshot.commit]
    del files[PATH]
    place.fails(ModelNotFoundError, f"{NAME} has no file {PATH}")
    del hub.repositories[NAME].commits[place.snapshot.commit]
    place.fails(ModelNotFoundError, f"{NAME} has no revision {place.snapshot.commit}")
    del hub.repositories[NAME]
    place.fails(ModelNotFoundError, f"has no model {NAME}")


def test_a_file_that_the_hub_forbids_says_what_it_says(hub, place):
    said = {"X-Error-Message": f"Enable gated repositories for {TOKEN} at {hub.url}/x?y=1.\x1b[2J"}
    hub.fail(Kind.HEAD, itertools.repeat(Fault(status=403, headers=said)))
    text = place.fails(HubError, "HTTP 403: Enable gated repositories for … at ")
    assert "y=1" not in text


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a\\b", "CON"])
def test_a_file_of_a_hostile_name_is_not_fetched(hub, place, path):
    place.snapshot = replace(read_snapshot(NAME), files=(HubFile(path, 3, "0" * 64, None),))
    with pytest.raises(HubError, match="the hub lists"):
        place.fetch(path)
    assert not place.partials.exists()


@pytest.mark.parametrize("digest", [None, "", "../../x", "0" * 63])
def test_a_file_without_a_digest_is_not_fetched(hub, place, digest):
    place.snapshot = replace(read_snapshot(NAME), files=(HubFile(PATH, 3, digest, None),))
    place.fails(HubError, "gives no digest")
    assert not place.partials.exists()


def test_a_snapshot_made_by_hand_is_checked_as_the_hubs(place):
    file = HubFile("../x", 3, "0" * 64, None)
    snapshot = HubSnapshot("a/b", "main", "0" * 40, (file,), None, False)
    with pytest.raises((HubError, InvalidInputError)):
        download(snapshot, file, place.target, partial_folder=place.partials)
