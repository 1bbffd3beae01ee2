"""Keeps out requests, which truststore changes where an application has it."""
# ruff: noqa: N999

from __future__ import annotations

excludedimports = ["requests", "urllib3"]
