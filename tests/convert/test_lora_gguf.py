"""GGUF adapters: llama.cpp's own converter's bytes, and in llama.cpp the logits of the merged model."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest

from tests import adapter_builder as adapters
from tests.checkpoint_builder import ModelShape, build_checkpoint, change_json
from tests.llama_eval import Evaluator
from tests.reference.digests import CONVERTER_TYPES, compare, digest_file, digest_inputs, load_fixture
from tests.reference.make_adapter_digests import CASES, FIXTURE, MAKE, AdapterCase
from zephyr_local.convert.hf_to_gguf import ConvertOptions, convert_checkpoint
from zephyr_local.convert.lora_gguf import convert_adapter
from zephyr_local.engine import context, llama
from zephyr_local.errors import CheckpointError, OutputError, ZephyrError
from zephyr_local.gguf_file import read_gguf
from zephyr_local.quantize import gguf_output
from zephyr_local.quantize.types import FileType
from zephyr_local.settings import EngineSettings

SHAPE = ModelShape(hidden_size=64, ffn_size=160, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=300)
TOKENS = [1, 17, 250, 99, 3, 3, 178, 64, 299]
EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
DIGESTS = load_fixture(FIXTURE)

# --- llama.cpp's converter


def test_the_digests_are_those_of_all_cases() -> None:
    assert {name: set(digests.files) for name, digests in DIGESTS.items()} == {
        case.name: set(CONVERTER_TYPES) for case in CASES
    }, f"run {MAKE}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_ours_equals_the_reference(case: AdapterCase, tmp_path: Path) -> None:
    digests = DIGESTS[case.name]
    adapter = case.build(tmp_path)
    assert digest_inputs(adapter) == digests.inputs, f"the adapter is not the one that the reference had. Run {MAKE}"
    lines: list[str] = []
    for file_type, theirs in digests.files.items():
        target = tmp_path / f"{file_type}.gguf"
        convert_adapter(adapter, case.base(tmp_path), target, FileType[file_type])
        ours = digest_file(target)
        assert list(ours.shapes) == list(theirs.shapes)  # the tensors' order
        lines += compare(case, file_type, ours, theirs)
    assert not lines, "\n".join(lines)


# --- llama.cpp's logits


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("base") / "base", SHAPE, dtype="F32")


@pytest.fixture(scope="module")
def base_gguf(base: Path) -> Path:
    return convert_checkpoint(base, base.with_suffix(".gguf"), FileType.F32).path


def logits(model: Path, adapter: Path | None = None) -> np.ndarray:
    """Logits after the first, some and all of the tokens, (3, n_vocab), with an adapter attached to the model."""

    def open_context(native: Any, *arguments: Any) -> Any:
        if adapter is None:
            return original(native, *arguments)
        loaded = llama_cpp.llama_adapter_lora_init(native, os.fsencode(adapter))  # before the context, says llama.h
        assert loaded, "llama.cpp does not load the adapter"
        opened = original(native, *arguments)
        one = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(loaded), (llama_cpp.ctypes.c_float * 1)(1.0)
        assert llama_cpp.llama_set_adapters_lora(opened, one[0], 1, one[1]) == 0
        return opened

    with pytest.MonkeyPatch.context() as patch:
        original: Callable[..., Any] = context._open
        patch.setattr(context, "_open", open_context)
        opened = llama.LlamaModel.load(model, EngineSettings(kv_type="f32", n_threads=2))
    try:
        evaluator, rows = Evaluator(opened), []
        for length in (1, 4, len(TOKENS)):
            evaluator.evaluate(TOKENS[:length])
            rows.append(evaluator.logits())
        return np.stack(rows)
    finally:
        opened.close()


CONFIGS = adapters.CONFIGS | {
    "patterns and rslora": {
        "r": 4,
        "lora_alpha": 3,
        "use_rslora": True,
        "target_modules": ["q_proj", "embed_tokens"],
        "rank_pattern": {"layers.1.self_attn.q_proj": 6, "embed_tokens": 9},
        "alpha_pattern": {"layers.0.self_attn.q_proj": 11},
    },
    "one without effect": {
        "r": 4,
        "lora_alpha": 0,
        "target_modules": ["q_proj", "k_proj", "v_proj"],
        "alpha_pattern": {"v_proj": 4},
    },
    "negative": {"r": 4, "lora_alpha": -8, "target_modules": ["v_proj", "up_proj"]},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_logits_are_those_of_the_merged_model(
    base: Path, base_gguf: Path, tmp_path: Path, config: dict[str, Any]
) -> None:
    folder = adapters.train_adapter(base, tmp_path / "adapter", **config)
    convert_adapter(folder, base, tmp_path / "adapter.gguf")
    convert_checkpoint(folder, tmp_path / "merged.gguf", FileType.F32, ConvertOptions(base=base))
    found, expected = logits(base_gguf, tmp_path / "adapter.gguf"), logits(tmp_path / "merged.gguf")
    assert np.abs(expected - logits(base_gguf)).max() > 0.1
    assert np.abs(found - expected).max() < 1e-5  # measured: 9e-7


@pytest.mark.parametrize(("file_type", "most"), [("F16", 2e-3), ("BF16", 1e-2), ("Q8_0", 4e-2)])
def test_narrower_types_are_as_near_as_their_rounding(
    base: Path, base_gguf: Path, tmp_path: Path, file_type: str, most: float
) -> None:
    targets = [*adapters.ALL_LINEAR, "embed_tokens", "lm_head"]
    folder = adapters.build_adapter(tmp_path / "adapter", SHAPE, targets=targets, rank=32, lora_alpha=64)
    convert_checkpoint(folder, tmp_path / "merged.gguf", FileType.F32, ConvertOptions(base=base))
    convert_adapter(folder, base, tmp_path / "adapter.gguf", FileType[file_type])
    kinds = {tensor.type_name for tensor in read_gguf(tmp_path / "adapter.gguf").tensors}
    assert kinds == {file_type}
    found, expected = logits(base_gguf, tmp_path / "adapter.gguf"), logits(tmp_path / "merged.gguf")
    assert np.abs(found - expected).max() < most  # measured: 8e-4, 5e-3, 2e-2


# --- what is refused, and whatever goes wrong: the target is what it was


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return adapters.build_adapter(tmp_path / "adapter", SHAPE)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "adapter.gguf"


def refusal(adapter: Path, base: Path, target: Path, file_type: FileType = FileType.F32) -> ZephyrError:
    """The error; nothing is written then, nor anything replaced."""
    with pytest.raises(ZephyrError) as refused:
        convert_adapter(adapter, base, target, file_type)
    assert list(target.parent.iterdir()) == []
    target.write_text("what stood here before")
    with pytest.raises(ZephyrError):
        convert_adapter(adapter, base, target, file_type, overwrite=True)
    assert target.read_text() == "what stood here before"
    assert list(target.parent.iterdir()) == [target]
    assert refused.value.remedy
    return refused.value


Q0 = "base_model.model.model.layers.0.self_attn.q_proj"
SAVED_OUTPUT = {"saved": {OUTPUT: (300, 64)}, "modules_to_save": ["lm_head"]}
MORE_TOKENS = {f"{module}.base_layer.weight": (310, 64) for module in ("model.embed_tokens", "lm_head")}
MORE = ModelShape(64, 160, 2, 4, 2, vocab_size=310)
ONE_LAYER = ModelShape(64, 160, 1, 4, 2, vocab_size=300)
WIDER = ModelShape(128, 160, 2, 4, 2, vocab_size=300)
TIED = ModelShape(64, 160, 2, 4, 2, vocab_size=300, tied=True)
REFUSED: dict[str, tuple[dict[str, Any], ModelShape, str]] = {
    "a module saved": (SAVED_OUTPUT, SHAPE, "lm_head.weight as a whole"),
    "a norm saved": (
        {"saved": {"model.norm.weight": (64,)}, "modules_to_save": ["model.norm"]},
        SHAPE,
        "model.norm.weight as a whole",
    ),
    "more tokens": (
        {"shape": MORE, "targets": ["embed_tokens", "lm_head"], "saved": MORE_TOKENS},
        SHAPE,
        "as a whole, which a GGUF adapter cannot hold",
    ),
    "output of a tied base": ({"targets": ["lm_head"]}, TIED, "one matrix for its embedding and its output"),
    "embedding of a tied base": ({"targets": ["embed_tokens"]}, TIED, "one matrix for its embedding and its output"),
    "another width": ({}, WIDER, "of shape [64, 64], and the base's has [128, 128]"),
    "fewer layers": ({}, ONE_LAYER, "model.layers.1.self_attn.q_proj.weight, which the base has not"),
    "a layer's LoRA is missing": ({"shape": ONE_LAYER}, SHAPE, "model.layers.1.self_attn.q_proj was trained"),
    "DoRA": ({"use_dora": True}, SHAPE, "DoRA"),
}


@pytest.mark.parametrize(("config", "shape", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_the_format_cannot_hold_is_refused(
    tmp_path: Path, target: Path, config: dict[str, Any], shape: ModelShape, words: str
) -> None:
    folder = adapters.build_adapter(tmp_path / "adapter", **({"shape": SHAPE} | config))
    build_checkpoint(tmp_path / "base", shape, dtype="F32")
    error = refusal(folder, tmp_path / "base", target)
    assert isinstance(error, CheckpointError)
    assert words in error.problem


def test_a_module_that_the_base_has_not_is_refused_before_its_base_layer(tmp_path: Path, base: Path, target: Path):
    """Both a LoRA and a whole tensor of a module that no Llama has."""
    folder = adapters.build_adapter(tmp_path / "adapter", SHAPE, target_modules=["q_proj", "v_proj", "extra"])
    shapes = {"lora_A.weight": (8, 64), "lora_B.weight": (64, 8), "base_layer.weight": (64, 64)}

    def add(tensors: dict[str, Any]) -> None:
        for ending, shape in shapes.items():
            tensors[f"base_model.model.model.extra.{ending}"] = ("F32", np.zeros(shape, np.float32))

    adapters.change_tensors(folder, add)
    assert "model.extra.weight, which the base has not" in refusal(folder, base, target).problem


@pytest.mark.parametrize("letter", ["A", "B"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_factors_that_are_not_finite_are_refused(adapter: Path, base: Path, target: Path, letter: str, bad: float):
    def spoil(tensors: dict[str, Any]) -> None:
        tensors[f"{Q0}.lora_{letter}.weight"][1][3, 5] = bad

    adapters.change_tensors(adapter, spoil)
    problem = refusal(adapter, base, target).problem
    assert problem == f"lora_{letter} of model.layers.0.self_attn.q_proj holds {bad} at row 3, column 5"


def test_values_that_the_type_cannot_hold_are_refused(adapter: Path, base: Path, target: Path) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        tensors[f"{Q0}.lora_A.weight"][1][0, 0] = 70000

    adapters.change_tensors(adapter, spoil)
    error = refusal(adapter, base, target, FileType.F16)
    assert "lora_A of model.layers.0.self_attn.q_proj holds a value of magnitude 70000" in error.problem
    assert "--bf16" in error.remedy
    convert_adapter(adapter, base, target, FileType.BF16, overwrite=True)


def test_scalings_too_far_apart_are_refused(tmp_path: Path, base: Path, target: Path, recwarn: Any) -> None:
    patterns = {"q_proj": 1e-20, "v_proj": 1e25}
    folder = adapters.build_adapter(tmp_path / "adapter", SHAPE, alpha_pattern=patterns)
    assert "lora_B of model.layers.0.self_attn.v_proj holds" in refusal(folder, base, target).problem
    assert list(recwarn) == []


def without_weights(adapter: Path, base: Path) -> tuple[Path, Path]:
    (adapter / "adapter_model.safetensors").unlink()
    return adapter, base


def truncated(adapter: Path, base: Path) -> tuple[Path, Path]:
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    return adapter, base


def base_without_config(adapter: Path, base: Path) -> tuple[Path, Path]:
    (adapter.parent / "empty").mkdir(exist_ok=True)
    return adapter, adapter.parent / "empty"


def base_of_another_architecture(adapter: Path, base: Path) -> tuple[Path, Path]:
    shutil.copytree(base, adapter.parent / "other", dirs_exist_ok=True)
    change_json(adapter.parent / "other" / "config.json", architectures=["Qwen2ForCausalLM"])
    return adapter, adapter.parent / "other"


WRONG_FOLDERS: dict[str, tuple[Callable[[Path, Path], tuple[Path, Path]], str]] = {
    "no adapter": (
        lambda adapter, base: (adapter.parent / "none", base),
        "adapter_config.json cannot be read: No such",
    ),
    "a file as adapter": (lambda adapter, base: (adapter / "adapter_config.json", base), "cannot be read: Not a dir"),
    "a model as adapter": (lambda adapter, base: (base, base), "adapter_config.json cannot be read: No such file"),
    "no weights": (without_weights, "has no adapter_model.safetensors"),
    "truncated": (truncated, "adapter_model.safetensors is truncated"),
    "no base": (lambda adapter, base: (adapter, base.parent / "none"), "has no config.json"),
    "a file as base": (lambda adapter, base: (adapter, base / "config.json"), "has no config.json"),
    "a base without config.json": (base_without_config, "has no config.json"),
    "another architecture": (base_of_another_architecture, "Qwen2ForCausalLM"),
}


@pytest.mark.parametrize(("change", "words"), WRONG_FOLDERS.values(), ids=WRONG_FOLDERS.keys())
def test_folders_that_are_not_as_they_should_be(
    adapter: Path, base: Path, target: Path, change: Callable[[Path, Path], tuple[Path, Path]], words: str
) -> None:
    assert words in refusal(*change(adapter, base), target).problem


def test_a_target_that_exists_is_kept(adapter: Path, base: Path, target: Path) -> None:
    target.write_text("what stood here before")
    with pytest.raises(OutputError, match="exists already"):
        convert_adapter(adapter, base, target)
    assert target.read_text() == "what stood here before"
    first = convert_adapter(adapter, base, target, overwrite=True)
    written = target.read_bytes()
    again = convert_adapter(adapter, base, target, overwrite=True)
    assert target.read_bytes() == written
    assert (again.path, again.size_bytes, again.n_tensors) == (target, len(written), 8)
    assert again.source_sha256 == first.source_sha256
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("name", ["adapter/adapter_model.safetensors", "adapter/adapter_config.json", "b/config.json"])
def test_an_input_is_not_written_over(adapter: Path, base: Path, tmp_path: Path, name: str, linked: bool) -> None:
    shutil.copytree(base, tmp_path / "b")
    target = tmp_path / name
    before = target.read_bytes()
    if linked:
        (tmp_path / "link.gguf").hardlink_to(target)
    with pytest.raises(OutputError, match="is the input"):
        convert_adapter(adapter, tmp_path / "b", tmp_path / "link.gguf" if linked else target, overwrite=True)
    assert target.read_bytes() == before


def test_targets_that_cannot_be(adapter: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder"):
        convert_adapter(adapter, base, tmp_path, overwrite=True)
    with pytest.raises(OutputError, match="does not exist"):
        convert_adapter(adapter, base, tmp_path / "none" / "adapter.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
@pytest.mark.parametrize("limit", [100, 5000])
def test_a_full_disk(adapter: Path, base: Path, target: Path, limit: int) -> None:
    """By a limit on the size of files: met by the header, or by the reservation."""
    target.write_text("what stood here before")
    script = """
        import resource, sys
        from pathlib import Path
        from zephyr_local.convert.lora_gguf import convert_adapter
        from zephyr_local.errors import ZephyrError
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), int(sys.argv[4])))
        try:
            convert_adapter(*map(Path, sys.argv[1:4]), overwrite=True)
        except ZephyrError as error:
            print(type(error).__name__, error)
    """
    given = [str(argument) for argument in (adapter, base, target, limit)]
    command = [sys.executable, "-c", textwrap.dedent(script), *given]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert "OutputError" in done.stdout, done.stderr
    assert "File too large" in done.stdout
    assert target.read_text() == "what stood here before"
    assert list(target.parent.iterdir()) == [target]


def test_too_little_space_is_known_before(
    adapter: Path, base: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(target.parent)
    monkeypatch.setattr(gguf_output.shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    with pytest.raises(OutputError, match="the output needs"):
        convert_adapter(adapter, base, target)
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_whatever_interrupts_leaves_nothing(
    adapter: Path, base: Path, target: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def write_at(output: gguf_output.OutputFile, offset: int, data: bytes | memoryview) -> None:
        if offset > 0:
            assert list(target.parent.glob("*.part"))
            raise error

    monkeypatch.setattr(gguf_output.OutputFile, "write_at", write_at)
    with pytest.raises(error):
        convert_adapter(adapter, base, target)
    assert list(target.parent.iterdir()) == []


def test_a_byte_that_reads_back_otherwise(
    adapter: Path, base: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_at = gguf_output.OutputFile.write_at

    def spoiled(output: gguf_output.OutputFile, offset: int, data: bytes | memoryview) -> None:
        write_at(output, offset, data if offset == 0 else bytes([data[0] ^ 1, *data[1:]]))

    monkeypatch.setattr(gguf_output.OutputFile, "write_at", spoiled)
    with pytest.raises(OutputError, match="reads back otherwise"):
        convert_adapter(adapter, base, target)
    assert list(target.parent.iterdir()) == []


def test_leftovers_of_killed_runs_are_cleaned_up(adapter: Path, base: Path, target: Path) -> None:
    dead = target.with_name(f"{target.name}.0123456789abcdef.part")
    dead.write_bytes(b"GGUF....zephyr_local.version")
    other = target.with_name(f"{target.name}.fedcba9876543210.part")
    other.write_bytes(b"of someone else")
    convert_adapter(adapter, base, target)
    assert sorted(target.parent.iterdir()) == [target, other]
