"""Models in several files: joined as llama.cpp joins them, and damaged sets refused before it sees them."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.cli.command import zephyr_local
from tests.engine.scheduling import chat_answer
from tests.gguf_builder import TinyModel, model_of_file, split_model, tiny_model, write_parts
from tests.test_gguf_file import survive
from zephyr_local.chat_types import Message
from zephyr_local.data import bundled_model_path
from zephyr_local.engine.session import Session
from zephyr_local.errors import ModelFileError, ModelNotFoundError
from zephyr_local.gguf_check import check_runnable
from zephyr_local.gguf_file import read_gguf
from zephyr_local.gguf_split import MAX_PARTS, part_file_name, read_model
from zephyr_local.settings import EngineSettings, Sampling

COUNT, NO, TENSORS = "split.count", "split.no", "split.tensors.count"
CUTS = (4, 11)


def tiny_parts() -> list[TinyModel]:
    return split_model(tiny_model(), *CUTS)


def refusal(path: Path) -> str:
    with pytest.raises(ModelFileError) as caught:
        check_runnable(read_model(path))
    assert caught.value.remedy
    return str(caught.value)


def greedy_answer(path: Path) -> str:
    settings = EngineSettings(n_ctx=512, n_threads=1)
    session = Session.open(path, settings, template="zephyr")
    try:
        chat = [Message("user", "Hello, who are you?")]
        return chat_answer(session, settings, chat, Sampling(temperature=0, max_tokens=40))
    finally:
        session.close()


def test_the_parts_are_one_model_whose_tensors_know_where_they_lie(tmp_path: Path) -> None:
    model = tiny_model()
    paths = write_parts(split_model(model, *CUTS), tmp_path)
    whole = read_model(paths[0])
    check_runnable(whole)
    assert whole.path == paths[0]
    assert [part.path for part in whole.parts] == paths
    assert whole.files == whole.parts
    assert whole.size_bytes == sum(path.stat().st_size for path in paths)
    assert whole.metadata["general.name"] == "zephyr test"
    assert [tensor.name for tensor in whole.tensors] == [tensor.name for tensor in model.tensors]
    assert [tensor.part for tensor in whole.tensors] == [0] * 4 + [1] * 7 + [2] * (len(model.tensors) - 11)
    for tensor, built in zip(whole.tensors, model.tensors, strict=True):
        path, start = whole.locate(tensor)
        assert path.read_bytes()[start : start + tensor.size_bytes] == built.data


def test_a_model_in_one_file_is_itself(tmp_path: Path) -> None:
    path = tiny_model().write(tmp_path / "model.gguf")
    whole = read_model(path)
    assert whole == read_gguf(path)
    assert whole.parts == ()
    assert whole.files == (whole,)
    assert whole.locate(whole.tensors[1]) == (path, whole.data_offset + whole.tensors[1].offset)
    with pytest.raises(ModelNotFoundError):
        read_model(tmp_path / "absent.gguf")


@pytest.mark.parametrize("cuts", [(0,), (5, 20), (3, 3, 39), tuple(range(1, 39))], ids=len)
def test_a_split_model_answers_as_the_whole_one(tmp_path: Path, cuts: tuple[int, ...]) -> None:
    """Also with parts that have no tensors: llama-gguf-split --no-tensor-first-split makes such a first one."""
    paths = write_parts(split_model(model_of_file(bundled_model_path()), *cuts), tmp_path)
    expected = greedy_answer(bundled_model_path())
    assert expected
    assert greedy_answer(paths[0]) == expected


def test_parts_that_are_links_load_under_the_names_of_the_links(tmp_path: Path) -> None:
    """As the cache of a model hub keeps them."""
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for path in write_parts(tiny_parts(), blobs):
        blob = path.replace(blobs / path.name[7:12])
        (tmp_path / path.name).symlink_to(blob)
    assert greedy_answer(tmp_path / "zephyr-00001-of-00003.gguf")


def test_reads_and_runs_what_the_reference_writer_splits(tmp_path: Path) -> None:
    model = tiny_model()
    writer = gguf.GGUFWriter(tmp_path / "zephyr.gguf", "llama", split_max_tensors=6)
    kinds = {"u32": writer.add_uint32, "f32": writer.add_float32, "bool": writer.add_bool, "str": writer.add_string}
    for key, (type_name, value) in model.metadata.items():
        if key != "general.architecture":
            kinds.get(type_name, writer.add_array)(key, value)
    for tensor in model.tensors:
        writer.add_tensor(tensor.name, np.frombuffer(tensor.data, "<f4").reshape(tensor.shape[::-1]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    first = tmp_path / "zephyr-00001-of-00004.gguf"
    whole = read_model(first)
    check_runnable(whole)
    assert len(whole.parts) == 4
    assert greedy_answer(first) == greedy_answer(model.write(tmp_path / "zephyr.gguf"))


def test_a_part_alone_is_refused_and_the_first_one_named(tmp_path: Path) -> None:
    paths = write_parts(tiny_parts(), tmp_path)
    assert f"part 2 of 3 of a split model. Give the first part, {paths[0]}," in refusal(paths[1])
    for path in paths:  # the bare header, never joined
        with pytest.raises(ModelFileError, match="of a split model"):
            check_runnable(read_gguf(path))
    other = tmp_path / "other.gguf"
    shutil.copy(paths[2], other)
    assert "the first part, whose name ends in -00001-of-00003.gguf" in refusal(other)


@pytest.mark.parametrize(
    "name", ["zephyr.gguf", "zephyr-00001-of-00003.GGUF", "zephyr-1-of-3.gguf", "zephyr-00001-of-00004.gguf"]
)
def test_names_by_which_llama_cpp_finds_no_parts(tmp_path: Path, name: str) -> None:
    paths = write_parts(tiny_parts(), tmp_path)
    paths[0].rename(tmp_path / name)
    assert "it is not named NAME-00001-of-00003.gguf" in refusal(tmp_path / name)


def test_a_name_without_a_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parts(tiny_parts(), tmp_path, stem="")
    monkeypatch.chdir(tmp_path)
    assert "it is not named NAME-" in refusal(Path("-00001-of-00003.gguf"))
    assert greedy_answer(tmp_path / "-00001-of-00003.gguf"), "the folder is a prefix"


@pytest.mark.parametrize(
    ("part", "key", "typed", "said"),
    [
        (0, COUNT, ("u16", 2), "it is not named NAME-00001-of-00002.gguf"),
        (0, COUNT, ("u16", 65535), "split.count is 65535, over the limit of 1024"),
        (0, COUNT, ("u32", 3), "split.count has the type u32; it must be u16"),
        (0, COUNT, ("u16", 1), "is missing"),  # then it is a whole model, which lacks tensors
        (0, NO, None, "the key split.no is missing"),
        (0, NO, ("u16", 1), "part 2 of 3 of a split model"),
        (0, NO, ("u16", 3), "split.no is 3, not below the 3 parts"),
        (0, NO, ("i32", 0), "split.no has the type i32"),
        (0, TENSORS, None, "the key split.tensors.count is missing"),
        (0, TENSORS, ("i32", -1), "split.tensors.count is 21; as part 2 of 3 of this model it must be -1"),
        (1, COUNT, None, "the key split.count is missing"),
        (1, COUNT, ("u16", 4), "split.count is 4; as part 2 of 3 of this model it must be 3"),
        (1, NO, None, "the key split.no is missing"),
        (1, NO, ("u16", 2), "split.no is 2; as part 2 of 3 of this model it must be 1"),
        (1, NO, ("u32", 1), "split.no has the type u32"),  # an assertion of ggml, which ends the process
        (1, NO, ("str", "1"), "split.no has the type str"),
        (1, NO, ("bool", True), "split.no has the type bool"),
        (2, TENSORS, ("i32", 22), "split.tensors.count is 22; as part 3 of 3 of this model it must be 21"),
        (2, TENSORS, ("u32", 21), "split.tensors.count has the type u32"),
        (1, "llama.block_count", ("u32", 2), "llama.block_count does not belong in a later part"),
        (1, "tokenizer.chat_template", ("str", "x"), "tokenizer.chat_template does not belong in a later part"),
        (1, "split.size", ("u16", 1), "split.size does not belong in a later part"),
        (1, "general.alignment", ("u32", 64), "general.alignment is 64"),
        (1, "general.architecture", ("str", "gpt2"), "'gpt2'; it must be llama"),
    ],
)
def test_refuses_keys(tmp_path: Path, part: int, key: str, typed: tuple | None, said: str) -> None:
    parts = tiny_parts()
    if typed is None:
        del parts[part].metadata[key]
    else:
        parts[part].metadata[key] = typed
    assert said in refusal(write_parts(parts, tmp_path)[0])


def test_harmless_keys_of_a_later_part_are_accepted(tmp_path: Path) -> None:
    parts = tiny_parts()
    for key, typed in (("general.architecture", ("str", "llama")), ("zephyr_local.note", ("u64", 1))):
        parts[1].metadata[key] = typed
    parts[2].metadata["general.alignment"] = ("u32", 32)
    assert greedy_answer(write_parts(parts, tmp_path)[0])


def set_every_count(parts: list[TinyModel], n_tensors: int) -> None:
    for part in parts:
        part.metadata[TENSORS] = ("i32", n_tensors)


def test_refuses_tensors(tmp_path: Path) -> None:
    def changed(change: Callable[[list[TinyModel]], object]) -> str:
        parts = tiny_parts()
        change(parts)
        return refusal(write_parts(parts, tmp_path)[0])

    twice = changed(lambda parts: parts[2].tensors.append(parts[0].tensors[1]))
    assert "00003-of-00003.gguf: the tensor blk.0.attn_norm.weight is in zephyr-00001-of-00003.gguf too" in twice
    assert "is there twice" in changed(lambda parts: parts[1].tensors.append(parts[1].tensors[0]))
    assert "its 3 parts have 20 tensors and split.tensors.count is 21" in changed(lambda parts: parts[1].tensors.pop())
    gone = changed(lambda parts: (parts[1].tensors.pop(), set_every_count(parts, 20)))
    assert "is missing" in gone
    shifted = changed(lambda parts: setattr(parts[1].tensors[2], "offset", 0))
    assert "zephyr-00002-of-00003.gguf: the tensor" in shifted
    assert "starts at 0" in shifted
    tail = changed(lambda parts: setattr(parts[1], "tail", bytes(100_000)))
    assert "zephyr-00002-of-00003.gguf: 100000 bytes follow the last tensor" in tail
    larger = split_model(tiny_model(n_embd=64), *CUTS)[1]
    of_another = changed(lambda parts: parts.__setitem__(1, larger))
    assert "zephyr-00002-of-00003.gguf: the tensor blk.0.attn_v.weight has the shape (64, 32)" in of_another
    more_parts = split_model(tiny_model(), 4, 9, 11)[1]
    assert "split.count is 4; as part 2 of 3" in changed(lambda parts: parts.__setitem__(1, more_parts))
    other_cuts = split_model(tiny_model(), 3, 11)[1]
    assert "is in zephyr-00001-of-00003.gguf too" in changed(lambda parts: parts.__setitem__(1, other_cuts))


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def cut_to_a_few_bytes(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:30])


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def make_dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere.gguf")


def make_link_to_the_first(path: Path) -> None:
    path.unlink()
    path.symlink_to(part_file_name("zephyr", 0, 3))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (Path.unlink, "part 2 of 3 is missing: there is no file"),
        (make_dangling_link, "part 2 of 3 is missing: there is no file"),
        (cut_short, "the file has"),
        (cut_to_a_few_bytes, "bytes"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"<!DOCTYPE html>"), "web page"),
        (make_folder, "is a folder"),
        (make_loop, "cannot be read"),
        (make_link_to_the_first, "split.no is 0; as part 2 of 3"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "is not a regular file"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_refuses_a_part_that_is_no_whole_file(tmp_path: Path, damage: Callable[[Path], object], said: str) -> None:
    paths = write_parts(tiny_parts(), tmp_path)
    damage(paths[1])
    message = refusal(paths[0])
    assert said in message
    assert paths[1].name in message


def test_the_limits_hold_for_all_parts_together(tmp_path: Path) -> None:
    cuts = [4] * (MAX_PARTS - 1)
    paths = write_parts(split_model(tiny_model(), *cuts), tmp_path)
    check_runnable(read_model(paths[0]))
    parts = tiny_parts()
    for part in parts[1:]:
        part.metadata |= {f"general.note{index}": ("array[u8]", bytes(1 << 21)) for index in range(20)}
    assert "over the 67108864 or 65536 of a model" in refusal(write_parts(parts, tmp_path)[0])


def test_inspect_shows_the_parts(tmp_path: Path) -> None:
    paths = write_parts(tiny_parts(), tmp_path)
    done = zephyr_local("inspect", paths[0])
    assert done.returncode == 0
    assert "chat loads it; chat template" in done.stdout
    assert "\nParts\n" in done.stdout
    assert all(path.name in done.stdout.partition("\nParts\n")[2] for path in paths)
    told = json.loads(zephyr_local("inspect", paths[0], "--json").stdout)
    assert told["refusal"] is None
    assert [(part["path"], part["n_tensors"]) for part in told["parts"]] == list(
        zip(map(str, paths), (4, 7, 10), strict=True)
    )
    assert sum(part["size_bytes"] for part in told["parts"]) == told["size_bytes"]
    assert [tensor["part"] for tensor in told["tensors"]] == [0] * 4 + [1] * 7 + [2] * 10


def test_inspect_shows_a_part_that_cannot_be_joined(tmp_path: Path) -> None:
    paths = write_parts(tiny_parts(), tmp_path)
    told = json.loads(zephyr_local("inspect", paths[1], "--json").stdout)
    assert str(paths[0]) in told["refusal"]
    assert [(part["path"], part["n_tensors"]) for part in told["parts"]] == [(str(paths[1]), 7)]
    paths[2].unlink()
    done = zephyr_local("inspect", paths[0])
    assert done.returncode == 0
    assert "chat does not load it: part 3 of 3 is missing" in done.stdout
    assert "\nParts\n" not in done.stdout


def test_mutated_parts_do_not_kill_the_process(tmp_path: Path) -> None:
    dice = random.Random(7)
    whole = split_model(tiny_model(n_block=1, n_ff=32), 3, 9)
    built = [part.build() for part in whole]
    n_sets = 120
    for index in range(n_sets):
        folder = tmp_path / f"{index:04}"
        folder.mkdir()
        damaged = dice.choice((1, 2))
        for no, data in enumerate(built):
            changed = bytearray(data)
            if no == damaged:
                header = 800  # the keys and the tensors' descriptions
                for _ in range(dice.choice((1, 1, 2))):
                    changed[dice.randrange(header)] = dice.choice((0, 1, 2, 3, 4, 5, 8, 127, 255, dice.randrange(256)))
            (folder / part_file_name("zephyr", no, 3)).write_bytes(changed)
    answered = survive(tmp_path, "*/*-00001-of-00003.gguf")
    assert 0 < answered < n_sets


@pytest.mark.parametrize("other", [1, 2])
def test_a_part_that_was_made_from_another_model(tmp_path: Path, other: int) -> None:
    """The parts that our converter writes name their source; with the same cuts nothing else tells them apart."""
    parts = tiny_parts()
    for part in parts:
        part.metadata["zephyr_local.source.sha256"] = ("str", "a" * 64)
    check_runnable(read_model(write_parts(parts, tmp_path)[0]))
    parts[other].metadata["zephyr_local.source.sha256"] = ("str", "b" * 64)
    assert "was made from another model" in refusal(write_parts(parts, tmp_path)[0])
