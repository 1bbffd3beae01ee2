"""What a hub lists: commits, files and licences; and listings that cannot be meant. The client is the real one."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from tests.model_store.hub_fixtures import BIG, HOSTILE_PATHS, NAME, SMALL, TOKEN, hub_to_list, read
from tests.stand_in_hub import Fault, Kind, StandInHub, git_blob, sha256
from zephyr_local.errors import HubError, ModelNotFoundError
from zephyr_local.model_store.hub import HubFile


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hub: StandInHub) -> StandInHub:
    return hub_to_list(hub, monkeypatch, tmp_path)


def test_a_snapshot_has_the_commit_and_each_files_size_and_digest(hub):
    snapshot = read()
    assert snapshot.commit == hub.repositories[NAME].branches["main"]
    assert (snapshot.repository, snapshot.revision, snapshot.licence, snapshot.gated) == (NAME, "main", "mit", False)
    assert snapshot.file("model.Q4_K_M.gguf") == HubFile("model.Q4_K_M.gguf", len(BIG), sha256(BIG), None)
    assert snapshot.file("folder/config.json") == HubFile("folder/config.json", 3, None, git_blob(SMALL))
    assert len(snapshot.files) == 2
    with pytest.raises(ModelNotFoundError, match=r"has no file Model\.Q4_K_M\.gguf"):
        snapshot.file("Model.Q4_K_M.gguf")


def test_a_branch_a_tag_and_a_commit_are_each_found(hub):
    first = hub.repositories[NAME].branches["main"]
    second = hub.add(NAME, {"new.gguf": BIG[1:]}, branch="refs/pr/1")
    assert read(revision="refs/pr/1").commit == second
    assert read(revision=first).commit == first
    assert [file.path for file in read(revision=second).files] == ["new.gguf"]


def test_a_branch_that_moves_between_two_answers_is_read_as_it_was(hub):
    before = hub.repositories[NAME].branches["main"]
    moved = itertools.chain(iter(lambda: hub.add(NAME, {"other.gguf": BIG}) and None, 1))
    hub.fail(Kind.TREE, moved)
    snapshot = read()
    assert snapshot.commit == before != hub.repositories[NAME].branches["main"]
    assert {file.path for file in snapshot.files} == {"model.Q4_K_M.gguf", "folder/config.json"}


def test_a_listing_of_many_pages_is_read_to_its_end(hub):
    hub.page_entries = 3
    hub.add("many/files", {f"folder/{number}.txt": b"%d" % number for number in range(20)})
    assert {file.path for file in read("many/files").files} == {f"folder/{number}.txt" for number in range(20)}
    assert len(hub.of_kind(Kind.TREE)) == 7


def test_the_next_page_is_asked_for_at_the_endpoint_wherever_the_hub_says_it_is(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.page_entries = 1
    with StandInHub() as other:
        hub.fail(Kind.TREE, [Fault(headers={"Link": f'<{other.url}/x?recursive=true&cursor=1>; rel="next"'})])
        assert len(read().files) == 2
        assert other.served == []


def test_a_listing_without_an_end_is_refused(hub):
    link = f'<{hub.url}/api/models/{NAME}/tree/main?recursive=true&cursor=0>; rel="next"'
    hub.fail(Kind.TREE, itertools.repeat(Fault(headers={"Link": link})))
    with pytest.raises(HubError, match="without an end"):
        read()
    assert len(hub.of_kind(Kind.TREE)) < 10


def test_a_renamed_repository_is_found_under_its_old_name(hub):
    hub.renamed["old/name"] = NAME
    assert read("old/name").commit == hub.repositories[NAME].branches["main"]


@pytest.mark.parametrize("path", HOSTILE_PATHS)
def test_a_hostile_path_in_a_listing_is_no_file_and_cannot_be_had(hub, path):
    good = {"type": "file", "path": "good.txt", "size": 3, "oid": git_blob(SMALL)}
    hub.listed = [{**good, "path": path}, good]
    snapshot = read()
    assert [file.path for file in snapshot.files] == ["good.txt"]
    assert snapshot.left_out == (path,)
    with pytest.raises(HubError, match="the hub lists"):
        snapshot.file(path)


FILE = {"type": "file", "path": "a.gguf", "size": 3, "oid": git_blob(SMALL)}


@pytest.mark.parametrize(
    "entries",
    [
        [{**FILE, "size": -1}],
        [{**FILE, "size": True}],
        [{**FILE, "size": 1.5}],
        [{**FILE, "size": "3"}],
        [{**FILE, "size": 1 << 60}],
        [{**FILE, "oid": "../../x"}],
        [{**FILE, "oid": "A" * 40}],
        [{**FILE, "oid": None}],
        [{**FILE, "path": None}],
        [{**FILE, "path": ["a"]}],
        [{**FILE, "lfs": {"oid": "0" * 63, "size": 3}}],
        [{**FILE, "lfs": {"oid": "0" * 64 + "/x", "size": 3}}],
        [{**FILE, "lfs": {"oid": "0" * 64, "size": None}}],
        [{**FILE, "lfs": "0" * 64}],
        [FILE, {**FILE, "size": 4}],
        ["a.gguf"],
        [None],
    ],
)
def test_a_listing_that_cannot_be_meant_is_refused(hub, entries):
    hub.listed = entries
    with pytest.raises(HubError, match=r"not understood|lists two files"):
        read()


@pytest.mark.parametrize("body", [b"", b"<html>log in</html>", b"[" * 200_000, b"\xff\xfe", b"nul"])
@pytest.mark.parametrize("kind", [Kind.INFO, Kind.TREE])
def test_what_is_no_json_is_refused(hub, kind, body):
    hub.fail(kind, [Fault(body=body)])
    with pytest.raises(HubError, match="something other than JSON"):
        read()


@pytest.mark.parametrize("value", [None, [], "x", {}, {"sha": None}, {"sha": "main"}, {"sha": "../" * 13 + "a"}])
def test_an_answer_without_a_commit_is_refused(hub, value):
    hub.fail(Kind.INFO, [Fault(body=json.dumps(value).encode())])
    with pytest.raises(HubError, match="names no commit"):
        read()


@pytest.mark.parametrize("value", [None, {}, "x", {"error": "x"}])
def test_a_tree_that_is_no_list_is_refused(hub, value):
    hub.fail(Kind.TREE, [Fault(body=json.dumps(value).encode())])
    with pytest.raises(HubError, match="not understood"):
        read()


def test_an_endless_answer_is_cut_off(hub, monkeypatch):
    monkeypatch.setattr("zephyr_local.model_store.hub_client._MOST_JSON_BYTES", 1 << 20)
    hub.chunk_bytes = 1 << 18
    hub.fail(Kind.INFO, [Fault(is_endless=True)])
    with pytest.raises(HubError, match="answers with more than 1 MiB"):
        read()


@pytest.mark.parametrize(
    ("card", "tags", "expected"),
    [
        ({"license": "apache-2.0"}, [], "apache-2.0"),
        ({"license": "other", "license_name": "llama3.1"}, [], "llama3.1"),
        ({"license": "other"}, [], "other"),
        ({"license": ["mit", "cc-by-4.0"]}, [], "mit, cc-by-4.0"),
        ({}, ["gguf", "license:mit"], "mit"),
        (None, None, None),
        ({"license": 7}, [], None),
        ("x", [7, None], None),
        ({"license": "a\x1b[31mb\n" + "c" * 999}, [], "a [31mb " + "c" * 192 + "…"),
    ],
)
def test_the_licence_is_the_cards_or_the_tags_and_can_be_shown(hub, card, tags, expected):
    hub.repositories[NAME].info = {"cardData": card, "tags": tags}
    assert read().licence == expected


def test_a_gated_repository_can_be_listed_and_says_so(hub):
    hub.add("g/ated", {"a.gguf": BIG}, is_gated=True)
    assert read("g/ated").gated
