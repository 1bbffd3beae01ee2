"""Models are found where each tool keeps them, by what it tells of them."""

from __future__ import annotations

import hashlib
import os
import time
from typing import get_args

from tests.gguf_builder import tiny_model
from tests.model_store import store_fixtures as stores
from tests.model_store.place_fixtures import A_MINUTE, MODEL, OTHER, SHA256, found_in, left_out, only, posix
from tests.model_store.store_fixtures import COMMIT, OTHER_COMMIT, link, put
from zephyr_local.gguf_split import read_model
from zephyr_local.model_store.places import Found, FoundModel, Owner, find_models, known_places

pytestmark = A_MINUTE


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
