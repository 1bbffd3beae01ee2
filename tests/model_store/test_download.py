"""One file from a hub: whole or absent, gone on with, checked. The client is the real one, the hub a stand-in."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.conftest import skip_or_fail
from tests.stand_in_hub import Fault, Kind, StandInHub, git_blob, sha256
from zephyr_local.errors import HubError, InvalidInputError, ModelNotFoundError, OfflineError, OutputError, ZephyrError
from zephyr_local.model_store.download import Downloaded, DownloadProgress, download
from zephyr_local.model_store.file_lock import file_lock
from zephyr_local.model_store.hub import HubFile, HubSnapshot, read_snapshot
from zephyr_local.model_store.hub_problems import Patience
from zephyr_local.model_store.partials import amount, list_partials, remove_partial

NAME = "stand/in-GGUF"
PATH = "model.Q4_K_M.gguf"
DATA = random.Random(7).randbytes(1_000_003)
SMALL = b'{"small": true}\n'
TOKEN = "hf_valid"
SIGNATURE = "secret-of-the-storage"
AGAIN = "the same command goes on from there"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandInHub]:
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        skip_or_fail("huggingface_hub", 'pip install "zephyr-local[hub]"')
    with StandInHub() as stand_in:
        stand_in.add(NAME, {PATH: DATA, "config.json": SMALL, "folder/empty": b"", "ü ber/a+b#c?.txt": SMALL})
        stand_in.connect(monkeypatch, tmp_path / "hf", TOKEN)
        yield stand_in


class Place:
    """Where one test downloads to, and how."""

    def __init__(self, folder: Path) -> None:
        self.partials = folder / "store" / ".partial"
        self.target = folder / "store" / "stand" / "in-GGUF" / PATH
        self.pauses: list[float] = []
        self.told: list[DownloadProgress] = []
        self.attempts = 3
        self.snapshot: HubSnapshot | None = None

    def fetch(self, path: str = PATH, name: str = NAME) -> Downloaded:
        self.snapshot = self.snapshot or read_snapshot(name)
        patience = Patience(attempts=self.attempts, wait=self.pauses.append)
        return download(
            self.snapshot,
            self.snapshot.file(path),
            self.target,
            partial_folder=self.partials,
            on_progress=self.told.append,
            patience=patience,
        )

    def fails(self, kind: type[ZephyrError], pattern: str) -> str:
        """What the error says, which is whole, shown on one line, and tells no secret."""
        with pytest.raises(kind, match=pattern) as caught:
            self.fetch()
        text = str(caught.value)
        assert text.isprintable()
        assert not any(secret in text for secret in (TOKEN, SIGNATURE, "X-Amz"))
        return text

    def lay(self, data: bytes) -> Path:
        """Bytes that came before."""
        self.partials.mkdir(parents=True, exist_ok=True)
        path = self.partials / sha256(DATA)
        path.write_bytes(data)
        return path

    @property
    def partial(self) -> bytes | None:
        path = self.partials / sha256(DATA)
        return path.read_bytes() if path.exists() else None

    def left(self) -> list[str]:
        return sorted(path.name for path in self.partials.iterdir())

    def is_whole(self) -> bool:
        return self.target.read_bytes() == DATA and self.left() == []


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


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


def test_the_digest_of_a_blob_is_gits():
    # git hash-object of an empty file, and of "hello\n"
    assert git_blob(b"") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    assert git_blob(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_a_snapshot_made_by_hand_is_checked_as_the_hubs(place):
    file = HubFile("../x", 3, "0" * 64, None)
    snapshot = HubSnapshot("a/b", "main", "0" * 40, (file,), None, False)
    with pytest.raises((HubError, InvalidInputError)):
        download(snapshot, file, place.target, partial_folder=place.partials)


def test_a_whole_file_in_a_place_that_cannot_be_written_is_enough(hub, place):
    place.fetch()
    place.partials.rmdir()
    place.partials.write_text("no folder")
    assert place.fetch().fetched_bytes == 0
