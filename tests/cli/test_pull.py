"""`zephyr-local pull`: the right file, whole or not at all, and told what came of it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import ROOT, zephyr_local
from tests.cli.conftest import Cli
from tests.cli.pulling import (
    BETA,
    MIB,
    beta,
    entry,
    hub_entries,
    model,
    names_below,
    store,
)
from tests.gguf_builder import split_model, tiny_model, write_reciting_model
from tests.model_store.store_fixtures import put_everywhere, put_in_hub_cache, put_in_lm_studio, put_in_ollama
from tests.stand_in_hub import Kind, StandInHub, sha256

KEYS = [
    *("repository", "revision", "licence", "type", "size_bytes", "files", "why", "paths", "missing_bytes", "was_here"),
    *("fetched_bytes", "resumed_bytes", "chat", "dry_run"),
]
TOKEN = "hf_valid"


# --- names ---


def test_a_type_of_a_catalogues_model_comes_whole_with_its_name(cli: Cli, hub: StandInHub, home: Path) -> None:
    data = {file_type: model(seed) for seed, file_type in enumerate(("Q4_K_M", "Q5_K_M"))}
    hub.add(BETA, {beta(file_type): made for file_type, made in data.items()})
    ran = cli("pull", "zephyr-7b-beta:q4_k_m")
    path = store(home) / beta("Q4_K_M")
    assert path.read_bytes() == data["Q4_K_M"]
    assert ran.out == (
        f"{path}: {len(data['Q4_K_M']) / 1e3:.0f} kB, its digest is the hub's.\n"
        "Talk with it: zephyr-local chat zephyr-7b-beta:q4_k_m\n"
    )
    assert names_below(store(home).parent.parent) == [path.name]
    again = cli("pull", "zephyr-7b-beta:q4_k_m")
    assert again.out.startswith(f"{path} is here already; nothing was fetched.\n")
    assert hub.sent_bytes() == len(data["Q4_K_M"])


@pytest.mark.parametrize(
    "name",
    [
        "zephyr-7b-beta:Q4_K_M",
        "Zephyr_7B.beta.q4_k_m",
        "work",
        "night:q4_k_m",
        "day",
        f"hf:{BETA}:q4_k_m",
        f"hf:{BETA}/{beta('Q4_K_M')}",
        f"hf:{BETA}/{beta('Q4_K_M')}@main",
        f"hf:{BETA}/zephyr-7b-beta.Q4_K_M",
        f"{BETA}:q4_k_m",
        f"{BETA}/{beta('Q4_K_M')}",
        f"hf.co/{BETA}:Q4_K_M",
        "zephyr-7b-beta:q4_k_m@main",
        "work@main",
    ],
)
def test_what_can_be_pulled_is_called(cli: Cli, hub: StandInHub, home: Path, name: str) -> None:
    aliases = home / ".config/zephyr-local/models.toml"
    aliases.parent.mkdir(parents=True)
    aliases.write_text(f'[aliases]\nwork = "zephyr-7b-beta:q4_k_m"\nnight = "hf:{BETA}"\nday = "work"\n')
    hub.add(BETA, {beta("Q4_K_M"): model(1), beta("Q8_0"): model(2)})
    made = cli("pull", name, "--dry-run", "--json").json
    assert [file["path"] for file in made["files"]] == [beta("Q4_K_M")]


def test_a_revision_is_a_branch_a_tag_or_a_commit(cli: Cli, hub: StandInHub, home: Path) -> None:
    old = hub.add(BETA, {beta("Q8_0"): model(1)})
    hub.add(BETA, {beta("Q8_0"): model(2)}, branch="v2")
    hub.add(BETA, {beta("Q8_0"): model(3)})
    for revision, seed in ((old, 1), ("v2", 2), ("main", 3)):
        made = cli("pull", f"zephyr-7b-beta:q8_0@{revision}", "--json").json
        assert Path(made["paths"][0]).read_bytes() == model(seed)
        assert (made["fetched_bytes"], made["was_here"]) == (len(model(seed)), False)
    assert cli("models", "show", "zephyr-7b-beta", "--json").json["sha256"] == sha256(model(3))
    assert "has no revision v9" in cli("pull", "zephyr-7b-beta:q8_0@v9", code=3).err


def test_parts_come_together_and_are_one_model(cli: Cli, hub: StandInHub, home: Path) -> None:
    parts = [part.build() for part in split_model(tiny_model(), 5, 12)]
    names = [f"q8/zephyr.Q8_0-{no:05d}-of-00003.gguf" for no in (1, 2, 3)]
    hub.add("org/parts", dict(zip(names, parts, strict=True)))
    made = cli("pull", "hf:org/parts:q8_0", "--json").json
    assert [Path(path).read_bytes() for path in made["paths"]] == parts
    assert made["size_bytes"] == made["fetched_bytes"] == sum(map(len, parts))
    assert made["chat"].startswith("chat loads it")
    again = cli("pull", f"hf:org/parts/{names[1]}", "--json").json
    assert (again["paths"], again["was_here"]) == (made["paths"], True)
    (listed,) = cli("models", "list", "--json").json["models"]
    assert listed["files"] == made["paths"]


def test_parts_that_are_not_all_there_are_refused(cli: Cli, hub: StandInHub) -> None:
    part = split_model(tiny_model(), 5)[0].build()
    hub.add("org/parts", {"zephyr.Q8_0-00001-of-00002.gguf": part, "zephyr.Q4_0.gguf": model()})
    assert "It has: Q4_0." in cli("pull", "hf:org/parts:q8_0", code=3).err
    named = cli("pull", "hf:org/parts/zephyr.Q8_0-00001-of-00002.gguf", code=3)
    assert "is a part of a model, and org/parts has not all of them" in named.err
    assert hub.sent_bytes() == 0


def test_what_lies_beside_a_model_is_fetched_only_by_its_name(cli: Cli, hub: StandInHub) -> None:
    hub.add("org/few", {"mmproj-zephyr-F16.gguf": model(1), "zephyr-lora.gguf": model(2), "README.md": b"x" * 2000})
    assert "org/few at" in cli("pull", "hf:org/few", code=3).err
    assert cli("pull", "hf:org/few/zephyr-lora.gguf", "--json").json["fetched_bytes"] == len(model(2))
    assert "is not a GGUF" in cli("pull", "hf:org/few/README.md", code=2).err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("zephyr-9b", "is not known. Give hf:OWNER/REPO, or one of: zephyr-7b-beta"),
        ("zephyr-7b-beta:nonsense", "'nonsense' in 'zephyr-7b-beta:nonsense' is not a type that is known"),
        ("hf:org", "is not the name of a repository"),
        ("../../x", "is not the name of a repository"),
        ("/etc/passwd", "is not the name of a repository"),
        ("hf:org/repo/../../x.gguf", "is not a path below the repository"),
        ("hf:org/repo//etc/x.gguf", "is not a path below the repository"),
        ("hf:org/repo/C:/x.gguf", "which name folders and drives elsewhere"),
        ("hf:org/..", "is not the name of a repository"),
        ("hf:org/repo/nul.gguf", "names a device"),
        ("hf:org/repo@../x", "is not a revision"),
        ("hf:org/repo:fast", "is not a type"),
        ("\x1b[2Jx", "is not known"),
    ],
)
def test_a_name_that_can_be_none_is_refused_before_anything_is_asked(
    cli: Cli, hub: StandInHub, home: Path, name: str, words: str
) -> None:
    ran = cli("pull", name, code=2)
    assert words in ran.err
    assert "\x1b" not in ran.err
    assert (ran.out, hub.served, list(home.rglob("*.gguf"))) == ("", [], [])


@pytest.mark.usefixtures("hub")
def test_a_name_may_begin_with_a_dash_behind_two(cli: Cli) -> None:
    assert "No such option" in cli("pull", "-x", code=2).err
    assert "'-x' is not known" in cli("pull", "--", "-x", code=2).err


def test_an_alias_of_a_file_is_not_pulled(cli: Cli, hub: StandInHub, home: Path) -> None:
    path = tiny_model().write(home / "mine.gguf")
    cli("models", "alias", "mine", path)
    assert f"mine stands for the file {path}" in cli("pull", "mine", code=2).err
    assert hub.served == []


def test_names_in_a_listing_that_lead_out_of_the_store_are_left_out(cli: Cli, hub: StandInHub, home: Path) -> None:
    bad = ["../zephyr.Q8_0.gguf", "/tmp/zephyr.Q6_K.gguf", "a/../../zephyr.Q5_0.gguf", "zephyr\x1b[2J.Q5_1.gguf"]
    good = model()
    hub.add("org/evil", {"zephyr.Q4_0.gguf": good})
    hub.listed = [*(entry(path, 5000) for path in bad), *hub_entries(hub, "org/evil")]
    ran = cli("pull", "hf:org/evil")
    assert "4 of org/evil's files have names that no file may get here" in ran.err
    assert "\x1b" not in ran.err + ran.out
    assert [path.read_bytes() for path in home.rglob("*.gguf")] == [good]
    hub.listed = [entry(path, 5000) for path in bad]
    assert "holds no GGUF" in cli("pull", "hf:org/evil", code=3).err


# --- what is here already ---


@pytest.mark.parametrize("owner", ["huggingface", "ollama", "zephyr-local"])
def test_what_another_tool_has_is_not_fetched(cli: Cli, hub: StandInHub, home: Path, owner: str) -> None:
    data = model(7)
    path = put_everywhere(home, {owner: data})[owner]
    if owner == "zephyr-local":  # nobody told its digest yet
        cli("models", "verify")
    hub.add(BETA, {beta("Q4_K_M"): data})
    made = cli("pull", "zephyr-7b-beta:q4_k_m", "--json").json
    assert (made["paths"], made["was_here"], made["fetched_bytes"]) == ([str(path)], True, 0)
    ran = cli("pull", "zephyr-7b-beta:q4_k_m")
    assert f"{path} is here already; nothing was fetched." in ran.out
    assert hub.sent_bytes() == 0
    spoken = shlex.split(ran.out.splitlines()[1].partition("zephyr-local chat ")[2])[0]
    assert cli("models", "show", spoken, "--json").json["path"] == str(path)


def test_the_same_name_with_other_bytes_is_fetched(cli: Cli, hub: StandInHub, home: Path) -> None:
    put_in_hub_cache(home / ".cache/huggingface/hub", model(1), BETA, beta("Q4_K_M"))
    put_in_ollama(home / ".ollama/models", model(2), "zephyr-7b-beta", "q4_k_m")
    put_in_lm_studio(home / ".lmstudio/models", model(3), BETA, beta("Q4_K_M"))
    hub.add(BETA, {beta("Q4_K_M"): model(4)})
    assert cli("pull", "zephyr-7b-beta:q4_k_m", "--json").json["fetched_bytes"] == len(model(4))
    assert (store(home) / beta("Q4_K_M")).read_bytes() == model(4)


def test_a_file_in_the_store_that_nobody_remembers_is_read_and_not_fetched(
    cli: Cli, hub: StandInHub, home: Path
) -> None:
    hub.add(BETA, {beta("Q4_K_M"): model(1)})
    cli("pull", "zephyr-7b-beta:q4_k_m")
    (home / ".local/share/zephyr-local/models.sqlite3").unlink()
    made = cli("pull", "zephyr-7b-beta:q4_k_m", "--json").json
    assert (made["was_here"], made["fetched_bytes"]) == (True, 0)
    assert hub.sent_bytes() == len(model(1))
    assert cli("models", "show", "zephyr-7b-beta", "--json").json["source"] == "hub"


# --- the hub refuses, or is not there ---


def test_a_gated_repository_names_the_page_of_its_licence_and_no_token(
    hub: StandInHub, hub_environment: dict[str, str]
) -> None:
    hub.add("org/gated", {"zephyr.Q4_0.gguf": model()}, is_gated=True)
    for token in ({}, {"HF_TOKEN": TOKEN}):
        ran = zephyr_local("pull", "hf:org/gated", "--n-gpu-layers", "0", environment={**hub_environment, **token})
        assert (ran.returncode, ran.stdout) == (7, "")
        assert f"Accept it at {hub.url}/org/gated" in ran.stderr
        assert TOKEN not in ran.stderr
    assert {one.headers.get("authorization") for one in hub.served} == {None, f"Bearer {TOKEN}"}


def test_a_token_is_used_and_stands_in_no_output_and_no_file(
    hub: StandInHub, hub_environment: dict[str, str], home: Path
) -> None:
    hub.add("org/gated", {"zephyr.Q4_0.gguf": model()}, is_gated=True, members=frozenset({TOKEN}))
    ran = zephyr_local(
        *("--debug", "pull", "hf:org/gated/zephyr.Q4_0.gguf", "--json"),
        environment={**hub_environment, "HF_TOKEN": TOKEN},
    )
    assert ran.returncode == 0
    assert json.loads(ran.stdout)["fetched_bytes"] == len(model())
    assert TOKEN not in ran.stdout + ran.stderr
    assert all(TOKEN.encode() not in path.read_bytes() for path in home.rglob("*") if path.is_file())
    assert all("authorization" not in one.headers for one in hub.of_kind(Kind.STORAGE))


@pytest.mark.parametrize(
    ("words", "variable"),
    [(["--offline"], {}), ([], {"ZEPHYR_LOCAL_OFFLINE": "1"}), ([], {"HF_HUB_OFFLINE": "1"})],
)
def test_offline_nothing_is_asked(
    hub: StandInHub, hub_environment: dict[str, str], words: list[str], variable: dict[str, str]
) -> None:
    hub.add(BETA, {beta("Q4_K_M"): model()})
    environment = {**hub_environment, **variable}
    ran = zephyr_local(*words, "pull", "zephyr-7b-beta:q4_k_m", "--json", environment=environment)
    assert (ran.returncode, ran.stdout) == (7, "")
    assert "pull zephyr-7b-beta:q4_k_m needs the network, and this is offline" in ran.stderr
    assert hub.served == []


def test_a_repository_that_the_hub_does_not_have_is_not_found(cli: Cli, hub: StandInHub) -> None:
    ran = cli("pull", "hf:org/none", "--json", code=3)
    assert "has no model org/none" in ran.err
    assert ran.out == ""
    assert hub.served != []


def test_without_huggingface_hub_it_says_what_to_install(hub_environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['huggingface_hub'] = None\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    ran = zephyr_local("pull", "zephyr-7b-beta", environment={**hub_environment, "PYTHONPATH": path})
    assert (ran.returncode, ran.stdout) == (7, "")
    assert 'pip install "zephyr-local[hub]"' in ran.stderr
    for verb in (["models", "list"], ["models", "verify"], ["models", "prune"]):
        assert zephyr_local(*verb, environment={"PYTHONPATH": path}).returncode == 0


# --- afterwards ---


def test_a_model_that_chat_cannot_load_is_pulled_and_said_so(cli: Cli, hub: StandInHub, home: Path) -> None:
    other = tiny_model()
    other.metadata["general.architecture"] = ("str", "gemma3")
    hub.add("org/other", {"gemma.Q8_0.gguf": other.build(), "none.Q8_0.gguf": b"nothing of the kind" * 99})
    ran = cli("pull", "hf:org/other/gemma.Q8_0.gguf")
    assert "note: chat does not load it: " in ran.err
    assert "gemma3" in ran.err
    assert "Talk with it" not in ran.out
    made = cli("pull", "hf:org/other/none.Q8_0.gguf", "--json").json
    assert made["chat"].startswith("chat does not load it: ")
    assert Path(made["paths"][0]).exists()


def test_chat_talks_with_what_was_pulled(
    hub: StandInHub, hub_environment: dict[str, str], tmp_path: Path, cli: Cli
) -> None:
    data = write_reciting_model(tmp_path, "All is well that ends well.").read_bytes()
    hub.add(BETA, {beta("Q4_K_M"): data})
    ran = cli("pull", "zephyr-7b-beta:q4_k_m")
    name = ran.out.splitlines()[-1].removeprefix("Talk with it: zephyr-local chat ")
    answer = zephyr_local("chat", name, "--prompt", "Is it?", "--temperature", "0")
    assert (answer.returncode, answer.stdout) == (0, "All is well that ends well.\n")


def test_the_json_is_one_object_of_the_documented_keys(cli: Cli, hub: StandInHub) -> None:
    hub.add("org/zephyr", {"zephyr.Q4_0.gguf": model()}, licence="apache-2.0")
    commit = hub.repositories["org/zephyr"].branches["main"]
    for words in (["--dry-run"], [], []):
        made = cli("pull", "hf:org/zephyr", "--json", *words).json
        assert list(made) == KEYS
        assert (made["repository"], made["revision"], made["licence"]) == ("org/zephyr", commit, "apache-2.0")
        assert made["files"] == [{"path": "zephyr.Q4_0.gguf", "size_bytes": len(model()), "sha256": sha256(model())}]
    help_text = " ".join(cli("pull", "--help").out.split())
    assert all(f" {key}" in help_text for key in KEYS)


# --- where it cannot be put ---


def test_a_store_that_cannot_be_written_is_told_before_anything_is_fetched(
    cli: Cli, hub: StandInHub, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/zephyr", {"zephyr.Q4_0.gguf": model()})
    (home / "file").write_text("in the way")
    monkeypatch.setenv("ZEPHYR_LOCAL_STORE_FOLDER", str(home / "file" / "store"))
    assert "store cannot be made" in cli("pull", "hf:org/zephyr", code=1).err
    assert hub.sent_bytes() == 0


NO_HOME = """
import platformdirs, pwd
from pathlib import Path
def none(_id):
    raise KeyError(_id)
pwd.getpwuid = none
for kind in ("config", "data", "state"):  # as its older versions answer then
    setattr(platformdirs, f"user_{kind}_path", lambda *_, **__: Path("~/.some/zephyr-local"))
"""


def test_without_a_home_nothing_is_put_into_the_current_folder(
    hub: StandInHub, hub_environment: dict[str, str], tmp_path: Path
) -> None:
    hub.add("org/zephyr", {"zephyr.Q4_0.gguf": model()})
    (tmp_path / "sitecustomize.py").write_text(NO_HOME)
    (tmp_path / "here").mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "HOME"))}
    environment |= {**hub_environment, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    writing = (["pull", "hf:org/zephyr:q4_0"], ["models", "alias", "work", "zephyr-7b-beta"])
    for words in (*writing, ["models", "list"], ["models", "prune"], ["models", "verify"]):
        ran = subprocess.run(
            [sys.executable, "-m", "zephyr_local", *words],
            cwd=tmp_path / "here",
            env=environment,
            capture_output=True,
            text=True,
        )
        assert ran.returncode == (1 if words in writing else 0), ran.stderr
        assert ("Set the environment variable HOME" in ran.stderr) is (words in writing)
        assert "Traceback" not in ran.stderr
        assert "mistake of ours" not in ran.stderr
    assert list((tmp_path / "here").iterdir()) == []


def test_a_registry_that_cannot_be_used_costs_only_what_it_remembers(cli: Cli, hub: StandInHub, home: Path) -> None:
    registry = home / ".local/share/zephyr-local/models.sqlite3"
    registry.parent.mkdir(parents=True)
    registry.write_bytes(b"no database" * 500)
    hub.add(BETA, {beta("Q4_K_M"): model()})
    ran = cli("pull", "zephyr-7b-beta:q4_k_m")
    assert "note: where zephyr-7b-beta.Q4_K_M.gguf is from is not remembered" in ran.err
    assert "Talk with it: zephyr-local chat zephyr-7b-beta:q4_k_m" in ran.out
    assert cli("models", "show", "zephyr-7b-beta", "--json").json["path"] == str(store(home) / beta("Q4_K_M"))
    assert cli("models", "verify").out.startswith("recorded ")
    assert "nothing to remove" in cli("models", "prune").err
    cli("models", "rm", "zephyr-7b-beta")
    assert names_below(store(home)) == []


def test_a_store_on_another_disk_counts_that_disks_room(
    hub: StandInHub, hub_environment: dict[str, str], tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["unshare", "-rm", "sh", "-c", f'mount -t tmpfs -o size=68m none {disk} && "$@" && ls {disk}/org/*', "sh"]
    if os.system(f"unshare -rm mount -t tmpfs none {disk} 2>/dev/null"):
        pytest.skip("no file system of its own can be mounted here")
    data = model()
    hub.add("org/zephyr", {"zephyr.Q2_K.gguf": data})
    hub.listed = [entry("zephyr.Q8_0.gguf", 6 * MIB), *hub_entries(hub, "org/zephyr")]
    ran = subprocess.run(
        [*mounted, sys.executable, "-m", "zephyr_local", "pull", "hf:org/zephyr"],
        cwd=ROOT,
        env={**os.environ, **hub_environment, "ZEPHYR_LOCAL_STORE_FOLDER": str(disk)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert "; Q8_0 needs 6 MB of disk, and " in ran.stderr
    assert f"{disk}/org/zephyr/zephyr.Q2_K.gguf: 163 kB" in ran.stdout
    assert ran.stdout.endswith("zephyr.Q2_K.gguf\n")


def test_a_branch_that_moved_replaces_the_file(cli: Cli, hub: StandInHub, home: Path) -> None:
    for seed in (1, 2):
        commit = hub.add(BETA, {beta("Q4_K_M"): model(seed)})
        cli("pull", "zephyr-7b-beta:q4_k_m")
        assert (store(home) / beta("Q4_K_M")).read_bytes() == model(seed)
        assert cli("models", "show", "zephyr-7b-beta", "--json").json["revision"] == commit
