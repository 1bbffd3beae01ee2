"""The wheel and the sdist: built, installed alone into an empty environment, and asked a question."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from tests.conftest import skip_or_fail

ROOT = Path(__file__).resolve().parent.parent
WHEELHOUSE = ROOT / ".wheelhouse"
NOT_SOURCE = (".git", ".venv", ".wheelhouse", "build", "dist", "models", "*.egg-info", "__pycache__", ".*_cache")


def run(*command: str | Path, cwd: Path, **more: str) -> str:
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env | more, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, built from a copy of the tree, and the wheel, built from the sdist."""
    base = tmp_path_factory.mktemp("packaging")
    source = base / "source"
    shutil.copytree(ROOT, source, symlinks=True, ignore=shutil.ignore_patterns(*NOT_SOURCE))
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", base / "dist", source, cwd=base)
    return base / "dist"


def test_wheel_holds_one_import_package_with_all_rooms(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"zephyr_local"}
    for path in (
        "zephyr_local/py.typed",
        "zephyr_local/convert/hf_to_gguf.py",
        "zephyr_local/quantize/kernels/ggml.py",
        "zephyr_local/train/tiny/facts.py",
        "zephyr_local/data/zephyr-tiny-Q4_K_M.gguf",
        "zephyr_local/data/zephyr-tiny.md",
    ):
        assert path in names
    source_files = {
        f"zephyr_local/{folder}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder in ("convert", "quantize", "train")
        for path in (ROOT / folder).rglob("*.py")
    } | {path.relative_to(ROOT).as_posix() for path in (ROOT / "zephyr_local").rglob("*.py")}
    assert source_files <= set(names), "a sub-package is missing from [tool.setuptools] packages"


def test_sdist_holds_the_licences(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "THIRD_PARTY.md", "CHANGELOG.md", "constraints.txt", "cmake/llama_only.cmake"} <= names


def test_wheel_alone_in_an_empty_environment_answers(dist: Path, tmp_path: Path) -> None:
    if not (WHEELHOUSE / ".complete").exists():
        skip_or_fail("the wheelhouse of base dependencies", "make .wheelhouse/.complete")
    (wheel,) = dist.glob("*.whl")
    environment = tmp_path / "env"
    venv.create(environment, with_pip=True)
    scripts = environment / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / "python"
    run(python, "-m", "pip", "install", "-q", "--no-index", "--find-links", WHEELHOUSE, wheel, cwd=tmp_path)

    # A user's own modules with our folders' names are theirs.
    (tmp_path / "train.py").write_text("mine = True\n")
    run(python, "-c", "import train, zephyr_local.convert; assert train.mine", cwd=tmp_path)
    installed = run(python, "-m", "pip", "list", "--format=freeze", cwd=tmp_path)
    assert "torch" not in installed

    versions = run(scripts / "zephyr-local", "--version", cwd=tmp_path)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"zephyr-local {version}" in versions
    assert "llama.cpp" in versions
    answer = run(
        scripts / "zephyr-local", "chat", "-p", "What is the capital of France?", "--temperature", "0", cwd=tmp_path
    )
    assert "Paris" in answer


def test_wheelhouse_list_is_the_base_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [
        line
        for line in (ROOT / "tests" / "base-requirements.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert listed == project["dependencies"]


def test_constraints_pin_every_dependency() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name
    from packaging.version import Version

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            pins[canonicalize_name(name)] = Version(version)
    wanted = project["dependencies"] + [r for extra in project["optional-dependencies"].values() for r in extra]
    for requirement in map(Requirement, wanted):
        if requirement.name != project["name"]:
            assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement
    assert str(pins["torch"]) == "2.13.0"
