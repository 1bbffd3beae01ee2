"""What goes wrong while a checkpoint is pulled and converted: nothing is half written, and the same command goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoint_builder import read_tensors, rewrite_tensors
from tests.checkpoint_hub import CheckpointHub, files_of, shard_bytes, shards_of
from tests.cli.command import ROOT, isolated
from tests.cli.pulled_checkpoint import (
    BEGIN_BYTES,
    NAME,
    TYPES,
    Files,
    checkpoint,
    connected_hub,
    listing,
    outputs,
    pull,
    quantized,
    repository_of,
    store_of,
)
from tests.stand_in_hub import Fault, sha256
from zephyr_local.memory.plan import readable
from zephyr_local.model_store.registry import Registry

MIB = 1 << 20


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def files(whole: Path) -> Files:
    return repository_of(whole)


@pytest.fixture(scope="module")
def expected(whole: Path) -> dict[str, bytes]:
    return quantized(whole)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[CheckpointHub]:
    with connected_hub(monkeypatch, tmp_path) as stand_in:
        yield stand_in


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return store_of(tmp_path)


def test_a_cut_and_a_damaged_shard_are_fetched_again(
    hub: CheckpointHub, store: Path, files: Files, expected: dict[str, bytes]
):
    hub.add(NAME, files)
    first, second, _ = shards_of(files).values()
    hub.faults_of = {sha256(first): [Fault(cut_after=500_000)], sha256(second): [Fault(flip_at=400_000)]}
    assert pull() == 0
    assert outputs(store) == expected
    assert [one.range_begin > 0 for one in hub.whole(first)] == [False, True], "from where it was cut"
    assert len(hub.whole(second)) == 2


def test_a_shard_that_stays_damaged_ends_it_and_what_stood_there_stays(
    hub: CheckpointHub, store: Path, files: Files, expected: dict[str, bytes], capsys: pytest.CaptureFixture[str]
):
    hub.add(NAME, files)
    assert pull(types="q4_k_m") == 0
    last = list(shards_of(files).values())[-1]
    hub.faults_of = {sha256(last): [Fault(flip_at=400_000), Fault(flip_at=400_001)]}
    capsys.readouterr()
    assert pull() == 7
    err = capsys.readouterr().err
    assert "came twice with another SHA-256" in err
    size = readable(sum(map(len, list(shards_of(files).values())[:2])))
    assert f"2 shards with {size}, read and removed before, will have to be fetched again" in err
    assert outputs(store) == {"Q4_K_M": expected["Q4_K_M"]}
    assert listing(store) == [f"{NAME}/in-model-Q4_K_M.gguf"]
    assert pull() == 0
    assert outputs(store) == expected


def test_a_header_that_came_otherwise_than_its_shard_is_found_out(
    hub: CheckpointHub, store: Path, files: Files, capsys: pytest.CaptureFixture[str]
):
    hub.add(NAME, files)
    # The tokenizer's model is fetched whole, so these are the first bytes of the shards.
    hub.faults_of_begins = [None, Fault(flip_at=BEGIN_BYTES - 1)]
    assert pull() == 7
    assert "the header of model-00002-of-00003.safetensors of stand/in-model first came otherwise" in (
        capsys.readouterr().err
    )
    assert outputs(store) == {}


def test_what_only_reading_finds_leaves_nothing(
    hub: CheckpointHub, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = checkpoint(tmp_path / "damaged")
    tensors = read_tensors(folder / "model-00003-of-00003.safetensors")
    tensors["model.norm.weight"][1][3] = 0x7FC0
    rewrite_tensors(folder / "model-00003-of-00003.safetensors", tensors)
    hub.add(NAME, files_of(folder))
    assert pull() == 1
    assert "model.norm.weight holds nan" in capsys.readouterr().err
    assert listing(store) == []
    assert not (store / NAME).exists()


def start(hub: CheckpointHub, home: Path, *command: str, **more: str) -> subprocess.Popen[str]:
    folders = {name: value for name, value in isolated(home).items() if name.startswith("XDG_")}
    return subprocess.Popen(
        [*command, sys.executable, "-m", "zephyr_local", "pull", f"hf:{NAME}", "--quantize", "q4_k_m,q8_0"],
        env=hub.environment(home / "hf", **folders, **more, PYTHONPATH=str(ROOT)),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(hub: CheckpointHub, data: bytes, n_bytes: int, process: subprocess.Popen[str]) -> None:
    """Until so much of a shard was sent."""
    deadline = time.monotonic() + 60
    while sum(one.sent_bytes for one in hub.whole(data)) < n_bytes:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_after_a_kill_in_the_middle_the_same_command_makes_the_same_files(
    hub: CheckpointHub, store: Path, files: Files, expected: dict[str, bytes], tmp_path: Path
):
    hub.add(NAME, files)
    first, _, third = shards_of(files).values()
    hub.pause_s = 0.005
    with start(hub, tmp_path) as process:
        wait_for(hub, third, 200_000, process)
        process.kill()
    assert outputs(store) == {}
    assert any(name.endswith(".part") for name in listing(store)), "what is written has no name yet"
    hub.pause_s = 0
    there: list[int] = []
    hub.on_piece = lambda: there.append(shard_bytes(store, files))
    assert pull() == 0
    assert outputs(store) == expected
    assert listing(store) == [f"{NAME}/in-model-{name}.gguf" for name in TYPES]
    assert len(hub.whole(first)) == 2, "it had been read and removed"
    assert [one.range_begin > 0 for one in hub.whole(third)] == [False, True]
    assert max(there) <= sum(sorted(map(len, shards_of(files).values()))[-2:])


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_says_what_comes_again(
    hub: CheckpointHub, store: Path, files: Files, expected: dict[str, bytes], tmp_path: Path
):
    hub.add(NAME, files)
    third = list(shards_of(files).values())[2]
    hub.pause_s = 0.01
    with start(hub, tmp_path) as process:
        wait_for(hub, third, 200_000, process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted; the same command begins anew with the shards that are here." in err
    assert "read and removed before, will have to be fetched again" in err
    assert outputs(store) == {}
    assert not any(name.endswith((".part", ".lock")) for name in listing(store))
    hub.pause_s = 0
    assert pull() == 0
    assert outputs(store) == expected
    assert hub.whole(third)[1].range_begin > 100_000


@pytest.mark.skipif(sys.platform == "win32", reason="a lock file is only read by its holder there")
def test_a_second_process_is_told_who_is_at_it(hub: CheckpointHub, store: Path, files: Files, tmp_path: Path):
    hub.add(NAME, files)
    hub.pause_s = 0.02
    with start(hub, tmp_path) as process:
        wait_for(hub, next(iter(shards_of(files).values())), 100_000, process)
        hub.pause_s = 1  # until the second one, which may start slowly, has looked
        with start(hub, tmp_path) as second:
            _, err = second.communicate(timeout=60)
        assert second.returncode == 1
        assert f"the process {process.pid} downloads the checkpoint of {NAME} now" in err
        hub.pause_s = 0
        assert process.wait(timeout=60) == 0
    assert len(outputs(store)) == 2


def mounted(folder: Path, size_bytes: int) -> list[str]:
    """What runs a command with a file system of its own at a folder, or skips."""
    folder.mkdir()
    mount = f'mount -t tmpfs -o size={size_bytes} none {folder} && exec "$@"'
    command = ["unshare", "-rm", "sh", "-c", mount, "sh"]
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("no file system of its own can be mounted here")
    return command


def test_too_small_a_disk_is_told_before_a_shard_comes(
    hub: CheckpointHub, files: Files, expected: dict[str, bytes], tmp_path: Path
):
    hub.add(NAME, files)
    needed = sum(map(len, expected.values())) + max(map(len, shards_of(files).values())) + 64 * MIB
    command = mounted(tmp_path / "small", needed - 400_000)
    with start(hub, tmp_path, *command, ZEPHYR_LOCAL_STORE_FOLDER=str(tmp_path / "small" / "store")) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert " are missing. Free them, make fewer or smaller types, or put the store elsewhere" in err
    assert not any(hub.whole(data) for data in shards_of(files).values())


def test_a_limit_on_the_store_counts_outputs_and_shards(
    hub: CheckpointHub, files: Files, expected: dict[str, bytes], store: Path, capsys: pytest.CaptureFixture[str]
):
    hub.add(NAME, files)
    most = sum(map(len, expected.values())) + 2 * max(map(len, shards_of(files).values())) + MIB
    assert pull("--max-disk", str(most // 2)) == 1
    said = capsys.readouterr().err
    assert "too much. Make fewer or smaller types, remove something, or raise --max-disk" in said
    assert not any(hub.whole(data) for data in shards_of(files).values())
    assert outputs(store) == {}
    assert pull("--max-disk", str(most)) == 0
    assert outputs(store) == expected


def test_a_disk_with_room_for_one_shard_gets_one_at_a_time(
    hub: CheckpointHub, files: Files, expected: dict[str, bytes], tmp_path: Path
):
    hub.add(NAME, files)
    sizes = sorted(map(len, shards_of(files).values()))
    needed = sum(map(len, expected.values())) + sizes[-1] + 64 * MIB
    command = mounted(tmp_path / "small", needed + sizes[0] // 2)
    with start(hub, tmp_path, *command, ZEPHYR_LOCAL_STORE_FOLDER=str(tmp_path / "small" / "store")) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "the disk has no room for two shards" in err
    with Registry() as registry:
        assert sorted(record.sha256 for record in registry.records()) == sorted(map(sha256, expected.values()))
    assert "Talk with it" in out
