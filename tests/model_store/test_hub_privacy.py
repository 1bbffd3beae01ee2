"""What never leaves this machine or is shown, and a process that asks a hub quietly or not at all."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.model_store.hub_fixtures import BIG, NAME, TOKEN, hub_to_list, read
from tests.stand_in_hub import Fault, Kind, StandInHub
from zephyr_local.errors import HubError, OfflineError, ZephyrError
from zephyr_local.model_store.hub_problems import quoted


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hub: StandInHub) -> StandInHub:
    return hub_to_list(hub, monkeypatch, tmp_path)


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


def test_an_endpoints_password_is_not_shown(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url.replace("http://", "http://user:secret@"))
    with pytest.raises(ZephyrError) as caught:
        read("no/where")
    assert "secret" not in str(caught.value)
    assert hub.url in str(caught.value)


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
