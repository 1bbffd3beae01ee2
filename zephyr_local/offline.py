"""Whether the network may be asked: with --offline or its variables, no connection leaves this machine."""

from __future__ import annotations

import ipaddress
import os
import re
from typing import Final
from urllib.parse import urlsplit

from zephyr_local.errors import OfflineError

VARIABLE: Final = "ZEPHYR_LOCAL_OFFLINE"
HUB_VARIABLE: Final = "HF_HUB_OFFLINE"
"""Hugging Face's own, which its libraries read when they are imported."""

_TRUE: Final = ("1", "on", "yes", "true")
_FALSE: Final = ("", "0", "off", "no", "false")
_READ_IN_TWO_WAYS: Final = re.compile(r"[\s\\]")
"""Characters that one reader of an address drops or takes for a slash, and another does not."""


def is_offline() -> bool:
    """Whether the environment forbids connections beyond loopback."""
    return bool(variables_that_forbid())


def go_offline() -> None:
    """Forbid them from now on, in this process and in those that it starts."""
    os.environ[VARIABLE] = os.environ[HUB_VARIABLE] = "1"


def require_online(what: str) -> None:
    """Raise OfflineError where ``what`` ("pull zephyr-7b-beta") would need the network and may not have it."""
    if names := variables_that_forbid():
        raise OfflineError(
            f"{what} needs the network, and this is offline (--offline, or {names[0]} is set)",
            "Leave --offline out, or unset the variable",
        )


def is_loopback(url: str) -> bool:
    """Whether asking this http address stays on this machine: it names localhost, 127.0.0.0/8 or ::1.

    Nothing is looked up: a name that a lookup would make one of these is beyond, for the lookup may leave the machine.
    """
    try:
        host = urlsplit(url).hostname or ""
        if _READ_IN_TWO_WAYS.search(url):
            return False
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # no address, or a name
        return False


def variables_that_forbid() -> list[str]:
    """The variables that say offline, ours first. Ours says so with any value but a no: who sets it to ``y`` does not
    mean online; the other is read as its libraries read it.
    """
    ours = os.environ.get(VARIABLE, "").strip().lower() not in _FALSE
    theirs = os.environ.get(HUB_VARIABLE, "").strip().lower() in _TRUE
    return [name for name, is_set in ((VARIABLE, ours), (HUB_VARIABLE, theirs)) if is_set]
