"""`zephyr-local doctor`: what it says of this machine, and of machines that it is told of."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import ROOT, isolated, zephyr_local
from zephyr_local import __version__
from zephyr_local.cli import doctor
from zephyr_local.engine.probe import Probed
from zephyr_local.hardware import CPU, Device, Gpu, Memory, find_gpus, read_cpu
from zephyr_local.model_store.registry import Registry

NAMES = [
    "versions",
    "cpu",
    "memory",
    "disk",
    "engine",
    "devices",
    "gpus",
    "extras",
    "network",
    "hub",
    "configuration",
    "catalogue",
    "registry",
]
X86 = frozenset({"sse3", "ssse3", "avx", "avx2", "fma", "f16c", "bmi2"})
BUILT_FOR_AVX2 = "CPU : SSE3 = 1 | SSSE3 = 1 | AVX = 1 | AVX2 = 1 | F16C = 1 | FMA = 1 | BMI2 = 1 | OPENMP = 1 | "
PLAIN = "CPU : SSE3 = 1 | SSSE3 = 1 | OPENMP = 1 | "
HOST = Device("CPU", "Some CPU", "cpu", 16 << 30, 16 << 30, "CPU")
CUDA = Device("CUDA0", "NVIDIA RTX 4090", "gpu", 24 << 30, 20 << 30, "CUDA")
CARD = Gpu("nvidia", "NVIDIA RTX 4090", 24 << 30, "550.54.15", "8.9")


def probed(*devices: Device, system_info: str = BUILT_FOR_AVX2, offload: bool = False) -> Probed:
    return Probed((HOST, *devices), system_info, "0.5.0", "0.3.36", offload, True, True)


def cpu(features: frozenset[str] = X86, **more: Any) -> CPU:
    cores = {"logical_cores": 8, "physical_cores": 4, "performance_cores": 4, "machine_cores": 8}
    return CPU("Some CPU", "x86-64", features, **(cores | more))


def report(home: Path, code: int, **environment: str) -> dict[str, Any]:
    done = zephyr_local("doctor", "--json", home=home, environment=environment)
    assert (done.returncode, done.stderr) == (code, "")
    made = json.loads(done.stdout)
    assert list(made["checks"]) == NAMES
    return made


# --- the command ---


def test_each_check_has_a_line(tmp_path: Path):
    done = zephyr_local("doctor", home=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert [name for _, name, *_ in lines] == NAMES
    assert {status for status, *_ in lines} <= {"ok", "note"}
    assert f"zephyr-local {__version__}, llama-cpp-python " in done.stdout


def test_the_json_has_what_was_found_with_units_in_its_names(tmp_path: Path):
    checks = report(tmp_path, 0)["checks"]
    here = read_cpu()
    assert checks["cpu"]["recommended_threads"] == here.recommended_threads
    assert checks["cpu"]["features"] == sorted(here.features)
    assert checks["memory"]["total_bytes"] >= checks["memory"]["available_bytes"] > 0
    assert checks["disk"]["data_folder"].startswith(str(tmp_path))
    assert checks["disk"]["free_bytes"] > 0
    assert checks["versions"]["zephyr_local"] == __version__
    assert checks["engine"]["llama_version"]
    assert any(device["kind"] == "cpu" for device in checks["devices"]["devices"])
    assert len(checks["gpus"]["gpus"]) == len(find_gpus())
    assert set(checks["extras"]["extras"]) == {"fast", "hub", "judge", "train"}
    assert checks["network"]["is_offline"] is True  # the tests are
    assert checks["configuration"] == {
        "status": "ok",
        "text": checks["configuration"]["text"],
        "remedies": [],
        "path": str(tmp_path / "config" / "zephyr-local" / "config.toml"),
        "exists": False,
    }


def test_nothing_is_written(tmp_path: Path):
    report(tmp_path, 0)
    assert list(tmp_path.iterdir()) == []


def test_a_llama_cpp_that_cannot_be_loaded_is_one_problem_among_the_rest(tmp_path: Path):
    made = report(tmp_path, 1, LLAMA_CPP_LIB_PATH=str(tmp_path))
    assert made["status"] == "problem"
    assert made["checks"]["engine"]["status"] == "problem"
    assert "cannot be loaded" in made["checks"]["engine"]["text"]
    assert made["checks"]["devices"]["status"] == "note"
    assert made["checks"]["memory"]["status"] != "problem"


def test_a_configuration_that_is_refused_is_a_problem(tmp_path: Path):
    path = tmp_path / "config" / "zephyr-local" / "config.toml"
    path.parent.mkdir(parents=True)
    path.write_text("temperature = [")
    done = zephyr_local("doctor", home=tmp_path)
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.split()[:2] == ["problem", "configuration"]]
    assert str(path) in line


def test_a_token_is_never_shown_nor_the_password_of_an_address(tmp_path: Path):
    environment = {"HF_TOKEN": "hf_secretvalue", "HF_ENDPOINT": "https://user:passw0rd@mirror.example:8443/hf"}
    made = report(tmp_path, 0, **environment)
    assert made["checks"]["hub"]["hf_token_is_set"] is True
    assert made["checks"]["hub"]["hf_endpoint"] == "https://mirror.example:8443/hf"
    plain = zephyr_local("doctor", home=tmp_path, environment=environment)
    for output in (json.dumps(made), plain.stdout, plain.stderr):
        assert "secretvalue" not in output
        assert "passw0rd" not in output


@pytest.mark.parametrize("address", ["mirror.example", "ftp://mirror.example", "https://", "http://[::1", "http://a:b"])
def test_an_address_of_the_hub_that_is_none_is_a_problem(address: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_ENDPOINT", address)
    assert doctor.hub_check().status == "problem"


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of this system")
def test_a_limit_on_memory_is_told(tmp_path: Path):
    import resource

    limit = 8 << 30
    done = subprocess.run(
        [sys.executable, "-m", "zephyr_local", "doctor", "--json"],
        capture_output=True,
        cwd=ROOT,
        env=isolated(tmp_path),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    memory = json.loads(done.stdout)["checks"]["memory"]
    if memory["machine_bytes"] > limit:
        assert (memory["total_bytes"], memory["limited_by"]) == (limit, "RLIMIT_AS")
    else:
        assert memory["limited_by"] != "RLIMIT_AS"


@pytest.mark.skipif(sys.platform == "win32", reason="the program is a script of a shell")
def test_a_gpu_that_is_here_and_not_used_comes_with_the_way_to_use_it(tmp_path: Path):
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "nvidia-smi"
    script.write_text("#!/bin/sh\necho 'NVIDIA \x1b[2JRTX, 24564, 550.54.15, 8.9'\n")
    script.chmod(0o755)
    made = report(tmp_path, 0, PATH=f"{tmp_path / 'bin'}:/usr/bin:/bin")
    engine, gpus = made["checks"]["engine"], made["checks"]["gpus"]
    assert gpus["gpus"][0]["memory_bytes"] == 24564 << 20
    if not engine["supports_gpu_offload"]:
        assert (gpus["status"], gpus["gpus"][0]["is_used"]) == ("note", False)
    plain = zephyr_local("doctor", home=tmp_path, environment={"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"})
    assert "\x1b" not in plain.stdout


# --- machines that it is told of ---


def test_a_check_that_fails_is_that_check_s_problem(monkeypatch: pytest.MonkeyPatch):
    def broken(_asked: doctor.Asked) -> doctor.Check:
        raise RuntimeError("the moon is full")

    check = doctor._made(broken, None)  # type: ignore[arg-type]
    assert (check.status, check.text) == ("problem", "could not be checked: RuntimeError: the moon is full")


def test_a_build_without_the_cpu_s_instructions_is_noted_with_the_way_to_build():
    check = doctor.engine_check(probed(system_info=PLAIN), cpu())
    assert check.status == "note"
    assert check.facts["unused_features"] == ["avx", "avx2", "bmi2", "f16c", "fma"]
    assert check.remedies[0].startswith('CMAKE_ARGS="-DGGML_NATIVE=on" pip install --no-cache-dir --force-reinstall ')
    assert "llama-cpp-python" in check.remedies[0]


def test_what_a_compiler_may_not_know_is_no_note():
    check = doctor.engine_check(probed(), cpu(X86 | {"avx_vnni", "avx512bw"}))
    assert (check.status, check.facts["unused_features"]) == ("ok", ["avx_vnni"])


def test_a_build_for_another_cpu_is_a_problem():
    check = doctor.engine_check(probed(), cpu(X86 - {"avx2"}))
    assert check.status == "problem"
    assert "the CPU has no avx2" in check.text


def test_where_the_system_tells_no_instructions_nothing_is_compared():
    assert doctor.engine_check(probed(), cpu(frozenset())).status == "ok"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({}, "4 cores, 8 logical; 4 threads recommended"),
        ({"performance_cores": 1, "logical_cores": 4}, "4 cores, 1 of them fast; 1 thread recommended"),
        ({"knows_topology": False}, "8 logical cores (which of them share one is not told)"),
        ({"limited_by": "cgroup", "quota_cores": 1.5}, "a cgroup allows 1.5 of the machine's 8"),
        ({"limited_by": "affinity", "machine_cores": 64}, "may not use all 64"),
    ],
)
def test_the_cores_are_told(more: dict[str, Any], words: str):
    check = doctor.cpu_check(cpu(**more))
    assert check.status == "ok"
    assert words in check.text


def test_a_translated_python_is_noted():
    assert doctor.cpu_check(cpu(is_translated=True)).status == "note"


@pytest.mark.parametrize(
    ("memory", "status", "words"),
    [
        (Memory(16 * 10**9, 8 * 10**9, 16 * 10**9), "ok", "8.0 GB of 16.0 GB available, no swap"),
        (Memory(4 * 10**9, 10**8, 64 * 10**9, "cgroup"), "ok", "100 MB of 4.0 GB available"),
        (Memory(4 * 10**9, 10**9, 64 * 10**9, "RLIMIT_AS"), "note", "ulimit -v; the machine has 64.0 GB"),
        (Memory(0, 0, 0), "note", "does not tell"),
    ],
)
def test_the_memory_is_told_with_what_limits_it(memory: Memory, status: str, words: str):
    check = doctor.memory_check(memory)
    assert check.status == status
    assert words in check.text


def test_a_disk_without_room_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert doctor.disk_check(tmp_path / "data").status in ("ok", "note")
    monkeypatch.setattr(doctor, "_ROOM_BYTES", 1 << 70)
    assert doctor.disk_check(tmp_path / "data").status == "note"


def test_a_gpu_in_use_is_fine():
    check = doctor.gpus_check((CARD,), probed(CUDA, offload=True))
    assert (check.status, check.remedies) == ("ok", ())
    assert check.text == "NVIDIA RTX 4090, 25.8 GB, driver 550.54.15: used"
    assert "CUDA0: NVIDIA RTX 4090 (gpu), 21.5 GB of 25.8 GB" in doctor.devices_check(probed(CUDA)).text


def test_cuda_is_what_an_unused_nvidia_needs():
    check = doctor.gpus_check((CARD, CARD), probed())
    assert check.status == "note"
    assert len(check.remedies) == 2  # once, not for each
    assert 'CMAKE_ARGS="-DGGML_CUDA=on"' in check.remedies[0]
    assert "https://abetlen.github.io/llama-cpp-python/whl/cu130" in check.remedies[1]


def test_a_gpu_without_a_driver_needs_it_first():
    check = doctor.gpus_check((Gpu("nvidia", trouble="no driver of NVIDIA's is loaded"),), probed())
    assert check.text == "a GPU of NVIDIA: not used (no driver of NVIDIA's is loaded)"
    assert check.remedies[0].startswith("Install NVIDIA's driver")


def test_gpus_that_a_variable_hides_are_not_installed_anew(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    check = doctor.gpus_check((CARD,), probed(offload=True))
    assert check.remedies == ("CUDA_VISIBLE_DEVICES is set, and names none of them",)


@pytest.mark.parametrize(
    ("gpu", "option"),
    [(Gpu("amd"), "-DGGML_HIP=on"), (Gpu("amd"), "-DGGML_VULKAN=on"), (Gpu("apple"), "-DGGML_METAL=on")],
)
def test_other_gpus_need_other_builds(gpu: Gpu, option: str):
    assert option in " ".join(doctor.gpus_check((gpu,), probed()).remedies)


def test_gpus_are_told_though_llama_cpp_does_not_answer():
    check = doctor.gpus_check((CARD,), None)
    assert (check.status, check.remedies) == ("note", ())
    assert "llama.cpp could not be asked" in check.text


def test_an_extra_that_is_missing_comes_with_its_command():
    wanted = ["click>=8", 'click>=8 ; extra == "fast"', "click; extra == 'hub'", 'no-such-thing>=1; extra == "judge"']
    check = doctor.extras_check([*wanted, 'click; extra == "train"', 'also-none<2; extra == "train"'])
    assert check.status == "note"
    assert check.text == "fast installed; hub installed; judge lacks no-such-thing; train lacks also-none"
    assert [remedy.partition(": ")[2] for remedy in check.remedies] == [
        'pip install "zephyr-local[judge]"',
        'pip install "zephyr-local[train]"',
    ]


def test_extras_of_what_was_not_installed_are_not_known():
    assert doctor.extras_check([]).status == "note"


@pytest.mark.parametrize("name", ["ZEPHYR_LOCAL_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_is_told_with_its_variable(monkeypatch: pytest.MonkeyPatch, name: str):
    for other in ("ZEPHYR_LOCAL_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(other, raising=False)
    assert doctor.network_check().facts["is_offline"] is False
    monkeypatch.setenv(name, "1")
    check = doctor.network_check()
    assert check.facts == {"is_offline": True, "variables": [name]}
    assert name in check.text
    for other in ("ZEPHYR_LOCAL_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(other, "1")
    assert doctor.network_check().text == "offline: ZEPHYR_LOCAL_OFFLINE and HF_HUB_OFFLINE are set"


def test_the_disk_of_a_store_that_lies_apart_is_told(tmp_path: Path):
    apart = tmp_path / "apart"
    check = doctor.disk_check(tmp_path / "data", apart)
    assert f" free for models in {apart}" in check.text
    assert check.facts["store_folder"] == str(apart)
    assert "free for models" not in doctor.disk_check(tmp_path / "data", tmp_path / "data/models").text
    checks = report(tmp_path, 0, ZEPHYR_LOCAL_STORE_FOLDER=str(apart))["checks"]
    assert checks["disk"]["store_folder"] == str(apart)


def test_the_files_of_models_are_read(tmp_path: Path):
    names, registry = tmp_path / "models.toml", tmp_path / "models.sqlite3"
    assert [doctor.catalogue_check(names).status, doctor.registry_check(registry).status] == ["ok", "ok"]
    assert list(tmp_path.iterdir()) == []
    names.write_text("models = [")
    registry.write_bytes(b"no database" * 500)
    check = doctor.catalogue_check(names)
    assert (check.status, check.remedies) == ("problem", ("Correct the file",))
    assert str(names) in check.text
    check = doctor.registry_check(registry)
    assert check.status == "note"
    assert str(registry) in check.text
    assert check.remedies[0].startswith("Move it away")
    registry.unlink()
    with Registry(registry):
        pass
    assert doctor.registry_check(registry).text == f"{registry}: 0 files"
