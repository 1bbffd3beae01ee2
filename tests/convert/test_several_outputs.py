"""Several files from one reading: each is what it would be alone, and all appear or none does."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import subprocess
import sys
import textwrap
from collections import namedtuple
from collections.abc import Callable, Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.checkpoint_builder import ModelShape, build_checkpoint, read_tensors, rewrite_tensors
from tests.test_gguf_split import greedy_answer
from zephyr_local.convert.hf_to_gguf import ConvertOptions, OutputRequest, Progress, convert_checkpoint, convert_model
from zephyr_local.data import bundled_model_path
from zephyr_local.errors import CheckpointError, InvalidInputError, OutputError
from zephyr_local.gguf_check import check_runnable
from zephyr_local.gguf_split import read_model
from zephyr_local.quantize import gguf_output
from zephyr_local.quantize.gguf_output import OutputFile
from zephyr_local.quantize.leftovers import settle_leftovers
from zephyr_local.quantize.mapped_file import Bytes, MappedFile
from zephyr_local.quantize.mixes import MixOptions
from zephyr_local.quantize.types import FileType, TensorType

TYPES = (FileType.F32, FileType.Q8_0, FileType.Q4_K_M)
REPLACE = ConvertOptions(threads=2, overwrite=True)
SHAPES = {
    "one shard": (ModelShape(), 1),
    "three shards": (ModelShape(n_layers=3), 3),
    "tied, rows of 32s": (ModelShape(288, 416, 2, 4, 2, tied=True, architecture="LlamaForCausalLM"), 2),
}
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and limits of POSIX")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("checkpoints") / "zephyr-small")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def requests_in(
    folder: Path, types: Sequence[FileType] = TYPES, split_max_bytes: int | None = None
) -> list[OutputRequest]:
    return [
        OutputRequest(folder / f"{file_type.name}.gguf", file_type, split_max_bytes=split_max_bytes)
        for file_type in types
    ]


def with_nan(folder: Path) -> Path:
    """A checkpoint of the same shapes that cannot be converted, as is found on the way."""
    source = build_checkpoint(folder, dtype="F32")
    tensors = read_tensors(source / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][1][500, 7] = np.nan
    rewrite_tensors(source / "model.safetensors", tensors)
    return source


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- each file is what it would be alone ---


@pytest.mark.parametrize("name", SHAPES)
def test_all_types_at_once_are_what_each_is_alone(name: str, tmp_path: Path) -> None:
    shape, n_shards = SHAPES[name]
    source = build_checkpoint(tmp_path / "checkpoint", shape, n_shards=n_shards)
    together, alone = tmp_path / "together", tmp_path / "alone"
    together.mkdir()
    alone.mkdir()
    results = convert_model(source, requests_in(together, list(FileType)), ConvertOptions(threads=3))
    for request, result in zip(requests_in(alone, list(FileType)), results, strict=True):
        single = convert_model(source, [request], ConvertOptions(threads=2))[0]
        assert result.path.name == single.path.name == request.target.name
        assert result.path.read_bytes() == single.path.read_bytes(), request.file_type
        assert (result.size_bytes, result.bits_per_weight) == (single.size_bytes, single.bits_per_weight)
        assert result.size_bytes == result.path.stat().st_size
        assert result.source_sha256 == single.source_sha256
    assert sorted(contents(together)) == sorted(f"{file_type.name}.gguf" for file_type in FileType)


def test_one_type_in_two_mixes(checkpoint: Path, out: Path) -> None:
    pure = MixOptions(pure=True)
    requests = [
        OutputRequest(out / "mix.gguf", FileType.Q4_K_M),
        OutputRequest(out / "pure.gguf", FileType.Q4_K_M, pure),
        OutputRequest(out / "again.gguf", FileType.Q4_K_M),
    ]
    convert_model(checkpoint, requests)
    made = contents(out)
    assert made["again.gguf"] == made["mix.gguf"] != made["pure.gguf"]
    convert_model(checkpoint, [OutputRequest(out / "pure.gguf", FileType.Q4_K_M, pure)], REPLACE)
    assert (out / "pure.gguf").read_bytes() == made["pure.gguf"]


def test_an_importance_matrix_changes_its_own_output_alone(checkpoint: Path, out: Path) -> None:
    importance = {"blk.0.ffn_up.weight": np.linspace(0.01, 9, 256, dtype=np.float32)}
    weighed = OutputRequest(out / "weighed.gguf", FileType.Q4_0, importance=importance)
    convert_model(checkpoint, [weighed, OutputRequest(out / "plain.gguf", FileType.Q4_0)])
    together = contents(out)
    convert_checkpoint(checkpoint, out / "plain.gguf", FileType.Q4_0, REPLACE)
    convert_model(checkpoint, [weighed], REPLACE)
    assert contents(out) == together
    assert together["weighed.gguf"] != together["plain.gguf"]


def test_the_source_is_read_once_and_every_output_is_read_back(
    checkpoint: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[range] = []
    take = MappedFile.take

    def counted(self: MappedFile, begin: int, size: int) -> Bytes:
        taken.append(range(begin, begin + size))
        return take(self, begin, size)

    monkeypatch.setattr(MappedFile, "take", counted)
    seen: list[Progress] = []
    results = convert_model(checkpoint, requests_in(out), ConvertOptions(threads=2), seen.append)
    stored = read_tensors(checkpoint / "model.safetensors")
    n_bytes = sum(values.nbytes for _, values in stored.values())
    assert sum(len(piece) for piece in taken) == n_bytes
    assert all(one.stop <= other.start for one, other in itertools.pairwise(taken))
    for stage, total, n_tensors in (
        ("convert", n_bytes, len(stored)),
        ("verify", sum(t.n_bytes for r in results for t in gguf.GGUFReader(r.path).tensors), 3 * len(stored)),
    ):
        updates = [update for update in seen if update.stage == stage]
        assert (updates[0].done_bytes, updates[0].total_bytes, updates[0].n_tensors) == (0, total, n_tensors)
        assert updates[-1].done_bytes == total
        assert updates[-1].tensor_index == n_tensors
    digest = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    assert {result.source_sha256 for result in results} == {digest}


# --- what is refused before anything is written ---


def test_one_place_for_two_outputs(checkpoint: Path, out: Path) -> None:
    (out.parent / "link").symlink_to(out)
    target = out / "model.gguf"
    same_place = [
        [OutputRequest(target, FileType.Q8_0), OutputRequest(target, FileType.Q4_0)],
        [OutputRequest(target, FileType.Q8_0), OutputRequest(out / ".." / "out" / "model.gguf", FileType.Q4_0)],
        [OutputRequest(target, FileType.Q8_0), OutputRequest(out.parent / "link" / "model.gguf", FileType.Q4_0)],
        [
            OutputRequest(target, FileType.Q8_0, split_max_bytes=1),
            OutputRequest(out / "model-00007-of-00021.gguf", FileType.Q4_0),
        ],
    ]
    for requests in same_place:
        with pytest.raises(InvalidInputError, match="would be written twice"):
            convert_model(checkpoint, requests, REPLACE)
    assert contents(out) == {}


@pytest.mark.parametrize("existing", range(3))
def test_one_target_that_exists(checkpoint: Path, out: Path, existing: int) -> None:
    requests = requests_in(out)
    requests[existing].target.write_text("old")
    with pytest.raises(OutputError, match=r"exists already.*--overwrite"):
        convert_model(checkpoint, requests)
    assert contents(out) == {requests[existing].target.name: b"old"}


def test_one_target_is_a_file_of_the_checkpoint(tmp_path: Path, out: Path) -> None:
    source = build_checkpoint(tmp_path / "checkpoint")
    os.link(source / "config.json", out / "Q8_0.gguf")
    with pytest.raises(OutputError, match=r"is the input .*config\.json"):
        convert_model(source, requests_in(out), REPLACE)
    assert list(contents(out)) == ["Q8_0.gguf"]


def test_folders_on_one_disk_share_its_space(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    requests = [OutputRequest(tmp_path / name / "model.gguf", FileType.F16) for name in ("one", "two")]
    for request in requests:
        request.target.parent.mkdir()
    size = convert_model(checkpoint, requests[:1])[0].size_bytes
    monkeypatch.setattr(gguf_output.shutil, "disk_usage", lambda _: usage(10**12, 0, 2 * size - 1))
    convert_model(checkpoint, requests[:1], REPLACE)
    with pytest.raises(OutputError, match=r"two has .* free, and the output needs"):
        convert_model(checkpoint, requests, REPLACE)
    assert contents(tmp_path / "two") == {}


# --- what goes wrong on the way ---


@pytest.mark.parametrize("split", [None, 300_000], ids=["whole", "split"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize(("stage", "part_done"), [("check", 0), ("convert", 0), ("convert", 0.5), ("verify", 0.9)])
def test_a_caller_that_stops(
    checkpoint: Path, out: Path, stage: str, part_done: float, error: type[BaseException], split: int | None
) -> None:
    (out / "F32.gguf").write_text("old")

    def stop(progress: Progress) -> None:
        if progress.stage == stage and progress.done_bytes >= part_done * progress.total_bytes:
            raise error("of the caller")

    with pytest.raises(error, match="of the caller"):
        convert_model(checkpoint, requests_in(out, split_max_bytes=split), REPLACE, stop)
    assert contents(out) == {"F32.gguf": b"old"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, r"layers\.1\.mlp\.up_proj\.weight holds nan at row 500, column 7"),
        (1e6, r"layers\.1\.mlp\.up_proj\.weight holds a value of magnitude .*, above F16's largest"),
        (3e38, r"layers\.1\.mlp\.up_proj\.weight holds values too large for Q8_0"),
    ],
)
def test_a_value_that_one_type_cannot_hold(tmp_path: Path, out: Path, value: float, message: str) -> None:
    source = build_checkpoint(tmp_path / "checkpoint", dtype="F32")
    tensors = read_tensors(source / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][1][500, 7] = value
    rewrite_tensors(source / "model.safetensors", tensors)
    types = [FileType.F32, FileType.F16 if value == 1e6 else FileType.Q8_0]
    with pytest.raises(CheckpointError, match=message):
        convert_model(source, requests_in(out, types), ConvertOptions(threads=2))
    assert contents(out) == {}


CHILD = """
    import os, resource, sys
    from pathlib import Path
    from zephyr_local.convert.hf_to_gguf import ConvertOptions, OutputRequest, convert_model
    from zephyr_local.errors import ZephyrError
    from zephyr_local.quantize.gguf_output import OutputFile
    from zephyr_local.quantize.types import FileType
    source, out, argument, split = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]) or None
    requests = [
        OutputRequest(out / f"{name}.gguf", FileType[name], split_max_bytes=split)
        for name in ("F32", "Q8_0", "Q4_K_M")
    ]
"""


def run_child(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CHILD) + textwrap.dedent(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )


@posix
def test_a_disk_that_is_full_for_one_of_them(checkpoint: Path, out: Path) -> None:
    """By a limit on the size of files that only the F32 file passes, met in the middle of the writing."""
    done = run_child(
        """
        def on_progress(progress):
            if progress.stage == "convert" and progress.done_bytes == 0:
                resource.setrlimit(resource.RLIMIT_FSIZE, (argument, argument))
        try:
            convert_model(source, requests, ConvertOptions(threads=2, overwrite=True), on_progress)
        except ZephyrError as error:
            print(type(error).__name__, error)
        """,
        checkpoint,
        out,
        3_000_000,
        0,
    )
    assert "OutputError" in done.stdout, done.stderr
    assert "F32.gguf cannot be written: File too large" in done.stdout
    assert contents(out) == {}


@posix
def test_more_files_than_a_process_may_open(checkpoint: Path, out: Path) -> None:
    done = run_child(
        """
        resource.setrlimit(resource.RLIMIT_NOFILE, (argument, argument))
        try:
            convert_model(source, requests, ConvertOptions(threads=1))
        except ZephyrError as error:
            print(type(error).__name__, error)
        """,
        checkpoint,
        out,
        40,
        1,
    )
    assert "OutputError" in done.stdout, done.stderr
    assert "ulimit -n" in done.stdout
    assert contents(out) == {}


# --- all names or none ---


def breaking_after(n_commits: int, error: BaseException) -> Callable[[OutputFile], None]:
    done = 0
    commit = OutputFile.commit

    def broken(self: OutputFile) -> None:
        nonlocal done
        if done == n_commits:
            raise error
        done += 1
        commit(self)

    return broken


@pytest.mark.parametrize("split", [None, 1_500_000], ids=["whole", "split"])
@pytest.mark.parametrize("n_commits", range(3))
def test_a_name_that_cannot_be_had(
    checkpoint: Path, out: Path, n_commits: int, split: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = requests_in(out, split_max_bytes=split)
    with monkeypatch.context() as patch:
        patch.setattr(OutputFile, "commit", breaking_after(n_commits, OSError(errno.EIO, "broken")))
        with pytest.raises(OSError, match="broken"):
            convert_model(checkpoint, requests)
    assert contents(out) == {}
    results = convert_model(checkpoint, requests)
    assert sorted(contents(out)) == sorted(path.name for result in results for path in result.paths)
    assert (len(contents(out)) > 3) == (split is not None)


@pytest.mark.parametrize("split", [None, 1_500_000], ids=["whole", "split"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), KeyboardInterrupt("broken")], ids=["error", "Ctrl+C"])
@pytest.mark.parametrize("n_commits", range(3))
def test_what_was_replaced_comes_back(
    checkpoint: Path,
    out: Path,
    n_commits: int,
    error: BaseException,
    split: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requests = requests_in(out, split_max_bytes=split)
    convert_model(checkpoint, requests)
    old = {name: b"old " + name.encode() for name in contents(out)}
    for name, text in old.items():
        (out / name).write_bytes(text)
    with monkeypatch.context() as patch:
        patch.setattr(OutputFile, "commit", breaking_after(n_commits, error))
        with pytest.raises(type(error), match="broken"):
            convert_model(checkpoint, requests, REPLACE)
    assert contents(out) == old
    convert_model(checkpoint, requests, REPLACE)
    assert contents(out).keys() == old.keys()
    assert not any(text.startswith(b"old") for text in contents(out).values())


def test_a_link_that_was_replaced_comes_back(checkpoint: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (out.parent / "elsewhere").write_text("old")
    (out / "Q4_K_M.gguf").symlink_to(out.parent / "elsewhere")
    broken = breaking_after(2, OSError(errno.EIO, "broken"))

    def commit(self: OutputFile) -> None:
        assert (out / "Q4_K_M.gguf").is_symlink()
        broken(self)

    with monkeypatch.context() as patch:
        patch.setattr(OutputFile, "commit", commit)
        with pytest.raises(OSError, match="broken"):
            convert_model(checkpoint, requests_in(out), REPLACE)
    assert (out / "Q4_K_M.gguf").readlink() == out.parent / "elsewhere"
    assert [path.name for path in out.iterdir()] == ["Q4_K_M.gguf"]
    convert_model(checkpoint, requests_in(out), REPLACE)
    assert not (out / "Q4_K_M.gguf").is_symlink()
    assert (out.parent / "elsewhere").read_text() == "old"


@pytest.mark.parametrize("n_commits", range(5))
def test_without_hard_links_a_set_of_parts_comes_back_whole(
    checkpoint: Path, out: Path, n_commits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = OutputRequest(out / "model.gguf", FileType.F32, split_max_bytes=1_500_000)
    assert len(convert_model(checkpoint, [request])[0].paths) == 5
    old = contents(out)
    for name in old:
        (out / name).write_bytes(old[name] + bytes(64))
    old = contents(out)

    def no_links(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(OutputFile, "commit", breaking_after(n_commits, OSError(errno.EIO, "broken")))
    with pytest.raises(OSError, match="broken"):
        convert_model(checkpoint, [request], REPLACE)
    assert contents(out) == old


def test_without_hard_links_each_file_is_old_or_complete(
    checkpoint: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = requests_in(out)
    convert_model(checkpoint, requests)
    new = contents(out)
    for name in new:
        (out / name).write_text("old")

    def no_links(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", no_links)
    with monkeypatch.context() as patch:
        patch.setattr(OutputFile, "commit", breaking_after(1, OSError(errno.EIO, "broken")))
        with pytest.raises(OSError, match="broken"):
            convert_model(checkpoint, requests, REPLACE)
    assert contents(out).keys() == new.keys()
    assert sorted(text == b"old" for text in contents(out).values()) == [False, True, True]
    assert all(text in (b"old", new[name]) for name, text in contents(out).items())
    convert_model(checkpoint, requests, REPLACE)
    assert contents(out) == new
    for request in requests:
        request.target.unlink()
    convert_model(checkpoint, requests)
    assert contents(out) == new


@posix
@pytest.mark.parametrize("split", [None, 1_500_000], ids=["whole", "split"])
def test_another_run_leaves_what_is_kept_alone(
    checkpoint: Path, out: Path, split: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins, and so cleans, before each name; all the same everything comes back."""
    requests = requests_in(out, split_max_bytes=split)
    convert_model(checkpoint, requests)
    old = {name: b"old " + name.encode() for name in contents(out)}
    for name, text in old.items():
        (out / name).write_bytes(text)
    broken = breaking_after(len(old) - 1, OSError(errno.EIO, "broken"))

    def commit(self: OutputFile) -> None:
        before = contents(out)
        for request in requests:
            settle_leftovers(request.target)
        assert contents(out) == before
        broken(self)

    monkeypatch.setattr(OutputFile, "commit", commit)
    with pytest.raises(OSError, match="broken"):
        convert_model(checkpoint, requests, REPLACE)
    assert contents(out) == old


@posix
@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("split", [0, 1_500_000], ids=["whole", "split"])
@pytest.mark.parametrize("n_commits", [1, 2])
def test_killed_between_two_names(
    checkpoint: Path, tmp_path: Path, out: Path, n_commits: int, split: int, overwrite: bool
) -> None:
    """Every model that a program can open is old or complete, and the next run cleans up, even if it fails."""
    requests = requests_in(out, split_max_bytes=split or None)
    results = convert_model(checkpoint, requests)
    new = contents(out)
    old = {name: b"GGUF old zephyr_local. " + name.encode() for name in new}
    for name in new:
        (out / name).unlink()
        if overwrite:
            (out / name).write_bytes(old[name])
    done = run_child(
        """
        commit = OutputFile.commit
        def killed(self):
            global argument
            if argument == 0:
                os._exit(7)
            argument -= 1
            commit(self)
        OutputFile.commit = killed
        overwrite = any(out.iterdir())
        convert_model(source, requests, ConvertOptions(threads=2, overwrite=overwrite))
        """,
        checkpoint,
        out,
        n_commits,
        split,
    )
    assert done.returncode == 7, done.stderr
    for result in results:
        if result.path.exists():
            are_old = [b"GGUF old" in path.read_bytes()[:20] for path in result.paths]
            assert all(are_old) or not any(are_old)
    not_to_convert = with_nan(tmp_path / "nan")
    again = ConvertOptions(threads=2, overwrite=overwrite or not split)  # no name of new parts is taken any more
    with pytest.raises(CheckpointError, match="holds nan"):
        convert_model(not_to_convert, requests, again)
    found = contents(out)
    for result in results:
        names = {path.name for path in result.paths}
        whole = {name: found.pop(name) for name in names & found.keys()}
        before = {name: old[name] for name in names} if overwrite else {}
        assert whole in (before, {name: new[name] for name in names})
    assert found == {}
    convert_model(checkpoint, requests, REPLACE)
    assert contents(out) == new


# --- parts ---


def reference_split(whole: Path, target: Path, max_bytes: int) -> list[Path]:
    """What gguf-py's writer cuts the same tensors into."""
    reader = gguf.GGUFReader(whole)
    writer = gguf.GGUFWriter(target, "llama", split_max_size=max_bytes)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(target.parent.iterdir())


def split_keys(reader: gguf.GGUFReader) -> dict[str, tuple[list[gguf.GGUFValueType], object]]:
    fields = {key: field for key, field in reader.fields.items() if key.startswith("split.")}
    return {key: (field.types, field.contents()) for key, field in fields.items()}


@pytest.mark.parametrize("file_type", [FileType.Q4_K_M, FileType.F32])
@pytest.mark.parametrize("max_bytes", [1, 262_144, 262_145, 700_000, 1_234_567])
def test_parts_are_those_of_the_reference_writer(
    checkpoint: Path, out: Path, tmp_path: Path, file_type: FileType, max_bytes: int
) -> None:
    whole = convert_checkpoint(checkpoint, tmp_path / "whole.gguf", file_type)
    (tmp_path / "reference").mkdir()
    expected = reference_split(whole.path, tmp_path / "reference" / "model.gguf", max_bytes)
    (result,) = convert_model(checkpoint, [OutputRequest(out / "model.gguf", file_type, split_max_bytes=max_bytes)])
    assert [path.name for path in result.paths] == [path.name for path in expected]
    assert sorted(contents(out)) == [path.name for path in expected]
    assert result.path == result.paths[0]
    for ours, theirs in zip(map(gguf.GGUFReader, result.paths), map(gguf.GGUFReader, expected), strict=True):
        assert split_keys(ours) == split_keys(theirs)
        assert [(t.name, t.tensor_type, list(t.shape), t.data.tobytes()) for t in ours.tensors] == [
            (t.name, t.tensor_type, list(t.shape), t.data.tobytes()) for t in theirs.tensors
        ]
    joined = read_model(result.path)
    check_runnable(joined)
    assert joined.size_bytes == result.size_bytes == sum(len(data) for data in contents(out).values())
    unsplit = read_model(whole.path)
    assert {k: v for k, v in joined.metadata.items() if not k.startswith("split.")} == unsplit.metadata
    for part in joined.parts[1:]:
        assert part.metadata["zephyr_local.source.sha256"] == whole.source_sha256
        assert {key.split(".")[0] for key in part.metadata} == {"zephyr_local", "split"}


def test_a_limit_smaller_than_any_tensor_and_one_larger_than_the_model(checkpoint: Path, out: Path) -> None:
    requests = [
        OutputRequest(out / "each.gguf", FileType.Q8_0, split_max_bytes=1),
        OutputRequest(out / "one.gguf", FileType.Q8_0, split_max_bytes=10**9),
        OutputRequest(out / "plain.gguf", FileType.Q8_0),
    ]
    each, one, plain = convert_model(checkpoint, requests, ConvertOptions(threads=2))
    assert len(each.paths) == each.n_tensors
    assert each.path.name == f"each-00001-of-{each.n_tensors:05d}.gguf"
    assert one.paths == (out / "one.gguf",)
    assert one.path.read_bytes() == plain.path.read_bytes()


def test_several_types_split_at_once_are_what_each_is_alone(checkpoint: Path, out: Path, tmp_path: Path) -> None:
    convert_model(checkpoint, requests_in(out, split_max_bytes=500_000), ConvertOptions(threads=2))
    for request in requests_in(tmp_path, split_max_bytes=500_000):
        for path in convert_model(checkpoint, [request])[0].paths:
            assert path.read_bytes() == (out / path.name).read_bytes()
            (out / path.name).unlink()
    assert contents(out) == {}


def test_llama_cpp_runs_the_parts_as_the_whole(out: Path) -> None:
    requests = [
        OutputRequest(out / "whole.gguf", FileType.Q8_0),
        OutputRequest(out / "parts.gguf", FileType.Q8_0, split_max_bytes=500_000),
    ]
    whole, parts = convert_model(bundled_model_path(), requests, ConvertOptions(allow_requantize=True))
    assert len(parts.paths) > 2
    expected = greedy_answer(whole.path)
    assert expected
    assert greedy_answer(parts.path) == expected


def test_too_many_parts(tmp_path: Path, out: Path) -> None:
    source = build_checkpoint(tmp_path / "deep", ModelShape(32, 32, 114, 4, 2, vocab_size=288))
    with pytest.raises(InvalidInputError, match=r"cut into 1029 parts, above the limit of 1024\. .*--split-max-size"):
        convert_model(source, requests_in(out, split_max_bytes=1))
    assert contents(out) == {}


def test_overwriting_a_set_of_parts(checkpoint: Path, out: Path) -> None:
    request = OutputRequest(out / "model.gguf", FileType.Q8_0, split_max_bytes=500_000)
    first = convert_model(checkpoint, [request])[0]
    made = contents(out)
    with pytest.raises(OutputError, match="exists already"):
        convert_model(checkpoint, [request])
    first.paths[1].write_text("damaged")
    convert_model(checkpoint, [request], REPLACE)
    assert contents(out) == made
    other = OutputRequest(request.target, FileType.Q8_0, split_max_bytes=900_000)
    second = convert_model(checkpoint, [other], REPLACE)[0]
    assert not set(second.paths) & set(first.paths)
    check_runnable(read_model(second.path))
    check_runnable(read_model(first.path))  # parts of another count are another model, and stay


def test_leftovers_of_a_run_with_other_cuts_go(checkpoint: Path, out: Path) -> None:
    for name in ("model-00002-of-00009.gguf", "model.gguf"):
        (out / f"{name}.0123456789abcdef.part").write_bytes(b"GGUF....zephyr_local.version")
    result = convert_model(checkpoint, [OutputRequest(out / "model.gguf", FileType.Q8_0, split_max_bytes=500_000)])[0]
    assert sorted(contents(out)) == sorted(path.name for path in result.paths)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_that_is_none(limit: int, out: Path) -> None:
    with pytest.raises(InvalidInputError, match=f"the largest part is {limit} bytes"):
        OutputRequest(out / "model.gguf", FileType.Q8_0, split_max_bytes=limit)


def test_tensor_types_of_parts_follow_the_mix(checkpoint: Path, out: Path) -> None:
    mix = MixOptions(tensor_types=(("ffn_down", TensorType.Q8_0),))
    result = convert_model(checkpoint, [OutputRequest(out / "m.gguf", FileType.Q4_K_M, mix, 300_000)])[0]
    types = {t.name: t.type_name for t in read_model(result.path).tensors}
    assert {kind for name, kind in types.items() if "ffn_down" in name} == {"Q8_0"}
