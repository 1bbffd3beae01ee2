"""Where each tool keeps its models: its default, its variables and its settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from tests.model_store.place_fixtures import A_MINUTE, folders_of
from tests.model_store.store_fixtures import put
from zephyr_local.model_store.places import Owner, Place, find_models, known_places

pytestmark = A_MINUTE

ROOT = Path(__file__).resolve().parents[2]


class TestWhereToLook:
    def test_own_store_and_checkout_and_search_folders(self):
        search = [Path("/mnt/models"), Path("~/more")]
        assert folders_of("zephyr-local") == [Path("/store")]
        assert folders_of("checkout") == [ROOT / "models"]
        assert folders_of("folder", search_folders=search) == [Path("/mnt/models"), Path("/home/u/more")]

    def test_owners_come_in_the_order_of_what_they_tell(self):
        owners = [place.owner for place in known_places(store=Path("/store"), search_folders=[Path("/mnt")])]
        assert list(dict.fromkeys(owners)) == list(get_args(Owner))

    @pytest.mark.parametrize(
        ("environment", "folder"),
        [
            ({}, "/home/u/.cache/huggingface/hub"),
            ({"XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
            ({"XDG_CACHE_HOME": "/x", "HF_HOME": "~/hf"}, "/home/u/hf/hub"),
            ({"HF_HOME": "/hf", "HUGGINGFACE_HUB_CACHE": "$BIG/hub", "BIG": "/mnt"}, "/mnt/hub"),
            ({"HF_HUB_CACHE": "/hub", "HUGGINGFACE_HUB_CACHE": "/old"}, "/hub"),
            ({"HF_HUB_CACHE": ""}, "/home/u/.cache/huggingface/hub"),
        ],
    )
    @pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
    def test_hugging_face(self, environment, folder, platform):
        assert folders_of("huggingface", environment=environment, platform=platform) == [Path(folder)]

    def test_hugging_face_below_a_home_that_is_nobodys(self):
        assert folders_of("huggingface", environment={"HF_HOME": "~nobody-of-this-name/hf"}) == []

    @pytest.mark.parametrize(
        ("platform", "environment", "folders"),
        [
            ("linux", {}, [".local/share/nomic.ai/GPT4All", ".cache/gpt4all"]),
            ("linux", {"XDG_DATA_HOME": "/d"}, ["/d/nomic.ai/GPT4All", ".cache/gpt4all"]),
            ("darwin", {}, ["Library/Application Support/nomic.ai/GPT4All", ".cache/gpt4all"]),
            ("win32", {}, ["AppData/Local/nomic.ai/GPT4All", ".cache/gpt4all"]),
            ("win32", {"LOCALAPPDATA": "/l"}, ["/l/nomic.ai/GPT4All", ".cache/gpt4all"]),
        ],
    )
    def test_gpt4all(self, platform, environment, folders):
        expected = [Path("/home/u") / folder for folder in folders]
        assert folders_of("gpt4all", platform=platform, environment=environment) == expected

    @pytest.mark.parametrize(
        ("platform", "environment", "folder"),
        [
            ("linux", {}, ".cache/llama.cpp"),
            ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/llama.cpp"),
            ("darwin", {"XDG_CACHE_HOME": "/x"}, "Library/Caches/llama.cpp"),
            ("win32", {}, "AppData/Local/llama.cpp"),
            ("win32", {"LOCALAPPDATA": "/l"}, "/l/llama.cpp"),
            ("linux", {"LLAMA_CACHE": "/c"}, "/c"),
        ],
    )
    def test_llama_cpp(self, platform, environment, folder):
        expected = [Path("/home/u") / folder]
        assert folders_of("llama.cpp", platform=platform, environment=environment) == expected

    def test_ollama(self):
        own, system = Path("/home/u/.ollama/models"), Path("/usr/share/ollama/.ollama/models")
        assert folders_of("ollama", platform="darwin") == [own]
        assert folders_of("ollama", platform="win32") == [own]
        assert folders_of("ollama")[:2] == [own, system]
        assert Path("/var/lib/ollama") in folders_of("ollama")
        moved = {"OLLAMA_MODELS": ' "/mnt/ollama" '}  # Ollama takes quotes and spaces off
        assert folders_of("ollama", platform="win32", environment=moved) == [Path("/mnt/ollama"), own]

    def test_lm_studio(self, tmp_path):
        new, old = tmp_path / ".lmstudio" / "models", tmp_path / ".cache" / "lm-studio" / "models"
        assert folders_of("lm-studio", home=tmp_path) == [new, old]
        put(tmp_path / ".lmstudio-home-pointer", f"{tmp_path}/elsewhere\n".encode())
        put(tmp_path / "elsewhere/settings.json", json.dumps({"downloadsFolder": "/mnt/lm"}).encode())
        moved = [Path("/mnt/lm"), tmp_path / "elsewhere" / "models"]
        assert folders_of("lm-studio", home=tmp_path) == [*moved, new, old]
        by_variable = folders_of("lm-studio", home=tmp_path, environment={"LMSTUDIO_HOME": "/lm"})
        assert by_variable == [Path("/lm/models"), *moved, new, old]

    @pytest.mark.parametrize(
        "settings", [b"", b"{", b"[" * 100_000, b"[]", b'{"downloadsFolder": 5}', b'{"downloadsFolder": ""}', b"\xff"]
    )
    def test_damaged_settings_of_lm_studio(self, tmp_path, settings):
        put(tmp_path / ".lmstudio" / "settings.json", settings)
        assert folders_of("lm-studio", home=tmp_path)[0] == tmp_path / ".lmstudio" / "models"

    def test_settings_that_name_what_is_no_path(self, tmp_path):
        put(tmp_path / ".lmstudio-home-pointer", b"a\0b")
        put(tmp_path / ".lmstudio" / "settings.json", json.dumps({"downloadsFolder": "x" * 10_000}).encode())
        found = find_models([Place("lm-studio", folder) for folder in folders_of("lm-studio", home=tmp_path)])
        assert found.models == ()
        assert len(found.notices) == 2

    @pytest.mark.parametrize(
        ("line", "folder"),
        [
            ("modelPath=/mnt/models/", "/mnt/models"),
            ('modelPath="/mnt/a, b/"', "/mnt/a, b"),
            (r'modelPath="C:\\models"', r"C:\models"),
        ],
    )
    def test_settings_of_gpt4all(self, tmp_path, line, folder):
        text = f"[General]\nchatTheme=Light\n{line}\n\n[localdocs]\nchunkSize=512\n"
        put(tmp_path / ".config" / "nomic.ai" / "GPT4All.ini", text.encode())
        assert folders_of("gpt4all", home=tmp_path)[0] == Path(folder)
        assert folders_of("gpt4all", home=tmp_path, platform="darwin")[0] == Path(folder)
        put(tmp_path / "roaming" / "nomic.ai" / "GPT4All.ini", b"[General]\r\nmodelPath=D:/m\r\n")
        windows = {"APPDATA": str(tmp_path / "roaming")}
        assert folders_of("gpt4all", platform="win32", environment=windows)[0] == Path("D:/m")

    def test_by_default_this_process_is_asked(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("USERPROFILE", str(tmp_path))
        monkeypatch.setenv("OLLAMA_MODELS", "/mnt/ollama")
        known = known_places(store=tmp_path)
        assert Place("ollama", Path("/mnt/ollama")) in known
        assert Place("ollama", tmp_path / ".ollama" / "models") in known
