from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import ROOT, zephyr_local
from zephyr_local.cli.main import VERBS


def test_version_names_ours_and_llama_cpps():
    done = zephyr_local("--version")
    assert done.returncode == 0
    first, second = done.stdout.splitlines()
    assert first == "zephyr-local 0.1.0"
    assert "llama.cpp" in second
    assert "llama-cpp-python" in second


def test_help_lists_every_verb_and_imports_none():
    code = (
        "import sys; from zephyr_local.cli.main import run; run(['--help']);"
        "print([m for m in sys.modules if m.startswith(('numpy', 'llama_cpp', 'zephyr_local.cli.', 'torch', 'rich'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    for verb, text in VERBS.items():
        assert verb in done.stdout
        assert text in done.stdout
    assert done.stdout.splitlines()[-1] == "['zephyr_local.cli.main']"


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_help_with_its_own_line(verb: str):
    done = zephyr_local(verb, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: zephyr-local {verb}")
    # The table in main.py is what --help prints; a verb's own short help must not say something else.
    from zephyr_local.cli.main import app

    command = app.get_command(None, verb)  # type: ignore[arg-type]
    assert command is not None
    assert command.short_help == VERBS[verb]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nonsense"], 2, "No such command"),
        (["chat", "--no-such-flag"], 2, "No such option"),
        (["chat", "--temperature", "hot"], 2, "not a valid float"),
        (["chat", "-p", "hi", "--temperature", "-1"], 2, "temperature is -1.0, outside 0 to 100"),
        (["chat", "-p", "hi", "--top-p", "nan"], 2, "top_p is nan"),
        (["chat", "-p", "hi", "--threads", "10000"], 2, "n_threads is 10000, outside 1 to 512"),
        (["chat", "-p", "hi", "--seed", "-3"], 2, "seed is -3"),
        (["chat", "/nowhere/model.gguf", "-p", "hi"], 3, "/nowhere/model.gguf"),
        (["inspect", "/nowhere/model.gguf"], 3, "/nowhere/model.gguf"),
        (["chat"], 2, "stdin holds no question"),
        (["chat", "-p", " "], 2, "the question is empty"),
        (["chat", "/nowhere/model.gguf"], 3, "there is no file /nowhere/model.gguf"),
        (["quantize", "somewhere", "--q4_k_m", "-o", "-"], 2, "cannot be written to stdout"),
        (["quantize", "somewhere"], 2, "no type is given"),
        (["quantize", "somewhere", "--q4_k_m", "--q8_0", "-o", "x.gguf"], 2, "2 types are given"),
        (["quantize", "somewhere", "--q4_k_m", "--tensor-type", "attn_v"], 2, "has no ="),
        (["quantize", "somewhere", "--q4_k_m", "--tensor-type", "attn_v=q9"], 2, "'q9' is not"),
        (["quantize", "somewhere", "--q4_k_m", "--split-max-size", "large"], 2, "'large' is not a size"),
        (["quantize", "somewhere", "--q4_k_m", "--json"], 2, "--json is for --dry-run"),
        (["convert"], 2, "no source is given"),
        (["convert", "somewhere", "--lora", "somewhere"], 2, "both a source and --lora"),
        (["convert", "--lora", "somewhere", "--pure"], 2, "--pure cannot be used with --lora"),
        (["convert", "--lora", "somewhere", "--f16", "--q8_0"], 2, "2 types are given for one adapter"),
    ],
)
def test_what_is_wrong_meets_one_line_and_a_code(arguments: list[str], code: int, words: str):
    done = zephyr_local(*arguments)
    assert done.returncode == code
    assert words in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_debug_shows_where(tmp_path: Path):
    done = zephyr_local("--debug", "inspect", tmp_path / "absent.gguf")
    assert "Traceback" in done.stderr
    assert "ModelNotFoundError" in done.stderr


def test_an_error_that_quotes_a_file_name_cannot_drive_the_terminal():
    done = zephyr_local("inspect", "/nowhere/\x1b[2Jname.gguf")
    assert "\x1b" not in done.stderr
    assert "^[[2Jname.gguf" in done.stderr
