"""`models alias` and `add`: what is changed in models.toml, and that all else stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import ROOT
from tests.cli.conftest import Cli
from tests.cli.pulling import BETA, model, models_toml, store_folder, write_toml
from tests.gguf_builder import tiny_model
from tests.model_store.store_fixtures import put, put_in_store
from tests.stand_in_hub import StandInHub

LAYOUT = """\
# what I talk with
folders = [
    "/models", # the large disk
]

# short names
[aliases]
work = "zephyr-7b-beta:q5_k_m"   # in the office
night = 'hf:org/repo'

# of my own
[models.mine]
gguf = ["org/mine-GGUF"] # made in March
title = "Mine"
"""


def test_an_alias_stands_beside_the_others_and_all_else_stays(cli: Cli, home: Path) -> None:
    path = write_toml(home, LAYOUT)
    ran = cli("models", "alias", "day", "zephyr-7b-beta:q4_k_m")
    assert ran.err == "day is zephyr-7b-beta:q4_k_m.\n"
    night = "night = 'hf:org/repo'\n"
    day = 'day = "zephyr-7b-beta:q4_k_m"\n'
    assert path.read_text() == LAYOUT.replace(night, night + day)
    assert cli("models", "alias").out == "day  zephyr-7b-beta:q4_k_m\nnight  hf:org/repo\nwork  zephyr-7b-beta:q5_k_m\n"
    cli("models", "alias", "work", "night")
    assert 'work = "night"   # in the office\n' in path.read_text()
    made = cli("models", "alias", "WORK", "zephyr-7b-alpha", "--json").json  # the same name, spelled anew
    assert made == {"aliases": {"WORK": "zephyr-7b-alpha", "day": "zephyr-7b-beta:q4_k_m", "night": "hf:org/repo"}}
    cli("models", "alias", "--remove", "Day")
    cli("models", "alias", "--remove", "work")
    made = cli("models", "alias", "--json").json
    assert made == {"aliases": {"night": "hf:org/repo"}}
    kept = [line for line in LAYOUT.splitlines() if not line.startswith("work")]
    assert path.read_text().split() == "\n".join(kept).split()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing yet\n",
        'aliases.work = "day"\n',
        'aliases = { work = "day" }\n',
        '[models.m]\ngguf = []\n[aliases]\nwork = "day"\n[models.n]\ngguf = []\n',
        '"aliases"."work" = "day"',
        '\ufeff[aliases]\r\nwork = "day"\r\n',
    ],
)
def test_however_aliases_are_written_one_more_can_be(cli: Cli, home: Path, text: str) -> None:
    path = write_toml(home, text)
    cli("models", "alias", "night", "zephyr-7b-beta")
    cli("models", "add", "mine", "org/mine-GGUF")
    cli("models", "add", "--folder", home)
    made = cli("models", "alias", "--json").json
    assert made["aliases"] == ({"work": "day"} if "work" in text else {}) | {"night": "zephyr-7b-beta"}
    assert cli("models", "add", "--folder", home, "--json").json["folders"] == [str(home)]
    assert all(line in path.read_text() for line in text.splitlines() if line.startswith("#"))
    cli("models", "alias", "night", "--remove")
    assert "night" not in path.read_text()


def test_an_alias_for_a_file_is_its_whole_path(cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_model().write(home / "mine.gguf")
    monkeypatch.chdir(home)
    for target in ("mine.gguf", "./mine.gguf", "~/mine.gguf", str(path)):
        assert cli("models", "alias", "mine", target, "--json").json == {"aliases": {"mine": str(path)}}
    assert cli("models", "show", "mine", "--json").json["path"] == str(path)
    assert "there is no file" in cli("models", "alias", "other", "./none.gguf", code=2).err
    assert "there is no file" in cli("models", "alias", "other", "~nobody-of-this-name/x.gguf", code=2).err


def test_a_models_own_name_may_stand_for_one_of_its_types(cli: Cli, home: Path) -> None:
    for seed, file_type in enumerate(("Q4_0", "Q8_0")):
        put_in_store(store_folder(home), model(seed) + bytes(seed), BETA, f"zephyr-7b-beta.{file_type}.gguf")
    cli("models", "alias", "zephyr-7b-beta", "zephyr-7b-beta:q4_0")
    assert cli("models", "show", "zephyr-7b-beta", "--json").json["type"] == "Q4_0"
    assert "is a model of the catalogue" in cli("models", "alias", "zephyr-7b-alpha", "zephyr-7b-beta", code=2).err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["-x", "y"], "No such option"),
        (["--", "-x", "zephyr-7b-beta"], "cannot be a model's name"),
        (["a b", "zephyr-7b-beta"], "cannot be a model's name"),
        (["x.gguf", "zephyr-7b-beta"], "cannot be a model's name"),
        (["a\x1b[2J", "zephyr-7b-beta"], "cannot be a model's name"),
        (["loop", "Loop"], "cannot stand for itself"),
        (["work", "day"], "circle"),
        (["new", "hf:org"], "is not the name of a repository"),
        (["new", "hf:org/repo:fast"], "is not a type"),
        (["new", ""], "aliases.new is not the name of a model"),
        (["zephyr-tiny", "zephyr-7b-beta"], "zephyr-tiny is the bundled model's name"),
        (["new", "Zephyr-Tiny"], "is the bundled model, which has no other name"),
        (["new"], "Give the model that NAME is to stand for."),
        (["--remove"], "Give the NAME that is to be forgotten."),
        (["--remove", "new"], "there is no alias new"),
        (["--remove", "day", "x"], "--remove takes a NAME alone."),
    ],
)
def test_an_alias_that_would_not_work_is_refused_and_the_file_stays(
    cli: Cli, home: Path, words: list[str], problem: str
) -> None:
    path = write_toml(home, '[aliases]\nday = "work"\n')
    ran = cli("models", "alias", *words, code=2)
    assert problem in ran.err
    assert "\x1b" not in ran.err
    assert ".tmp" not in ran.err
    assert path.read_text() == '[aliases]\nday = "work"\n'
    assert list(path.parent.iterdir()) == [path]


def test_an_alias_of_nothing_that_is_known_is_made_and_said_so(cli: Cli, home: Path) -> None:
    put_in_store(store_folder(home), model())
    assert "nothing here has the name zephr-7b yet" in cli("models", "alias", "work", "zephr-7b").err
    for target in ("zephyr", "org/zephyr-GGUF", "zephyr-7b-beta", "hf:org/other", "work2"):
        cli("models", "alias", "work2", "zephyr")
        assert "yet" not in cli("models", "alias", "work", target).err


def test_an_alias_that_takes_the_name_of_a_model_that_is_here_tells_so(cli: Cli, home: Path) -> None:
    path = put_in_store(store_folder(home), model(), "org/mine-GGUF", "mine.Q4_0.gguf")
    ran = cli("models", "alias", "mine", "zephyr-7b-beta")
    assert f"note: {path} is called mine, too" in ran.err
    for name, target in (("mine", "mine:q4_0"), ("mine", str(path)), ("mine", "hf:org/mine-GGUF"), ("other", "mine")):
        assert "too;" not in cli("models", "alias", name, target).err


def test_the_file_is_written_whole_where_a_link_leads_and_for_its_owner_alone(cli: Cli, home: Path) -> None:
    real = put(home / "dotfiles/models.toml", LAYOUT.encode())
    link = models_toml(home)
    link.parent.mkdir(parents=True)
    link.symlink_to(real)
    cli("models", "alias", "day", "zephyr-7b-beta")
    assert link.is_symlink()
    assert "day = " in real.read_text()
    assert list(real.parent.iterdir()) == [real]
    if os.name != "nt":
        assert real.stat().st_mode & 0o077 == 0


@pytest.mark.skipif(os.name == "nt", reason="no limits of this kind")
def test_a_disk_that_takes_nothing_leaves_the_file_as_it_was(home: Path) -> None:
    import resource

    path = write_toml(home, LAYOUT)
    ran = subprocess.run(
        [sys.executable, "-m", "zephyr_local", "models", "alias", "day", "zephyr-7b-beta"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
    )
    assert ran.returncode == 1
    assert f"{path} cannot be written: File too large" in ran.stderr
    assert path.read_text() == LAYOUT
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_file_whose_name_is_not_utf_8_cannot_stand_in_the_file(cli: Cli, home: Path) -> None:
    path = tiny_model().write(Path(os.fsdecode(os.fsencode(home) + b"/mine\xff.gguf")))
    for words in (["alias", "mine", path], ["add", "--folder", path.with_suffix("")]):
        path.with_suffix("").mkdir(exist_ok=True)
        assert "is UTF-8, and what is to be written is not" in cli("models", *words, code=2).err
    assert not models_toml(home).exists()


def test_an_added_model_is_pulled_and_called_by_its_name(cli: Cli, hub: StandInHub, home: Path) -> None:
    path = write_toml(home, LAYOUT)
    ran = cli(
        "models", "add", "fine", "hf:org/fine-GGUF", "--template", "zephyr", "--licence", "MIT", "--title", "Fine"
    )
    assert ran.err == "fine is known: zephyr-local pull fine\n"
    added = '[models.fine]\ngguf = ["org/fine-GGUF"]\n'
    assert added in path.read_text()
    assert path.read_text().startswith(LAYOUT.rstrip())
    hub.add("org/fine-GGUF", {"something-else.Q4_0.gguf": model()})
    assert cli("pull", "fine").out.endswith("zephyr-local chat fine:q4_0\n")
    for page in ("org/fine-GGUF", "org/fine-GGUF/blob/main/something-else.Q4_0.gguf"):
        assert cli("pull", f"https://huggingface.co/{page}", "--json").json["was_here"] is True
    made = cli("models", "show", "fine", "--json").json
    assert (made["catalogue"], made["title"], made["licence"]) == ("fine", "Fine", "mit")
    ran = cli("models", "add", "Mine", "https://hf.co/org/other-GGUF", "--checkpoint", "org/mine", "--json")
    assert ran.err.startswith("mine was known, and is replaced")
    made = ran.json
    assert made == {"models": ["fine", "mine"], "folders": ["/models"]}
    assert 'gguf = ["org/other-GGUF"] # made in March\ntitle = "Mine"\n' in path.read_text()
    made = cli("models", "add", "fine", "--remove", "--json").json
    assert made["models"] == ["mine"]
    assert "fine" not in path.read_text()
    assert (store_folder(home) / "org/fine-GGUF/something-else.Q4_0.gguf").exists()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "Give a NAME and its REPOSITORY, or --folder."),
        (["mine"], "Give the REPOSITORY that holds its GGUFs."),
        (["new", "repo"], "is not the name of a repository"),
        (["new", "org/../x"], "is not the name of a repository"),
        (["new", "org/repo", "--checkpoint", "x"], "is not the name of a repository"),
        (["../new", "org/repo"], "cannot be a model's name"),
        (["work", "org/repo"], "work is an alias"),
        (["zephyr-7b-beta", "org/repo"], "zephyr-7b-beta is a model of the catalogue"),
        (["Zephyr_7B.beta", "org/repo"], "zephyr-7b-beta is a model of the catalogue"),
        (["zephyr_tiny", "org/repo"], "zephyr-tiny is the bundled model's name"),
        (["--folder", ""], "the folder is empty"),
        (["--folder", " "], "the folder is empty"),
        (["--remove", "zephyr-7b-beta"], "is not among the models that you added"),
        (["--remove", "mine", "org/repo"], "--folder and --remove go without REPOSITORY"),
        (["mine", "org/repo", "--folder", "x"], "Give a NAME and its REPOSITORY, or --folder."),
        (["--folder", "./none"], "is not a folder"),
        (["--folder", "./none", "--remove"], "is not among the folders"),
    ],
)
def test_what_cannot_be_added_is_refused_and_the_file_stays(
    cli: Cli, home: Path, words: list[str], problem: str
) -> None:
    path = write_toml(home, LAYOUT)
    assert problem in cli("models", "add", *words, code=2).err
    assert path.read_text() == LAYOUT


def test_folders_are_added_and_taken_out_one_by_one(cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_toml(home, LAYOUT)
    monkeypatch.chdir(home)
    found = put(home / "llms/deep/mine.gguf", model())
    ran = cli("models", "add", "--folder", "llms")
    assert ran.err == f"Models are looked for in {home / 'llms'}.\n"
    assert '"/models", # the large disk' in path.read_text()
    assert cli("models", "list", "--json").json["models"][0]["path"] == str(found)
    before = path.read_text()
    cli("models", "add", "--folder", "~/llms")  # the same
    assert path.read_text() == before
    found.unlink()
    found.parent.rmdir()
    found.parent.parent.rmdir()
    assert cli("models", "add", "--folder", home / "llms", "--remove", "--json").json["folders"] == ["/models"]
    assert '"/models", # the large disk' in path.read_text()
    assert path.read_text().endswith(LAYOUT.partition("# short names")[2])
