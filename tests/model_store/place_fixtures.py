"""What is found in a place, and where each tool's are: what the tests of places share."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gguf_builder import tiny_model
from zephyr_local.model_store.places import Found, FoundModel, Owner, Place, find_models, known_places

MODEL = tiny_model(n_block=1).build()
OTHER = tiny_model(n_block=1, seed=1).build()
SHA256 = hashlib.sha256(MODEL).hexdigest()

A_MINUTE = pytest.mark.timeout(60)  # a pipe that is opened waits for ever
posix = pytest.mark.skipif(os.name == "nt", reason="Windows has neither pipes nor links without a privilege")


def found_in(owner: Owner, folder: Path) -> Found:
    return find_models([Place(owner, folder)])


def only(found: Found) -> FoundModel:
    assert found.notices == ()
    assert len(found.models) == 1
    return found.models[0]


def left_out(found: Found) -> str:
    """The one notice of a place in which no model was found."""
    assert found.models == ()
    assert len(found.notices) == 1
    return found.notices[0]


def names(found: Found) -> list[str]:
    return [model.name for model in found.models]


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """As a user to whom a mode of 0 means something."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def folders_of(owner: Owner, **given: object) -> list[Path]:
    given = {"store": Path("/store"), "environment": {}, "home": Path("/home/u"), "platform": "linux", **given}
    return [place.folder for place in known_places(**given) if place.owner == owner]
