"""`--dry-run`: what it says is what is then written, and nothing is."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.adapter_builder import ALL_LINEAR, build_adapter
from tests.checkpoint_builder import ModelShape, build_checkpoint, change_json, mistral_sentencepiece_model
from zephyr_local.cli.main import run
from zephyr_local.cli.quantize import TYPE_FLAGS
from zephyr_local.convert.hf_to_gguf import (
    ConvertOptions,
    EncoderOptions,
    OutputRequest,
    Search,
    convert_model,
    dry_run,
)
from zephyr_local.quantize import output_plan
from zephyr_local.quantize.types import FileType

ALL_TYPES = [f"--{name}" for name in TYPE_FLAGS]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("checkpoints") / "zephyr-small")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def quantize(*arguments: str | Path) -> int:
    return run(["quantize", *map(str, arguments)])


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    assert quantize(*arguments, "--dry-run", "--json") == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    found: dict[str, Any] = json.loads(out)
    return found


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("split", [[], ["--split-max-size", "300K"]], ids=["whole", "split"])
def test_the_json_says_what_is_then_written(
    split: list[str], checkpoint: Path, here: Path, capsys: pytest.CaptureFixture[str]
):
    ask = (checkpoint, *ALL_TYPES, "-o", "out", *split)
    found = as_json(capsys, *ask)
    assert listing(here) == []
    assert quantize(*ask) == 0
    written = {str(path): path.stat().st_size for path in (here / "out").iterdir()}
    said = {file["path"]: file["size_bytes"] for output in found["outputs"] for file in output["files"]}
    assert said == written
    assert [output["file_type"].lower() for output in found["outputs"]] == list(TYPE_FLAGS)
    for output in found["outputs"]:
        assert output["size_bytes"] == sum(file["size_bytes"] for file in output["files"])
        assert sum(file["n_tensors"] for file in output["files"]) == len(output["tensors"]) == 21
        assert not any(file["exists"] for file in output["files"])
    assert found["disk"] == [
        {
            "folder": str(here / "out"),
            "needed_bytes": sum(written.values()),
            "free_bytes": found["disk"][0]["free_bytes"],
        }
    ]
    again = as_json(capsys, *ask)
    assert all(file["exists"] for output in again["outputs"] for file in output["files"])


def test_the_json_has_these_entries(checkpoint: Path, here: Path, capsys: pytest.CaptureFixture[str]):
    found = as_json(capsys, checkpoint, "--q4_k_m", "--threads", "2")
    assert found.keys() == {"outputs", "peak_memory_bytes", "disk", "notices"}
    (output,) = found["outputs"]
    assert output.keys() == {"file_type", "size_bytes", "bits_per_weight", "files", "tensors"}
    assert output["files"][0].keys() == {"path", "size_bytes", "n_tensors", "exists"}
    assert output["tensors"][0] == {
        "name": "output.weight",
        "shape": [512, 256],
        "stored": "BF16",
        "type": "Q6_K",
        "wanted": "Q6_K",
        "size_bytes": 512 * 210,
    }
    assert found["notices"] == []
    assert isinstance(found["peak_memory_bytes"], int)
    assert listing(here) == []


def test_the_table(checkpoint: Path, here: Path, capsys: pytest.CaptureFixture[str]):
    (here / "zephyr-small-Q8_0.gguf").symlink_to("nowhere")
    assert quantize(checkpoint, "--q4_k_m", "--q8_0", "--dry-run") == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert captured.err == ""
    assert lines[0].split() == ["Tensor", "Shape", "Stored", "Q4_K_M", "bytes", "Q8_0", "bytes"]
    assert lines[1].split() == ["output.weight", "512", "×", "256", "BF16", "Q6_K", "107,520", "Q8_0", "139,264"]
    assert lines[2].split()[0] == "output_norm.weight"
    assert lines[2].split()[-5:] == ["BF16", "F32", "1,024", "F32", "1,024"]
    ours, other = (next(line for line in lines if f"zephyr-small-{name}.gguf" in line) for name in ("Q4_K_M", "Q8_0"))
    assert ours.endswith(" bytes")
    assert other.endswith(" bytes; exists already")
    assert any(line.startswith("Q4_K_M: ") and "bits a weight" in line for line in lines)
    assert any(line.startswith("Peak memory: at most ") for line in lines)
    assert lines[-1].startswith("Disk: ")
    assert lines[-1].endswith(" free")
    assert listing(here) == ["zephyr-small-Q8_0.gguf"]


def test_what_falls_back_and_a_full_disk(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    source = build_checkpoint(here / "narrow", ModelShape(288, 416, 2, 4, 2))
    monkeypatch.setattr(output_plan.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    assert quantize(source, "--q4_k_m", "--dry-run") == 0
    out = capsys.readouterr().out
    assert (
        "blk.0.attn_q.weight becomes Q5_0: its rows of 288 weights are no whole number of Q4_K's blocks of 256" in out
    )
    assert out.splitlines()[-1].endswith("1.0 MB free: too little")


def test_parts_are_counted_and_listed(checkpoint: Path, here: Path, capsys: pytest.CaptureFixture[str]):
    assert quantize(checkpoint, "--q8_0", "--split-max-size", "700K", "--dry-run") == 0
    out = capsys.readouterr().out
    assert " in 3 parts, " in out
    assert "zephyr-small-Q8_0-00003-of-00003.gguf: " in out


def test_notices_go_to_stderr_and_into_the_json(here: Path, capsys: pytest.CaptureFixture[str]):
    source = build_checkpoint(here / "padded")
    (source / "added_tokens.json").write_text('{"<pad>": 512}')
    assert quantize(source, "--q8_0", "--dry-run", "--json") == 0
    captured = capsys.readouterr()
    (notice,) = json.loads(captured.out)["notices"]
    assert "'<pad>'" in notice
    assert f"note: {notice}" in captured.err


def test_slower_encoders_are_told_of_before_the_work(
    checkpoint: Path, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "numba" else find_spec(name))
    assert quantize(checkpoint, "--q4_k_m", "--dry-run", "--json") == 0
    captured = capsys.readouterr()
    (notice,) = json.loads(captured.out)["notices"]
    assert notice.startswith("encoding Q4_K, Q6_K with ggml")
    assert captured.err == f"note: {notice}\n"
    assert quantize(checkpoint, "--q4_k_m") == 0
    assert capsys.readouterr().err.splitlines()[:2] == [f"note: {notice}", "convert   0%"]


def test_a_gguf_and_an_adapter(checkpoint: Path, here: Path, capsys: pytest.CaptureFixture[str]):
    assert quantize(checkpoint, "--q8_0", "-o", "small.gguf") == 0
    build_adapter(here / "adapter")
    before = listing(here)
    capsys.readouterr()
    assert quantize("small.gguf", "--q4_0", "--dry-run") == 2
    assert "--allow-requantize" in capsys.readouterr().err
    found = as_json(capsys, "small.gguf", "--q4_0", "--allow-requantize")
    assert found["outputs"][0]["tensors"][0]["stored"] == "Q8_0"
    found = as_json(capsys, "adapter", "--q4_0", "--base", checkpoint)
    assert found["outputs"][0]["files"][0]["path"] == str(here / "adapter-Q4_0.gguf")
    assert listing(here) == before


def test_what_is_wrong_is_found(checkpoint: Path, here: Path, capsys: pytest.CaptureFixture[str]):
    assert quantize("nowhere.gguf", "--q4_0", "--dry-run") == 3
    assert quantize(checkpoint, "--q4_0", "--tensor-type", "nothing=q8_0", "--dry-run") == 2
    broken = build_checkpoint(here / "broken")
    change_json(broken / "config.json", num_hidden_layers=3)
    assert quantize(broken, "--q4_0", "--dry-run", "-o", "out") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert not (here / "out").exists()


# --- memory ---


def _convert(source: Path, requests: list[OutputRequest], options: ConvertOptions) -> None:
    convert_model(source, requests, options)


def _anonymous_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0  # it has ended
    found = [line.split()[1] for line in status.splitlines() if line.startswith("RssAnon:")]
    return 1024 * int(found[0]) if found else 0


def peak_of(source: Path, requests: list[OutputRequest], options: ConvertOptions) -> int:
    """RssAnon of a child that converts, looked at every few milliseconds."""
    child = multiprocessing.get_context("spawn").Process(target=_convert, args=(source, requests, options))
    child.start()
    assert child.pid is not None
    peak = 0
    while child.is_alive():
        peak = max(peak, _anonymous_bytes(child.pid))
        time.sleep(0.005)
    assert child.exitcode == 0
    return peak


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """419 MB of BF16 weights and an adapter for them, in a folder."""
    folder = tmp_path_factory.mktemp("larger")
    shape = ModelShape(2048, 5632, 2, 32, 4, None, 32000)
    build_checkpoint(folder / "base", shape, tokenizer=mistral_sentencepiece_model())
    build_adapter(folder / "adapter", shape, targets=ALL_LINEAR, rank=64, base_model_name_or_path=str(folder / "base"))
    return folder


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize("threads", [2, 8])
@pytest.mark.parametrize("kind", ["base", "adapter", "gguf"])
@pytest.mark.parametrize("types", [["Q4_0"], ["F32", "F16", "Q8_0"]], ids=len)
def test_no_conversion_takes_more_memory_than_was_said(kind: str, types: list[str], threads: int, larger: Path):
    source = larger / kind
    if kind == "gguf":
        source = larger / "base-BF16.gguf"
        if not source.exists():
            convert_model(larger / "base", [OutputRequest(source, FileType.BF16)])
    requests = [OutputRequest(larger / f"out-{name}.gguf", FileType[name]) for name in types]
    options = ConvertOptions(threads=threads, overwrite=True)
    said = dry_run(source, requests, options).needs.peak_memory_bytes
    measured = peak_of(source, requests, options)
    assert measured <= said <= 3 * measured, f"{measured / 2**20:.0f} MiB were taken, {said / 2**20:.0f} said"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_compiling_every_kernel_takes_no_more_memory_than_was_said(
    larger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    requests = [
        OutputRequest(tmp_path / f"{name}.gguf", FileType[name]) for name in ("Q2_K", "Q3_K_M", "Q5_K_M", "Q8_0")
    ]
    options = ConvertOptions(threads=2, encoders=EncoderOptions(search=Search.THOROUGH))
    said = dry_run(larger / "base", requests, options).needs.peak_memory_bytes
    measured = peak_of(larger / "base", requests, options)
    assert measured <= said <= 3 * measured, f"{measured / 2**20:.0f} MiB were taken, {said / 2**20:.0f} said"
    assert list((tmp_path / "cache").rglob("*.nbc"))


def test_what_the_runtime_would_not_load_is_refused_in_a_dry_run_too(here: Path, capsys: pytest.CaptureFixture[str]):
    folder = build_checkpoint(here / "checkpoint", ModelShape(n_layers=1))
    change_json(folder / "config.json", rope_theta=0.5)
    assert quantize(folder, "--q4_k_m", "--q8_0", "--split-max-size", "100K", "--dry-run") == 1
    found = capsys.readouterr()
    assert "could not be loaded here: llama.rope.freq_base is 0.5" in found.err
    assert found.out == ""
