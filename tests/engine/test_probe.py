"""llama.cpp is asked in a child, whose end is an error here and nothing worse."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.command import ROOT
from zephyr_local.engine.probe import probe
from zephyr_local.errors import EngineError
from zephyr_local.hardware.features import COMPARED

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to end a process by")


def with_llama_cpp(folder: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have children import this as llama_cpp."""
    (folder / "llama_cpp.py").write_text(code)
    monkeypatch.syspath_prepend(folder)


def refusal(timeout_s: float = 60.0) -> EngineError:
    with pytest.raises(EngineError) as caught:
        probe(timeout_s)
    return caught.value


def test_llama_cpp_says_what_it_is_and_has():
    from zephyr_local.engine import llama

    found = probe()
    assert tuple(f"{device.name}: {device.description}" for device in found.devices) == llama.devices()
    assert f"llama-cpp-python {found.binding_version}, llama.cpp {found.llama_version}" == llama.native_version()
    assert found.system_info.encode() == llama.C.llama_print_system_info()
    assert found.supports_gpu_offload == llama.C.llama_supports_gpu_offload()
    assert found.mmap == llama.C.llama_supports_mmap()
    (cpu,) = [device for device in found.devices if device.kind == "cpu"]
    assert (cpu.name, cpu.backend) == ("CPU", "CPU")
    assert 0 < cpu.free_bytes <= cpu.total_bytes
    assert found.cpu_features <= COMPARED
    assert found.warnings == ()


def test_the_parent_loads_no_llama_cpp():
    code = "import sys; from zephyr_local.engine.probe import probe; probe(); print('llama_cpp' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "False\n"


def test_a_library_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    error = refusal()
    assert "cannot be loaded" in error.problem
    assert "llama" in error.problem.partition(": ")[2]
    assert "pip install" in error.remedy


def test_a_binding_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with_llama_cpp(tmp_path, "raise ModuleNotFoundError(\"No module named 'llama_cpp'\")", monkeypatch)
    assert "No module named 'llama_cpp'" in refusal().problem


@posix
@pytest.mark.parametrize(("name", "remedy"), [("SIGILL", "built for another CPU"), ("SIGSEGV", "Install it anew")])
def test_a_crash_is_told_by_its_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, remedy: str):
    code = f"import os, signal; os.write(2, b'ggml: abort\\n'); os.kill(os.getpid(), signal.{name})"
    with_llama_cpp(tmp_path, code, monkeypatch)
    error = refusal()
    assert f"crashed with {name}" in error.problem
    assert "ggml: abort" in error.problem
    assert remedy in error.remedy


def test_one_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    told = tmp_path / "process-id"
    code = f"import os, pathlib, time; pathlib.Path({str(told)!r}).write_text(str(os.getpid())); time.sleep(120)"
    with_llama_cpp(tmp_path, code, monkeypatch)
    started = time.monotonic()
    error = refusal(timeout_s=3.0)
    assert "within 3 seconds" in error.problem
    assert time.monotonic() - started < 60
    if sys.platform != "win32":
        with pytest.raises(ProcessLookupError):
            os.kill(int(told.read_text()), signal.SIGCONT)


def test_what_native_code_prints_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    code = "import os; os.write(1, b'{}'); print('hello'); raise ImportError('not today')"
    with_llama_cpp(tmp_path, code, monkeypatch)
    assert "not today" in refusal().problem


def test_a_process_that_is_no_child_of_ours_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with_llama_cpp(tmp_path, "import os; os._exit(0)", monkeypatch)  # it ends well and has said nothing
    assert "answered with something else" in refusal().problem
