"""Where PyInstaller looks for the package: an editable installation is no folder of sys.path."""

from __future__ import annotations

from typing import Any

from PyInstaller.utils.hooks import get_package_paths


def pre_find_module_path(hook_api: Any) -> None:  # noqa: ANN401 - PyInstaller has no types
    base, _ = get_package_paths("zephyr_local")
    if base not in hook_api.search_dirs:
        hook_api.search_dirs = [*hook_api.search_dirs, base]
