"""`zephyr-local pull REPO --quantize`: the bytes of `quantize`, with at most two shards on the disk."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoint_builder import change_json
from tests.checkpoint_hub import CheckpointHub, files_of, shard_bytes, shards_of
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
    target,
)
from tests.stand_in_hub import Kind, sha256
from zephyr_local.cli.checkpoint_bar import checkpoint_display
from zephyr_local.cli.main import run
from zephyr_local.gguf_file import read_gguf
from zephyr_local.memory.plan import readable
from zephyr_local.model_store.pull import PullProgress
from zephyr_local.model_store.registry import Registry
from zephyr_local.quantize.progress import Progress


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
        assert record.command.split()[0] == "zephyr-local"
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        f"{target(store, 'Q4_K_M')}: {readable(len(expected['Q4_K_M']))}, made of {NAME} at {commit[:12]}.",
        f"{target(store, 'Q8_0')}: {readable(len(expected['Q8_0']))}, made of {NAME} at {commit[:12]}.",
        f"Talk with it: zephyr-local chat hf:{NAME}:q4_k_m",
    ]
    size = readable(sum(sizes))
    told = f"{NAME} at {commit[:12]}: {size} to be fetched of 3 shards with {size}; each goes when it was read"
    assert told in captured.err
    assert not any(name in one.path for one in hub.served for name in ("pth", "training_args", "/old/"))


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
    size = readable(sum(map(len, shards_of(files).values())))
    assert f"Fetch: {size} of 3 shards with {size}, " in out
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


@pytest.mark.parametrize("is_kept_time", [False, True])
def test_an_output_with_a_flipped_bit_is_refused_and_keeps_the_digest_that_was_recorded(
    is_kept_time: bool,
    hub: CheckpointHub,
    store: Path,
    files: Files,
    expected: dict[str, bytes],
    capsys: pytest.CaptureFixture[str],
):
    hub.add(NAME, files)
    assert pull(types="q8_0") == 0
    path = target(store, "Q8_0")
    status, data = path.stat(), bytearray(expected["Q8_0"])
    data[-1000] ^= 1
    path.write_bytes(data)
    moment = status.st_mtime_ns if is_kept_time else status.st_mtime_ns + 10**9
    os.utime(path, ns=(moment, moment))
    if is_kept_time:  # nobody can know before it is read
        assert run(["models", "verify"]) == 1
        assert f"models rm {path} removes it, and pull {NAME} --quantize makes it again" in capsys.readouterr().out
    hub.served.clear()
    assert pull(types="q8_0") == 1
    told = capsys.readouterr().err
    digests = f"its SHA-256 is {sha256(bytes(data))}, and {sha256(expected['Q8_0'])} was recorded"
    assert f"{path} is not what it was: {digests}" in told
    assert f"Remove it (zephyr-local models rm {path}), and the same command makes it anew" in told
    assert not any(hub.whole(data) for data in shards_of(files).values())
    assert path.read_bytes() == data
    assert record_of(path).sha256 == sha256(expected["Q8_0"])
    assert run(["models", "verify"]) == 1
    assert run(["models", "rm", str(path)]) == 0
    assert pull(types="q8_0") == 0
    assert path.read_bytes() == expected["Q8_0"]
    assert run(["models", "verify"]) == 0


def test_an_output_with_another_time_and_the_same_bytes_is_taken(
    hub: CheckpointHub, store: Path, files: Files, expected: dict[str, bytes]
):
    hub.add(NAME, files)
    assert pull(types="q8_0") == 0
    os.utime(target(store, "Q8_0"), ns=(1, 1))
    hub.served.clear()
    assert pull(types="q8_0") == 0
    assert not any(hub.whole(data) for data in shards_of(files).values())
    record = record_of(target(store, "Q8_0"))
    assert (record.sha256, record.modified_ns) == (sha256(expected["Q8_0"]), 1)


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
