"""What `zephyr-local doctor` says of settings: the network, the hub, and the user's files."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from zephyr_local import offline
from zephyr_local.cli.doctor_check import Check
from zephyr_local.configuration import read_configuration
from zephyr_local.errors import OutputError, ZephyrError


def network_check() -> Check:
    """Whether connections may leave this machine."""
    if not offline.is_offline():
        text = "may be asked, by pull, evaluate, data feedback and train"
        return Check("ok", text, {"is_offline": False, "variables": []})
    names = offline.variables_that_forbid()
    are = "is" if len(names) == 1 else "are"
    return Check("ok", f"offline: {' and '.join(names)} {are} set", {"is_offline": True, "variables": names})


def hub_check() -> Check:
    """What is set of the model hub; the token itself is never shown."""
    has_token, endpoint = bool(os.environ.get("HF_TOKEN")), os.environ.get("HF_ENDPOINT")
    facts: dict[str, object] = {"hf_token_is_set": has_token, "hf_endpoint": None}
    text = f"HF_TOKEN is {'set' if has_token else 'not set'}"
    if not endpoint:
        return Check("ok", text, facts)
    try:
        parts = urlsplit(endpoint)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        return Check("problem", f"{text}; HF_ENDPOINT is no http address", facts, ("Correct it, or unset it",))
    # Without what may stand before the host: a name and a password.
    facts["hf_endpoint"] = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    return Check("ok", f"{text}; HF_ENDPOINT is {facts['hf_endpoint']}", facts)


def configuration_check(path: Path) -> Check:
    """Whether the configuration file is sound."""
    facts = {"path": str(path), "exists": os.path.lexists(path)}
    try:
        read_configuration(path)
    except ZephyrError as error:
        return Check("problem", error.problem, facts, (error.remedy,))
    return Check("ok", f"{path}" if facts["exists"] else f"{path} does not exist: the defaults hold", facts)


def catalogue_check(path: Path) -> Check:
    """Whether the file of the user's own names and folders is sound."""
    from zephyr_local.model_store.catalogue import read_catalogue

    facts = {"path": str(path), "exists": os.path.lexists(path)}
    try:
        read_catalogue(path)
    except ZephyrError as error:
        return Check("problem", error.problem, facts, (error.remedy,))
    return Check("ok", f"{path}" if facts["exists"] else f"{path} does not exist: there are no names of yours", facts)


def registry_check(path: Path) -> Check:
    """Whether what is remembered of models can be read; models are found and used without it."""
    from zephyr_local.model_store.registry import Registry

    facts = {"path": str(path), "exists": os.path.lexists(path)}
    if not facts["exists"]:
        return Check("ok", f"{path} does not exist: nothing was pulled or verified yet", facts)
    try:
        with Registry(path) as registry:
            many = len(registry.records())
        return Check("ok", f"{path}: {many} file{'s' if many != 1 else ''}", facts)
    except OutputError as error:
        text = f"{error.problem}; models are used all the same, and where they came from is not known"
        return Check("note", text, facts, (error.remedy,))
