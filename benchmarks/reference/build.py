"""Builds what zephyr-local is compared with: llama.cpp's own tools and converter, of the version that it runs on.

    python benchmarks/reference/build.py                     # both, into build/reference
    python benchmarks/reference/build.py --only tools
    python benchmarks/reference/build.py --only converter --torch 2.13.0

Both come from the source distribution of the llama-cpp-python that constraints.txt pins: the llama.cpp inside it is the
one that the tests and benchmarks run. What is complete is left as it is, what was interrupted is taken up or made anew.
A benchmark asks for the result with :func:`reference_tools` and :func:`reference_converter`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import venv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
DEFAULT_FOLDER = ROOT / "build" / "reference"
PACKAGE = "llama-cpp-python"
TOOLS = (
    "llama-batched-bench",
    "llama-bench",
    "llama-completion",
    "llama-gguf-split",
    "llama-imatrix",
    "llama-perplexity",
    "llama-quantize",
    "llama-server",
)
_CMAKE_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",  # a program is then one file, which may be copied
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_UI=OFF",  # the server's web page is fetched from a network
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DMTMD_VIDEO=OFF",
    # The build would else describe itself by the commit of the repository that its folder happens to lie in.
    "-DLLAMA_BUILD_NUMBER=0",
)
_REQUIREMENTS = ("requirements-convert_hf_to_gguf.txt", "requirements-convert_lora_to_gguf.txt")
_STAMP = "complete.json"


class NotBuiltError(Exception):
    """A part of the reference is not there, or is of another version than constraints.txt pins."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a finished part was made of; written last, so that a part without it is half made."""

    package: str
    """The version of llama-cpp-python whose llama.cpp this is."""
    versions: dict[str, str]
    """Of what took part in making it: compiler and CMake, or the converter's packages."""
    platform: str


@dataclass(frozen=True, slots=True)
class ReferenceTools:
    """llama.cpp's command-line programs."""

    folder: Path
    stamp: Stamp

    def __getitem__(self, name: str) -> Path:
        """The program of that name, such as ``tools["llama-quantize"]``."""
        return self.folder / (name + (".exe" if os.name == "nt" else ""))


@dataclass(frozen=True, slots=True)
class ReferenceConverter:
    """llama.cpp's converter: its scripts, and a Python that has what they import."""

    python: Path
    tree: Path
    stamp: Stamp

    def command(self, source: Path, target: Path, outtype: str) -> list[str]:
        """The command that converts the checkpoint in the folder `source`; outtype is f32, f16, bf16 or q8_0."""
        script = self.tree / "convert_hf_to_gguf.py"
        return [str(self.python), str(script), str(source), "--outfile", str(target), "--outtype", outtype]

    def lora_command(self, adapter: Path, base: Path, target: Path, outtype: str) -> list[str]:
        """The command that converts a PEFT adapter, of which `base` is the checkpoint."""
        script = self.tree / "convert_lora_to_gguf.py"
        given = [str(adapter), "--base", str(base), "--outfile", str(target), "--outtype", outtype]
        return [str(self.python), str(script), *given]


def pinned_version() -> str:
    """The llama-cpp-python that constraints.txt pins."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    found = re.search(rf"^{PACKAGE}==(\S+)$", text, re.MULTILINE)
    if found is None:
        raise SystemExit(f"constraints.txt pins no {PACKAGE}")
    return found[1]


def reference_tools(folder: Path = DEFAULT_FOLDER) -> ReferenceTools:
    """The programs under `folder`; NotBuiltError where they are not there or of another version."""
    stamp = _read_stamp(folder / "bin", folder, "tools")
    return ReferenceTools(folder / "bin", stamp)


def reference_converter(folder: Path = DEFAULT_FOLDER) -> ReferenceConverter:
    """The converter under `folder`; NotBuiltError where it is not there or of another version."""
    stamp = _read_stamp(folder / "converter", folder, "converter")
    return ReferenceConverter(_venv_python(folder / "converter"), folder / "llama.cpp", stamp)


def _read_stamp(part: Path, folder: Path, what: str) -> Stamp:
    command = f"python benchmarks/reference/build.py --only {what} --into {folder}"
    try:
        stamp = Stamp(**json.loads((part / _STAMP).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise NotBuiltError(f"{folder} lacks the reference's {what}; make it with: {command}") from None
    if stamp.package != pinned_version():
        problem = f"the reference's {what} in {folder} is that of {PACKAGE} {stamp.package}, not {pinned_version()}"
        raise NotBuiltError(f"{problem}; make it anew with: {command}")
    return stamp


def _write_stamp(part: Path, versions: dict[str, str]) -> None:
    stamp = Stamp(pinned_version(), versions, f"{platform.system()} {platform.machine()}")
    (part / _STAMP).write_text(json.dumps(asdict(stamp), indent=1) + "\n", encoding="utf-8")


def _is_complete(part: Path, what: str) -> bool:
    try:
        _read_stamp(part, part.parent, what)
    except NotBuiltError:
        return False
    print(f"{part} is complete", flush=True)
    return True


def _run(command: Sequence[str | Path], **environment: str) -> None:
    shown = " ".join(str(part) for part in command)
    print(f"+ {shown}", flush=True)
    subprocess.run([str(part) for part in command], check=True, env=os.environ | environment)


def _venv_python(folder: Path) -> Path:
    return folder / "Scripts" / "python.exe" if os.name == "nt" else folder / "bin" / "python"


def _make_venv(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    return _venv_python(folder)


def _installed(python: Path, names: Sequence[str]) -> dict[str, str]:
    script = "import sys, importlib.metadata as m; print(*(m.version(name) for name in sys.argv[1:]))"
    output = subprocess.run([str(python), "-c", script, *names], check=True, capture_output=True, text=True).stdout
    return dict(zip(names, output.split(), strict=True))


# --- the source


def _source_tree(folder: Path, sdist: Path | None) -> Path:
    """llama.cpp's source in `folder`, unpacked from the given file, or from the one that pip fetches."""
    tree = folder / "llama.cpp"
    if _is_complete(tree, "source"):
        return tree
    half = folder / "llama.cpp.part"
    for old in (tree, half):
        shutil.rmtree(old, ignore_errors=True)
    archive = sdist or _download(folder)
    print(f"unpacking {archive}", flush=True)
    prefix = re.compile(r"[^/]+/vendor/llama\.cpp/")
    with tarfile.open(archive) as tar:
        members = []
        for member in tar:
            if found := prefix.match(member.name):
                members.append(member.replace(name=member.name[found.end() :], deep=False))
        tar.extractall(half, members, filter="data")
    if not (half / "convert_hf_to_gguf.py").is_file():
        raise SystemExit(f"{archive} holds no llama.cpp: give the source distribution of {PACKAGE} {pinned_version()}")
    _write_stamp(half, {"archive": archive.name})
    return half.rename(tree)


def _download(folder: Path) -> Path:
    place = folder / "sdist"
    name = re.compile(rf"llama_cpp_python-{re.escape(pinned_version())}\.tar\.gz")
    for path in place.glob("*.tar.gz"):
        if name.fullmatch(path.name):
            return path  # pip gives it its name only when it is whole
    requirement = f"{PACKAGE}=={pinned_version()}"
    _run([sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", PACKAGE, "--dest", place, requirement])
    (archive,) = (path for path in place.iterdir() if name.fullmatch(path.name))
    return archive


# --- the tools


def build_tools(folder: Path, jobs: int, sdist: Path | None = None) -> ReferenceTools:
    """Compiles the programs into `folder`/bin, for this machine's processor, as llama.cpp does by default."""
    place = folder / "bin"
    if _is_complete(place, "tools"):
        return reference_tools(folder)
    tree = _source_tree(folder, sdist)
    scratch, half = folder / "tools.part", folder / "bin.part"
    for old in (place, half):
        shutil.rmtree(old, ignore_errors=True)
    python = _cmake_python(folder)
    programs = python.parent
    options = [*_CMAKE_OPTIONS, f"-DLLAMA_BUILD_COMMIT={PACKAGE}-{pinned_version()}"]
    ninja = f"-DCMAKE_MAKE_PROGRAM={programs / 'ninja'}"
    # A build tree that was left half made is taken up again: Ninja knows which of its files are whole.
    _run([programs / "cmake", "-S", tree, "-B", scratch, "-G", "Ninja", ninja, *options])
    _run([programs / "cmake", "--build", scratch, "--parallel", str(jobs), "--target", *TOOLS])
    half.mkdir()
    for name in TOOLS:
        program = ReferenceTools(scratch / "bin", Stamp("", {}, ""))[name]
        shutil.copy2(program, half)
    _write_stamp(half, _installed(python, ["cmake", "ninja"]) | {"compiler": _compiler(scratch)})
    half.rename(place)
    shutil.rmtree(scratch)
    return reference_tools(folder)


def _cmake_python(folder: Path) -> Path:
    """The Python of a small environment that has CMake and Ninja, so that the system need not."""
    place = folder / "cmake"
    python = _venv_python(place)
    if not (place / _STAMP).is_file():
        python = _make_venv(place)
        _run([python, "-m", "pip", "install", "--disable-pip-version-check", "-q", "cmake>=3.28", "ninja>=1.11"])
        _write_stamp(place, {})
    return python


def _compiler(scratch: Path) -> str:
    """The C++ compiler's name and version, as CMake found it."""
    (text,) = (path.read_text(encoding="utf-8") for path in scratch.glob("CMakeFiles/*/CMakeCXXCompiler.cmake"))
    found = dict(re.findall(r'set\((CMAKE_CXX_COMPILER_(?:ID|VERSION)) "([^"]*)"\)', text))
    return " ".join(found[f"CMAKE_CXX_COMPILER_{part}"] for part in ("ID", "VERSION"))


# --- the converter


def build_converter(folder: Path, torch: str | None = None, sdist: Path | None = None) -> ReferenceConverter:
    """Makes the environment `folder`/converter with the converter's own pins; `torch` replaces that one's."""
    place = folder / "converter"
    if _is_complete(place, "converter"):
        return reference_converter(folder)
    tree = _source_tree(folder, sdist)
    python = _make_venv(place)
    lines = _requirements(tree)
    if torch is not None:
        # The pin's own index is left out as well: the version asked for is that of the reader's index.
        lines = [line for line in lines if not line.startswith(("torch==", "--extra-index-url"))] + [f"torch=={torch}"]
    requirements = place / "requirements.txt"
    requirements.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    install: list[str | Path] = [python, "-m", "pip", "install", "--disable-pip-version-check", "-q"]
    _run([*install, "-r", requirements, tree / "gguf-py"])
    names = ("gguf", "numpy", "protobuf", "safetensors", "sentencepiece", "tokenizers", "torch", "transformers")
    _write_stamp(place, _installed(python, names) | {"python": platform.python_version()})
    return reference_converter(folder)


def _requirements(tree: Path) -> list[str]:
    """The lines of the converter's requirement files, each once, without gguf, which the tree has itself."""
    lines: dict[str, None] = {}
    waiting = [tree / "requirements" / name for name in _REQUIREMENTS]
    while waiting:
        path = waiting.pop(0)
        for line in path.read_text(encoding="utf-8").splitlines():
            line = line.partition("#")[0].strip()
            if line.startswith("-r "):
                waiting.append(path.parent / line.removeprefix("-r ").strip())
            elif line and not re.match(r"gguf\b", line):
                lines[line] = None
    return list(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["converter", "tools"], help="one of the two")
    parser.add_argument("--into", type=Path, default=DEFAULT_FOLDER, help="the folder (default: build/reference)")
    parser.add_argument("--sdist", type=Path, help=f"the source distribution of {PACKAGE}, instead of fetching it")
    parser.add_argument("--torch", help="take this torch from pip's own index, instead of the converter's pin")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compilers at once")
    given = parser.parse_args()
    folder = given.into.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if given.only != "tools":
            converter = build_converter(folder, given.torch, given.sdist)
        if given.only != "converter":
            tools = build_tools(folder, given.jobs, given.sdist)
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"{Path(error.cmd[0]).name} ended with {error.returncode}") from None
    if given.only != "tools":
        print(f"converter: {converter.python} {converter.tree / 'convert_hf_to_gguf.py'}")
    if given.only != "converter":
        print(f"tools:     {tools.folder}")


if __name__ == "__main__":
    main()
