"""What counts as offline, and what as this machine."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from zephyr_local.errors import OfflineError
from zephyr_local.offline import HUB_VARIABLE, VARIABLE, go_offline, is_loopback, is_offline, require_online


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch):
    for name in (VARIABLE, HUB_VARIABLE):
        monkeypatch.setenv(name, "")  # and is put back behind each test, also where go_offline sets it


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:8080/v1",
        "http://LocalHost/v1",
        "https://127.0.0.1/v1",
        "http://127.200.3.4:1/v1",
        "http://[::1]:8080/v1",
        "http://[0:0:0:0:0:0:0:1]/v1",
    ],
)
def test_loopback_is_this_machine(url: str):
    assert is_loopback(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://203.0.113.1/v1",
        "http://10.0.0.1/v1",
        "http://0.0.0.0/v1",
        "http://[2001:db8::1]/v1",
        "http://[::]/v1",
        "https://api.openai.com/v1",
        "http://localhost.example.com/v1",
        "http://localhost@203.0.113.1/v1",
        "http://203.0.113.1/v1#@localhost",
        "http://127.0.0.1.example.com/v1",
        "http://this-name-may-resolve-to-loopback/v1",
        "http://127.1/v1",  # which some read as 127.0.0.1, and some as a name
        "http://2130706433/v1",
        "http://0x7f.0.0.1/v1",
        "http://203.0.113.1\\@127.0.0.1/v1",
        "http://local\thost/v1",
        "http://[::1/v1",
        "http:///v1",
        "localhost",
        "",
    ],
)
def test_everything_else_is_beyond_whatever_it_resolves_to(url: str):
    assert not is_loopback(url)


@pytest.mark.parametrize("value", ["1", "true", "YES", " on ", "y", "2"])
def test_ours_says_offline_with_any_value_but_a_no(monkeypatch: pytest.MonkeyPatch, value: str):
    monkeypatch.setenv(VARIABLE, value)
    assert is_offline()


@pytest.mark.parametrize("name", [VARIABLE, HUB_VARIABLE])
@pytest.mark.parametrize("value", ["", "0", "false", "No", "off"])
def test_a_no_is_a_no(monkeypatch: pytest.MonkeyPatch, name: str, value: str):
    monkeypatch.setenv(name, value)
    assert not is_offline()
    require_online("to pull a model")


def test_the_hubs_is_read_as_the_hubs_library_reads_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(HUB_VARIABLE, "true")
    assert is_offline()
    monkeypatch.setenv(HUB_VARIABLE, "y")
    assert not is_offline()


def test_the_variable_that_says_so_is_the_one_that_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VARIABLE, "0")
    monkeypatch.setenv(HUB_VARIABLE, "1")
    with pytest.raises(OfflineError, match=f"pull x needs the network.*{HUB_VARIABLE} is set") as raised:
        require_online("pull x")
    assert raised.value.exit_code == 7


def test_it_reaches_processes_that_are_started_later():
    go_offline()
    code = f"import os; print(os.environ['{VARIABLE}'], os.environ['{HUB_VARIABLE}'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout == "1 1\n"
