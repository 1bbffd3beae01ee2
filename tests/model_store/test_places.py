"""Models are found where each tool keeps them, by what it tells of them; and nothing that lies there does harm."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from tests.gguf_builder import split_model, tiny_model, write_parts
from tests.model_store import store_fixtures as stores
from tests.model_store.store_fixtures import COMMIT, OTHER_COMMIT, link, put
from zephyr_local.gguf_split import read_model
from zephyr_local.model_store import places
from zephyr_local.model_store.places import Found, FoundModel, Owner, Place, find_models, known_places

MODEL = tiny_model(n_block=1).build()
OTHER = tiny_model(n_block=1, seed=1).build()
SHA256 = hashlib.sha256(MODEL).hexdigest()
DIGEST = f"sha256:{SHA256}"
ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.timeout(60)  # a pipe that is opened waits for ever
posix = pytest.mark.skipif(os.name == "nt", reason="Windows has neither pipes nor links without a privilege")


def found_in(owner: Owner, folder: Path) -> Found:
    return find_models([Place(owner, folder)])


def only(found: Found) -> FoundModel:
    assert found.notices == ()
    assert len(found.models) == 1
    return found.models[0]


def left_out(found: Found) -> str:
    """The one notice of a place in which no model was found."""
    assert found.models == ()
    assert len(found.notices) == 1
    return found.notices[0]


def names(found: Found) -> list[str]:
    return [model.name for model in found.models]


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """As a user to whom a mode of 0 means something."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def folders_of(owner: Owner, **given: object) -> list[Path]:
    given = {"store": Path("/store"), "environment": {}, "home": Path("/home/u"), "platform": "linux", **given}
    return [place.folder for place in known_places(**given) if place.owner == owner]


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


class TestEachTool:
    """A model in each tool's own layout, and what that tool tells of it."""

    def test_own_store(self, tmp_path):
        path = stores.put_in_store(tmp_path, MODEL)
        put(tmp_path / ".partial" / f"{SHA256}.gguf", MODEL)
        expected = FoundModel(path, "zephyr-local", "zephyr", "org/zephyr-GGUF", None, None, len(MODEL), (path,))
        assert only(found_in("zephyr-local", tmp_path)) == expected

    @posix
    def test_hugging_face_cache(self, tmp_path):
        path = stores.put_in_hub_cache(tmp_path, MODEL)
        model = only(found_in("huggingface", tmp_path))
        assert model == FoundModel(
            path, "huggingface", "zephyr", "org/zephyr-GGUF", COMMIT, SHA256, len(MODEL), (path,)
        )
        assert model.path.name == "zephyr.gguf", "the blob's name tells nothing"

    def test_hugging_face_cache_without_links(self, tmp_path):
        path = stores.put_in_hub_cache(tmp_path, MODEL, "org/zephyr-GGUF", "q4/zephyr.gguf", links=False)
        model = only(found_in("huggingface", tmp_path))
        assert (model.path, model.repository, model.revision, model.sha256) == (path, "org/zephyr-GGUF", COMMIT, None)

    @posix
    def test_hugging_face_cache_is_as_huggingface_hub_reads_it(self, tmp_path):
        from huggingface_hub import scan_cache_dir

        stores.put_in_hub_cache(tmp_path, MODEL)
        scanned = scan_cache_dir(tmp_path)
        assert scanned.warnings == []
        [repository] = scanned.repos
        [revision] = repository.revisions
        [file] = revision.files
        model = only(found_in("huggingface", tmp_path))
        assert (model.path, model.repository, model.revision) == (
            file.file_path,
            repository.repo_id,
            revision.commit_hash,
        )

    @posix
    def test_a_file_in_several_commits_is_reported_once_with_mains(self, tmp_path):
        for commit, ref in ((COMMIT, None), (OTHER_COMMIT, "main"), ("a" * 40, "v2")):
            stores.put_in_hub_cache(tmp_path, MODEL, commit=commit, ref=ref)
        assert only(found_in("huggingface", tmp_path)).revision == OTHER_COMMIT

    @posix
    def test_without_a_main_the_newest_commit_counts(self, tmp_path):
        for age_s, commit in ((300, COMMIT), (100, OTHER_COMMIT), (200, "a" * 40)):
            stores.put_in_hub_cache(tmp_path, MODEL, commit=commit, ref="v1")
            folder = tmp_path / "models--org--zephyr-GGUF" / "snapshots" / commit
            os.utime(folder, (time.time() - age_s,) * 2)
        assert only(found_in("huggingface", tmp_path)).revision == OTHER_COMMIT

    @posix
    def test_an_older_file_of_a_repository_is_found_at_its_commit(self, tmp_path):
        stores.put_in_hub_cache(tmp_path, MODEL, commit=COMMIT, ref=None)
        stores.put_in_hub_cache(tmp_path, OTHER, commit=OTHER_COMMIT)
        found = found_in("huggingface", tmp_path)
        assert [(model.revision, model.sha256) for model in found.models] == [
            (OTHER_COMMIT, hashlib.sha256(OTHER).hexdigest()),
            (COMMIT, SHA256),
        ]

    @posix
    def test_blobs_that_repositories_share(self, tmp_path):
        """The layout of huggingface_hub 2.4's utils/_shared_blobs.py: a repository's blob is itself a link."""
        shared = put(tmp_path / "blobs" / "ab" / ("ab" * 32), MODEL)
        for repository in ("org/first", "org/second"):
            path = stores.put_in_hub_cache(tmp_path, MODEL, repository)
            link(tmp_path / f"models--{repository.replace('/', '--')}" / "blobs" / SHA256, shared)
            assert path.read_bytes() == MODEL
        found = found_in("huggingface", tmp_path)
        assert [(model.repository, model.sha256) for model in found.models] == [
            ("org/first", SHA256),
            ("org/second", SHA256),
        ]

    @posix
    def test_only_a_blobs_name_is_a_digest(self, tmp_path):
        path = stores.put_in_hub_cache(tmp_path / "hub", MODEL)
        link(path, put(tmp_path / "elsewhere" / ("0" * 64), MODEL))
        link(path.with_name("small.gguf"), put(path.parents[2] / "blobs" / ("0" * 40), OTHER))  # git's own: SHA-1
        assert [model.sha256 for model in found_in("huggingface", tmp_path / "hub").models] == [None, None]

    def test_other_things_in_the_hugging_face_cache(self, tmp_path):
        stores.put_in_hub_cache(tmp_path, MODEL, "gpt2", links=False)
        for folder in ("datasets--org--data", "models--a--b--c", "models----", "models--..--..", "version.txt"):
            put(tmp_path / folder / "snapshots" / COMMIT / "zephyr.gguf", OTHER)
        put(tmp_path / "models--org--zephyr" / "snapshots" / "main" / "zephyr.gguf", OTHER)
        put(tmp_path / "models--org--zephyr" / "blobs" / f"{SHA256}.incomplete", OTHER)
        assert only(found_in("huggingface", tmp_path)).repository == "gpt2"

    def test_lm_studio(self, tmp_path):
        path = stores.put_in_lm_studio(tmp_path, MODEL, "org/zephyr-GGUF", "zephyr.Q4_K_M.gguf")
        put(path.with_name("zephyr.Q8_0.gguf.part"), MODEL)
        put(path.with_name("mmproj-model-f16.gguf"), MODEL)
        model = only(found_in("lm-studio", tmp_path))
        assert (model.path, model.name, model.repository) == (path, "zephyr.Q4_K_M", "org/zephyr-GGUF")

    def test_lm_studio_without_the_folders_that_it_wants(self, tmp_path):
        put(tmp_path / "zephyr" / "zephyr.gguf", MODEL)
        assert only(found_in("lm-studio", tmp_path)).repository is None

    def test_gpt4all(self, tmp_path):
        path = stores.put_in_gpt4all(tmp_path, MODEL)
        put(tmp_path / "incomplete-other.gguf", MODEL)
        put(tmp_path / "gpt4all-mistral.rmodel", b"{}")
        model = only(found_in("gpt4all", tmp_path))
        assert (model.path, model.name, model.repository) == (path, "zephyr-7b-beta.Q4_0", None)

    def test_llama_cpp(self, tmp_path):
        path = stores.put_in_llama_cpp(tmp_path, MODEL)
        put(tmp_path / "other.gguf.downloadInProgress", MODEL)
        put(tmp_path / "ggml-org_gemma_mmproj-model-f16.gguf", MODEL)
        model = only(found_in("llama.cpp", tmp_path))
        assert (model.path, model.name, model.repository) == (path, "org_zephyr-GGUF_zephyr", None)

    @posix
    def test_llama_cpp_in_the_layout_of_hugging_face(self, tmp_path):
        path = stores.put_in_hub_cache(tmp_path, MODEL)
        assert only(found_in("llama.cpp", tmp_path)) == FoundModel(
            path, "llama.cpp", "zephyr", "org/zephyr-GGUF", COMMIT, SHA256, len(MODEL), (path,)
        )

    def test_a_folder_to_search(self, tmp_path):
        deep = put(tmp_path / "a" / "b" / "Zephyr.GGUF", MODEL)
        put(tmp_path / "/".join("0123456789") / "too-deep.gguf", MODEL)
        put(tmp_path / ".cache" / "hidden.gguf", MODEL)
        put(tmp_path / "notes.txt", MODEL)
        model = only(found_in("folder", tmp_path))
        assert (model.path, model.name, model.repository) == (deep, "Zephyr", None)

    def test_a_folder_to_search_that_is_not_there(self, tmp_path):
        assert "not there" in left_out(found_in("folder", tmp_path / "gone"))
        assert found_in("lm-studio", tmp_path / "gone") == Found((), ()), "nobody has every tool"
        put(tmp_path / "file", MODEL)
        assert f"{tmp_path / 'file'} cannot be read" in left_out(found_in("folder", tmp_path / "file"))

    @posix
    def test_everywhere_at_once_in_a_users_home(self, tmp_path):
        owners = [owner for owner in get_args(Owner) if owner != "checkout"]
        models = {owner: tiny_model(n_block=1, name=owner).build() for owner in owners}
        paths = stores.put_everywhere(tmp_path, models)
        known = known_places(
            store=tmp_path / ".local/share/zephyr-local/models",
            search_folders=[tmp_path / "models"],
            environment={},
            home=tmp_path,
            platform="linux",
        )
        at_home = [place for place in known if tmp_path in place.folder.parents]
        found = find_models(at_home)
        assert found.notices == ()
        assert {model.owner: model.path for model in found.models} == paths
        assert [model.owner for model in found.models] == owners
        for model in found.models:
            assert read_model(model.path).text("general.name") == model.owner


class TestOllama:
    def test_a_pulled_model(self, tmp_path):
        path = stores.put_in_ollama(tmp_path, MODEL, "zephyr", "7b")
        expected = FoundModel(path, "ollama", "zephyr:7b", None, None, SHA256, len(MODEL), (path,))
        assert only(found_in("ollama", tmp_path)) == expected

    @pytest.mark.parametrize(
        ("host", "namespace", "name", "repository"),
        [
            ("registry.ollama.ai", "library", "zephyr:7b", None),
            ("ollama.com", "library", "zephyr:7b", None),
            ("registry.ollama.ai", "me", "me/zephyr:7b", None),
            ("hf.co", "TheBloke", "hf.co/TheBloke/zephyr:7b", "TheBloke/zephyr"),
            ("huggingface.co", "TheBloke", "huggingface.co/TheBloke/zephyr:7b", "TheBloke/zephyr"),
            ("registry.example", "library", "registry.example/library/zephyr:7b", None),
        ],
    )
    def test_names(self, tmp_path, host, namespace, name, repository):
        stores.put_in_ollama(tmp_path, MODEL, host=host, namespace=namespace)
        model = only(found_in("ollama", tmp_path))
        assert (model.name, model.repository) == (name, repository)

    def test_two_tags_of_one_blob_are_two_models(self, tmp_path):
        for tag in ("7b", "latest"):
            path = stores.put_in_ollama(tmp_path, MODEL, "zephyr", tag)
        found = found_in("ollama", tmp_path)
        assert names(found) == ["zephyr:7b", "zephyr:latest"]
        assert {model.path for model in found.models} == {path}

    @posix
    @pytest.mark.parametrize("inline", [False, True])
    @pytest.mark.parametrize("links", [False, True])
    def test_a_list_of_manifests(self, tmp_path, inline, links):
        path = stores.put_in_ollama_v2(tmp_path, MODEL, inline=inline, links=links)
        model = only(found_in("ollama", tmp_path))
        assert (model.path, model.name, model.sha256) == (path, "zephyr:7b", SHA256)

    @posix
    def test_what_is_in_both_folders_of_manifests_is_the_newer_ones(self, tmp_path):
        stores.put_in_ollama(tmp_path, OTHER)
        newer = stores.put_in_ollama_v2(tmp_path, MODEL)
        assert only(found_in("ollama", tmp_path)).path == newer
        link(tmp_path / "manifests-v2/ollama.com/library/zephyr/7b", tmp_path / "blobs" / f"sha256-{'0' * 64}")
        assert only(found_in("ollama", tmp_path)).path != newer, "a link to nothing: the older one is there still"

    @posix
    def test_blobs_with_a_colon_as_they_once_were(self, tmp_path):
        path = stores.put_in_ollama(tmp_path, MODEL)
        path.rename(path.with_name(DIGEST))
        assert only(found_in("ollama", tmp_path)).path == path.with_name(DIGEST)

    def test_a_vision_model_is_its_text_model(self, tmp_path):
        stores.put_in_ollama(tmp_path, MODEL, layers=[("projector", OTHER)])
        assert only(found_in("ollama", tmp_path)).sha256 == SHA256

    def test_an_adapter_is_not_passed_over(self, tmp_path):
        stores.put_in_ollama(tmp_path, MODEL, "mine", "latest", layers=[("adapter", OTHER)])
        assert "mine:latest is left out: it has an adapter" in left_out(found_in("ollama", tmp_path))

    def test_what_is_in_no_gguf_is_none_of_our_business(self, tmp_path):
        manifest = stores.ollama_manifest(tmp_path, [("tensor", b"weights")])
        put(tmp_path / "manifests/registry.ollama.ai/library/mlx/7b", json.dumps(manifest).encode())
        put(tmp_path / "manifests/registry.ollama.ai/library/cloud/7b", b'{"layers": null}')
        put(tmp_path / "manifests/registry.ollama.ai/library/.DS_Store", b"finder")
        put(tmp_path / "manifests/registry.ollama.ai/library/zephyr/.manifest-1", b"being written")
        put(tmp_path / "manifests/readme.txt", b"a stray file")
        assert found_in("ollama", tmp_path) == Found((), ())

    @pytest.mark.parametrize(
        ("manifest", "said"),
        [
            (b"", "damaged"),
            (b"{", "damaged"),
            (b"\xff\xfe", "damaged"),
            (b"[" * 100_000, "damaged"),
            (b"[]", "damaged"),
            (b"9" * 10_000, "damaged"),
            (b"{}" + b" " * (5 << 20), "damaged"),
            (b'{"layers": 5}', "damaged"),
            (b'{"layers": [5]}', "damaged"),
            (b'{"mediaType": "%s"}' % stores.MANIFEST_LIST.encode(), "list of manifests is damaged"),
            (b'{"mediaType": "%s", "manifests": [5]}' % stores.MANIFEST_LIST.encode(), "damaged"),
        ],
    )
    def test_damaged_manifests(self, tmp_path, manifest, said):
        path = put(tmp_path / "manifests/registry.ollama.ai/library/zephyr/7b", manifest)
        notice = left_out(found_in("ollama", tmp_path))
        assert "Ollama's zephyr:7b is left out" in notice
        assert said in notice
        assert str(path) in notice

    @pytest.mark.parametrize(
        "digest",
        [
            "",
            "sha256:",
            "sha256-../../../etc/passwd",
            f"sha256:{'0' * 63}",
            f"sha256-{'0' * 64}\n",
            f"md5:{'0' * 64}",
            5,
        ],
    )
    def test_digests_that_lead_elsewhere(self, tmp_path, digest):
        manifest = {"layers": [{"mediaType": f"{stores.IMAGE}model", "digest": digest}]}
        put(tmp_path / "manifests/registry.ollama.ai/library/zephyr/7b", json.dumps(manifest).encode())
        assert "other than a SHA-256" in left_out(found_in("ollama", tmp_path))
        child = {"manifests": [{"runner": "ollama", "digest": digest or "x"}], "mediaType": stores.MANIFEST_LIST}
        put(tmp_path / "manifests/registry.ollama.ai/library/zephyr/7b", json.dumps(child).encode())
        assert "other than a SHA-256" in left_out(found_in("ollama", tmp_path))

    def test_several_model_layers(self, tmp_path):
        stores.put_in_ollama(tmp_path, MODEL, layers=[("model", OTHER)])
        assert "made of 2 files" in left_out(found_in("ollama", tmp_path))
        stores.put_in_ollama(tmp_path, MODEL, layers=[("model", MODEL)])
        assert only(found_in("ollama", tmp_path)).sha256 == SHA256

    def test_a_blob_that_is_missing_or_no_gguf(self, tmp_path):
        path = stores.put_in_ollama(tmp_path, MODEL)
        path.write_bytes(b"tjgg" + MODEL[4:])
        assert f"{path} is not a GGUF" in left_out(found_in("ollama", tmp_path))
        path.unlink()
        assert f"its blob {path} is missing" in left_out(found_in("ollama", tmp_path))
        put(path.with_name(f"{path.name}-partial"), MODEL)
        assert "is missing" in left_out(found_in("ollama", tmp_path))

    @posix
    @pytest.mark.parametrize("folder", ["manifests", "manifests-v2"])
    def test_a_manifest_that_is_a_link_out_of_the_store(self, tmp_path, folder):
        stores.put_in_ollama(tmp_path / "models", MODEL)
        elsewhere = put(tmp_path / f"sha256-{'0' * 64}", b"{}")
        link(tmp_path / "models" / folder / "ollama.com/library/zephyr/evil", elsewhere)
        (tmp_path / "models" / folder / "ollama.com/library/zephyr/loop").symlink_to("loop")
        found = found_in("ollama", tmp_path / "models")
        assert names(found) == ["zephyr:7b"]
        assert [notice.partition(" is left out")[0] for notice in found.notices] == [
            "Ollama's zephyr:evil",
            "Ollama's zephyr:loop",
        ]

    @posix
    def test_pipes_in_the_store(self, tmp_path):
        path = stores.put_in_ollama(tmp_path, MODEL)
        os.mkfifo(tmp_path / "manifests/registry.ollama.ai/library/zephyr/pipe")
        path.unlink()
        os.mkfifo(path)
        assert "zephyr:pipe is left out: its manifest is damaged" in left_out(found_in("ollama", tmp_path))


class TestFiles:
    def test_what_is_no_model(self, tmp_path):
        put(tmp_path / "empty.gguf", b"")
        for name in ("mmproj-f16.gguf", "MMPROJ.GGUF", "zephyr-mmproj-f16.gguf", "imatrix.gguf", "zephyr.imatrix.gguf"):
            put(tmp_path / name, MODEL)
        for name in ("x.gguf.part", "x.gguf.incomplete", "x.gguf.crdownload", ".x.gguf", "gguf", "x.bin", "xgguf"):
            put(tmp_path / name, MODEL)
        (tmp_path / "folder.gguf").mkdir()
        assert found_in("folder", tmp_path) == Found((), ())
        put(tmp_path / "folder.gguf" / "zephyr-imatrix-q4.gguf", MODEL)
        assert only(found_in("folder", tmp_path)).name == "zephyr-imatrix-q4"

    @pytest.mark.parametrize("data", [b"version https://git-lfs.github.com/spec/v1\n", b"GGU", b"FUGG" + b"\0" * 64])
    def test_what_only_has_the_name_of_a_gguf(self, tmp_path, data):
        path = put(tmp_path / "zephyr.gguf", data)
        assert left_out(found_in("folder", tmp_path)) == f"{path} is not a GGUF file"

    def test_a_model_in_parts_is_one(self, tmp_path):
        paths = write_parts(split_model(tiny_model(), 5, 9), tmp_path)
        model = only(found_in("checkout", tmp_path))
        assert (model.name, model.path, model.files) == ("zephyr", paths[0], tuple(paths))
        assert model.size_bytes == sum(path.stat().st_size for path in paths)
        assert model.sha256 is None
        assert read_model(model.path).size_bytes == model.size_bytes

    @posix
    def test_a_model_in_parts_in_the_hugging_face_cache(self, tmp_path):
        (tmp_path / "built").mkdir()
        for path in write_parts(split_model(tiny_model(), 5), tmp_path / "built"):
            first = stores.put_in_hub_cache(tmp_path / "hub", path.read_bytes(), file=f"q4/{path.name}")
        model = only(found_in("huggingface", tmp_path / "hub"))
        assert model.name == "zephyr"
        assert model.revision == COMMIT
        assert model.sha256 is None
        assert model.files == (first.with_name("zephyr-00001-of-00002.gguf"), first)
        assert len(read_model(model.path).parts) == 2

    @pytest.mark.parametrize("missing", [0, 1, 2])
    def test_a_part_that_is_missing(self, tmp_path, missing):
        gone = write_parts(split_model(tiny_model(), 5, 9), tmp_path)[missing]
        gone.unlink()
        assert left_out(found_in("folder", tmp_path)) == f"{gone}, part {missing + 1} of 3, is missing"

    def test_a_part_that_is_no_part(self, tmp_path):
        gone = write_parts(split_model(tiny_model(), 5, 9), tmp_path)[1]
        gone.write_bytes(b"")
        assert left_out(found_in("folder", tmp_path)) == f"{gone}, part 2 of 3, is unusable"

    def test_later_parts_alone(self, tmp_path):
        paths = write_parts(split_model(tiny_model(), 5, 9), tmp_path)
        paths[0].unlink()
        paths[1].unlink()
        assert "part 1 of 3, is missing" in left_out(found_in("folder", tmp_path))

    def test_parts_of_two_models_side_by_side(self, tmp_path):
        write_parts(split_model(tiny_model(), 5), tmp_path, "a")
        write_parts(split_model(tiny_model(), 5), tmp_path, "b")
        write_parts(split_model(tiny_model(), 5, 9), tmp_path, "a")
        found = found_in("folder", tmp_path)
        assert [(model.name, len(model.files)) for model in found.models] == [("a", 2), ("a", 3), ("b", 2)]

    def test_numbers_that_are_none_of_a_part(self, tmp_path):
        put(tmp_path / "a-00001-of-00001.gguf", MODEL)
        put(tmp_path / "b-00000-of-00002.gguf", MODEL)
        put(tmp_path / "c-00003-of-00002.gguf", MODEL)
        put(tmp_path / "d-00001-of-99999.gguf", MODEL)
        put(tmp_path / "-00001-of-00001.gguf", MODEL)
        found = found_in("folder", tmp_path)
        assert sorted(names(found)) == ["-00001-of-00001", "a", "b-00000-of-00002", "c-00003-of-00002"]
        assert [notice.rpartition("/")[2] for notice in found.notices] == [
            "d-00001-of-99999.gguf is one of 99999 parts, over the limit of 1024"
        ]

    @posix
    @pytest.mark.parametrize("name", ["new\nline", "\x1b[31mred", "日本 é", "-rf", "a" * 240, "%s{0}$HOME"])
    def test_names_are_anything(self, tmp_path, name):
        path = put(tmp_path / f"{name}.gguf", MODEL)
        model = only(found_in("folder", tmp_path))
        assert (model.name, model.path) == (name, path)
        parts = write_parts(split_model(tiny_model(), 5), tmp_path, name[:200])
        assert tuple(parts) in {model.files for model in found_in("folder", tmp_path).models}

    @pytest.mark.skipif(os.name == "nt" or os.uname().sysname == "Darwin", reason="names there are text")
    def test_a_name_that_is_no_text(self, tmp_path):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.gguf"))
        put(path, MODEL)
        assert only(found_in("folder", tmp_path)).path == path

    @posix
    def test_pipes_sockets_and_devices(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.gguf")
        os.mkfifo(tmp_path / "zephyr-00001-of-00002.gguf")
        (tmp_path / "device.gguf").symlink_to("/dev/zero")
        (tmp_path / "here.gguf").symlink_to(tmp_path)
        assert "part 1 of 2, is unusable" in left_out(found_in("folder", tmp_path))

    @posix
    def test_pipes_where_a_tool_keeps_what_it_remembers(self, tmp_path):
        (tmp_path / ".lmstudio").mkdir()
        (tmp_path / ".config" / "nomic.ai").mkdir(parents=True)
        path = stores.put_in_hub_cache(tmp_path / "hub", MODEL)
        reference = tmp_path / "hub" / "models--org--zephyr-GGUF" / "refs" / "main"
        reference.unlink()
        for pipe in (".lmstudio-home-pointer", ".lmstudio/settings.json", ".config/nomic.ai/GPT4All.ini", reference):
            os.mkfifo(tmp_path / pipe)
        assert folders_of("lm-studio", home=tmp_path)[0] == tmp_path / ".lmstudio" / "models"
        assert folders_of("gpt4all", home=tmp_path)[-1] == tmp_path / ".cache" / "gpt4all"
        assert only(found_in("huggingface", tmp_path / "hub")).path == path

    @posix
    def test_links_to_folders_are_followed_once(self, tmp_path):
        put(tmp_path / "disk" / "zephyr.gguf", MODEL)
        (tmp_path / "models" / "deep").mkdir(parents=True)
        (tmp_path / "models" / "disk").symlink_to(tmp_path / "disk")
        (tmp_path / "models" / "deep" / "up").symlink_to("..")
        (tmp_path / "models" / "here").symlink_to(".")
        (tmp_path / "disk" / "again").symlink_to(tmp_path / "disk")
        model = only(found_in("folder", tmp_path / "models"))
        assert model.path == tmp_path / "models" / "disk" / "zephyr.gguf"

    @posix
    def test_links_that_lead_nowhere(self, tmp_path):
        path = stores.put_in_hub_cache(tmp_path, MODEL)
        (tmp_path / "models--org--zephyr-GGUF" / "blobs" / SHA256).unlink()
        assert left_out(found_in("huggingface", tmp_path)) == f"{path} is a link to a file that is not there"
        path.unlink()
        path.symlink_to(path.name)
        assert f"{path} cannot be read" in left_out(found_in("huggingface", tmp_path))

    @posix
    def test_what_may_not_be_read(self):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            closed = put(folder / "closed.gguf", MODEL)
            behind = put(folder / "private" / "behind.gguf", MODEL).parent
            put(folder / "open.gguf", MODEL)
            for path, mode in ((folder, 0o755), (closed, 0), (behind, 0)):
                path.chmod(mode)
            try:
                with nobody():
                    found = found_in("folder", folder)
            finally:
                behind.chmod(0o700)
        assert names(found) == ["open"]
        assert len(found.notices) == 2
        for path, notice in zip((closed, behind), found.notices, strict=True):
            assert f"{path} cannot be read: Permission denied" in notice

    @posix
    def test_a_store_that_may_not_be_read_is_told_in_one_line(self):
        """As /usr/share/ollama is for those who are not in its group."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            folder.chmod(0o755)
            stores.put_in_ollama(folder / "ollama" / "models", MODEL)
            (folder / "ollama").chmod(0)
            try:
                with nobody():
                    found = found_in("ollama", folder / "ollama" / "models")
            finally:
                (folder / "ollama").chmod(0o700)
        assert "cannot be read: Permission denied" in left_out(found)


class TestOnceAndWithinLimits:
    @posix
    def test_a_file_in_two_places_is_the_more_telling_ones(self, tmp_path):
        cached = stores.put_in_hub_cache(tmp_path / "hub", MODEL)
        link(tmp_path / "lm" / "org" / "zephyr" / "zephyr.gguf", cached)
        mine = put(tmp_path / "mine" / "mine.gguf", OTHER)
        (tmp_path / "gpt4all").mkdir()
        os.link(mine, tmp_path / "gpt4all" / "hard.gguf")
        found = find_models(
            [
                Place("folder", tmp_path / "mine"),
                Place("lm-studio", tmp_path / "lm"),
                Place("gpt4all", tmp_path / "gpt4all"),
                Place("huggingface", tmp_path / "hub"),
                Place("folder", tmp_path),
            ]
        )
        assert [(model.owner, model.name) for model in found.models] == [("huggingface", "zephyr"), ("gpt4all", "hard")]

    def test_a_place_that_is_given_twice(self, tmp_path):
        put(tmp_path / "a" / "zephyr.gguf", MODEL)
        put(tmp_path / "a" / "bad.gguf", b"bad")
        found = find_models([Place("folder", tmp_path), Place("folder", tmp_path / "a"), Place("folder", tmp_path)])
        assert names(found) == ["zephyr"]
        assert len(found.notices) == 1

    def test_two_files_of_one_content_are_two(self, tmp_path):
        put(tmp_path / "a.gguf", MODEL)
        put(tmp_path / "b.gguf", MODEL)
        assert names(found_in("folder", tmp_path)) == ["a", "b"]

    def test_a_place_without_end(self, tmp_path, monkeypatch):
        for number in range(20):
            put(tmp_path / f"{number:02}" / f"{number:02}.gguf", MODEL)
        assert len(found_in("folder", tmp_path).models) == 20
        monkeypatch.setattr(places, "MAX_ENTRIES", 25)
        found = find_models([Place("folder", tmp_path), Place("lm-studio", tmp_path / "19")])
        assert names(found) == ["19", "00", "01", "02", "03", "04"], "the limit is each place's own"
        assert found.notices == (f"{tmp_path} has more than 25 files: not all were looked at",)

    def test_a_place_full_of_damage(self, tmp_path):
        for number in range(places.MAX_NOTICES + 5):
            put(tmp_path / f"{number}.gguf", b"damage")
        found = found_in("folder", tmp_path)
        assert len(found.notices) == places.MAX_NOTICES + 1
        assert found.notices[-1] == f"{tmp_path}: 5 more such problems"

    @posix
    def test_a_thousand_models_and_a_huge_one(self, tmp_path):
        """Of a file its first bytes are read: the huge one has 64 GiB, all of them a hole."""
        for number in range(1000):
            put(tmp_path / str(number % 50) / f"{number}.gguf", b"GGUF")
        with put(tmp_path / "huge.gguf", b"GGUF").open("r+b") as file:
            file.truncate(64 << 30)
        begun = time.monotonic()
        found = found_in("folder", tmp_path)
        elapsed_s = time.monotonic() - begun
        assert len(found.models) == 1001
        assert found.models[0].size_bytes == 64 << 30
        assert elapsed_s < 10, "a watchdog: some hundredths of a second are usual"

    @posix
    def test_nothing_is_written_anywhere(self, tmp_path):
        owners = [owner for owner in get_args(Owner) if owner != "checkout"]
        stores.put_everywhere(tmp_path, dict.fromkeys(owners, MODEL))
        put(tmp_path / ".lmstudio" / "settings.json", b"{}")

        def everything() -> dict[Path, tuple[int, int, int]]:
            states = ((path, path.lstat()) for path in [tmp_path, *tmp_path.rglob("*")])
            return {path: (status.st_mtime_ns, status.st_size, status.st_ino) for path, status in states}

        before = everything()
        find_models(known_places(store=tmp_path / "store", environment={}, home=tmp_path, platform="darwin"))
        assert everything() == before
