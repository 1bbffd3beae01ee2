"""What PyInstaller asks for by its entry point ``pyinstaller40``: where the hooks are. It needs no flag to find them.

PyInstaller runs the files of this folder while it freezes an application; nothing in the package imports them. Those
for other packages only drop imports (``excludedimports``): what such a package mentions and zephyr-local does not need
stays out, unless the application imports it itself.
"""

from __future__ import annotations

from pathlib import Path


def get_hook_dirs() -> list[str]:
    """The folder of the hooks. Source: PyInstaller, "Providing PyInstaller Hooks with your Package"."""
    return [str(Path(__file__).parent)]
