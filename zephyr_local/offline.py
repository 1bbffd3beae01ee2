"""Whether the network may be asked: with --offline or its variables, no connection leaves this machine."""

from __future__ import annotations

import os
from typing import Final

from zephyr_local.errors import OfflineError

VARIABLE: Final = "ZEPHYR_LOCAL_OFFLINE"
HUB_VARIABLE: Final = "HF_HUB_OFFLINE"
"""Hugging Face's own, which its libraries read when they are imported."""

_TRUE: Final = ("1", "on", "yes", "true")


def is_offline() -> bool:
    """Whether the environment forbids connections beyond loopback."""
    return any(os.environ.get(name, "").strip().lower() in _TRUE for name in (VARIABLE, HUB_VARIABLE))


def go_offline() -> None:
    """Forbid them from now on, in this process and in those that it starts."""
    os.environ[VARIABLE] = os.environ[HUB_VARIABLE] = "1"


def require_online(what: str) -> None:
    """Raise OfflineError where ``what`` ("pull zephyr-7b-beta") would need the network and may not have it."""
    if is_offline():
        name = VARIABLE if os.environ.get(VARIABLE) else HUB_VARIABLE
        raise OfflineError(
            f"{what} needs the network, and this is offline (--offline, or {name} is set)",
            "Leave --offline out, or unset the variable",
        )
