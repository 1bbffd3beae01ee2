"""Models in Ollama's store, by its manifests; and damaged or hostile ones do no harm."""

from __future__ import annotations

import json
import os

import pytest

from tests.model_store import store_fixtures as stores
from tests.model_store.place_fixtures import A_MINUTE, MODEL, OTHER, SHA256, found_in, left_out, names, only, posix
from tests.model_store.store_fixtures import link, put
from zephyr_local.model_store.places import Found, FoundModel

pytestmark = A_MINUTE

DIGEST = f"sha256:{SHA256}"


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
