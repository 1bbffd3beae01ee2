"""`zephyr-local pull REPO --quantize`: the bytes of `quantize`, with at most two shards on the disk."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoint_builder import ModelShape, build_checkpoint, change_json, read_tensors, rewrite_tensors
from tests.checkpoint_hub import CheckpointHub, files_of, shard_bytes, shards_of
from tests.cli.command import ROOT, isolated
from tests.conftest import skip_or_fail
from tests.stand_in_hub import Fault, Kind, sha256
from zephyr_local.cli.checkpoint_bar import checkpoint_display
from zephyr_local.cli.main import run
from zephyr_local.convert.hf_to_gguf import OutputRequest, convert_model
from zephyr_local.gguf_file import read_gguf
from zephyr_local.model_store.pull import PullProgress
from zephyr_local.model_store.registry import Registry
from zephyr_local.quantize.progress import Progress
from zephyr_local.quantize.types import FileType

NAME = "stand/in-model"
TYPES = {"Q4_K_M": "q4_k_m", "Q8_0": "q8_0"}
BEGIN_BYTES = 64 << 10
MIB = 1 << 20

Files = dict[str, bytes]


def checkpoint(folder: Path, n_shards: int = 3) -> Path:
    """Named as the repository, with all that a conversion reads and some that it does not."""
    build_checkpoint(folder / "in-model", ModelShape(), n_shards=n_shards)
    (folder / "in-model" / "README.md").write_text("---\nlicense: mit\nlanguage: en\n---\nA model.\n")
    (folder / "in-model" / "generation_config.json").write_text('{"temperature": 0.7}\n')
    (folder / "in-model" / "additional_chat_templates").mkdir()
    (folder / "in-model" / "additional_chat_templates" / "tools.jinja").write_text("{{ messages[0]['content'] }}")
    return folder / "in-model"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def files(whole: Path) -> Files:
    return {**files_of(whole), "original/consolidated.00.pth": b"not read" * 1000, "training_args.bin": b"nor this"}


@pytest.fixture(scope="module")
def expected(whole: Path) -> dict[str, bytes]:
    return quantized(whole)


def quantized(folder: Path) -> dict[str, bytes]:
    """What `quantize` makes of a folder, by type."""
    requests = [OutputRequest(folder.parent / f"{name}.gguf", FileType[name]) for name in TYPES]
    convert_model(folder, requests)
    return {name: request.target.read_bytes() for name, request in zip(TYPES, requests, strict=True)}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[CheckpointHub]:
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        skip_or_fail("huggingface_hub", 'pip install "zephyr-local[hub]"')
    with CheckpointHub() as stand_in:
        stand_in.connect(monkeypatch, tmp_path / "hf")
        for name, value in isolated(tmp_path).items():
            if name.startswith("XDG_"):
                monkeypatch.setenv(name, value)
        yield stand_in


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "data" / "zephyr-local" / "models"


def pull(*more: str, types: str = "q4_k_m,q8_0", name: str = NAME) -> int:
    return run(["pull", f"hf:{name}", "--quantize", types, *more])


def target(store: Path, name: str) -> Path:
    return store / NAME / f"in-model-{name}.gguf"


def listing(store: Path) -> list[str]:
    return sorted(path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file())


def outputs(store: Path) -> dict[str, bytes]:
    return {name: target(store, name).read_bytes() for name in TYPES if target(store, name).exists()}


def record_of(path: Path) -> Any:
    with Registry() as registry:
        return registry.of(path)


# --- what is made ---


def test_two_types_have_the_bytes_of_quantize_and_nothing_else_is_left(
    hub: CheckpointHub, store: Path, files: Files, expected: dict[str, bytes], capsys: pytest.CaptureFixture[str]
):
    commit = hub.add(NAME, files)
    there: list[int] = []
    hub.on_piece = lambda: there.append(shard_bytes(store, files))
    assert pull() == 0
    assert outputs(store) == expected
    assert listing(store) == [f"{NAME}/in-model-{name}.gguf" for name in TYPES]
    assert list((store / ".partial").iterdir()) == []
    sizes = sorted(map(len, shards_of(files).values()))
    assert max(there) <= sum(sizes[-2:])
    assert all(len(hub.whole(data)) == 1 for data in shards_of(files).values())
    for name in TYPES:
        record = record_of(target(store, name))
        assert (record.source, record.repository, record.revision, record.licence) == ("quantize", NAME, commit, "mit")
        assert record.sha256 == sha256(expected[name])
        assert record.command.startswith("zephyr-local ")
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        f"{target(store, 'Q4_K_M')}: 1 MB, made of {NAME} at {commit[:12]}.",
        f"{target(store, 'Q8_0')}: 1 MB, made of {NAME} at {commit[:12]}.",
        f"Talk with it: zephyr-local chat hf:{NAME}:q4_k_m",
    ]
    assert f"{NAME} at {commit[:12]}: 3 MB to be fetched of 3 shards with 3 MB; each goes when it was read" in (
        captured.err
    )
    assert not any(name in str(one.path) for one in hub.served for name in ("pth", "training_args"))


def test_one_shard_has_the_same_keys_as_quantize(hub: CheckpointHub, store: Path, tmp_path: Path):
    folder = checkpoint(tmp_path / "single", n_shards=1)
    hub.add(NAME, files_of(folder))
    assert pull() == 0
    assert outputs(store) == quantized(folder)
    made = read_gguf(target(store, "Q8_0")).metadata
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert made["zephyr_local.source.sha256"] == digest
    assert made["zephyr_local.source.manifest"] == f"{digest}  model.safetensors\n"


def test_a_revision_is_taken_at_its_commit(hub: CheckpointHub, store: Path, files: Files):
    commit = hub.add(NAME, files, branch="v1")
    hub.add(NAME, {"README.md": b"moved on"})
    assert run(["pull", f"hf:{NAME}@v1", "--quantize", "q8_0", "--json"]) == 0
    assert record_of(target(store, "Q8_0")).revision == commit


def test_the_json_says_what_was_made(
    hub: CheckpointHub, store: Path, files: Files, expected: dict[str, bytes], capsys: pytest.CaptureFixture[str]
):
    commit = hub.add(NAME, files)
    assert pull("--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found.pop("chat").startswith("chat loads it")
    assert found == {
        "repository": NAME,
        "revision": commit,
        "licence": "mit",
        "outputs": [
            {
                "type": name,
                "path": str(target(store, name)),
                "size_bytes": len(data),
                "sha256": sha256(data),
                "was_here": False,
            }
            for name, data in expected.items()
        ],
        "fetched_bytes": sum(map(len, shards_of(files).values())),
        "resumed_bytes": 0,
    }


def test_a_dry_run_fetches_side_files_and_headers_alone(
    hub: CheckpointHub, store: Path, files: Files, expected: dict[str, bytes], capsys: pytest.CaptureFixture[str]
):
    hub.add(NAME, files)
    assert pull("--dry-run") == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["Tensor", "Shape", "Stored", "Q4_K_M", "bytes", "Q8_0", "bytes"]
    assert "Fetch: 3 MB of 3 shards with 3 MB, " in out
    assert "Disk with the shards, two at once: " in out
    assert not any(hub.whole(data) for data in shards_of(files).values())
    assert hub.sent_bytes() < 3 * BEGIN_BYTES + 20_000
    assert listing(store) == []
    assert not (store / NAME).exists()
    assert pull("--dry-run", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [output["size_bytes"] for output in found["outputs"]] == [len(data) for data in expected.values()]
    assert {shard["path"]: shard["size_bytes"] for shard in found["fetch"]["shards"]} == {
        path: len(data) for path, data in shards_of(files).items()
    }
    assert found["fetch"]["missing_bytes"] == sum(map(len, shards_of(files).values()))


# --- what is here already ---


def test_what_was_made_is_not_made_again_and_a_type_more_is_added(
    hub: CheckpointHub, store: Path, files: Files, expected: dict[str, bytes], capsys: pytest.CaptureFixture[str]
):
    hub.add(NAME, files)
    assert pull(types="Q8_0") == 0
    identity = target(store, "Q8_0").stat().st_ino
    hub.served.clear()
    capsys.readouterr()
    assert pull(types="q8_0") == 0
    assert capsys.readouterr().out.startswith(f"{target(store, 'Q8_0')}: is here already.\n")
    assert {one.kind for one in hub.served} == {Kind.INFO, Kind.TREE}
    assert pull() == 0
    assert outputs(store) == expected
    assert target(store, "Q8_0").stat().st_ino == identity


def test_a_kill_before_the_record_costs_no_shard(
    hub: CheckpointHub, store: Path, files: Files, expected: dict[str, bytes]
):
    hub.add(NAME, files)
    assert pull() == 0
    with Registry() as registry:
        registry.forget(target(store, "Q8_0"))
    hub.served.clear()
    assert pull() == 0
    assert not any(hub.whole(data) for data in shards_of(files).values())
    assert record_of(target(store, "Q8_0")).sha256 == sha256(expected["Q8_0"])
    assert listing(store) == [f"{NAME}/in-model-{name}.gguf" for name in TYPES]


@pytest.mark.parametrize("what", ["another file", "another commit's"])
def test_another_file_of_the_name_is_kept_and_no_shard_comes(
    what: str, hub: CheckpointHub, store: Path, files: Files, capsys: pytest.CaptureFixture[str]
):
    if what == "another file":
        target(store, "Q8_0").parent.mkdir(parents=True)
        target(store, "Q8_0").write_bytes(b"mine")
    else:
        hub.add(NAME, files)
        assert pull(types="q8_0") == 0
    stood = target(store, "Q8_0").read_bytes()
    hub.add(NAME, {**files, "generation_config.json": b'{"temperature": 0.9}'})
    hub.served.clear()
    assert pull() == 1
    assert "in-model-Q8_0.gguf exists already, and is not what comes of stand/in-model at" in capsys.readouterr().err
    assert not any(hub.whole(data) for data in shards_of(files).values())
    assert target(store, "Q8_0").read_bytes() == stood
    assert listing(store) == [f"{NAME}/in-model-Q8_0.gguf"]


# --- what is refused before gigabytes come ---


def test_a_wrong_shape_is_refused_and_no_shard_comes(
    hub: CheckpointHub, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = checkpoint(tmp_path / "wrong")
    change_json(folder / "config.json", intermediate_size=513)
    hub.add(NAME, files_of(folder))
    assert pull() == 1
    assert "has shape" in capsys.readouterr().err
    assert not any(hub.whole(data) for data in shards_of(files_of(folder)).values())
    assert hub.sent_bytes() < 3 * BEGIN_BYTES + 20_000
    assert listing(store) == []
    assert not (store / NAME).exists()


def without(files: Files, *endings: str) -> Files:
    return {path: data for path, data in files.items() if not path.endswith(endings)}


@pytest.mark.parametrize(
    ("endings", "more", "words"),
    [
        ([".safetensors", "index.json"], {"pytorch_model.bin": b"pickle"}, "as pickles only (pytorch_model.bin)"),
        ([".safetensors", "index.json"], {"m.Q4_0.gguf": b"GGUF"}, "Take one of them as it is: zephyr-local pull hf:"),
        ([".safetensors", "index.json"], {}, "has no model.safetensors and no model.safetensors.index.json"),
        (["config.json"], {}, "has weights and no config.json"),
        ([], {"adapter_config.json": b"{}"}, "holds an adapter (adapter_config.json)"),
        (["00002-of-00003.safetensors"], {}, "names model-00002-of-00003.safetensors, which is not there"),
    ],
    ids=["pickles", "GGUFs", "nothing", "no config", "adapter", "a shard is missing"],
)
def test_a_repository_that_is_no_checkpoint_is_told_what_it_is(
    endings: Sequence[str],
    more: Files,
    words: str,
    hub: CheckpointHub,
    store: Path,
    files: Files,
    capsys: pytest.CaptureFixture[str],
):
    hub.add(NAME, {**without(files, *endings), **more})
    assert pull() == 1
    assert words in capsys.readouterr().err
    assert not any(hub.whole(data) for data in shards_of(files).values())
    assert listing(store) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([f"hf:{NAME}", "--quantize", "q9"], "not a file type"),
        ([f"hf:{NAME}", "--quantize", " , "], "--quantize has no type"),
        ([f"hf:{NAME}/model.safetensors", "--quantize", "q8_0"], "names a file or a type"),
        ([f"hf:{NAME}:q8_0", "--quantize", "q8_0"], "names a file or a type"),
    ],
    ids=str,
)
def test_what_is_asked_wrongly(
    arguments: list[str], words: str, hub: CheckpointHub, capsys: pytest.CaptureFixture[str]
):
    assert run(["pull", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert hub.served == []


def test_a_gated_repository_says_where_to_accept(
    hub: CheckpointHub, store: Path, files: Files, capsys: pytest.CaptureFixture[str]
):
    hub.add(NAME, files, is_gated=True)
    assert pull() == 7
    assert "is only for those who accepted its licence" in capsys.readouterr().err
    assert listing(store) == []


def test_offline_asks_nobody(hub: CheckpointHub, files: Files, monkeypatch: pytest.MonkeyPatch):
    hub.add(NAME, files)
    monkeypatch.setenv("ZEPHYR_LOCAL_OFFLINE", "1")
    assert pull() == 7
    assert hub.served == []


# --- what goes wrong on the way ---


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
    assert "2 shards with 2 MB, read and removed before, will have to be fetched again" in err
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


# --- how far it is ---


def test_on_a_terminal_two_bars_go_on_at_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for name, value in {"TERM": "xterm", "COLUMNS": "100", "FORCE_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    with checkpoint_display() as display:
        display.convert(Progress("compile", "", 0, 0, 0, 0, 0.0))
        display.convert(Progress("convert", "a", 50, 100, 1, 3, 1.0))
        display.fetch(PullProgress("model.safetensors", 5 * 10**8, 10**9, 10**8, 65.0, None))
        display.fetch(PullProgress("model.safetensors", 5 * 10**8, 10**9, None, None, "the connection was cut"))
        display.note("\x1b[2J left out")
        display.convert(Progress("verify", "", 0, 100, 0, 3, 0.0))
    shown = capsys.readouterr().err
    for words in ("fetch", "verify", "note: the connection was cut", "note: ^[[2J left out", "0.5/1.0 GB"):
        assert words in shown


def test_in_a_pipe_both_are_told_in_lines(
    hub: CheckpointHub, files: Files, capsys: pytest.CaptureFixture[str], store: Path
):
    hub.add(NAME, files)
    assert pull() == 0
    lines = capsys.readouterr().err.splitlines()
    for begin in ("pull ", "convert ", "verify ", "hash "):
        assert any(line.startswith(begin) for line in lines), begin
    assert "\x1b" not in "".join(lines)
