"""`zephyr-local quantize` as a command; what it writes is tested in tests/convert and tests/quantize."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoint_builder import ModelShape, build_checkpoint
from tests.cli.command import zephyr_local


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "zephyr-small"
    build_checkpoint(folder, ModelShape())
    return folder


def test_default_name_progress_and_summary(checkpoint: Path, tmp_path: Path):
    done = zephyr_local("quantize", checkpoint, "--q4_k_m", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["zephyr-small-Q4_K_M.gguf"]
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[0].startswith("convert   0%")
    assert any(line.startswith("verify") for line in lines)
    assert len(lines) <= 2 * 11 + 3, "a line for each tenth of the two stages when piped, and the summary"
    assert "\x1b" not in done.stderr
    assert lines[-2] == "Talk with it: zephyr-local chat zephyr-small-Q4_K_M.gguf --template zephyr"
    assert "bits a weight" in lines[-3]


def test_output_threads_and_overwrite(checkpoint: Path, tmp_path: Path):
    target = tmp_path / "out.gguf"
    ask = ("quantize", checkpoint, "--q8_0", "-o", target, "--threads", "1")
    assert zephyr_local(*ask).returncode == 0
    first = target.read_bytes()
    again = zephyr_local(*ask)
    assert again.returncode == 1
    assert "exists already" in again.stderr
    assert "--overwrite" in again.stderr
    target.write_bytes(b"something else")
    assert zephyr_local(*ask, "--overwrite").returncode == 0
    assert target.read_bytes() == first


def test_each_flag_is_a_type(checkpoint: Path, tmp_path: Path):
    from zephyr_local.cli.quantize import TYPE_FLAGS
    from zephyr_local.quantize.types import FileType

    assert {name.upper() for name in TYPE_FLAGS} == set(FileType.__members__)


def test_a_converted_model_chats_and_is_inspected(checkpoint: Path, tmp_path: Path):
    assert zephyr_local("quantize", checkpoint, "--q4_k_m", cwd=tmp_path).returncode == 0
    file = tmp_path / "zephyr-small-Q4_K_M.gguf"
    chat = zephyr_local("chat", file, "--template", "zephyr", "--max-tokens", "5", "-p", "Hello")
    assert chat.returncode == 0, chat.stderr
    assert chat.stdout.strip()
    shown = zephyr_local("inspect", file)
    assert "blk.1.ffn_down.weight" in shown.stdout
    assert "chat loads it if a template is given: " in shown.stdout
    assert "brings a chat template that is not known" in shown.stdout
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 100)
    broken = zephyr_local("inspect", file)
    assert broken.returncode == 1
    assert "zephyr-small-Q4_K_M.gguf" in broken.stderr


def test_inspect_as_json(checkpoint: Path, tmp_path: Path):
    import json

    assert zephyr_local("quantize", checkpoint, "--q4_k_m", cwd=tmp_path).returncode == 0
    shown = json.loads(zephyr_local("inspect", tmp_path / "zephyr-small-Q4_K_M.gguf", "--json").stdout)
    assert shown["refusal"] is None
    assert shown["template"] is None
    assert "--template" in shown["template_refusal"]
    assert shown["metadata"]["general.architecture"] == "llama"
    assert len(shown["metadata"]["tokenizer.ggml.tokens"]) == 512
    assert {"name": "output_norm.weight", "type": "F32", "shape": [256]}.items() <= next(
        tensor for tensor in shown["tensors"] if tensor["name"] == "output_norm.weight"
    ).items()


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path: Path):
    done = zephyr_local("quantize", tmp_path, "--q4_k_m")
    assert done.returncode == 1
    assert "config.json" in done.stderr
    assert "Traceback" not in done.stderr


def test_inspect_says_what_chat_would_do_with_the_bundled_model():
    from zephyr_local.data import bundled_model_path

    assert "\nchat loads it; chat template: zephyr\n" in zephyr_local("inspect", bundled_model_path()).stdout


def test_what_is_left_out_is_said(checkpoint: Path, tmp_path: Path):
    import shutil

    folder = tmp_path / "padded"
    shutil.copytree(checkpoint, folder)
    (folder / "added_tokens.json").write_text('{"<pad>": 512}')
    done = zephyr_local("quantize", folder, "--q8_0", cwd=tmp_path)
    assert done.returncode == 0
    assert "note: added_tokens.json has the token '<pad>'" in done.stderr
