"""What the tests of windows share: an X display of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.conftest import skip_or_fail

# Babble is in all of the world's scripts, and Qt says on stderr which of them this machine's fonts lack.
os.environ["QT_LOGGING_RULES"] = "qt.text.font.db=false"


@pytest.fixture(scope="session")
def display() -> Iterator[str]:
    """A display of Xvfb's that nothing else is on, such as ``:1``; never the developer's own."""
    if shutil.which("Xvfb") is None:
        skip_or_fail("Xvfb", "apt-get install xvfb")
    reader, writer = os.pipe()
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", str(writer), "-screen", "0", "1280x1024x24", "-nolisten", "tcp"],
        pass_fds=[writer],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(writer)
    try:
        with os.fdopen(reader) as told:
            number = told.readline().strip()
        assert number, f"Xvfb ended with code {server.wait()}"
        yield f":{number}"
    finally:
        server.terminate()
        server.wait()
