"""What all tests share: no network, and nothing that skips in CI for want of a package."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile

import pytest

# Libraries that would otherwise ask a hub whether a local folder has changed.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# Beside other test processes, torch's and numpy's threads would wait for a core that another process has.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# The developer's own chats, history and configuration are none of the tests' business, nor the other way round.
_home = tempfile.mkdtemp(prefix="zephyr-local-tests-")
atexit.register(shutil.rmtree, _home, ignore_errors=True)
for _kind in ("DATA", "STATE", "CONFIG"):
    os.environ[f"XDG_{_kind}_HOME"] = os.path.join(_home, _kind.lower())  # noqa: PTH118
for _name in [name for name in os.environ if name.startswith("ZEPHYR_LOCAL_")]:
    del os.environ[_name]

# A shell that starts the tests in the background lets them ignore Ctrl+C, and every process that they start would too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def skip_or_fail(what_is_missing: str, how_to_install: str) -> None:
    """Skip a test whose package is missing; in CI everything is installed, so there it fails."""
    message = f"{what_is_missing} is missing; to run this test: {how_to_install}"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
