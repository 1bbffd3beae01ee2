"""A hub that has not what is asked for, does not answer or answers oddly: what passes, and what is told."""

from __future__ import annotations

import itertools
import re
import socket
from pathlib import Path

import pytest

from tests.model_store.hub_fixtures import BIG, NAME, TOKEN, hub_to_list, patience, read
from tests.stand_in_hub import Fault, Kind, StandInHub
from zephyr_local.errors import HubError, ModelNotFoundError
from zephyr_local.model_store.hub import read_snapshot
from zephyr_local.model_store.hub_problems import PassingError, Patience


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hub: StandInHub) -> StandInHub:
    return hub_to_list(hub, monkeypatch, tmp_path)


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


def test_patience_ends():
    pauses: list[float] = []

    def attempt() -> None:
        raise PassingError("it is so", "Do this")

    with pytest.raises(HubError, match=r"it is so\. Do this\."):
        Patience(attempts=9, longest_pause_s=20.0, wait=pauses.append).persist(attempt)
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 20.0, 20.0, 20.0]
