"""Whatever goes wrong while a file is written: the target is what it was, and nothing else is left."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.checkpoint_builder import ModelShape, build_checkpoint
from zephyr_local.convert.hf_to_gguf import ConvertOptions, Progress, convert_checkpoint
from zephyr_local.errors import OutputError
from zephyr_local.gguf_file import read_gguf
from zephyr_local.quantize import leftovers
from zephyr_local.quantize.leftovers import settle_leftovers
from zephyr_local.quantize.types import FileType

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and limits of POSIX")

REPLACE = ConvertOptions(threads=2, overwrite=True)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return build_checkpoint(tmp_path / "checkpoint", ModelShape(n_layers=2))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "model.gguf").write_text("what stood here before")
    return folder / "model.gguf"


def require_untouched(target: Path) -> None:
    assert target.read_text() == "what stood here before"
    assert [path.name for path in target.parent.iterdir()] == ["model.gguf"]


def run(script: str, *arguments: object) -> subprocess.Popen[str]:
    """Starts a process that has everything imported and converts `arguments[0]` to `arguments[1]`."""
    prologue = """
        import os, resource, signal, sys, time
        from pathlib import Path
        from zephyr_local.convert.hf_to_gguf import ConvertOptions, convert_checkpoint
        from zephyr_local.errors import ZephyrError
        from zephyr_local.quantize.types import FileType
        source, target = Path(sys.argv[1]), Path(sys.argv[2])
        def convert(on_progress=None):
            options = ConvertOptions(threads=2, overwrite=True)
            return convert_checkpoint(source, target, FileType.Q4_K_M, options, on_progress)
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(prologue) + textwrap.dedent(script), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


@pytest.mark.parametrize(
    ("stage", "limit"), [("check", 100), ("check", 300_000), ("convert", 300_000), ("verify", 100)]
)
def test_a_full_disk(checkpoint: Path, target: Path, stage: str, limit: int) -> None:
    """By a limit on the size of files: met by the header, the reservation, a tensor, the SHA-256."""
    process = run(
        """
        stage, limit = sys.argv[3], int(sys.argv[4])
        def on_progress(progress):
            if progress.stage == stage and progress.done_bytes == 0:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            convert(on_progress)
        except ZephyrError as error:
            print(type(error).__name__, error)
        """,
        checkpoint,
        target,
        stage,
        limit,
    )
    out, err = process.communicate(timeout=60)
    assert "OutputError" in out, err
    assert "File too large" in out
    assert "choose a smaller type" in out
    require_untouched(target)


WAIT_IN_THE_MIDDLE = """
    def on_progress(progress):
        if progress.stage == "convert" and progress.done_bytes > progress.total_bytes // 3:
            print("in the middle", flush=True)
            for _ in range(600):
                time.sleep(0.1)
    try:
        convert(on_progress)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


def start_and_wait(checkpoint: Path, target: Path) -> subprocess.Popen[str]:
    process = run(WAIT_IN_THE_MIDDLE, checkpoint, target)
    assert process.stdout is not None
    assert process.stdout.readline() == "in the middle\n"
    return process


def test_a_kill_leaves_the_target_and_the_next_run_cleans_up(checkpoint: Path, target: Path) -> None:
    process = start_and_wait(checkpoint, target)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert target.read_text() == "what stood here before"
    assert len(list(target.parent.glob("model.gguf.*.part"))) == 1
    convert_checkpoint(checkpoint, target, FileType.Q4_K_M, REPLACE)
    assert [path.name for path in target.parent.iterdir()] == ["model.gguf"]
    read_gguf(target)


def test_the_temporary_file_of_a_living_run_is_left_alone(checkpoint: Path, target: Path) -> None:
    process = start_and_wait(checkpoint, target)
    (part,) = target.parent.glob("model.gguf.*.part")
    convert_checkpoint(checkpoint, target, FileType.Q8_0, REPLACE)
    assert part.exists()
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0] == "interrupted\n"
    assert [path.name for path in target.parent.iterdir()] == ["model.gguf"]
    assert read_gguf(target).metadata["general.file_type"] == FileType.Q8_0.ftype


def test_ctrl_c(checkpoint: Path, target: Path) -> None:
    process = start_and_wait(checkpoint, target)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0] == "interrupted\n"
    assert time.monotonic() - started < 10
    require_untouched(target)


def test_ctrl_c_while_the_encoders_work(tmp_path: Path, target: Path) -> None:
    """The signal finds the calling thread waiting for the encoders, not in a callback."""
    checkpoint = build_checkpoint(tmp_path / "big", ModelShape(hidden_size=2048, ffn_size=4096, n_layers=2))
    process = run(
        """
        def on_progress(progress):
            if progress.stage == "convert" and progress.done_bytes == 0:
                print("now", flush=True)
        try:
            convert(on_progress)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        """,
        checkpoint,
        target,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "now\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0] == "interrupted\n"
    require_untouched(target)


def test_an_exception_in_the_progress_callback(checkpoint: Path, target: Path) -> None:
    def on_progress(progress: Progress) -> None:
        if progress.stage == "verify":
            raise RuntimeError("of the caller")

    with pytest.raises(RuntimeError, match="of the caller"):
        convert_checkpoint(checkpoint, target, FileType.Q4_K_M, REPLACE, on_progress)
    require_untouched(target)


def test_a_byte_that_reads_back_otherwise(checkpoint: Path, target: Path) -> None:
    def spoil(progress: Progress) -> None:
        if progress.stage == "verify" and progress.done_bytes == 0:
            (part,) = target.parent.glob("model.gguf.*.part")
            with part.open("r+b") as file:
                file.seek(part.stat().st_size // 2)
                byte = file.read(1)
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte[0] ^ 1]))

    with pytest.raises(OutputError, match="reads back otherwise"):
        convert_checkpoint(checkpoint, target, FileType.Q4_K_M, REPLACE, spoil)
    require_untouched(target)


def test_a_target_that_appears_meanwhile_is_not_overwritten(checkpoint: Path, target: Path) -> None:
    target.unlink()

    def appear(progress: Progress) -> None:
        if progress.stage == "verify" and progress.done_bytes == 0:
            target.write_text("what stood here before")

    with pytest.raises(OutputError, match="appeared while"):
        convert_checkpoint(checkpoint, target, FileType.Q4_K_M, None, appear)
    require_untouched(target)


def test_a_checkpoint_that_shrinks_between_the_check_and_the_reading(checkpoint: Path, target: Path) -> None:
    def shrink(progress: Progress) -> None:
        if progress.stage == "convert" and progress.done_bytes == 0:
            os.truncate(checkpoint / "model.safetensors", 1000)

    with pytest.raises(Exception, match="changed while it was being converted"):
        convert_checkpoint(checkpoint, target, FileType.Q4_K_M, REPLACE, shrink)
    require_untouched(target)


@pytest.mark.parametrize(
    ("name", "content", "removed"),
    [
        ("model.gguf.0123456789abcdef.part", b"GGUF....zephyr_local.version", True),
        ("model.gguf.0123456789abcdef.part", b"", True),
        ("model.gguf.0123456789abcdef.part", b"a download of someone else", False),
        ("model.gguf.0123456789abcdef.part", b"GGUF by someone else", False),
        ("model-00001-of-00002.gguf.0123456789abcdef.part", b"GGUF....zephyr_local.version", True),
        ("model.gguf.part", b"GGUF....zephyr_local.version", False),
        ("other.gguf.0123456789abcdef.part", b"GGUF....zephyr_local.version", False),
    ],
)
def test_only_dead_files_of_ours_are_cleaned(tmp_path: Path, name: str, content: bytes, removed: bool) -> None:
    (tmp_path / name).write_bytes(content)
    settle_leftovers(tmp_path / "model.gguf")
    assert (tmp_path / name).exists() != removed


OLD, NONE = "0123456789abcdef.zephyr-old", "0123456789abcdef.zephyr-none"


def part(number: int) -> str:
    return f"model-{number:05d}-of-00003.gguf"


def written(folder: Path, names: Iterable[str]) -> Path:
    """A folder with these files, each of which contains its name; "link" ones are links to nothing."""
    for name in names:
        if "link" in name:
            (folder / name).symlink_to(name)
        else:
            (folder / name).write_text(f"GGUF zephyr_local. {name}")
    return folder


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # a file: it was replaced in one step, or is only kept
        ([f"model.gguf.{OLD}"], {"model.gguf": f"model.gguf.{OLD}"}),
        ([f"model.gguf.{OLD}", "model.gguf"], {"model.gguf": "model.gguf"}),
        ([f"other.gguf.{OLD}"], {f"other.gguf.{OLD}": f"other.gguf.{OLD}"}),
        (["model.gguf.zephyr-old"], {"model.gguf.zephyr-old": "model.gguf.zephyr-old"}),
        # parts without the first one: all come back, over new ones or not
        (
            [f"{part(1)}.{OLD}", f"{part(2)}.{OLD}", part(2), part(3)],
            {part(1): f"{part(1)}.{OLD}", part(2): f"{part(2)}.{OLD}", part(3): part(3)},
        ),
        ([f"{part(2)}.{OLD}", f"{part(1)}.{NONE}", f"{part(3)}.{NONE}", part(3)], {part(2): f"{part(2)}.{OLD}"}),
        # parts with the first one
        ([part(1), part(2), f"{part(1)}.{OLD}", f"{part(2)}.{NONE}"], {part(1): part(1), part(2): part(2)}),
        # parts of another number are another model
        (
            [f"{part(1)}.{OLD}", "model-00001-of-00002.gguf", "model.gguf"],
            {part(1): f"{part(1)}.{OLD}", **{name: name for name in ("model-00001-of-00002.gguf", "model.gguf")}},
        ),
    ],
)
def test_what_a_killed_run_kept(tmp_path: Path, before: list[str], after: dict[str, str]) -> None:
    settle_leftovers(written(tmp_path, before) / "model.gguf")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        name: f"GGUF zephyr_local. {content}" for name, content in after.items()
    }


@pytest.mark.parametrize("exists", [True, False])
def test_a_kept_link_to_nothing(tmp_path: Path, exists: bool) -> None:
    written(tmp_path, [f"link.gguf.{OLD}"] + ["link.gguf"] * exists)
    settle_leftovers(tmp_path / "link.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["link.gguf"]
    assert (tmp_path / "link.gguf").readlink() == Path("link.gguf" if exists else f"link.gguf.{OLD}")


def test_a_file_of_someone_else_where_nothing_stood(tmp_path: Path) -> None:
    written(tmp_path, [f"{part(2)}.{NONE}"])
    (tmp_path / part(2)).write_text("of someone else")
    settle_leftovers(tmp_path / "model.gguf")
    assert [path.name for path in tmp_path.iterdir()] == [part(2)]


@pytest.mark.parametrize("held", [f"{part(1)}.{OLD}", f"{part(3)}.{OLD}", f"{part(2)}.0123456789abcdef.part"])
@pytest.mark.parametrize("first_exists", [True, False])
def test_what_a_living_run_holds_is_left_alone(tmp_path: Path, held: str, first_exists: bool) -> None:
    fcntl = pytest.importorskip("fcntl")
    kept = [f"{part(number)}.{OLD}" for number in (1, 2, 3)]
    new = [part(number) for number in (1, 2, 3) if number != 1 or first_exists]
    before = sorted({*kept, *new, held})
    written(tmp_path, before)
    with (tmp_path / held).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        settle_leftovers(tmp_path / "model.gguf")
        assert sorted(path.name for path in tmp_path.iterdir()) == before
    settle_leftovers(tmp_path / "model.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == [part(1), part(2), part(3)]
    assert (OLD in (tmp_path / part(3)).read_text()) != first_exists


def test_a_folder_that_cannot_be_listed(checkpoint: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: not mode & os.R_OK)
        with pytest.raises(OutputError, match="cannot be read and written to"):
            convert_checkpoint(checkpoint, target, FileType.Q4_K_M, REPLACE)
    require_untouched(target)


def test_a_folder_that_cannot_be_opened_after_the_rename(
    checkpoint: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system_open = os.open

    def no_folders(path: Path, flags: int, mode: int = 0o777) -> int:
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "no folders")
        return system_open(path, flags, mode)

    monkeypatch.setattr(os, "open", no_folders)
    convert_checkpoint(checkpoint, target, FileType.Q4_K_M, REPLACE)
    monkeypatch.undo()
    read_gguf(target)


def test_without_pwrite_as_on_windows(checkpoint: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert_checkpoint(checkpoint, target, FileType.Q4_K_M, REPLACE)
    expected = target.read_bytes()
    monkeypatch.delattr(os, "pwrite")
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    monkeypatch.setattr(leftovers, "fcntl", None)
    convert_checkpoint(checkpoint, target, FileType.Q4_K_M, REPLACE)
    assert target.read_bytes() == expected
