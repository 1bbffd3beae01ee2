"""`zephyr-local quantize` as a command; what it writes is tested in tests/convert and tests/quantize."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pyte
import pytest

from tests.checkpoint_builder import ModelShape, build_checkpoint, read_tensors, rewrite_tensors
from tests.cli.command import zephyr_local
from tests.quantize.llama_quantize import llama_quantize, require_equal
from zephyr_local.cli.conversion import told_when_interrupted, where_the_time_went
from zephyr_local.cli.conversion_options import parse_size
from zephyr_local.cli.main import run
from zephyr_local.cli.progress_bar import progress_display
from zephyr_local.convert import hf_to_gguf
from zephyr_local.convert.hf_to_gguf import ConvertOptions, EncoderOptions, Search
from zephyr_local.errors import InvalidInputError
from zephyr_local.gguf_check import check_runnable
from zephyr_local.gguf_split import read_model
from zephyr_local.hardware import usable_cores
from zephyr_local.quantize.mixes import MixOptions
from zephyr_local.quantize.progress import Progress
from zephyr_local.quantize.timings import Timings
from zephyr_local.quantize.types import FileType, TensorType


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
    if (
        lines[0] == "compiling the encoders of these types, once on this machine"
    ):  # where nothing of these tests ran before
        del lines[0]
    assert lines[0].startswith("convert   0%")
    assert any(line.startswith("verify") for line in lines)
    assert len(lines) <= 2 * 11 + 2, "a line for each tenth of the two stages when piped, and the summary"
    assert "\x1b" not in done.stderr
    assert lines[-1] == "Talk with it: zephyr-local chat zephyr-small-Q4_K_M.gguf"
    assert "bits a weight" in lines[-2]


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

    assert {name.upper() for name in TYPE_FLAGS} == set(FileType.__members__)


def test_a_converted_model_chats_and_is_inspected(checkpoint: Path, tmp_path: Path):
    assert zephyr_local("quantize", checkpoint, "--q4_k_m", cwd=tmp_path).returncode == 0
    file = tmp_path / "zephyr-small-Q4_K_M.gguf"
    for template in ((), ("--template", "zephyr")):
        chat = zephyr_local("chat", file, *template, "--max-tokens", "5", "-p", "Hello")
        assert chat.returncode == 0, chat.stderr
        assert chat.stdout.strip()
    shown = zephyr_local("inspect", file)
    assert "blk.1.ffn_down.weight" in shown.stdout
    loads = "chat loads it; chat template: zephyr-small-Q4_K_M.gguf's own (run in a guarded process)\n"
    assert loads in shown.stdout
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
    assert shown["template"] == "zephyr-small-Q4_K_M.gguf's own (run in a guarded process)"
    assert shown["template_refusal"] is None
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


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def bf16(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    path = tmp_path_factory.mktemp("sources") / "small-BF16.gguf"
    hf_to_gguf.convert_checkpoint(checkpoint, path, FileType.BF16)
    return path


def quantize(*arguments: str | Path) -> int:
    return run(["quantize", *map(str, arguments)])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- several types ---


def test_several_types_into_a_new_folder(checkpoint: Path, here: Path, capsys: pytest.CaptureFixture[str]):
    assert quantize(checkpoint, "--q4_k_m", "--q8_0", "--q4_k_m", "-o", "new folder") == 0
    assert names(here) == ["new folder"]
    assert names(here / "new folder") == ["zephyr-small-Q4_K_M.gguf", "zephyr-small-Q8_0.gguf"]
    captured = capsys.readouterr()
    assert captured.out == ""
    first, second, talk = captured.err.splitlines()[-3:]
    assert first.startswith("new folder/zephyr-small-Q4_K_M.gguf: ")
    assert second.startswith("new folder/zephyr-small-Q8_0.gguf: ")
    assert talk == "Talk with it: zephyr-local chat 'new folder/zephyr-small-Q4_K_M.gguf'"
    alone = here / "alone.gguf"
    assert quantize(checkpoint, "--q8_0", "-o", alone) == 0
    assert alone.read_bytes() == (here / "new folder" / "zephyr-small-Q8_0.gguf").read_bytes()


def test_several_types_into_the_current_folder_and_one_into_a_folder(checkpoint: Path, here: Path):
    assert quantize(checkpoint, "--q4_0", "--f16") == 0
    assert names(here) == ["zephyr-small-F16.gguf", "zephyr-small-Q4_0.gguf"]
    (here / "models").mkdir()
    assert quantize(checkpoint, "--q4_0", "-o", "models/") == 0
    assert names(here / "models") == ["zephyr-small-Q4_0.gguf"]


def stop(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def test_a_new_folder_goes_again_where_nothing_comes_into_it(
    checkpoint: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    damaged = build_checkpoint(here / "damaged")
    tensors = read_tensors(damaged / "model.safetensors")
    tensors["model.norm.weight"][1][3] = 0x7FC0
    rewrite_tensors(damaged / "model.safetensors", tensors)
    assert quantize(damaged, "--q4_0", "--q8_0", "-o", "new") == 1
    assert "model.norm.weight holds nan" in capsys.readouterr().err
    assert names(here) == ["damaged"]
    (here / "old").mkdir()
    assert quantize(damaged, "--q4_0", "--q8_0", "-o", "old") == 1
    assert names(here) == ["damaged", "old"], "a folder that was there stays"
    assert quantize("nowhere", "--q4_0", "--q8_0", "-o", "new") == 1
    monkeypatch.setattr(hf_to_gguf, "convert_model", stop)
    assert quantize(checkpoint, "--q4_0", "--q8_0", "-o", "new") == 130
    assert "Interrupted; nothing was written." in capsys.readouterr().err
    assert names(here) == ["damaged", "old"]


def test_outputs_that_cannot_be_folders(checkpoint: Path, here: Path, capsys: pytest.CaptureFixture[str]):
    (here / "file").write_text("old")
    for output, code, words in (
        ("file", 2, "-o file is the name of one file"),
        ("new.gguf", 2, "-o new.gguf is the name of one file"),
        ("no/such", 1, "the folder no does not exist"),
        ("file/deeper", 1, "the folder file does not exist"),
    ):
        assert quantize(checkpoint, "--q4_0", "--q8_0", "-o", output) == code
        assert words in capsys.readouterr().err
    assert names(here) == ["file"]
    assert (here / "file").read_text() == "old"


def test_names_cannot_drive_the_terminal(checkpoint: Path, here: Path, capsys: pytest.CaptureFixture[str]):
    assert quantize(checkpoint, "--q8_0", "-o", "\x1b[2Jname.gguf") == 0
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert "^[[2Jname.gguf: " in err


# --- encoders, and where the time goes ---


def options_of(monkeypatch: pytest.MonkeyPatch, *flags: str) -> ConvertOptions:
    """What the command hands on."""
    seen: list[ConvertOptions] = []

    def convert_model(
        source: Path, requests: object, options: ConvertOptions, update: object, note: object
    ) -> NoReturn:
        seen.append(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(hf_to_gguf, "convert_model", convert_model)
    assert quantize("anywhere", "--q4_k_m", *flags) == 130
    return seen[0]


def test_search_and_device_are_handed_on(here: Path, monkeypatch: pytest.MonkeyPatch):
    assert options_of(monkeypatch).encoders == EncoderOptions(Search.GGML, "cpu")
    assert options_of(monkeypatch, "--search", "ggml").encoders == EncoderOptions(Search.GGML, "cpu")
    assert options_of(monkeypatch, "--search", "thorough").encoders == EncoderOptions(Search.THOROUGH, "cpu")
    assert options_of(monkeypatch, "--device", "cuda:1").encoders == EncoderOptions(Search.GGML, "cuda:1")


def test_every_search_can_be_asked_for(here: Path, monkeypatch: pytest.MonkeyPatch):
    for search in Search:
        assert options_of(monkeypatch, "--search", search.value).encoders.search is search


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--search", "harder"], 2, "'harder' is not one of 'ggml', 'thorough'"),
        (["--search", "thorough", "--device", "cuda"], 2, "the thorough search runs on the CPU"),
        (["--device", "abacus"], 2, "device"),
        (["--device", "abacus", "--dry-run"], 2, "device"),
    ],
    ids=str,
)
def test_encoders_that_cannot_be_had(
    flags: list[str], code: int, words: str, checkpoint: Path, here: Path, capsys: pytest.CaptureFixture[str]
):
    assert quantize(checkpoint, "--q4_k_m", *flags) == code
    assert words in capsys.readouterr().err
    assert names(here) == []


@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=str)
def test_a_thorough_search_of_nothing_is_refused(
    more: list[str], checkpoint: Path, here: Path, capsys: pytest.CaptureFixture[str]
):
    assert quantize(checkpoint, "--q4_0", "--search", "thorough", *more, "--tensor-type", "output=q4_0") == 2
    assert "the thorough search would change nothing" in capsys.readouterr().err
    assert names(here) == []


def test_verbose_tells_where_the_time_went(checkpoint: Path, here: Path, capsys: pytest.CaptureFixture[str]):
    assert quantize(checkpoint, "--q4_0", "--q8_0", "--threads", "1", "--verbose", "-o", "out") == 0
    lines = capsys.readouterr().err.splitlines()
    told = lines[next(i for i, line in enumerate(lines) if line.startswith("prepare ")) :][:7]
    busy = r"busy +\d+% of \d+\.\d s"
    for line, expected in zip(
        told,
        [
            r"prepare \d+\.\d s, before these",
            rf"read    {busy}, 0\.00 GB of tensors",
            rf"hash    {busy}",
            rf"encode  {busy}, 1 thread with (numba|ggml)",
            rf"write   {busy}, 0\.00 GB of tensors",
            r"verify  \d+\.\d s, after these",
            r"Bound by .*\.",
        ],
        strict=True,
    ):
        assert re.fullmatch(expected, line), line
    assert quantize(checkpoint, "--q4_0", "-o", "quiet.gguf") == 0
    assert "Bound by" not in capsys.readouterr().err


def test_verbose_names_what_bounded_the_conversion():
    timings = Timings("numba", 8, 0.7, 10.0, 12 * 10**9, 1.0, 9.6, 40.0, 4 * 10**9, 1.0, 2.0, 1.5, 25.0)
    assert where_the_time_went(timings).splitlines() == [
        "prepare 0.7 s, before these",
        "read    busy 10% of 10.0 s, 12.00 GB of tensors",
        "hash    busy 96% of 10.0 s",
        "encode  busy 50% of 10.0 s, 8 threads with numba",
        "write   busy 20% of 10.0 s, 4.00 GB of tensors",
        "verify  1.5 s, after these",
        "Bound by the source's SHA-256, which one thread computes.",
    ]
    for changed, words in (
        ({"hash_s": 1.0, "read_s": 9.0}, "Bound by reading the source."),
        ({"hash_s": 1.0, "encode_s": 79.0}, "Bound by the encoders."),
        ({"hash_s": 1.0, "sync_s": 8.5}, "Bound by writing."),
        ({"hash_s": 1.0}, f"Bound by no part alone; together they used 2.5 of {usable_cores()} cores."),
    ):
        assert where_the_time_went(replace(timings, **changed)).splitlines()[-1] == words


def test_a_dry_run_has_no_time_to_tell_of(checkpoint: Path, here: Path, capsys: pytest.CaptureFixture[str]):
    assert quantize(checkpoint, "--q4_0", "--dry-run", "--verbose") == 0
    assert "Bound by" not in "".join(capsys.readouterr())


def progress_lines(stages: list[Progress], capsys: pytest.CaptureFixture[str]) -> list[str]:
    with progress_display() as display:
        for progress in stages:
            display.update(progress)
    return capsys.readouterr().err.splitlines()


STAGES = [
    Progress("check", "", 0, 0, 0, 0, 0.0),
    Progress("compile", "", 0, 0, 0, 0, 0.0),
    Progress("convert", "", 0, 100, 0, 3, 0.0),
    Progress("convert", "a", 50, 100, 1, 3, 1.0),
]


def test_the_first_run_says_that_it_compiles(capsys: pytest.CaptureFixture[str]):
    assert progress_lines(STAGES, capsys) == [
        "compiling the encoders of these types, once on this machine",
        "convert   0%",
        "convert  50% a",
    ]


def test_on_a_terminal_a_bar_moves_while_it_compiles(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for name, value in {"TERM": "xterm", "COLUMNS": "100", "FORCE_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    shown = "\n".join(progress_lines(STAGES, capsys))
    assert 0 <= shown.find("compiling the encoders of these types, once on this machine") < shown.find("convert")
    assert "compiling the encoders of these types, once on this machine" in "\n".join(
        progress_lines(STAGES[:2], capsys)
    )


def test_notes_stand_on_lines_of_their_own_above_the_bars(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Whatever bar was there when they came."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for name, value in {"TERM": "xterm", "COLUMNS": "60", "FORCE_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    long = "what could not be done " * 5
    with progress_display() as display:
        for progress in STAGES[:2]:
            display.update(progress)
        display.note(long + "[1]")
        for progress in STAGES[2:]:
            display.update(progress)
        display.note("a second one, \x1b[2J")
    screen = pyte.HistoryScreen(60, 20)
    pyte.ByteStream(screen).feed(capsys.readouterr().err.replace("\n", "\r\n").encode())
    shown = "".join(screen.display)  # full lines were broken by the terminal
    assert shown.split() == f"note: {long}[1] note: a second one, ^[[2J".split()
    assert any(line.startswith("note: a second one") for line in screen.display)


def test_a_stage_as_long_as_the_one_before_begins_anew(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for name, value in {"TERM": "xterm", "COLUMNS": "100", "FORCE_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    whole = Progress("convert", "a", 100, 100, 1, 1, 1.0)
    shown = "\n".join(progress_lines([whole, Progress("verify", "", 0, 100, 0, 1, 0.0)], capsys))
    assert "-:--:--" in shown[shown.find("verify") :], "nothing is known yet of the time that is left"


# --- parts ---


def test_an_interruption_just_after_parts_were_named(here: Path, capsys: pytest.CaptureFixture[str]):
    def interrupt(after: Callable[[], object]) -> str:
        with pytest.raises(KeyboardInterrupt), told_when_interrupted([Path("a.gguf")]):  # noqa: PT012
            after()
            raise KeyboardInterrupt
        return capsys.readouterr().err

    assert "Interrupted at the very end." in interrupt(Path("a-00001-of-00002.gguf").touch)
    assert "Interrupted; nothing was written." in interrupt(lambda: None)


def test_parts(checkpoint: Path, here: Path, capsys: pytest.CaptureFixture[str]):
    assert quantize(checkpoint, "--q8_0", "--q4_0", "--split-max-size", "500K", "-o", "out") == 0
    err = capsys.readouterr().err
    for file_type in ("Q8_0", "Q4_0"):
        parts = [name for name in names(here / "out") if file_type in name]
        assert f"out/{parts[0]}: " in err
        assert f" in {len(parts)} parts, 21 tensors" in err
        check_runnable(read_model(here / "out" / parts[0]))
    assert "Talk with it: zephyr-local chat out/zephyr-small-Q8_0-00001-of-00004.gguf" in err
    assert quantize(here / "out" / "zephyr-small-Q8_0-00001-of-00004.gguf", "--q8_0") == 0
    assert "zephyr-small-Q8_0.gguf" in names(here)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("500M", 500 * 10**6), ("2G", 2 * 10**9), (" 1.5 kb ", 1500), ("0.5", 0), ("1T", 10**12), ("7b", 7)],
)
def test_sizes(text: str, size: int):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1G", "1e9", "2 GiB", "nan", "9" * 400, "1..5G", "２G"])
def test_what_is_no_size(text: str):
    with pytest.raises(InvalidInputError, match="is not a size"):
        parse_size(text)


# --- what llama-quantize's options of the same names make ---


@pytest.mark.parametrize(
    ("flags", "file_type", "mix"),
    [
        (["--output-tensor-type", "q8_0"], FileType.Q4_K_M, MixOptions(output_tensor_type=TensorType.Q8_0)),
        (["--token-embedding-type", "Q2-K"], FileType.Q4_K_M, MixOptions(token_embedding_type=TensorType.Q2_K)),
        (["--pure"], FileType.Q4_K_M, MixOptions(pure=True)),
        (["--leave-output-tensor"], FileType.Q3_K_L, MixOptions(leave_output_tensor=True)),
        (
            ["--tensor-type", "attn_v=q6_k", "--tensor-type", r"blk\.[01]\.ffn_(up|down)=f16"],
            FileType.Q4_K_S,
            MixOptions(tensor_types=(("attn_v", TensorType.Q6_K), (r"blk\.[01]\.ffn_(up|down)", TensorType.F16))),
        ),
        (
            ["--pure", "--token-embedding-type", "f32", "--output-tensor-type", "bf16", "--tensor-type", "attn=q8_0"],
            FileType.Q2_K,
            MixOptions((("attn", TensorType.Q8_0),), TensorType.BF16, TensorType.F32, pure=True),
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.parametrize("kind", ["checkpoint", "gguf"])
def test_mix_options(
    kind: str, flags: list[str], file_type: FileType, mix: MixOptions, checkpoint: Path, bf16: Path, here: Path
):
    source = checkpoint if kind == "checkpoint" else bf16
    assert quantize(source, f"--{file_type.name.lower()}", *flags, "-o", "ours.gguf") == 0
    llama_quantize(bf16, here / "theirs.gguf", file_type, mix)
    require_equal(here / "ours.gguf", here / "theirs.gguf")
    assert (here / "ours.gguf").stat().st_size > 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--output-tensor-type", "q9"], "'q9' is not a tensor type that can be written. Use one of F32, F16"),
        (["--token-embedding-type", "iq4_nl"], "'iq4_nl' is not a tensor type"),
        (["--tensor-type", "no_such=q8_0"], "'no_such' for Q8_0 matches no tensor"),
        (["--tensor-type", "=q8_0"], "pattern for Q8_0 tensors is empty"),
        (["--tensor-type", "attn_(=q8_0"], "is not a regular expression"),
        (["--leave-output-tensor", "--output-tensor-type", "q8_0"], "cannot both be left as it is and become Q8_0"),
        (["--threads", "0"], "threads is 0, outside 1 to"),
        (["--split-max-size", "0"], "the largest part is 0 bytes"),
        (["--base", "somewhere"], "is no adapter, so it has no base"),
    ],
)
def test_options_that_cannot_be_met(
    flags: list[str], words: str, checkpoint: Path, here: Path, capsys: pytest.CaptureFixture[str]
):
    assert quantize(checkpoint, "--q4_k_m", *flags) == 2
    assert words in capsys.readouterr().err
    assert names(here) == []


# --- a GGUF as the source ---


def test_a_gguf_and_its_default_name(bf16: Path, here: Path):
    assert quantize(bf16, "--q4_k_m") == 0
    llama_quantize(bf16, here / "theirs.gguf", FileType.Q4_K_M)
    require_equal(here / "small-Q4_K_M.gguf", here / "theirs.gguf")


def test_a_quantized_gguf_needs_leave(bf16: Path, here: Path, capsys: pytest.CaptureFixture[str]):
    assert quantize(bf16, "--q8_0") == 0
    capsys.readouterr()
    assert quantize("small-Q8_0.gguf", "--q4_k_m") == 2
    assert "output.weight is already quantized (Q8_0)" in capsys.readouterr().err
    assert quantize("small-Q8_0.gguf", "--q4_k_m", "--allow-requantize") == 0
    llama_quantize(here / "small-Q8_0.gguf", here / "theirs.gguf", FileType.Q4_K_M, allow_requantize=True)
    require_equal(here / "small-Q4_K_M.gguf", here / "theirs.gguf")
    assert quantize("small-Q8_0.gguf", "--q8_0", "--overwrite") == 1
    assert "small-Q8_0.gguf is the input" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (None, 3, "there is no file"),
        (b"", 1, "is empty"),
        (b"GGUF\3\0\0\0", 1, "model.gguf: "),
        (b"<!DOCTYPE html>", 1, "it is a web page"),
    ],
)
def test_a_source_that_is_no_gguf(
    content: bytes | None, code: int, words: str, here: Path, capsys: pytest.CaptureFixture[str]
):
    if content is not None:
        (here / "model.gguf").write_bytes(content)
    assert quantize("model.gguf", "--q4_0") == code
    err = capsys.readouterr().err
    assert words in err
    assert "checkpoint" not in err.split(". ")[0]
    assert len(err.splitlines()) == 1


def test_what_ends_in_a_slash_is_a_folder(checkpoint: Path, here: Path):
    assert run(["quantize", str(checkpoint), "--q8_0", "-o", "new/"]) == 0
    assert [path.name for path in (here / "new").iterdir()] == ["zephyr-small-Q8_0.gguf"]
    assert run(["quantize", str(checkpoint / "none"), "--q8_0", "-o", "gone/"]) == 1
    assert not (here / "gone").exists()


def test_a_name_without_an_ending_is_a_folder(checkpoint: Path, here: Path):
    assert quantize(checkpoint, "--q8_0", "-o", "models") == 0
    assert quantize(checkpoint, "--q4_0", "--q5_0", "-o", "models") == 0
    assert names(here / "models") == [f"zephyr-small-{kind}.gguf" for kind in ("Q4_0", "Q5_0", "Q8_0")]


def test_which_template_to_give(here: Path, capsys: pytest.CaptureFixture[str]):
    """The name says nothing, so a model without a template needs one."""
    folder = build_checkpoint(here / "foo")
    (folder / "chat_template.jinja").unlink()
    assert quantize(folder, "--q8_0") == 0
    assert "--template zephyr\n(or --template FILE: it brings no chat template)" in capsys.readouterr().err
    assert quantize(here / "foo-Q8_0.gguf", "--f16", "--allow-requantize") == 0
    assert "--template zephyr\n" in capsys.readouterr().err
