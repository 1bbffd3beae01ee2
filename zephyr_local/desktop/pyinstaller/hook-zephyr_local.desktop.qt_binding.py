"""It takes the binding that the application imports, and names both; PyInstaller refuses an application with two."""
# ruff: noqa: N999

from __future__ import annotations

excludedimports = ["PySide6", "PyQt6"]
