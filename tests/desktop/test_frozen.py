"""Frozen applications: made by PyInstaller with no flag, run where there is no Python, no package and no network."""

from __future__ import annotations

import importlib.metadata
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.desktop.freezing import CONSOLE, FRANCE, PARIS, ROOT, Alone, Ran, freeze, hidden_folders
from tests.stand_in_hub import StandInHub
from zephyr_local.data import bundled_model_path
from zephyr_local.desktop.bundle_size import main as bundle_size
from zephyr_local.desktop.bundle_size import sizes_by_group
from zephyr_local.desktop.pyinstaller.libraries import chosen_libraries

NOT_THE_RUNTIME = {"__main__", "cli", "convert", "desktop", "quantize", "repl", "train"}
TOKYO = "The capital of Japan is Tokyo.\n"
HUGE = {"IPython", "PyQt6", "PySide6", "datasets", "matplotlib", "numba", "pandas", "torch", "transformers", "trl"}


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example for a console in one file; it does not call freeze_support."""
    return freeze(CONSOLE, tmp_path_factory.mktemp("console"), "--onefile") / "console_chat"


@pytest.fixture
def alone(tmp_path: Path) -> Alone:
    return Alone(tmp_path)


def left_by(alone: Alone) -> list[Path]:
    return [*alone.temporary.iterdir(), *alone.home.iterdir()]


def test_where_they_run_there_is_no_python(alone: Alone) -> None:
    there = alone.run(Path("/bin/ls"), "-A", *map(str, hidden_folders()))
    assert [line for line in there.out.splitlines() if line and not line.endswith(":")] == []
    assert alone.run(Path("/usr/bin/env"), "python3").code == 127


def test_one_file_answers(console: Path, alone: Alone) -> None:
    assert alone.run(console, *FRANCE.split()) == Ran(0, f"{PARIS}\n", "")
    assert alone.processes() == {}
    assert left_by(alone) == []
    assert alone.asked() == {}


def test_its_version_is_known(console: Path, alone: Alone) -> None:
    version = importlib.metadata.version("zephyr-local")
    assert alone.run(console, "--version") == Ran(0, f"zephyr-local {version}\n", "")


def engine_of(alone: Alone) -> int:
    (pid,) = [pid for pid, command in alone.processes().items() if command.endswith("--zephyr-local-child engine")]
    return pid


def test_one_file_unpacks_once_and_outlives_its_engine(console: Path, alone: Alone) -> None:
    with alone.started(console) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{FRANCE}\n")
        assert process.stdout.readline() == f"{PARIS}\n"
        engine = engine_of(alone)
        (unpacked,) = alone.temporary.iterdir()
        mapped = {line.split()[-1] for line in Path(f"/proc/{engine}/maps").read_text().splitlines() if "/" in line}
        assert str(unpacked / "llama_cpp" / "lib" / "libllama.so") in mapped
        assert [path for path in mapped if "llama_cpp" in path and not path.startswith(str(unpacked))] == []

        os.kill(engine, signal.SIGKILL)
        # Asked before it knows, it tells of the end; asked again, it answers.
        process.stdin.write("and of Japan?\n" * 2)
        assert process.stdout.readline() == TOKYO
        assert engine_of(alone) != engine
        assert list(alone.temporary.iterdir()) == [unpacked]
        out, err = process.communicate()
    assert process.returncode == 0
    assert (out, "SIGKILL" in err) in [("", True), (TOKYO, False)]
    assert left_by(alone) == []


def test_a_killed_application_takes_its_engine_along(console: Path, alone: Alone) -> None:
    with alone.started(console) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{FRANCE}\n")
        process.stdout.readline()
        engine = engine_of(alone)
        for pid in set(alone.processes()) - {engine}:
            os.kill(pid, signal.SIGKILL)
        alone.wait_for_end_of_all()


def test_one_file_pulls_a_model(console: Path, tmp_path: Path) -> None:
    """What was kept out is not missed; here there is a network, with a hub on it."""
    pytest.importorskip("huggingface_hub")
    with StandInHub() as hub:
        hub.add("org/tiny-GGUF", {"tiny.Q4_K_M.gguf": bundled_model_path().read_bytes()})
        done = subprocess.run(
            [console, "--pull", "hf:org/tiny-GGUF:q4_k_m", FRANCE],
            env={"HOME": str(tmp_path), "HF_ENDPOINT": hub.url},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{PARIS}\n", "")
    assert [path.name for path in tmp_path.rglob("*.gguf")] == ["tiny.Q4_K_M.gguf"]


def test_what_is_in_one_file(console: Path) -> None:
    from PyInstaller.archive.readers import CArchiveReader

    archive = CArchiveReader(str(console))
    modules = set(archive.open_embedded_archive("PYZ.pyz").toc)
    runtime = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "zephyr_local").rglob("*.py")
        if path.relative_to(ROOT / "zephyr_local").parts[0].removesuffix(".py") not in NOT_THE_RUNTIME
    }
    assert {name for name in modules if name.partition(".")[0] == "zephyr_local"} == runtime
    assert {name.partition(".")[0] for name in modules} & HUGE == set()
    files = {name.replace("\\", "/") for name in archive.toc}
    assert {name.partition("/")[0] for name in files} & HUGE == set()
    assert {name for name in files if name.startswith("llama_cpp/")} == {
        f"llama_cpp/lib/{name}"
        for name in ("libllama.so", "libggml.so", "libggml.so.0", "libggml-base.so.0", "libggml-cpu.so.0")
    }
    assert {"pyi_rth_zephyr_local", "libgomp.so.1", "zephyr_local/model_store/catalogue.toml"} <= files
    assert [name for name in files if name.endswith(".gguf")] == ["zephyr_local/data/zephyr-tiny-Q4_K_M.gguf"]


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example for Qt as a folder; it calls freeze_support, as PyInstaller's hook does before it."""
    pytest.importorskip("PySide6")
    script = ROOT / "examples" / "desktop" / "qt_chat" / "__main__.py"
    return freeze(script, tmp_path_factory.mktemp("window"), "--windowed", "--name", "qt_chat") / "qt_chat"


def test_a_window_answers(window: Path, alone: Alone, display: str) -> None:
    assert alone.run(window / "qt_chat", "--self-test", FRANCE, display=display) == Ran(0, f"{PARIS}\n", "")
    assert alone.processes() == {}
    assert list(alone.temporary.iterdir()) == []
    assert alone.asked() == {}


def test_a_folder_tells_what_it_is_made_of(window: Path, capsys: pytest.CaptureFixture[str]) -> None:
    groups = {name: size_bytes for name, size_bytes, _ in sizes_by_group(window)}
    assert {"zephyr-tiny", "llama.cpp", "Qt", "numpy", "Python"} <= set(groups)
    files = [path for path in window.rglob("*") if path.is_file() and not path.is_symlink()]
    assert sum(groups.values()) == sum(path.stat().st_size for path in files)
    assert {path.name for path in (window / "_internal").iterdir()} & (HUGE - {"PySide6"}) == set()
    assert bundle_size([str(window)]) == 0
    assert "altogether" in capsys.readouterr().out


# --- what the page says ---


PAGE = (ROOT / "docs" / "freezing.md").read_text(encoding="utf-8")


def test_the_options_of_the_page_are_pyinstallers() -> None:
    pytest.importorskip("PyInstaller")
    page, _, _ = PAGE.partition("## Nuitka")
    shell = "\n".join(re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    commands = [line for line in shell.splitlines() if line.startswith("pyinstaller ")]
    given = {
        option for line in [*commands, *re.findall("`(--[^`]*)`", page)] for option in re.findall(r"--[\w-]+", line)
    }
    told = subprocess.run([sys.executable, "-m", "PyInstaller", "--help"], capture_output=True, text=True, check=True)
    assert len(commands) == 4
    assert given <= set(re.findall(r"--[\w-]+", told.stdout))


@pytest.mark.parametrize(
    "block", re.findall(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
)
def test_the_page_s_python_runs(block: tuple[str, str], tmp_path: Path) -> None:
    assert PAGE.count("```python") == 2
    script = tmp_path / "script.py"
    script.write_text(block[0], encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, block[1], "")


# --- what goes in ---


def versions_of(*names: str) -> list[str]:
    """The files of a wheel's libraries on Linux."""
    return [f"lib{name}.so{version}" for name in names for version in ("", ".0", ".0.25.3")]


@pytest.mark.parametrize(
    ("there", "asked_for", "chosen"),
    [
        pytest.param(
            versions_of("llama", "ggml", "ggml-base", "ggml-cpu", "ggml-cuda"),
            {"libggml.so.0", "libggml-base.so.0", "libggml-cpu.so.0", "libggml-cuda.so.0", "libcudart.so.12"},
            {
                *("libllama.so", "libggml.so", "libggml.so.0"),
                *("libggml-base.so.0", "libggml-cpu.so.0", "libggml-cuda.so.0"),
            },
            id="linked",
        ),
        pytest.param(
            [*versions_of("llama", "ggml", "ggml-base"), "libggml-cpu-haswell.so", "libggml-vulkan.so"],
            {"libggml.so.0", "libggml-base.so.0"},
            {
                *("libllama.so", "libggml.so", "libggml.so.0", "libggml-base.so.0"),
                *("libggml-cpu-haswell.so", "libggml-vulkan.so"),
            },
            id="plug-ins",
        ),
        pytest.param(
            [
                *("libllama.dylib", "libllama.0.dylib", "libllama.0.5.0.dylib", "libggml.dylib", "libggml.0.dylib"),
                *("libggml-metal.dylib", "libggml-metal.0.dylib", "libggml-metal.0.25.3.dylib", "libggml-blas.so"),
            ],
            {"libggml.0.dylib", "libggml-metal.0.dylib"},
            {"libllama.dylib", "libggml.dylib", "libggml.0.dylib", "libggml-metal.0.dylib", "libggml-blas.so"},
            id="macos",
        ),
        pytest.param(
            ["llama.dll", "ggml.dll", "ggml-base.dll", "ggml-cpu.dll", "ggml-cuda.dll", "llama.lib"],
            {"ggml.dll", "ggml-base.dll", "ggml-cpu.dll", "ggml-cuda.dll", "KERNEL32.dll"},
            {"llama.dll", "ggml.dll", "ggml-base.dll", "ggml-cpu.dll", "ggml-cuda.dll"},
            id="windows",
        ),
        pytest.param(["libmtmd.so", "libllama-common.so", "libllama.so"], set(), {"libllama.so"}, id="not ours"),
    ],
)
def test_each_library_goes_in_once(there: list[str], asked_for: set[str], chosen: set[str]) -> None:
    found = chosen_libraries(there, asked_for)
    assert len(found) == len(set(found))
    assert set(found) == chosen


def test_groups_of_a_made_up_application(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    application = tmp_path / "chat"
    for name, size_bytes in {
        "chat": 10,
        "_internal/zephyr_local/data/zephyr-tiny-Q4_K_M.gguf": 20,
        "_internal/models/mistral.gguf": 30,
        "_internal/llama_cpp/lib/libggml-cuda.so.0": 40,
        "_internal/libgomp.so.1": 1,
        "_internal/libcudart.so.12": 50,
        "_internal/PySide6/Qt/lib/libQt6Core.so.6": 60,
        "_internal/numpy/_core/_multiarray.so": 70,
        "_internal/numpy.libs/libopenblas.so": 5,
        "_internal/libpython3.11.so.1.0": 80,
        "_internal/base_library.zip": 3,
        "_internal/libssl.so.3": 90,
        "_internal/yaml/_yaml.so": 7,
    }.items():
        (application / name).parent.mkdir(parents=True, exist_ok=True)
        (application / name).write_bytes(bytes(size_bytes))
    (application / "_internal" / "libQt6Core.so.6").symlink_to("PySide6/Qt/lib/libQt6Core.so.6")
    assert sizes_by_group(application) == [
        ("libraries of the system", 90, 1),
        ("Python", 83, 2),
        ("numpy", 75, 2),
        ("Qt", 60, 1),
        ("CUDA", 50, 1),
        ("llama.cpp", 41, 2),
        ("other models", 30, 1),
        ("zephyr-tiny", 20, 1),
        ("the executable, with the packages' code", 10, 1),
        ("other files of packages", 7, 1),
    ]
    assert bundle_size([str(application)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["altogether", "0.0", "MB", "13", "files"]
    assert bundle_size([str(application / "chat")]) == 2
    assert "usage" in capsys.readouterr().err
