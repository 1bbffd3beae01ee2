"""`pull` of what is here already: under another name, damaged, or without a network."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.command import zephyr_local
from tests.cli.conftest import Cli
from tests.cli.pulling import BETA, beta, model, store
from tests.cli.test_pull import KEYS
from tests.gguf_builder import split_model, tiny_model, write_reciting_model
from tests.model_store.store_fixtures import put, put_everywhere, put_in_hub_cache
from tests.stand_in_hub import StandInHub, sha256
from zephyr_local.model_store.library import resolve

RECITED = "All is well that ends well."


def flip(path: Path, *, is_kept_time: bool = True) -> bytes:
    """One bit, as a failing disk does it."""
    real, status = Path(os.path.realpath(path)), path.stat()
    data = bytearray(real.read_bytes())
    data[-100] ^= 4
    real.write_bytes(data)
    moment = status.st_mtime_ns if is_kept_time else status.st_mtime_ns + 10**9
    os.utime(real, ns=(moment, moment))
    return bytes(data)


# --- what is wrong comes again ---


@pytest.mark.parametrize("is_kept_time", [True, False])
def test_what_verify_found_wrong_is_pulled_again(cli: Cli, hub: StandInHub, home: Path, is_kept_time: bool) -> None:
    commit = hub.add(BETA, {beta("Q4_K_M"): model(3)})
    cli("pull", "zephyr-7b-beta:q4_k_m")
    path = store(home) / beta("Q4_K_M")
    flip(path, is_kept_time=is_kept_time)
    for words in ([], [], ["--accept"]):
        line = cli("models", "verify", *words, code=1).out
        assert line.startswith(f"WRONG     {path}: ")
        assert line.endswith(
            f"it must be {sha256(model(3))}; zephyr-local pull hf:{BETA}/{beta('Q4_K_M')}@{commit} fetches it again\n"
        )
    assert cli("pull", "zephyr-7b-beta:q4_k_m", "--dry-run", "--json").json["missing_bytes"] == len(model(3))
    made = cli("pull", f"hf:{BETA}/{beta('Q4_K_M')}@{commit}", "--json").json
    assert (made["was_here"], made["fetched_bytes"], made["paths"]) == (False, len(model(3)), [str(path)])
    assert path.read_bytes() == model(3)
    assert cli("models", "verify").out == f"right     {path}\n"
    assert cli("pull", "zephyr-7b-beta:q4_k_m", "--json").json["was_here"] is True


def test_what_is_wrong_stays_until_the_new_one_is_whole(cli: Cli, hub: StandInHub, home: Path) -> None:
    hub.add(BETA, {beta("Q4_K_M"): model(3)})
    cli("pull", "zephyr-7b-beta:q4_k_m")
    path = store(home) / beta("Q4_K_M")
    damaged = flip(path)
    cli("models", "verify", code=1)
    hub.repositories.clear()
    cli("pull", "zephyr-7b-beta:q4_k_m", code=3)
    assert path.read_bytes() == damaged


def test_a_wrong_file_of_another_tool_is_not_taken_for_the_hubs(cli: Cli, hub: StandInHub, home: Path) -> None:
    theirs = put_in_hub_cache(home / ".cache/huggingface/hub", model(3), BETA, beta("Q4_K_M"))
    hub.add(BETA, {beta("Q4_K_M"): model(3)})
    assert cli("pull", "zephyr-7b-beta:q4_k_m", "--json").json["was_here"] is True
    damaged = flip(theirs)
    for _ in range(2):
        assert "; get it again from where it came\n" in cli("models", "verify", code=1).out
    assert cli("pull", "zephyr-7b-beta:q4_k_m", "--json").json["fetched_bytes"] == len(model(3))
    assert (store(home) / beta("Q4_K_M")).read_bytes() == model(3)
    assert theirs.read_bytes() == damaged


# --- under another name ---


@pytest.mark.parametrize("name", [f"hf:{BETA}:q4_k_m", f"hf:{BETA}/{beta('Q4_K_M')}", "zephyr-7b-beta:q4_k_m", BETA])
@pytest.mark.parametrize("where", ["gpt4all", "another repository", "no place"])
def test_chat_finds_by_its_name_what_lies_here_under_another(
    cli: Cli, hub: StandInHub, home: Path, where: str, name: str
) -> None:
    data = model(4)
    hub.add(BETA, {beta("Q4_K_M"): data})
    if where == "gpt4all":
        path = put_everywhere(home, {"gpt4all": data})["gpt4all"]
    elif where == "another repository":
        hub.add("org/other", {"other.Q4_K_M.gguf": data})
        path = Path(cli("pull", "hf:org/other", "--json").json["paths"][0])
    else:
        path = put(home / "elsewhere/mine.gguf", data)
    cli("models", "verify", path)
    hub.served.clear()
    assert cli("pull", name, "--json").json["paths"] == [str(path)]
    assert hub.sent_bytes() == 0
    assert resolve(name).path == path
    assert cli("models", "show", name, "--json").json["path"] == str(path)
    listed = cli("models", "list", "--json").json["models"]
    assert [one["path"] for one in listed] == [str(path)] * (1 if where == "no place" else 2)
    assert listed[-1]["repository"] == BETA
    cli("pull", name)
    assert len(cli("models", "list", "--json").json["models"]) == len(listed)
    if where != "no place":
        assert "  same file  " in cli("models", "list").out
    path.write_bytes(model(5))  # it is the repository's no longer
    assert all(one["repository"] != BETA for one in cli("models", "list", "--json").json["models"])


def test_a_model_of_two_names_is_one_to_remove(cli: Cli, hub: StandInHub) -> None:
    for repository in ("org/one", "org/two"):
        hub.add(repository, {"zephyr.Q8_0.gguf": model()})
        path = Path(cli("pull", f"hf:{repository}", "--json").json["paths"][0])
    cli("models", "rm", path)
    assert cli("models", "list", "--json").json["models"] == []


def test_parts_under_another_repository_are_found_by_either(cli: Cli, hub: StandInHub) -> None:
    parts = [part.build() for part in split_model(tiny_model(), 5, 12)]
    names = [f"zephyr.Q8_0-{no:05d}-of-00003.gguf" for no in (1, 2, 3)]
    hub.add("org/one", dict(zip(names, parts, strict=True)))
    hub.add("org/two", {f"q8/{name}": part for name, part in zip(names, parts, strict=True)})
    paths = cli("pull", "hf:org/one:q8_0", "--json").json["paths"]
    assert cli("pull", "hf:org/two:q8_0", "--json").json["paths"] == paths
    for name in ("hf:org/two:q8_0", f"hf:org/two/q8/{names[0]}", "org/two"):
        assert str(resolve(name).path) == paths[0]
    Path(paths[2]).write_bytes(b"other")
    with pytest.raises(Exception, match="org/two"):
        resolve("hf:org/two:q8_0")


def test_pull_and_then_chat_with_what_gpt4all_has(
    cli: Cli, hub: StandInHub, hub_environment: dict[str, str], home: Path, tmp_path: Path
) -> None:
    data = write_reciting_model(tmp_path, RECITED).read_bytes()
    cli("models", "verify", put_everywhere(home, {"gpt4all": data})["gpt4all"])
    hub.add("org/zephyr", {"zephyr.Q4_K_M.gguf": data})
    for verb in (["pull"], ["chat", "--prompt", "Is it?", "--temperature", "0"]):
        ran = zephyr_local(*verb, "hf:org/zephyr:q4_k_m", environment=hub_environment)
        assert ran.returncode == 0, ran.stderr
    assert ran.stdout == f"{RECITED}\n"


# --- offline ---


@pytest.mark.parametrize("name", ["zephyr-7b-beta:q4_k_m", "zephyr-7b-beta", f"hf:{BETA}/{beta('Q4_K_M')}", "work"])
def test_offline_what_is_here_is_said_to_be(
    cli: Cli, hub: StandInHub, home: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    commit = hub.add(BETA, {beta("Q4_K_M"): model(3)})
    cli("models", "alias", "work", "zephyr-7b-beta:q4_k_m")
    cli("pull", "zephyr-7b-beta:q4_k_m")
    hub.served.clear()
    monkeypatch.setenv("ZEPHYR_LOCAL_OFFLINE", "1")
    path = store(home) / beta("Q4_K_M")
    assert cli("pull", name).out == (
        f"{path} is here already; nothing was fetched.\nTalk with it: zephyr-local chat {name}\n"
    )
    made = cli("pull", name, "--json").json
    assert list(made) == KEYS
    assert (made["revision"], made["was_here"], made["missing_bytes"]) == (commit, True, 0)
    assert made["files"] == [{"path": beta("Q4_K_M"), "size_bytes": len(model(3)), "sha256": sha256(model(3))}]
    assert cli("pull", f"{name}@{commit}", "--json").json["paths"] == [str(path)]
    for other in ("zephyr-7b-beta:q8_0", f"{name}@v2", "zephyr-7b-alpha"):
        assert f"pull {other} needs the network, and this is offline" in cli("pull", other, code=7).err
    flip(path, is_kept_time=False)
    assert "needs the network" in cli("pull", name, code=7).err
    assert hub.served == []
