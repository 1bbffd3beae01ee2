"""What PyInstaller cannot see in the package: modules that are named in text, the bundled model, the version."""
# ruff: noqa: N999

from __future__ import annotations

from PyInstaller.utils.hooks import collect_data_files, collect_submodules, copy_metadata

# The rest of the package. An application imports of these what it needs, and PyInstaller sees that.
_NOT_THE_RUNTIME = ("__main__", "cli", "convert", "desktop", "quantize", "repl", "train")


def _is_runtime(module: str) -> bool:
    return module.partition(".")[2].partition(".")[0] not in _NOT_THE_RUNTIME


hiddenimports = collect_submodules("zephyr_local", filter=_is_runtime)
datas = [
    *collect_data_files("zephyr_local.data"),
    *collect_data_files("zephyr_local.model_store"),
    *copy_metadata("zephyr-local"),
]
