"""What all tests share: no network, and nothing that skips in CI for want of a package."""

from __future__ import annotations

import os
import signal

import pytest

# Libraries that would otherwise ask a hub whether a local folder has changed.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# A shell that starts the tests in the background lets them ignore Ctrl+C, and every process that they start would too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def skip_or_fail(what_is_missing: str, how_to_install: str) -> None:
    """Skip a test whose package is missing; in CI everything is installed, so there it fails."""
    message = f"{what_is_missing} is missing; to run this test: {how_to_install}"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
