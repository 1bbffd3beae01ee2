"""llama.cpp's libraries, which llama_cpp opens by path from its own folder ``lib``, each of them once."""
# ruff: noqa: N999

from __future__ import annotations

from pathlib import Path, PurePath

from PyInstaller.depend.bindepend import get_imports
from PyInstaller.utils.hooks import get_package_paths

from zephyr_local.desktop.pyinstaller.libraries import chosen_libraries

_folder = Path(get_package_paths("llama_cpp")[1]) / "lib"
_names = [path.name for path in _folder.glob("*") if ".so" in path.suffixes or path.suffix in (".dylib", ".dll")]
_asked_for = {PurePath(asked).name for name in _names for asked, _ in get_imports(str(_folder / name))}

binaries = [(str(_folder / name), "llama_cpp/lib") for name in chosen_libraries(_names, _asked_for)]
datas = [(str(path), "llama_cpp/lib") for path in _folder.glob("*.metal*")]  # of a build that does not embed them

# What it imports in functions that zephyr-local never calls.
excludedimports = ["PIL", "huggingface_hub", "openai", "requests", "transformers"]
