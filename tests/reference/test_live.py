"""Our files against those that llama.cpp's own converter and quantizer make here and now."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.reference.build import (
    DEFAULT_FOLDER,
    NotBuiltError,
    ReferenceTools,
    reference_converter,
    reference_tools,
)
from tests.reference.cases import CASES, by_name
from tests.reference.digests import CONVERTER_TYPES, compare, digest_file
from tests.reference.make_adapter_digests import CASES as ADAPTERS
from tests.reference.make_adapter_digests import AdapterCase, make_case
from tests.reference.reference import convert_cases, converter_types_of, quantize, types_of
from zephyr_local.convert.hf_to_gguf import convert_checkpoint
from zephyr_local.convert.lora_gguf import convert_adapter
from zephyr_local.quantize.types import FileType

pytestmark = pytest.mark.slow

NAMES = [case.name for case in CASES]
FOLDER = Path(os.environ.get("ZEPHYR_LOCAL_REFERENCE") or DEFAULT_FOLDER)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the cases under checkpoints/ and what the reference made of each under its name."""
    try:
        converter = reference_converter(FOLDER)
    except NotBuiltError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("reference")
    convert_cases(converter, CASES, folder)
    return folder


@pytest.fixture(scope="module")
def tools() -> ReferenceTools:
    try:
        return reference_tools(FOLDER)
    except NotBuiltError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("case", ADAPTERS, ids=lambda case: case.name)
def test_ours_equals_the_adapter_converters(case: AdapterCase, tmp_path: Path) -> None:
    try:
        theirs = make_case(case, tmp_path, reference_converter(FOLDER))
    except NotBuiltError as error:
        pytest.skip(str(error))
    lines: list[str] = []
    for file_type in CONVERTER_TYPES:
        target = tmp_path / "ours" / f"{file_type}.gguf"
        target.parent.mkdir(exist_ok=True)
        convert_adapter(tmp_path / case.name, case.base(tmp_path), target, FileType[file_type])
        lines += compare(case, file_type, digest_file(target), theirs.files[file_type])
    assert not lines, "\n".join(lines)


def differences(name: str, converted: Path, file_types: list[str], tmp_path: Path) -> list[str]:
    lines: list[str] = []
    for file_type in file_types:
        target = tmp_path / f"{file_type}.gguf"
        convert_checkpoint(converted / "checkpoints" / name, target, FileType[file_type])
        theirs = digest_file(converted / name / f"{file_type}.gguf")
        lines += compare(by_name(name), file_type, digest_file(target), theirs)
    return lines


@pytest.mark.parametrize("name", NAMES)
def test_ours_equals_the_converters(name: str, converted: Path, tmp_path: Path) -> None:
    lines = differences(name, converted, converter_types_of(by_name(name)), tmp_path)
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize("name", NAMES)
def test_ours_equals_llama_quantizes(name: str, converted: Path, tools: ReferenceTools, tmp_path: Path) -> None:
    case = by_name(name)
    file_types = [file_type for file_type in types_of(case) if file_type not in CONVERTER_TYPES]
    for file_type in file_types:
        source = converted / name / f"{case.float_type}.gguf"
        quantize(tools, source, converted / name / f"{file_type}.gguf", file_type)
    lines = differences(name, converted, file_types, tmp_path)
    assert not lines, "\n".join(lines)
