"""`zephyr-local models`: what is on this machine, and all that is known of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.cli.command import zephyr_local
from tests.cli.conftest import Cli
from tests.cli.pulling import BETA, OWNERS, model, models_toml, one_of_each, store_folder
from tests.gguf_builder import split_model, tiny_model, write_parts
from tests.model_store.store_fixtures import COMMIT, put, put_in_store
from tests.stand_in_hub import StandInHub, sha256
from zephyr_local.data import bundled_model_path
from zephyr_local.memory.plan import readable

MODEL_KEYS = ["name", "type", "path", "owner", "repository", "revision", "sha256", "size_bytes", "files"]
SHOW_KEYS = [
    *MODEL_KEYS,
    *("source", "recorded", "command", "licence", "catalogue", "title", "prompt", "chat", "made", "memory"),
]


# --- list and find ---


def test_models_are_listed_wherever_they_lie(cli: Cli, home: Path) -> None:
    paths = one_of_each(home)
    lines = cli("models", "list").out.splitlines()
    assert lines[0].split() == ["NAME", "TYPE", "SIZE", "WHOSE", "WHERE"]
    assert lines[1].split() == ["zephyr", "163", "kB", "zephyr-local", "org/zephyr-GGUF"]
    assert [re.search(rf" ({'|'.join(OWNERS)}) ", line)[1] for line in lines[1:]] == OWNERS  # type: ignore[index]
    assert lines[4].split()[:2] == ["zephyr-7b-beta.Q4_0", "Q4_0"]
    assert lines[5].endswith("~/.ollama/models/blobs")
    made = cli("models", "list", "--json").json
    assert list(made) == ["models", "aliases", "catalogue", "partial_downloads", "unfinished", "notices"]
    assert [list(found) for found in made["models"]] == [MODEL_KEYS] * len(OWNERS)
    assert {found["owner"]: Path(found["path"]) for found in made["models"]} == paths
    of = {found["owner"]: found for found in made["models"]}
    assert (of["huggingface"]["revision"], of["huggingface"]["sha256"]) == (COMMIT, sha256(model(1)))
    assert (of["gpt4all"]["type"], of["gpt4all"]["repository"], of["gpt4all"]["sha256"]) == ("Q4_0", None, None)
    assert all(found["files"] == [found["path"]] for found in made["models"])


def test_a_machine_without_models_is_told_how_to_get_one(cli: Cli) -> None:
    ran = cli("models", "list")
    assert ran.out == ""
    assert "There are no models on this machine but the bundled zephyr-tiny." in ran.err
    assert "zephyr-7b-beta is not here: zephyr-local pull zephyr-7b-beta\n" in ran.err
    made = cli("models", "list", "--json").json
    assert (made["models"], made["partial_downloads"]) == ([], [])
    assert made["catalogue"][0] == {
        "name": "zephyr-7b-beta",
        "title": made["catalogue"][0]["title"],
        "licence": made["catalogue"][0]["licence"],
        "here": False,
    }


def test_a_name_cannot_move_the_cursor_or_make_a_second_line(cli: Cli, home: Path) -> None:
    name = "a\n\x1b[2Jzephyr-7b-beta\t\x9b1m\u202eb"
    path = put_in_store(store_folder(home), model(), file=f"{name}.gguf")
    put_in_store(store_folder(home), b"nothing", file="bad\n\x1b[2J.gguf")
    put(home / ".local/share/zephyr-local/models/.partial" / ("a" * 64), b"some")
    shown = "a^J^[[2Jzephyr-7b-beta^I\\x9b1m\\u202eb"
    for words in (
        ["models", "list"],
        ["models", "find"],
        ["models", "show", path],
        ["models", "verify"],
        ["models", "verify"],
        ["models", "prune"],
        ["models", "fit", path],
        ["models", "rm", path],
    ):
        ran = cli(*words)
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", ran.out + ran.err), words
        assert words[1] == "prune" or shown in ran.out + ran.err, words
    assert not path.exists()


def test_find_tells_where_it_looked_and_what_it_left_out(cli: Cli, home: Path) -> None:
    paths = one_of_each(home)
    bad = put(home / ".lmstudio/models/org/repo/bad.gguf", b"nothing of the kind")
    ran = cli("models", "find", "ZEPHYR_7B_beta")
    header, found = ran.out.splitlines()
    assert header.split() == ["NAME", "TYPE", "SIZE", "WHOSE", "PATH"]
    assert found.split() == ["zephyr-7b-beta.Q4_0", "Q4_0", "166", "kB", "gpt4all", str(paths["gpt4all"])]
    assert cli("models", "show", found.split()[0], "--json").json["path"] == str(paths["gpt4all"])
    assert ran.err == f"note: {bad} is not a GGUF file\n"
    ran = cli("models", "find", "no such", code=1)
    assert ran.err.startswith("No model has 'no such' in its name, repository or path.\nlooked in ")
    assert ran.out == ""
    ran = cli("models", "find")
    assert "No model has" not in ran.err
    assert f"looked in {store_folder(home)} (zephyr-local)\n" in ran.err
    assert f"looked in {home / '.cache/lm-studio/models'} (lm-studio), which is not there\n" in ran.err
    assert f"note: {bad} is not a GGUF file\n" in ran.err
    assert len(ran.out.splitlines()) == len(OWNERS) + 1
    assert "1 thing could not be used; zephyr-local models find tells what" in cli("models", "list").err
    made = cli("models", "find", "org/zephyr", "--json").json
    assert list(made) == ["models", "places", "notices"]
    assert {found["owner"] for found in made["models"]} >= {"zephyr-local", "huggingface", "lm-studio"}
    assert {"owner": "zephyr-local", "folder": str(store_folder(home)), "there": True} in made["places"]
    assert cli("models", "find", "no such thing", "--json", code=1).json["models"] == []


def test_find_knows_what_list_knows(cli: Cli, hub: StandInHub) -> None:
    commit = hub.add(BETA, {"zephyr-7b-beta.Q4_0.gguf": model()})
    cli("pull", "zephyr-7b-beta:q4_0")
    (found,) = cli("models", "find", "--json").json["models"]
    assert (found["repository"], found["revision"], found["sha256"]) == (BETA, commit, sha256(model()))
    assert cli("models", "list", "--json").json["models"] == [found]


@pytest.mark.parametrize("text", ["models = [", "[models.x]\nsize = 3\n", "colour = 1\n", b"\xff\xfe"])
def test_a_models_toml_that_is_refused_is_named_and_left_as_it_is(cli: Cli, home: Path, text: str | bytes) -> None:
    data = text if isinstance(text, bytes) else text.encode()
    path = put(models_toml(home), data)
    file = tiny_model().write(home / "mine.gguf")
    for words in (
        ["list"],
        ["find"],
        ["alias", "work", "zephyr-7b-beta"],
        ["add", "mine", "org/repo"],
        ["add", "--folder", home],
        ["rm", "x"],
        ["verify"],
        ["fit", "zephyr-7b-beta"],
    ):
        assert str(path) in cli("models", *words, code=2).err
    assert path.read_bytes() == data
    assert list(path.parent.iterdir()) == [path]
    assert cli("inspect", file).code == 0  # a path asks no catalogue


# --- show ---


def test_all_that_is_known_of_a_pulled_model_is_shown(cli: Cli, hub: StandInHub, home: Path) -> None:
    commit = hub.add(BETA, {"zephyr-7b-beta.Q4_0.gguf": model()}, licence="apache-2.0")
    cli("pull", "zephyr-7b-beta:q4_0")
    path = store_folder(home) / BETA / "zephyr-7b-beta.Q4_0.gguf"
    made = cli("models", "show", "zephyr-7b-beta", "--json").json
    assert list(made) == SHOW_KEYS
    assert (made["path"], made["owner"], made["name"], made["type"]) == (str(path), "zephyr-local", path.stem, "Q4_0")
    assert (made["source"], made["repository"], made["revision"]) == ("hub", BETA, commit)
    assert (made["sha256"], made["size_bytes"], made["files"]) == (sha256(model()), len(model()), [str(path)])
    assert (made["command"], made["licence"]) == ("zephyr-local pull zephyr-7b-beta:q4_0", "apache-2.0")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", made["recorded"])
    assert (made["catalogue"], made["title"][:15]) == ("zephyr-7b-beta", "Zephyr 7B beta,")
    assert made["chat"] == "chat loads it; chat template: zephyr (assumed from the name)"
    assert made["memory"]["needed_bytes"] >= made["memory"]["kv_bytes"] > 0
    assert made["memory"]["n_ctx"] == 512
    for name in (path, f"hf:{BETA}", "zephyr-7b-beta:q4_0"):
        assert cli("models", "show", name, "--json").json == made
    round_about = f"{path.parent}/../{path.parent.name}/{path.name}"
    assert cli("models", "show", round_about, "--json").json == {**made, "path": round_about, "files": [round_about]}
    text = cli("models", "show", path).out
    for words in (
        commit,
        sha256(model()),
        "apache-2.0",
        "zephyr-local pull zephyr-7b-beta:q4_0",
        BETA,
        "source      hub",
    ):
        assert words in text
    assert "on the CPU with a context of 512 tokens (mapped weights" in text


def test_a_file_of_no_tool_is_shown_as_far_as_it_tells_itself(cli: Cli, home: Path) -> None:
    made = tiny_model()
    made.metadata["general.license"] = ("str", "mit\x1b[2J")
    made.metadata["zephyr_local.encoder"] = ("str", "of\nours")
    path = made.write(home / "mine.Q8_0.gguf")
    told = cli("models", "show", path, "--json").json
    assert (told["owner"], told["source"], told["recorded"], told["repository"]) == (None, None, None, None)
    assert (told["type"], told["licence"], told["made"]) == (
        "Q8_0",
        "mit\x1b[2J",
        {"zephyr_local.encoder": "of\nours"},
    )
    text = cli("models", "show", path).out
    assert "mit^[[2J" in text
    assert "zephyr_local.encoder = of ours" in text
    cli("models", "verify", path)
    assert cli("models", "show", path, "--json").json["source"] == "verify"


def test_a_model_in_parts_is_shown_with_all_of_them(cli: Cli, home: Path) -> None:
    folder = store_folder(home) / "org/parts"
    folder.mkdir(parents=True)
    paths = write_parts(split_model(tiny_model(), 5, 12), folder)
    made = cli("models", "show", "hf:org/parts", "--json").json
    assert made["files"] == list(map(str, paths))
    assert made["size_bytes"] == sum(path.stat().st_size for path in paths)


def test_what_is_not_here_cannot_be_shown(cli: Cli, home: Path) -> None:
    assert "Get it: zephyr-local pull zephyr-7b-beta." in cli("models", "show", "zephyr-7b-beta", "--json", code=3).err
    bad = put(home / "bad.gguf", b"nothing of the kind")
    assert "bad.gguf" in cli("models", "show", bad, code=1).err
    assert "No such option" in cli("models", "show", "-x", code=2).err
    assert "-x is not on this machine" in cli("models", "show", "--", "-x", code=3).err


def test_of_several_types_the_choice_is_told(cli: Cli, home: Path) -> None:
    for seed, file_type in enumerate(("Q4_0", "Q8_0")):
        put_in_store(store_folder(home), model(seed) + bytes(seed), BETA, f"zephyr-7b-beta.{file_type}.gguf")
    ran = cli("models", "show", "zephyr-7b-beta", "--json")
    assert ran.json["type"] == "Q8_0"
    assert "note: zephyr-7b-beta is here as Q4_0 too; took Q8_0, the largest that fits the memory" in ran.err


def test_the_bundled_model_is_shown_by_its_name_and_its_parts_of_memory_add_up(cli: Cli) -> None:
    told = cli("models", "show", "zephyr-tiny", "--json").json
    assert told["path"] == str(bundled_model_path())
    assert cli("models", "show", "Zephyr_Tiny", "--json").json == told
    sizes = dict(told["memory"])
    parts = ("weights_mapped_bytes", "weights_repacked_bytes", "kv_bytes", "compute_bytes", "other_bytes")
    assert sizes["needed_bytes"] == sum(sizes[part] for part in parts)
    text = cli("models", "show", "zephyr-tiny").out
    assert f", other {readable(sizes['other_bytes'])})" in text
    assert "^J" not in text  # a list of sources ends its line


def test_inspect_takes_a_name_as_chat_does(cli: Cli, home: Path) -> None:
    path = put_in_store(store_folder(home), model(), "org/mine-GGUF", "mine.Q4_0.gguf")
    for name in ("mine", "hf:org/mine-GGUF", path):
        assert cli("inspect", name, "--json").json["path"] == str(path)
    assert cli("inspect", "zephyr-tiny", "--json").json["path"] == str(bundled_model_path())
    assert "Get it: zephyr-local pull zephyr-7b-beta." in cli("inspect", "zephyr-7b-beta", code=3).err
    assert "empty" in cli("inspect", "", code=2).err


# --- as a process ---


def test_the_command_itself_lists_finds_and_removes(home: Path) -> None:
    put_in_store(store_folder(home), model())
    listed = zephyr_local("models", "list", "--json")
    assert listed.returncode == 0
    assert [found["name"] for found in json.loads(listed.stdout)["models"]] == ["zephyr"]
    assert zephyr_local("models", "verify", "zephyr").stdout.startswith("recorded ")
    assert zephyr_local("models", "rm", "zephyr").returncode == 0
    assert zephyr_local("models", "show", "zephyr").returncode == 3
