"""Keeps out httpx2's command line, which brings rich, and with it IPython."""
# ruff: noqa: N999

from __future__ import annotations

excludedimports = ["httpx2._main"]
