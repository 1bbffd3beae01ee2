"""A GGUF as the source: its tensors and keys become what llama.cpp's own quantizer makes of the same file."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from tests.checkpoint_builder import Dtype, ModelShape, build_checkpoint
from tests.gguf_builder import Tensor, TinyModel, model_of_file, split_model, tiny_model, write_parts
from tests.quantize.llama_quantize import llama_quantize, require_equal
from zephyr_local.convert.hf_to_gguf import (
    ConvertOptions,
    OutputRequest,
    convert_checkpoint,
    convert_model,
    default_target_name,
    stored_file_type,
)
from zephyr_local.errors import InvalidInputError, ModelFileError, ModelNotFoundError, OutputError, ZephyrError
from zephyr_local.gguf_check import check_runnable
from zephyr_local.gguf_file import MAX_PAIRS, read_gguf
from zephyr_local.gguf_split import read_model
from zephyr_local.quantize.gguf_source import model_name
from zephyr_local.quantize.provenance import Provenance
from zephyr_local.quantize.types import FileType

ALLOWED = ConvertOptions(threads=2, overwrite=True, allow_requantize=True)
PLAIN = ConvertOptions(threads=2, overwrite=True)
EVERY_ARRAY = {
    "general.of_u8": ("array[u8]", [0, 255]),
    "general.of_i8": ("array[i8]", [-128, 127]),
    "general.of_u16": ("array[u16]", [65535]),
    "general.of_i16": ("array[i16]", [-32768]),
    "general.of_u32": ("array[u32]", [2**32 - 1]),
    "general.of_i32": ("array[i32]", [-(2**31)]),
    "general.of_f32": ("array[f32]", [0.1, float("inf")]),
    "general.of_bool": ("array[bool]", [True, False, True]),
    "general.of_u64": ("array[u64]", [2**64 - 1]),
    "general.of_i64": ("array[i64]", [-(2**63)]),
    "general.of_f64": ("array[f64]", [1e300]),
    "general.tags": ("array[str]", ["", "日本", "a\nb"]),
    "general.nothing": ("array[f32]", []),
}
EVERY_SCALAR = {
    "general.a_u8": ("u8", 255),
    "general.an_i8": ("i8", -128),
    "general.a_u16": ("u16", 65535),
    "general.an_i16": ("i16", -32768),
    "general.an_i32": ("i32", -(2**31)),
    "general.an_f32": ("f32", 1e-45),
    "general.a_bool": ("bool", True),
    "general.a_u64": ("u64", 2**64 - 1),
    "general.an_i64": ("i64", -(2**63)),
    "general.an_f64": ("f64", 5e-324),
    "general.text": ("str", "wörds"),
    "other.prefix": ("str", ""),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sources")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Callable[[Dtype], Path]:
    """The GGUF of a checkpoint in a float type, with values that a careless road would change."""
    checkpoints = {
        dtype: build_checkpoint(folder / f"checkpoint-{dtype}", ModelShape(n_layers=3), dtype=dtype)
        for dtype in ("BF16", "F16", "F32")
    }

    def made(dtype: Dtype) -> Path:
        path = folder / f"model-{dtype}.gguf"
        if not path.exists():
            convert_checkpoint(checkpoints[dtype], path, FileType[dtype])
            model = model_of_file(path)
            data = bytearray(model.tensor("blk.1.ffn_up.weight").data)
            odd = {"BF16": b"\x01\x00\x00\x80", "F16": b"\x01\x00\x00\x80", "F32": b"\x01\0\0\0\0\0\0\x80"}[dtype]
            data[: len(odd)] = odd  # the smallest subnormal number, and -0
            model.tensor("blk.1.ffn_up.weight").data = bytes(data)
            model.write(path)
        return path

    return made


@pytest.fixture(scope="module")
def quantized(plain: Callable[[Dtype], Path], folder: Path) -> Callable[[FileType], Path]:
    def made(file_type: FileType) -> Path:
        path = folder / f"model-{file_type.name}.gguf"
        if not path.exists():
            convert_checkpoint(plain("BF16"), path, file_type)
        return path

    return made


def keys(path: Path) -> dict[str, tuple[Any, Any]]:
    fields = gguf.GGUFReader(path).fields.items()
    return {
        key: (field.types, field.contents())
        for key, field in fields
        if not key.startswith(("GGUF.", "zephyr_local.")) and key != "general.alignment"
    }


def require_as_llama_quantize(
    source: Path, tmp_path: Path, types: Sequence[FileType], reference: Path | None = None, *, requantize: bool = False
) -> None:
    """`reference`: the file that llama.cpp is given, where it cannot take the source itself."""
    requests = [OutputRequest(tmp_path / f"ours-{file_type.name}.gguf", file_type) for file_type in types]
    convert_model(source, requests, ALLOWED if requantize else PLAIN)
    for request in requests:
        theirs = tmp_path / "theirs.gguf"
        llama_quantize(reference or source, theirs, request.file_type, allow_requantize=requantize)
        require_equal(request.target, theirs)
        assert keys(request.target) == keys(theirs)
        check_runnable(read_gguf(request.target))


# --- from floats ---


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_every_type_from_a_plain_gguf(dtype: Dtype, plain: Callable[[Dtype], Path], tmp_path: Path) -> None:
    require_as_llama_quantize(plain(dtype), tmp_path, list(FileType))


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_a_gguf_gives_what_its_checkpoint_gives(
    dtype: Dtype, plain: Callable[[Dtype], Path], folder: Path, tmp_path: Path
) -> None:
    convert_checkpoint(folder / f"checkpoint-{dtype}", tmp_path / "bf16.gguf", FileType[dtype])
    for file_type in (FileType.Q4_K_M, FileType.Q8_0, FileType.F32):
        convert_checkpoint(tmp_path / "bf16.gguf", tmp_path / "from-gguf.gguf", file_type, PLAIN)
        convert_checkpoint(folder / f"checkpoint-{dtype}", tmp_path / "direct.gguf", file_type, PLAIN)
        require_equal(tmp_path / "from-gguf.gguf", tmp_path / "direct.gguf")
        assert keys(tmp_path / "from-gguf.gguf") == keys(tmp_path / "direct.gguf")


def other_order(model: TinyModel) -> None:
    model.metadata = dict(reversed(model.metadata.items()))
    model.tensors.reverse()


def version_2(model: TinyModel) -> None:
    model.version = 2


def more_keys(model: TinyModel) -> None:
    model.metadata = EVERY_ARRAY | model.metadata | EVERY_SCALAR


def without_types(model: TinyModel) -> None:
    del model.metadata["general.file_type"], model.metadata["general.quantization_version"]


def rope_factors(model: TinyModel) -> None:
    model.tensors.append(Tensor("rope_freqs.weight", (16,), np.linspace(1, 2, 16, dtype="<f4").tobytes()))


def tied(model: TinyModel) -> None:
    model.tensors = [tensor for tensor in model.tensors if tensor.name != "output.weight"]


def dimensions_of_one(model: TinyModel) -> None:
    for name in ("blk.0.attn_norm.weight", "blk.1.attn_q.weight"):
        model.tensor(name).shape += (1,)


def mixed_types(model: TinyModel) -> None:
    tensor = model.tensor("blk.2.ffn_gate.weight")
    values = (np.frombuffer(tensor.data, "<u2").astype("<u4") << 16).view("<f4")
    tensor.data, tensor.type_id = values.astype("<f2").tobytes(), 1
    tensor = model.tensor("blk.0.ffn_gate.weight")
    tensor.data, tensor.type_id = (np.frombuffer(tensor.data, "<u2").astype("<u4") << 16).tobytes(), 0


@pytest.mark.parametrize(
    "change",
    [other_order, version_2, more_keys, without_types, rope_factors, tied, dimensions_of_one, mixed_types],
    ids=lambda change: change.__name__,
)
def test_a_gguf_of_another_make(
    change: Callable[[TinyModel], None], plain: Callable[[Dtype], Path], tmp_path: Path
) -> None:
    model = model_of_file(plain("BF16"))
    change(model)
    types = [FileType.Q4_K_M, FileType.Q2_K, FileType.Q8_0, FileType.F16, FileType.BF16]
    require_as_llama_quantize(model.write(tmp_path / "source.gguf"), tmp_path, types)


@pytest.mark.parametrize("alignment", [8, 16, 64, 4096])
def test_another_alignment_is_not_kept(alignment: int, plain: Callable[[Dtype], Path], tmp_path: Path) -> None:
    model = model_of_file(plain("BF16"))
    model.alignment = alignment
    model.metadata["general.alignment"] = ("u32", alignment)
    source = model.write(tmp_path / "source.gguf")
    # llama.cpp would take the key over and pad to 32 all the same.
    require_as_llama_quantize(source, tmp_path, [FileType.Q4_K_M, FileType.BF16], plain("BF16"))
    assert "general.alignment" not in read_gguf(tmp_path / "ours-Q4_K_M.gguf").metadata


def test_a_gguf_that_gguf_py_wrote(plain: Callable[[Dtype], Path], tmp_path: Path) -> None:
    reader = gguf.GGUFReader(plain("F16"))
    writer = gguf.GGUFWriter(tmp_path / "source.gguf", "llama")
    for key, field in sorted(reader.fields.items()):
        if not key.startswith(("GGUF.", "zephyr_local.")) and key != "general.architecture":
            kind, *elements = field.types
            writer.add_key_value(key, field.contents(), kind, elements[-1] if elements else None)
    for tensor in reversed(reader.tensors):
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    require_as_llama_quantize(tmp_path / "source.gguf", tmp_path, [FileType.Q5_K_S, FileType.Q4_0, FileType.F32])


def test_our_keys_stand_in_the_first_bytes_whatever_the_sources_order(
    plain: Callable[[Dtype], Path], tmp_path: Path
) -> None:
    """By which a temporary file is known for ours."""
    model = model_of_file(plain("BF16"))
    architecture = model.metadata.pop("general.architecture")
    model.metadata = {"general.long": ("array[str]", ["x" * 1000] * 100)} | model.metadata
    model.metadata["general.architecture"] = architecture
    convert_checkpoint(model.write(tmp_path / "source.gguf"), tmp_path / "out.gguf", FileType.Q8_0)
    found = list(read_gguf(tmp_path / "out.gguf").metadata)
    assert found[0] == "general.architecture"
    assert all(key.startswith("zephyr_local.") for key in found[1:4])


# --- from quantized types ---

QUANTIZED = [FileType.Q8_0, FileType.Q4_0, FileType.Q5_1, FileType.Q2_K, FileType.Q3_K_L, FileType.Q4_K_M]
QUANTIZED += [FileType.Q5_K_M, FileType.Q6_K]


@pytest.mark.parametrize("stored", QUANTIZED, ids=lambda stored: stored.name)
def test_quantizing_again(stored: FileType, quantized: Callable[[FileType], Path], tmp_path: Path) -> None:
    types = [FileType.Q4_K_M, FileType.Q4_1, FileType.Q8_0, FileType.BF16, FileType.F16, FileType.F32, stored]
    require_as_llama_quantize(quantized(stored), tmp_path, list(dict.fromkeys(types)), requantize=True)


@pytest.mark.parametrize("stored", QUANTIZED, ids=lambda stored: stored.name)
def test_quantizing_again_is_refused_unless_allowed(
    stored: FileType, quantized: Callable[[FileType], Path], tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        convert_checkpoint(quantized(stored), tmp_path / "out.gguf", FileType.Q5_0, PLAIN)
    # the output matrix is Q6_K in all the others and stays so
    name, wanted = ("output.weight", "Q6_K") if stored is FileType.Q8_0 else ("token_embd.weight", "Q5_0")
    kind = stored.default_type.name
    assert f"{name} is already quantized ({kind}), and making it {wanted} loses" in str(caught.value)
    assert "--allow-requantize" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stored", QUANTIZED, ids=lambda stored: stored.name)
def test_a_file_that_keeps_its_types_is_copied(
    stored: FileType, quantized: Callable[[FileType], Path], tmp_path: Path
) -> None:
    convert_checkpoint(quantized(stored), tmp_path / "out.gguf", stored, PLAIN)
    require_equal(tmp_path / "out.gguf", quantized(stored))
    assert keys(tmp_path / "out.gguf") == keys(quantized(stored))


# --- parts ---


def test_parts_as_a_source(plain: Callable[[Dtype], Path], tmp_path: Path) -> None:
    paths = write_parts(split_model(model_of_file(plain("BF16")), 4, 4, 20), tmp_path, "zephyr-BF16")
    types = [FileType.Q4_K_M, FileType.BF16]
    require_as_llama_quantize(paths[0], tmp_path, types, plain("BF16"))
    found = read_gguf(tmp_path / "ours-Q4_K_M.gguf")
    assert not [key for key in found.metadata if key.startswith("split.")]
    manifest = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in paths)
    assert found.metadata["zephyr_local.source.manifest"] == manifest
    assert found.metadata["zephyr_local.source.sha256"] == hashlib.sha256(manifest.encode()).hexdigest()


def test_from_parts_of_ours_to_other_parts_and_back(plain: Callable[[Dtype], Path], tmp_path: Path) -> None:
    first = convert_model(
        plain("BF16"), [OutputRequest(tmp_path / "a.gguf", FileType.BF16, split_max_bytes=700_000)], PLAIN
    )[0]
    second = convert_model(
        first.path, [OutputRequest(tmp_path / "b.gguf", FileType.BF16, split_max_bytes=400_000)], PLAIN
    )[0]
    assert len(second.paths) > len(first.paths) > 1
    convert_checkpoint(second.path, tmp_path / "whole.gguf", FileType.BF16)
    require_equal(tmp_path / "whole.gguf", plain("BF16"))
    assert keys(tmp_path / "whole.gguf") == keys(plain("BF16"))
    assert read_model(second.path).metadata["split.count"] == len(second.paths)


def test_a_later_part_and_a_missing_part(plain: Callable[[Dtype], Path], tmp_path: Path) -> None:
    paths = write_parts(split_model(model_of_file(plain("BF16")), 4, 20), tmp_path)
    with pytest.raises(ModelFileError, match=r"part 2 of 3.*Give the first part"):
        convert_checkpoint(paths[1], tmp_path / "out.gguf", FileType.Q8_0)
    paths[2].unlink()
    with pytest.raises(ModelFileError, match="part 3 of 3 is missing"):
        convert_checkpoint(paths[0], tmp_path / "out.gguf", FileType.Q8_0)
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("number", range(3))
def test_no_part_of_the_source_is_written_over(number: int, plain: Callable[[Dtype], Path], tmp_path: Path) -> None:
    paths = write_parts(split_model(model_of_file(plain("BF16")), 4, 20), tmp_path)
    before = [path.read_bytes() for path in paths]
    with pytest.raises(OutputError, match=f"is the input .*{paths[number].name}"):
        convert_checkpoint(paths[0], paths[number], FileType.Q8_0, PLAIN)
    assert [path.read_bytes() for path in paths] == before


# --- the output is not the source ---


@pytest.mark.parametrize("how", ["name", "dots", "symlink", "hard link"])
def test_a_file_is_not_converted_to_itself(how: str, plain: Callable[[Dtype], Path], tmp_path: Path) -> None:
    source = tmp_path / "source.gguf"
    source.write_bytes(plain("BF16").read_bytes())
    target = tmp_path / "target.gguf"
    if how == "name":
        target = source
    elif how == "dots":
        target = tmp_path / ".." / tmp_path.name / "source.gguf"
    elif how == "symlink":
        target.symlink_to(source)
    else:
        os.link(source, target)
    with pytest.raises(OutputError, match=r"is the input .*source\.gguf"):
        convert_checkpoint(source, target, FileType.Q8_0, PLAIN)
    assert source.read_bytes() == plain("BF16").read_bytes()


# --- what is no source ---


def refusal(source: Path, tmp_path: Path, kind: type[ZephyrError] = ModelFileError) -> str:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(kind) as caught:
        convert_checkpoint(source, out / "out.gguf", FileType.Q8_0, ALLOWED)
    assert list(out.iterdir()) == []
    assert "checkpoint" not in caught.value.problem
    assert "config.json" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("n_bytes", [0, 3, 20, 5000, -1000])
def test_a_file_that_is_cut_short(n_bytes: int, plain: Callable[[Dtype], Path], tmp_path: Path) -> None:
    data = plain("BF16").read_bytes()
    (tmp_path / "source.gguf").write_bytes(data[:n_bytes])
    assert "source.gguf" in refusal(tmp_path / "source.gguf", tmp_path)


def test_files_that_are_no_gguf(tmp_path: Path, folder: Path, plain: Callable[[Dtype], Path]) -> None:
    safetensors = folder / "checkpoint-BF16" / "model.safetensors"
    with pytest.raises(ModelFileError, match=r"looks like safetensors.*zephyr-local quantize FOLDER"):
        convert_checkpoint(safetensors, tmp_path / "out.gguf", FileType.Q8_0)
    with pytest.raises(ModelNotFoundError, match=r"there is no file .*absent\.gguf"):
        convert_checkpoint(tmp_path / "absent.gguf", tmp_path / "out.gguf", FileType.Q8_0)
    with pytest.raises(InvalidInputError, match=r"is no adapter, so it has no base.*--base"):
        convert_checkpoint(plain("BF16"), tmp_path / "out.gguf", FileType.Q8_0, ConvertOptions(base=folder))
    assert list(tmp_path.iterdir()) == []


def other_architecture(model: TinyModel) -> str:
    model.metadata["general.architecture"] = ("str", "qwen2")
    return r"general.architecture is 'qwen2'; it must be llama"


def an_unknown_type(model: TinyModel) -> str:
    tensor = model.tensor("blk.0.ffn_up.weight")
    tensor.type_id, tensor.data = 20, bytes(len(tensor.data) // 2 // 32 * 18)
    return r"the tensor blk.0.ffn_up.weight has the type IQ4_NL, which is not read"


def a_missing_tensor(model: TinyModel) -> str:
    model.tensors.remove(model.tensor("blk.1.attn_k.weight"))
    return "the tensor blk.1.attn_k.weight is missing"


def a_nan(model: TinyModel) -> str:
    data = bytearray(model.tensor("blk.1.attn_k.weight").data)
    data[2 * (256 * 3 + 5) : 2 * (256 * 3 + 6)] = b"\xc0\x7f"
    model.tensor("blk.1.attn_k.weight").data = bytes(data)
    return r"blk.1.attn_k.weight holds nan at row 3, column 5. The file is damaged"


def as_many_keys_as_can_be(model: TinyModel) -> str:
    more = MAX_PAIRS - len(model.metadata)
    model.metadata |= {f"general.more{i}": ("bool", True) for i in range(more)}
    del model.metadata["zephyr_local.version"]
    return f"the converted model could not be loaded here: .*over the limit of {MAX_PAIRS}.*source.gguf with .*inspect"


@pytest.mark.parametrize(
    "damage",
    [other_architecture, an_unknown_type, a_missing_tensor, a_nan, as_many_keys_as_can_be],
    ids=lambda damage: damage.__name__,
)
def test_a_gguf_that_cannot_be_converted(
    damage: Callable[[TinyModel], str], plain: Callable[[Dtype], Path], tmp_path: Path
) -> None:
    model = model_of_file(plain("BF16"))
    message = damage(model)
    model.metadata.setdefault("general.one_more", ("bool", True))
    source = model.write(tmp_path / "source.gguf")
    assert re.search(message, refusal(source, tmp_path, ZephyrError))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (FileType.Q4_0, "output.weight holds nan at row"),
        (FileType.Q8_0, "output.weight holds blocks whose scale is NaN or infinite. The file is damaged"),
        (FileType.F32, "output.weight holds nan at row"),
    ],
)
def test_a_nan_scale_in_a_quantized_block(
    target: FileType, message: str, quantized: Callable[[FileType], Path], tmp_path: Path
) -> None:
    model = model_of_file(quantized(FileType.Q8_0))
    tensor = model.tensor("output.weight")
    tensor.data = tensor.data[:340] + b"\x01\x7e" + tensor.data[342:]
    source = model.write(tmp_path / "source.gguf")
    (tmp_path / "out").mkdir()
    with pytest.raises(ZephyrError, match=message):
        convert_checkpoint(source, tmp_path / "out" / "out.gguf", target, ALLOWED)
    assert list((tmp_path / "out").iterdir()) == []


# --- names and provenance ---


def test_the_source_is_named_by_its_digest(plain: Callable[[Dtype], Path], tmp_path: Path) -> None:
    result = convert_checkpoint(plain("BF16"), tmp_path / "out.gguf", FileType.Q4_K_M)
    digest = hashlib.sha256(plain("BF16").read_bytes()).hexdigest()
    found = read_gguf(result.path).metadata
    assert result.source_sha256 == found["zephyr_local.source.sha256"] == digest
    assert found["zephyr_local.source.manifest"] == f"{digest}  model-BF16.gguf\n"
    assert digest != read_gguf(plain("BF16")).metadata["zephyr_local.source.sha256"]


def test_what_our_converter_says_of_the_model_is_kept(plain: Callable[[Dtype], Path], tmp_path: Path) -> None:
    model = model_of_file(plain("BF16"))
    model.metadata["zephyr_local.sliding_window"] = ("u32", 4096)
    model.metadata["zephyr_local.version"] = ("u32", 7)
    convert_checkpoint(model.write(tmp_path / "source.gguf"), tmp_path / "out.gguf", FileType.Q8_0)
    found = read_gguf(tmp_path / "out.gguf")
    assert found.metadata["zephyr_local.sliding_window"] == 4096
    assert found.value_types["zephyr_local.version"] == "str"


def test_provenance_of_one_and_of_several_files() -> None:
    one = Provenance(("a",), ("1" * 64,))
    assert one.sha256 == "1" * 64
    assert len(Provenance.unknown(["a", "b"]).manifest) == len(Provenance(("a", "b"), ("1" * 64,) * 2).manifest)


ODD_NAMES = {
    "new\nline.gguf": r"new\nline.gguf",
    "carriage\rreturn.gguf": r"carriage\rreturn.gguf",
    "back\\slash.gguf": r"back\\slash.gguf",
    r"written \n.gguf": r"written \\n.gguf",
    os.fsdecode(b"caf\xe9.gguf"): r"caf\xe9.gguf",
    r"caf\xe9.gguf": r"caf\\xe9.gguf",
    os.fsdecode(b"\xff\n\\"): r"\xff\n\\",
}


@pytest.mark.parametrize(("name", "escaped"), ODD_NAMES.items(), ids=ascii)
def test_odd_names_take_one_line_of_the_manifest(name: str, escaped: str) -> None:
    found = Provenance((name, "plain ä.gguf"), ("1" * 64, "2" * 64))
    assert found.manifest == f"\\{'1' * 64}  {escaped}\n{'2' * 64}  plain ä.gguf\n"
    sizes = {key: len(value.pack()) for key, value in found.keys().items()}
    assert sizes == {key: len(value.pack()) for key, value in Provenance.unknown(found.names).keys().items()}
    assert found.sha256 == hashlib.sha256(found.manifest.encode()).hexdigest()


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="this system has no sha256sum to compare with")
@pytest.mark.parametrize("name", ["new\nline.gguf", "back\\slash.gguf", "plain.gguf"])
def test_the_manifest_is_sha256sums(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    printed = subprocess.run(["sha256sum", name], cwd=tmp_path, capture_output=True, check=True).stdout.decode()
    assert Provenance((name,), (hashlib.sha256(b"x").hexdigest(),)).manifest == printed
    (tmp_path / "manifest").write_text(printed)
    subprocess.run(["sha256sum", "--check", "manifest"], cwd=tmp_path, capture_output=True, check=True)


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="these systems have no names that are no UTF-8")
def test_a_source_whose_name_is_no_utf8(plain: Callable[[Dtype], Path], tmp_path: Path) -> None:
    source = tmp_path / os.fsdecode(b"caf\xe9\n.gguf")
    source.write_bytes(plain("BF16").read_bytes())
    request = OutputRequest(tmp_path / default_target_name(source, FileType.Q8_0), FileType.Q8_0)
    (result,) = convert_model(source, [request], PLAIN)
    assert os.fsencode(result.path.name) == b"caf\xe9\n-Q8_0.gguf"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert read_gguf(result.path).metadata["zephyr_local.source.manifest"] == f"\\{digest}  caf\\xe9\\n.gguf\n"


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="these systems have no names that are no UTF-8")
def test_a_checkpoint_whose_name_is_no_utf8(tmp_path: Path) -> None:
    source = build_checkpoint(tmp_path / os.fsdecode(b"caf\xe9"), ModelShape(n_layers=1))
    shard = os.fsdecode(b"model-\xe9.safetensors")
    (source / "model.safetensors").rename(source / shard)
    result = convert_checkpoint(source, tmp_path / "out.gguf", FileType.Q8_0)
    assert r"model-\xe9.safetensors" in str(read_gguf(result.path).metadata["zephyr_local.source.manifest"])
    "".join(result.notices).encode()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model-BF16.gguf", "model"),
        ("model-bf16.gguf", "model"),
        ("zephyr-7b-beta.Q8_0.gguf", "zephyr-7b-beta"),
        ("model-F16-00001-of-00004.gguf", "model"),
        ("model-00001-of-00004.gguf", "model"),
        ("model-Q4_K_M-v2.gguf", "model-Q4_K_M-v2"),
        ("BF16.gguf", "BF16"),
        ("model-IQ4_XS.gguf", "model-IQ4_XS"),
        ("model.gguf", "model"),
        ("-Q8_0.gguf", "-Q8_0"),
        ("a\nb-F32.gguf", "a\nb"),
        (".gguf", ""),
    ],
)
def test_names(name: str, expected: str) -> None:
    assert model_name(Path("folder") / name) == expected
    assert default_target_name(Path("folder") / name, FileType.Q4_K_M).endswith("-Q4_K_M.gguf")


def test_the_stored_type(plain: Callable[[Dtype], Path], quantized: Callable[[FileType], Path], folder: Path) -> None:
    assert stored_file_type(plain("F16")) is FileType.F16
    assert stored_file_type(folder / "checkpoint-BF16") is FileType.BF16
    with pytest.raises(InvalidInputError, match=r"model-Q8_0.gguf is quantized \(Q8_0\)\. Say which type to write"):
        stored_file_type(quantized(FileType.Q8_0))


def test_a_tiny_model_with_rows_of_32(tmp_path: Path) -> None:
    """Fall-backs everywhere, also from a quantized source whose tensors then keep their types."""
    source = tiny_model().write(tmp_path / "tiny.gguf")
    require_as_llama_quantize(source, tmp_path, [FileType.Q4_K_M, FileType.Q2_K, FileType.Q6_K, FileType.Q8_0])
