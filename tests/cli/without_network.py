"""Runs `zephyr-local` where there is no network, and tells whether it, or a process that it started, asked for one.

Twice over: Python's own calls are traced in every process (tests/cli/tracer), and where the system allows it the
command has a network namespace of its own, with loopback alone, whose kernel counts what found no way out: also what
native code sent, and what went to a resolver on loopback.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.cli.command import ROOT, isolated
from tests.stand_in_endpoint import Messages, StandIn

TRACER: Final = Path(__file__).parent / "tracer"
ENDPOINT: Final = "{endpoint}"
"""In arguments, stands for the address of an endpoint on loopback."""

_COUNTERS: Final = ("IpOutNoRoutes", "UdpOutDatagrams", "Ip6OutNoRoutes", "Udp6OutDatagrams")
"""Of RFC 2011, 2013 and 4293: what no route was found for, and datagrams, which here only a lookup of names sends."""
_TELLING: Final = ("HF_", "HUGGING", "TRANSFORMERS_", "ZEPHYR_LOCAL_", "OLLAMA_", "LLAMA_", "LMSTUDIO_", "XDG_")
_PROXIES: Final = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
_MOST_SECONDS: Final = 180

Answer = Callable[[Messages], str]


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str
    attempts: list[str]
    """To reach or to look up something beyond loopback, by Python."""
    processes: list[str]
    """The arguments of each Python process."""
    counted: dict[str, int]
    """By the kernel; empty without a namespace."""

    @property
    def asked_nobody(self) -> bool:
        return not self.attempts and not any(self.counted.values())


def clean_environment(home: Path) -> dict[str, str]:
    """That of a user who set nothing and whose home is ``home``; without CI, which libraries take heed of, too."""
    kept = {
        name: value
        for name, value in isolated(home).items()
        if not name.startswith(_TELLING) and name.lower() not in _PROXIES and name != "CI"
    }
    folders = {f"XDG_{kind}_HOME": str(home / kind.lower()) for kind in ("DATA", "STATE", "CONFIG")}
    return kept | folders | {"HOME": str(home)}


def without_network(
    *arguments: str | Path,
    home: Path,
    stdin: str = "",
    answer: Answer | None = None,
    environment: dict[str, str] | None = None,
    program: Sequence[str] = ("-m", "zephyr_local"),
) -> Ran:
    """Run the command; ENDPOINT in its arguments is one that gives ``answer``."""
    log, report = home / ".connections.log", home / ".connections.json"
    log.unlink(missing_ok=True)
    report.unlink(missing_ok=True)
    command = [*program, *map(str, arguments)]
    variables = clean_environment(home) | {"PYTHONPATH": f"{TRACER}{os.pathsep}{ROOT}", "CONNECTIONS_LOG": str(log)}
    with ExitStack() as stack:
        if why_no_namespace() is None:
            endpoint = "" if answer is None else f"{answer.__module__}:{answer.__qualname__}"
            inside = [sys.executable, "-m", "tests.cli.without_network", str(report), endpoint]
            command = ["unshare", "--map-root-user", "--net", *inside, *command]
        else:
            variables["CONNECTIONS_REFUSED"] = "1"
            url = stack.enter_context(StandIn(answer)).url if answer is not None else ENDPOINT
            command = [sys.executable, *(word.replace(ENDPOINT, url) for word in command)]
        done = subprocess.run(
            command,
            input=stdin.encode(),
            cwd=ROOT,
            env=variables | (environment or {}),
            capture_output=True,
            timeout=_MOST_SECONDS,
        )
    lines = log.read_text().splitlines()
    counted = json.loads(report.read_text()) if report.exists() else {}
    began = [line for line in lines if line.startswith("began ") and "tests.cli.without_network" not in line]
    return Ran(
        done.returncode,
        done.stdout.decode(),
        done.stderr.decode(),
        [line for line in lines if not line.startswith("began ")],
        began,
        counted,
    )


@functools.cache
def why_no_namespace() -> str | None:
    """Why a command cannot have a network namespace of its own here; None where it can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    try:
        done = subprocess.run(
            ["unshare", "--map-root-user", "--net", sys.executable, "-c", "pass"], capture_output=True, timeout=60
        )
    except FileNotFoundError:
        return "there is no command unshare (of util-linux)"
    return done.stderr.decode().strip() or f"unshare ends with code {done.returncode}" if done.returncode else None


def require_namespace() -> None:
    """Skip where the system gives none; in CI that fails, but where the system says that users may not have one."""
    why = why_no_namespace()
    if why is None:
        return
    if sys.platform != "linux" or _system_forbids():
        import pytest

        pytest.skip(f"no network namespace: {why}")
    from tests.conftest import skip_or_fail  # which changes the environment: not for a process in a namespace

    skip_or_fail("a network namespace of the command's own", f"let users make one ({why})")


def _system_forbids() -> bool:
    """Whether a setting keeps user namespaces from users, or a container's filter of system calls may."""

    def says(setting: str, value: str) -> bool:
        try:
            return Path("/proc/sys", setting).read_text().strip() == value
        except OSError:
            return False

    return (
        says("user/max_user_namespaces", "0")
        or says("user/max_net_namespaces", "0")
        or says("kernel/unprivileged_userns_clone", "0")  # Debian's
        or says("kernel/apparmor_restrict_unprivileged_userns", "1")  # Ubuntu's
        or "\nSeccomp:\t2\n" in Path("/proc/self/status").read_text()
    )


# --- inside the namespace ---


def _bring_loopback_up() -> None:
    """As `ip link set lo up`. Source: netdevice(7)."""
    import fcntl
    import socket
    import struct

    get_flags, set_flags, is_up = 0x8913, 0x8914, 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = fcntl.ioctl(any_socket, get_flags, struct.pack("16sH14x", b"lo", 0))
        (flags,) = struct.unpack_from("H", request, 16)
        fcntl.ioctl(any_socket, set_flags, struct.pack("16sH14x", b"lo", flags | is_up))


def _counters() -> dict[str, int]:
    """This namespace's, since it was made. Source: proc_pid_net(5)."""
    found: dict[str, int] = {}
    lines = Path("/proc/self/net/snmp").read_text().splitlines()
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        kind, *fields = names.split()
        found |= zip((kind.rstrip(":") + name for name in fields), map(int, values.split()[1:]), strict=True)
    snmp6 = Path("/proc/self/net/snmp6")
    for line in snmp6.read_text().splitlines() if snmp6.exists() else ():
        name, value = line.split()
        found[name] = int(value)
    return {name: found.get(name, 0) for name in _COUNTERS}


def _named(answer: str) -> Answer:
    import importlib

    module, _, name = answer.partition(":")
    found: Answer = getattr(importlib.import_module(module), name)
    return found


def main(report: str, answer: str, *command: str) -> int:
    """Run a Python command and write down what the kernel counted meanwhile."""
    environment = dict(os.environ)  # before tests are imported, which may change it
    _bring_loopback_up()
    with ExitStack() as stack:
        url = stack.enter_context(StandIn(_named(answer))).url if answer else ENDPOINT
        before = _counters()
        words = [word.replace(ENDPOINT, url) for word in command]
        ended = subprocess.run([sys.executable, *words], env=environment)
    Path(report).write_text(json.dumps({name: count - before[name] for name, count in _counters().items()}))
    return ended.returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
