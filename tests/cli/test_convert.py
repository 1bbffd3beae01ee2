"""`zephyr-local convert` as a command: plain types, and what cannot be asked of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.adapter_builder import build_adapter
from tests.checkpoint_builder import Dtype, build_checkpoint
from zephyr_local.cli.convert import TYPE_FLAGS
from zephyr_local.cli.main import run
from zephyr_local.convert.hf_to_gguf import convert_checkpoint
from zephyr_local.gguf_file import read_gguf
from zephyr_local.quantize.types import FileType


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of checkpoints that are named after their types."""
    folder = tmp_path_factory.mktemp("checkpoints")
    dtypes: tuple[Dtype, ...] = ("BF16", "F16", "F32")
    for dtype in dtypes:
        build_checkpoint(folder / dtype, dtype=dtype)
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def convert(*arguments: str | Path) -> int:
    return run(["convert", *map(str, arguments)])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_without_a_type_the_stored_one(dtype: str, checkpoints: Path, here: Path, capsys: pytest.CaptureFixture[str]):
    assert convert(checkpoints / dtype) == 0
    assert names(here) == [f"{dtype}-{dtype}.gguf"]
    assert f"{dtype}-{dtype}.gguf: " in capsys.readouterr().err
    made = read_gguf(here / f"{dtype}-{dtype}.gguf")
    assert {tensor.type_name for tensor in made.tensors} == {dtype, "F32"}
    convert_checkpoint(checkpoints / dtype, here / "expected.gguf", FileType[dtype])
    assert (here / f"{dtype}-{dtype}.gguf").read_bytes() == (here / "expected.gguf").read_bytes()
    again = here / "again"
    again.mkdir()
    assert convert(here / "expected.gguf", "-o", again) == 0
    assert names(again) == [f"expected-{dtype}.gguf"]


def test_an_adapter_gets_its_bases_type(checkpoints: Path, here: Path):
    build_adapter(here / "mine", dtype="F32")
    assert convert("mine", "--base", checkpoints / "F16") == 0
    assert {tensor.type_name for tensor in read_gguf(here / "mine-F16.gguf").tensors} == {"F16", "F32"}


@pytest.mark.parametrize("flag", TYPE_FLAGS)
def test_each_type(flag: str, checkpoints: Path, here: Path):
    assert convert(checkpoints / "BF16", f"--{flag}") == 0
    assert names(here) == [f"BF16-{flag.upper()}.gguf"]
    assert read_gguf(here / f"BF16-{flag.upper()}.gguf").metadata["general.file_type"] == FileType.parse(flag).ftype


def test_several_types_and_parts(checkpoints: Path, here: Path, capsys: pytest.CaptureFixture[str]):
    assert convert(checkpoints / "BF16", "--f16", "--q8_0", "--split-max-size", "1M", "-o", "out") == 0
    made = names(here / "out")
    err = capsys.readouterr().err
    for file_type in ("F16", "Q8_0"):
        parts = [name for name in made if name.startswith(f"BF16-{file_type}-")]
        assert len(parts) > 1
        assert f"out/{parts[0]}: " in err


def test_a_quantized_source_needs_a_type(checkpoints: Path, here: Path, capsys: pytest.CaptureFixture[str]):
    assert convert(checkpoints / "BF16", "--q8_0", "-o", "small.gguf") == 0
    capsys.readouterr()
    assert convert("small.gguf") == 2
    assert "is quantized (Q8_0). Say which type to write" in capsys.readouterr().err
    assert convert("small.gguf", "--f16") == 2
    assert "--allow-requantize" in capsys.readouterr().err
    assert convert("small.gguf", "--f16", "--allow-requantize") == 0
    assert names(here) == ["small-F16.gguf", "small.gguf"]


@pytest.mark.parametrize(
    ("source", "code", "words"),
    [("nowhere", 1, "nowhere"), ("nowhere.gguf", 3, "there is no file"), (".", 1, "config.json")],
)
def test_a_source_that_is_not_there(source: str, code: int, words: str, here: Path, capsys: pytest.CaptureFixture[str]):
    assert convert(source) == code
    assert words in capsys.readouterr().err
    assert names(here) == []


def test_types_that_it_does_not_write(here: Path, capsys: pytest.CaptureFixture[str]):
    assert convert("nowhere", "--q4_k_m") == 2
    assert "No such option" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        ["--tensor-type", "attn_v=q8_0"],
        ["--output-tensor-type", "q8_0"],
        ["--token-embedding-type", "q8_0"],
        ["--pure"],
        ["--leave-output-tensor"],
        ["--allow-requantize"],
        ["--split-max-size", "1G"],
        ["--split-max-size", ""],
        ["--threads", "2"],
        ["--threads", "0"],
        ["--search", "ggml"],
        ["--device", "cpu"],
        ["--verbose"],
        ["--dry-run"],
        ["--json"],
    ],
    ids=" ".join,
)
def test_options_that_mean_nothing_for_an_adapter(flags: list[str], here: Path, capsys: pytest.CaptureFixture[str]):
    assert convert("--lora", "mine", *flags) == 2
    assert f"{flags[0]} cannot be used with --lora" in capsys.readouterr().err
    assert names(here) == []


@pytest.mark.parametrize(
    ("flags", "made"),
    [
        ([], "mine-F32-LoRA.gguf"),
        (["--f16"], "mine-F16-LoRA.gguf"),
        (["--q8_0", "-o", "other.gguf"], "other.gguf"),
        (["--bf16", "-o", "folder/"], "folder/mine-BF16-LoRA.gguf"),
    ],
)
def test_an_adapter_as_a_file_of_its_own(
    flags: list[str], made: str, checkpoints: Path, here: Path, capsys: pytest.CaptureFixture[str]
):
    build_adapter(here / "mine", base_model_name_or_path=str(checkpoints / "BF16"))
    assert convert("--lora", "mine", *flags) == 0
    err = capsys.readouterr().err
    assert f"{made}: " in err
    assert "--lora" in err
    file = read_gguf(here / made)
    assert file.metadata["general.type"] == "adapter"
    assert file.metadata["adapter.lora.alpha"] == 16.0
    assert [tensor.name for tensor in file.tensors if "blk.0" in tensor.name][:2] == [
        "blk.0.attn_q.weight.lora_a",
        "blk.0.attn_q.weight.lora_b",
    ]
    assert convert("--lora", "mine", *flags) == 1
    assert "exists already" in capsys.readouterr().err
    assert convert("--lora", "mine", "--overwrite", *flags) == 0


def test_an_adapter_whose_base_is_elsewhere(checkpoints: Path, here: Path, capsys: pytest.CaptureFixture[str]):
    build_adapter(here / "mine", base_model_name_or_path="someone/something")
    assert convert("--lora", "mine") == 1
    assert "--base" in capsys.readouterr().err
    assert convert("--lora", "mine", "--base", checkpoints / "BF16") == 0
    assert names(here) == ["mine", "mine-F32-LoRA.gguf"]
