"""Which files are models, and which parts are one; and nothing that lies there does harm."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from tests.gguf_builder import split_model, tiny_model, write_parts
from tests.model_store import store_fixtures as stores
from tests.model_store.place_fixtures import (
    A_MINUTE,
    MODEL,
    SHA256,
    folders_of,
    found_in,
    left_out,
    names,
    nobody,
    only,
    posix,
)
from tests.model_store.store_fixtures import COMMIT, put
from zephyr_local.gguf_split import read_model
from zephyr_local.model_store.places import Found

pytestmark = A_MINUTE


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
