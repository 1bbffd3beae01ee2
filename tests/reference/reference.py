"""Runs llama.cpp's own converter and quantizer, as benchmarks/reference/build.py made them, on the cases."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.reference.build import ReferenceConverter, ReferenceTools
from tests.reference.cases import FEW_TYPES, Case
from tests.reference.digests import CONVERTER_TYPES
from zephyr_local.quantize.types import FileType

# The script itself runs for each job, as if started anew; only its imports, which take seconds, are shared.
_RUN_ALL = """
import json, os, runpy, sys
for arguments in json.load(sys.stdin):
    sys.argv = arguments
    sys.path[0] = os.path.dirname(arguments[0])
    runpy.run_path(arguments[0], run_name="__main__")
"""


def types_of(case: Case) -> tuple[str, ...]:
    """The file types in which a case is compared: first those that the converter writes."""
    if case.vocabulary == "Mistral's":
        return "BF16", "Q4_K_M"  # gguf-py's reader takes seconds for 32,000 tokens
    names = tuple(FileType.__members__) if case.every_type else FEW_TYPES
    return (*CONVERTER_TYPES, *(name for name in names if name not in CONVERTER_TYPES))


def converter_types_of(case: Case) -> list[str]:
    """Those that llama.cpp's converter writes itself; all other types are llama-quantize's."""
    return [name for name in types_of(case) if name in CONVERTER_TYPES]


def convert_cases(converter: ReferenceConverter, cases: Iterable[Case], folder: Path) -> None:
    """Build each case under `folder`/checkpoints, and convert it to `folder` / its name / TYPE.gguf.

    All with llama.cpp's converter, to the types that it writes itself, in one process of its own Python.
    """
    arguments = []
    for case in cases:
        checkpoint = case.build(folder / "checkpoints")
        (folder / case.name).mkdir()
        for file_type in converter_types_of(case):
            target = folder / case.name / f"{file_type}.gguf"
            arguments.append(converter.command(checkpoint, target, file_type.lower())[1:])
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONPATH": ""}
    _run([str(converter.python), "-c", _RUN_ALL], json.dumps(arguments), os.environ | offline)


def quantize(tools: ReferenceTools, source: Path, target: Path, file_type: str) -> None:
    """Make one file with llama-quantize, from a GGUF of a float type."""
    _run([str(tools["llama-quantize"]), str(source), str(target), file_type, "2"], "", dict(os.environ))


def _run(command: Sequence[str], standard_input: str, environment: dict[str, str]) -> None:
    done = subprocess.run(command, input=standard_input, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}:\n{done.stderr[-4000:]}")
