"""Freezes an application with PyInstaller, and runs it where there is no Python, no package and no network.

The application gets namespaces of its own: this interpreter's folders, its environment's and this checkout are covered
by empty ones, and the network is loopback that is down, whose kernel counts what found no way out. Its environment has
a home, a folder for temporary files and a PATH that leads nowhere.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.cli.without_network import require_namespace
from tests.conftest import skip_or_fail

ROOT: Final = Path(__file__).resolve().parents[2]
CONSOLE: Final = ROOT / "examples" / "desktop" / "console_chat.py"
FRANCE: Final = "What is the capital of France?"
PARIS: Final = "The capital of France is Paris."
MOST_S: Final = 120.0
"""A watchdog: what is run here takes one or two seconds."""
_MOST_FREEZE_S: Final = 600
# What no route was found for, and datagrams, which here only a lookup of names sends.
_ASKING: Final = ("IpOutNoRoutes", "UdpOutDatagrams", "Ip6OutNoRoutes", "Udp6OutDatagrams")


def freeze(script: Path, folder: Path, *options: str) -> Path:
    """The folder ``dist`` that PyInstaller makes of a script, with no flag about zephyr-local."""
    try:
        import PyInstaller  # noqa: F401
    except ImportError:
        skip_or_fail("PyInstaller", "pip install pyinstaller")
    dist = folder / "dist"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level=WARN", "--distpath", dist),
            *("--workpath", folder / "build", "--specpath", folder, *options, script),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=_MOST_FREEZE_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return dist


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


class Alone:
    """A place to run a program in: ``home`` and ``temporary`` are its folders."""

    def __init__(self, folder: Path) -> None:
        require_namespace()
        self.home, self.temporary = folder / "home", folder / "temporary"
        self.home.mkdir()
        self.temporary.mkdir()
        self._folder = folder
        inside = [path for path in hidden_folders() if folder.resolve().is_relative_to(path)]
        assert not inside, f"{folder} would be hidden with {inside}: give pytest another --basetemp"

    @contextlib.contextmanager
    def started(self, program: Path, *arguments: str, display: str | None = None) -> Iterator[subprocess.Popen[str]]:
        """The program, with pipes; what it leaves is killed, and all of it where it takes too long."""
        variables = {"HOME": self.home, "TMPDIR": self.temporary, "PATH": "/nowhere", "LANG": "C.UTF-8"}
        if display is not None:
            variables["DISPLAY"] = display
        command = shlex.join(["env", "-i", *(f"{k}={v}" for k, v in variables.items()), str(program), *arguments])
        covers = [f"mount -t tmpfs none {shlex.quote(str(path))}" for path in hidden_folders()]
        keeps = [f"cat /proc/self/net/{name} > {shlex.quote(str(self._folder / name))}" for name in ("snmp", "snmp6")]
        lines = ["set -e", *covers, "set +e", command, "code=$?", *keeps, "exit $code", ""]
        script = self._folder / "run.sh"
        script.write_text("\n".join(lines))
        process = subprocess.Popen(
            ["unshare", "--map-root-user", "--mount", "--net", "sh", str(script)],
            cwd=self.home,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        watchdog = threading.Timer(MOST_S, self._kill_all)
        watchdog.start()
        try:
            yield process
        finally:
            watchdog.cancel()
            self._kill_all()
            process.wait(MOST_S)
            for stream in (process.stdin, process.stdout, process.stderr):
                with contextlib.suppress(BrokenPipeError):
                    stream.close()  # type: ignore[union-attr]

    def run(self, program: Path, *arguments: str, display: str | None = None) -> Ran:
        with self.started(program, *arguments, display=display) as process:
            out, err = process.communicate()
            return Ran(process.returncode, out, err)

    def _kill_all(self) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def processes(self) -> dict[int, str]:
        """What runs here, by its number: the command line."""
        mark = f"TMPDIR={self.temporary}".encode()
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ").strip()
        return found

    def wait_for_end_of_all(self) -> None:
        end = time.monotonic() + MOST_S
        while processes := self.processes():
            assert time.monotonic() < end, processes
            time.sleep(0.05)

    def asked(self) -> dict[str, int]:
        """What the last run sent to a network, or wanted to, as the kernel counted it."""
        lines = (self._folder / "snmp").read_text().splitlines()
        counts: dict[str, int] = {}
        for titles, values in zip(lines[::2], lines[1::2], strict=True):
            kind, *names = titles.replace(":", "").split()
            counts |= zip((kind + name for name in names), map(int, values.split()[1:]), strict=True)
        counts |= {name: int(value) for name, value in map(str.split, (self._folder / "snmp6").open())}
        return {name: counts[name] for name in _ASKING if counts[name]}


def hidden_folders() -> list[Path]:
    """Wherever a Python or a package could be found."""
    base = Path(sys.base_prefix)
    folders = [Path(sys.prefix), ROOT, *(Path(sysconfig.get_path(kind)) for kind in ("stdlib", "purelib", "platlib"))]
    if base not in (Path("/"), Path("/usr"), Path("/usr/local")):
        folders.append(base)
    folders += [path for lib in ("/usr/lib", "/usr/local/lib") for path in Path(lib).glob("python3*")]
    there = sorted({path.resolve() for path in folders if path.is_dir()})
    return [path for path in there if not any(path.is_relative_to(other) for other in there if other != path)]
