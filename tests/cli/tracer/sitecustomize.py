"""Python loads this in every process that has its folder on PYTHONPATH: it writes down who asks the network what.

To the file that CONNECTIONS_LOG names: ``began`` and the arguments for each process, and a line for each attempt to
reach, or to look up, anything but loopback. With CONNECTIONS_REFUSED such an attempt fails as without a network.
"""

from __future__ import annotations

import errno
import os
import sys

_HOSTS = {  # where each of Python's audit events has the host, or an address that begins with it
    "socket.connect": 1,
    "socket.sendto": 1,
    "socket.sendmsg": 1,
    "socket.getaddrinfo": 0,
    "socket.gethostbyname": 0,
    "socket.gethostbyaddr": 0,
    "socket.getnameinfo": 0,
}


def _is_local(event: str, where: object) -> bool:
    if isinstance(where, tuple):  # an address of IPv4 or IPv6; those of other kinds begin with a number
        if not where or not isinstance(where[0], str):
            return True
        where = where[0]
    elif not event.startswith("socket.get"):  # the path of a Unix socket
        return True
    if isinstance(where, bytes):
        where = where.decode(errors="replace")
    if where in (None, "", "localhost"):
        return True
    import ipaddress

    try:
        return ipaddress.ip_address(str(where)).is_loopback
    except ValueError:  # a name, which would be looked up
        return False


def _trace(path: str, *, refuses: bool) -> None:
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)  # now: a guarded process may open few files

    def write(line: str) -> None:
        os.write(log, line.replace("\n", " ").encode(errors="replace") + b"\n")

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event not in _HOSTS:
            return
        where = arguments[_HOSTS[event]]
        if not _is_local(event, where):
            write(f"{event} {where!r}")
            if refuses:
                raise OSError(errno.ENETUNREACH, "this test lets no connection leave the machine")

    write(f"began {sys.orig_argv!r}")
    sys.addaudithook(hook)


if log := os.environ.get("CONNECTIONS_LOG"):
    _trace(log, refuses=bool(os.environ.get("CONNECTIONS_REFUSED")))
