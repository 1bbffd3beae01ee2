"""What the tests of windows share: an X display of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from ctypes.util import find_library

import pytest

from tests.conftest import skip_or_fail

# Babble is in all of the world's scripts, and Qt says on stderr which of them this machine's fonts lack.
os.environ["QT_LOGGING_RULES"] = "qt.text.font.db=false"

_QT_NEEDS = {
    "dbus-1": "libdbus-1-3",
    "EGL": "libegl1",
    "fontconfig": "libfontconfig1",
    "GL": "libgl1",
    "xcb-cursor": "libxcb-cursor0",
    "xcb-icccm": "libxcb-icccm4",
    "xcb-image": "libxcb-image0",
    "xcb-keysyms": "libxcb-keysyms1",
    "xcb-render-util": "libxcb-render-util0",
    "xcb-shape": "libxcb-shape0",
    "xkbcommon-x11": "libxkbcommon-x11-0",
}
"""What Qt's plugin for X loads, and Debian's packages of it."""


@pytest.fixture(scope="session")
def display() -> Iterator[str]:
    """A display of Xvfb's that nothing else is on, such as ``:1``; never the developer's own."""
    packages = [] if shutil.which("Xvfb") else ["xvfb"]
    if sys.platform == "linux":
        packages += [package for library, package in _QT_NEEDS.items() if find_library(library) is None]
    if packages:
        skip_or_fail("an X server, or what Qt needs to show a window,", f"apt-get install {' '.join(packages)}")
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
