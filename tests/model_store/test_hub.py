"""Asking a hub what it has: names, listings, errors, and what never leaves or is shown. The client is the real one."""

from __future__ import annotations

import itertools
import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from tests.conftest import skip_or_fail
from tests.stand_in_hub import Fault, Kind, StandInHub, git_blob, sha256
from zephyr_local.errors import HubError, InvalidInputError, ModelNotFoundError, OfflineError, ZephyrError
from zephyr_local.model_store.hub import (
    HubFile,
    HubSnapshot,
    check_file_path,
    check_revision,
    parse_repository,
    read_snapshot,
)
from zephyr_local.model_store.hub_problems import PassingError, Patience, quoted

NAME = "stand/in-GGUF"
BIG = bytes(range(256)) * 16
SMALL = b"{}\n"
TOKEN = "hf_valid"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandInHub]:
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        skip_or_fail("huggingface_hub", 'pip install "zephyr-local[hub]"')
    with StandInHub() as stand_in:
        stand_in.add(NAME, {"model.Q4_K_M.gguf": BIG, "folder/config.json": SMALL})
        stand_in.connect(monkeypatch, tmp_path / "hf")
        yield stand_in


def patience(pauses: list[float] | None = None, attempts: int = 3) -> Patience:
    return Patience(attempts=attempts, wait=(pauses if pauses is not None else []).append)


def read(name: str = NAME, revision: str | None = None) -> HubSnapshot:
    return read_snapshot(name, revision, patience=patience())


@pytest.mark.parametrize(
    "name", ["TheBloke/zephyr-7B-beta-GGUF", "a/b", "0/1", "_a/b_", "A.b-c/d.e_f", "o/" + "r" * 96]
)
def test_names_of_repositories_are_taken(name):
    assert parse_repository(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "alone",
        "/b",
        "a/",
        "a/b/c",
        "a/../b",
        "../b",
        "a/..",
        "a/b--c",
        "a/b..c",
        "a/.b",
        "a/b.",
        "a/-b",
        "a/b-",
        "a/b.git",
        "a/b c",
        "a/b\n",
        "a/b\0",
        "a\\b",
        "a/bé",
        "a/b?x=1",
        "a/b#c",
        "a/b@main",
        "a/%2e%2e",
        "https://huggingface.co/a/b",
        "o/" + "r" * 97,
    ],
)
def test_other_names_are_refused_with_an_example(name):
    with pytest.raises(InvalidInputError, match="OWNER/REPO"):
        parse_repository(name)


@pytest.mark.parametrize("path", ["a.gguf", "a/b/c.gguf", "Ünïcode/文件.gguf", "a b.gguf", ".gitattributes", "con-1/x"])
def test_paths_below_a_repository_are_taken(path):
    assert check_file_path(path) == PurePosixPath(path)


HOSTILE_PATHS = [
    "",
    "/etc/passwd",
    "..",
    "../a",
    "a/../../b",
    "a/..",
    ".",
    "./a",
    "a/./b",
    "a//b",
    "a/",
    "a\\b",
    "..\\..\\a",
    "C:/a",
    "C:a",
    "a:stream",
    "a\0b",
    "a\nb",
    "a\x1b[2Jb",
    "a\x7f",
    "\x85",
    "a\u202egguf.exe",
    "a\ud800",
    "CON",
    "con.gguf",
    "a/NUL",
    "aux.tar.gz",
    "LPT1",
    "com¹.txt",
    "CONIN$",
    "nul .txt",
    "a.",
    "a ",
    " a",
    "a./b",
    "ä" * 128,
    "/".join(["a" * 200] * 6),
]


@pytest.mark.parametrize("path", HOSTILE_PATHS)
def test_paths_that_lead_elsewhere_or_are_none_are_refused(path):
    with pytest.raises(InvalidInputError) as caught:
        check_file_path(path)
    assert str(caught.value).isprintable()
    with pytest.raises(HubError, match="the hub lists"):
        check_file_path(path, from_hub=True)


@pytest.mark.parametrize("revision", ["main", "refs/pr/1", "v1.0", "a" * 40])
def test_revisions_are_taken(revision):
    assert check_revision(revision) == revision


@pytest.mark.parametrize("revision", ["", "..", "a..b", "a b", "a\nb", "a?b", "a:b", "a" * 300])
def test_what_is_no_revision_is_refused(revision):
    with pytest.raises(InvalidInputError, match="not a revision"):
        check_revision(revision)


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


def test_a_model_that_is_not_there_looks_as_a_private_one_and_the_error_says_so(hub, monkeypatch):
    hub.add("p/rivate", {"a.gguf": BIG}, is_private=True, members=frozenset({"hf_member"}))
    hub.tokens |= {"hf_member"}
    errors = []
    for name in ("no/where", "p/rivate"):
        with pytest.raises(ModelNotFoundError, match=re.escape(f"{hub.url} has no model {name}")) as caught:
            read(name)
        errors.append(caught.value)
        assert caught.value.exit_code == 3
        assert "HF_TOKEN" in caught.value.remedy
    assert errors[0].remedy == errors[1].remedy
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(ModelNotFoundError, match="account"):
        read("p/rivate")
    monkeypatch.setenv("HF_TOKEN", "hf_member")
    assert read("p/rivate").files


def test_a_revision_that_is_not_there_is_named(hub):
    with pytest.raises(ModelNotFoundError, match=r"stand/in-GGUF has no revision v9") as caught:
        read(revision="v9")
    assert f"{hub.url}/{NAME}" in caught.value.remedy


def test_a_token_that_the_hub_does_not_know_is_refused_and_not_shown(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong_secret")
    with pytest.raises(HubError, match="does not take the token of HF_TOKEN or hf auth login") as caught:
        read()
    assert "hf_wrong_secret" not in str(caught.value)
    assert f"{hub.url}/settings/tokens" in caught.value.remedy


@pytest.mark.parametrize("token", ["hf_ä", "hf_a\x00b"])
def test_a_token_that_no_header_can_have_is_refused_and_not_shown(hub, token):
    from huggingface_hub import constants

    path = Path(constants.HF_TOKEN_PATH)
    path.parent.mkdir()
    path.write_text(token)
    with pytest.raises(HubError, match="characters that no token has") as caught:
        read()
    assert token not in str(caught.value)
    assert hub.served == []


def test_a_token_file_that_cannot_be_read_is_an_error_of_the_hub(hub):
    from huggingface_hub import constants

    path = Path(constants.HF_TOKEN_PATH)
    path.mkdir(parents=True)
    with pytest.raises(HubError, match="finds no token"):
        read()


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 529])
def test_what_may_pass_is_tried_again_with_longer_pauses_and_then_named(hub, status):
    pauses: list[float] = []
    hub.fail(Kind.INFO, itertools.repeat(Fault(status=status)))
    with pytest.raises(HubError, match=rf"{re.escape(hub.url)} .*HTTP {status}") as caught:
        read_snapshot(NAME, patience=patience(pauses, attempts=4))
    assert pauses == [1.0, 2.0, 4.0]
    assert caught.value.exit_code == 7
    hub.fail(Kind.INFO, [Fault(status=status), None])
    assert read().files


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Retry-After": "17"}, 17.0),
        ({"RateLimit": '"api";r=0;t=55', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}, 55.0),
        ({"RateLimit": '"api";r=3;t=55'}, 1.0),
        ({"Retry-After": "soon"}, 1.0),
        ({"Retry-After": "-5"}, 1.0),
        ({"Retry-After": "nan"}, 1.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 1.0),
        ({}, 1.0),
    ],
)
def test_a_hub_that_asks_for_a_pause_gets_it(hub, headers, expected):
    pauses: list[float] = []
    hub.fail(Kind.INFO, [Fault(status=429, headers=headers)])
    read_snapshot(NAME, patience=patience(pauses))
    assert pauses == [expected]


def test_a_hub_that_asks_for_too_long_a_pause_is_not_waited_for(hub):
    pauses: list[float] = []
    hub.fail(Kind.INFO, [Fault(status=429, headers={"Retry-After": "3600"})])
    with pytest.raises(HubError, match="asks for a pause of 3600 s"):
        read_snapshot(NAME, patience=patience(pauses))
    assert pauses == []


@pytest.mark.parametrize(
    "fault", [Fault(cut_after=10), Fault(cut_after=0, reset=True), Fault(cut_after=40, reset=True)]
)
@pytest.mark.parametrize("kind", [Kind.INFO, Kind.TREE])
def test_a_cut_answer_is_asked_for_again(hub, kind, fault):
    hub.fail(kind, [fault])
    assert len(read().files) == 2
    assert len(hub.of_kind(kind)) == 2


def test_a_hub_that_says_nothing_is_not_waited_for(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    hub.fail(Kind.INFO, itertools.repeat(Fault(silent_after=5)))
    with pytest.raises(HubError, match="sends nothing") as caught:
        read_snapshot(NAME, patience=patience(attempts=2))
    assert "HF_HUB_DOWNLOAD_TIMEOUT" in caught.value.remedy


def test_no_connection_is_told_with_the_endpoint_and_the_reason(hub, monkeypatch):
    from huggingface_hub import constants

    with socket.create_server(("127.0.0.1", 0)) as server:
        free = f"http://127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", free)
    with pytest.raises(HubError, match=re.escape(f"no connection to {free}: Connection refused")):
        read()
    monkeypatch.setattr(constants, "ENDPOINT", "http://no-such-host.invalid")
    with pytest.raises(HubError, match=r"no connection to http://no-such-host\.invalid: its name is not known"):
        read()


@pytest.mark.parametrize(
    "endpoint", ["huggingface.co", "ftp://host", "https://", "http://[::1", "http://h:port", "\x1b[2J"]
)
def test_an_endpoint_that_is_no_address_is_refused(hub, monkeypatch, endpoint):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    with pytest.raises(HubError, match="HF_ENDPOINT"):
        read()


def test_an_endpoints_password_is_not_shown(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url.replace("http://", "http://user:secret@"))
    with pytest.raises(ZephyrError) as caught:
        read("no/where")
    assert "secret" not in str(caught.value)
    assert hub.url in str(caught.value)


@pytest.mark.parametrize(
    "location", ["http://[::1", "ftp://host/x", "http://127.0.0.1:99999/x", "http://", "//", "\u00ff"]
)
def test_a_redirect_to_no_address_is_an_error_of_the_hub(hub, location):
    hub.fail(Kind.INFO, itertools.repeat(Fault(status=302, headers={"Location": location})))
    with pytest.raises(HubError):
        read()


def test_redirects_in_a_circle_end(hub):
    hub.fail(Kind.INFO, itertools.repeat(Fault(status=302, headers={"Location": f"/api/models/{NAME}"})))
    with pytest.raises(HubError, match="from one address to the next"):
        read()
    assert len(hub.served) < 20


def test_the_token_goes_to_the_hub_and_not_to_where_it_redirects(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    read()
    assert {one.headers["authorization"] for one in hub.served} == {f"Bearer {TOKEN}"}
    with StandInHub() as other:
        other.add(NAME, {"a.gguf": BIG})
        hub.fail(Kind.INFO, [Fault(status=302, headers={"Location": f"{other.url}/api/models/{NAME}"})])
        with pytest.raises(ZephyrError):  # the commit is the other's
            read()
        assert other.served
        assert all("authorization" not in one.headers for one in other.served)


def test_only_what_is_needed_is_asked_and_nothing_is_reported(hub):
    read()
    assert [one.kind for one in hub.served] == [Kind.INFO, Kind.TREE]
    agents = {one.headers["user-agent"] for one in hub.served}
    assert len(agents) == 1
    assert re.fullmatch(r"zephyr-local/\S+; hf_hub/\S+; python/\S+", agents.pop())


@pytest.mark.parametrize("variable", ["ZEPHYR_LOCAL_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_nothing_is_asked(hub, monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    with pytest.raises(OfflineError, match=variable):
        read()
    assert hub.served == []


def test_offline_as_the_library_read_it_is_an_offline_error_too(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OfflineError, match="TRANSFORMERS_OFFLINE"):
        read()
    assert hub.served == []


def test_what_a_server_says_is_cleaned():
    said = "No hf_secret at https://cdn.x/y?X-Amz-Signature=abc&b=c now\x1b[2J\r\n" + "z" * 500
    cleaned = quoted(said, "hf_secret")
    assert cleaned.startswith("No … at https://cdn.x/y now [2J z")
    assert cleaned.isprintable()
    assert len(cleaned) == 201


def test_patience_ends():
    pauses: list[float] = []

    def attempt() -> None:
        raise PassingError("it is so", "Do this")

    with pytest.raises(HubError, match=r"it is so\. Do this\."):
        Patience(attempts=9, longest_pause_s=20.0, wait=pauses.append).persist(attempt)
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 20.0, 20.0, 20.0]


def run(hub: StandInHub, tmp_path: Path, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script],
        env=hub.environment(tmp_path / "hf", **environment),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_importing_the_module_imports_no_client(hub, tmp_path):
    script = (
        "import sys, zephyr_local.model_store.download\n"
        "assert not {'huggingface_hub', 'httpx2', 'tqdm'} & {name.partition('.')[0] for name in sys.modules}"
    )
    done = run(hub, tmp_path, script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


READ = f"""
from zephyr_local.errors import ZephyrError
from zephyr_local.model_store.hub import read_snapshot
from zephyr_local.model_store.hub_problems import Patience
try:
    print(len(read_snapshot({NAME!r}, patience=Patience(attempts=3, wait=lambda s: None)).files))
except ZephyrError as error:
    print(type(error).__name__, error)
"""


def test_a_process_of_its_own_asks_quietly(hub, tmp_path):
    warning = Fault(status=503, headers={"X-HF-Warning": "topic; the token is hf_valid"})
    hub.fail(Kind.INFO, [warning])
    hub.fail(Kind.TREE, [warning])
    done = run(hub, tmp_path, READ, HF_TOKEN=TOKEN)
    assert (done.returncode, done.stdout, done.stderr) == (0, "2\n", "")
    assert [one.kind for one in hub.served] == [Kind.INFO, Kind.INFO, Kind.TREE, Kind.TREE]
    assert not (tmp_path / "hf").exists()  # nothing is cached or noted down


def test_a_variable_that_is_no_number_is_named(hub, tmp_path):
    done = run(hub, tmp_path, READ, HF_HUB_DOWNLOAD_TIMEOUT="long")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("HubError ")
    assert "HF_HUB_DOWNLOAD_TIMEOUT" in done.stdout


def test_without_the_package_the_error_says_what_to_install(hub, tmp_path):
    done = run(hub, tmp_path, "import sys\nsys.modules['huggingface_hub'] = None\n" + READ)
    assert (done.returncode, done.stderr) == (0, "")
    assert 'pip install "zephyr-local[hub]"' in done.stdout
