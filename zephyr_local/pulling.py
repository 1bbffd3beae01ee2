"""Fetches a model for an application: at its first run, with progress, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from zephyr_local.errors import InvalidInputError
from zephyr_local.model_store.hub import read_snapshot
from zephyr_local.model_store.library import models_here, store_folder
from zephyr_local.model_store.pull import (
    PullProgress,
    chosen_offers,
    here_already,
    known_files,
    pull_offer,
)
from zephyr_local.model_store.registry import all_recorded
from zephyr_local.model_store.wish import understand
from zephyr_local.offline import require_online
from zephyr_local.user_folders import make_private_folder

_RECORDED_AS: Final = "zephyr_local.pull_model"


def pull_model(name: str, *, on_progress: Callable[[PullProgress], object] | None = None) -> Path:
    """The file of a model of the hub, fetched where it is not on this machine yet; needs the extra ``hub``.

    ``name`` says one model in one type: ``zephyr-7b-beta:q4_k_m``, ``hf:OWNER/REPO:q4_k_m``, ``hf:OWNER/REPO/FILE``,
    each with ``@REVISION`` if that is to stay the same. Every byte is checked against the hub's digest. Blocks: call it
    on a thread. ``on_progress`` is called there; an exception of its ends the download and comes out of here. The next
    call goes on where that one ended, after a kill too. Nothing else in the runtime asks the network. Raises
    InvalidInputError, ModelNotFoundError, HubError, OfflineError and OutputError.
    """
    require_online(f"pull {name}")
    wish = understand(name)
    snapshot = read_snapshot(wish.hub.repository, wish.hub.revision)
    offers = chosen_offers(snapshot, wish.hub)
    if len(offers) > 1:
        types = ", ".join(dict.fromkeys(offer.label for offer in offers))
        raise InvalidInputError(f"{name} leaves open which of its files is meant: {types}", f"Name it: {name}:TYPE")
    known = known_files(models_here().models, all_recorded().values())
    if (here := here_already(offers[0], known)) is not None:
        return here[0]
    store = store_folder()
    make_private_folder(store)
    return pull_offer(snapshot, offers[0], store, command=_RECORDED_AS, on_progress=on_progress).paths[0]
