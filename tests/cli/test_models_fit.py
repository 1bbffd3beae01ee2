"""`zephyr-local models fit`: sizes of real files, memory as it is estimated, and what fits as it is planned."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import ROOT
from tests.cli.conftest import Cli
from tests.gguf_builder import split_model, tiny_model, write_parts
from tests.model_store.store_fixtures import put_in_ollama, put_in_store
from tests.shaped_model import MISTRAL_7B, SMALL, TINYLLAMA_1B, Shape, write_shaped_model
from zephyr_local.cli.models_fit import _rates_told
from zephyr_local.cli.type_fits import UNQUANTIZED, best, fit_of, in_other_type, shape_in_type
from zephyr_local.data import bundled_model_path
from zephyr_local.engine.llama import kernel_features
from zephyr_local.errors import NotEnoughMemoryError
from zephyr_local.gguf_split import read_model
from zephyr_local.memory.estimate import Gpu, estimate_memory
from zephyr_local.memory.plan import Machine, plan
from zephyr_local.memory.shape import ModelShape, shape_of
from zephyr_local.model_store.catalogue import SHAPE_KEYS, read_catalogue
from zephyr_local.quantize.types import FileType
from zephyr_local.settings import EngineSettings

KEYS = ["name", "available_bytes", "limited_by", "gpus", "read_bandwidth_bytes_s", "best", "types"]
CONTEXT_KEYS = [
    *("n_ctx", "fits", "missing_bytes", "needed_bytes", "resident_bytes", "n_gpu_layers", "gpu_bytes"),
]
AVX2 = frozenset({"avx2"})
GB = 10**9
BETA = "TheBloke/zephyr-7B-beta-GGUF"


def numbers(shape: Shape) -> dict[str, int]:
    values = asdict(shape)
    return {key: values[key] for key in SHAPE_KEYS}


def shape_at(path: Path) -> ModelShape:
    return shape_of(read_model(path))


def store(home: Path) -> Path:
    return home / ".local/share/zephyr-local/models"


def types_of(made: dict[str, Any]) -> dict[str, Any]:
    return {one["type"]: one for one in made["types"]}


# --- sizes ---


@pytest.mark.parametrize("file_type", list(FileType), ids=lambda kind: kind.name)
def test_the_size_of_each_type_is_that_of_its_file(tmp_path: Path, file_type: FileType) -> None:
    for shape in (SMALL, TINYLLAMA_1B):
        path = write_shaped_model(tmp_path / "shaped.gguf", shape, file_type)
        real, computed = shape_at(path), shape_in_type(numbers(shape), file_type)
        assert computed.size_bytes == real.size_bytes
        assert sorted(computed.tensors, key=str) == sorted(real.tensors, key=str)
        assert replace(computed, tensors=()) == replace(real, tensors=())
        assert 0 <= path.stat().st_size - computed.size_bytes < 2 << 20  # the header


def test_a_file_in_any_type_tells_what_all_others_would_be(tmp_path: Path) -> None:
    for tied in (False, True):
        real = {
            kind: shape_at(write_shaped_model(tmp_path / "shaped.gguf", SMALL, kind, tied=tied))
            for kind in (FileType.Q2_K, FileType.Q4_K_M, FileType.Q8_0, FileType.F16)
        }
        for one in real.values():
            for kind, other in real.items():
                assert in_other_type(one, kind).size_bytes == other.size_bytes


def test_heads_of_another_size_than_the_usual_are_kept(tmp_path: Path) -> None:
    made = tiny_model(n_embd=64, n_head=4, n_head_kv=2)
    model = shape_at(made.write(tmp_path / "tiny.gguf"))
    wide = replace(
        model,
        head_size=32,
        tensors=tuple(
            replace(tensor, n_rows=128, size_bytes=2 * tensor.size_bytes) if "attn_q" in tensor.name else tensor
            for tensor in model.tensors
        ),
    )
    q8 = in_other_type(wide, FileType.Q8_0)
    assert q8.head_size == 32
    assert {tensor.n_rows for tensor in q8.tensors if "attn_q" in tensor.name} == {128}


# --- the table ---


def test_the_catalogues_model_has_all_types_by_size(cli: Cli) -> None:
    made = cli("models", "fit", "zephyr-7b-beta", "--json").json
    assert list(made) == KEYS
    sizes = [one["size_bytes"] for one in made["types"]]
    assert sizes == sorted(sizes)
    assert set(types_of(made)) == {kind.name for kind in FileType}
    entry = read_catalogue().entry("zephyr-7b-beta")
    assert entry is not None
    assert entry.shape == numbers(MISTRAL_7B)
    for one in made["types"]:
        assert list(one) == ["type", "size_bytes", "path", "expected_tokens_s", "contexts"]
        model = shape_in_type(numbers(MISTRAL_7B), FileType[one["type"]])
        assert one["size_bytes"] == model.size_bytes
        assert [context["n_ctx"] for context in one["contexts"]] == [2048, 4096, 8192]
        for context in one["contexts"]:
            assert list(context) == CONTEXT_KEYS
            if made["gpus"]:
                continue
            estimate = estimate_memory(model, EngineSettings(n_ctx=context["n_ctx"]), kernel_features())
            assert context["needed_bytes"] == estimate.needed_bytes
            assert context["resident_bytes"] == estimate.resident_bytes
            assert context["fits"] is (estimate.needed_bytes <= made["available_bytes"])
            assert context["missing_bytes"] == max(0, estimate.needed_bytes - made["available_bytes"])
    rates = [one["expected_tokens_s"] for one in made["types"]]
    assert rates == sorted(rates, reverse=True) or made["gpus"]


def test_the_table_says_what_fits_and_what_it_was_compared_with(cli: Cli) -> None:
    ran = cli("models", "fit", "zephyr-7b-beta", "--n-gpu-layers", "0")
    header, *rows = ran.out.splitlines()
    assert header.split() == ["TYPE", "SIZE", "AT", "2048", "AT", "4096", "AT", "8192", *header.split()[8:]]
    (row,) = [row for row in rows if row.startswith("Q4_K_M ")]
    assert row.split()[:9] == ["Q4_K_M", "4.37", "GB", *row.split()[3:9]]
    assert row.replace("(", "").replace(")", "").split()[3:9] == ["4.68", "GB", "4.95", "GB", "5.49", "GB"]
    assert "\nMemory: " in ran.err
    assert "in brackets: does not fit." in ran.err


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of this system")
def test_what_does_not_fit_the_limit_stands_in_brackets_without_a_rate(home: Path) -> None:
    import resource

    limit = 5 * GB

    def fit(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "zephyr_local", "models", "fit", "zephyr-7b-beta", "--n-gpu-layers", "0", *words],
            cwd=ROOT,
            env=dict(os.environ),
            capture_output=True,
            text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
        )

    made = json.loads(fit("--json").stdout)
    if made["limited_by"] is None:
        pytest.skip("the machine itself has less memory than the limit")
    assert made["limited_by"] == "ulimit -d"
    available = made["available_bytes"]
    assert available < limit
    contexts = {name: {one["n_ctx"]: one for one in of["contexts"]} for name, of in types_of(made).items()}
    for of_type in contexts.values():
        assert all(one["fits"] is (one["needed_bytes"] <= available) for one in of_type.values())
    fitting = [name for name, of_type in contexts.items() if of_type[4096]["fits"]]
    assert "Q2_K" in fitting
    assert not any(one["fits"] for one in contexts["Q6_K"].values())
    assert made["best"] == fitting[-1]
    ran = fit()
    (q6,) = [line for line in ran.stdout.splitlines() if line.startswith("Q6_K")]
    assert q6.split() == ["Q6_K", "5.94", "GB", "(6.26", "GB)", "(6.53", "GB)", "(7.06", "GB)"]
    assert "available (ulimit -d)" in ran.stderr
    assert f"the largest quantized type that fits with 4096 tokens is {made['best']}" in ran.stderr


def test_the_context_and_the_cache_that_are_asked_for_count(cli: Cli) -> None:
    words = ("models", "fit", "zephyr-7b-beta", "--n-gpu-layers", "0", "--json")
    usual, at_1000, small, large = (
        types_of(cli(*words, *more).json)["Q4_K_M"]["contexts"]
        for more in ((), ("--n-ctx", "1000"), ("--kv-type", "q8_0"), ("--kv-type", "f32"))
    )
    assert [context["n_ctx"] for context in at_1000] == [1000]
    model = shape_in_type(numbers(MISTRAL_7B), FileType.Q4_K_M)
    estimate = estimate_memory(model, EngineSettings(n_ctx=1000), kernel_features())
    assert at_1000[0]["needed_bytes"] == estimate.needed_bytes
    kv_bytes = 2 * 8192 * 1024 * 32 * 2
    assert usual[2]["needed_bytes"] - small[2]["needed_bytes"] == kv_bytes - kv_bytes * 34 // 64
    assert large[2]["needed_bytes"] - usual[2]["needed_bytes"] >= kv_bytes


def test_types_that_are_here_are_marked_whatever_they_are(cli: Cli, home: Path) -> None:
    for file_type in ("Q4_0", "Q5_K_XL"):
        put_in_store(store(home), tiny_model().build(), BETA, f"zephyr-7b-beta.{file_type}.gguf")
    put_in_store(store(home), b"GGUF and no more", BETA, "zephyr-7b-beta.IQ2_XS.gguf")
    for name in ("zephyr-7b-beta", "zephyr-7b-beta:q4_0", f"hf:{BETA}", BETA):
        of = types_of(cli("models", "fit", name, "--json").json)
        assert of["Q4_0"]["path"] == str(store(home) / BETA / "zephyr-7b-beta.Q4_0.gguf")
        assert of["Q5_K_XL"]["size_bytes"] < 10**6  # no type of llama-quantize's: read from the file
        assert [name for name, one in of.items() if one["path"]] == ["Q5_K_XL", "Q4_0"]
    lines = cli("models", "fit", "zephyr-7b-beta").out.splitlines()
    assert [line.split()[0] for line in lines if line.endswith(" here")] == ["Q5_K_XL", "Q4_0"]


def test_a_model_that_only_lies_here_is_told_from_its_file(cli: Cli, home: Path) -> None:
    path = store(home) / "org/mine/mine.Q8_0.gguf"
    path.parent.mkdir(parents=True)
    write_shaped_model(path, TINYLLAMA_1B, FileType.Q8_0)
    cli("models", "alias", "my-own", "mine")
    for name in (path, "mine", "hf:org/mine", "my-own"):
        made = cli("models", "fit", name, "--json").json
        of = types_of(made)
        assert of["Q8_0"]["path"] == str(path)
        assert of["Q8_0"]["size_bytes"] == shape_at(path).size_bytes
        assert of["Q4_K_M"]["size_bytes"] == shape_in_type(numbers(TINYLLAMA_1B), FileType.Q4_K_M).size_bytes
        assert [context["n_ctx"] for context in of["Q8_0"]["contexts"]] == [2048]  # what it was trained for
        assert len(of) == len(FileType)


def test_a_model_in_parts_and_of_a_type_that_no_name_tells(cli: Cli, home: Path) -> None:
    folder = home / "parts"
    folder.mkdir()
    whole = tiny_model()
    paths = write_parts(split_model(whole, 5, 12), folder, "tiny")
    of = types_of(cli("models", "fit", paths[0], "--json").json)
    assert of[paths[0].name]["size_bytes"] == sum(len(tensor.data) for tensor in whole.tensors)
    assert of["F32"]["size_bytes"] == of[paths[0].name]["size_bytes"]
    assert [context["n_ctx"] for context in of["F32"]["contexts"]] == [512]


def test_a_model_of_ollama_is_told_by_what_its_header_says_or_by_its_name(cli: Cli, home: Path) -> None:
    for tag, number in (("7b", 15), ("3b", 1000)):
        made = tiny_model()
        made.metadata["general.file_type"] = ("u32", number)
        put_in_ollama(home / ".ollama/models", made.build(), "mine", tag)
    assert [one["type"] for one in cli("models", "fit", "mine:7b", "--json").json["types"] if one["path"]] == ["Q4_K_M"]
    assert [one["type"] for one in cli("models", "fit", "mine:3b", "--json").json["types"] if one["path"]] == [
        "mine:3b"
    ]
    assert "sha256" not in cli("models", "fit", "mine:7b").out


def test_the_bundled_model_is_told_by_its_name(cli: Cli) -> None:
    (here,) = [one for one in cli("models", "fit", "zephyr-tiny", "--json").json["types"] if one["path"]]
    assert (here["type"], here["path"]) == ("Q4_K_M", str(bundled_model_path()))


def test_rates_of_a_column_have_the_same_decimals_and_no_exponents() -> None:
    assert _rates_told([12_734.0, None, 3_210.0, 987.6]) == ["12,700", "", "3,210", "988"]
    assert _rates_told([66.26, 45.84, 9.876]) == ["66.3", "45.8", "9.9"]
    assert _rates_told([8.012, 4.9, 4.0]) == ["8.01", "4.90", "4.00"]
    assert _rates_told([None]) == [""]


def test_what_cannot_be_told_is_refused(cli: Cli, home: Path) -> None:
    assert "no-such-model is not on this machine" in cli("models", "fit", "no-such-model", code=3).err
    bad = tiny_model()
    bad.metadata["general.architecture"] = ("str", "gemma3")
    path = bad.write(home / "gemma.gguf")
    assert "gemma3" in cli("models", "fit", path, code=1).err
    cli("models", "add", "mine", "org/mine-GGUF")
    assert "Get it: zephyr-local pull mine." in cli("models", "fit", "mine", code=3).err
    assert "No such option" in cli("models", "fit", "-x", code=2).err


# --- what fits ---


@pytest.mark.parametrize("gpus", [(), (Gpu("CUDA0", 3 * GB),), (Gpu("MTL0", 6 * GB, is_unified=True),)])
def test_a_type_fits_where_it_would_be_loaded(gpus: tuple[Gpu, ...]) -> None:
    for available in (3, 5, 6, 9):
        machine = Machine(available * GB, AVX2, gpus)
        for kind in (FileType.Q2_K, FileType.Q4_K_M, FileType.Q8_0):
            model = shape_in_type(numbers(MISTRAL_7B), kind)
            fit = fit_of(kind.name, model, machine, EngineSettings(), 1e10)
            for n_ctx, estimate in fit.estimates.items():
                asked = EngineSettings(n_ctx=n_ctx)
                if fit.fits(n_ctx):
                    assert plan(model, asked, machine, "it").estimate == estimate
                else:
                    with pytest.raises(NotEnoughMemoryError, match=re.escape(str(fit.shortfalls[n_ctx]))):
                        plan(model, asked, machine, "it")


def test_layers_that_were_asked_for_count_also_where_they_do_not_fit() -> None:
    model = shape_in_type(numbers(MISTRAL_7B), FileType.Q8_0)
    machine = Machine(16 * GB, AVX2, (Gpu("CUDA0", 4 * GB),))
    fit = fit_of("Q8_0", model, machine, EngineSettings(n_ctx=4096, n_gpu_layers=-1), None)
    assert fit.estimates[4096].n_gpu_layers == 33
    assert fit.shortfalls[4096].where == "memory of CUDA0"
    assert fit.tokens_s is None


def test_the_best_is_the_largest_that_is_quantized_while_one_is() -> None:
    machine = Machine(6 * GB, AVX2)
    fits = [
        fit_of(kind.name, shape_in_type(numbers(MISTRAL_7B), kind), machine, EngineSettings(), None)
        for kind in FileType
    ]
    found = best(fits, 4096)
    assert found is not None
    assert found.type_name == "Q5_K_M"
    assert best(fits, 1234) is None
    roomy = replace(machine, available_bytes=64 * GB)
    only = [
        fit_of(name, shape_in_type(numbers(MISTRAL_7B), FileType[name]), roomy, EngineSettings(), None)
        for name in UNQUANTIZED
    ]
    found = best(only, 4096)
    assert found is not None
    assert found.type_name == "F32"
