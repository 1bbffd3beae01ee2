"""Our files against digests of those that llama.cpp's converter and quantizer make: every key, every tensor's bytes.

The digests were made once (make_digests.py says how); test_live.py runs the reference itself.
"""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path

import gguf
import pytest

from tests.reference.cases import CASES, by_name
from tests.reference.digests import MAKE, OURS, compare, digest_file, digest_inputs, load_fixture
from tests.reference.reference import converter_types_of, types_of
from zephyr_local.convert.hf_to_gguf import convert_checkpoint
from zephyr_local.quantize.types import FileType

NAMES = [case.name for case in CASES]
DIGESTS = load_fixture()


def compared_types(name: str) -> list[str]:
    """All types of the case on x86-64; elsewhere those whose encoders have no sums that a compiler may reorder.

    The encoders of the other types search for the best scale in float32: with fused multiply-adds, as on ARM, a near
    tie may be decided otherwise, by llama.cpp's own quantizer too.
    """
    case = by_name(name)
    return list(types_of(case)) if platform.machine() in ("x86_64", "AMD64") else converter_types_of(case)


def test_the_digests_are_those_of_all_cases_and_types() -> None:
    expected = {case.name: set(types_of(case)) for case in CASES}
    found = {name: set(digests.files) for name, digests in DIGESTS.items()}
    assert found == expected, f"run {MAKE}"


@pytest.mark.parametrize("name", NAMES)
def test_ours_equals_the_reference(name: str, tmp_path: Path) -> None:
    case, digests = by_name(name), DIGESTS.get(name)
    assert digests is not None, f"there are no digests of {name}: run {MAKE}"
    checkpoint = case.build(tmp_path)
    assert digest_inputs(checkpoint) == digests.inputs, (
        f"the checkpoint is not the one that the reference converted (another version of numpy or sentencepiece, or a "
        f"changed case): this says nothing about the converter. Run {MAKE}"
    )
    lines: list[str] = []
    for file_type in compared_types(name):
        target = tmp_path / f"{file_type}.gguf"
        convert_checkpoint(checkpoint, target, FileType[file_type])
        require_closed_list(target)
        lines += compare(case, file_type, digest_file(target), digests.files[file_type])
    assert not lines, "\n".join(lines)


def require_closed_list(path: Path) -> None:
    """Our own keys are the four that docs/design/conversion.md lists."""
    found = {key: field.types for key, field in gguf.GGUFReader(path).fields.items() if key.startswith(OURS)}
    string, u32 = [gguf.GGUFValueType.STRING], [gguf.GGUFValueType.UINT32]
    always = {f"{OURS}{name}": string for name in ("version", "source.sha256", "source.manifest")}
    assert found in (always, always | {f"{OURS}sliding_window": u32})


def test_what_differs_is_named() -> None:
    """The comparison itself: a value, a key too many, a byte of a tensor, the order, and a difference that is gone."""
    case = by_name("chatml")
    theirs = DIGESTS["chatml"].files["BF16"]
    ours = {key: text for key, text in theirs.keys.items() if key not in case.noted}
    ours |= dict.fromkeys(case.noted, "otherwise")
    assert compare(case, "BF16", replace(theirs, keys=ours), theirs) == []
    more = ours | {"general.file_type": "UINT32 7", "general.alias": 'STRING "x"'}
    tensors = {**theirs.tensors, "output_norm.weight": "F32:0000000000000000"}
    lines = compare(case, "BF16", replace(theirs, keys=more, tensors=tensors), theirs)
    assert [line.partition(" is ")[0] for line in lines] == [
        "chatml, BF16: general.file_type",
        "chatml, BF16: general.alias",
        "chatml, BF16: the tensor output_norm.weight",
    ]
    (line,) = compare(case, "BF16", replace(theirs, keys=dict(reversed(ours.items()))), theirs)
    assert "the keys stand in the order" in line
    assert len(compare(case, "BF16", theirs, theirs)) == len(case.noted)
