"""Writes digests.json: what llama.cpp's own converter and quantizer make of the cases.

    python benchmarks/reference/build.py
    python -m tests.reference.make_digests --reference build/reference

For every case the converter writes F32, F16, BF16 and Q8_0, and llama-quantize every other type from the converter's
file in the type that the checkpoint is stored in, which is lossless.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmarks.reference.build import (
    DEFAULT_FOLDER,
    NotBuiltError,
    ReferenceConverter,
    ReferenceTools,
    reference_converter,
    reference_tools,
)
from tests.reference.cases import CASES, Case
from tests.reference.digests import (
    CONVERTER_TYPES,
    FIXTURE,
    CaseDigests,
    FileDigest,
    digest_file,
    digest_inputs,
    dump_fixture,
)
from tests.reference.reference import convert_cases, quantize, types_of


def make_case(case: Case, folder: Path, tools: ReferenceTools) -> CaseDigests:
    """Digests of one case, which :func:`convert_cases` has converted in `folder`."""
    files: dict[str, FileDigest] = {}
    for file_type in types_of(case):
        path = folder / case.name / f"{file_type}.gguf"
        if file_type not in CONVERTER_TYPES:
            quantize(tools, path.with_name(f"{case.float_type}.gguf"), path, file_type)
        files[file_type] = digest_file(path)
    return CaseDigests(digest_inputs(folder / "checkpoints" / case.name), files)


def make_all(converter: ReferenceConverter, tools: ReferenceTools) -> dict[str, CaseDigests]:
    """Digests of the cases by name."""
    with tempfile.TemporaryDirectory(prefix="reference-") as name:
        convert_cases(converter, CASES, Path(name))
        return {case.name: make_case(case, Path(name), tools) for case in CASES}


def versions(converter: ReferenceConverter, tools: ReferenceTools) -> dict[str, object]:
    """What the digests were made with: the reference's versions, and those that made the checkpoints."""
    inputs = {name: importlib.metadata.version(name) for name in ("numpy", "sentencepiece", "mistral-common")}
    return {
        "converter": asdict(converter.stamp),
        "tools": asdict(tools.stamp),
        "checkpoints": inputs | {"python": platform.python_version()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, default=DEFAULT_FOLDER, help="what build.py made")
    given = parser.parse_args()
    folder = given.reference.absolute()
    try:
        converter, tools = reference_converter(folder), reference_tools(folder)
    except NotBuiltError as error:
        raise SystemExit(str(error)) from None
    FIXTURE.write_text(dump_fixture(versions(converter, tools), make_all(converter, tools)), encoding="utf-8")


if __name__ == "__main__":
    main()
