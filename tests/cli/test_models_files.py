"""`models rm`, `verify` and `prune`: files that are read and removed, but never another's."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.cli.pulling import BETA, model, models_toml, one_of_each, store_folder
from tests.gguf_builder import split_model, tiny_model, write_parts
from tests.model_store.store_fixtures import COMMIT, put, put_everywhere, put_in_hub_cache, put_in_store
from tests.stand_in_hub import StandInHub, sha256
from zephyr_local.model_store.file_lock import file_lock
from zephyr_local.model_store.registry import registry_path

# --- rm ---


def test_what_was_pulled_is_removed_with_its_empty_folders(cli: Cli, hub: StandInHub, home: Path) -> None:
    hub.add(BETA, {"zephyr-7b-beta.Q4_0.gguf": model(1), "zephyr-7b-beta.Q8_0.gguf": model(2)})
    for file_type in ("q4_0", "q8_0"):
        cli("pull", f"zephyr-7b-beta:{file_type}")
    ran = cli("models", "rm", "zephyr-7b-beta", code=2)
    assert "zephyr-7b-beta is 2 models: " in ran.err
    made = cli("models", "rm", "zephyr-7b-beta:q4_0", "--json").json
    assert made == {
        "removed": [str(store_folder(home) / BETA / "zephyr-7b-beta.Q4_0.gguf")],
        "size_bytes": len(model(1)),
    }
    assert [path.name for path in (store_folder(home) / BETA).iterdir()] == ["zephyr-7b-beta.Q8_0.gguf"]
    ran = cli("models", "rm", store_folder(home) / BETA / "zephyr-7b-beta.Q8_0.gguf")
    assert (ran.out, ran.err.startswith("Removed ")) == ("", True)
    assert list(store_folder(home).iterdir()) in ([], [store_folder(home) / ".partial"])
    assert cli("models", "prune", "--json").json["forgotten"] == []
    assert cli("models", "rm", "zephyr-7b-beta", code=3).err.startswith("zephyr-local: error: there is no model")


def test_all_parts_of_a_model_go(cli: Cli, home: Path) -> None:
    folder = store_folder(home) / "org/parts"
    folder.mkdir(parents=True)
    paths = write_parts(split_model(tiny_model(), 5, 12), folder)
    assert len(cli("models", "rm", paths[1], "--json").json["removed"]) == 3
    assert not folder.exists()


@pytest.mark.parametrize("owner", ["lm-studio", "gpt4all", "llama.cpp"])
def test_another_tools_model_is_only_removed_where_that_is_told_twice(cli: Cli, home: Path, owner: str) -> None:
    path = put_everywhere(home, {owner: model()})[owner]
    assert f"To remove it there: --also-from {owner}." in cli("models", "rm", path, "--yes", code=2).err
    assert "Add --yes" in cli("models", "rm", path, "--also-from", owner, code=2).err
    other = "gpt4all" if owner != "gpt4all" else "lm-studio"
    assert f"is {owner}'s, not {other}'s" in cli("models", "rm", path, "--also-from", other, "--yes", code=2).err
    assert "'me' is no owner" in cli("models", "rm", path, "--also-from", "me", "--yes", code=2).err
    assert path.read_bytes() == model()
    made = cli("models", "rm", path, "--also-from", owner, "--yes", "--json").json
    assert made["removed"] == [str(path)]
    assert not path.exists()
    assert path.parent.exists()  # whose folders are its own, too


@pytest.mark.parametrize(
    ("owner", "command"), [("ollama", "ollama rm zephyr:7b"), ("huggingface", "hf cache rm model/")]
)
def test_stores_whose_files_are_shared_remove_their_own(cli: Cli, home: Path, owner: str, command: str) -> None:
    path = put_everywhere(home, {owner: model()})[owner]
    for more in ([], ["--also-from", owner, "--yes"]):
        assert f"Let it remove its own: {command}" in cli("models", "rm", path, *more, code=2).err
    assert path.read_bytes() == model()


def test_llama_cpps_cache_in_the_hubs_layout_is_shared_as_well(cli: Cli, home: Path) -> None:
    cache = home / ".cache/llama.cpp"
    path = put_in_hub_cache(cache, model())
    ran = cli("models", "rm", path, "--also-from", "llama.cpp", "--yes", code=2)
    assert f"hf cache rm model/org/zephyr-GGUF --cache-dir {cache}" in ran.err
    assert path.read_bytes() == model()


def test_a_store_that_is_another_tools_folder_is_not_taken_for_ours(
    cli: Cli, hub: StandInHub, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = put(home / ".lmstudio/models/org/zephyr-GGUF/theirs.gguf", model(1))
    monkeypatch.setenv("ZEPHYR_LOCAL_STORE_FOLDER", str(home / ".lmstudio/models"))
    hub.add("org/zephyr-GGUF", {"ours.gguf": model(2)})
    cli("pull", "hf:org/zephyr-GGUF/ours.gguf")
    assert "--also-from lm-studio" in cli("models", "rm", "theirs", code=2).err
    cli("models", "verify", "theirs")  # which remembers it, and makes it no more ours
    assert "--also-from lm-studio" in cli("models", "rm", "theirs", code=2).err
    cli("models", "rm", "ours")
    assert [path.name for path in theirs.parent.iterdir()] == ["theirs.gguf"]
    (home / "store").symlink_to(home / ".lmstudio/models")
    monkeypatch.setenv("ZEPHYR_LOCAL_STORE_FOLDER", str(home / "store"))
    assert "--also-from lm-studio" in cli("models", "rm", "theirs", code=2).err


def test_of_the_same_model_twice_ours_is_meant(cli: Cli, home: Path) -> None:
    ours = put_in_store(store_folder(home), model(1), BETA, "zephyr-7b-beta.Q4_0.gguf")
    theirs = put(home / ".lmstudio/models" / BETA / "zephyr-7b-beta.Q4_0.gguf", model(2))
    cli("models", "rm", "zephyr-7b-beta")
    assert (ours.exists(), theirs.exists()) == (False, True)
    ours = put_in_store(store_folder(home), model(1), BETA, "zephyr-7b-beta.Q4_0.gguf")
    cli("models", "rm", "zephyr-7b-beta", "--also-from", "lm-studio", "--yes")
    assert (ours.exists(), theirs.exists()) == (True, False)


def test_a_link_in_the_store_goes_and_what_it_leads_to_stays(cli: Cli, home: Path) -> None:
    real = put(home / "elsewhere/real.gguf", model())
    link = store_folder(home) / "org/repo/linked.gguf"
    link.parent.mkdir(parents=True)
    link.symlink_to(real)
    cli("models", "rm", "linked")
    assert not link.is_symlink()
    assert real.read_bytes() == model()


def test_a_file_in_no_place_is_not_removed(cli: Cli, home: Path) -> None:
    path = tiny_model().write(home / "mine.gguf")
    assert "is in no place of models" in cli("models", "rm", path, "--yes", code=2).err
    assert "No such option" in cli("models", "rm", "-x", code=2).err
    assert path.exists()


# --- verify ---


def test_one_flipped_bit_in_the_middle_is_found_and_the_others_are_right(cli: Cli, hub: StandInHub, home: Path) -> None:
    hub.add(BETA, {"zephyr-7b-beta.Q4_0.gguf": model(9)})
    cli("pull", "zephyr-7b-beta:q4_0")
    pulled = store_folder(home) / BETA / "zephyr-7b-beta.Q4_0.gguf"
    paths = [pulled, *put_everywhere(home, {"huggingface": model(1), "ollama": model(2), "gpt4all": model(3)}).values()]
    made = cli("models", "verify", "--json").json
    results = {file["path"]: file["result"] for file in made["files"]}
    assert results == {str(path): "recorded" if "GPT4All" in str(path) else "right" for path in paths}
    assert (made["wrong"], list(made["files"][0])) == (
        0,
        ["path", "result", "sha256", "expected_sha256", "problem"],
    )
    assert {file["result"] for file in cli("models", "verify", "--json").json["files"]} == {"right"}
    for path in paths:
        real, status = Path(os.path.realpath(path)), path.stat()
        data = bytearray(real.read_bytes())
        data[len(data) // 2] ^= 0x10
        real.write_bytes(data)
        os.utime(real, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a failing disk leaves it
        ran = cli("models", "verify", code=1)
        wrong = [line for line in ran.out.splitlines() if not line.startswith("right ")]
        assert [line.split()[:2] for line in wrong] == [["WRONG", f"{path}:"]]
        assert f"its SHA-256 is {sha256(bytes(data))}, and it must be " in wrong[0]
        assert cli("models", "verify", "--accept", path, code=1).out == wrong[0] + "\n"
        data[len(data) // 2] ^= 0x10
        real.write_bytes(data)
        os.utime(real, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert cli("models", "verify", "--json").json["wrong"] == 0


def test_a_file_of_ones_own_that_was_changed_is_told_until_that_is_accepted(cli: Cli, home: Path) -> None:
    path = put(home / "mine.gguf", model(1))
    assert (
        cli("models", "verify", path).out == f"recorded  {path}: the next verification compares with what it is now\n"
    )
    path.write_bytes(model(2))
    os.utime(path, ns=(1, 1))
    for _ in range(2):
        ran = cli("models", "verify", path, code=1)
        assert ran.out.startswith(f"CHANGED   {path}: it was written since its digest was taken; if that was you, ")
    made = cli("models", "verify", "--accept", path, "--json").json
    assert made["files"][0]["result"] == "recorded"
    assert made["files"][0]["expected_sha256"] == sha256(model(1))
    assert cli("models", "verify", path).out == f"right     {path}\n"
    os.utime(path, ns=(2, 2))  # another time and the same bytes
    assert cli("models", "verify", path).out == f"right     {path}\n"


def test_a_pulled_file_that_was_changed_is_wrong_and_cannot_be_accepted(cli: Cli, hub: StandInHub, home: Path) -> None:
    commit = hub.add(BETA, {"zephyr-7b-beta.Q4_0.gguf": model(1)})
    cli("pull", "zephyr-7b-beta:q4_0")
    path = store_folder(home) / BETA / "zephyr-7b-beta.Q4_0.gguf"
    os.utime(path, ns=(1, 1))
    assert cli("models", "verify").out == f"right     {path}\n"
    made = cli("models", "show", "zephyr-7b-beta", "--json").json  # it is known again
    assert (made["source"], made["revision"], made["command"]) == (
        "hub",
        commit,
        "zephyr-local pull zephyr-7b-beta:q4_0",
    )
    path.write_bytes(model(2))
    for words in ([], ["--accept"]):
        assert cli("models", "verify", *words, code=1).out.startswith(f"WRONG     {path}: ")


def test_each_part_is_compared_with_its_own_digest(cli: Cli, hub: StandInHub, home: Path) -> None:
    parts = [part.build() for part in split_model(tiny_model(), 5, 12)]
    names = [f"zephyr.Q8_0-{no:05d}-of-00003.gguf" for no in (1, 2, 3)]
    hub.add("org/parts", dict(zip(names, parts, strict=True)))
    cli("pull", "hf:org/parts:q8_0")
    path = store_folder(home) / "org/parts" / names[1]
    path.write_bytes(parts[1][:-1] + b"\1")
    made = cli("models", "verify", "hf:org/parts", "--json", code=1).json
    assert [file["result"] for file in made["files"]] == ["right", "differs", "right"]
    assert made["files"][1]["expected_sha256"] == sha256(parts[1])


def test_only_what_is_named_is_read_and_each_file_once(cli: Cli, home: Path) -> None:
    paths = one_of_each(home)
    made = cli("models", "verify", "zephyr:7b", paths["ollama"], paths["gpt4all"], "--json").json
    assert [file["path"] for file in made["files"]] == [str(paths["ollama"]), str(paths["gpt4all"])]
    assert "there is no model nothing" in cli("models", "verify", "nothing", code=3).err
    assert "No such option" in cli("models", "verify", "-x", code=2).err


def test_a_file_that_cannot_be_read_is_wrong(cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put_everywhere(home, {"lm-studio": model()})["lm-studio"]
    real_open = Path.open

    def refuse(self: Path, *words: object, **more: object) -> object:
        if self == path:
            raise PermissionError(13, "Permission denied")
        return real_open(self, *words, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "open", refuse)  # root may read all
    ran = cli("models", "verify", code=1)
    assert ran.out == f"WRONG     {path}: Permission denied\n"


def test_how_far_a_verification_is_goes_to_stderr(cli: Cli, home: Path) -> None:
    put_everywhere(home, {"lm-studio": bytes(5 << 20)})
    one_of_each(home)
    ran = cli("models", "verify", "--json")
    assert ran.err.splitlines()[-1] == "verify 100%"
    assert ran.json["wrong"] == 0


# --- prune ---


def test_partial_downloads_are_removed_and_gone_files_forgotten(cli: Cli, hub: StandInHub, home: Path) -> None:
    hub.add(BETA, {"zephyr-7b-beta.Q4_0.gguf": model(1), "zephyr-7b-beta.Q8_0.gguf": model(2)})
    cli("pull", "zephyr-7b-beta:q4_0")
    cli("pull", "zephyr-7b-beta:q8_0")
    path = store_folder(home) / BETA / "zephyr-7b-beta.Q4_0.gguf"
    path.unlink()
    note = {"repository": "org/x", "commit": COMMIT, "path": "a\n.gguf", "size_bytes": 5 * 10**9}
    partial = put(store_folder(home) / ".partial" / ("ab" * 32), bytes(2000))
    put(store_folder(home) / ".partial" / ("ab" * 32 + ".json"), json.dumps(note | {"path": "a.gguf"}).encode())
    work = store_folder(home) / ".partial" / f"checkpoint-{COMMIT}-{'0' * 16}"
    put(work / "shard.safetensors", bytes(100))
    dry = cli("models", "prune", "--dry-run")
    assert dry.out == (
        f"Would remove 2 kB of 5.00 GB of org/x/a.gguf\nWould remove {work}\nWould forget {path}, which is gone\n"
    )
    assert partial.exists()
    assert work.exists()
    made = cli("models", "prune", "--json").json
    assert list(made) == ["partial_downloads", "folders", "unfinished", "forgotten", "kept", "dry_run"]
    assert made["partial_downloads"] == [
        {
            "repository": "org/x",
            "revision": COMMIT,
            "file": "a.gguf",
            "sha256": "ab" * 32,
            "size_bytes": 5 * 10**9,
            "there_bytes": 2000,
            "is_downloading": False,
        }
    ]
    assert (made["forgotten"], made["folders"], made["kept"], made["dry_run"]) == ([str(path)], [str(work)], 0, False)
    assert list((store_folder(home) / ".partial").iterdir()) == []
    ran = cli("models", "prune")
    assert (ran.out, ran.err) == ("", "There is nothing to remove.\n")
    assert cli("models", "show", "zephyr-7b-beta", "--json").json["source"] == "hub"


def test_what_is_being_downloaded_stays_and_the_others_go(cli: Cli, home: Path) -> None:
    folder = store_folder(home) / ".partial"
    for digit in "abc":
        put(folder / (digit * 64), bytes(10))
    with file_lock(folder / ("b" * 64 + ".lock"), "it"):
        ran = cli("models", "prune", code=1)
    assert ran.out.count("Removed ") == 2
    assert "this process downloads " in ran.err
    assert [path.name for path in folder.iterdir()] == ["b" * 64]


def test_files_on_a_disk_that_is_not_there_are_not_forgotten(
    cli: Cli, hub: StandInHub, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZEPHYR_LOCAL_STORE_FOLDER", str(home / "disk/store"))
    hub.add(BETA, {"zephyr-7b-beta.Q4_0.gguf": model()})
    cli("pull", "zephyr-7b-beta:q4_0")
    (home / "disk").rename(home / "unplugged")
    assert cli("models", "prune", "--json").json["forgotten"] == []
    (home / "unplugged").rename(home / "disk")
    assert cli("models", "show", "zephyr-7b-beta", "--json").json["source"] == "hub"
    for path in sorted((home / "disk/store").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    assert len(cli("models", "prune", "--json").json["forgotten"]) == 1


def test_reading_verbs_write_nothing(cli: Cli, home: Path) -> None:
    put_in_store(store_folder(home), model())
    for words in (["list"], ["find"], ["show", "zephyr"], ["prune"], ["alias"], ["fit", "zephyr"]):
        cli("models", *words)
    assert not registry_path().exists()
    assert not models_toml(home).exists()
